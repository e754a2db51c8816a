"""
Every picture, from the files that runs and evaluations write.

    python figures.py out/toy                     the learning curve of a run, as train.py draws it at its end
    python figures.py results/toy.json            the same from a result file, for the README
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from checkpoint import read_log
from config import fail, run_script

matplotlib.rcParams |= {
    "svg.hashsalt": "nanornn",  # the same picture is the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def learning_curve(folder):
    """Draw out/RUN/learning_curve.svg: loss over steps and, where pairs were scored, their accuracy. Its path."""
    return draw(read_log(folder), Path(folder) / "learning_curve.svg", Path(folder).name)


def draw(log, path, title):
    """Records of log.jsonl -> a picture: losses on the left, accuracies on the right if there are any."""
    tasks = sorted({task for record in log for task in record.get("pairs", {})})
    figure, axes = plt.subplots(
        1, 1 + len(tasks), figsize=(5.5 + 6.5 * len(tasks), 4), squeeze=False, layout="constrained"
    )
    draw_losses(axes[0, 0], log, title)
    for axis, task in zip(axes[0, 1:], tasks):
        draw_accuracies(axis, [record for record in log if task in record.get("pairs", {})], task)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path


def draw_losses(axis, log, title):
    """Training loss, thin, and validation loss, bold, over steps."""
    for name, label, style in (
        ("loss", "training", dict(lw=0.8, alpha=0.6)),
        ("val_loss", "validation", dict(lw=2, marker="o", ms=3)),
    ):
        points = [(record["step"], record[name]) for record in log if name in record]
        if points:
            axis.plot(*zip(*points), label=f"{label}: {points[-1][1]:.3f} at the end", **style)
    axis.set(title=title, xlabel="step", ylabel="loss per token, nats")
    axis.legend()


def draw_accuracies(axis, records, task):
    """One line a paradigm, named at its right end; the mean in black; chance at 50 %."""
    steps = [record["step"] for record in records]
    last = records[-1]["pairs"][task]["subtasks"]
    names = sorted(last, key=last.get)
    room = (105 - 30) / max(1, len(names))
    for i, name in enumerate(names):
        color = plt.cm.turbo(0.05 + 0.9 * i / max(1, len(names)))
        axis.plot(steps, [record["pairs"][task]["subtasks"][name] for record in records], color=color, lw=1)
        label = f"{name.replace('_', ' ')}  {last[name]:.0f}"
        axis.annotate(
            label,
            (1.01, 0.01 + 0.98 * (i + 0.5) / len(names)),
            xycoords="axes fraction",
            color=color,
            fontsize=min(7, room * 2.5),
            va="center",
        )
    axis.plot(steps, [record["pairs"][task]["score"] for record in records], color="black", lw=2.5)
    axis.axhline(50, color="gray", ls=":", lw=1)
    mean = records[-1]["pairs"][task]["score"]
    axis.set(
        title=f"{task}: minimal pairs, mean {mean:.1f} % in black",
        xlabel="step",
        ylabel="per cent preferred rightly",
    )


def main(args):
    if not args:
        fail("of what? python figures.py out/toy, or python figures.py results/toy.json")
    for path in map(Path, args):
        if path.is_dir() and read_log(path):
            print(learning_curve(path))
        elif path.suffix == ".json" and path.exists():
            print(
                draw(
                    json.loads(path.read_text(encoding="utf-8"))["training"],
                    path.with_suffix(".svg"),
                    path.stem,
                )
            )
        else:
            fail(f"{path}: neither a run folder with a log.jsonl nor a result file")


if __name__ == "__main__":
    run_script(main)
