"""Tasks with options, EWoK by context, reading times: scores = brute force in float64, one text at a time."""

import csv
import gzip
import json
import math
from pathlib import Path

import evaluate
from corpora import benchmarks, reading
from model import load

import numpy as np
import pytest
import torch

WORDS = "the dog sees a cat and Mia finds nothing in old box that he has".split()


def text(random, n):
    return " ".join(random.choice(WORDS, size=n))


def jsonl(records):
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def double(workplace):
    """The tiny run in float64, and its tokenizer."""
    model, tokenizer, _ = load("out/tiny")
    return model.double(), tokenizer


def brute_force(double, context, completion, protocol):
    """log p of a completion after a context, one text at a time: its tokens are those that the context has not."""
    model, tokenizer = double
    bos = tokenizer.token_to_id("<s>")
    before = tokenizer.encode(context, add_special_tokens=False).ids if context else []
    whole = f"{context} {completion}" if context else completion
    ids = [bos, *tokenizer.encode(whole, add_special_tokens=False).ids]
    with torch.no_grad():
        log_p = model(torch.tensor([ids]))[0][0].log_softmax(dim=-1)
    places = range(1 + len(before), len(ids))
    return sum(log_p[t - 1, ids[t]].item() for t in places), len(places)


def entity(random, numops, n=5):
    record = {"input_prefix": text(random, 30) + " ", "numops": numops}
    return record | {"options": [text(random, 4) + "." for _ in range(n)]}


def comps(random):
    prefixes = {"prefix_acceptable": text(random, 3), "prefix_unacceptable": text(random, 3)}
    return prefixes | {"property_phrase": text(random, 4)}


def piqa(random, n=4):
    solutions = {f"solution{i}": text(random, 2 + i) for i in range(n)}
    return solutions | {"prompt": text(random, 6), "label": int(random.integers(n)), "example_id": "x"}


def wug(random):
    return {"sentences": f"{text(random, 5)}\t{text(random, 5)}", "ratio": float(random.random())}


FOLDERS = {  # folder: its files, as the organisers name them, and a record
    "entity": ({"regular": 12, "ambiref": 12}, lambda random: entity(random, int(random.integers(3)))),
    "comps": ({"comps_base": 8, "comps_wugs": 8, "comps_wugs_dist-before": 8}, comps),
    "piqa": ({"global_piqa_parallel": 9}, piqa),
    "wug": ({"wug_past_tense": 15}, wug),
}


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("protocol", ["2025", "2026"])
def test_options_are_scored_as_by_brute_force(double, random, name, protocol):
    files, record = FOLDERS[name]
    folder = Path(f"my_{name}")
    folder.mkdir()
    for file, n in files.items():
        (folder / f"{file}.jsonl").write_text(jsonl([record(random) for _ in range(n)]))
    subtasks = benchmarks.read_benchmark(str(folder), protocol)
    for subtask in subtasks.values():
        rows = evaluate.score_subtask(*double, subtask, protocol)
        for row, item in zip(rows, subtask.records, strict=True):
            scores = []
            for context, completion in item["options"]:
                score, tokens = brute_force(double, context, completion, protocol)
                scores.append(score / tokens if name == "piqa" else score)
            assert row.get("scores", [row["good"], row["bad"]]) == pytest.approx(scores, rel=1e-9)
            right = max(scores) == scores[item["right"]]
            assert name == "wug" or benchmarks.credit(row, protocol) == right


def test_subtasks_are_those_of_the_organisers(random, tmp_path):
    """Entity tracking: the mean over operations, then over files. In 2026 items with "nothing" are left out."""
    Path(tmp_path, "regular.jsonl").write_text(jsonl([entity(random, 0), entity(random, 5)]))
    item = entity(random, 0)
    item["options"] = ["nothing.", *"abcd"]
    Path(tmp_path, "ambiref.jsonl").write_text(jsonl([item, entity(random, 1)]))
    old, new = (benchmarks.read_benchmark(str(tmp_path), year) for year in ("2025", "2026"))
    assert set(old) == {"regular_0_ops", "regular_5_ops", "ambiref_0_ops", "ambiref_1_ops"}
    assert "ambiref_0_ops" not in new
    assert benchmarks.summary(old, {uid: [{"good": 0, "bad": -1}] for uid in old})["chance"] == pytest.approx(
        20
    )


def test_a_tie_counts_one_of_k_in_2026():
    five = {"good": -1.0, "bad": -1.0, "scores": [-1.0, -2.0, -1.0, -1.0, -3.0]}
    assert [benchmarks.credit(five, year) for year in ("2024", "2025", "2026")] == [1, 1, 1 / 3]
    assert benchmarks.credit({"good": -1.0, "bad": -1.0}, "2026") == 0.5
    assert benchmarks.credit({"good": -2.0, "bad": -1.0}, "2026") == 0


@pytest.mark.parametrize("protocol", ["2025", "2026"])
@pytest.mark.parametrize("folder", ["mine", "my/ewok_fast"])
def test_ewok_is_read_by_context_in_2026(double, random, protocol, folder):
    names = ("Context1", "Context2", "Target1", "Target2")
    items = [{name: text(random, 5) for name in names} | {"Domain": "d"} for _ in range(6)]
    Path(folder).mkdir(parents=True)
    Path(folder, "d.jsonl").write_text(jsonl(items))
    rows = iter(evaluate.score_subtask(*double, benchmarks.read_benchmark(folder)["d"], protocol))
    for item in items:
        for own, other in [(1, 2), (2, 1)][: 1 if folder == "my/ewok_fast" else 2]:
            row, score = next(rows), {}
            for context, target in [(own, own), (own, other), (other, own)]:
                texts = item[f"Context{context}"], item[f"Target{target}"]
                score[context, target] = brute_force(double, *texts, protocol)[0]
            expected = [score[own, own], score[own, other], score[other, own]]
            if protocol == "2026":
                expected[1:] = reversed(expected[1:])
            assert [row["good"], row["bad"], row["other"]] == pytest.approx(expected, rel=1e-9)
    assert not list(rows)


def test_nan_is_refused_in_every_year(double):
    model, tokenizer = double
    with torch.no_grad():
        model.embed.weight.fill_(math.nan)
    Path("pairs.jsonl").write_text(jsonl([{"sentence_good": "A dog.", "sentence_bad": "Dog a."}]))
    (subtask,) = benchmarks.read_benchmark("pairs.jsonl").values()
    for protocol in ("2024", "2025", "2026"):
        with pytest.raises(evaluate.UserError, match="NaN"):
            evaluate.score_subtask(model, tokenizer, subtask, protocol)


def test_the_mean_of_the_year_counts_or_names_what_is_missing():
    found = {"blimp_filtered": {"score": 70.0}, "supplement": {"score": 50.0}, "reading": {"score": 9.0}}
    assert evaluate.aggregate({"protocol": "2024", "benchmarks": found}) == (60, ["ewok_filtered", "glue"])
    score, missing = evaluate.aggregate({"protocol": "2026", "benchmarks": found})
    assert score == pytest.approx(129 / 9) and len(missing) == 6
    assert evaluate.aggregate({"protocol": "2025", "benchmarks": found})[0] == (60 + 9) / 2
    found["glue"] = {"score": 70.0, "subtasks": dict.fromkeys(("rte", "wsc")), "missing": ["boolq"] * 5}
    assert evaluate.aggregate({"protocol": "2026", "benchmarks": found})[0] == pytest.approx((129 + 20) / 9)


def test_global_piqa_has_two_halves_whatever_its_files_are_called(tmp_path, random, refusal):
    for name in ("parallel_eng_latn", "nonparallel_eng_latn"):
        (tmp_path / f"{name}.jsonl").write_text(jsonl([piqa(random)]))
    assert set(benchmarks.read_benchmark(str(tmp_path), "2026")) == {"parallel", "nonparallel"}
    (tmp_path / "eng_latn.jsonl").write_text(jsonl([piqa(random)]))
    assert "'eng_latn' names neither parallel nor" in refusal(benchmarks.read_benchmark, str(tmp_path), "2026")


# ----------------------------------------------------------------------------------------------------
# Reading


def least_squares(y, predictors):
    """R2 by the normal equations, in long doubles."""
    x = np.stack([np.ones(len(y)), *predictors], axis=1).astype(np.longdouble)
    x /= np.abs(x).max(axis=0)
    a, b = x.T @ x, x.T @ y
    for k in range(len(a)):  # Gauss
        pivot = k + np.argmax(np.abs(a[k:, k]))
        a[[k, pivot]], b[[k, pivot]] = a[[pivot, k]], b[[pivot, k]]
        for row in range(k + 1, len(a)):
            factor = a[row, k] / a[k, k]
            a[row] -= factor * a[k]
            b[row] -= factor * b[k]
    solution = np.zeros(len(a), dtype=np.longdouble)
    for k in reversed(range(len(a))):
        solution[k] = (b[k] - a[k] @ solution) / a[k, k]
    rest = y - x @ solution
    return 1 - (rest @ rest) / ((y - y.mean()) @ (y - y.mean()))


def test_reading_scores_are_those_of_least_squares(random):
    records, rows = [], []
    for i in range(120):
        record = {name: float(random.gamma(4, 3)) for name in reading.NUMBERS}
        record |= {"word": random.choice(["way.", "of", "can't"]), "prev_word": "a" if i % 9 else ""}
        if i % 17 == 0:
            record["Subtlex_log10"] = None
        records.append(record | {"sent_id": str(i // 8), "item": "x", "prev_item": "", "i": i})
        surprisal = float(random.gamma(3, 2))
        before = float(random.gamma(3, 2)) if record["prev_word"] else None
        rows.append({"surprisal": surprisal, "own": surprisal / 2, "before": before, "before_own": before})
    found = reading.summarize(records, rows)
    expected = {"eye_tracking": [], "self_paced": []}
    for name in (*reading.EYES, reading.KEYS):
        used = ["Subtlex_log10", "length", "context_length"]
        merged = [record | row for record, row in zip(records, rows)]
        if name == reading.KEYS:
            used += ["prev_length", "before"]
        merged = [x for x in merged if all(x[key] is not None for key in [*used, name])]
        columns = [np.array([x[key] for x in merged]) for key in used]
        products = [columns[i] * columns[j] for i in range(len(used)) for j in range(i + 1, len(used))]
        y, surprisal = (np.array([x[key] for x in merged]) for key in (name, "surprisal"))
        without = least_squares(y, columns + products)
        with_it = least_squares(y, [*columns, *products, surprisal])
        kind = "self_paced" if name == reading.KEYS else "eye_tracking"
        expected[kind].append(float(100 * (with_it - without) / (1 - without)))
    for kind, scores in expected.items():
        assert found["subtasks"][kind]["score"] == pytest.approx(np.mean(scores), rel=1e-8)
    assert found["score"] == pytest.approx(np.mean([x["score"] for x in found["subtasks"].values()]))
    kept = [i for i, record in enumerate(records) if record["word"] != "way."]
    fewer = reading.summarize([records[i] for i in kept], [rows[i] for i in kept])
    title = "without words that carry punctuation, eye_tracking"
    assert found["readings"][title] == pytest.approx(fewer["subtasks"]["eye_tracking"]["score"])


def test_surprisal_by_the_organisers_tokens_and_by_the_words_own(double):
    """By hand, piece by piece: their later pieces are encoded as words of their own, after what came before."""
    model, tokenizer = double
    record = {"item": "the old", "word": "boxes.", "prev_item": "the", "prev_word": "old", "i": 0}
    subtask = benchmarks.Subtask("reading", "", [record], "")
    ((row),) = evaluate.score_words(model, tokenizer, subtask)
    tokens = tokenizer.encode("boxes.", add_special_tokens=False).ids
    assert len(tokens) > 1
    total, before = 0.0, "the old"
    for number, token in enumerate(tokens):
        piece = tokenizer.decode([token]).lstrip(" ")
        asked = tokenizer.encode(piece if number else "boxes.", add_special_tokens=False).ids[0]
        ids = [tokenizer.token_to_id("<s>"), *tokenizer.encode(before, add_special_tokens=False).ids]
        with torch.no_grad():
            total -= model(torch.tensor([ids]))[0][0, -1].log_softmax(dim=-1)[asked].item()
        before += piece
    assert row["surprisal"] == pytest.approx(total, rel=1e-9)
    assert row["own"] == pytest.approx(-brute_force(double, "the old", "boxes.", "2025")[0], rel=1e-9)
    assert row["before_own"] == pytest.approx(-brute_force(double, "the", "old", "2025")[0], rel=1e-9)


def test_one_bit_of_punctuation_explains_reading_times(real_data):
    """12.02 and 3.51, more than any published model explains."""
    path = real_data("babylm_eval/reading/reading_data.csv.gz")
    records = reading.read_words(gzip.open(path, "rt", encoding="utf-8").read(), str(path))
    rows = [{"surprisal": len(x["word"]), "own": 1.0, "before": 1.0, "before_own": 1.0} for x in records]
    found = reading.summarize(records, rows)["readings"]
    title = "in place of a model: carries punctuation, "
    assert [round(found[title + kind], 2) for kind in ("eye_tracking", "self_paced")] == [12.02, 3.51]


# ----------------------------------------------------------------------------------------------------
# Mistakes


BROKEN = {  # what is wrong: lines of a file, and a part of what is said
    "no numops": ([{"input_prefix": "a ", "options": ["b", "c"]}], "numops"),
    "no options": ([{"input_prefix": "a ", "numops": 1}], "no field 'options'"),
    "options that are null": ([{"input_prefix": "a ", "options": None, "numops": 0}], "is not a list"),
    "one option": ([{"input_prefix": "a ", "options": ["b"], "numops": 1}], "two or more"),
    "no space": ([{"input_prefix": "a", "options": ["b", "c"], "numops": 1}], "space"),
    "no phrase": ([{"prefix_acceptable": "a", "prefix_unacceptable": "b"}], "property_phrase"),
    "no label": ([{"prompt": "a", "solution0": "b", "solution1": "c"}], "label"),
    "a label too high": ([{"prompt": "a", "solution0": "b", "solution1": "c", "label": 2}], "label = 2"),
    "a label that is text": ([{"prompt": "a", "solution0": "b", "solution1": "c", "label": "0"}], "label"),
    "one sentence": ([{"sentences": "a", "ratio": 0.5}], "two sentences"),
    "no ratio": ([{"sentences": "a\tb"}], "ratio"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_record_is_named_by_file_and_line(tmp_path, what):
    lines, said = BROKEN[what]
    path = tmp_path / "my.jsonl"
    path.write_text("\n" + jsonl(lines))
    with pytest.raises(benchmarks.UserError, match=f"my.jsonl:2: .*{said}"):
        benchmarks.read_benchmark(str(path), "2026")


def test_five_options_and_then_four_are_refused(tmp_path, random):
    path = tmp_path / "regular.jsonl"
    path.write_text(jsonl([entity(random, 0), entity(random, 1, n=4)]))
    with pytest.raises(benchmarks.UserError, match=r"regular.jsonl:2: 4 options, where the first line has 5"):
        benchmarks.read_benchmark(str(path), "2025")


def test_a_cut_reading_file_is_named(tmp_path):
    names = [*reading.NUMBERS, *reading.TEXTS]
    with open(tmp_path / "reading_data.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerows([names, [1.0] * len(names), [1.0] * 5])
    with pytest.raises(benchmarks.UserError, match=r"reading_data.csv:3: .*too few columns"):
        benchmarks.read_benchmark(str(tmp_path / "reading_data.csv"), "2026")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(benchmarks.UserError, match=r"other.csv: no columns RTfirstfix"):
        benchmarks.read_benchmark(str(tmp_path / "other.csv"), "2026")


@pytest.mark.parametrize(("task", "year"), [("wug_adj", "2026"), ("comps", "2024"), ("global_piqa", "2025")])
def test_a_task_of_another_year_is_refused(task, year):
    with pytest.raises(benchmarks.UserError, match=f"tasks: {task} is no task of {year}, but of "):
        evaluate.Settings(tasks=task, protocol=year).check()


def test_sizes_of_the_real_files(real_data, monkeypatch):
    """Those of the organisers' table, by number of operations, with and without the filter of 2026."""
    monkeypatch.setenv("NANORNN_DATA", str(real_data("babylm_eval/entity_tracking.zip").parent.parent))
    sizes = {"2025": 9483, "2026": 6780}
    for year, expected in sizes.items():
        subtasks = benchmarks.read_benchmark("entity_tracking", year)
        assert (len(subtasks), sum(len(x.records) for x in subtasks.values())) == (18, expected)
    each = [517, 409, 405, 425, 388, 94]
    assert [len(subtasks[f"regular_{n}_ops"].records) for n in range(6)] == each
    assert len(benchmarks.read_benchmark("wug_adj", "2025")["wug_adj_nominalization"].records) == 200
