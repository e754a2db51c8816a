"""
Every picture, from the files that runs and evaluations write.

    python figures.py out/toy                     the learning curve of a run, as train.py draws it at its end
    python figures.py results/toy.json            the same from a result file, for the README
    python figures.py results/compare_toy.json    many models, as compare.py found them
    python figures.py results/bench_cpu.json      speed and memory, as bench.py measured them; its kernels apart
"""

import json
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from checkpoint import macro_score, read_log, replacing
from config import fail, run_script

matplotlib.rcParams |= {
    "svg.hashsalt": "nanornn",  # the same picture is the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def learning_curve(folder):
    """Draw out/RUN/learning_curve.svg: losses and, where pairs were scored, what was learned when. Its path."""
    return draw(read_log(folder), {}, Path(folder) / "learning_curve.svg", Path(folder).name)


def draw(log, benchmarks, path, title):
    """
    Records of log.jsonl and the benchmarks of a results.json -> a picture at `path`: losses; the score of a task;
    when each paradigm was learned or, of benchmarks scored only at the end, how well each phenomenon is known.
    """
    scored = [record for record in log if record.get("pairs")]
    learned = {task: rows_of(scored, task, benchmarks) for task in (scored[0]["pairs"] if scored else ())}
    panels = [(4.5, 3.5, draw_losses, log, title)]  # width, height in inches, what draws it
    panels += [(4.5, 3.5, draw_accuracy, log)] * any("accuracy" in record for record in log)
    panels += [(4.5, 3.5, draw_scores, scored)] * bool(scored)
    for task in sorted(learned, key=lambda x: -len(learned[x])):
        width = 2.5 + min(4.5, max(2.5, 0.4 * len(scored)))
        panels.append((width, 0.8 + 0.155 * len(learned[task]), draw_learning, scored, learned[task], task))
    for task in sorted(set(benchmarks) - set(learned)):
        if len(phenomena(benchmarks[task])) <= 30:  # not BEAR's relations
            panels.append(
                (6, 0.8 + 0.2 * len(phenomena(benchmarks[task])), draw_knowledge, benchmarks[task], task)
            )
    return keep(lay_out(panels), path)


def lay_out(panels):
    """
    [(width, height, function, arguments...), ...] -> a figure, each panel in the first column with room for it.
    Heat maps keep their height; the others share what is left of their column.
    """
    heights = [panel[1] for panel in panels]
    longest, columns = max(4.5, sum(heights) / 3.5, *heights), []
    for panel in panels:
        for column in columns:
            if sum(other[1] for other in column) + panel[1] <= longest:
                column.append(panel)
                break
        else:
            columns.append([panel])
    widths = [max(panel[0] for panel in column) for column in columns]
    figure = plt.figure(figsize=(sum(widths), longest), layout="constrained")
    parts = figure.subfigures(1, len(columns), width_ratios=widths, squeeze=False)
    for part, column in zip(parts.flat, columns):
        elastic = [panel[2] is not draw_learning for panel in column]
        left = longest - sum(panel[1] for panel in column)
        heights = [panel[1] + left * grows / max(1, sum(elastic)) for panel, grows in zip(column, elastic)]
        heights.append(1e-6 if any(elastic) else left + 1e-6)
        grid = part.add_gridspec(len(heights), 1, height_ratios=heights)
        for place, (_, _, function, *arguments) in enumerate(column):
            function(part.add_subplot(grid[place]), *arguments)
    return figure


def keep(figure, path):
    """Write the picture to `path`, whole or not at all, and forget it. Returns the path."""
    kind = Path(path).suffix[1:]
    with replacing(path, "wb") as file:
        figure.savefig(file, format=kind, metadata={"Date": None} if kind == "svg" else None)
    plt.close(figure)
    return path


def draw_losses(axis, log, title):
    """Training loss, thin, and validation loss, bold, over epochs."""
    styles = {
        "loss": ("training", dict(lw=0.8, alpha=0.6)),
        "val_loss": ("validation", dict(lw=2, color="C1", marker="o", ms=3)),
    }
    for name, (label, style) in styles.items():
        points = [(record["epoch"], record[name]) for record in log if name in record]
        if points:
            axis.plot(*zip(*points), label=f"{label}, {points[-1][1]:.3f} at the end", **style)
    steps = [record["step"] / record["epoch"] for record in log if record["epoch"]][:1]
    epoch = "epoch" + "".join(f" of {x:,.0f} steps" for x in steps)
    axis.set(title=f"{title}: loss per token, nats", xlabel=epoch)
    axis.grid(alpha=0.25)
    if axis.lines:
        axis.legend()


def draw_accuracy(axis, log):
    """Of a corpus of answers, such as copying, the share that is right, over epochs."""
    records = [record for record in log if "accuracy" in record]
    for name in records[0]["accuracy"]:
        scores = [record["accuracy"][name] for record in records]
        label = f"{name}, {scores[-1]:.1f} at the end"
        axis.plot([record["epoch"] for record in records], scores, marker="o", ms=3, label=label)
    axis.set(title="per cent of answers right", xlabel="epoch")
    axis.grid(alpha=0.25)
    axis.legend()


def draw_scores(axis, records):
    """The score of each task, the macro score over them in bold, its best marked, over epochs."""
    epochs = [record["epoch"] for record in records]
    macro = [macro_score(record["pairs"]) for record in records]
    tasks = sorted(records[0]["pairs"])
    for task in tasks if len(tasks) > 1 else []:
        scores = [record["pairs"][task]["score"] for record in records]
        axis.plot(epochs, scores, lw=1.2, marker="o", ms=3, label=f"{task}, {scores[-1]:.1f} last")
    name = "macro score" if len(tasks) > 1 else tasks[0]
    label = f"{name}, {macro[-1]:.1f} last"
    axis.plot(epochs, macro, lw=2, color="black", marker="o", ms=3, label=label)
    best = macro.index(max(macro))
    label = f"best, {macro[best]:.1f} at epoch {round(epochs[best], 2):g}"
    axis.plot(epochs[best], macro[best], "*", ms=14, color="#d7301f", zorder=3, label=label)
    axis.axhline(50, color="black", ls=":", lw=1, label="chance of a pair")
    axis.set(title="per cent of pairs judged rightly", xlabel="epoch")
    axis.grid(alpha=0.25)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=7.5, columnspacing=1)


def rows_of(records, task, benchmarks):
    """{name: [score in each record]}: a paradigm each; if they are many, and it is known, a phenomenon each."""
    scores = [record["pairs"][task]["subtasks"] for record in records]
    rows = {paradigm: [x[paradigm] for x in scores] for paradigm in scores[0]}
    terms = {x: y.get("term") for result in benchmarks.values() for x, y in result["subtasks"].items()}
    if len(rows) <= 30 or not all(terms.get(paradigm) for paradigm in rows):
        return rows
    grouped = defaultdict(list)
    for paradigm, row in rows.items():
        grouped[terms[paradigm]].append(row)
    return {term: [sum(x) / len(x) for x in zip(*group)] for term, group in grouped.items()}


def draw_learning(axis, records, rows, task):
    """A row a paradigm, a column an evaluation: what was learned first is on top."""
    names, numbers = sorted(rows, key=lambda x: -sum(rows[x])), len(records) <= 20  # that there is room for
    axis.imshow([rows[x] for x in names], cmap="RdYlBu", vmin=0, vmax=100, aspect="auto")
    for row, name in enumerate(names if numbers else []):
        for column, score in enumerate(rows[name]):
            color = "white" if abs(score - 50) > 35 else "black"
            axis.text(column, row, f"{score:.0f}", ha="center", va="center", fontsize=5.5, color=color)
    shown = range(0, len(records), -(-len(records) // 12))
    axis.set_yticks(range(len(names)), [name.replace("_", " ") for name in names], fontsize=6.5)
    axis.set_xticks(shown, [f"{round(records[i]['epoch'], 2):g}" for i in shown])
    colors = "" if numbers else "; red is 0, yellow 50, blue 100"
    axis.set(title=f"{task}: per cent right", xlabel=f"epoch{colors}")
    axis.spines[:].set_visible(False)


def phenomena(result):
    """A benchmark's entry in results.json -> {phenomenon, domain or relation: its subtasks}."""
    terms = defaultdict(list)
    for uid, subtask in result["subtasks"].items():
        terms[(subtask["term"] or uid).replace("_", " ")].append(subtask)
    return terms


def draw_knowledge(axis, result, task):
    """A bar a phenomenon, domain or relation, with a line at chance and the 95 % interval."""
    terms = phenomena(result)
    means = {term: sum(x["score"] for x in xs) / len(xs) for term, xs in terms.items()}
    names = sorted(means, key=means.get)
    spread = [sum(x["interval"] ** 2 for x in terms[name]) ** 0.5 / len(terms[name]) for name in names]
    axis.barh(names, [means[name] for name in names], xerr=spread, color="#74add1", ecolor="#333333")
    axis.axvline(result.get("chance", 50), color="black", ls=":", lw=1)
    axis.tick_params(axis="y", labelsize=8)
    n = sum(x["n"] for x in result["subtasks"].values())
    axis.set(title=f"{task}: per cent right of {n:,}, score {result['score']:.1f}", xlim=(0, 100))


BENCHMARKS = {  # in bench.py's results -> (what to draw over what, its name)
    "train_float32": [
        ("T", "tokens_per_second", "training, float32: tokens/s"),
        ("T", "peak_bytes", "memory of the step: MB"),
    ],
    "train_bfloat16": [("T", "tokens_per_second", "training, bfloat16: tokens/s")],
    "generate_float32": [("position", "tokens_per_second", "writing: tokens/s")],
    "score_float32": [("model", "pairs_per_second", "scoring: minimal pairs/s")],
}
AXES = {"T": "tokens in a sequence", "position": "tokens before it", "model": ""}
COLORS = {"HGRN2": "#d7301f", "minGRU": "#fc8d59", "minLSTM": "#fdbb84", "our Llama": "#8856a7"}
COLORS |= {"transformers Llama": "#045a8d", "transformers GPT-2": "#74a9cf", "torch LSTM": "#238b45"}
COLORS |= {"torch GRU": "#99d8c9"}


def draw_bench(results, path):
    """bench.py's results -> a picture at `path`: a panel a figure, a line a model, peers dashed."""
    panels = [(key, *panel) for key in BENCHMARKS if key in results for panel in BENCHMARKS[key]]
    rows = -(-len(panels) // 3)
    figure, axes = plt.subplots(rows, 3, figsize=(13, 3.8 * rows), squeeze=False, layout="constrained")
    for axis, (key, over, what, title) in zip(axes.flat, panels):
        draw_panel(axis, results[key]["rows"], over, what)
        axis.set(title=title, xlabel=AXES[over])
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=8)
    return keep(figure, path)


def draw_panel(axis, rows, over, what):
    """Lines over a number, or bars where the rows are models."""
    unit = 1e6 if what.endswith("bytes") else 1
    rows = [row for row in rows if row.get(what) is not None]
    names = list(dict.fromkeys(row["model"] for row in rows))
    for name in names:
        values = [row[what] / unit for row in rows if row["model"] == name]
        color = next((COLORS[known] for known in COLORS if known in name), "gray")
        if over == "model":
            axis.barh(name.replace(", transformers Llama", ""), values, color=color)
            continue
        peer = name.split()[0] in ("transformers", "torch")
        places = [row[over] for row in rows if row["model"] == name]
        axis.plot(places, values, label=name, color=color, ls="--" if peer else "-", marker="o", ms=3)
    if over == "model":
        axis.invert_yaxis()
    else:
        axis.set_xscale("log", base=2)
        axis.set_xticks(places, [f"{place:,}" for place in places])
        axis.set_ylim(0)
        axis.yaxis.set_major_formatter("{x:,.0f}")
        axis.grid(alpha=0.25)


KERNELS = {"linear_scan": "linear scan", "gated_linear_attention": "gated linear attention"}
KERNELS |= {"selective_scan": "selective scan"}
WAYS = {"ours": "#d7301f", "ours, k given": "#fc8d59", "ours in PyTorch": "#fdbb84", "loop": "#8856a7"}
WAYS |= {"fla chunk_hgrn": "#045a8d", "fla chunk_gla": "#045a8d", "fla fused_recurrent_hgrn": "#74a9cf"}
WAYS |= {"accelerated-scan": "#238b45", "mamba_ssm": "#238b45"}


def draw_kernels(rows, path):
    """Rows of `bench.py kernels` -> a picture at `path`: time over T, a column a kernel, a row a direction."""
    names = [name for name in KERNELS if any(row["kernel"] == name and "seconds" in row for row in rows)]
    passes = list(dict.fromkeys(row["pass"] for row in rows if "pass" in row))
    size = dict(figsize=(4.4 * len(names), 3.4 * len(passes)), squeeze=False, layout="constrained")
    figure, axes = plt.subplots(len(passes), len(names), **size)
    for line, direction in zip(axes, passes):
        for axis, name in zip(line, names):
            found = [row for row in rows if row["kernel"] == name and row.get("pass") == direction]
            draw_times(axis, [row for row in found if "seconds" in row])
            axis.set_xlabel(f"{AXES['T']}, {min(row['B'] * row['T'] for row in found):,} in all")
            axis.set_title(f"{KERNELS[name]}, {direction}: ms")
    labels = {label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(labels.values(), labels, loc="outside lower center", ncols=5)
    return keep(figure, path)


def draw_times(axis, rows):
    """A line a way, peers dashed; below them what no kernel can reach."""
    for name in dict.fromkeys(row["model"] for row in rows):
        points = [(row["T"], 1e3 * row["seconds"]) for row in rows if row["model"] == name]
        dashes = "-" if name.startswith("ours") else "--"
        axis.plot(*zip(*points), label=name, color=WAYS.get(name, "gray"), ls=dashes, marker="o", ms=3)
    floor = {row["T"]: 1e3 * row["floor_seconds"] for row in rows}
    axis.fill_between(
        list(floor), list(floor.values()), alpha=0.25, color="gray", lw=0, label="the machine's limit"
    )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_ylim(min(floor.values()) / 2)
    axis.set_xticks(list(floor), [f"{T:,}" for T in floor], fontsize=7)
    axis.yaxis.set_major_formatter("{x:,g}")
    axis.grid(alpha=0.25)


LAYERS = {"minGRU": "#d7301f", "minLSTM": "#fc8d59", "Mamba": "#8856a7", "torch GRU": "#74a9cf"}
LAYERS |= {"GRU, a loop": "#045a8d", "LSTM, a loop": "#238b45", "torch LSTM": "#99d8c9"}
CLAIMS = {("minGRU", 512): 175, ("minLSTM", 512): 235, ("minGRU", 4096): 1324, ("minLSTM", 4096): 1361}


def draw_minrnn(rows, path):
    """Rows of `bench.py minrnn` -> a picture at `path`: time and memory over T, two panels for each B and D."""
    rows = [row for row in rows if "seconds" in row]
    kinds = list(dict.fromkeys((row["B"], row["D"]) for row in rows))
    size = dict(figsize=(10, 4.2 * len(kinds)), squeeze=False, layout="constrained")
    figure, axes = plt.subplots(len(kinds), 2, **size)
    for line, (B, D) in zip(axes, kinds):
        found = [row for row in rows if (row["B"], row["D"]) == (B, D)]
        panels = ("seconds", 1e3, "time: ms"), ("peak_bytes", 1e-6, "memory: MB")
        for axis, (what, unit, title) in zip(line, panels):
            for name in LAYERS:
                points = [(row["T"], unit * row[what]) for row in found if row["model"] == name and row[what]]
                dashes = "-" if name in ("minGRU", "minLSTM", "Mamba") else "--"
                axis.plot(
                    *zip(*points) or ((), ()), label=name, color=LAYERS[name], ls=dashes, marker="o", ms=3
                )
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set(title=f"a layer of width {D}, {B} sequences, {title}", xlabel=AXES["T"])
            lengths = sorted({row["T"] for row in found})
            axis.set_xticks(lengths, [f"{T:,}" for T in lengths])
            axis.yaxis.set_major_formatter("{x:,g}")
            axis.grid(alpha=0.25)
        line[0].set_xlabel(f"{AXES['T']}\n{times_the_loop(found)}")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=7)
    return keep(figure, path)


def times_the_loop(rows):
    """How many times as fast as their loops minGRU and minLSTM are, beside what their paper says, in lines."""
    said = [row for row in rows if "times_the_loop" in row and (row["model"], row["T"]) in CLAIMS]
    lines = ["{model} at T = {T:,}: {times_the_loop:,.1f} times its loop".format(**row) for row in said]
    return "\n".join(f"{x} (paper: {CLAIMS[row['model'], row['T']]:,})" for x, row in zip(lines, said))


def draw_leaderboard(rows, columns, path):
    """Rows of evaluate.compare -> a picture at `path`: a panel a benchmark, a bar a run, the paper's in gray."""
    rows = sorted(rows, key=lambda row: (not row.get("paper"), row["benchmarks"].get(columns[-1], 0)))
    size = (3 + 2.2 * len(columns), 1.2 + 0.24 * len(rows))
    options = dict(figsize=size, sharey=True, squeeze=False, layout="constrained")
    figure, axes = plt.subplots(1, len(columns), **options)
    colors = ["#bbbbbb" if row.get("paper") else "#d7301f" for row in rows]
    for axis, column in zip(axes.flat, columns):
        scores = [row["benchmarks"].get(column, 0) for row in rows]
        axis.barh(range(len(rows)), scores, color=colors)
        for place, score in enumerate(scores):
            axis.text(score, place, f" {score:.1f}" if score else " not scored", va="center", fontsize=7)
        if column not in ("bear", "bear_big", "toyland_bear"):
            axis.axvline(50, color="black", ls=":", lw=1)
        axis.set(title=column.replace("_", " "), xlim=(0, 100 if max(scores) > 30 else 30))
    names = [row["name"] + " (paper)" * row.get("paper", False) for row in rows]
    axes[0, 0].set_yticks(range(len(rows)), names, fontsize=8)
    return keep(figure, path)


MARKERS = "osD^v<>PX*hp"


def draw_comparison(results, path):
    """
    Results of compare.py -> a picture at `path`: each model's score, or loss if no pairs were scored, over epochs
    at its best learning rate, against the size of its state, and over learning rates.
    """
    what, title = ("macro", "per cent right") if results["tasks"] else ("val_loss", "validation loss")
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.8), sharey=True, layout="constrained")
    rows = {name: row for name, row in results["rows"].items() if row["best"]}
    for i, (name, row) in enumerate(rows.items()):
        best, color = row["best"], plt.cm.tab20(2 * i % 20 + i // 10)
        style = dict(color=color, marker=MARKERS[i % 12], ms=5)
        runs = [x["evaluations"] for x in row["runs"] if x["learning_rate"] == best["learning_rate"]]
        means = [(x[0]["epoch"], sum(y[what] for y in x) / len(x)) for x in zip(*runs)]  # over seeds
        axes[0].plot(*zip(*means), label=name, **style)
        size, spread = max(1, row["state"]), best.get("interval")
        axes[1].errorbar(size, best[what], yerr=spread, ls="", capsize=3, **style)
        rates = sorted(row["rates"], key=lambda x: x["learning_rate"])
        axes[2].plot([x["learning_rate"] for x in rates], [x[what] for x in rates], **style)
    axes[0].set(title=f"{results['comparison']}: {title}", xlabel="epoch")
    axes[1].set(title="the best of each", xlabel="numbers in the state of a sequence", xscale="log")
    axes[2].set(title="the best at each rate", xlabel="learning rate", xscale="log")
    rates = sorted({x["learning_rate"] for row in rows.values() for x in row["rates"]})
    axes[2].set_xticks(rates, [f"{rate:g}" for rate in rates], minor=False)
    axes[2].minorticks_off()
    for axis in axes:
        axis.grid(alpha=0.25)
        if results["tasks"]:
            axis.axhline(50, color="black", ls=":", lw=1)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return keep(figure, path)


APART = {"kernels": draw_kernels, "minrnn": draw_minrnn}  # of bench.py's results, a picture each


def draw_results(path):
    """Draw what a result file holds, beside it -> the pictures' paths."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        log, benchmarks = results.get("training"), results.get("benchmarks")
        apart = {name: results[name]["rows"] for name in APART if results.get(name, {}).get("rows")}
    except (ValueError, AttributeError):
        results = log = apart = None
    for name, rows in (apart or {}).items():
        yield APART[name](rows, path.with_name(f"{path.stem}_{name}.svg"))
    if results and "comparison" in results:
        yield draw_comparison(results, path.with_suffix(".svg"))
    elif results and set(results) & set(BENCHMARKS):
        yield draw_bench(results, path.with_suffix(".svg"))
    elif log is not None and benchmarks is not None:
        yield draw(log, benchmarks, path.with_suffix(".svg"), path.stem)
    elif not apart:
        fail(f"{path}: not a result file of evaluate.py, compare.py or bench.py")


def main(args):
    if not args:
        fail("of what? python figures.py out/toy, or python figures.py results/toy.json")
    for path in map(Path, args):
        if path.is_dir() and read_log(path):
            print(learning_curve(path))
        elif path.suffix == ".json" and path.exists():
            print(*draw_results(path), sep="\n")
        else:
            fail(f"{path}: neither a run folder with a log.jsonl nor a result file")


if __name__ == "__main__":
    run_script(main)
