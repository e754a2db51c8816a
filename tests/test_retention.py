"""What is still read of each word, found by changing words: for any mixer, without knowing what is inside it."""

from pathlib import Path

import train
from model import MIXERS
from tools import figures, figures_retention

import pytest
import torch
from test_model import build

TOKENS = torch.randint(3, 50, (12,), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_word_changes_what_comes_after_it_alone(mixer):
    """Total variation: between 0 and 1, 0 before the change, and what brute force finds of one change."""
    model = build(mixer=mixer, n_layer=2).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    moved = figures_retention.retention(model, TOKENS)
    assert moved.shape == (12, 12) and not moved.triu(1).any() and 0 < moved.tril().max() <= 1
    assert (moved.diagonal() > 0).all()
    others = torch.randint(3, 50, (figures_retention.OTHERS, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(TOKENS[None])[0][0, 9].softmax(-1)
        found = []
        for other in others:
            changed = TOKENS.clone()
            changed[4] = other[4]
            found.append((model(changed[None])[0][0, 9].softmax(-1) - before).abs().sum() / 2)
    assert moved[9, 4] == pytest.approx(float(sum(found) / len(found)), abs=1e-5)


def test_the_picture_has_a_panel_a_run(workplace, tiny, refusal, monkeypatch):
    drawn, keep = [], figures_retention.keep

    def keep_both(figure, path):
        drawn.append([axis.get_title() for axis in figure.axes if axis.get_title()])
        return keep(figure, path)

    monkeypatch.setattr(figures_retention, "keep", keep_both)
    for mixer in ("hgrn2", "s4d"):
        train.main(tiny(run=mixer, mixer=mixer, max_steps=2, eval_every=1))
    runs = ["out/hgrn2", "out/s4d", "out/hgrn2/best.pt", "out/s4d/best.pt", "out/hgrn2/previous.pt"]
    figures.main(["retention", *runs, "--text=The cat sees.", "--picture=r.png"])
    figures.main(["retention", "out/s4d", "--text=The cat sees."])
    assert drawn == [["hgrn2", "s4d", "hgrn2", "s4d", "hgrn2"], ["s4d"]]
    assert Path("r.png").exists() and Path("out/s4d/retention.svg").exists()
    assert "retention of what?" in refusal(figures.main, ["retention"])
    text = "--text=" + "cat " * 99
    assert "a picture has room for 48: shorten it" in refusal(figures.main, ["retention", "out/s4d", text])
