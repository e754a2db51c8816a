"""
Export a run as a Hugging Face folder, for transformers and every tool that is built on it.

    python -m tools.export out/toy                writes out/toy/hf/toy
    python -m tools.export out/toy --to=toy_bf16 --dtype=bfloat16
    python -m tools.export out/toy --predictions  the BabyLM leaderboard's file of 2024 instead

Then, anywhere: AutoModelForCausalLM.from_pretrained("out/toy/hf/toy", trust_remote_code=True), or
AutoModel, or AutoModelForSequenceClassification. With the extra argument kernels="loop" only the
plain code runs. The folder holds the weights as safetensors, the tokenizer, a model
card and the modelling code: nanoRNN's own files, side by side, which need only PyTorch and
transformers, 4.51 or newer.
"""

import gzip
import hashlib
import json
import re
import sys
from collections import defaultdict
from dataclasses import dataclass, fields
from pathlib import Path

if not __package__:  # `python tools/export.py` would look for our modules beside it
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import data
import evaluate
from corpora.benchmarks import credit, read_benchmark, summary
from model import Config, load
from support.console import run_script
from support.files import remove_unfinished, replacing
from support.settings import ROOT, UserError, configure, one_of

import torch
from safetensors.torch import save
from tokenizers import Regex, decoders, normalizers, pre_tokenizers, processors

ENDLESS = 1_000_000  # tokens: the max_position_embeddings of a model that reads texts of any length
NO_LIMIT = int(1e30)  # how transformers writes that a tokenizer has no maximum length
CLASSES = {
    "AutoConfig": "NanoRNNConfig",
    "AutoModel": "NanoRNNModel",
    "AutoModelForCausalLM": "NanoRNNForCausalLM",
    "AutoModelForSequenceClassification": "NanoRNNForSequenceClassification",
}


@dataclass
class Settings:
    run: str = "out/toy"  # a run folder, or a checkpoint in one
    to: str = ""  # the folder to write; none: hf/NAME in the run's folder, for chck_1M.pt hf/NAME_chck_1M
    dtype: str = "float32"  # float32, bfloat16 or float16: the precision of the exported weights
    predictions: bool = False  # write the run's predictions for the BabyLM leaderboard of 2024 instead

    def check(self):
        one_of("dtype", self.dtype, ("float32", "bfloat16", "float16"))


def main(s):
    """Write the folder, or the predictions, that the settings ask for; returns its path."""
    run = Path(s.run)
    return write_predictions(run) if s.predictions else write_folder(run, s)


def write_folder(run, s, name=None):
    """
    Export a run under a name, by default the folder's; config.json comes last, because a folder without it is no
    model yet.
    """
    model, tokenizer, trained = load(run, kernels=None)
    folder = choose_folder(trained.checkpoint, s.to)
    settings = {field.name: getattr(trained, field.name) for field in fields(Config)}
    files = {
        **modelling_code(),  # first: choose_folder knows a folder that was begun by it
        "README.md": model_card(name or folder.name, model, trained),
        "LICENSE": (ROOT / "LICENSE").read_text(encoding="utf-8"),
        "tokenizer.json": tokenizer_json(tokenizer),
        "tokenizer_config.json": as_json(tokenizer_config(tokenizer, settings)),
        "special_tokens_map.json": as_json(special_tokens(tokenizer)),
        "generation_config.json": as_json(special_ids(tokenizer)),
    }
    config = config_json(settings, tokenizer, s.dtype) | {"nanornn_checkpoint": trained.digest}

    (folder / "config.json").unlink(missing_ok=True)
    for name, text in files.items():
        write(folder / name, text)
    write_weights(folder / "model.safetensors", weights(model, getattr(torch, s.dtype)))
    write(folder / "config.json", as_json(config))
    print(f"written: {folder}")
    return folder


def choose_folder(checkpoint, to):
    """The folder to write, named as the run; UserError if it holds anything but an export, complete or not."""
    name = re.sub(r"[^\w-]", "_", name_of(checkpoint))  # to Python it is a package
    folder = Path(to) if to else checkpoint.parent / "hf" / name
    remove_unfinished(folder)
    is_free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_free and not (folder / "modeling_nanornn.py").exists():
        raise UserError(f"to = {str(folder)!r} holds something else already: name a new folder")
    return folder


def name_of(checkpoint):
    """The run's name; of out/toy/best.pt, toy_best."""
    run = checkpoint.parent.resolve().name
    return run if checkpoint.stem == "checkpoint" else f"{run}_{checkpoint.stem}"


def write(path, text):
    with replacing(path) as file:
        file.write(text)


def as_json(content):
    return json.dumps(content, indent=1) + "\n"


# ----------------------------------------------------------------------------------------------------
# Settings, model card, tokenizer, weights


def config_json(settings, tokenizer, dtype):
    """config.json: the fields of model.Config, and those that transformers and the tools around it look for."""
    return {
        "model_type": "nanornn",
        "architectures": ["NanoRNNForCausalLM"],
        "auto_map": {auto: f"modeling_nanornn.{name}" for auto, name in CLASSES.items()},
        "tokenizer_class": "PreTrainedTokenizerFast",
        **settings,
        "kernels": "auto",
        "hidden_size": settings["d_model"],
        "num_hidden_layers": settings["n_layer"],
        "num_attention_heads": settings["n_head"],
        "max_position_embeddings": longest_text(settings) or ENDLESS,
        "tie_word_embeddings": settings["tie_embeddings"],
        "torch_dtype": dtype,
        "use_cache": True,
        **special_ids(tokenizer),
    }


CARD = """---
license: mit
library_name: transformers
pipeline_tag: text-generation
tags: [nanornn]
---

# {name}

A language model trained by nanoRNN.

| | |
|---|---|
| sequence mixer | {mixer} |
| parameters | {parameters:,} |
| trained on | {corpus}, {steps:,} steps of {batch:,} tokens |
{scores}
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
```

The tokenizer puts `<s>` before each text. `</s>` at the end of a text ends it; anywhere else it is text.

* BabyLM's fine-tuning script reads the first token, which is always `<s>` here: give it `--take_final
  --padding_side left`; and `--no-lora`, for its adapters would leave the mixers as they are.
* lm-pub-quiz sets the tokenizer's `add_bos_token` and sets it back: set `tokenizer.add_bos_token = True` yourself
  first, or it fails under transformers 4 and leaves a tokenizer without `<s>` under 5.

The code is under the MIT licence, and so are the weights, unless the text that they were trained on forbids it.
"""


def model_card(name, model, trained):
    """The README.md of the folder, with the checkpoint's scores if it has been evaluated."""
    place = evaluate.beside(trained.checkpoint, "results.json")
    results = evaluate.read_results(place, {"checkpoint": trained.digest})
    rows = []
    if results:
        for task, found in results["benchmarks"].items():
            part = f", without {', '.join(found['missing'])}" if found.get("missing") else ""
            rows.append(f"| {task}{part} | {found['score']:.1f} |")
        if results.get("perplexity"):
            rows.append(f"| perplexity, per token of the validation text | {results['perplexity']:.2f} |")
        rows = ["", f"| score, protocol of {results['protocol']} | |", "|---|--:|", *rows]
    return CARD.format(
        name=name,
        mixer=trained.mixer,
        parameters=sum(weight.numel() for weight in model.parameters()),
        corpus=trained.corpus,
        steps=trained.step,
        batch=vars(trained).get("batch_size", 0) * trained.context,
        scores="".join(f"{row}\n" for row in rows),
    )


def longest_text(settings):
    """The most tokens a model can read, or None: learned positions and Hyena's filter are for `context` tokens."""
    if settings["position"] == "learned" or "hyena" in settings["mixer"].split():
        return settings["context"]
    return None


def special_tokens(tokenizer):
    """{"bos_token": "<s>", ...}; empty for single characters, which have a line break in the place of <s>."""
    names = {"bos_token": data.BOS, "eos_token": data.EOS, "pad_token": data.PAD}
    return {name: token for name, token in names.items() if tokenizer.token_to_id(token) is not None}


def special_ids(tokenizer):
    """{"bos_token_id": 1, ...}; None where the tokenizer has no such token."""
    return {
        "bos_token_id": data.start_of(tokenizer),
        "eos_token_id": tokenizer.token_to_id(data.EOS),
        "pad_token_id": tokenizer.token_to_id(data.PAD),
    }


def tokenizer_json(tokenizer):
    """
    The tokenizer as JSON. It puts the start token before each text, so that tools score the first word, and leaves
    out the space that begins each line when it decodes.
    """
    start = data.start_of(tokenizer)
    bos = tokenizer.id_to_token(start)
    one, two = [bos, "$A"], [bos, "$A", bos, "$B:0"]
    tokenizer.post_processor = processors.TemplateProcessing(one, two, special_tokens=[(bos, start)])
    if not special_tokens(tokenizer):
        return tokenizer.to_str(pretty=True)
    if adds_prefix_space(tokenizer):
        line_start = decoders.Replace(Regex(r"(?<=\A|\n) "), "")
        tokenizer.decoder = decoders.Sequence([tokenizer.decoder, line_start])
    return with_special_tokens_as_text(tokenizer)


# In training, "</s>" in a text is text. Tools, however, append it and mean the token. So a text may begin with
# <s>, end with </s> or be <pad>; anywhere else the normaliser breaks these words by a mark that no text has, which
# hides them from the search for special tokens, and the pre-tokenizer takes the mark out again. Special tokens
# that others add are found everywhere.
MARK = "\U000f5a17\U000fa751"
IN_TEXT = {
    r"(?<=[\s\S])<s>": f"<{MARK}s>",
    r"</s>(?!\z)": f"</{MARK}s>",
    r"(?<=[\s\S])<pad>|<pad>(?!\z)": f"<{MARK}pad>",
}


def with_special_tokens_as_text(tokenizer):
    """The tokenizer as JSON, for which <s>, </s> and <pad> inside a text are text."""
    hide = [normalizers.Replace(Regex(pattern), broken) for pattern, broken in IN_TEXT.items()]
    tokenizer.normalizer = normalizers.Sequence(hide)
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    ((mark, _),) = in_bytes.pre_tokenize_str(MARK)
    unhide = pre_tokenizers.Split(mark, "removed")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([tokenizer.pre_tokenizer, unhide])
    content = json.loads(tokenizer.to_str())
    for token in content["added_tokens"]:
        token["normalized"] = True  # searched for in what the normaliser makes
    return json.dumps(content, indent=2, ensure_ascii=False)


def adds_prefix_space(tokenizer):
    return '"add_prefix_space": true' in json.dumps(json.loads(tokenizer.to_str())["pre_tokenizer"])


def tokenizer_config(tokenizer, settings):
    """tokenizer_config.json: how transformers is to treat tokenizer.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": longest_text(settings) or NO_LIMIT,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": adds_prefix_space(tokenizer),  # or transformers 4 might drop it
        **special_tokens(tokenizer),
    }


def weights(model, dtype):
    """{name in tools/huggingface.py: weight}; tied ones once."""
    tensors = {}
    for name, weight in model.named_parameters():
        new_name = "lm_head.weight" if name == "head.weight" else f"model.nanornn.{name}"
        tensors[new_name] = weight.detach().to(dtype).contiguous()
    return tensors


def write_weights(path, tensors):
    with replacing(path, "wb") as file:
        file.write(save(tensors, metadata={"format": "pt"}))


# ----------------------------------------------------------------------------------------------------
# The modelling code: tools/huggingface.py, model.py and the files that they import, flat in one folder, with
# imports rewritten to relative ones: `from fast.layers import linear` becomes `from . fast_layers import linear`.

HEADER = "# {source} of nanoRNN, as tools/export.py copies it. Copyright (c) 2026 The nanoRNN authors. MIT.\n"
IMPORT = re.compile(r"^( *)from ([\w.]+) import ", re.MULTILINE)
NAMESPACE = re.compile(r'^NAMESPACE = "nanornn".*\n', re.MULTILINE)
LOADING = re.compile(r"^# -+\n# Loading a run\n", re.MULTILINE)  # model.py's last chapter, which is left out

# transformers copies modeling_nanornn.py and the files it imports to a place named like the folder and imports it
# there. Version 4.51 looks for imports in this one file only, does not import the others anew when another folder
# of the same name is loaded, and loops without end where two of them import each other. So modeling_nanornn.py
# names all files and unloads them, and real imports are written `from . name import`, which it does not follow.
COPIED = """import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # transformers copies what is imported here
{imports}
for name in [x for x in sys.modules if x.startswith(f"{{__package__}}.") and x != __name__]:
    del sys.modules[name]  # of another folder of this name

"""

# Operators are registered under a name that no other copy of these files in the same process has.
OWN_NAMESPACE = """from zlib import crc32

NAMESPACE = f"nanornn_{digest}_{{crc32(__file__.encode()):08x}}"
"""


def modelling_code():
    """{file name: text}, modeling_nanornn.py first."""
    sources = collect("tools.huggingface")
    digest = hashlib.sha256("".join(sources.values()).encode()).hexdigest()[:8]
    others = [flat_name(module) for module in sources if module != "tools.huggingface"]
    code = {}
    for module, text in sources.items():
        text = IMPORT.sub(relative_import, text)
        text = NAMESPACE.sub(OWN_NAMESPACE.format(digest=digest), text)
        if module == "tools.huggingface":
            imports = "".join(f"    from .{name} import __doc__ as _\n" for name in others)
            text = text.replace("\nimport ", "\n" + COPIED.format(imports=imports) + "import ", 1)
        code[f"{flat_name(module)}.py"] = HEADER.format(source=source_path(module)) + text
    return code


def collect(module):
    """{module: text} of a module and of all modules of ours that it imports, directly or not."""
    sources, waiting = {}, [module]
    while waiting:
        module = waiting.pop(0)
        if module in sources:
            continue
        text = (ROOT / source_path(module)).read_text(encoding="utf-8")
        sources[module] = LOADING.split(text)[0].rstrip() + "\n"
        waiting += [name for _, name in IMPORT.findall(sources[module]) if is_ours(name)]
    return sources


def source_path(module):
    """ "fast.layers" -> "fast/layers.py"."""
    return module.replace(".", "/") + ".py"


def is_ours(module):
    return (ROOT / source_path(module)).exists()


def flat_name(module):
    """ "fast.layers" -> "fast_layers", "support.settings" -> "settings"."""
    if module == "tools.huggingface":
        return "modeling_nanornn"
    return module.removeprefix("support.").replace(".", "_")


def relative_import(match):
    """The beginning of an import statement, relative if the module is ours."""
    indent, module = match.groups()
    return f"{indent}from . {flat_name(module)} import " if is_ours(module) else match[0]


# ----------------------------------------------------------------------------------------------------
# The predictions file of the BabyLM challenge of 2024: for each pair, the text that the model prefers

TASKS = {"blimp": "blimp_filtered", "blimp_supplement": "supplement"}  # the leaderboard's name: ours
ASK = "--tasks=" + ",".join(TASKS.values())


def write_predictions(run):
    """
    Write the file that github.com/babylm/evaluation-pipeline-2024's collect_results.py makes; returns its path.
    {task: {subtask: {"predictions": [{"id": "SUBTASK_0", "pred": " The text."}, ...]}}}. Tasks without scores are
    left out; a pairs file that results.json does not name is of an earlier checkpoint.
    """
    checkpoint = evaluate.checkpoint_of(run)
    results = evaluate.read_results(evaluate.beside(checkpoint, "results.json"), {"protocol": "2024"})
    if not results:
        raise UserError(f"{run}: needs scores by protocol 2024; make them: python evaluate.py {run} {ASK}")
    predictions = {}
    for task, name in TASKS.items():
        path = evaluate.beside(checkpoint, f"pairs_{name}.jsonl")
        if name not in results["benchmarks"] or not path.exists():
            print(f"{task}: left out, there is no {path.name}; python evaluate.py {run} {ASK}")
            continue
        score = results["benchmarks"][name]["score"]
        subtasks = read_benchmark(name)
        predictions[task] = preferred_texts(read_verdicts(path, subtasks, score, "2024"), subtasks)
    if not predictions:
        raise UserError(f"{run}: no scores of these; make them: python evaluate.py {run} {ASK}")
    print("ewok: left out, for this file would hold its texts, which may not be published as plain text")
    print("glue: left out, it takes fine-tuning")
    path = checkpoint.parent / f"{name_of(checkpoint)}_textonly_predictions.json.gz"
    with replacing(path, "wb") as file:
        file.write(gzip.compress(json.dumps(predictions).encode(), mtime=0))
    print(f"written: {path}")
    return path


def read_verdicts(path, subtasks, score, protocol):
    """
    {subtask: rows} of a pairs_TASK.jsonl; UserError unless they are the verdicts on all records of the subtasks
    and have this score by the protocol's rules.
    """
    verdicts = defaultdict(list)
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            row = json.loads(line)
            names = ("i", "surprisal") if "surprisal" in row else ("i", "good", "bad")
            sum(row[name] for name in names)
            verdicts[row["uid"]].append(row)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}:{number}: not a pair's scores ({error}); evaluate the run again")
    lines = {uid: [record["i"] for record in subtask.records] for uid, subtask in subtasks.items()}
    if {uid: list(dict.fromkeys(row["i"] for row in rows)) for uid, rows in verdicts.items()} != lines:
        total = sum(map(len, lines.values()))
        raise UserError(f"{path}: not the scores of all {total:,} pairs; evaluate the run again")
    if abs(summary(subtasks, verdicts, protocol)["score"] - score) > 1e-6:
        raise UserError(f"{path}: not the scores that results.json was made from; evaluate the run again")
    return verdicts


def preferred_texts(verdicts, subtasks):
    """{subtask: {"predictions": [...]}}: the text of each pair that scores higher, the good one in a tie."""
    predictions = {}
    for uid, subtask in subtasks.items():
        rows = []
        for record, row in zip(subtask.records, verdicts[uid]):
            text = record["sentence_good" if credit(row) else "sentence_bad"]
            rows.append({"id": f"{uid}_{row['i']}", "pred": f" {text}"})
        predictions[uid] = {"predictions": rows}
    return predictions


if __name__ == "__main__":
    run_script(lambda args: main(configure(Settings(), args, word="run")))
