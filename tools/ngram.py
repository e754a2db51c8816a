"""
The floor that counting sets: an n-gram model of a corpus, which evaluate.py scores like a run.

    python -m tools.ngram english --order=3         writes out/english_3gram, a run folder
    python evaluate.py out/english_3gram --tasks=blimp_filtered,supplement,ewok_filtered

A model of order n predicts a token w from the n - 1 tokens before it, h. With h' for h without its
first token and h· for h followed by any token, interpolated Kneser-Ney smoothing (Kneser & Ney
1995, in the interpolated form of Chen & Goodman 1999) with one discount D is

    p(w | h) = (max(c(hw) - D, 0) + D n(h·) p(w | h')) / c(h·)
    p(w | h) = p(w | h')                                            where c(h·) = 0

    c(hw)  in the model's own order: how often hw occurs; in the lower ones: how many different
           tokens precede it
    c(h·)  the sum of c(hw) over w
    n(h·)  the number of different w that follow h

and for the lowest order p(w | h') = 1 / V, so no token of the vocabulary has probability 0. Three
details:

* train.bin is one sequence: n-grams cross the borders of documents, as they do in the validation
  text.
* What precedes <s> says nothing, so n-grams of two tokens or more that begin with <s> keep their
  own frequency in the lower orders too. An n-gram that only begins the file counts as preceded
  once.
* Where fewer than n - 1 tokens precede w in a text, h is all of them. A text that is scored begins
  with <s>.
"""

import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

if not __package__:  # `python tools/ngram.py` would look for our modules beside it
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import data
from data import read_tokenizer
from support.console import progress, refuse_torchrun, run_script
from support.files import read, replacing, save
from support.settings import UserError, configure

import numpy as np
import torch

MIXER = "{order}-gram"  # in a run's settings: what stands in the place of a sequence mixer
TEXTS = 1000  # scored at once, so that memory stays flat


@dataclass
class Settings:
    corpus: str = "toy"  # a prepared corpus; see data.py
    order: int = 3  # n, from 1 to 5
    discount: float = 0.75  # D, above 0 and below 1
    run: str = ""  # name of the folder under out/; none: CORPUS_3gram, say

    def check(self):
        data.check_name(self.corpus)
        if not 1 <= self.order <= 5:
            raise UserError(f"order = {self.order}: must be 1, 2, 3, 4 or 5")
        if not 0 < self.discount < 1:
            raise UserError(f"discount = {self.discount}: must be above 0 and below 1")


def main(s):
    """Count the n-grams of a corpus and write them as a run folder; returns its path."""
    refuse_torchrun()
    folder = Path("out") / (s.run or f"{s.corpus}_{s.order}gram")
    if (folder / "checkpoint.pt").exists() and not is_ngram(folder):
        raise UserError(f"{folder}: holds a run that was trained; name another folder with --run=NAME")
    corpus = data.find(s.corpus)
    meta = data.read_meta(corpus)
    if (corpus / "train_targets.bin").exists():
        raise UserError(f"corpus = {s.corpus!r}: its targets are answers, not the next token; name a text")
    tokenizer = read_tokenizer(corpus)
    tokens = np.memmap(corpus / "train.bin", dtype="<u2", mode="r")
    if len(tokens) < s.order:
        raise UserError(f"{corpus}: {len(tokens)} tokens are too few for order = {s.order}")
    tables = count(tokens, s.order, meta["vocab_size"], tokenizer.token_to_id(data.BOS))
    settings = vars(replace(s, run=folder.name)) | {
        "mixer": MIXER.format(order=s.order),
        "vocab_size": meta["vocab_size"],
        "batch_size": 1,  # the text is read once, as one sequence
        "context": len(tokens),
    }
    with replacing(folder / "settings.json") as file:
        file.write(json.dumps(settings, indent=1) + "\n")
    with replacing(folder / "tokenizer.json") as file:
        file.write((corpus / "tokenizer.json").read_text(encoding="utf-8"))
    path = folder / "checkpoint.pt"
    save({"settings": settings, "tables": tables, "step": 1}, path)
    size = sum(len(table["tokens"]) for table in tables)
    print(f"{folder}: {size:,} n-grams of {len(tokens):,} tokens, in {path.stat().st_size:,} bytes")
    return folder


# ----------------------------------------------------------------------------------------------------
# Counting. The table of an order lists its n-grams by context (all but the last token), in the order in which the
# table of the order below lists these contexts, then by the last token. The n-grams of one context are neighbours,
# so that the number of them is all that has to be kept of it. Order 0 has one entry, the empty n-gram.


def count(tokens, order, vocab_size, bos=None):
    """
    Tokens (N,) -> a table for each order from 1 on, a dict of tensors: the last token and the count c of each
    n-gram, and how many n-grams each entry of the table below begins ("followers").
    """
    tables, first = [], np.array([-1])  # first: the first token of each n-gram of the order below
    places = np.zeros(len(tokens) + 1, dtype=np.int64)  # in its table, of the one that begins at each token
    for n in progress(range(1, order + 1), desc="counting"):
        last = tokens[n - 1 :]  # of each n-gram in the text
        suffixes = places[1:]  # the place of each without its first token
        keys, places = np.unique(places[: len(last)] * vocab_size + last, return_inverse=True)
        if n > 1:
            counts = preceding(places, suffixes, len(first))
            if n > 2:
                counts = np.where(first == bos, tables[-1]["counts"].numpy(), counts)
            tables[-1]["counts"] = smallest(counts)
        contexts, last = np.divmod(keys, vocab_size)
        followers = np.bincount(contexts, minlength=len(first))
        table = {"tokens": last, "counts": np.bincount(places), "followers": followers}
        tables.append({name: smallest(x) for name, x in table.items()})
        first = tables[0]["tokens"].numpy() if n == 1 else first[contexts]
        del keys, contexts, last, followers, table  # before the next sort, which needs the memory
    return tables


def preceding(places, suffixes, entries):
    """How many tokens precede each of the `entries` n-grams, given every longer one's place and its suffix's."""
    suffix_of = np.empty(places.max() + 1, dtype=np.int64)
    suffix_of[places] = suffixes
    return np.bincount(suffix_of, minlength=entries).clip(min=1)


def smallest(x):
    """An array of whole numbers as a tensor of the smallest type that holds them."""
    return torch.from_numpy(x.astype(np.min_scalar_type(x.max())))


# ----------------------------------------------------------------------------------------------------
# The model


class NGram:
    """An n-gram model; `size` is the number of n-grams of all orders."""

    def __init__(self, tables, discount, vocab_size):
        self.tables = [Table(discount, vocab_size, **table) for table in tables]
        self.vocab_size = vocab_size
        self.size = sum(len(table.keys) for table in self.tables)

    def score_texts(self, texts, each_batch=lambda done: None):
        """
        [(ids, first), ...] -> log p(ids[first:] | ids[:first]) of each, as evaluate.score_texts. No sum depends on
        the order of its terms, so texts of the same n-grams tie exactly.
        """
        scores = []
        for start in range(0, len(texts), TEXTS):
            some = texts[start : start + TEXTS]
            ends = np.cumsum([len(ids) for ids, _ in some])
            log_p = self.log_p(np.concatenate([ids for ids, _ in some]), ends[:-1])
            for (_, first), row in zip(some, np.split(log_p, ends[:-1])):
                scores.append(math.fsum(row[first:]))
            each_batch(len(some))
        return scores

    def log_p(self, tokens, begins):
        """Log p of each token (T,) after those before it; at the places `begins` another text begins."""
        p = np.full(len(tokens), 1 / self.vocab_size)
        contexts = np.zeros(len(tokens), dtype=np.int64)  # the empty n-gram precedes every token
        for table in self.tables:
            p, places = table.interpolate(contexts, tokens, p)
            contexts = np.concatenate([[-1], places[:-1]])
            contexts[begins] = -1
        return np.log(p)


class Table:
    """The n-grams of one order."""

    def __init__(self, discount, vocab_size, tokens, counts, followers):
        tokens, counts, followers = (x.numpy().astype(np.int64) for x in (tokens, counts, followers))
        contexts = np.repeat(np.arange(len(followers)), followers)
        self.discount, self.vocab_size = discount, vocab_size
        self.keys, self.counts = contexts * vocab_size + tokens, counts  # keys are in ascending order
        self.followers = followers  # n(h·) of each context
        self.totals = np.bincount(contexts, counts, len(followers))  # c(h·)

    def interpolate(self, contexts, tokens, lower):
        """
        p(w | h) of each token w, and the place of hw, given the place of h and p(w | h'); all are (T,), and the
        place of an n-gram that is not there is -1.
        """
        keys = contexts * self.vocab_size + tokens
        places = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        found = self.keys[places] == keys
        kept = np.where(found, self.counts[places] - self.discount, 0)
        totals = np.where(contexts >= 0, self.totals[contexts], 0)
        seen = totals > 0
        p = lower.copy()
        p[seen] = kept[seen] + self.discount * self.followers[contexts[seen]] * lower[seen]
        p[seen] /= totals[seen]
        return p, np.where(found, places, -1)


# ----------------------------------------------------------------------------------------------------
# Loading


def is_ngram(path):
    """True for the run folder of an n-gram model, or the checkpoint in it."""
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    try:
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        return settings["mixer"] == MIXER.format(order=settings["order"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def load(path):
    """A run folder, or the checkpoint in it -> (model, tokenizer, settings), as model.load has them."""
    remedy = "make it again: python -m tools.ngram CORPUS"
    try:
        saved, path = read(path)
    except UserError as error:
        raise UserError(f"{path}: no intact n-gram model here; {remedy}") from error
    try:
        about = {"checkpoint": path, "digest": saved["digest"], "step": saved["step"]}
        settings = SimpleNamespace(**saved["settings"] | about)
        model = NGram(saved["tables"], settings.discount, settings.vocab_size)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: not an n-gram model of this version ({error}); {remedy}") from error
    return model, read_tokenizer(path.parent), settings


if __name__ == "__main__":
    run_script(lambda args: main(configure(Settings(), args, word="corpus")))
