"""
All pictures, drawn from the files that runs, evaluations and benchmarks write, and put beside them.

    python -m tools.figures out/toy           the learning curve of a run, as train.py draws it
    python -m tools.figures results/toy.json  a result file of evaluate.py, compare.py or
                                              tools/bench.py

    python -m tools.figures memory out/toy              how long each channel of a run remembers
    python -m tools.figures gates out/toy --text="..."  what each channel forgets at each word
    python -m tools.figures retention out/a out/b       what each word still depends on, for any mixer
    python -m tools.figures phenomena out/a out/b       which models fail at which phenomena
"""

import json
import math
import os
import re
import sys
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

if not __package__:  # `python tools/figures.py` would look for our modules beside it
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from support.console import run_script
from support.run import macro_score, read_log, runs_at_best_rate
from support.settings import UserError, configure, reason
from tools.figures_bench import draw_benches
from tools.figures_style import COLORS, DOTTED, WIDTH, draw_heat, keep, label, line_styles, plt

PAPERS = Path(__file__).parents[1] / "results" / "papers.json"  # the rows of the paper's tables
CORRECT = "right sentence preferred (%)"  # of the two in a minimal pair
MEANS = {"zero-shot": "zero-shot mean", "macro": "macro average"}  # over several benchmarks
# How the names begin of benchmarks in which chance is not 50
NOT_PAIRS = ("bear", "toyland_bear", "entity_tracking", "global_piqa", "glue", "macro", "reading", "wug")


def learning_curve(folder):
    """Draw the log of a run folder: losses, scores, and what was learned when. Returns the picture's path."""
    folder = Path(folder)
    return draw(read_log(folder), {}, folder / "learning_curve.svg", folder.resolve().name)


def draw(log, terms, path, title):
    """
    Draw records of log.jsonl: losses and accuracies on the left, on the right a heat map for each benchmark.
    terms: {paradigm: phenomenon}, as far as known. Returns the path.
    """
    scored = [record for record in log if record.get("pairs") or record.get("accuracy")]
    tables = accuracies(scored, terms)
    lines = sum(len(rows) for rows in tables.values())
    curves = 2 if scored else 1
    height = max(3.4 * curves, 0.2 * lines + 0.8 * len(tables))
    figure = left = plt.figure(figsize=(WIDTH if tables else WIDTH / 2, height))
    if tables:
        left, right = figure.subfigures(1, 2, width_ratios=[4, 6])
        draw_tables(right, tables, [record["step"] for record in scored])
    places = max(curves, round(height / 4.5))  # beside long heat maps, those below stay empty
    axes = left.subplots(places, squeeze=False)[:, 0]
    draw_losses(axes[0], log, title)
    if scored:
        draw_accuracy(axes[1], scored)
    for axis in axes[curves:]:
        axis.remove()
    return keep(figure, path)


def draw_losses(axis, log, title):
    """
    Draw training and validation loss over steps; of a distilled model the cross-entropy alone. What is above the
    highest validation loss after step 0 is left out of view: beside an untrained model's the rest would be flat.
    """
    training = "ce" if any("ce" in record for record in log) else "loss"
    thin, bold = {"linewidth": 0.8, "alpha": 0.6}, {"linewidth": 2, "marker": "o"}
    for name, words, style in (training, "training", thin), ("val_loss", "validation", bold):
        points = [(record["step"], record[name]) for record in log if name in record]
        if points:
            axis.plot(*zip(*points), label=f"{words}, {points[-1][1]:.3f} at the end", **style)
            axis.legend(frameon=True, edgecolor="none")
    losses = [record["val_loss"] for record in log if "val_loss" in record and record["step"]]
    low = min((min(line.get_ydata()) for line in axis.lines), default=0)
    if losses and math.isfinite(low + max(losses)):
        axis.set_ylim(0.99 * low, 1.01 * max(losses))
    epochs = [record["step"] / record["epoch"] for record in log if record["epoch"]]
    axis.set_xlabel(f"step ({epochs[0]:,.0f} are one pass over the text)" if epochs else "step")
    axis.set_title(f"{label(title)}: loss per token (nats)")
    axis.grid()


def draw_accuracy(axis, records):
    """Draw accuracies over steps: of answers, or of minimal pairs with their macro average and its best."""
    steps = [record["step"] for record in records]
    curves = defaultdict(list)
    for record in records:
        for name, score in record.get("accuracy", {}).items():
            curves[name].append(score)
        for task, result in record.get("pairs", {}).items():
            curves[task].append(result["score"])
    for name, scores in curves.items():
        axis.plot(steps, scores, marker="o", label=f"{label(name)}: {scores[-1]:.1f}")
    axis.set(title="correct answers (%)", xlabel="step")
    if "pairs" in records[0]:
        macro = [macro_score(record["pairs"]) for record in records]
        if len(curves) > 1:
            axis.plot(steps, macro, linewidth=2, color="black", label=f"macro average: {macro[-1]:.1f}")
        best = macro.index(max(macro))
        style = {"markersize": 14, "color": "black", "zorder": 3}
        words = f"best: {macro[best]:.1f} at step {steps[best]:,}"
        axis.plot(steps[best], macro[best], "*", label=words, **style)
        if not any(task.startswith(NOT_PAIRS) for task in records[0]["pairs"]):
            axis.axhline(50, label="chance", **DOTTED)
        axis.set_title(CORRECT)
    axis.grid()
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": 2, "fontsize": 8}
    axis.legend(handles=axis.lines, **below)  # named, or one whose label begins with _ would be left out


def accuracies(records, terms):
    """{benchmark: {paradigm or phenomenon: [accuracy in each record]}} of records with minimal pairs."""
    tables = {}
    for task in records[0].get("pairs", ()) if records else ():
        evaluations = [record["pairs"][task]["subtasks"] for record in records]
        tables[task] = {}
        for name, group in grouped(evaluations[0], terms).items():
            tables[task][name] = [fmean(scores[uid] for uid in group) for scores in evaluations]
    return tables


def grouped(names, terms):
    """Paradigms -> {phenomenon: [paradigms]} if there are many and `terms` has all, else {paradigm: [itself]}."""
    many = len(names) > 30 and all(terms.get(name) for name in names)
    groups = defaultdict(list)
    for name in names:
        groups[terms[name] if many else name].append(name)
    return groups


def draw_tables(figure, tables, steps):
    """Draw a heat map per benchmark: a row per paradigm, a column per evaluation, the first learned on top."""
    heights = [len(rows) for rows in tables.values()]
    axes = figure.subplots(len(tables), height_ratios=heights, squeeze=False)[:, 0]
    legible = len(steps) <= 12
    every = math.ceil(len(steps) / 10)  # of which the step is written
    for axis, (task, rows) in zip(axes, tables.items()):
        names = sorted(rows, key=lambda name: -sum(rows[name]))
        labels = [label(name, 60) for name in names]
        draw_heat(axis, labels, [rows[name] for name in names], numbers=legible)
        axis.tick_params(axis="y", labelsize=8)
        axis.set_xticks(range(0, len(steps), every), steps[::every])
        axis.set_title(f"{label(task)}: {CORRECT}", loc="right")  # over the names too, which may be long
        axis.set_xlabel("step" if legible else "step; red is 0, yellow 50, blue 100")


def draw_benchmarks(benchmarks, terms, path, title):
    """Draw results of evaluate.py: a panel per benchmark, a bar and interval per phenomenon. Returns the path."""
    lines = math.ceil(len(benchmarks) / 2)
    groups = {task: grouped(result["subtasks"], terms) for task, result in benchmarks.items()}
    height = 0.7 + 0.2 * max(len(names) for names in groups.values())
    figure, axes = plt.subplots(lines, 2, figsize=(WIDTH, height * lines), squeeze=False)
    figure.suptitle(f"{label(title)} after training: correct answers (%) ± 95 %; dotted: chance")
    for axis, (task, result) in zip(axes.flat, benchmarks.items()):
        bars = []
        for name, group in groups[task].items():
            subtasks = [result["subtasks"][uid] for uid in group]
            score = fmean(x["score"] for x in subtasks)
            interval = math.hypot(*(x["interval"] for x in subtasks)) / len(group)
            bars.append((score, interval, label(name, 60)))
        scores, intervals, names = zip(*sorted(bars))
        axis.barh(range(len(names)), scores, xerr=intervals, color=COLORS["sky"])
        axis.set_yticks(range(len(names)), names, fontsize=8)
        if "chance" in result or not task.startswith(NOT_PAIRS):
            axis.axvline(result.get("chance", 50), **DOTTED)
        unit = result.get("unit", "% correct")
        axis.set(title=f"{label(task)}: {result['score']:.1f} {unit}", xlim=(min(0, *scores), 100))
    for axis in axes.flat[len(benchmarks) :]:
        axis.remove()
    return keep(figure, path)


# ----------------------------------------------------------------------------------------------------
# Several models


def draw_leaderboard(rows, columns, path):
    """
    Draw rows of tools/leaderboard.py: a panel per benchmark, a dot with its interval per row (the paper's gray).
    Benchmarks that only one row has are left out. Returns the path.
    """
    shown = [task for task in columns if sum(task in row["benchmarks"] for row in rows) > 1] or columns
    shared = [task for task in shown if all(task in row["benchmarks"] for row in rows)]
    rows = sorted(rows, key=lambda row: sum(row["benchmarks"][task] for task in shared))
    rows.sort(key=lambda row: not row.get("paper"))
    size = (max(WIDTH, 4 + 1.3 * len(shown)), 1.2 + 0.24 * len(rows))
    figure, axes = plt.subplots(1, len(shown), figsize=size, sharey=True, squeeze=False)
    pairs = []  # the panels where chance is 50, which get one scale
    for axis, task in zip(axes[0], shown):
        for place, row in enumerate(rows):
            if task in row["benchmarks"]:
                draw_score(axis, place, row, task)
        axis.set_title(label(MEANS.get(task, task), 20))
        axis.margins(x=0.35)
        axis.grid(axis="y")
        if not task.startswith(NOT_PAIRS):
            axis.axvline(50, **DOTTED)
            pairs.append(axis)
    for axis in pairs[1:]:
        axis.sharex(pairs[0])
    if pairs:
        pairs[0].autoscale_view()  # over all of them
    axes[0, 0].set_yticks(range(len(rows)), map(name_and_size, rows), fontsize=8)
    figure.suptitle("correct answers (%) of each model, ± 95 %; dotted: chance; M: million parameters")
    return keep(figure, path)


def draw_score(axis, place, row, task):
    """Draw a row's score as a dot, with its interval and number."""
    score, interval = row["benchmarks"][task], row.get("intervals", {}).get(task, 0)
    style = {"fmt": "s", "color": "gray"} if row.get("paper") else {"fmt": "o", "color": COLORS["vermilion"]}
    axis.errorbar(score, place, xerr=interval, **style)
    axis.text(score + interval, place, f"  {score:.1f}", va="center", fontsize=8)


def name_and_size(row):
    """The name of a row of a leaderboard, with the size of the model: "HGRN2 360M, Pile 10M (paper, 367M)"."""
    about = ["paper"] if row.get("paper") else []
    if row.get("parameters"):
        about.append(f"{row['parameters'] / 1e6:,.3g}M")
    name = label(row["name"], 40)
    return f"{name} ({', '.join(about)})" if about else name


def paper_rows(tasks, protocol="2024"):
    """The rows of the paper's tables that have one of these benchmarks; none for another protocol than theirs."""
    paper = json.loads(PAPERS.read_text(encoding="utf-8"))
    if protocol != paper["protocol"]:
        return []
    return [row | {"paper": True} for row in paper["rows"] if set(tasks) & set(row["benchmarks"])]


def draw_comparison(results, path):
    """
    Draw results of compare.py: each model's evaluations at its best learning rate, the best of these and, if there
    are any, differences to one model. Returns the path.
    """
    rows = {name: row for name, row in results["rows"].items() if row["best"]}
    panels = 3 if results.get("differences") else 2
    figure, axes = plt.subplots(1, panels, figsize=(WIDTH, max(4, 0.4 * len(rows))))
    styles = line_styles(rows)
    metric, form, title = "val_loss", ".3f", "validation loss (nats)"
    if results["tasks"]:
        metric, form, title = "macro", ".1f", CORRECT
    draw_epochs(axes[0], rows, styles, metric)
    axes[0].set_ylabel(title)
    best = {name: row["best"] for name, row in rows.items()}
    draw_dots(axes[1], best, styles, metric, form)
    axes[1].set_title("best of each model, ± 95 %")
    axes[1].set_xlabel(f"{title}\nin brackets: numbers in a model's state")
    if results.get("differences"):
        axes[2].sharey(axes[1])
        draw_differences(axes[2], results, styles)
    labels = [f"{label(name)} ({row['state']:,})" for name, row in rows.items()]
    axes[1].set_yticks(range(len(rows)), labels)
    axes[1].set_ylim(len(rows) - 0.5, -0.7)
    judge = label(", ".join(results["tasks"]), 40) or "validation loss"
    figure.suptitle(f"{label(results['comparison'])}: {len(rows)} models compared on {judge}")
    return keep(figure, path)


def draw_epochs(axis, rows, styles, metric):
    """Draw all evaluations at each model's best rate, means over seeds: scores over words or loss over steps."""
    counted = metric == "macro" and all(row.get("words") for row in rows.values())
    for name, row in rows.items():
        runs = [run["evaluations"] for run in runs_at_best_rate(row)]
        evaluations = list(zip(*runs))  # each with every seed
        if len(evaluations) > 1 and not evaluations[0][0]["step"]:
            del evaluations[0]  # an untrained model's, beside which all models look alike
        if counted:
            times = [records[0]["epoch"] * row["words"] / 1e6 for records in evaluations]
        else:
            times = [records[0]["step"] for records in evaluations]
        means = [fmean(record[metric] for record in records) for records in evaluations]
        axis.plot(times, means, **styles[name])
    axis.set_title("in training, marked as on the right")
    axis.set_xlabel("millions of words read" if counted else "step")
    axis.grid()


def draw_differences(axis, results, styles):
    """Draw how far the models are from the one named `against`, in the first benchmark or else in the loss."""
    metric, form, unit = "loss", "+.3f", "nats"
    if results["tasks"]:
        metric, form, unit = results["tasks"][0], "+.1f", "percentage points"
    found = {name: numbers[metric] for name, numbers in results["differences"].items() if numbers}
    draw_dots(axis, found, styles, "mean", form)
    axis.axvline(0, **DOTTED)
    axis.set(title=f"difference from {label(results['settings']['against'], 12)!r}, ± 95 %")
    axis.set_xlabel(f"{label(metric, 20)}\n{unit}")
    axis.tick_params(axis="y", length=0, labelleft=False)


def draw_dots(axis, found, styles, metric, form):
    """Draw {name: {metric: ..., "interval": ...}} as dots with their intervals and numbers, in order of styles."""
    for place, name in enumerate(styles):
        if name not in found:
            continue
        value, interval = found[name][metric], found[name].get("interval")
        axis.errorbar(value, place, xerr=interval, capsize=3, **styles[name])
        text = f"{value:{form}}"
        if interval is not None:
            text += f" ± {interval:{form.strip('+')}}"
        options = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center", "fontsize": 8}
        axis.annotate(text, (value, place), **options)
    axis.margins(x=0.25)
    axis.locator_params(axis="x", nbins=5)


def compare_phenomena(paths):
    """Draw a heat map per benchmark of run folders or result files, beside the first one. Returns the paths."""
    tables, terms = defaultdict(dict), {}
    for path in paths:
        for model, benchmarks in read_scores(path).items():
            for task, subtasks in benchmarks.items():
                name = f"{path}: {model}" if model in tables[task] else model  # of two called alike
                tables[task][name] = {uid: x["score"] for uid, x in subtasks.items()}
                terms |= {uid: x["term"] for uid, x in subtasks.items() if "term" in x}
    first = paths[0].name if paths[0].is_dir() else paths[0].stem
    pictures = []
    for task, rows in tables.items():
        name = re.sub(r"\W+", "_", task).strip("_")  # a task may be a file of one's own
        pictures.append(draw_phenomena(rows, paths[0].with_name(f"{first}_{name}.svg"), task, terms))
    return pictures


def read_scores(path):
    """{model: {benchmark of pairs: {paradigm: {"score": ..., "term": ...}}}} of a run folder or result file."""
    file = path / "results.json" if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise UserError(f"{path}: not scored yet; first: python evaluate.py {path}")
    with intact(file):
        results = json.loads(file.read_text(encoding="utf-8"))
        if "comparison" in results:
            return {name: best_scores(row) for name, row in results["rows"].items() if row["best"]}
        scored = results["benchmarks"].items()
        pairs = {t: x["subtasks"] for t, x in scored if "chance" not in x and not t.startswith(NOT_PAIRS)}
        return {name_of(file): pairs}


def best_scores(row):
    """{benchmark: {paradigm: {"score": ...}}} of a row of compare.py, means over its seeds at the best rate."""
    runs = [run["best"].get("pairs", {}) for run in runs_at_best_rate(row)]
    found = defaultdict(dict)
    for task in runs[0]:
        for name in runs[0][task]["subtasks"]:
            found[task][name] = {"score": fmean(run[task]["subtasks"][name] for run in runs)}
    for task, result in row.get("benchmarks", {}).items():  # the whole evaluation, in place of training's
        if not task.startswith(NOT_PAIRS):
            found[task] = result["subtasks"]
    return found


def draw_phenomena(rows, path, title, terms):
    """
    Draw a heat map of {model: {paradigm: score}}, many paradigms as phenomena; the best and the easiest first.
    terms: {paradigm: phenomenon}, as far as known. Returns the path.
    """
    shared = set.intersection(*(set(scores) for scores in rows.values()))
    if not shared:
        raise UserError(f"{title}: {', '.join(rows)} have no paradigm in common")
    means = {model: fmean(scores[name] for name in shared) for model, scores in rows.items()}
    models = sorted(rows, key=lambda model: -means[model])
    columns = {}
    for name, group in grouped(sorted(shared), terms).items():
        columns[name] = [fmean(rows[model][uid] for uid in group) for model in models]
    names = sorted(columns, key=lambda name: -sum(columns[name]))
    size = (max(WIDTH, 2 + 0.27 * len(names)), 3 + 0.25 * len(models))
    figure, axis = plt.subplots(figsize=size)
    labels = [f"{label(model)}  {means[model]:.1f}" for model in models]
    draw_heat(axis, labels, list(zip(*(columns[name] for name in names))))
    axis.xaxis.tick_top()
    style = {"fontsize": 8, "rotation": 50, "ha": "left", "rotation_mode": "anchor"}
    axis.set_xticks(range(len(names)), [label(name, 50) for name in names], **style)
    axis.tick_params(length=0)
    means = f"beside the names: mean of {len(shared)} paradigms"
    figure.suptitle(f"{label(title)}: {CORRECT}; {means}")
    return keep(figure, path)


# ----------------------------------------------------------------------------------------------------
# From a file to its pictures


DAMAGED = OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError


@contextmanager
def intact(path):
    """Raise UserError if a file that is read and drawn inside is damaged or no result file."""
    try:
        yield
    except DAMAGED as error:
        what = (
            "not a result file of evaluate.py, compare.py or tools/bench.py, no log of train.py, or damaged"
        )
        raise UserError(f"{path}: {what} ({reason(error)})") from error


def name_of(path):
    """out/toy/results.json or results/toy.json -> toy."""
    return path.parent.name if path.name == "results.json" else path.stem


def draw_results(path):
    """Draw all that is in a result file, beside it. Returns the paths of the pictures."""
    with intact(path):
        results = json.loads(path.read_text(encoding="utf-8"))
        pictures = list(draw_benches(results, path))
        if "comparison" in results:
            pictures += draw_compared(results, path)
        elif "benchmarks" in results:
            pictures += draw_evaluated(results, path)
    if not pictures:
        raise UserError(f"{path}: there is nothing in it to draw")
    return pictures


def draw_evaluated(results, path):
    """Draw a result file of evaluate.py: the run's training, and what was scored only after it. Yields paths."""
    log, terms, rest = results.get("training", []), {}, {}
    seen = {task for record in log for task in record.get("pairs", ())}
    for task, result in results["benchmarks"].items():
        terms |= {name: subtask["term"] for name, subtask in result["subtasks"].items()}
        if task not in seen and not task.startswith("bear"):  # BEAR's 60 relations are too many
            rest[task] = result
    if log:
        yield draw(log, terms, path.with_suffix(".svg"), name_of(path))
    if rest:
        yield draw_benchmarks(rest, terms, path.with_name(f"{path.stem}_benchmarks.svg"), name_of(path))


def draw_compared(results, path):
    """Draw a result file of compare.py: training, final scores beside the paper's, phenomena. Yields paths."""
    yield draw_comparison(results, path.with_suffix(".svg"))
    rows, tasks = [], {}
    for name, row in (results["rows"] | results.get("beside", {})).items():
        found = row.get("benchmarks", {})
        tasks |= found
        if found:
            scores = {task: x["score"] for task, x in found.items()}
            intervals = {task: x["interval"] for task, x in found.items()}
            about = {"name": name, "parameters": row.get("parameters")}
            rows.append(about | {"benchmarks": scores, "intervals": intervals})
    if rows:
        rows += paper_rows(tasks, results["settings"].get("protocol", "2024"))
        yield draw_leaderboard(rows, list(tasks), path.with_name(f"{path.stem}_benchmarks.svg"))
    if rows or results["tasks"]:
        yield from compare_phenomena([path])


def draw_any(path):
    """Draw a run folder or a result file. Returns the paths of the pictures."""
    if path.is_dir() and read_log(path):
        with intact(path / "log.jsonl"):
            return [learning_curve(path)]
    if path.suffix == ".json" and path.exists():
        return draw_results(path)
    raise UserError(f"{path}: neither a run folder with a log.jsonl nor a result file")


def main(args):
    """Draw what the arguments name and print the paths of the pictures."""
    if not args:
        raise UserError("of what? python -m tools.figures out/toy, or a result file, results/toy.json")
    command, *names = [os.path.expanduser(arg) for arg in args]
    if command in ("-h", "--help"):
        print(__doc__.strip())
    elif command in ("memory", "gates"):
        from tools import figures_gates  # not above: it imports PyTorch and all models

        settings = configure(figures_gates.Settings(), names, word="run")
        print(figures_gates.PICTURES[command](settings))
    elif command == "retention":
        from tools import figures_retention

        print(figures_retention.main(names))
    elif command == "phenomena":
        if not names:
            raise UserError("phenomena of what? python -m tools.figures phenomena out/toy results/toy_1.json")
        with intact(" ".join(names)):
            pictures = compare_phenomena([Path(name) for name in names])
        if not pictures:
            remedy = f"make some: python evaluate.py {names[0]}"
            raise UserError(f"{' '.join(names)}: no scores of pairs; {remedy}")
        print(*pictures, sep="\n")
    else:
        for path in map(Path, [command, *names]):
            print(*draw_any(path), sep="\n")


if __name__ == "__main__":
    run_script(main)
