"""
Every picture, from the files that runs and evaluations write.

    python figures.py out/toy                     the learning curve of a run, as train.py draws it at its end
    python figures.py results/toy.json            the same from a result file, for the README
    python figures.py results/bench_cpu.json      speed and memory, as bench.py measured them; its kernels apart
"""

import json
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from checkpoint import read_log, replacing
from config import fail, run_script

matplotlib.rcParams |= {
    "svg.hashsalt": "nanornn",  # the same picture is the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def learning_curve(folder):
    """Draw out/RUN/learning_curve.svg: loss over steps and, where pairs were scored, their accuracy. Its path."""
    return draw(read_log(folder), {}, Path(folder) / "learning_curve.svg", Path(folder).name)


def draw(log, benchmarks, path, title):
    """
    Records of log.jsonl and the benchmarks of a results.json -> a picture at `path`: the losses on the left, then
    when each paradigm was learned or, of benchmarks scored only at the end, how well each phenomenon is known.
    """
    learned = {task for record in log for task in record.get("pairs", {})}
    known = [task for task in benchmarks if task not in learned]
    count = len(learned) + len(known)
    figure, axes = plt.subplots(
        1, 1 + count, figsize=(4 + 6 * count, 4.5), squeeze=False, layout="constrained"
    )
    draw_losses(axes[0, 0], log, title)
    for axis, task in zip(axes[0, 1:], sorted(learned)):
        draw_learning(axis, [record for record in log if task in record.get("pairs", {})], task)
    for axis, task in zip(axes[0, 1 + len(learned) :], known):
        draw_knowledge(axis, benchmarks[task], task)
    return keep(figure, path)


def keep(figure, path):
    """Write the picture to `path`, whole or not at all, and forget it. Returns the path."""
    kind = Path(path).suffix[1:]
    with replacing(path, "wb") as file:
        figure.savefig(file, format=kind, metadata={"Date": None} if kind == "svg" else None)
    plt.close(figure)
    return path


def draw_losses(axis, log, title):
    """Training loss, thin, and validation loss, bold, over steps."""
    styles = {
        "loss": ("training", dict(lw=0.8, alpha=0.6)),
        "val_loss": ("validation", dict(lw=2, marker="o", ms=3)),
    }
    for name, (label, style) in styles.items():
        points = [(record["step"], record[name]) for record in log if name in record]
        if points:
            axis.plot(*zip(*points), label=f"{label}, {points[-1][1]:.3f} at the end", **style)
    axis.set(title=f"{title}: loss per token, nats", xlabel="step")
    axis.grid(alpha=0.25)
    axis.legend()


def draw_learning(axis, records, task):
    """A row a paradigm, a column an evaluation: what was learned first is on top."""
    paradigms = records[0]["pairs"][task]["subtasks"]
    scores = {x: [record["pairs"][task]["subtasks"][x] for record in records] for x in paradigms}
    names = sorted(scores, key=lambda x: -sum(scores[x]))
    axis.imshow([scores[x] for x in names], cmap="RdYlBu", vmin=0, vmax=100, aspect="auto")
    for row, name in enumerate(names):
        for column, score in enumerate(scores[name]):
            color = "white" if abs(score - 50) > 35 else "black"
            axis.text(column, row, f"{score:.0f}", ha="center", va="center", fontsize=5.5, color=color)
    axis.set_yticks(range(len(names)), [name.replace("_", " ") for name in names], fontsize=6.5)
    axis.set_xticks(range(len(records)), [record["step"] for record in records])
    axis.set(title=f"{task}: per cent of pairs judged rightly", xlabel="step")
    axis.spines[:].set_visible(False)


def draw_knowledge(axis, result, task):
    """A bar a phenomenon, the mean of its paradigms, with a line at chance and the 95 % interval."""
    terms = defaultdict(list)
    for paradigm in result["subtasks"].values():
        terms[paradigm["term"].replace("_", " ")].append(paradigm)
    means = {term: sum(x["score"] for x in xs) / len(xs) for term, xs in terms.items()}
    names = sorted(means, key=means.get)
    spread = [sum(x["interval"] ** 2 for x in terms[name]) ** 0.5 / len(terms[name]) for name in names]
    axis.barh(names, [means[name] for name in names], xerr=spread, color="#74add1", ecolor="#333333")
    axis.axvline(50, color="black", ls=":", lw=1)
    pairs = sum(x["n"] for x in result["subtasks"].values())
    axis.set(title=f"{task}: per cent right of {pairs:,} pairs, mean {result['score']:.1f}", xlim=(0, 100))


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


def draw_results(path):
    """Draw what a result file holds, beside it -> the pictures' paths."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        log, benchmarks = results.get("training"), results.get("benchmarks")
        rows = results.get("kernels", {}).get("rows")
    except (ValueError, AttributeError):
        results = log = rows = None
    if rows:
        yield draw_kernels(rows, path.with_name(f"{path.stem}_kernels.svg"))
    if results and set(results) & set(BENCHMARKS):
        yield draw_bench(results, path.with_suffix(".svg"))
    elif log is not None and benchmarks is not None:
        yield draw(log, benchmarks, path.with_suffix(".svg"), path.stem)
    elif not rows:
        fail(f"{path}: not a result file of evaluate.py or bench.py")


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
