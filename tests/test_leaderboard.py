"""Runs side by side: each is scored once, and they are compared with the first one pair by pair."""

import csv
import json
import re
import shutil
from pathlib import Path

import evaluate
from support.files import save
from tools import leaderboard

import pytest
import torch
from test_evaluate import jsonl, lines_of, minimal_pairs, score, write_pairs


@pytest.fixture
def pairs(workplace):
    return write_pairs("pairs")


def test_runs_stand_side_by_side_with_the_papers(pairs, capsys):
    """Each is scored once; the mean is the paper's, of three benchmarks, where all are there."""
    for name, scores_of in (("one", (70, 60, 40)), ("two", (80, 60, 50))):
        shutil.copytree("out/tiny", f"out/{name}")
        results = score(run=f"out/{name}")
        for task, value in zip(leaderboard.ZERO_SHOT, scores_of):
            results["benchmarks"][task] = {"score": value, "interval": 1.0}
        Path(f"out/{name}/results.json").write_text(json.dumps(results))
    before = [Path(f"out/{name}/results.json").read_bytes() for name in ("one", "two")]
    Path("out/leaderboard.svg").touch()
    capsys.readouterr()
    rows = evaluate.script(["out/leaderboard.svg", "out/one", "out/two", "--results=results/board.json"])
    printed = capsys.readouterr().out
    assert printed.startswith("left out, for there is no checkpoint.pt in them: out/leaderboard.svg\n")
    assert [Path(f"out/{name}/results.json").read_bytes() for name in ("one", "two")] == before
    found = {row["name"]: row["benchmarks"] for row in rows}
    assert found["one"]["zero-shot"] == pytest.approx(170 / 3)
    paper = found["BabyHGRN 1B, Pile 10M, distilled"]
    assert paper["blimp_filtered"] == 72.1 and paper["zero-shot"] == pytest.approx((72.1 + 58.6 + 51.3) / 3)
    lines = [line for line in printed.splitlines() if "(paper)" in line or line.startswith(("one", "two"))]
    assert [line.split()[0] for line in lines[:2]] == ["two", "one"]  # the best of ours is first
    assert len([line for line in lines if "(paper)" in line]) == 14
    assert rows == json.loads(Path("results/board.json").read_text())
    assert Path("out/leaderboard.svg").stat().st_size
    assert len(evaluate.script(["out/one", "out/two", "--protocol=2025", "--tasks=pairs"])) == 2  # no paper's


def test_the_macro_score_is_over_four_benchmarks_and_partial_training_is_marked(pairs, capsys):
    """With GLUE there is the challenge's own mean, for the paper's rows too; GLUE is not compared pair by pair."""
    partial = {"rows": 1933, "of": 9427}
    subtasks = {"rte": {"score": 60.0}, "boolq": {"score": 64.0, "partial": partial}}
    glue = {"score": 62.0, "interval": 2.0, "subtasks": subtasks, "missing": ["wsc"], "partial": True}
    for name in ("one", "two"):
        shutil.copytree("out/tiny", f"out/{name}")
        results = score(run=f"out/{name}")
        for task in leaderboard.ZERO_SHOT:
            results["benchmarks"][task] = {"score": 50.0, "interval": 2.0, "subtasks": {}}
        results["benchmarks"]["glue"] = glue
        Path(f"out/{name}/results.json").write_text(json.dumps(results))
    capsys.readouterr()
    one, two, *paper = evaluate.script(["out/one", "out/two"])
    said = capsys.readouterr().out
    assert one["benchmarks"]["macro"] == 53 and one["intervals"]["macro"] == 1
    assert "62.0 ± 2.0*" in said and "53.0 ± 1.0*" in said and "glue" not in two["differences"]
    assert "\n* one: glue without wsc; boolq trained on 1,933 of 9,427 rows\n" in said
    assert "glue: " not in said
    (row,) = (row for row in paper if row["name"] == "BabyHGRN 1B, Pile 10M, distilled")
    assert row["benchmarks"]["macro"] == pytest.approx(61.95)


def test_runs_are_compared_pair_by_pair_and_what_is_unlike_is_said(pairs, capsys):
    """Perplexity, steps, tokens, scores with intervals, differences: on the screen and as CSV."""
    shutil.copytree("out/tiny", "out/two")
    state = torch.load("out/two/best.pt", weights_only=True) | {"step": 10}
    state["model"]["head.weight"] *= -1
    save(state, "out/two/checkpoint.pt")
    rows = evaluate.script(["out/tiny", "out/two", "--tasks=pairs"])
    said = capsys.readouterr().out
    assert "not trained alike: tiny 30 steps, 7,680 tokens; two 10 steps, 2,560 tokens\n" in said
    one, two = (
        {(x["uid"], x["i"]): x["good"] >= x["bad"] for x in lines_of(f"out/{name}/pairs_pairs.jsonl")}
        for name in ("tiny", "two")
    )
    change = [two[pair] - one[pair] for pair in one]
    difference = rows[1]["differences"]["pairs"]
    assert difference["mean"] == pytest.approx(100 * sum(change) / 36)  # three subtasks of twelve
    shown = f"{difference['mean']:+.1f} ± {difference['interval']:.1f}\n"
    assert difference["mean"] and re.search(rf"two less tiny, pair by pair +{re.escape(shown)}", said)
    table = list(csv.DictReader(open("out/leaderboard.csv", encoding="utf-8", newline="")))
    assert table[0]["steps"] == "30" and float(table[0]["perplexity"]) == rows[0]["perplexity"]
    assert float(table[1]["pairs_difference_interval"]) == difference["interval"] > 0
    assert float(table[1]["pairs"]) == rows[1]["benchmarks"]["pairs"]
    Path("pairs/twice.jsonl").write_text(jsonl(minimal_pairs(seed=9)["twice"]))
    score(run="out/two")
    assert evaluate.script(["out/tiny", "out/two"])[1]["differences"] == {}
    assert "pairs: out/tiny and out/two have no scores of the same pairs" in capsys.readouterr().out


def test_perplexities_on_different_texts_are_said_not_to_compare(capsys):
    rows = [dict(name=x, corpus=x, steps=9, tokens=9, perplexity=2.0) for x in ("toy", "english")]
    leaderboard.say_what_differs(rows)
    assert capsys.readouterr().out == "perplexities on different texts cannot be compared: english, toy\n"
    leaderboard.say_what_differs([rows[0], rows[1] | {"perplexity": None}, {"name": "x", "paper": True}])
    assert capsys.readouterr().out == ""


def test_a_paired_difference_by_hand():
    """
    Four pairs, won, lost, as before, as before: 0, with (1 + 1 + 1) / 6 for the variance, as one more is won and
    one more lost: 196 sqrt(0.5 / 6) = 56.58. With one of two pairs won, 50 +- 196 sqrt((1 + 1) / 4 -
    (1 / 4)^2) / 2 = 64.82. Of the mean of both: sqrt(56.58^2 + 64.82^2) / 2 = 43.02; over all six pairs: 1 / 6.
    """
    before = {("a", i): x for i, x in enumerate([0, 1, 1, 0])} | {("b", 0): 0, ("b", 1): 1}
    after = {("a", i): x for i, x in enumerate([1, 0, 1, 0])} | {("b", 0): 1, ("b", 1): 1}
    found = leaderboard.paired_difference(before, after, over_all=False)
    assert (found["mean"], found["interval"]) == (25, pytest.approx(43.02, abs=0.01))
    assert leaderboard.paired_difference(before, after, over_all=True)["mean"] == pytest.approx(100 / 6)


def test_what_is_not_scored_yet_is_scored(pairs):
    shutil.copytree("out/tiny", "out/two")
    rows = evaluate.script(["out/tiny", "out/two/best.pt", "--tasks=pairs"])
    assert [row["name"] for row in rows] == ["tiny", "two/best"]
    assert Path("out/two/best_pairs_pairs.jsonl").exists()
    score(run="out/two")
    shutil.copytree("pairs", "more")
    Path("out/two/pairs_pairs.jsonl").unlink()
    row, _ = evaluate.script(["out/two", "out/tiny", "--tasks=pairs,more"])
    assert set(row["benchmarks"]) == {"pairs", "more"}
    assert not Path("out/two/pairs_pairs.jsonl").exists() and Path("out/two/pairs_more.jsonl").exists()


@pytest.mark.parametrize("content", [b"", b"\xff" * 999])
def test_a_damaged_run_among_several_is_named(pairs, refusal, capsys, content):
    Path("out/bad").mkdir()
    Path("out/bad/checkpoint.pt").write_bytes(content)
    said = refusal(evaluate.script, ["out/bad", "out/tiny", "out/none", "--tasks=pairs"])
    assert "out/bad/checkpoint.pt is damaged" in said and "out/bad: no intact checkpoint here" in said
