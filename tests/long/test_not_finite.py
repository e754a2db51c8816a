"""NaN and infinity stop a run before anything is saved. Long with --long."""

import math
import random
import re
import shutil

import train
from conftest import contents, log, same, saved

import pytest
import torch


class SpoiltLoss(torch.nn.Module):
    """The loss, times a value at one call."""

    def __init__(self, model, spoilt_call, value):
        super().__init__()
        self.inner, self.calls, self.spoilt_call, self.value = train.NextToken(model), 0, spoilt_call, value

    def forward(self, tokens, targets):
        self.calls += 1
        factor = self.value if self.calls == self.spoilt_call else 1
        return {name: loss * factor for name, loss in self.inner(tokens, targets).items()}


def spoil(run, where, value, tokens):
    """Before the seventh step."""
    embed, head = run.model.embed.weight, run.model.head.weight
    if where == "weight":
        head.data[3, 3] = value
    if where == "weight that no text uses":
        embed.data[0, 0] = value  # <pad>
    if where == "batch":
        embed.data[tokens[0, 0]] = value
    if where == "gradient":
        handle = embed.register_hook(lambda grad: handle.remove() or grad * value)


def all_finite(x):
    if isinstance(x, dict):
        return all(map(all_finite, x.values()))
    if isinstance(x, list):
        return all(map(all_finite, x))
    if isinstance(x, torch.Tensor):
        return bool(x.isfinite().all())
    return not isinstance(x, float) or math.isfinite(x)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_nan_and_infinity_stop_the_run(workplace, tiny, times, figure, refusal, monkeypatch, dtype):
    """One line with step, learning rate, last good checkpoint; what is on disk stays finite."""
    monkeypatch.setattr("tools.figures.learning_curve", lambda folder: "")
    take_step, good, count = train.take_step, 0, 0
    places = ["weight", "weight that no text uses", "batch", "loss", "gradient"]
    for where in random.Random(dtype).sample(places, times(2, 5)):
        for value in (math.nan, math.inf)[: times(1, 2)]:
            for log_every in (1, 10)[: times(1, 2)]:

                def take_spoilt_step(run, module, autocast, blocks):
                    if run.step == 6:
                        spoil(run, where, value, blocks.rows(6 * 16, 16)[0])
                    take_step(run, module, autocast, blocks)

                monkeypatch.setattr(train, "take_step", take_spoilt_step)
                s = tiny(fresh=True, save_every=5, eval_every=5, log_every=log_every, dtype=dtype)
                at = 7 if where == "loss" else 0
                objective = lambda model: SpoiltLoss(model, at, value)  # noqa: E731
                count += 1
                if where == "gradient" and dtype == "float16":  # the scaler leaves out that step
                    train.main(s, objective)
                    good += saved()["step"] == 30 and all_finite(saved()) and all_finite(log())
                    continue
                said = refusal(train.main, s, objective)
                clear = re.match(r"step (7|10): .* rate of [\d.e-]+\. .*--from=out/tiny/checkpoint.pt", said)
                files = saved(), saved("best.pt"), log()
                good += bool(clear) and all(map(all_finite, files)) and files[0]["step"] == 5
                assert max(record["step"] for record in log()) <= 10
    note = "stopped; step, learning rate, last good checkpoint named; files finite"
    if dtype == "float16":
        note += "; a step whose gradient alone is spoilt is left out"
    figure(f"NaN and infinity, {dtype}", good, count, note)


def test_a_run_in_float16_continues_to_the_bit(workplace, tiny):
    """With the scale of its gradients."""
    train.main(tiny(run="whole", dtype="float16", save_every=15))
    train.main(tiny(run="halves", dtype="float16", save_every=15))
    shutil.copy("out/halves/previous.pt", "out/halves/checkpoint.pt")
    assert saved(run="halves")["step"] == 15 and saved(run="halves")["scaler"]["_growth_tracker"] == 15
    train.main(tiny(run="halves", dtype="float16", save_every=15))
    same(contents("halves"), contents("whole"))
