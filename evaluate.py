"""
Score a run: perplexity on its validation text, and minimal pairs: does it prefer the good sentence to the bad?

    python evaluate.py out/toy
    python evaluate.py out/english_small --tasks=blimp --protocol=2025
    python evaluate.py out/toy --tasks=mine.jsonl         a folder, .zip, .jsonl or .jsonl.gz in BLiMP's format

Prints a table by phenomenon and writes results.json (scores in per cent) and pairs_TASK.jsonl (every pair's two
log-probabilities) into the run's folder. Stopped in the middle, the same command goes on where it was.

The score of a sentence is the sum of log p(token | <s>, tokens before), not divided by its length.
protocol = 2024 scores " " + sentence, as the BabyLM challenge did that year; 2025 scores the sentence alone.
"""

from start import begin

begin(__name__)  # before torch is loaded

import gzip
import json
import math
import os
import re
import zipfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch

import data
from checkpoint import append, fingerprint, read_log, replacing
from config import configure, fail, one_of, progress, reason, run_script
from layers import linear_cross_entropy, token_losses
from model import find_device, load

# Tokens of a batch, padding included: a CPU works in its caches
BATCH_TOKENS = {"cpu": 512, "mps": 4096, "cuda": 16_384}
LARGEST = 1 << 28  # bytes of minimal pairs, unpacked: ten times BLiMP; an archive may promise to be endless


@dataclass
class Settings:
    run: str = "out/toy"  # a run folder, or a checkpoint in one
    tasks: str = ""  # toyland, blimp, blimp_filtered, blimp_fast, a file: with commas; none: by the corpus
    protocol: str = "2024"  # 2024 or 2025: with or without a space before the sentence
    device: str = "auto"  # cuda, mps, cpu; auto: the first of these there is
    dtype: str = "float32"  # float32, bfloat16 or float64
    results: str = ""  # also write the results here, such as results/toy.json

    def check(self):
        one_of("protocol", self.protocol, ("2024", "2025"))
        one_of("dtype", self.dtype, ("float32", "bfloat16", "float64"))
        find_device(self.device, self.dtype)
        data.check_tasks("tasks", self.tasks)
        if os.path.isdir(self.results):
            fail(f"results = {self.results!r} is a folder: name a file in it")


def main(s):
    """Evaluate as settings s say; returns the content of results.json."""
    device = find_device(s.device)
    model, tokenizer, trained = load(s.run, device)
    model = model.double() if s.dtype == "float64" else model
    folder = trained.checkpoint.parent
    tasks = s.tasks or {"toy": "toyland", "shakespeare": ""}.get(trained.corpus, "blimp")
    tasks = {task: read_pairs(task) for task in tasks.split(",") if task}
    what = {"protocol": s.protocol, "dtype": s.dtype, "checkpoint": fingerprint(trained.checkpoint)}
    results = read_json(folder / "results.json")
    if any(results.get(key) != value for key, value in what.items()):
        results = what | {"benchmarks": {}}  # other results there are of something else
    results["parameters"] = sum(p.numel() for p in model.parameters())
    results["settings"] = {name: value for name, value in vars(trained).items() if name != "checkpoint"}
    results["training"] = [record for record in read_log(folder) if "val_loss" in record]
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=s.dtype == "bfloat16"):
        results["perplexity"] = perplexity(model, trained)
        for task, paradigms in tasks.items():
            name = task if task in data.BENCHMARKS else re.sub(r"\W+", "_", task.split(".json")[0]).strip("_")
            file, header = folder / f"pairs_{name}.jsonl", what | {"pairs": str(data.find_benchmark(task))}
            scores = score_paradigms(model, tokenizer, paradigms, s.protocol, file, header)
            results["benchmarks"][name] = summary(paradigms, scores)
            print_table(name, results["benchmarks"][name], s.protocol)
    if results["perplexity"]:
        print(f"\nperplexity on the validation text of {trained.corpus}: {results['perplexity']:.2f}")
    for target in [folder / "results.json"] + [Path(s.results)] * bool(s.results):
        with replacing(target) as file:
            file.write(json.dumps(results, indent=1) + "\n")
        print(f"written: {target}")
    return results


# ----------------------------------------------------------------------------------------------------
# Scores


def sentence_scores(model, tokenizer, sentences, protocol="2024", each_batch=lambda: None):
    """
    Sentences -> their log-probabilities (natural logarithm), each read after <s>. A batch holds similar lengths,
    padded on the right, where padding cannot reach what a causal model says of the tokens before it.
    """
    space, bos = " " if protocol == "2024" else "", data.start_of(tokenizer)
    texts = [space + x.encode("utf-8", "replace").decode("utf-8") for x in sentences]  # no lone surrogates
    ids = [[bos, *x.ids] for x in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    scores, device = [0.0] * len(ids), model.embed.weight.device
    while order:
        size = max(1, BATCH_TOKENS[device.type] // len(ids[order[-1]]))
        batch, order = order[-size:], order[:-size]
        padded = torch.full((len(batch), len(ids[batch[-1]])), -1)
        for row, i in zip(padded, batch):
            row[: len(ids[i])] = torch.tensor(ids[i])
        tokens, targets = padded[:, :-1].clamp(min=0).to(device), padded[:, 1:].to(device)
        x, real = model.features(tokens)[0], targets >= 0  # (B, T, D), (B, T)
        losses = torch.zeros(targets.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=device)
        losses[real] = token_losses(x[real], model.head.weight, targets[real])
        for i, loss in zip(batch, losses.sum(dim=1).tolist()):
            scores[i] = -loss
        each_batch()
    return scores


def score_pairs(model, tokenizer, pairs, protocol="2024", each_batch=lambda: None):
    """[(good, bad), ...] -> [(log p of good, log p of bad), ...]."""
    scores = sentence_scores(model, tokenizer, [x for pair in pairs for x in pair], protocol, each_batch)
    return list(zip(scores[::2], scores[1::2]))


def accuracy(model, tokenizer, task, each_batch=lambda: None):
    """{"score": mean over paradigms, "subtasks": {paradigm: per cent}} of a task, for use during training."""
    subtasks = {}
    for uid, paradigm in read_pairs(task).items():
        scores = score_pairs(model, tokenizer, paradigm["pairs"], each_batch=each_batch)
        subtasks[uid] = 100 * sum(good >= bad for good, bad in scores) / len(scores)
    return {"score": sum(subtasks.values()) / len(subtasks), "subtasks": subtasks}


def score_paradigms(model, tokenizer, paradigms, protocol, path, header):
    """
    {paradigm: [(good, bad), ...]} with all scores, also written to `path`. Each finished paradigm is appended to a
    file beside it, from which a stopped evaluation of the same checkpoint goes on.
    """
    part = path.with_name(path.name + ".part")
    scores = read_part(part, header)
    with replacing(part) as file:
        file.writelines(json.dumps(x) + "\n" for x in [header, scores])
    for uid in progress(paradigms, unit="paradigm", desc=path.stem):
        if len(scores.get(uid, ())) != len(paradigms[uid]["pairs"]):
            scores[uid] = score_pairs(model, tokenizer, paradigms[uid]["pairs"], protocol)
            append(part, {uid: scores[uid]})
    with replacing(path) as file:
        for uid in paradigms:
            for i, (good, bad) in enumerate(scores[uid]):
                file.write(json.dumps({"uid": uid, "i": i, "good": good, "bad": bad}) + "\n")
    part.unlink()
    return scores


def read_part(part, header):
    """The scores that an evaluation stopped in the middle has left, if it was of the same model and pairs."""
    lines = part.read_text(encoding="utf-8", errors="replace").splitlines() if part.exists() else []
    scores = {}
    try:
        if lines and json.loads(lines[0]) == header:
            for line in lines[1:]:
                scores |= json.loads(line)
    except (ValueError, TypeError, RecursionError):
        pass  # the last line was cut short: that paradigm is scored again
    return scores


def perplexity(model, trained):
    """
    exp of the mean loss per token on the corpus's validation text, block by block; None if that is not here, or
    made anew with other tokens.
    """
    corpus, own = data.find(trained.corpus, needed=False), trained.checkpoint.with_name("tokenizer.json")
    if not corpus or (corpus / "tokenizer.json").read_bytes() != own.read_bytes():
        return None
    data.read_meta(corpus)
    total, count, device = 0.0, 0, model.embed.weight.device
    val = data.Blocks(corpus / "val.bin", trained.context)
    for tokens, targets in progress(val.in_order(16), total=math.ceil(val.n / 16), desc="perplexity"):
        x, _ = model.features(tokens.to(device))
        total += linear_cross_entropy(x, model.head.weight, targets.to(device)).item() * targets.numel()
        count += targets.numel()
    return math.exp(total / count)


# ----------------------------------------------------------------------------------------------------
# Files and tables


def read_pairs(task):
    """A task -> {paradigm: {"term": phenomenon, "pairs": [(good, bad), ...]}}, by UID or else by file."""
    paradigms = {}
    for name, text in read_texts(data.find_benchmark(task)):
        for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], 1):
            try:
                record = json.loads(line)
                pair = record["sentence_good"] + "", record["sentence_bad"] + ""  # + "": nothing but text
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                fail(f"{name}:{number}: not a pair in BLiMP's format ({error}); is the file complete?")
            uid = str(record.get("UID", Path(name).name.split(".")[0]))
            paradigm = paradigms.setdefault(
                uid, {"term": str(record.get("linguistics_term", "")), "pairs": []}
            )
            paradigm["pairs"].append(pair)
    return paradigms or fail(f"{data.find_benchmark(task)}: no .jsonl files with pairs in it")


def read_texts(path):
    """(name, text) of each .jsonl or .jsonl.gz in a folder, each .jsonl in a .zip, or one file; sorted by name."""
    room = LARGEST
    try:
        for name, file in open_each(path):
            raw = file.read(room + 1)
            room -= len(raw)
            if room < 0:
                fail(f"{path}: more than {LARGEST >> 20} MB of pairs once unpacked; split it up")
            yield name, raw.decode("utf-8-sig")
    except Exception as error:  # a broken archive can raise many
        fail(f"{path}: cannot be read ({reason(error)}); fetch it again")


def open_each(path):
    """(name, open file) of the same. Nothing is unpacked to disk, so names in a .zip lead nowhere."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for name in sorted(x for x in archive.namelist() if re.search(r"(^|/)[^.][^/]*\.jsonl$", x)):
                with archive.open(name) as file:
                    yield f"{path}:{name}", file
        return
    for name in [path] if path.is_file() else sorted([*path.glob("*.jsonl"), *path.glob("*.jsonl.gz")]):
        with gzip.open(name) if name.suffix == ".gz" else open(name, "rb") as file:
            yield str(name), file


def summary(paradigms, scores):
    """
    {"score": unweighted mean over paradigms, "interval": half the width of its 95 % interval, "subtasks": {...}}.
    A tie counts as right, as in the BabyLM pipeline. Intervals add two right and two wrong answers, so that 200 of
    200 is not certainty (Agresti & Coull 1998).
    """
    subtasks = {}
    for uid, paradigm in paradigms.items():
        n, right = len(scores[uid]), sum(good >= bad for good, bad in scores[uid])
        p = (right + 2) / (n + 4)
        interval = 1.96 * math.sqrt(p * (1 - p) / (n + 4))
        subtasks[uid] = {
            "score": 100 * right / n,
            "interval": 100 * interval,
            "n": n,
            "term": paradigm["term"],
        }
    mean = sum(x["score"] for x in subtasks.values()) / len(subtasks)
    interval = math.sqrt(sum(x["interval"] ** 2 for x in subtasks.values())) / len(subtasks)
    return {"score": mean, "interval": interval, "subtasks": subtasks}


def print_table(name, result, protocol):
    """Paradigms below their phenomena, each with its score and 95 % interval."""
    terms = defaultdict(list)
    for uid, x in result["subtasks"].items():
        terms[x["term"]].append((uid, x))
    print(f"\n{name}, protocol {protocol}".ljust(65) + "per cent    95 %    pairs")
    for term in sorted(terms):
        mean = sum(x["score"] for _, x in terms[term]) / len(terms[term])
        print(f"{term or 'all'}".ljust(65) + f"{mean:8.1f}")
        for uid, x in sorted(terms[term]):
            print(f"  {uid}".ljust(65) + f"{x['score']:8.1f}  ± {x['interval']:4.1f}  {x['n']:7,}")
    total = sum(x["n"] for x in result["subtasks"].values())
    title = f"mean of {len(result['subtasks'])} paradigms"
    print(title.ljust(65) + f"{result['score']:8.1f}  ± {result['interval']:4.1f}  {total:7,}")


def read_json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}


if __name__ == "__main__":
    run_script(lambda args: main(configure(Settings(), args, word="run")))
