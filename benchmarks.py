"""
What evaluate.py asks of a model, from the benchmarks' files to its verdicts.

    kind     a record's texts                                        right if
    pairs    a good and a bad sentence (BLiMP, its Supplement)       p(good) >= p(bad)
    ewok     Target1 and Target2, each after Context1 and Context2   p(T1 | C1) >= p(T2 | C1), and likewise swapped
    bear     each of three templates with each possible answer       the right answer's is the most likely

A file's kind is told by its fields. Subtasks are BLiMP's paradigms, EWoK's domains, BEAR's relations. EWoK's
authors ask that their items are never stored as plain text: they are read inside their locked archive, and no text
of any benchmark is written anywhere, only numbers.
"""

import gzip
import json
import math
import re
import zipfile
import zlib
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import NamedTuple

import data
from config import fail, reason

LARGEST = 1 << 28  # bytes of a benchmark, unpacked: ten times BLiMP; an archive may promise to be endless
PASSWORDS = b"ewok", b"BabyLM2025"  # which EWoK's authors and BabyLM publish: they keep web crawlers out

FIELDS = {  # kind -> what a record must have
    "pairs": ("sentence_good", "sentence_bad"),
    "ewok": ("Context1", "Context2", "Target1", "Target2", "Domain"),
    "bear": ("sub_label", "obj_id", "obj_label"),
}
EACH = {"blimp": 1000, "blimp_fast": 200, "supplement_fast": 50, "ewok_fast": 100}  # records of every subtask
ALL = {"blimp": 67_000, "blimp_filtered": 59_875, "blimp_fast": 13_400}  # and of all together
ALL |= {"supplement": 5218, "supplement_fast": 250, "ewok": 4374, "ewok_filtered": 3809, "ewok_fast": 1100}
ALL |= {"bear": 7731, "bear_big": 40_916}
WORD = re.compile(r"can(?=not\b)|[a-z]+(?=n't)|n't|'[a-z]+|[a-z0-9]+(?:[-.,][a-z0-9]+)*|\S")  # by NLTK


class Subtask(NamedTuple):
    kind: str
    term: str  # the phenomenon that a paradigm belongs to
    records: list  # of dicts: the fields of its kind, and `i`, the line in its file, from 0
    file: str


# ----------------------------------------------------------------------------------------------------
# Questions and verdicts


def ask(subtask, record):
    """A record -> the texts to score, [(context, text), ...]."""
    if subtask.kind == "pairs":
        return [("", record["sentence_good"]), ("", record["sentence_bad"])]
    if subtask.kind == "ewok":
        return [(record[f"Context{c}"], record[f"Target{t}"]) for c, t in ((1, 1), (1, 2), (2, 2), (2, 1))]
    templates, subject, answers = record["templates"], record["sub_label"], record["answers"]
    return [("", state(template, subject, answer)) for template in templates for answer in answers]


def state(template, subject, answer):
    """state("[X] lives in [Y].", "my uncle", "Rome") -> "My uncle lives in Rome." """
    text = template.replace("[X]", subject).replace("[Y]", answer)
    return text[:1].upper() + text[1:]


def judge(subtask, record, scores):
    """
    The log-probabilities of a record's texts -> a row for each verdict: pairs give one, EWoK one each way, BEAR
    one a template. `elsewhere` is the good target's after the other context, `answer` the likeliest one's number.
    """
    if subtask.kind == "pairs":
        return [{"good": scores[0], "bad": scores[1]}]
    if subtask.kind == "ewok":
        a, b, c, d = scores
        return [
            {"swapped": False, "good": a, "bad": b, "elsewhere": d},
            {"swapped": True, "good": c, "bad": d, "elsewhere": b},
        ]
    rows, right, n = [], record["right"], len(record["answers"])
    for template in range(len(record["templates"])):
        of_answers = scores[template * n : (template + 1) * n]
        best = of_answers.index(max(of_answers))  # of a tie, the first
        other = max((x for i, x in enumerate(of_answers) if i != right), default=-math.inf)
        row = {"template": template, "good": of_answers[right], "bad": other, "answer": best}
        rows.append(row | {"right": best == right})
    return rows


def is_right(row):
    """A tie counts as right, as in the BabyLM pipeline; BEAR's verdicts are made where all answers are known."""
    return row.get("right", row["good"] >= row["bad"])


def summary(subtasks, rows):
    """
    {uid: Subtask}, {uid: rows} -> {"score": per cent, "interval": half the width of its 95 % interval, "subtasks":
    {...}}. The score is the unweighted mean over subtasks, BEAR's the share of all its statements. EWoK's score is
    the pipeline's reading of it, and the paper's is given beside it; BEAR's templates each have their score.
    """
    found = {uid: verdicts(subtasks[uid], [is_right(row) for row in rows[uid]]) for uid in subtasks}
    kind = next(iter(subtasks.values())).kind
    result = {
        "score": sum(x["score"] for x in found.values()) / len(found),
        "interval": math.sqrt(sum(x["interval"] ** 2 for x in found.values())) / len(found),
        "subtasks": found,
    }
    if kind == "ewok":
        papers = 100 * mean(mean(row["good"] > row["elsewhere"] for row in rows[uid]) for uid in subtasks)
        result["readings"] = {"p(T1|C1) > p(T2|C1)": result["score"], "p(T1|C1) > p(T1|C2)": papers}
    if kind == "bear":
        records = [record for subtask in subtasks.values() for record in subtask.records]
        by_template = defaultdict(list)
        for row in (row for uid in subtasks for row in rows[uid]):
            by_template[row["template"]].append(row["right"])
        result |= verdicts(Subtask(kind, "", records, ""), sum(by_template.values(), []))
        result["templates"] = [100 * mean(by_template[template]) for template in sorted(by_template)]
        result["chance"] = 100 * mean(1 / len(record["answers"]) for record in records)
    return result


def verdicts(subtask, right):
    """
    Verdicts on a subtask -> its entry in the results. The interval takes each record for one observation, however
    many verdicts it gives, and adds two right and two wrong, so that 200 of 200 is not certainty (Agresti & Coull
    1998).
    """
    records = len(subtask.records)
    p = (mean(right) * records + 2) / (records + 4)
    interval = 196 * math.sqrt(p * (1 - p) / (records + 4))
    return {"score": 100 * mean(right), "interval": interval, "n": len(right), "term": subtask.term}


def mean(numbers):
    numbers = list(numbers)
    return sum(numbers) / len(numbers)


# ----------------------------------------------------------------------------------------------------
# Files


def read_benchmark(task):
    """A benchmark, by name or by its file or folder -> {uid: Subtask}, by the records' own fields or by file."""
    path, subtasks = data.find_benchmark(task), {}
    for name, text in read_texts(path):
        for i, line in enumerate(text.removesuffix("\n").split("\n") if text else []):
            try:
                record = json.loads(line)
                kind = next(kind for kind in FIELDS if FIELDS[kind][0] in record)
                kept = {field: record[field] + "" for field in FIELDS[kind]}  # + "": nothing but text
            except (ValueError, KeyError, TypeError, RecursionError, StopIteration) as error:
                what = f"not a record of BLiMP, EWoK or BEAR ({reason(error) or 'no fields of theirs'})"
                fail(f"{name}:{i + 1}: {what}; is the file complete?")
            if task == "ewok_filtered" and kind == "ewok" and not is_in_vocabulary(record):
                continue
            uid = str(record.get("UID") or record.get("Domain") or Path(name).name.split(".")[0])
            term = str(record.get("linguistics_term", ""))
            subtask = subtasks.setdefault(uid, Subtask(kind, term, [], name))
            if subtask.kind != kind:
                fail(f"{name}:{i + 1}: a record of {kind} among {subtask.kind}, all called {uid!r}")
            subtask.records.append(kept | {"i": i})
    check_complete(task, path, subtasks)
    if any(subtask.kind == "bear" for subtask in subtasks.values()):
        add_answers(path, subtasks)
    return subtasks


def is_in_vocabulary(record):
    """Whether BabyLM keeps an item of EWoK: it is marked so, or BabyLM's list has each of its words."""
    if "in_babylm_vocab" in record:
        return record["in_babylm_vocab"]
    text = " ".join(record[field] for field in FIELDS["ewok"] if field != "Domain").lower()
    path = data.look_for("ewok/vocab.txt")
    if not path:
        fail("ewok_filtered: needs BabyLM's words, data/ewok/vocab.txt; python data.py ewok_vocabulary")
    return words_of(path).issuperset(WORD.findall(text))


@cache
def words_of(path):
    return set(path.read_text(encoding="utf-8", errors="replace").split())


def check_complete(task, path, subtasks):
    """Refuse a benchmark of which records are missing, or of two kinds."""
    again = f"fetch it again: python data.py {task.split('_')[0]}"
    for uid, subtask in subtasks.items():
        n = len(subtask.records)
        if n != EACH.get(task, n):
            fail(f"{subtask.file}: {uid} has {n:,} lines and not {EACH[task]:,}; {again}")
    n = sum(len(subtask.records) for subtask in subtasks.values())
    if n != ALL.get(task, n):
        fail(f"{path}: {n:,} lines in all and not {ALL[task]:,}; {again}")
    if len({subtask.kind for subtask in subtasks.values()}) != 1:
        what = "files of different benchmarks" if subtasks else "no .jsonl files with records"
        fail(f"{path}: {what} in it")


def add_answers(path, subtasks):
    """Give BEAR's records their relation's templates and possible answers, and which of these is right."""
    relations = {}
    for name, text in read_texts(path, r"metadata_relations\.json"):
        try:
            relations |= json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            fail(f"{name}: not BEAR's table of relations ({reason(error)}); is the file complete?")
    for uid, subtask in subtasks.items():
        try:
            relation = relations[uid]
            templates = [template + "" for template in relation["templates"]]
            found = {record["obj_id"]: record["obj_label"] for record in subtask.records}
            ids = relation.get("answer_space_ids") or list(found)  # BEAR-big: all objects of the relation
            labels = relation.get("answer_space_labels") or list(found.values())
            answers = [label + "" for label in labels]
            if not templates or len(ids) != len(answers) or isinstance(relation["templates"], str):
                raise ValueError("no templates, or not as many labels as ids")
            for record in subtask.records:
                record |= {"templates": templates, "answers": answers, "right": ids.index(record["obj_id"])}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"relation {uid} does not fit metadata_relations.json ({reason(error)})"
            fail(f"{path}: {what}; is it complete?")


def read_texts(path, pattern=r"[^.][^/]*\.jsonl(\.gz)?"):
    """(name, text) of each file in a folder or .zip whose name fits, or of the one file given; sorted by name."""
    room = LARGEST
    try:
        for name, read in find_each(path, pattern):
            raw = read(room + 1)
            room -= len(raw)
            if room < 0:
                fail(f"{path}: more than {LARGEST >> 20} MB once unpacked; split it up")
            yield name, raw.decode("utf-8-sig")
    except Exception as error:  # a broken archive can raise many
        fail(f"{path}: cannot be read ({reason(error)}); fetch it again")


def find_each(path, pattern):
    """(name, function of a number of bytes) of the same. Nothing is unpacked to disk: names lead nowhere."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for name in sorted(x for x in archive.namelist() if re.fullmatch(f"(.*/)?{pattern}", x)):
                yield f"{path}:{name}", lambda size: read_member(archive, name, size)
        return
    for file in [path] if path.is_file() else sorted(path.iterdir()):
        if file == path or re.fullmatch(pattern, file.name):
            yield str(file), lambda size: read_file(file, size)


def read_file(path, size):
    """At most so many bytes of a file, plain or .gz."""
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        return file.read(size)


def read_member(archive, name, size):
    """At most so many bytes of a file in a .zip, locked or not."""
    locked = archive.getinfo(name).flag_bits & 1
    for password in PASSWORDS if locked else [None]:
        try:
            with archive.open(name, pwd=password) as file:
                return file.read(size)
        except (RuntimeError, zipfile.BadZipFile, zlib.error):  # 1 wrong password in 256 looks right at first
            if not locked:
                raise
    raise ValueError("locked, and not with a password that EWoK's authors or BabyLM's organisers publish")
