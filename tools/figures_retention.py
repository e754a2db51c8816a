"""Pictures of how long a word matters, for a model of any mixer: change it, and see which predictions change."""

from dataclasses import dataclass
from pathlib import Path

from evaluate import encode
from model import load
from support.settings import UserError, configure
from tools.figures_gates import WORDS, check_picture, word_of
from tools.figures_style import keep, label, plt

import torch

OTHERS = 16  # tokens that each token is replaced by, in turn
COLUMNS = 4  # of panels


@dataclass
class Settings:
    """Settings of `retention`."""

    text: str = "The woman who praised the men doesn't run."  # what the models read
    picture: str = ""  # the file to draw; none: retention.svg in the first run's folder

    def check(self):
        check_picture(self.picture)


@torch.inference_mode()
def retention(model, tokens):
    """
    tokens (T,) -> (T, T): at [t, s], how far the prediction after token t moves if token s is a random one, 0 if
    s > t. It is the total variation between both distributions, from 0 to 1, on average over OTHERS random tokens.
    """
    T, vocab = len(tokens), model.embed.num_embeddings
    others = torch.randint(3, vocab, (OTHERS, T), generator=torch.Generator().manual_seed(0))
    p = model(tokens.unsqueeze(0))[0].float().softmax(-1)  # (1, T, vocab)
    moved = torch.zeros(T, T)
    for other in others:
        changed = tokens.repeat(T, 1).diagonal_scatter(other)  # a row for each token that is replaced
        moved += (model(changed)[0].float().softmax(-1) - p).abs().sum(-1).T / 2
    return moved.tril() / OTHERS


def main(args):
    """Draw the retention of the runs that args name, a panel each, in one picture. Returns its path."""
    runs = [arg for arg in args if not arg.startswith("-")]
    s = configure(Settings(), [arg for arg in args if arg.startswith("-")])
    if not runs:
        raise UserError("retention of what? python -m tools.figures retention out/toy out/toy_mingru")
    rows = -(-len(runs) // COLUMNS)
    columns = min(len(runs), COLUMNS)
    figure, axes = plt.subplots(rows, columns, figsize=(0.8 + 2.6 * columns, 0.8 + 2.5 * rows), squeeze=False)
    for axis, run in zip(axes.flat, runs):
        image = draw_panel(axis, run, s)
    for axis in axes.flat[len(runs) :]:
        axis.remove()
    bar = figure.colorbar(image, ax=list(axes.flat[: len(runs)]), aspect=40, format="{x:.0%}")
    bar.set_label("change of the prediction")
    figure.suptitle("how much the prediction after each word (row) depends on each earlier word (column)")
    folder = Path(runs[0]) if Path(runs[0]).is_dir() else Path(runs[0]).parent
    return keep(figure, s.picture or folder / "retention.svg")


def draw_panel(axis, run, s):
    """Draw one run's retention of the text as a triangle; returns the image."""
    model, tokenizer, trained = load(run)
    ((tokens, _),) = encode(tokenizer, [("", s.text)], protocol="2025")
    if len(tokens) > WORDS:
        raise UserError(f"text: {len(tokens)} tokens, and a picture has room for {WORDS}: shorten it")
    moved = retention(model, torch.tensor(tokens))
    words = [word_of(tokenizer, token) for token in tokens]
    later = torch.ones_like(moved).triu(1).bool()
    image = axis.imshow(moved.masked_fill(later, torch.nan).numpy(), cmap="magma_r", vmin=0, vmax=1)
    axis.set_xticks(range(len(words)), words, rotation=90, fontsize=7)
    axis.set_yticks(range(len(words)), words, fontsize=7)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_title(label(trained.checkpoint.parent.name))
    return image
