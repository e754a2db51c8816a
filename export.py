"""
A run as a Hugging Face folder, for everybody else's tools.

    python export.py out/toy                           writes out/toy/hf
    python export.py out/toy --to=toy_bf16 --dtype=bfloat16
    python export.py out/toy --predictions             instead, what the BabyLM leaderboard of 2024 asks for

Then, anywhere: AutoModelForCausalLM.from_pretrained("out/toy/hf", trust_remote_code=True), or AutoModel, or
AutoModelForSequenceClassification. The folder holds the weights as safetensors, the tokenizer, and nanoRNN's own
model code as one file, modeling_nanornn.py, which needs nothing but PyTorch and transformers.
"""

from start import begin

begin(__name__)  # before torch is loaded

import ast
import gzip
import hashlib
import json
import struct
from collections import defaultdict
from dataclasses import asdict, dataclass, fields
from itertools import takewhile
from pathlib import Path

import torch
from tokenizers import processors

import data
import evaluate
from benchmarks import is_right, read_benchmark, summary
from checkpoint import fingerprint, replacing
from config import configure, fail, one_of, run_script
from model import Config, load

HERE = Path(__file__).parent
ENDLESS = 1_000_000  # tokens: what tools are told of a model that reads a text of any length
# safetensors' names of number formats
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64", "int64": "I64"}
CLASSES = {
    "AutoConfig": "NanoRNNConfig",
    "AutoModel": "NanoRNNModel",
    "AutoModelForCausalLM": "NanoRNNForCausalLM",
    "AutoModelForSequenceClassification": "NanoRNNForSequenceClassification",
}


@dataclass
class Settings:
    run: str = "out/toy"  # a run folder, or a checkpoint in one
    to: str = ""  # the folder to write; none: hf in the run's folder, for chck_1M.pt hf_chck_1M
    dtype: str = "float32"  # float32, bfloat16 or float16: how the weights are kept
    predictions: bool = False  # write the run's predictions for the BabyLM leaderboard of 2024 instead

    def check(self):
        one_of("dtype", self.dtype, ("float32", "bfloat16", "float16"))


def main(s):
    """Export as settings s say; returns the path of what was written."""
    if s.predictions:
        return write_predictions(Path(s.run))
    model, tokenizer, trained = load(s.run)
    file = trained.checkpoint
    folder = Path(s.to or file.with_name("hf" if file.stem == "checkpoint" else f"hf_{file.stem}"))
    check_free(folder)
    start, (end, pad) = data.start_of(tokenizer), map(tokenizer.token_to_id, (data.EOS, data.PAD))
    ids = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": pad}
    settings = Config(**{field.name: getattr(trained, field.name) for field in fields(Config)})
    config = config_json(settings, ids, s.dtype) | {"nanornn_checkpoint": fingerprint(trained.checkpoint)}
    (folder / "config.json").unlink(missing_ok=True)  # until it is back, last, this is no model
    write(folder / "modeling_nanornn.py", standalone())
    write_safetensors(folder / "model.safetensors", weights(model, getattr(torch, s.dtype)))
    write(folder / "tokenizer.json", tokenizer_json(tokenizer, start))
    write(folder / "tokenizer_config.json", tokenizer_config(tokenizer, config["max_position_embeddings"]))
    write(folder / "special_tokens_map.json", special_tokens(tokenizer))
    write(folder / "generation_config.json", ids)
    write(folder / "config.json", config)
    print(f"written: {folder}")
    return folder


def check_free(folder):
    """Refuse a folder that holds anything but an export, be it one that was stopped in the middle."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else ["a file"] * folder.exists()
    if names and "modeling_nanornn.py" not in names:
        fail(f"to = {str(folder)!r} holds something else already: name a new folder")


def write(path, content):
    with replacing(path) as file:
        file.write(content if isinstance(content, str) else json.dumps(content, indent=1) + "\n")


# ----------------------------------------------------------------------------------------------------
# Settings, tokenizer, weights


def config_json(settings, ids, dtype):
    """config.json: model.Config, and what transformers and the tools around it look for."""
    return {
        "model_type": "nanornn",
        "architectures": ["NanoRNNForCausalLM"],
        "auto_map": {auto: f"modeling_nanornn.{name}" for auto, name in CLASSES.items()},
        **asdict(settings),
        "hidden_size": settings.d_model,
        "num_hidden_layers": settings.n_layer,
        "num_attention_heads": settings.n_head,
        "max_position_embeddings": settings.context if has_an_end(settings) else ENDLESS,
        "tie_word_embeddings": settings.tie_embeddings,
        "torch_dtype": dtype,
        "use_cache": True,
        **ids,
    }


def has_an_end(settings):
    """Whether it reads no more than `context` tokens: learned positions and Hyena's filter are for so many."""
    return settings.position == "learned" or "hyena" in settings.mixer.split()


def special_tokens(tokenizer):
    """{"bos_token": "<s>", ...}; none of single characters, where a line break is text as well as a beginning."""
    names = {"bos_token": data.BOS, "eos_token": data.EOS, "pad_token": data.PAD}
    return {name: token for name, token in names.items() if tokenizer.token_to_id(token) is not None}


def tokenizer_json(tokenizer, start):
    """The tokenizer, putting the start token before each text: without one, no tool would score the first word."""
    bos = tokenizer.id_to_token(start)
    one, two = [bos, "$A"], [bos, "$A", bos, "$B:0"]
    tokenizer.post_processor = processors.TemplateProcessing(one, two, special_tokens=[(bos, start)])
    return tokenizer.to_str(pretty=True)


def tokenizer_config(tokenizer, longest):
    state = json.dumps(json.loads(tokenizer.to_str())["pre_tokenizer"])
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": longest,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # a "</s>" in a text is text, as in training
        "add_prefix_space": '"add_prefix_space": true' in state,  # or transformers 4 might take it back
        **special_tokens(tokenizer),
    }


def weights(model, dtype):
    """{name: tensor} of a model, one that goes by several names only under the first."""
    tensors = model.state_dict(keep_vars=True)
    first = {id(x): name for name, x in reversed(tensors.items())}
    tensors = {name: x.detach() for name, x in tensors.items() if first[id(x)] == name}
    return {f"model.{name}": x.to(dtype) if x.is_floating_point() else x for name, x in tensors.items()}


def write_safetensors(path, tensors):
    """The header's length, 8 bytes; the header, JSON that says what lies where; the numbers."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, x in tensors.items():
        begin, end = end, end + x.numel() * x.element_size()
        dtype = DTYPES[str(x.dtype).removeprefix("torch.")]
        header[name] = {"dtype": dtype, "shape": list(x.shape), "data_offsets": [begin, end]}
    header = json.dumps(header).encode()
    header += b" " * (-len(header) % 8)
    with replacing(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for x in tensors.values():
            file.write(x.contiguous().flatten().view(torch.uint8).numpy().data)


# ----------------------------------------------------------------------------------------------------
# nanoRNN's scripts as one file: the statements of huggingface.py, with those of the scripts that it imports in
# the place of the imports, as Python would run them; and of these only what huggingface.py makes use of.

HEADER = '''"""
nanoRNN as one file, for transformers: AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True).

Made by nanoRNN's export.py from {sources}: change those.
It needs PyTorch and transformers, 4.51 or newer, and no more; recurrences run in plain PyTorch, on any device.
Copyright (c) 2026 The nanoRNN authors. MIT License.
SHA-256 of all from the first line of dashes on: {digest}

Shapes:  B batch   T time   D model width   H heads   K, V key and value width of a head   E expanded width
         C chunk length   n chunks   N tokens of a batch, or states of a channel
"""

{imports}

# of this file's operators: other copies may be loaded beside it
NAMESPACE = f"nanornn_{part}_{{zlib.crc32(__file__.encode()):08x}}"
'''
INSTEAD = {  # of what these names are in the scripts
    "fail": "\n\ndef fail(message):\n    raise ValueError(message)",
    "triton_kernels": "\n\ntriton_kernels = None  # not in this file",
}
RULE = "# " + "-" * 98


def standalone():
    """The text of modeling_nanornn.py."""
    found = list(statements("huggingface", set()))
    kept = needed(found, set(CLASSES.values()))
    body, script, title = [], None, []
    for x in found:
        if x.script != script:
            script, title = x.script, [f"\n\n{RULE}\n# from {x.script}"]
        if x in kept and not x.is_import:
            body, title = [*body, *title, x.text], []
        elif x.title:
            title = [f"\n\n{x.title}"]  # what a chapter begins with may not be needed
    text = "\n".join(body).replace('"nanornn::', 'NAMESPACE + "::') + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    sources = ", ".join(dict.fromkeys(x.script for x in kept if not x.is_import))
    return HEADER.format(sources=sources, digest=digest, part=digest[:8], imports=import_lines(kept)) + text


def import_lines(kept):
    """A line for each name that the statements use and others import."""
    used = {name for x in kept for name in x.uses}
    lines = {"import zlib"}
    for node in [x.node for x in kept if x.is_import]:
        source = f"from {node.module} " if isinstance(node, ast.ImportFrom) else ""
        names = [alias for alias in node.names if (alias.asname or alias.name.split(".")[0]) in used]
        lines |= {f"{source}import {ast.unparse(alias)}" for alias in names}
    return "\n".join(sorted(lines, key=lambda line: (line.startswith("from"), line)))


class Statement:
    """At a script's top level: what it defines, uses and adds to; its text, from the last statement's end on."""

    def __init__(self, script, node, text):
        self.script, self.node, self.text = script, node, text
        self.is_import, parts = isinstance(node, (ast.Import, ast.ImportFrom)), list(ast.walk(node))
        names = [x for x in parts if isinstance(x, ast.Name)]
        self.uses = {x.id for x in names if isinstance(x.ctx, ast.Load)}
        self.defines = {x.id for x in names if isinstance(x.ctx, ast.Store)}
        self.defines |= {x.asname or x.name.split(".")[0] for x in parts if isinstance(x, ast.alias)}
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            self.defines = {node.name}
        callers = [node.value] if isinstance(node, ast.Expr) else getattr(node, "decorator_list", [])
        self.adds_to = {first_name(caller) for caller in callers}  # scan.register_autograd(...) to scan
        lines = text.split("\n")
        rules = [i for i, line in enumerate(lines) if line.startswith("# ----")]
        self.title = "\n".join(takewhile(lambda x: x.startswith("#"), lines[rules[-1] :])) if rules else ""


def first_name(node):
    """ "scan" for scan.register_fake(...)."""
    while isinstance(node, (ast.Attribute, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return getattr(node, "id", None)


def statements(script, seen):
    """Yield a script's statements; in the place of an import of another script of ours, those of that."""
    seen.add(script)
    path = script_path(script)
    lines, end = path.read_text(encoding="utf-8").split("\n"), 0
    for node in ast.parse("\n".join(lines)).body:
        text, end = "\n".join(lines[end : node.end_lineno]), node.end_lineno
        other = node.module if isinstance(node, ast.ImportFrom) else None
        if other and script_path(other).exists():
            yield from statements(other, seen) if other not in seen else ()
            continue
        statement = Statement(path.relative_to(HERE).as_posix(), node, text)
        for name in statement.defines & INSTEAD.keys():
            text = INSTEAD[name]
            statement = Statement(statement.script, ast.parse(text).body[0], text)
        yield statement


def script_path(name):
    """model -> model.py, config -> config/__init__.py"""
    path = HERE / f"{name}.py"
    return path if path.exists() else HERE / name / "__init__.py"


def needed(found, names):
    """Those of the statements that define or add to one of the names, or to one that such a statement uses."""
    defined = {name for x in found if not x.is_import for name in x.defines}
    before = None
    while names != before:
        kept = [x for x in found if (x.defines | (x.adds_to & defined)) & names]
        before, names = names, names.union(*(x.uses for x in kept))
    return kept


# ----------------------------------------------------------------------------------------------------
# The predictions file of the BabyLM challenge of 2024: for each pair, the text that the model prefers

TASKS = {"blimp": "blimp_filtered", "blimp_supplement": "supplement"}  # the leaderboard's name: ours


def write_predictions(run):
    """
    {task: {subtask: {"predictions": [{"id": "SUBTASK_0", "pred": " The text."}, ...]}}}, as collect_results.py of
    github.com/babylm/evaluation-pipeline-2024 makes it. What the run has no scores of is left out, and said.
    """
    folder, prefix = evaluate.place_of(run / "checkpoint.pt" if run.is_dir() else run)
    results = evaluate.read_results(folder / f"{prefix}results.json", {"protocol": "2024"})
    if not results:
        fail(f"{run}: needs scores by protocol 2024; make them: python evaluate.py {run} {ASK}")
    predictions = {}
    for task, name in TASKS.items():
        path = folder / f"{prefix}pairs_{name}.jsonl"
        if name in results["benchmarks"] and path.exists():  # or they are another checkpoint's
            score = results["benchmarks"][name]["score"]
            predictions[task] = preferred(read_scores(path), read_benchmark(name), path, score)
        else:
            print(f"{task}: left out, there is no {path.name}; python evaluate.py {run} {ASK}")
    if not predictions:
        fail(f"{run}: no scores of these; make them: python evaluate.py {run} {ASK}")
    print("ewok: left out, for this file would hold its texts, which may not be published as plain text")
    print("glue: left out, it takes fine-tuning")
    path = folder / f"{folder.resolve().name}_{prefix}textonly_predictions.json.gz"
    with replacing(path, "wb") as file:
        file.write(gzip.compress(json.dumps(predictions).encode(), mtime=0))
    print(f"written: {path}")
    return path


ASK = "--tasks=" + ",".join(TASKS.values())


def read_scores(path):
    """{paradigm: rows} of a pairs_TASK.jsonl."""
    scores = defaultdict(list)
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            row = json.loads(line)
            scores[row["uid"]].append({name: row[name] + 0 for name in ("i", "good", "bad")})
        except (ValueError, KeyError, TypeError) as error:
            fail(f"{path}:{number}: not a pair's scores ({error}); evaluate the run again")
    return scores


def preferred(scores, subtasks, path, score):
    """The leaderboard's subtasks: of each pair the text with the better score, of equal ones the good one."""
    lines = {uid: [record["i"] for record in x.records] for uid, x in subtasks.items()}
    if {uid: [row["i"] for row in rows] for uid, rows in scores.items()} != lines:
        fail(f"{path}: not the scores of all {sum(map(len, lines.values())):,} pairs; evaluate the run again")
    if abs(summary(subtasks, scores)["score"] - score) > 1e-6:
        fail(f"{path}: not the scores that results.json is of; evaluate the run again")
    predictions = defaultdict(lambda: {"predictions": []})
    for uid, subtask in subtasks.items():
        for record, row in zip(subtask.records, scores[uid]):
            text = record["sentence_good" if is_right(row) else "sentence_bad"]
            predictions[uid]["predictions"].append({"id": f"{uid}_{row['i']}", "pred": f" {text}"})
    return predictions


if __name__ == "__main__":
    run_script(lambda args: main(configure(Settings(), args, word="run")))
