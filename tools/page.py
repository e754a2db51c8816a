"""
Write a page that shows a recurrent network remembering: one HTML file, no server, no network.

    python -m tools.page out/toy                                          out/toy/page.html
    python -m tools.page out/page_hgrn2 out/page_llama --file=page.html   several models

Type a sentence, and see what each model expects next, which earlier words it still reads, and how
its memory changes word by word. The models share a tokenizer. The file holds their weights,
matrices in 8 bits, and the program of page.html computes HGRN2, minGRU or attention with rope in
blocks of RMSNorm and SwiGLU. 200,000 parameters are 280 kB.
"""

import base64
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # `python tools/page.py` would look for our modules beside it
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from model import load
from support.console import refuse_torchrun, run_script
from support.files import replacing
from support.settings import UserError, configure

import torch

TEMPLATE = Path(__file__).with_name("page.html")
PLACE = "/* what tools/page.py fills in */"
NEEDED = {  # setting -> the values that the page's program can compute
    "mixer": ("hgrn2", "mingru", "attention"),
    "norm": ("rmsnorm",),
    "mlp": ("swiglu",),
    "conv": (0,),
    "position": ("none", "rope"),
}
LIMIT = 4_000_000  # parameters of all models: 5 MB


@dataclass
class Settings:
    file: str = ""  # where to write the page; none: page.html in the folder of the first run

    def check(self):
        pass


def main(args):
    """Write the page of the runs that the arguments name; returns its path."""
    refuse_torchrun()
    runs = [os.path.expanduser(arg) for arg in args if not arg.startswith("-")]
    s = configure(Settings(), [arg for arg in args if arg.startswith("-")])
    if not runs:
        raise UserError("of what? python -m tools.page out/toy, or several runs")
    content, count, folder = {"models": []}, 0, None
    for run in runs:
        model, tokenizer, trained = load(run, kernels="loop")
        check(run, trained, tokenizer)
        own = bpe_of(tokenizer)
        if content.setdefault("tokenizer", own) != own:
            raise UserError(f"{run}: has another tokenizer than {runs[0]}; the models of a page share one")
        count += sum(p.numel() for p in model.parameters())
        if count > LIMIT:
            raise UserError(f"{run}: {count:,} parameters are too many for a page, which takes {LIMIT:,}")
        content["models"].append(model_of(model, trained))
        folder = folder or trained.checkpoint.parent
    path = Path(s.file) if s.file else folder / "page.html"
    text = TEMPLATE.read_text(encoding="utf-8")
    with replacing(path) as file:
        file.write(text.replace(PLACE, json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")))
    print(f"written: {path}, {path.stat().st_size / 1e6:.2f} MB; open it in a browser")
    return path


def check(run, trained, tokenizer):
    """Raise UserError for a model that the page's program cannot compute."""
    for name, values in NEEDED.items():
        if getattr(trained, name) not in values:
            what = f"{name} = {getattr(trained, name)!r}"
            raise UserError(f"{run}: {what}; a page computes models with {' or '.join(map(repr, values))}")
    if trained.mixer == "attention" and trained.position != "rope":
        raise UserError(f"{run}: position = {trained.position!r}; a page computes attention with 'rope'")
    if tokenizer.get_vocab_size() != trained.vocab_size:
        entries = (
            f"the model has {trained.vocab_size:,} entries, its tokenizer {tokenizer.get_vocab_size():,}"
        )
        raise UserError(f"{run}: {entries}; a page needs as many: train with --vocab_size of the corpus")


SHAPE = "mixer n_layer d_model n_head d_mlp expand norm_eps vocab_size tie_embeddings".split()


def model_of(model, trained):
    """Return a model's name, shape and weights as the page reads them."""
    weights = {name: packed(weight) for name, weight in model.state_dict().items()}
    if trained.tie_embeddings:
        del weights["head.weight"]
    names = {"hgrn2": "HGRN2", "mingru": "minGRU", "attention": "Transformer"}
    shape = {name: getattr(trained, name) for name in SHAPE}
    return {"name": names[trained.mixer]} | shape | {"weights": weights}


def bpe_of(tokenizer):
    """{"vocab": [text of each token], "merges": [[left, right], ...]} of a byte-level BPE."""
    model = json.loads(tokenizer.to_str())["model"]
    if model["type"] != "BPE" or "<s>" not in model["vocab"]:
        raise UserError("this tokenizer is not the byte-level BPE of data.py; a page knows no other")
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    return {"vocab": sorted(model["vocab"], key=model["vocab"].get), "merges": merges}


def packed(weight):
    """A weight as text: a matrix in 8 bits with a scale for each row, a vector in float32; see `unpack` there."""
    if weight.ndim == 1:
        return {"shape": list(weight.shape), "values": text_of(weight.float())}
    scale, steps = quantised(weight)
    return {"shape": list(weight.shape), "scale": text_of(scale.flatten()), "steps": text_of(steps)}


def quantised(weight):
    """weight (rows, columns) -> scale (rows, 1), whole steps of it (rows, columns), at most 127."""
    scale = weight.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / 127
    return scale, (weight / scale).round().to(torch.int8)


def text_of(tensor):
    return base64.b64encode(tensor.contiguous().numpy().tobytes()).decode()


if __name__ == "__main__":
    run_script(main)
