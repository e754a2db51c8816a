"""
The benchmarks: where their files are, how they are read, and what each record asks of a model.

    kind     texts of a record                                       correct if
    pairs    a good and a bad sentence (BLiMP, its Supplement)       p(good) >= p(bad)
    ewok     Target1 and Target2, each after Context1 and Context2   p(T1 | C1) >= p(T2 | C1), and likewise swapped
             in 2026, as EWoK's authors ask                          p(T1 | C1) > p(T1 | C2), and likewise swapped
    bear     each of three templates with each possible answer       the right answer's is the most likely
    options  each candidate; see corpora/options.py                  the right one's is the most likely
    wug      two sentences                                           (their odds are correlated with people's)
    reading  a word after the text before it; corpora/reading.py     (its surprisal is to explain reading times)

A tie counts as right in 2024 and 2025, as in the challenge. In 2026 the challenge breaks ties at random; here a
tie of k candidates counts 1/k, the expected value.

A record's fields tell its kind. The subtasks are BLiMP's paradigms, each for one contrast of grammar, EWoK's
domains, BEAR's relations, or files. BabyLM's files of EWoK, such as ewok_fast, have a second row with each item
swapped, so each row is scored only as it stands. EWoK's authors ask that their items are never stored as plain
text, so they are read inside their locked archive, and evaluate.py writes no text of any benchmark, only numbers.
"""

import gzip
import json
import math
import os
import re
import statistics
import zipfile
import zlib
from collections import defaultdict
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import data
from corpora import options, reading
from support.settings import UserError, naming, one_of, reason

BENCHMARKS = {  # name -> file or folder in a data folder
    "toyland": "toyland/blimp",
    "toyland_ewok": "toyland/ewok",
    "toyland_bear": "toyland/bear",
    "blimp": "blimp/blimp.zip",
    "blimp_filtered": "babylm_eval/blimp_filtered.zip",
    "blimp_fast": "babylm_eval/blimp_fast.zip",
    "supplement": "babylm_eval/supplement_filtered",
    "supplement_fast": "babylm_eval/supplement_fast",
    "ewok": "ewok/ewok-core-1.0.zip",
    "ewok_filtered": "ewok/ewok-core-1.0.zip",  # the items whose words are all in BabyLM's list
    "ewok_fast": "ewok/ewok_fast.zip",
    "bear": "bear/BEAR.zip",
    "bear_big": "bear/BEAR-big.zip",
    "entity_tracking": "babylm_eval/entity_tracking.zip",
    "entity_tracking_fast": "babylm_eval/entity_tracking.zip",  # its file `regular` alone
    "comps": "babylm_eval/comps",
    "global_piqa": "babylm_eval/global_piqa",
    "wug_adj": "babylm_eval/wug/wug_adj_nominalization.jsonl.gz",
    "wug_past": "babylm_eval/wug/wug_past_tense.jsonl.gz",
    "reading": "babylm_eval/reading/reading_data.csv.gz",
}
YEARS = {  # benchmark -> the years whose evaluation has it; the others are scored by the rules of any year
    "entity_tracking": ("2025", "2026"),
    "entity_tracking_fast": ("2025", "2026"),
    "comps": ("2025", "2026"),
    "global_piqa": ("2026",),
    "wug_adj": ("2025",),
    "wug_past": ("2025",),
    "reading": ("2025", "2026"),
}
EACH = {"blimp": 1000, "blimp_fast": 200, "supplement_fast": 50, "ewok_fast": 100}  # records of every subtask
ALL = {  # records of all subtasks together
    "blimp": 67_000,
    "blimp_filtered": 59_875,
    "blimp_fast": 13_400,
    "supplement": 5218,
    "supplement_fast": 250,
    "ewok": 4374,
    "ewok_filtered": 3809,
    "ewok_fast": 1100,
    "bear": 7731,
    "bear_big": 40_916,
    "entity_tracking": {"2025": 9483, "2026": 6780},
    "entity_tracking_fast": {"2025": 3152, "2026": 2238},
    "comps": 91_028,
    "global_piqa": 203,
    "wug_adj": 200,
    "wug_past": 50,
    "reading": 1726,
}
FIELDS = {  # kind -> fields that a record must have
    "pairs": ("sentence_good", "sentence_bad"),
    "ewok": ("Context1", "Context2", "Target1", "Target2", "Domain"),
    "bear": ("sub_label", "obj_id", "obj_label"),
    "entity": ("input_prefix",),
    "comps": ("prefix_acceptable", "prefix_unacceptable", "property_phrase"),
    "piqa": ("prompt", "solution0", "solution1"),
    "wug": ("sentences",),
}
LARGEST = 1 << 28  # bytes of a benchmark once unpacked, ten times BLiMP: a small archive may hold any number
PASSWORDS = b"ewok", b"BabyLM2025"  # published by EWoK's authors and by BabyLM, to keep web crawlers out
DIRECTED = re.compile(r"ewok_(fast|filtered)[/.]")  # in the path of BabyLM's files of EWoK
FILES = r"[^.][^/]*\.jsonl(\.gz)?"  # what is read in a folder or archive
WORD = re.compile(r"can(?=not\b)|[a-z]+(?=n't)|n't|'[a-z]+|[a-z0-9]+(?:[-.,][a-z0-9]+)*|\S")  # as NLTK splits


class Subtask(NamedTuple):
    kind: str
    term: str  # the phenomenon that a paradigm belongs to
    records: list  # of dicts: the fields of its kind, and `i`, the zero-based line in its file
    file: str


# ----------------------------------------------------------------------------------------------------
# Finding a benchmark


def check_tasks(name, tasks, protocol="2024"):
    """
    Refuse a setting's value, comma-separated names, if one is neither a benchmark nor a file, or is no task of
    the protocol's year.
    """
    for task in tasks.split(",") if tasks else []:
        if not task or not os.path.exists(task):
            one_of(name, task, [*BENCHMARKS, "an existing file"])
        years = YEARS.get(task, (protocol,))
        if protocol not in years:
            what = f"{name}: {task} is no task of {protocol}, but of {' and '.join(years)}"
            remedy = "leave it out"
            if name == "tasks":
                remedy += f", or set --protocol={years[-1]}"
            raise UserError(f"{what}; {remedy}")


def find_benchmark(task):
    """The path of a benchmark, given by name or by its file or folder. Toyland's are made if needed."""
    if task not in BENCHMARKS and Path(task).exists():
        return Path(task)
    one_of("benchmark", task, [*BENCHMARKS, "an existing file"])
    place = BENCHMARKS[task]
    if task.startswith("toyland"):
        return find_toyland() / Path(place).name
    found = data.look_for(place) or data.look_for(place.removesuffix(".gz"))
    if found:
        return found
    by_hand = f"put it at {data.data_folder() / place}, or set NANORNN_DATA to the folder that holds it"
    raise UserError(f"{task}: {by_hand}, or fetch it: python data.py {recipe_of(task)}")


def recipe_of(task):
    """The word of data.py that fetches a benchmark: supplement for supplement_fast."""
    for recipe in ("entity_tracking", "global_piqa"):
        if task.startswith(recipe):
            return recipe
    return task.split("_")[0]


def find_toyland():
    """The folder of toyland's tests, which are written if no data folder has them."""
    text = data.look_for("toyland/train.txt")  # written last
    if text:
        return text.parent
    from corpora import toyland

    folder = data.data_folder() / "toyland"
    with data.making("toyland"):
        if not (folder / "train.txt").exists():  # another process may have made it meanwhile
            toyland.write(folder)
    return folder


# ----------------------------------------------------------------------------------------------------
# Questions and verdicts


def ask(subtask, record):
    """The texts to score for a record: [(context, text), ...]."""
    if subtask.kind == "pairs":
        return [("", record["sentence_good"]), ("", record["sentence_bad"])]
    if subtask.kind == "ewok":
        orders = [(1, 1), (1, 2), (2, 2), (2, 1)]
        if record.get("directed"):
            orders.remove((2, 2))
        return [(record[f"Context{context}"], record[f"Target{target}"]) for context, target in orders]
    if subtask.kind in ("options", "wug"):
        return record["options"]
    texts = []
    for template in record["templates"]:
        texts += [("", fill(template, record["sub_label"], answer)) for answer in record["answers"]]
    return texts


def fill(template, subject, answer):
    """fill("[X] lives in [Y].", "my uncle", "Rome") -> "My uncle lives in Rome." """
    text = template.replace("[X]", subject).replace("[Y]", answer)
    return text[:1].upper() + text[1:]


def judge(subtask, record, scores, protocol="2024"):
    """
    The verdicts on a record, given the log-probabilities of its texts: [{"good": ..., "bad": ...}, ...], one for
    pairs and options, two for EWoK (one for each context, or just the first), one for each template of BEAR.
    """
    if subtask.kind == "pairs":
        good, bad = scores
        return [{"good": good, "bad": bad}]
    if subtask.kind == "ewok":
        return judge_ewok(scores, protocol)
    if subtask.kind == "options":
        row = against_others(scores, record["right"])
        return [row | {"scores": scores} if len(scores) > 2 else row]
    if subtask.kind == "wug":
        return [{"good": scores[0], "bad": scores[1], "ratio": record["ratio"]}]
    n, rows = len(record["answers"]), []
    for template in range(len(record["templates"])):
        own = scores[template * n : (template + 1) * n]
        best = own.index(max(own))  # of a tie, the first
        row = {"template": template} | against_others(own, record["right"])
        rows.append(row | {"answer": best, "right": best == record["right"]})
    return rows


def judge_ewok(scores, protocol):
    """
    The verdicts on an item of EWoK. "good" is a target after its own context, "bad" is in 2024 and 2025 the other
    target after that context, in 2026 that target after the other context, and "other" what is bad in other years.
    """
    one_in_1, two_in_1, *rest, one_in_2 = scores
    rows = [{"swapped": False, "good": one_in_1, "bad": two_in_1, "other": one_in_2}]
    if rest:
        rows.append({"swapped": True, "good": rest[0], "bad": one_in_2, "other": two_in_1})
    if protocol == "2026":
        for row in rows:
            row["bad"], row["other"] = row["other"], row["bad"]
    return rows


def against_others(scores, right):
    """The score of the right candidate beside the best of the others."""
    others = scores[:right] + scores[right + 1 :]
    return {"good": scores[right], "bad": max(others, default=-math.inf)}


def credit(row, protocol="2024"):
    """1 for a right verdict, 0 for a wrong one; for ties see the top of this file."""
    if "right" in row:
        return float(row["right"])
    if row["good"] == row["bad"] and protocol == "2026":
        return 1 / row.get("scores", [row["good"], row["bad"]]).count(row["good"])
    return float(row["good"] >= row["bad"])


def summary(subtasks, rows, protocol="2024"):
    """
    {uid: Subtask}, {uid: verdicts} -> {"score": in per cent, "interval": half the width of its 95 % interval,
    "subtasks": {...}}. The score is the mean over subtasks, unweighted (macro average); for BEAR it is the mean
    over all statements. EWoK's score follows the pipeline of the year, with both readings beside it.
    """
    kind = next(iter(subtasks.values())).kind
    if kind == "reading":
        ((uid, subtask),) = subtasks.items()
        return reading.summarize(subtask.records, rows[uid])
    if kind == "wug":
        found = {uid: correlation(rows[uid]) for uid in subtasks}
    else:
        found = {}
        for uid, subtask in subtasks.items():
            found[uid] = accuracy(subtask, [credit(row, protocol) for row in rows[uid]])
    result = {
        "score": fmean(x["score"] for x in found.values()),
        "interval": math.sqrt(sum(x["interval"] ** 2 for x in found.values())) / len(found),
        "subtasks": found,
    }
    if kind == "ewok":
        by_domain = []  # the other reading; a tie counts half, because n-gram models give many
        for uid in subtasks:
            others = [{"good": row["good"], "bad": row["other"]} for row in rows[uid]]
            by_domain.append(fmean(credit(row, "2026") for row in others))
        readings = ["p(T1|C1) > p(T2|C1)", "p(T1|C1) > p(T1|C2)"]
        if protocol == "2026":
            readings.reverse()
        result["readings"] = dict(zip(readings, [result["score"], 100 * fmean(by_domain)]))
    if kind == "options":
        chances = [fmean(1 / len(x["options"]) for x in subtask.records) for subtask in subtasks.values()]
        result["chance"] = 100 * fmean(chances)
    if kind == "wug":
        result["unit"] = "100 x rho"
    if kind == "bear":
        result |= summary_of_bear(subtasks, rows)
    return result


def summary_of_bear(subtasks, rows):
    """The score over all of BEAR's statements, its interval, the score of each template, and of chance."""
    records = [record for subtask in subtasks.values() for record in subtask.records]
    by_template = defaultdict(list)
    for uid in subtasks:
        for row in rows[uid]:
            by_template[row["template"]].append(row["right"])
    right = [x for verdicts in by_template.values() for x in verdicts]
    result = accuracy(Subtask("bear", "", records, ""), right)
    result["templates"] = [100 * fmean(by_template[template]) for template in sorted(by_template)]
    result["chance"] = 100 * fmean(1 / len(record["answers"]) for record in records)
    return result


def accuracy(subtask, right):
    """
    Verdicts on a subtask, right or wrong -> its entry in the results. The interval counts each record as one
    observation, however many verdicts it gives, and adds two right and two wrong ones, so that 200 of 200 is not
    certainty (Agresti & Coull 1998).
    """
    records = len(subtask.records)
    p = (fmean(right) * records + 2) / (records + 4)
    interval = 196 * math.sqrt(p * (1 - p) / (records + 4))
    return {"score": 100 * fmean(right), "interval": interval, "n": len(right), "term": subtask.term}


def correlation(rows):
    """
    Spearman's rank correlation, x 100, of people's preference for the first of two sentences with the model's,
    p1 / (p1 + p2); the interval by Fisher's transformation.
    """
    ratios = [1 / (1 + math.exp(min(row["bad"] - row["good"], 700))) for row in rows]
    ours, theirs = ranks(ratios), ranks([row["ratio"] for row in rows])
    n, rho = len(rows), 0.0
    if len(set(ours)) > 1 and len(set(theirs)) > 1:
        rho = statistics.correlation(ours, theirs)
    interval = 196 * (1 - rho**2) / math.sqrt(max(n - 3, 1))
    return {"score": 100 * rho, "interval": interval, "n": n, "term": ""}


def ranks(values):
    """The rank of each value, from 1; tied ones share the mean of theirs."""
    places = defaultdict(list)
    for place, value in enumerate(sorted(values), start=1):
        places[value].append(place)
    return [fmean(places[value]) for value in values]


# ----------------------------------------------------------------------------------------------------
# Reading a benchmark


def read_benchmark(task, protocol="2024"):
    """
    Read a benchmark, given by name or by its file or folder -> {uid: Subtask}. In 2026 entity tracking is without
    the items one of whose options contains "nothing".
    """
    path, subtasks = find_benchmark(task), {}
    pattern = r"regular\.jsonl(\.gz)?" if task == "entity_tracking_fast" else FILES
    for name, text in read_texts(path, pattern):
        if ".csv" in Path(name).suffixes:
            subtasks["reading"] = Subtask("reading", "", reading.read_words(text, name), name)
            continue
        for i, line in enumerate(text.split("\n")):
            if line.strip():
                with naming(f"{name}:{i + 1}"):
                    record = read_record(line)
                    if not (protocol == "2026" and says_nothing(record)):
                        add_record(subtasks, record, task, name, i)
    check_complete(task, path, subtasks, protocol)
    if any(subtask.kind == "bear" for subtask in subtasks.values()):
        add_answers(path, subtasks)
    return subtasks


def read_record(line):
    """A line of a file -> the record. UserError if it is of no kind, or lacks a field of its kind."""
    try:
        record = json.loads(line)
        kind = kind_of(record)
        for field in FIELDS[kind]:
            if not isinstance(record[field], str):
                raise TypeError(f"{field} is not text")
        return record
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"not a record of BLiMP, EWoK or BEAR, nor of a task with options ({reason(error)})"
        raise UserError(f"{what}; is the file complete?")


def says_nothing(record):
    return "input_prefix" in record and "nothing" in str(record.get("options"))


def kind_of(record):
    for kind, fields in FIELDS.items():
        if fields[0] in record:
            return kind
    raise ValueError("no fields of theirs")


def add_record(subtasks, record, task, file, i):
    """Add the record of line i of a file to its subtask in {uid: Subtask}, unless the task leaves it out."""
    kind = kind_of(record)
    if kind in options.FORMS:
        kind, uid, term, fields = read_options(kind, record, file)
        check_like_others(subtasks, fields, file)
    else:
        if task == "ewok_filtered" and kind == "ewok" and not is_in_vocabulary(record):
            return
        fields = {field: record[field] for field in FIELDS[kind]}
        uid = str(record.get("UID") or record.get("Domain") or options.stem(file))
        term = str(record.get("linguistics_term", ""))
    if kind == "ewok" and DIRECTED.search(file):
        fields["directed"] = True
    subtask = subtasks.setdefault(uid, Subtask(kind, term, [], file))
    if subtask.kind != kind:
        raise UserError(f"a record of {kind} among {subtask.kind}, all called {uid!r}")
    subtask.records.append(fields | {"i": i})


def read_options(form, record, file):
    """A record with options -> (kind, uid, term, fields); see corpora/options.py."""
    try:
        return options.FORMS[form](record, file)
    except (ValueError, KeyError, TypeError) as error:
        missing = f"no field {error}" if isinstance(error, KeyError) else reason(error)
        raise UserError(f"{missing}; is the file complete?")


def check_like_others(subtasks, fields, file):
    """Refuse a record that has not as many options as the first of its file."""
    n = len(fields["options"])
    for subtask in subtasks.values():
        first = len(subtask.records[0].get("options", ()))
        if subtask.file == file and first != n:
            raise UserError(f"{n} options, where the first line has {first}; is the file complete?")


def is_in_vocabulary(record):
    """True if BabyLM keeps an item of EWoK: it is marked so, or each of its words is in BabyLM's list."""
    if "in_babylm_vocab" in record:
        return record["in_babylm_vocab"]
    path = data.look_for("ewok/vocab.txt")
    if not path:
        place = data.data_folder() / "ewok/vocab.txt"
        raise UserError(f"ewok_filtered: needs BabyLM's words, {place}; python data.py ewok_vocabulary")
    text = " ".join(record[field] for field in FIELDS["ewok"] if field != "Domain").lower()
    return words_of(path).issuperset(WORD.findall(text))


@cache
def words_of(path):
    return set(path.read_text(encoding="utf-8", errors="replace").split())


def check_complete(task, path, subtasks, protocol):
    """Refuse a benchmark that lacks records, or has records of two kinds."""
    again = f"fetch it again: python data.py {recipe_of(task)}"
    for uid, subtask in subtasks.items():
        n = len(subtask.records)
        if task in EACH and n != EACH[task]:
            raise UserError(f"{subtask.file}: {uid} has {n:,} lines and not {EACH[task]:,}; {again}")
    n = sum(len(subtask.records) for subtask in subtasks.values())
    expected = ALL.get(task, n)
    if isinstance(expected, dict):
        expected = expected.get(protocol, n)
    if n != expected:
        raise UserError(f"{path}: {n:,} lines in all and not {expected:,}; {again}")
    if not subtasks:
        raise UserError(f"{path}: no .jsonl files with records in it")
    if len({subtask.kind for subtask in subtasks.values()}) > 1:
        raise UserError(f"{path}: files of different benchmarks in it")


def add_answers(path, subtasks):
    """Give BEAR's records their relation's templates, the possible answers, and the number of the right one."""
    relations = read_relations(path)
    for uid, subtask in subtasks.items():
        try:
            templates, answers, ids = answer_space(relations[uid], subtask.records)
            for record in subtask.records:
                right = ids.index(record["obj_id"])
                record.update(templates=templates, answers=answers, right=right)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"relation {uid} does not fit metadata_relations.json ({reason(error)})"
            raise UserError(f"{path}: {what}; is it complete?")


def read_relations(path):
    """{relation: its entry} from BEAR's metadata_relations.json."""
    relations = {}
    for name, text in read_texts(path, r"metadata_relations\.json"):
        try:
            relations |= json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            what = f"not BEAR's table of relations ({reason(error)})"
            raise UserError(f"{name}: {what}; is the file complete?")
    return relations


def answer_space(relation, records):
    """A relation's templates, possible answers and their ids; ValueError if its entry does not fit its records."""
    objects = {record["obj_id"]: record["obj_label"] for record in records}
    ids = relation.get("answer_space_ids") or list(objects)  # BEAR-big: all objects of the relation
    answers = relation.get("answer_space_labels") or list(objects.values())
    templates = relation["templates"]
    if not templates or isinstance(templates, str) or len(ids) != len(answers):
        raise ValueError("no templates, or not as many labels as ids")
    if not all(isinstance(text, str) for text in [*templates, *answers]):
        raise ValueError("templates and labels are not all text")
    return templates, answers, ids


def read_texts(path, pattern):
    """Yield (name, text) of each file in a folder or .zip whose name fits, or of the one file given."""
    size = 0
    try:
        for name, raw in read_files(path, pattern):
            size += len(raw)
            if size > LARGEST:
                raise UserError(f"{path}: more than {LARGEST >> 20} MB once unpacked; split it up")
            yield name, raw.decode("utf-8-sig")
    except UserError:
        raise
    except Exception as error:  # a broken archive can raise many
        raise UserError(f"{path}: cannot be read ({reason(error)}); fetch it again")


def read_files(path, pattern):
    """Yield (name, at most LARGEST + 1 bytes) of those files, sorted by name. Nothing is unpacked to disk."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if re.fullmatch(f"(.*/)?{pattern}", name):
                    yield f"{path}:{name}", read_member(archive, name)
    elif path.is_dir():
        for file in sorted(path.iterdir()):
            if re.fullmatch(pattern, file.name):
                yield str(file), read_file(file)
    else:
        yield str(path), read_file(path)


def read_file(path):
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        return file.read(LARGEST + 1)


def read_member(archive, name):
    """The bytes of a file in a .zip, locked or not."""
    passwords = [None]
    if archive.getinfo(name).flag_bits & 1:
        passwords = PASSWORDS
    for password in passwords:
        try:
            with archive.open(name, pwd=password) as file:
                return file.read(LARGEST + 1)
        except (RuntimeError, zipfile.BadZipFile, zlib.error):  # 1 wrong password in 256 looks right at first
            if password is None:
                raise
    raise ValueError("locked, and not with a password that EWoK's authors or BabyLM's organisers publish")
