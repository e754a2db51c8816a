"""
Reading times: how much of them a model's surprisal explains, as the BabyLM challenge measures it since 2025.

De Varda et al. (2023) give 1,726 words in 205 sentences with the times that people took over them. A linear model
predicts a time from the word's frequency, its length, the number of words before it, and their products. Adding
the surprisal -log p(word | text before), in nats, raises its R2, and the score is the share of the variance left
that this explains, in per cent:

    100 (R2 - R2_0) / (1 - R2_0)

eye_tracking is the mean over four times that the eyes rest on a word. self_paced, where people press a key to see
the next word, also has the length and the surprisal of the word before among the predictors.

Two things to know. The organisers encode a word's later pieces anew, each like a word of its own, so a word of
several tokens gets others than in a text; the score by its own tokens is given beside theirs. And words that carry
punctuation end a clause, over which people linger: this one bit, "the last character is punctuation", scores more
than any published model, so the scores without these words are given too.
"""

import csv
import io
from statistics import fmean

from support.settings import UserError, naming, reason

import numpy as np

EYES = "RTfirstfix", "RTfirstpass", "RTgopast", "RTrightbound"
KEYS = "self_paced_reading_time"
PREDICTORS = "Subtlex_log10", "length", "context_length"
NUMBERS = (*EYES, KEYS, *PREDICTORS, "prev_length")
TEXTS = "item", "word", "prev_item", "prev_word", "sent_id"
RESAMPLES = 200  # of the sentences, for the intervals


def read_words(text, file):
    """The text of reading_data.csv -> its records, a word each: texts, and numbers or NaN where there is none."""
    table = csv.DictReader(io.StringIO(text))
    missing = set(NUMBERS + TEXTS) - set(table.fieldnames or ())
    if missing:
        raise UserError(f"{file}: no columns {', '.join(sorted(missing))}; is this reading_data.csv?")
    records = []
    for row in table:
        with naming(f"{file}:{table.line_num}"):
            records.append(read_word(row) | {"i": len(records)})
    return records


def read_word(row):
    if not row["word"] or None in row.values():
        raise UserError("no word, or too few columns; is the file complete?")
    record = {name: row[name] for name in TEXTS}
    # One sentence begins with "None", which the organisers' table reader takes for a missing value. They put it
    # back as the text before the second word, but not as that before the word before the third.
    record["item"] = record["item"] or "None"
    if record["prev_item"] == "None":
        record["prev_word"] = ""
    try:
        for name in NUMBERS:
            record[name] = float(row[name]) if row[name] else None
    except ValueError as error:
        raise UserError(f"{name}: {reason(error)}")
    return record


def summarize(records, rows):
    """
    Records and rows {"surprisal", "before", "own", "before_own"}: the surprisal of each word and of the one before
    it, by the organisers' tokens and by the word's own -> an entry of results.json.
    """
    ending = np.array([carries_punctuation(record["word"]) for record in records], dtype=float)
    ended = np.array([carries_punctuation(record["prev_word"]) for record in records], dtype=float)
    theirs = [column(rows, "surprisal"), column(rows, "before")]
    own = [column(rows, "own"), column(rows, "before_own")]
    plain = np.flatnonzero(ending == 0)
    everything = np.arange(len(records))
    table = {name: column(records, name) for name in NUMBERS}
    scores = scores_of(table, *theirs, everything)
    subtasks = {}
    for (name, score), interval in zip(scores.items(), intervals(table, *theirs, records)):
        subtasks[name] = {"score": score, "interval": interval, "n": len(records), "term": ""}
    variants = {
        "the word's own tokens": scores_of(table, *own, everything),
        "without words that carry punctuation": scores_of(table, *theirs, plain),
        "own tokens, without these words": scores_of(table, *own, plain),
        "in place of a model: carries punctuation": scores_of(table, ending, ended, everything),
    }
    readings = {}
    for title, found in variants.items():
        for name, score in found.items():
            readings[f"{title}, {name}"] = score
    both = [x["interval"] for x in subtasks.values()]
    return {
        "score": fmean(scores.values()),
        "interval": float(np.hypot(*both)) / 2,
        "subtasks": subtasks,
        "readings": readings,
        "unit": "% of variance",
    }


def carries_punctuation(word):
    """1.0 for "way.", 0.0 for "can't", None without a word."""
    return float(not word[-1].isalnum()) if word else None


def column(rows, name):
    """(N,) numbers, NaN where there is none."""
    return np.array([row[name] for row in rows], dtype=float)


def scores_of(table, surprisal, before, chosen):
    """{"eye_tracking", "self_paced": per cent of the variance left} over the chosen words."""
    x = [table[name] for name in PREDICTORS]
    eyes = [gain(table[name], x, surprisal, chosen) for name in EYES]
    keys = gain(table[KEYS], [*x, table["prev_length"], before], surprisal, chosen)
    return {"eye_tracking": fmean(eyes), "self_paced": keys}


def gain(y, x, added, chosen):
    """
    100 (R2 - R2_0) / (1 - R2_0) of the times y (N,), where R2_0 has the predictors in x and their products, and R2
    `added` as well. Words for which one of these is missing are left out.
    """
    columns = np.stack([*x, added, y])[:, chosen]
    *x, added, y = columns[:, ~np.isnan(columns).any(axis=0)]
    products = [a * b for i, a in enumerate(x) for b in x[:i]]
    base = np.stack([np.ones_like(y), *x, *products], axis=1)
    left, less = left_over(base, y), left_over(np.column_stack([base, added]), y)
    return 100 * (left - less) / left if left else 0.0


def left_over(x, y):
    """The sum of squares that least squares leaves of y."""
    x = x / np.abs(x).max(axis=0).clip(1e-300)  # columns of one size are solved most exactly
    rest = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return float(rest @ rest)


def intervals(table, surprisal, before, records):
    """Half the widths of the 95 % intervals of both scores: a bootstrap over sentences."""
    sentences = {}
    for i, record in enumerate(records):
        sentences.setdefault(record["sent_id"], []).append(i)
    groups = list(sentences.values())
    random, samples = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        drawn = random.integers(len(groups), size=len(groups))
        chosen = np.concatenate([groups[number] for number in drawn])
        samples.append(list(scores_of(table, surprisal, before, chosen).values()))
    return (1.96 * np.std(samples, axis=0)).tolist()
