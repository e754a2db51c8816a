"""Weights sharded over processes (FSDP) compute and save what one process does."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import distill
import train
from conftest import bits, log, losses, saved
from model import LanguageModel
from support.parallel import recompute_blocks

import pytest
import torch
from processes import fork_many, fork_two, needs_fork

pytestmark = needs_fork
EXACT = dict(dtype="float64", max_steps=20, eval_every=10, log_every=1)


def in_two(work):
    codes, said = fork_two(work)
    assert codes == [0, 0], said


def worst_difference(one, other):
    """The largest between two checkpoints' weights and optimizer, as a share of the largest number of a tensor."""
    worst = 0
    assert one.keys() == other.keys()
    for name, x in one.items():
        if isinstance(x, dict):
            worst = max(worst, worst_difference(x, other[name]))
        elif isinstance(x, torch.Tensor):
            assert x.shape == other[name].shape and x.dtype == other[name].dtype, name
            worst = max(worst, ((x - other[name]).abs().max() / x.abs().max().clamp(min=1e-30)).item())
    return worst


@pytest.mark.parametrize(
    "settings",
    [
        {},
        dict(mixer="mingru attention", tie_embeddings=True, accumulate=2, conv=4),
        dict(mixer="mamba", checkpoint_activations=True, kernels="loop"),
        dict(mixer="attention hgrn2", position="rope", compile="yes", checkpoint_activations=True),
    ],
    ids=str,
)
def test_two_processes_with_shards_compute_what_one_does(workplace, tiny, settings, monkeypatch):
    """In float64 losses to 1e-9 over twenty steps, weights and optimizer to 1e-8."""
    compile_eagerly = partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", compile_eagerly)
    train.main(tiny(run="one", **EXACT | settings))
    in_two(partial(train.main, tiny(run="two", parallel="fsdp", **EXACT | settings)))
    assert losses("two") == pytest.approx(losses("one"), rel=1e-9, abs=0)
    scores = [[record["val_loss"] for record in log(run) if "val_loss" in record] for run in ("one", "two")]
    assert scores[1] == pytest.approx(scores[0], rel=1e-9) and len(scores[0]) == 3
    assert worst_difference(saved(run="one"), saved(run="two")) < 1e-8


def test_a_student_and_its_teacher_are_sharded(workplace, tiny):
    """In float64; and in bfloat16, in which a teacher's linear layers are kept."""
    low = distill.Settings(**vars(tiny(dtype="bfloat16", max_steps=3)), teacher="out/tiny", alpha=0.5)
    for parallel in ("ddp", "fsdp"):
        in_two(partial(distill.main, replace(low, run=parallel, parallel=parallel)))
    assert losses("fsdp")[0] == losses("ddp")[0] and losses("fsdp") == pytest.approx(losses("ddp"), rel=2e-3)
    s = distill.Settings(**vars(tiny(run="one", **EXACT)), teacher="out/tiny", alpha=0.5)
    distill.main(s)
    in_two(partial(distill.main, replace(s, run="two", parallel="fsdp")))
    assert losses("two") == pytest.approx(losses("one"), rel=1e-9, abs=0)
    assert worst_difference(saved(run="one")["model"], saved(run="two")["model"]) < 1e-8


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_shards_compute_under_autocast_what_whole_weights_do(workplace, tiny, dtype):
    """The first loss is the same to the bit, for weights are gathered in float32; then to rounding."""
    for parallel in ("ddp", "fsdp"):
        in_two(
            partial(train.main, tiny(run=parallel, parallel=parallel, dtype=dtype, log_every=1, max_steps=5))
        )
    assert losses("fsdp")[0] == losses("ddp")[0]
    assert losses("fsdp") == pytest.approx(losses("ddp"), rel=2e-3)


def test_a_run_goes_on_with_other_processes_and_shards(workplace, tiny):
    """One process, two with whole weights, two and four with shards: the same curve, the same file."""
    settings = EXACT | dict(batch_size=8, schedule="constant")
    train.main(tiny(run="one", **settings))
    ways = [(2, "fsdp"), (1, "ddp"), (4, "fsdp"), (2, "ddp"), (2, "fsdp")]
    for number, (count, parallel) in enumerate(ways):
        now = settings | dict(run="many", parallel=parallel, max_steps=4 * number + 4)
        work = partial(train.main, tiny(**now))
        assert set(fork_many(count, work)[0]) == {0}
    assert losses("many") == pytest.approx(losses("one"), rel=1e-9, abs=0)
    assert worst_difference(saved(run="one"), saved(run="many")) < 1e-8


def test_resuming_changes_no_bit(workplace, tiny):
    """... of two processes with shards, with dropout, after a step without a validation."""
    settings = dict(parallel="fsdp", dropout=0.1, max_steps=6, eval_every=4, save_every=3, log_every=1)
    for run, stops in (("whole", (6,)), ("parts", (3, 6))):
        for steps in stops:
            in_two(
                partial(train.main, tiny(run=run, schedule="constant", **settings | dict(max_steps=steps)))
            )
    assert bits(saved(run="parts")) == bits(saved(run="whole")) and losses("parts") == losses("whole")


def test_on_a_mac_dropout_and_recomputed_blocks_exclude_each_other(tiny, refusal):
    for dropout in (0.1, 0.0):
        model = LanguageModel(tiny(dropout=dropout))
        del model.embed.weight
        model.embed.weight = SimpleNamespace(device=torch.device("mps"))
        if dropout:
            assert "set dropout = 0.0" in refusal(recompute_blocks, model)
        else:
            recompute_blocks(model)
