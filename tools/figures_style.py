"""The style of all pictures, and how they are saved."""

import io
import re
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from support.files import replacing

import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib import font_manager
from matplotlib.ticker import LogLocator, NullLocator

COLORS = {  # Okabe and Ito's, which the colour-blind can tell apart
    "blue": "#0072b2",
    "vermilion": "#d55e00",
    "green": "#009e73",
    "purple": "#cc79a7",
    "orange": "#e69f00",
    "sky": "#56b4e9",
    "black": "black",
}

matplotlib.rcParams |= {
    "axes.prop_cycle": cycler(color=COLORS.values()),
    "axes.titlesize": 10,
    "figure.titlesize": 11,
    "image.interpolation": "none",  # a cell is one value: nothing is computed between two
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
WIDTH = 10  # inches of most pictures, so that their letters are equally large on a page
DOTTED = {"color": "black", "linestyle": ":", "linewidth": 1}  # lines at chance and the like


def label(name, longest=30):
    """A name from a file or a folder as it is drawn: in one line, and a very long one without its middle."""
    name = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name)
    half = longest // 2
    return name if len(name) <= longest else f"{name[:half]}…{name[-half:]}"


def keep(figure, path):
    """Save a figure as .svg or .png, whole or not at all, and close it. Returns the path."""
    kind = Path(path).suffix[1:]
    picture = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": font_type(figure)}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(picture, format=kind, metadata={"Date": None} if kind == "svg" else None)
    picture = picture.getvalue()
    if kind == "svg":
        picture = re.sub(rb"\n *(<!--.*-->)?", b"\n", picture)  # indentation and comments are a tenth of it
    with replacing(path, "wb") as file:
        file.write(picture)
    plt.close(figure)
    return path


def font_type(figure):
    """Letters of an .svg: shapes or, if our font lacks one (Chinese, say), text in the viewer's own fonts."""
    known = font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap()
    letters = {letter for text in figure.findobj(matplotlib.text.Text) for letter in text.get_text()}
    return "path" if all(ord(letter) in known or letter == "\n" for letter in letters) else "none"


def line_styles(names):
    """{name: colour, dashes and marker of its line}, all different."""
    styles, colors = {}, list(COLORS.values())
    for number, name in enumerate(names):
        dashes = ("-", "--", ":")[number // len(colors) % 3]
        marker = "osD^v<>PX*hp"[number % 12]
        styles[name] = {"color": colors[number % len(colors)], "linestyle": dashes, "marker": marker}
    return styles


def use_log_y(axis):
    """Make the y axis logarithmic, with a plain number at every tick. Call it when all lines are drawn."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    digits = range(1, 10) if high < 10 * low else (1, 2, 5)
    axis.yaxis.set_major_locator(LogLocator(subs=digits))
    axis.yaxis.set_major_formatter("{x:,.9g}")
    axis.yaxis.set_minor_locator(NullLocator())


def add_legend(figure, columns, loc="outside lower center"):
    """Name the lines of all panels once: below them, or elsewhere."""
    handles = {}
    for axis in figure.axes:
        for handle, words in zip(*axis.get_legend_handles_labels()):
            handles.setdefault(words, handle)
    figure.legend(handles.values(), handles, loc=loc, ncols=columns)


def draw_heat(axis, labels, rows, numbers=True):
    """Draw rows of percentages from red over yellow to blue, and as numbers."""
    axis.imshow(rows, cmap="RdYlBu", vmin=0, vmax=100, aspect="auto")
    axis.set_yticks(range(len(labels)), labels)
    axis.spines[:].set_visible(False)
    if numbers:
        for y, scores in enumerate(rows):
            for x, score in enumerate(scores):
                color = "white" if abs(score - 50) > 35 else "black"
                axis.text(x, y, f"{score:.0f}", ha="center", va="center", fontsize=7, color=color)
