"""
Nobody has to take our word: another tool scores the folder that export.py makes of a run, and we compare.

    python agree.py out/english_small --peer=transformers
    python agree.py out/english_small --peer=lm_eval       with a python that has it, here lm_eval 0.4.13
    python agree.py out/english_small --peer=minicons

Prints a row for each benchmark and protocol, and adds it to results/agreement.json. Ends with status 2 where a
score is off by more than float32's rounding, or a verdict differs that is not within it.

BLiMP and the Supplement are scored as evaluate.py does. EWoK's items, which may not be written anywhere as plain
text, are read in memory from their locked archive and given to the tools there: log P(target | context), as the
BabyLM pipelines ask for it, in 2024 without <s> before the context.
"""

from start import begin

begin(__name__)  # before torch is loaded

import json
import os
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the tools are loaded: nothing is fetched

import torch

import data
import export
from benchmarks import ask, read_benchmark
from checkpoint import fingerprint, replacing
from config import at_least, configure, fail, one_of, progress, reason, run_script
from model import load
from scores import encode, score_texts

RELATIVE = 5e-6  # of a sentence's score: how far float32, in another order, may lead
LOGITS = 1e-5  # of the largest
MARGIN = 1e-3  # nats: a pair whose scores are closer than this is as good as a tie
PROTOCOLS = ("2024", "2025")


@dataclass
class Settings:
    run: str = "out/toy"  # a run folder, or a checkpoint in one
    peer: str = "transformers"  # transformers, lm_eval or minicons
    tasks: str = "blimp,supplement,ewok_filtered"  # with commas: pairs or EWoK, named or a file
    each: int = 40  # records of each subtask, evenly spaced; 0: all
    results: str = "results/agreement.json"  # where the rows go

    def check(self):
        one_of("peer", self.peer, PEERS)
        at_least(0, self, "each")
        data.check_tasks("tasks", self.tasks)
        if not self.tasks:
            fail("tasks: name at least one benchmark or file")
        rows_of(Path(self.results))  # before an hour's work


@torch.no_grad()
def main(s):
    """Compare; returns the new rows."""
    model, tokenizer, trained = load(s.run)
    try:
        with TemporaryDirectory() as folder:  # out/RUN/hf may hold weights of 16 bits
            peer = PEERS[s.peer](str(export.main(export.Settings(run=s.run, to=f"{folder}/hf"))))
    except ImportError as error:
        lacks = f"this python lacks it ({error})"
        fail(f"peer = {s.peer!r}: {lacks}; install it, or run this with one that has it")
    about = {"peer": s.peer, "version": version(s.peer), "transformers": version("transformers")}
    about |= {"torch": torch.__version__, "run": s.run, "checkpoint": fingerprint(trained.checkpoint)}
    rows = []
    for task in s.tasks.split(","):
        texts = some_texts(task, s.each)
        if texts[0][0] and s.peer == "minicons":
            print(f"{task}: minicons always begins with <s>, which the pipeline of 2024 does not")
            continue
        for protocol in PROTOCOLS:
            rows.append(about | {"benchmark": task} | compare(model, tokenizer, peer, texts, protocol))
            told = {name: x for name, x in rows[-1].items() if name not in ("run", "checkpoint")}
            print("   ".join(f"{name} {x}" for name, x in told.items()))
            save(Path(s.results), rows)
    right = [x["relative"] <= RELATIVE and x.get("logits", 0) <= LOGITS and not x["verdicts"] for x in rows]
    wrong = [row for row, well in zip(rows, right) if not well]
    if wrong:
        names = ", ".join(row["benchmark"] for row in wrong)
        fail(f"{s.peer} and nanoRNN differ on {names}: see {s.results}")
    return rows


def compare(model, tokenizer, peer, texts, protocol):
    """A row: how many pairs, how far scores are apart at most, relative to ours, how many verdicts differ."""
    start = time.perf_counter()
    space = " " if protocol == "2024" else ""
    items = [(context, " " + text if context else space + text) for context, text in texts]
    ours = torch.tensor(score_texts(model, encode(tokenizer, texts, protocol)), dtype=torch.float64)
    with_start = protocol == "2025" or not texts[0][0]
    theirs = torch.tensor(peer.scores(items, with_start), dtype=torch.float64)
    relative = ((theirs - ours) / ours).abs().max().item()  # NaN if one is
    margin, other = ours[::2] - ours[1::2], theirs[::2] - theirs[1::2]
    verdicts = ((margin.abs() > MARGIN) & ((margin > 0) != (other > 0))).sum().item()
    row = {"protocol": protocol, "pairs": len(items) // 2}
    row |= {"relative": float(f"{relative:.2g}"), "verdicts": verdicts}
    if hasattr(peer, "logits"):
        row["logits"] = float(f"{logit_difference(model, peer, items[:200], with_start):.2g}")
    return row | {"seconds": round(time.perf_counter() - start, 1)}


def logit_difference(model, peer, items, with_start):
    """The largest difference of two logits, relative to the largest logit."""
    found = []
    for item in items:
        tokens = torch.tensor([peer.ids(*item, with_start)[0]])
        ours, theirs = model(tokens)[0], peer.logits(tokens)
        found.append((ours - theirs).abs().max() / ours.abs().max())
    return torch.stack(found).max().item()


def what(row):
    """What a row is about: of the same there is one."""
    return [row[name] for name in ("peer", "version", "transformers", "run", "benchmark", "protocol")]


def rows_of(path):
    """The rows in a results file."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        return [row for row in rows if what(row)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        fail(f"results = {str(path)!r}: not a file that agree.py has written ({reason(error)}); move it away")


def save(path, rows):
    """Add the rows to the file, in the place of those of an earlier comparison of the same."""
    known = [row for row in rows_of(path) if what(row) not in map(what, rows)]
    with replacing(path) as file:
        file.write("[\n" + ",\n".join(json.dumps(row) for row in [*known, *rows]) + "\n]\n")


def some_texts(task, count):
    """(context, text), good and bad by turns, of so many records of each subtask, evenly spaced; 0: of all."""
    texts = []
    for subtask in read_benchmark(task).values():
        if subtask.kind == "bear":
            fail(f"{task}: BEAR's statements are no pairs; name pairs or EWoK")
        step = max(1, len(subtask.records) // count) if count else 1
        records = subtask.records[::step][: count or None]
        texts += [text for record in records for text in ask(subtask, record)]
    return texts


# ----------------------------------------------------------------------------------------------------
# The tools. scores(items, with_start) -> log p(continuation | <s> or not, context) of each (context, continuation)


def summed(logits, after):
    """The log-probability of the tokens that the last of the logits (T, vocab) foretell."""
    log_p = logits[-len(after) :].double().log_softmax(dim=-1)
    return log_p[range(len(after)), after].sum().item()


class Transformers:
    """The exported folder's model and tokenizer in transformers itself, one text at a time."""

    def __init__(self, folder):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        self.model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()

    def ids(self, context, text, with_start):
        """The tokens of both, and those of the text alone."""
        before = self.tokenizer(context, add_special_tokens=with_start)["input_ids"]
        after = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return before + after, after

    def logits(self, tokens):
        return self.model(tokens).logits

    def scores(self, items, with_start):
        both = [self.ids(*item, with_start) for item in items]
        bar = progress(both, desc="transformers")
        return [summed(self.logits(torch.tensor([tokens[:-1]]))[0], after) for tokens, after in bar]


class Harness:
    """lm-evaluation-harness: what its multiple-choice tasks ask of it, asked directly."""

    def __init__(self, folder):
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM

        self.Instance, options = Instance, {"device": "cpu", "batch_size": 16, "trust_remote_code": True}
        self.models = {x: HFLM(pretrained=folder, add_bos_token=x, **options) for x in (True, False)}

    def scores(self, items, with_start):
        requests = [self.Instance("loglikelihood", doc={}, arguments=x, idx=i) for i, x in enumerate(items)]
        return [score for score, greedy in self.models[with_start].loglikelihood(requests)]


class Minicons:
    """minicons' scorer; the tokenizer itself puts <s> first. For sentences alone."""

    def __init__(self, folder):
        from minicons.scorer import IncrementalLMScorer

        peer = Transformers(folder)
        self.scorer = IncrementalLMScorer(peer.model, "cpu", tokenizer=peer.tokenizer)

    def scores(self, items, with_start):
        texts = [text for context, text in items]
        batches = progress(range(0, len(texts), 16), desc="minicons")
        add = {"reduction": lambda x: x.double().sum().item()}
        return [x for i in batches for x in self.scorer.sequence_score(texts[i : i + 16], **add)]


PEERS = {"transformers": Transformers, "lm_eval": Harness, "minicons": Minicons}


if __name__ == "__main__":
    run_script(lambda args: main(configure(Settings(), args, word="run")))
