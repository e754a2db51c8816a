"""The style of all pictures, and how they are saved."""

import io
import re
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from support.files import replacing

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator

matplotlib.rcParams |= {
    "svg.hashsalt": "nanornn",  # the same picture drawn again is the same file
    "text.parse_math": False,  # a run may be called "$x^{$"
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "lines.markersize": 4,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
DOTTED = {"color": "black", "linestyle": ":", "linewidth": 1}  # lines at chance and the like


def keep(figure, path):
    """Save a figure as .svg or .png, whole or not at all, and close it. Returns the path."""
    kind = Path(path).suffix[1:]
    picture = io.BytesIO()
    figure.savefig(picture, format=kind, metadata={"Date": None} if kind == "svg" else None)
    picture = picture.getvalue()
    if kind == "svg":
        picture = re.sub(rb"\n *(<!--.*-->)?", b"\n", picture)  # indentation and comments are a tenth of it
    with replacing(path, "wb") as file:
        file.write(picture)
    plt.close(figure)
    return path


def use_log_y(axis):
    """Make the y axis logarithmic, with a plain number at every tick. Call it when all lines are drawn."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    digits = range(1, 10) if high < 10 * low else (1, 2, 5)
    axis.yaxis.set_major_locator(LogLocator(subs=digits))
    axis.yaxis.set_major_formatter("{x:,.9g}")
    axis.yaxis.set_minor_locator(NullLocator())


def add_legend(figure, columns):
    """Name the lines of all panels once, below them."""
    handles = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels()):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns)


def draw_heat(axis, rows, numbers=True):
    """Draw {name: [percentages]} as rows of colours that the colour-blind can tell apart, and as numbers."""
    axis.imshow(list(rows.values()), cmap="RdYlBu", vmin=0, vmax=100, aspect="auto")
    axis.set_yticks(range(len(rows)), rows)
    axis.spines[:].set_visible(False)
    if numbers:
        for y, scores in enumerate(rows.values()):
            for x, score in enumerate(scores):
                color = "white" if abs(score - 50) > 35 else "black"
                axis.text(x, y, f"{score:.0f}", ha="center", va="center", fontsize=7, color=color)


def plain(name):
    """A name with spaces."""
    return name.replace("_", " ")
