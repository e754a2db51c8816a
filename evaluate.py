"""
Score a run: perplexity on its validation text, and benchmarks of grammar and of knowledge of the world.

    python evaluate.py out/toy
    python evaluate.py out/english_small --tasks=blimp_filtered,supplement,ewok_filtered,bear --protocol=2024
    python evaluate.py out/toy --tasks=mine.jsonl    a folder, .zip, .jsonl or .jsonl.gz in BLiMP's or EWoK's form
    python evaluate.py out/*                         several runs beside BabyHGRN's, in a table and a picture

Prints a table by phenomenon and writes results.json (scores in per cent) and pairs_TASK.jsonl (the
log-probabilities behind every verdict) into the run's folder; for another checkpoint in it, such as
out/toy/best.pt, best_results.json and so on. Stopped in the middle, the same command resumes.

The score of a sentence is the sum of log p(token | <s>, tokens before), not divided by its length.
protocol = 2024 scores " " + sentence, as the BabyLM challenge did that year, and EWoK's targets after a
context without <s>; 2025 scores the sentence alone, and begins EWoK's contexts with <s>.
"""

import hashlib
import json
import math
import os
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import data
import kernels
from corpora.benchmarks import BENCHMARKS, ask, check_tasks, judge, read_benchmark, summary
from model import NextToken, check_kernels, find_device, load
from support.console import progress, run_script
from support.files import append, fingerprint, replacing
from support.processes import rank, sum_over_processes, world_size
from support.run import read_log
from support.settings import UserError, configure, one_of

import torch

BATCH = 32  # texts that the plain scorer reads at once
TEXTS_AT_ONCE = 20_000  # of one subtask, so that memory stays flat
TOYLANDS = "toyland,toyland_ewok,toyland_bear"


@dataclass
class Settings:
    run: str = "out/toy"  # a run folder, or a checkpoint in one; several are compared
    tasks: str = ""  # benchmarks or files, with commas; none: by the corpus
    protocol: str = "2024"  # 2024 or 2025: with or without a space before the sentence
    device: str = "auto"  # cuda, mps, cpu; auto: the first of these there is
    dtype: str = "float32"  # float32, bfloat16 or float64
    kernels: str = "auto"  # form that the model runs in: auto, loop, torch or triton; see use_kernels
    results: str = ""  # also write the results here, such as results/toy.json

    def check(self):
        one_of("protocol", self.protocol, ("2024", "2025"))
        one_of("dtype", self.dtype, ("float32", "bfloat16", "float64"))
        find_device(self.device, self.dtype)
        check_kernels(self.kernels, self.device)
        check_tasks("tasks", self.tasks)
        names = [name_of(task) for task in self.tasks.split(",")]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(
                f"tasks = {self.tasks!r}: two of them would be {twice[0]!r} in the results; rename a file"
            )
        if os.path.isdir(self.results):
            raise UserError(f"results = {self.results!r} is a folder: name a file in it")


def main(s):
    """Evaluate one run as settings s say -> the content of its results.json."""
    device = find_device(s.device)
    model, tokenizer, trained = load(s.run, device, s.kernels)
    model = model.double() if s.dtype == "float64" else model
    folder, prefix = place_of(trained.checkpoint)
    what = identity(s, trained.checkpoint)
    tasks = {task: read_benchmark(task) for task in tasks_of(s, trained, tokenizer)}
    results = {"benchmarks": {}}
    results["parameters"] = sum(p.numel() for p in model.parameters())
    results["settings"] = {name: value for name, value in vars(trained).items() if name != "checkpoint"}
    results["training"] = [record for record in read_log(folder) if "val_loss" in record]
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=s.dtype == "bfloat16"):
        results |= on_validation_text(model, trained)
        for task, subtasks in tasks.items():
            name = name_of(task)
            file = folder / f"{prefix}pairs_{name}.jsonl"
            rows = score_benchmark(model, tokenizer, subtasks, s.protocol, file, what)
            results["benchmarks"][name] = summary(subtasks, rows)
            print_table(name, results["benchmarks"][name], s.protocol)
    if results["perplexity"]:
        print(f"\nperplexity on the validation text of {trained.corpus}: {results['perplexity']:.2f}")
    for name, score in results.get("accuracy", {}).items():
        print(f"{name} right: {score:.1f} %")
    known = read_results(folder / f"{prefix}results.json", what) or {"benchmarks": {}}  # may hold more by now
    results = what | results | {"benchmarks": known["benchmarks"] | results["benchmarks"]}
    write_json(folder / f"{prefix}results.json", results)
    if s.results:
        write_json(s.results, results)
    for task in tasks:
        part_of(folder / f"{prefix}pairs_{name_of(task)}.jsonl").unlink(missing_ok=True)
    return results


def known_or_made(s):
    """Like main, but score only the tasks that the run's results file does not hold yet."""
    checkpoint = checkpoint_of(s.run)
    folder, prefix = place_of(checkpoint)
    results = read_results(folder / f"{prefix}results.json", identity(s, checkpoint))
    known = results["benchmarks"] if results else {}
    missing = [task for task in s.tasks.split(",") if task and name_of(task) not in known]
    return main(replace(s, tasks=",".join(missing))) if missing or not known else results


def checkpoint_of(run):
    return Path(run, "checkpoint.pt") if os.path.isdir(run) else Path(run)


def place_of(checkpoint):
    """The folder of a checkpoint and the prefix of its result files: best_ for best.pt, none for checkpoint.pt."""
    return checkpoint.parent, "" if checkpoint.stem == "checkpoint" else f"{checkpoint.stem}_"


def tasks_of(s, trained, tokenizer):
    """The tasks asked for, or by default those of the corpus: none without <s>, from which every score starts."""
    if s.tasks:
        return s.tasks.split(",")
    if trained.corpus == "toy":
        return TOYLANDS.split(",")
    return ["blimp"] if data.BOS in tokenizer.get_vocab() else []


def name_of(task):
    """ "blimp" is its own name, "my/pairs.jsonl" is my_pairs; "blimp.jsonl" is blimp_file, not the benchmark."""
    if task in BENCHMARKS:
        return task
    name = re.sub(r"\W+", "_", task.split(".json")[0]).strip("_")
    return f"{name}_file" if name in BENCHMARKS else name


def identity(s, checkpoint):
    """The fields that identify a set of results."""
    return {"protocol": s.protocol, "dtype": s.dtype, "checkpoint": fingerprint(checkpoint)}


def read_results(path, what):
    """Saved results, if they belong to this checkpoint, protocol and dtype; else None."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        same = isinstance(results["benchmarks"], dict) and all(results[key] == what[key] for key in what)
        return results if same else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def write_json(path, content):
    with replacing(path) as file:
        file.write(json.dumps(content, indent=1) + "\n")
    print(f"written: {path}")


# ----------------------------------------------------------------------------------------------------
# From a text to its log-probability


def encode(tokenizer, texts, protocol="2024"):
    """
    [(context, text), ...] -> [(ids, first), ...]: what is read, and the first token of it that is scored.

        a text without context    <s> text, all but <s> scored
        a text after a context    context text, without <s>; in 2025 with it; the text's tokens scored

    In 2024 the text begins with a space in both cases, in 2025 only after a context. Blanks at the end of a
    context count as part of the text, as in lm-evaluation-harness.
    """
    bos, always = data.start_of(tokenizer), " " if protocol == "2024" else ""
    whole = [context + " " + text if context else always + text for context, text in texts]
    contexts = sorted({context for context, _ in texts if context})
    lengths = dict(zip(contexts, map(len, encode_all(tokenizer, [x.rstrip() for x in contexts]))))
    encoded = []
    for (context, _), ids in zip(texts, encode_all(tokenizer, whole)):
        starts = [] if lengths.get(context) and protocol == "2024" else [bos]
        encoded.append((starts + ids, len(starts) + lengths.get(context, 0)))
    return encoded


def encode_all(tokenizer, texts):
    """Texts -> their tokens, without <s>; a lone surrogate, which JSON allows, is read as "?"."""
    texts = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
    return [x.ids for x in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def score_texts(model, texts, each_batch=lambda done: None):
    """
    [(ids, first), ...] -> the natural logarithm of p(ids[first:] | ids[:first]) of each, in order; `first` is at
    least 1. each_batch(number of texts finished) is called after each batch.
    """
    if kernels.form == "loop":
        return score_plainly(model, texts, each_batch)
    from fast.scoring import score_tree  # the same scores, with shared beginnings read once

    return score_tree(model, texts, each_batch)


@torch.no_grad()
def score_plainly(model, texts, each_batch=lambda done: None):
    """The sum of log p(token | tokens before) of each text. Batches are padded on the right, after the text."""
    scores, order = [0.0] * len(texts), sorted(range(len(texts)), key=lambda i: len(texts[i][0]))
    for start in range(0, len(texts), BATCH):
        some = order[start : start + BATCH]
        longest = max(2, max(len(texts[i][0]) for i in some))
        rows = [texts[i][0] + [0] * (longest - len(texts[i][0])) for i in some]
        tokens = torch.tensor(rows, device=model.embed.weight.device)
        logits, _ = model(tokens[:, :-1])
        (logits,) = kernels.at_least_float32(logits)
        log_p = logits.log_softmax(dim=-1).gather(2, tokens[:, 1:, None]).squeeze(2)  # of each next token
        for i, row in zip(some, log_p):
            ids, first = texts[i]
            scores[i] = row[first - 1 : len(ids) - 1].sum().item()
        each_batch(len(some))
    return scores


# ----------------------------------------------------------------------------------------------------
# From a benchmark to its scores


def score_subtask(model, tokenizer, subtask, protocol="2024", each_batch=lambda done: None):
    """A Subtask -> its verdicts, [{"i": line, "good": log p, "bad": log p, ...}, ...]; see benchmarks.judge."""
    if subtask.kind == "bear":
        protocol = "2025"  # its authors' library reads the statement as it is
    rows, size = [], max(1, TEXTS_AT_ONCE // len(ask(subtask, subtask.records[0])))
    for start in range(0, len(subtask.records), size):
        records = subtask.records[start : start + size]
        texts = [text for record in records for text in ask(subtask, record)]
        scores = iter(score_texts(model, encode(tokenizer, texts, protocol), each_batch))
        for record in records:
            own = [next(scores) for _ in ask(subtask, record)]
            rows += [{"i": record["i"]} | row for row in judge(subtask, record, own)]
    return rows


def accuracy(model, tokenizer, task, each_batch=lambda: None):
    """
    {"score": per cent, "interval": half the width of its 95 % interval, "subtasks": {subtask: per cent}} of a
    task, for use during training.
    """
    subtasks, rows = read_benchmark(task), {}
    for uid, subtask in subtasks.items():
        rows[uid] = score_subtask(model, tokenizer, subtask, each_batch=lambda done: each_batch())
    result = summary(subtasks, rows)
    scores = {uid: x["score"] for uid, x in result["subtasks"].items()}
    return {"score": result["score"], "interval": result["interval"], "subtasks": scores}


def score_benchmark(model, tokenizer, subtasks, protocol, path, what):
    """
    {uid: Subtask} -> {uid: verdicts}, also written to `path`. Each finished subtask is appended to a file beside
    it, from which an interrupted evaluation of the same model and records resumes; main removes it in the end.
    """
    part, header = part_of(path), what | {"records": digest(subtasks)}
    rows = read_part(part, header)
    with replacing(part) as file:
        file.writelines(json.dumps(x) + "\n" for x in [header, rows])
    texts = {uid: len(x.records) * len(ask(x, x.records[0])) for uid, x in subtasks.items()}
    done = sum(texts[uid] for uid in rows)
    with progress(total=sum(texts.values()), initial=done, unit="text", desc=path.stem) as bar:
        for uid, subtask in subtasks.items():
            if uid not in rows:
                rows[uid] = score_subtask(model, tokenizer, subtask, protocol, bar.update)
                append(part, {uid: rows[uid]})
    with replacing(path) as file:
        for uid in subtasks:
            file.writelines(json.dumps({"uid": uid} | row) + "\n" for row in rows[uid])
    return rows


def part_of(path):
    return path.with_name(path.name + ".part")


def digest(subtasks):
    """SHA-256 of a benchmark's records."""
    hashing = hashlib.sha256()
    for uid, subtask in subtasks.items():
        for record in subtask.records:
            hashing.update(json.dumps([uid, record]).encode())
    return hashing.hexdigest()


def read_part(part, header):
    """The verdicts that an interrupted evaluation of the same model and records has left: {uid: verdicts}."""
    lines = part.read_text(encoding="utf-8", errors="replace").splitlines() if part.exists() else []
    scores = {}
    try:
        if lines and json.loads(lines[0]) == header:
            for line in lines[1:]:
                scores |= json.loads(line)
    except (ValueError, TypeError, RecursionError):
        pass  # the last line was cut short: that paradigm is scored again
    return scores


def on_validation_text(model, trained):
    """
    {"perplexity": exp of the mean loss per token on the corpus's validation text, block by block} and, for a
    corpus of answers, {"accuracy": {"tokens": per cent right, "sequences": per cent with all right}}. The
    perplexity is None if the text is not here, or has been prepared again with another tokenizer.
    """
    corpus, own = data.find(trained.corpus, needed=False), trained.checkpoint.with_name("tokenizer.json")
    if not corpus or (corpus / "tokenizer.json").read_bytes() != own.read_bytes():
        return {"perplexity": None}
    data.read_meta(corpus)
    val = data.Blocks(corpus / "val.bin", trained.context)
    batches = progress(val.in_order(16), total=math.ceil(val.n / 16), desc="perplexity")
    loss, accuracy = validation(model, batches)
    return {"perplexity": math.exp(min(loss, 700))} | ({"accuracy": accuracy} if accuracy else {})


@torch.no_grad()
def validation(model, batches, each_batch=lambda: None):
    """
    Batches (tokens, targets), divided among all processes -> the mean loss per target, in nats; and, if only some
    positions have targets, as in copying, {"tokens": % right, "sequences": % with all right}, else {}.
    """
    loss_of = NextToken(model)
    kernels.take_form(loss_of)
    sums, device = [0.0] * 5, model.embed.weight.device
    for tokens, targets in batches:
        each_batch()
        tokens, targets = (x[rank() :: world_size()].to(device) for x in (tokens, targets))
        if len(tokens):
            sums = [a + b for a, b in zip(sums, tally(loss_of, tokens, targets))]
    loss, count, right, all_right, sequences = sum_over_processes(*sums)
    shares = {"tokens": (right, count), "sequences": (all_right, sequences)} if sequences else {}
    return loss / count, {name: 100 * part / whole for name, (part, whole) in shares.items()}


def tally(loss_of, tokens, targets):
    """Summed loss and number of targets; for answers also those right, sequences all right, sequences; else 0."""
    there = targets != -100
    count = there.sum().item()
    loss = loss_of(tokens, targets)["loss"].item() * count
    if there.all():
        return loss, count, 0, 0, 0
    right = loss_of.model(tokens)[0].argmax(dim=-1) == targets  # never where there is no target
    return loss, count, right.sum().item(), (right == there).all(dim=1).sum().item(), len(tokens)


# ----------------------------------------------------------------------------------------------------
# Tables


def print_table(name, result, protocol):
    """Print the subtasks below their phenomena, each with its score and 95 % interval."""
    terms = defaultdict(list)
    for uid, x in result["subtasks"].items():
        terms[x["term"]].append((uid, x))
    print(f"\n{name}, protocol {protocol}".ljust(65) + "per cent    95 %        n")
    for term in sorted(terms):
        if term:
            print(term.ljust(65) + f"{sum(x['score'] for _, x in terms[term]) / len(terms[term]):8.1f}")
        for uid, x in sorted(terms[term]):
            print(f"  {uid}".ljust(65) + f"{x['score']:8.1f}  ± {x['interval']:4.1f}  {x['n']:7,}")
    total = sum(x["n"] for x in result["subtasks"].values())
    title = "all statements" if "templates" in result else f"mean of {len(result['subtasks'])} subtasks"
    print(title.ljust(65) + f"{result['score']:8.1f}  ± {result['interval']:4.1f}  {total:7,}")
    for reading, score in result.get("readings", {}).items():
        print(f"  read as {reading}".ljust(65) + f"{score:8.1f}")
    for number, score in enumerate(result.get("templates", ())):
        print(f"  template {number}".ljust(65) + f"{score:8.1f}")
    if "chance" in result:
        print("  by chance".ljust(65) + f"{result['chance']:8.1f}")


# ----------------------------------------------------------------------------------------------------
# Many runs

MACRO = "blimp_filtered", "supplement", "ewok_filtered"  # the paper's zero-shot mean is over these
PAPER = Path(__file__).parent / "results" / "papers.json"


def compare(folders, flags):
    """Print and draw a table of runs and of the paper's rows; what has not been scored yet is scored first."""
    from tools.figures import draw_leaderboard  # not above: matplotlib takes a second to load

    configure(Settings(), flags)  # refused before anything is said
    others = [x for x in folders if checkpoint_of(x).suffix != ".pt" or not checkpoint_of(x).is_file()]
    folders = [Path(x) for x in folders if x not in others]
    if not folders:
        raise UserError("no runs among these")
    if others:
        print(f"left out, for there is no checkpoint.pt in them: {', '.join(others)}")
    rows = []
    for folder in folders:
        s = configure(Settings(), [str(folder), *flags], word="run")
        results = known_or_made(replace(s, results=""))
        name = folder.name if folder.is_dir() else f"{folder.parent.name}/{folder.stem}"
        row = {"name": name, "parameters": results["parameters"]}
        for what, key in (("benchmarks", "score"), ("intervals", "interval")):
            row[what] = {name: x[key] for name, x in results["benchmarks"].items() if key in x}
        rows.append(row)
    paper = json.loads(PAPER.read_text(encoding="utf-8"))
    rows += [row | {"paper": True} for row in paper["rows"] if s.protocol == paper["protocol"]]
    scored = {name for row in rows[: len(folders)] for name in row["benchmarks"]}
    columns = [name for name in BENCHMARKS if name in scored] + sorted(scored - set(BENCHMARKS))
    rows = [row for row in rows if set(columns) & set(row["benchmarks"])]
    if set(MACRO) <= set(columns):
        columns.append("macro")
        for row in rows:
            if set(MACRO) <= set(row["benchmarks"]):
                row["benchmarks"]["macro"] = sum(row["benchmarks"][name] for name in MACRO) / len(MACRO)
    if not columns:
        raise UserError("none of these runs has been scored on pairs or facts: name some with --tasks=")
    print_leaderboard(rows, columns)
    print(f"drawn: {draw_leaderboard(rows, columns, folders[0].parent / 'leaderboard.svg')}")
    if s.results:
        write_json(s.results, rows)
    return rows


def print_leaderboard(rows, columns):
    """Print a row for each run, ours before the paper's, each group sorted by the last column."""
    widths = [max(len(column) + 2, 8) for column in columns]
    print("per cent".ljust(44) + "parameters" + "".join(map(str.rjust, columns, widths)))
    for row in sorted(rows, key=lambda x: (x.get("paper", False), -x["benchmarks"].get(columns[-1], 0))):
        name = f"{row['name']} (paper)" if row.get("paper") else row["name"]
        size = f"{row['parameters'] / 1e6:,.1f}M" if "parameters" in row else ""
        each = [f"{row['benchmarks'][x]:.1f}" if x in row["benchmarks"] else "" for x in columns]
        print(name.ljust(44) + size.rjust(10) + "".join(map(str.rjust, each, widths)))


def script(args):
    """Evaluate one run, or compare several."""
    runs = [arg for arg in args if not arg.startswith("-")]
    if len(runs) > 1:
        return compare(runs, [arg for arg in args if arg.startswith("-")])
    return main(configure(Settings(), args, word="run"))


if __name__ == "__main__":
    run_script(script)
