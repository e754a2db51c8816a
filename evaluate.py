"""
Score a run: perplexity on its validation text, and benchmarks of grammar and world knowledge.

    python evaluate.py out/toy
    python evaluate.py out/english_small --tasks=blimp_filtered,supplement --protocol=2025
    python evaluate.py out/toy --tasks=mine.jsonl    pairs of your own, in BLiMP's or EWoK's form
    python evaluate.py out/*                         several runs side by side
    torchrun --nproc_per_node=4 evaluate.py out/toy  the same results, sooner

Prints a table by phenomenon and writes results.json (scores in per cent) and pairs_TASK.jsonl (the
log-probabilities behind every verdict) into the run's folder; for another checkpoint in it, such as
out/toy/best.pt, best_results.json and so on. After a stop, the same command resumes.

Most benchmarks are minimal pairs: a good and a bad sentence that differ in one point, of which the
good one should score higher. The score of a sentence is the sum of log p(token | <s>, tokens
before), not divided by its length.
protocol is the year of the BabyLM challenge whose rules hold:

    2024    " " + sentence is scored, and EWoK's targets after a context without <s>
    2025    the sentence alone; contexts begin with <s>
    2026    as 2025, but EWoK asks which context makes a target likelier, and ties are half right

At the end comes that year's own mean over the benchmarks scored so far.
"""

import hashlib
import json
import math
import os
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import data
import kernels
from corpora.benchmarks import BENCHMARKS, ask, check_tasks, judge, read_benchmark, summary
from model import NextToken
from model import load as load_run
from support.console import only_first_speaks, progress, run_script
from support.devices import check_kernels, find_device
from support.files import append, can_write, fingerprint, in_turn, replacing, write_json
from support.processes import (
    from_all,
    from_first,
    join_processes,
    leave_processes,
    rounds,
    sum_over_processes,
    together,
)
from support.run import read_log
from support.settings import HELP, UserError, configure, one_of, read_args
from tools import ngram

import torch

BATCH = 32  # texts that the plain scorer reads at once
VALIDATION_BATCH = 16  # blocks of the validation text
TEXTS_AT_ONCE = 20_000  # of one subtask, so that memory stays flat
ZERO_SHOT = ("blimp_filtered", "supplement", "ewok_filtered")
AGGREGATES = {  # year -> {its means: over these benchmarks}; the aggregate is the mean of the means
    "2024": {"all": (*ZERO_SHOT, "glue")},
    "2025": {
        "NLP": (*ZERO_SHOT, "entity_tracking", "comps", "glue"),
        "human-likeness": ("reading", "wug_adj", "wug_past", "aoa"),
    },
    "2026": {"all": (*ZERO_SHOT, "entity_tracking", "comps", "glue", "global_piqa", "reading", "aoa")},
}


@dataclass
class Settings:
    run: str = "out/toy"  # a run folder, or a checkpoint in one; several are compared
    tasks: str = ""  # benchmarks or files, comma-separated; none: those that suit the corpus
    protocol: str = "2024"  # year of the BabyLM challenge whose rules hold: 2024 (the paper's), 2025, 2026
    device: str = "auto"  # cuda, mps, cpu; auto: the first one available
    dtype: str = "float32"  # float32, bfloat16 or float64
    kernels: str = "auto"  # form that the model runs in: auto, loop, torch or triton; see use_kernels
    results: str = ""  # also write the results here, such as results/toy.json

    def check(self):
        one_of("protocol", self.protocol, tuple(AGGREGATES))
        one_of("dtype", self.dtype, ("float32", "bfloat16", "float64"))
        find_device(self.device, self.dtype)
        check_kernels(self.kernels, self.device)
        check_tasks("tasks", self.tasks, self.protocol)
        names = [name_of(task) for task in self.tasks.split(",")]
        for name in names:
            if names.count(name) > 1:
                remedy = f"two of them would be {name!r} in the results; rename a file"
                raise UserError(f"tasks = {self.tasks!r}: {remedy}")
        if os.path.isdir(self.results):
            raise UserError(f"results = {self.results!r} is a folder: name a file in it")


def main(s):
    """Evaluate one run with settings s -> the content of its results.json."""
    device = find_device(s.device)
    with together():  # each machine has its own files, or shared ones
        model, tokenizer, trained = load_any(s.run, device, s.kernels)
        tasks = read_tasks(s, trained, tokenizer)
    if s.dtype == "float64" and not is_ngram(model):
        model = model.double()
    records = {task: digest_of(subtasks) for task, subtasks in tasks.items()}
    check_same(s.run, trained.digest, records)
    writable = from_first(lambda: can_write(trained.checkpoint.parent))
    what = identity(s, trained.digest)
    results, rows = what | about(model, trained), {}
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=s.dtype == "bfloat16")
    with torch.inference_mode(), autocast:
        results |= on_validation_text(model, trained)
        for task, subtasks in tasks.items():
            name = name_of(task)
            part = beside(trained.checkpoint, f"pairs_{name}.jsonl.part") if writable else None
            rows[name] = score_benchmark(model, tokenizer, subtasks, s.protocol, part, what)
            found = summary(subtasks, rows[name], s.protocol) | {"records": records[task]}
            results["benchmarks"][name] = found
            print_table(name, found, s.protocol)
    if writable:
        results = from_first(lambda: save_results(results, rows, what, trained.checkpoint))
    else:
        path = beside(trained.checkpoint, "results.json")
        print(f"\nnot written: {path}, for this folder is read-only; --results=FILE writes a copy")
    print_aggregate(results)
    if s.results:
        from_first(lambda: write_json(s.results, results))
    return results


def known_or_made(s):
    """Evaluate as main does, but score only the tasks that the run's results file does not hold yet."""
    checkpoint = checkpoint_of(s.run)
    file = beside(checkpoint, "results.json")
    results = from_first(lambda: read_results(file, identity(s, fingerprint(checkpoint))))
    if not results or not (s.tasks or "perplexity" in results):  # finetune.py alone has written to the file
        return main(s)
    tasks = s.tasks.split(",") if s.tasks else []
    missing = [task for task in tasks if not is_known(task, results["benchmarks"], s.protocol)]
    if not missing:
        return results
    made = main(replace(s, tasks=",".join(missing)))
    return made | {"benchmarks": results["benchmarks"] | made["benchmarks"]}


def is_known(task, found, protocol):
    """True if a benchmark is among the results and, if it is a file, has not changed since."""
    its = found.get(name_of(task))
    return its and (task in BENCHMARKS or its["records"] == digest_of(read_benchmark(task, protocol)))


def check_same(run, *parts):
    """Raise UserError unless all processes have read the same: on several machines each reads its own files."""
    if len({json.dumps(each) for each in from_all(parts)}) > 1:
        remedy = "copy both from the first"
        raise UserError(f"{run}: not the same checkpoint and test files on all machines; {remedy}")


def load_any(path, device="cpu", form="auto"):
    """Load a trained model as model.load does, or an n-gram model (tools/ngram.py)."""
    return ngram.load(path) if ngram.is_ngram(path) else load_run(path, device, form)


def is_ngram(model):
    """True for an n-gram model: it has no logits, and scores texts itself; its `size` is its number of n-grams."""
    return hasattr(model, "score_texts")


def checkpoint_of(run):
    return Path(run, "checkpoint.pt") if os.path.isdir(run) else Path(run)


def beside(checkpoint, name):
    """The path of a checkpoint's result file: NAME beside checkpoint.pt, best_NAME beside best.pt."""
    prefix = "" if checkpoint.stem == "checkpoint" else f"{checkpoint.stem}_"
    return checkpoint.with_name(f"{prefix}{name}")


def read_tasks(s, trained, tokenizer):
    """{task: {uid: Subtask}} of the tasks asked for or, if none is, of the usual ones that are here."""
    tasks = {}
    for task in s.tasks.split(",") if s.tasks else usual_tasks(trained, tokenizer):
        try:
            tasks[task] = read_benchmark(task, s.protocol)
        except UserError as error:
            if s.tasks:
                raise
            print(f"left out: {error}")
    return tasks


def usual_tasks(trained, tokenizer):
    """The tasks for a corpus: none without <s>, from which every score starts."""
    if trained.corpus == "toy":
        return ["toyland", "toyland_ewok", "toyland_bear"]
    return ["blimp"] if data.BOS in tokenizer.get_vocab() else []


def name_of(task):
    """Name of a task in the results: blimp for blimp, my_pairs for my/pairs.jsonl, blimp_file for blimp.jsonl."""
    if task in BENCHMARKS:
        return task
    name = re.sub(r"\W+", "_", task.split(".json")[0]).strip("_")
    return f"{name}_file" if name in BENCHMARKS else name


def identity(s, checkpoint):
    """The fields that identify a set of results; `checkpoint` is its SHA-256."""
    return {"protocol": s.protocol, "dtype": s.dtype, "checkpoint": checkpoint}


def about(model, trained):
    """The part of the results that says what was evaluated."""
    settings = dict(vars(trained))
    for name in ("checkpoint", "digest", "step", "corpus_is"):
        settings.pop(name, None)  # an n-gram model has no corpus_is
    log = read_log(trained.checkpoint.parent)
    return {
        "parameters": model.size if is_ngram(model) else sum(p.numel() for p in model.parameters()),
        "steps": trained.step,
        "tokens": trained.step * trained.batch_size * trained.context,  # read in training
        "settings": settings,
        "training": [record for record in log if "val_loss" in record],
        "benchmarks": {},
    }


def read_results(path, what):
    """Saved results, if they belong to this checkpoint, protocol and dtype; else None."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        same = all(results[key] == what[key] for key in what)
        return results if same and isinstance(results["benchmarks"], dict) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def save_results(results, rows, what, checkpoint):
    """
    Write results.json, keeping its other benchmarks if they are of the same checkpoint, and pairs_TASK.jsonl, of
    rows = {task: {uid: verdicts}}. Returns the content of results.json.
    """
    with in_turn(checkpoint.with_name("tokenizer.json")):
        for name, subtasks in rows.items():
            with replacing(beside(checkpoint, f"pairs_{name}.jsonl")) as file:
                for uid, verdicts in subtasks.items():
                    file.writelines(json.dumps({"uid": uid} | row) + "\n" for row in verdicts)
        known = read_results(beside(checkpoint, "results.json"), {"checkpoint": what["checkpoint"]})
        if known:
            results["benchmarks"] = still_valid(known, what) | results["benchmarks"]
        write_json(beside(checkpoint, "results.json"), results)
        for name in rows:
            beside(checkpoint, f"pairs_{name}.jsonl.part").unlink(missing_ok=True)
    return results


def still_valid(known, what):
    """The saved benchmarks that belong beside new ones; fine-tuning has a dtype of its own. Others are named."""
    kept = known["benchmarks"]
    if known.get("dtype") != what["dtype"]:
        kept = {name: found for name, found in kept.items() if name == "glue"}
    if known.get("protocol") != what["protocol"]:
        kept = {}
    lost = [name for name in known["benchmarks"] if name not in kept]
    if lost:
        print(f"replaced, of protocol {known.get('protocol')} in {known.get('dtype')}: {', '.join(lost)}")
    return kept


# ----------------------------------------------------------------------------------------------------
# From a text to its log-probability


def encode(tokenizer, texts, protocol="2024"):
    """
    [(context, text), ...] -> [(ids, first), ...]: the tokens to read, and the index of the first one to score.

        a text without context    <s> text, all but <s> scored
        a text after a context    context text, in 2024 without <s>, later with it; the text's tokens scored

    In 2024 the text begins with a space in both cases, later only after a context. Blanks at the end of a
    context count as part of the text, as in lm-evaluation-harness.
    """
    bos = data.start_of(tokenizer)
    space = " " if protocol == "2024" else ""
    whole = [f"{context} {text}" if context else space + text for context, text in texts]
    contexts = sorted({context for context, _ in texts if context})
    lengths = {"": 0}
    for context, ids in zip(contexts, encode_all(tokenizer, [x.rstrip() for x in contexts])):
        lengths[context] = len(ids)
    encoded = []
    for (context, _), ids in zip(texts, encode_all(tokenizer, whole)):
        first = lengths[context]
        if first == 0 or protocol != "2024":
            ids, first = [bos, *ids], first + 1
        encoded.append((ids, first))
    return encoded


def encode_all(tokenizer, texts):
    """Texts -> their tokens, without <s>; a lone surrogate, which JSON allows, is read as "?"."""
    texts = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
    return [x.ids for x in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def score_texts(model, texts, each_batch=lambda done: None):
    """
    [(ids, first), ...] -> the natural logarithm of p(ids[first:] | ids[:first]) of each, in order; `first` is at
    least 1. Batches are dealt out to the processes. After each has finished one, all call each_batch(number of
    texts finished). UserError if a score is NaN.
    """
    if is_ngram(model):
        scores = model.score_texts(texts, each_batch)
    else:
        scores = score_batches(model, texts, each_batch)
    if any(map(math.isnan, scores)):
        raise UserError(
            "the model gives NaN for the probability of a text, so it has no score; did it diverge?"
        )
    return scores


@torch.no_grad()
def score_batches(model, texts, each_batch):
    """score_texts of a model with logits. The numbers do not depend on which process reads a batch."""
    batches, score_batch = plain_batches(texts), score_plainly
    if kernels.form != "loop":
        from fast.scoring import fits, score_tree, tree_batches  # same scores, shared prefixes read once

        if fits(model):
            batches, score_batch = tree_batches(texts, model.embed.weight.device), score_tree
    scores = [0.0] * len(texts)
    for own, some in rounds(batches):
        for batch in own:
            for i, score in zip(batch, score_batch(model, [texts[i] for i in batch])):
                scores[i] = score
        each_batch(sum(map(len, some)))
    return sum_over_processes(*scores)  # a text has a score in one process, and 0 in the others


def plain_batches(texts):
    """Batches of the indices of texts of similar length."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i][0]))
    return [order[start : start + BATCH] for start in range(0, len(order), BATCH)]


def score_plainly(model, texts):
    """The sum of log p(token | tokens before) of each text of a batch, padded on the right, after the text."""
    longest = max(2, *(len(ids) for ids, _ in texts))  # one token has no next one to read
    rows = [ids + [0] * (longest - len(ids)) for ids, _ in texts]
    tokens = torch.tensor(rows, device=model.embed.weight.device)
    logits, _ = model(tokens[:, :-1])
    (logits,) = kernels.at_least_float32(logits)
    log_p = logits.log_softmax(dim=-1).gather(2, tokens[:, 1:, None]).squeeze(2)  # of each next token
    return [row[first - 1 : len(ids) - 1].sum().item() for row, (ids, first) in zip(log_p, texts)]


# ----------------------------------------------------------------------------------------------------
# From a benchmark to its scores


def score_subtask(model, tokenizer, subtask, protocol="2024", each_batch=lambda done: None):
    """A Subtask -> its verdicts, [{"i": line, "good": log p, "bad": log p, ...}, ...]; see benchmarks.judge."""
    if subtask.kind == "reading":
        return score_words(model, tokenizer, subtask, each_batch)
    if subtask.kind == "bear":
        protocol = "2025"  # its authors' library reads the statement as it is
    rows = []
    size = max(1, TEXTS_AT_ONCE // len(ask(subtask, subtask.records[0])))
    for start in range(0, len(subtask.records), size):
        records = subtask.records[start : start + size]
        texts = [text for record in records for text in ask(subtask, record)]
        encoded = encode(tokenizer, texts, protocol)
        scores = iter(zip(score_texts(model, encoded, each_batch), encoded))
        for record in records:
            own = []
            for _ in ask(subtask, record):
                score, (ids, first) = next(scores)
                own.append(score / (len(ids) - first) if record.get("per_token") else score)
            rows += [{"i": record["i"]} | row for row in judge(subtask, record, own, protocol)]
    return rows


def score_words(model, tokenizer, subtask, each_batch=lambda done: None):
    """
    The words of a reading benchmark -> [{"i", "surprisal", "before", "own", "before_own"}, ...], in nats: of the
    word and of the word before it (None if there is none), by the organisers' tokens and by the word's own.
    """
    words = {(x["item"], x["word"]) for x in subtask.records}
    words |= {(x["prev_item"], x["prev_word"]) for x in subtask.records if x["prev_word"]}
    words = sorted(words)
    pieces = [pieces_of_word(tokenizer, *word) for word in words]
    scores = iter(score_texts(model, [text for texts in pieces for text in texts]))
    surprisal = {word: -sum(next(scores) for _ in texts) for word, texts in zip(words, pieces)}
    own = dict(zip(words, score_texts(model, encode(tokenizer, words, "2025"))))
    rows = []
    for record in subtask.records:
        row = {"i": record["i"], "before": None, "before_own": None}
        word, before = (record["item"], record["word"]), (record["prev_item"], record["prev_word"])
        row |= {"surprisal": surprisal[word], "own": -own[word]}
        if record["prev_word"]:
            row |= {"before": surprisal[before], "before_own": -own[before]}
        rows.append(row)
    each_batch(len(rows))
    return rows


def pieces_of_word(tokenizer, context, word):
    """
    The texts whose last tokens BabyLM's organisers score as a word after a context, [(ids, first), ...]: the first
    token of the word, then of each later token what it is decoded to, encoded like a word of its own.
    """
    bos, texts = data.start_of(tokenizer), []
    (tokens,) = encode_all(tokenizer, [word])
    pieces = [tokenizer.decode([token]).removeprefix(" ") for token in tokens]
    for number, piece in enumerate(pieces):
        before = context + "".join(pieces[:number])
        read, asked = encode_all(tokenizer, [before, piece if number else word])
        texts.append(([bos, *read, asked[0]], len(read) + 1))
    return texts


def score_task(model, tokenizer, task, each_batch=lambda: None):
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


def score_benchmark(model, tokenizer, subtasks, protocol, part, what):
    """
    {uid: Subtask} -> {uid: verdicts}. Each finished subtask is appended to the file `part`, if there is one, from
    which an interrupted evaluation resumes if model, protocol, dtype and records are the same.
    """
    known = from_first(lambda: read_part(part)) if part else {}
    total, rows = sum(map(count_texts, subtasks.values())), {}
    with progress(total=total, unit="text", desc=part.stem if part else "scoring") as bar:
        for uid, subtask in subtasks.items():
            key = digest([what, uid, subtask.kind, subtask.records])
            if key in known:
                rows[uid] = known[key]
                bar.update(count_texts(subtask))
                continue
            rows[uid] = score_subtask(model, tokenizer, subtask, protocol, bar.update)
            if part:
                from_first(lambda: append(part, {"key": key, "rows": rows[uid]}))
    return rows


def count_texts(subtask):
    if subtask.kind == "reading":
        return len(subtask.records)
    return len(subtask.records) * len(ask(subtask, subtask.records[0]))


def read_part(part):
    """The verdicts that interrupted evaluations have left in a file, {key: rows}."""
    found = {}
    for line in part.read_bytes().splitlines() if part.exists() else []:
        try:
            record = json.loads(line)
            found[record["key"]] = record["rows"]
        except (ValueError, KeyError, TypeError, RecursionError):
            pass  # cut short by a kill: that subtask is scored again
    return found


def digest_of(subtasks):
    """SHA-256 of a benchmark's records."""
    return digest([digest([uid, x.kind, x.records]) for uid, x in subtasks.items()])


def digest(content):
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def on_validation_text(model, trained):
    """
    {"perplexity": exp of the mean loss per token on the corpus's validation text, block by block} and, for a
    corpus of answers, {"accuracy": {"tokens": per cent right, "sequences": per cent with all right}}. The
    perplexity is None, and the reason is printed, if the text is not here or is another one.
    """
    try:
        with together():
            val = validation_text(trained)
    except UserError as error:
        print(f"no perplexity: {error}")
        return {"perplexity": None}
    total = math.ceil(val.n / VALIDATION_BATCH)
    batches = progress(val.in_order(VALIDATION_BATCH), total=total, desc="perplexity")
    loss, accuracy = validation(model, batches)
    if math.isnan(loss):
        raise UserError("the model's loss on its validation text is NaN, so it has no score; did it diverge?")
    perplexity = math.exp(min(loss, 700))
    print(f"perplexity on the validation text of {trained.corpus}: {perplexity:.2f}")
    for name, score in accuracy.items():
        print(f"{name} right: {score:.1f} %")
    return {"perplexity": perplexity} | ({"accuracy": accuracy} if accuracy else {})


def validation_text(trained):
    """The blocks of the validation text of a run's corpus; UserError if it is not here, or was prepared again."""
    corpus = data.find(trained.corpus, needed=False)
    if not corpus:
        raise UserError(f"there is no data/{trained.corpus} here")
    data.read_meta(corpus)
    own = trained.checkpoint.with_name("tokenizer.json")
    if (corpus / "tokenizer.json").read_bytes() != own.read_bytes():
        raise UserError(f"{corpus} has another tokenizer than the run: it was prepared again")
    if getattr(trained, "corpus_is", None) not in (None, data.data_digest(corpus)):
        raise UserError(f"{corpus} has another text than the run's: it was prepared again")
    return data.Blocks(corpus / "val.bin", trained.context)


@torch.no_grad()
def validation(model, batches, each_batch=lambda: None):
    """
    Batches (tokens, targets), dealt out to the processes -> the mean loss per target, in nats; and, if only some
    positions have targets, as in copying, {"tokens": % right, "sequences": % with all right}, else {}.
    After each process has read one batch, all call each_batch().
    """
    if is_ngram(model):
        return loss_by_scores(model, batches), {}
    loss_of = NextToken(model)
    kernels.take_form(loss_of)
    tallies, device = [], model.embed.weight.device
    for own, _ in rounds(batches):
        for batch in own:
            tokens, targets = (data.on_device(x, device) for x in batch)
            tallies.append(tally(loss_of, tokens, targets))
        each_batch()
    columns = zip(*chain(*from_all(tallies)))
    loss, count, right, all_right, sequences = map(math.fsum, columns)  # exact, whatever the order
    accuracy = {}
    if sequences:
        accuracy = {"tokens": 100 * right / count, "sequences": 100 * all_right / sequences}
    return loss / count, accuracy


def loss_by_scores(model, batches):
    """The mean loss per target of a model without logits, in nats."""
    total, count = 0.0, 0
    for tokens, targets in batches:
        blocks = torch.cat([tokens, targets[:, -1:]], dim=1).tolist()
        total -= sum(model.score_texts([(block, 1) for block in blocks]))
        count += targets.numel()
    return total / count


def tally(loss_of, tokens, targets):
    """Summed loss, number of targets; for answers also correct ones, all-correct sequences, sequences; else 0s."""
    there = targets != -100
    count = there.sum().item()
    loss = loss_of(tokens, targets)["loss"].item() * count
    if there.all():
        return loss, count, 0, 0, 0
    right = loss_of.model(tokens)[0].argmax(dim=-1) == targets  # never where there is no target
    all_right = (right == there).all(dim=1)
    return loss, count, right.sum().item(), all_right.sum().item(), len(tokens)


# ----------------------------------------------------------------------------------------------------
# Tables


def print_table(name, result, protocol):
    """Print the subtasks below their phenomena, each with its score and 95 % interval."""
    terms = defaultdict(list)
    for uid, x in sorted(result["subtasks"].items()):
        terms[x["term"]].append((uid, x))
    unit = result.get("unit", "per cent")
    print(f"\n{name}, protocol {protocol}".ljust(65) + f"{unit:>8}    95 %        n")
    for term in sorted(terms):
        if term:
            scores = [x["score"] for _, x in terms[term]]
            print(term.ljust(65) + f"{sum(scores) / len(scores):8.1f}")
        for uid, x in terms[term]:
            print(f"  {uid}".ljust(65) + f"{x['score']:8.1f}  ± {x['interval']:4.1f}  {x['n']:7,}")
    total = sum(x["n"] for x in result["subtasks"].values())
    title = f"mean of {len(result['subtasks'])} subtasks"
    if "templates" in result:
        title = "all statements"
    print(title.ljust(65) + f"{result['score']:8.1f}  ± {result['interval']:4.1f}  {total:7,}")
    parts = {f"read as {reading}": score for reading, score in result.get("readings", {}).items()}
    if "unit" in result:
        parts = result.get("readings", {})
    for number, score in enumerate(result.get("templates", ())):
        parts[f"template {number}"] = score
    if "chance" in result:
        parts["by chance"] = result["chance"]
    for part, score in parts.items():
        print(f"  {part}".ljust(65) + f"{score:8.1f}")


def aggregate(results):
    """
    The year's mean over its benchmarks -> (per cent, names of those that have no score). A missing one counts 0 in
    2026, as on the leaderboard; before, it is left out. (None, names) if all are missing.
    """
    found, means = results["benchmarks"], []
    groups = AGGREGATES[results["protocol"]].values()
    missing = [task for tasks in groups for task in tasks if task not in found]
    for tasks in groups:
        scores = [found[task]["score"] for task in tasks if task in found]
        if results["protocol"] == "2026":
            scores = [whole_score(found[task]) for task in tasks if task in found]
            means.append(sum(scores) / len(tasks))
        elif scores:
            means.append(sum(scores) / len(scores))
    some = any(task in found for tasks in groups for task in tasks)
    return (sum(means) / len(means) if some else None), missing


def whole_score(found):
    """A benchmark's score, with 0 for each task that has not been fine-tuned."""
    missing = len(found.get("missing", ()))
    there = len(found["subtasks"]) if missing else 1
    return found["score"] * there / (there + missing)


def print_aggregate(results):
    """Print the year's mean, and the benchmarks missing from it."""
    score, missing = aggregate(results)
    if score is not None:
        year = results["protocol"]
        total = sum(map(len, AGGREGATES[year].values()))
        title = f"mean of BabyLM {year}, {total - len(missing)} of {total} benchmarks scored"
        print(f"\n{title}".ljust(65) + f"{score:8.1f}")
        if missing:
            counted = "counted as 0" if year == "2026" else "left out of the mean"
            print(f"  {counted}: {', '.join(missing)}")


def script(args):
    """Evaluate one run, or compare several."""
    with only_first_speaks():
        runs, settings = read_args(args, Settings())
        if len(runs) > 1 and not HELP & set(args):
            from tools.leaderboard import compare  # not above: matplotlib takes a second to load

            s, work = replace(Settings(), **settings), partial(compare, runs)
        else:
            s, work = configure(Settings(), args, word="run"), main
        device = join_processes(find_device(s.device))
        results = work(replace(s, device=str(device)))
        leave_processes()
        return results


def __getattr__(name):
    """Attributes of Hugging Face's package `evaluate`, for libraries that import it and get this file instead."""
    if name == "__path__":  # Python looks for it at every import
        raise AttributeError(name)
    from support.namesakes import attribute_of_package

    return attribute_of_package(__name__, name)


if __name__ == "__main__":
    run_script(script)
