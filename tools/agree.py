"""
Compare our scores with another tool's, on the folder that tools/export.py makes of a run.

    python -m tools.agree out/english_small --peer=transformers
    python -m tools.agree out/english_small --peer=lm_eval  with a python that has it, here lm_eval
                                                            0.4.13
    python -m tools.agree out/english_small --peer=minicons

Prints a row for each benchmark and protocol, and adds it to results/agreement.json. Exits with
status 2 if a score differs by more than the rounding of float32, or if a pair that is not a near
tie is judged differently.

BLiMP and the Supplement are scored as by evaluate.py. EWoK's items, which may not be written
anywhere as plain text, are read from their locked archive into memory and passed to the tools
there. Their score is log P(target | context), as the BabyLM pipelines compute it, in 2024 without
<s> before the context.
"""

import json
import os
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the tools are loaded: nothing is fetched
if not __package__:  # `python tools/agree.py` would look for our modules beside it
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from corpora.benchmarks import ask, check_tasks, read_benchmark
from evaluate import encode, score_texts
from model import load
from support.console import progress, run_script
from support.devices import check_kernels
from support.files import replacing
from support.settings import UserError, at_least, configure, one_of, reason
from tools import export

import torch

SCORE_TOLERANCE = 5e-6  # of a sentence's score, relative: what float32 in another order may differ by
LOGIT_TOLERANCE = 1e-5  # of the largest logit
NEAR_TIE = 1e-3  # nats: a pair whose scores are closer than this may be judged either way
PROTOCOLS = ("2024", "2025")


@dataclass
class Settings:
    run: str = "out/toy"  # a run folder, or a checkpoint in one
    peer: str = "transformers"  # transformers, lm_eval or minicons
    tasks: str = "blimp,supplement,ewok_filtered"  # comma-separated: pairs or EWoK, by name or file
    each: int = 40  # records of each subtask, evenly spaced; 0: all
    kernels: str = "auto"  # form that our model runs in: auto, loop, torch or triton; see use_kernels
    results: str = "results/agreement.json"  # where the rows go

    def check(self):
        one_of("peer", self.peer, PEERS)
        at_least(0, self, "each")
        check_kernels(self.kernels, "cpu")
        check_tasks("tasks", self.tasks)
        if not self.tasks:
            raise UserError("tasks: name at least one benchmark or file")
        read_rows(Path(self.results))  # an error in it is better found before an hour's work


@torch.no_grad()
def main(s):
    """Compare as the settings say; returns the new rows, or raises UserError if the scores do not agree."""
    model, tokenizer, trained = load(s.run, kernels=s.kernels)
    peer = open_peer(s)
    about = {
        "peer": s.peer,
        "version": version(s.peer),
        "transformers": version("transformers"),
        "torch": torch.__version__,
        "run": s.run,
        "checkpoint": trained.digest,
    }
    rows = []
    for task in s.tasks.split(","):
        texts = some_texts(task, s.each)
        if texts[0][0] and s.peer == "minicons":
            print(f"{task}: minicons always begins with <s>, which the pipeline of 2024 does not")
            continue
        for protocol in PROTOCOLS:
            found = {"benchmark": task} | compare(model, tokenizer, peer, texts, protocol)
            rows.append(about | found)
            versions = {name: about[name] for name in ("peer", "version", "transformers", "torch")}
            print("   ".join(f"{name} {value}" for name, value in (versions | found).items()))
            save_rows(Path(s.results), rows)
    differ = [row["benchmark"] for row in rows if not agrees(row)]
    if differ:
        raise UserError(f"{s.peer} and nanoRNN differ on {', '.join(differ)}: see {s.results}")
    return rows


def open_peer(s):
    """The other tool, with the run's model: exported anew, as an export in out/ may hold weights of 16 bits."""
    try:
        with TemporaryDirectory() as folder:
            exported = export.main(export.Settings(run=s.run, to=f"{folder}/model"))
            return PEERS[s.peer](str(exported))
    except ImportError as error:
        lacks = f"this python lacks it ({error})"
        raise UserError(f"peer = {s.peer!r}: {lacks}; install it, or run this with one that has it")


def compare(model, tokenizer, peer, texts, protocol):
    """
    Score texts with both -> {"protocol", "pairs", "relative": the largest difference of two scores, relative to
    ours, "verdicts": how many pairs are judged differently, "logits": where the tool has any, "seconds"}.
    """
    start = time.perf_counter()
    space = " " if protocol == "2024" else ""
    items = [(context, " " + text if context else space + text) for context, text in texts]
    with_start = protocol == "2025" or not texts[0][0]
    ours = torch.tensor(score_texts(model, encode(tokenizer, texts, protocol)), dtype=torch.float64)
    theirs = torch.tensor(peer.scores(items, with_start), dtype=torch.float64)
    relative = ((theirs - ours) / ours).abs().max().item()  # NaN if any score is
    row = {"protocol": protocol, "pairs": len(items) // 2}
    row |= {"relative": float(f"{relative:.2g}"), "verdicts": different_verdicts(ours, theirs)}
    if hasattr(peer, "logits"):
        row["logits"] = float(f"{logit_difference(model, peer, items[:200], with_start):.2g}")
    return row | {"seconds": round(time.perf_counter() - start, 1)}


def different_verdicts(ours, theirs):
    """The number of pairs that the tools judge differently, near ties aside; scores (2 * pairs,), good and bad."""
    our_margin, their_margin = ours[::2] - ours[1::2], theirs[::2] - theirs[1::2]
    differ = (our_margin > 0) != (their_margin > 0)
    return (differ & (our_margin.abs() > NEAR_TIE)).sum().item()


def logit_difference(model, peer, items, with_start):
    """The largest difference of two logits, relative to the largest logit."""
    differences = []
    for context, text in items:
        tokens = torch.tensor([peer.ids(context, text, with_start)[0]])
        ours, theirs = model(tokens)[0], peer.logits(tokens)
        differences.append((ours - theirs).abs().max() / ours.abs().max())
    return torch.stack(differences).max().item()


def agrees(row):
    """True if all differences are within the tolerances; False for NaN."""
    close = row["relative"] <= SCORE_TOLERANCE and row.get("logits", 0) <= LOGIT_TOLERANCE
    return close and row["verdicts"] == 0


def identity(row):
    """The fields that identify a comparison: one with the same fields replaces an earlier row."""
    return [row[name] for name in ("peer", "version", "transformers", "run", "benchmark", "protocol")]


def read_rows(path):
    """The rows in a results file; UserError if it is not one."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        for row in rows:
            identity(row)
        return rows
    except (OSError, ValueError, KeyError, TypeError) as error:
        written = f"not a file that agree.py has written ({reason(error)})"
        raise UserError(f"results = {str(path)!r}: {written}; move it away")


def save_rows(path, rows):
    """Add rows to a results file, in place of those with the same identity."""
    new = [identity(row) for row in rows]
    kept = [row for row in read_rows(path) if identity(row) not in new]
    with replacing(path) as file:
        file.write("[\n" + ",\n".join(json.dumps(row) for row in kept + rows) + "\n]\n")


def some_texts(task, count):
    """[(context, text)], good and bad in turn, of `count` records of each subtask, evenly spaced; 0: of all."""
    texts = []
    for subtask in read_benchmark(task).values():
        if subtask.kind not in ("pairs", "ewok"):
            raise UserError(f"{task}: neither minimal pairs nor EWoK; name one of these")
        records = subtask.records
        if count:
            step = max(1, len(records) // count)
            records = records[::step][:count]
        for record in records:
            asked = ask(subtask, record)
            texts += asked[: len(asked) // 2 * 2]  # not the third text of an item of EWoK that is asked one way
    return texts


# ----------------------------------------------------------------------------------------------------
# The other tools, each with scores(items, with_start) -> [log p(text | <s> if with_start, context)] of the items,
# which are pairs (context, text)


class Transformers:
    """The exported model and tokenizer in transformers itself, one text at a time."""

    def __init__(self, folder):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        self.model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()

    def ids(self, context, text, with_start):
        """The tokens of context and text, and those of the text alone."""
        before = self.tokenizer(context, add_special_tokens=with_start)["input_ids"]
        after = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return before + after, after

    def logits(self, tokens):
        return self.model(tokens).logits

    def scores(self, items, with_start):
        encoded = [self.ids(context, text, with_start) for context, text in items]
        scores = []
        for tokens, after in progress(encoded, desc="transformers"):
            logits = self.logits(torch.tensor([tokens[:-1]]))[0, -len(after) :]
            log_p = logits.double().log_softmax(dim=-1)
            scores.append(log_p[range(len(after)), after].sum().item())
        return scores


class Harness:
    """lm-evaluation-harness, asked directly what its multiple-choice tasks ask."""

    def __init__(self, folder):
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM

        self.Instance = Instance
        options = {"device": "cpu", "batch_size": 16, "trust_remote_code": True}
        self.models = {x: HFLM(pretrained=folder, add_bos_token=x, **options) for x in (True, False)}

    def scores(self, items, with_start):
        requests = [self.Instance("loglikelihood", doc={}, arguments=x, idx=i) for i, x in enumerate(items)]
        return [score for score, is_greedy in self.models[with_start].loglikelihood(requests)]


class Minicons:
    """minicons' scorer, for sentences without context; its tokenizer always puts <s> first."""

    def __init__(self, folder):
        from minicons.scorer import IncrementalLMScorer

        peer = Transformers(folder)
        self.scorer = IncrementalLMScorer(peer.model, "cpu", tokenizer=peer.tokenizer)

    def scores(self, items, with_start):
        texts, scores = [text for context, text in items], []
        for start in progress(range(0, len(texts), 16), desc="minicons"):
            batch = texts[start : start + 16]
            scores += self.scorer.sequence_score(batch, reduction=lambda x: x.double().sum().item())
        return scores


PEERS = {"transformers": Transformers, "lm_eval": Harness, "minicons": Minicons}


if __name__ == "__main__":
    run_script(lambda args: main(configure(Settings(), args, word="run")))
