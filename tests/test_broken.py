"""The promises of test_model.py have teeth: mixers with a well-known mistake break them."""

import model as models
from kernels import g, linear_scan
from model import MinGRU, MinLSTM

import pytest
import test_model as promises
from torch import nn


class SquashedTwice(MinGRU):
    """The state that it hands on has been through tanh, as its output has; the next call reads it as the sum."""

    def forward(self, x, state=None):
        z = self.update(x).sigmoid()
        h = linear_scan(1 - z, z * self.candidate(x), state)
        return self.output(h.tanh()), h[:, -1].tanh()


class LooksAhead(MinGRU):
    """A convolution before it is padded on both sides, so that each token sees the next."""

    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.conv = nn.Conv1d(config.d_model, config.d_model, 3, padding=1)

    def forward(self, x, state=None):
        return super().forward(self.conv(x.mT).mT, state)


class PublishedMinLSTM(MinLSTM):
    """As a published listing: log_g is applied to the state that is carried over, and not to the first alone."""

    def forward(self, x, state=None):
        return super().forward(x, None if state is None else g(state))


BROKEN = {
    SquashedTwice: promises.test_reading_in_parts_changes_nothing,
    LooksAhead: promises.test_the_future_does_not_leak,
    PublishedMinLSTM: promises.test_reading_in_parts_changes_nothing,
}


def build(monkeypatch, mixer):
    monkeypatch.setitem(models.MIXERS, "broken", mixer)
    return promises.build(mixer="broken").eval()


@pytest.mark.parametrize("mixer", BROKEN, ids=lambda mixer: mixer.__name__)
def test_a_broken_mixer_is_caught(mixer, monkeypatch):
    with pytest.raises(AssertionError):
        BROKEN[mixer](build(monkeypatch, mixer))


@pytest.mark.parametrize("mixer", BROKEN, ids=lambda mixer: mixer.__name__)
def test_what_it_was_made_from_is_not(mixer, monkeypatch):
    """The same promise holds for minGRU and minLSTM, so the mistake is what was caught."""
    BROKEN[mixer](build(monkeypatch, mixer.__base__))


def test_a_broken_mixer_may_learn_all_the_same(monkeypatch):
    """Why the other promises are needed: the loss of a state that is only wrong between calls shows nothing."""
    promises.test_every_mixer_learns_a_sentence_by_heart(build(monkeypatch, PublishedMinLSTM))
