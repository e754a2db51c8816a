"""
Several runs side by side: what `python evaluate.py out/a out/b` does.

Prints each run's size, training, perplexity and scores with their 95 % intervals, then the rows of
BabyHGRN's paper, then how much each run differs from the first one, pair by pair. Also writes
leaderboard.csv and draws leaderboard.svg, in the folder that holds the first run.
"""

import csv
import json
import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import evaluate
from corpora.benchmarks import BENCHMARKS, credit
from evaluate import ZERO_SHOT
from support.files import can_write, replacing, write_json
from support.processes import from_first
from support.settings import UserError
from tools.figures import draw_leaderboard, paper_rows

MEANS = {"zero-shot": ZERO_SHOT, "macro": (*ZERO_SHOT, "glue")}  # the challenge of 2024 ranked by the second


def compare(words, s):
    """Print, write and draw the table -> its rows. What has not been scored yet is scored first."""
    s.check()
    runs = find_runs(words)
    results = {name: evaluate.known_or_made(replace(s, run=str(runs[name]), results="")) for name in runs}
    rows = [row_of(name, results[name]) for name in runs]
    first, *others = runs
    for row, name in zip(rows[1:], others):
        row["differences"] = differences(runs[first], results[first], runs[name], results[name])
    scored = {task for row in rows for task in row["benchmarks"]}
    columns = [task for task in BENCHMARKS if task in scored] + sorted(scored - set(BENCHMARKS))
    rows += paper_rows(columns, s.protocol)
    for mean, tasks in MEANS.items():
        if scored.issuperset(tasks):
            columns.append(mean)
            add_mean(rows, mean, tasks)
    print_rows(rows, columns, first)
    say_what_differs(rows)
    from_first(lambda: save(rows, columns, runs[first].parent))
    if s.results:
        from_first(lambda: write_json(s.results, rows))
    return rows


def find_runs(words):
    """{name: run folder or checkpoint} of the words that name one; the others are printed."""
    runs, others = {}, []
    for word in words:
        path = Path(word)
        checkpoint = evaluate.checkpoint_of(path)
        if word in BENCHMARKS and not path.exists():
            raise UserError(f"{word}: did you mean --tasks={word}?")
        if checkpoint.suffix != ".pt" or not checkpoint.is_file():
            others.append(word)
            continue
        name = path.name if path.is_dir() else f"{path.parent.name}/{path.stem}"
        runs[str(path) if name in runs else name] = path
    if not runs:
        raise UserError("no runs among these")
    if others:
        print(f"left out, for there is no checkpoint.pt in them: {', '.join(others)}")
    return runs


def row_of(name, results):
    """A run's row of the table: what it is, its scores and their intervals."""
    row = {"name": name, "corpus": results["settings"]["corpus"]}
    row |= {key: results.get(key) for key in ("parameters", "steps", "tokens", "perplexity")}
    for what, key in (("benchmarks", "score"), ("intervals", "interval")):
        row[what] = {task: x[key] for task, x in results["benchmarks"].items() if key in x}
    glue = results["benchmarks"].get("glue", {})
    if glue.get("partial"):
        row["partial"] = gaps_of(glue)
    return row


def gaps_of(glue):
    """The tasks and training rows that finetune.py did without, in words."""
    gaps = []
    if glue["missing"]:
        gaps.append(f"without {', '.join(glue['missing'])}")
    for task, x in glue["subtasks"].items():
        if "partial" in x:
            gaps.append(f"{task} trained on {x['partial']['rows']:,} of {x['partial']['of']:,} rows")
    return "; ".join(gaps)


def add_mean(rows, mean, tasks):
    """Add the mean over these benchmarks to the rows that have them all."""
    for row in rows:
        scores, intervals = row["benchmarks"], row.get("intervals", {})
        if set(tasks) <= set(scores):
            scores[mean] = fmean(scores[task] for task in tasks)
        if set(tasks) <= set(intervals):
            intervals[mean] = math.hypot(*(intervals[task] for task in tasks)) / len(tasks)


# ----------------------------------------------------------------------------------------------------
# Pair by pair


def differences(run, results, other, other_results):
    """{task: {"mean": score of the run `other` less that of `run`, "interval": half its 95 % interval}}."""
    found = {}
    for task, result in results["benchmarks"].items():
        if task not in other_results["benchmarks"] or task == "glue" or "unit" in result:  # not verdicts on pairs
            continue
        result_of_other = other_results["benchmarks"][task]
        verdicts = read_verdicts(run, task, result, results["protocol"])
        verdicts_of_other = read_verdicts(other, task, result_of_other, other_results["protocol"])
        records = {result.get("records"), result_of_other.get("records")} - {None}  # of an earlier version
        alike = verdicts and verdicts_of_other and verdicts.keys() == verdicts_of_other.keys()
        if alike and len(records) < 2:
            found[task] = paired_difference(verdicts, verdicts_of_other, "templates" in result)
        else:
            print(f"{task}: {run} and {other} have no scores of the same pairs; score both anew")
    return found


def read_verdicts(run, task, result, protocol):
    """
    {(subtask, line of the pair): share of its verdicts that are right}, from pairs_TASK.jsonl; None if the file is
    not there, or not what the result was made from.
    """
    path = evaluate.beside(evaluate.checkpoint_of(run), f"pairs_{task}.jsonl")
    right = defaultdict(list)
    try:
        with open(path, encoding="utf-8") as file:
            for row in map(json.loads, file):
                right[row["uid"], row["i"]].append(credit(row, protocol))
        verdicts = {pair: fmean(values) for pair, values in right.items()}
        for uid, shares in by_subtask(verdicts).items():
            if not math.isclose(100 * fmean(shares), result["subtasks"][uid]["score"], abs_tol=1e-6):
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return verdicts


def by_subtask(values):
    """{(subtask, line): number} -> {subtask: [number, ...]}."""
    groups = defaultdict(list)
    for (uid, _), value in values.items():
        groups[uid].append(value)
    return groups


def paired_difference(verdicts, others, over_all):
    """
    The mean of others - verdicts, over subtasks or `over_all` pairs, and half the width of its 95 % interval, in
    per cent, which counts one pair more won and one more lost in each subtask (Agresti & Min 2005).
    """
    change = {pair: others[pair] - share for pair, share in verdicts.items()}
    groups = [list(change.values())] if over_all else list(by_subtask(change).values())
    variance = 0.0
    for values in groups:
        n = len(values) + 2
        squares = sum(x * x for x in values) + 1
        variance += (squares / n - (sum(values) / n) ** 2) / n
    difference = 100 * fmean(fmean(values) for values in groups)
    return {"mean": difference, "interval": 196 * math.sqrt(variance) / len(groups)}


# ----------------------------------------------------------------------------------------------------
# The table


def print_rows(rows, columns, first):
    """Print ours, then the paper's, each sorted by the last column, then the one before; then differences."""
    table = [["per cent correct", "parameters", "steps", "tokens read", "perplexity", *columns]]
    rows = sorted(rows, key=lambda row: [-row["benchmarks"].get(task, 0) for task in reversed(columns)])
    for row in sorted(rows, key=lambda row: row.get("paper", False)):
        name = f"{row['name']} (paper)" if row.get("paper") else row["name"]
        about = [f"{row[x]:,}" if row.get(x) else "" for x in ("parameters", "steps", "tokens")]
        about += [f"{row['perplexity']:.2f}" if row.get("perplexity") else ""]
        table.append([name, *about, *(score_text(row, task) for task in columns)])
    for row in rows:
        if row.get("differences"):
            cells = [difference_text(row["differences"].get(task)) for task in columns]
            table.append([f"{row['name']} less {first}, pair by pair", "", "", "", "", *cells])
    widths = [max(map(len, column)) for column in zip(*table)]
    for name, *cells in table:
        cells = [cell.rjust(width) for cell, width in zip(cells, widths[1:])]
        print("  ".join([name.ljust(widths[0]), *cells]).rstrip())
    for row in rows:
        if "partial" in row:
            print(f"* {row['name']}: glue {row['partial']}")


def score_text(row, task):
    if task not in row["benchmarks"]:
        return ""
    score, interval = row["benchmarks"][task], row.get("intervals", {}).get(task)
    mark = "*" if "partial" in row and task in ("glue", "macro") else ""
    return f"{score:.1f}{mark}" if interval is None else f"{score:.1f} ± {interval:.1f}{mark}"


def difference_text(difference):
    return f"{difference['mean']:+.1f} ± {difference['interval']:.1f}" if difference else ""


def say_what_differs(rows):
    """Print what keeps the runs from being compared: different training, different validation texts."""
    ours = [row for row in rows if not row.get("paper")]
    trained = [row for row in ours if row["steps"]]
    if len({(row["steps"], row["tokens"]) for row in trained}) > 1:
        each = [f"{row['name']} {row['steps']:,} steps, {row['tokens']:,} tokens" for row in trained]
        print(f"not trained alike: {'; '.join(each)}")
    corpora = sorted({row["corpus"] for row in ours if row["perplexity"]})
    if len(corpora) > 1:
        print(f"perplexities on different texts cannot be compared: {', '.join(corpora)}")


def save(rows, columns, folder):
    """Write leaderboard.csv and draw leaderboard.svg in a folder, if files can be written there."""
    if not can_write(folder):
        print(f"not written: {folder}/leaderboard.csv and .svg, for this folder is read-only")
        return
    with replacing(folder / "leaderboard.csv") as file:
        write_csv(file, rows, columns)
    print(f"written: {folder / 'leaderboard.csv'}")
    if columns:
        print(f"drawn: {draw_leaderboard(rows, columns, folder / 'leaderboard.svg')}")


def write_csv(file, rows, columns):
    """Write the rows, with score, difference from the first run and their intervals for each benchmark."""
    about = ["name", "paper", "corpus", "parameters", "steps", "tokens", "perplexity"]
    parts = ["", "_interval", "_difference", "_difference_interval"]
    table = csv.writer(file, lineterminator="\n")
    table.writerow(about + [task + part for task in columns for part in parts])
    for row in rows:
        cells = [row.get(key, "") for key in about]
        for task in columns:
            difference = row.get("differences", {}).get(task, {})
            cells += [row["benchmarks"].get(task), row.get("intervals", {}).get(task)]
            cells += [difference.get("mean"), difference.get("interval")]
        table.writerow(cells)
