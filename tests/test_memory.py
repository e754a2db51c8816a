"""The forecast of a GPU's memory is what PyTorch's allocator came to."""

import json
from dataclasses import replace
from types import SimpleNamespace

from conftest import ROOT
from support import memory as memory_module
from support.memory import COMPILED, GIB, Memory

import pytest
import torch

RESULTS = ROOT / "results" / "memory.json"
SMALL = Memory(
    weights=10 * GIB, gradients=10 * GIB, optimizer=20 * GIB, fixed=2 * GIB, each=0.25 * GIB,
    blocks=[1 * GIB, 3 * GIB], inputs=0.5 * GIB, compiled=False,
)  # fmt: skip


STATED = ("", "--accumulate=2", "--accumulate=4", "--checkpoint_activations --accumulate=4")


def comment_of(config):
    """The first comment of a settings file, as one line."""
    comment = (ROOT / "config" / f"{config}.py").read_text(encoding="utf-8").partition("\n\n")[0]
    return comment.replace("\n# ", " ")


def rows():
    return json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row['config']} {row['flags']}")
def test_it_is_what_the_allocator_came_to(row):
    """To 15 % or a quarter of a GiB; and the settings file says what it is."""
    expected = Memory(**row["memory"]).peak(*row["pass"])
    assert expected == pytest.approx(row["peak"], rel=0.15, abs=GIB / 4)
    if row["flags"] in STATED:
        peak = row["peak"] / GIB
        assert f" {peak:.{int(peak < 10)}f} GiB" in comment_of(row["config"])


def test_the_lstms_is_that_of_pytorchs_own_cells():
    peak = json.loads(RESULTS.read_text(encoding="utf-8"))["lstm_10m_without_cudnn"]
    assert f"takes {peak / GIB:.0f} GiB" in comment_of("lstm_10m")


def test_the_page_on_usage_has_these_figures():
    """Of the 366M parameters on two GPUs: whole on each, in shards, in shards and computed again."""
    peaks = {row["flags"]: f"{row['peak'] / GIB:.1f}" for row in rows() if row["config"] == "hgrn2_10m"}
    ways = ("", " --parallel=fsdp", " --parallel=fsdp --checkpoint_activations")
    whole, shards, both = (peaks[f"--batch_size=32{way}"] for way in ways)
    text = " ".join((ROOT / "USAGE.md").read_text(encoding="utf-8").split())
    assert f"take {whole} GiB, in shards {shards}, and {both} if blocks are also computed again" in text


def test_the_peak_is_a_sum():
    def peak(*args):
        return SMALL.peak(*args) / GIB

    assert peak(4, 1, False, False) == 10 + 20 + 2 + 4 * 4.25
    assert peak(4, 2, False, False) == peak(4, 1, False, True) == 10 + 20 + 10 + 2 + 4 * 4.25
    assert peak(4, 1, True, False) == 10 + 20 + 2 + 4 * (0.25 + 0.5 + 3)
    assert peak(1, 1, True, False) == 10 + 20 + 10  # all gradients, when nothing else is kept any more
    compiled = replace(SMALL, compiled=True).peak(4, 1, False, False) / GIB
    assert compiled == pytest.approx(32 + 4 * (0.25 + 4 * COMPILED))


def say(memory, s, there, monkeypatch):
    card = SimpleNamespace(total_memory=there * GIB)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    memory_module.say_forecast(memory, s)


@pytest.mark.parametrize(
    "there, said",
    {
        60: "about 49.0 of 60.0 GiB",
        50: "that does not fit; with --accumulate=4 --checkpoint_activations it takes 45.8 GiB",
        20: "that does not fit, however",
    }.items(),
)
def test_where_it_does_not_fit_it_says_what_does(tiny, monkeypatch, capsys, there, said):
    say(SMALL, tiny(batch_size=4), there, monkeypatch)
    assert said in capsys.readouterr().out


def test_a_smaller_part_of_the_batch_is_tried_first(tiny, monkeypatch, capsys):
    little = replace(SMALL, gradients=1 * GIB)  # weights 10, optimizer 20, passing 2 + 4.25 a sequence
    say(little, tiny(batch_size=8), 50, monkeypatch)
    assert "with --accumulate=4 it takes 41.5 GiB" in capsys.readouterr().out


def test_the_advice_keeps_checkpoint_activations(tiny, monkeypatch, capsys):
    little = replace(SMALL, gradients=1 * GIB)
    s = tiny(batch_size=8, checkpoint_activations=True)
    say(little, s, 46, monkeypatch)
    peak = little.peak(2, 4, True, False) / GIB
    assert f"with --accumulate=4 --checkpoint_activations it takes {peak:.1f} GiB" in capsys.readouterr().out


@pytest.mark.parametrize("processes", [1, 2])
def test_too_little_memory_to_measure_in_is_no_error(tiny, monkeypatch, capsys, processes):
    """... of one process; of several, the others may be waiting for this one."""

    def measure(*given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(memory_module, "measure", measure)
    monkeypatch.setattr(memory_module, "world_size", lambda: processes)
    if processes > 1:
        with pytest.raises(torch.OutOfMemoryError):
            memory_module.say_memory(None, tiny(), None, True)
        return
    memory_module.say_memory(None, tiny(), None, True)
    assert "too little is free to measure" in capsys.readouterr().out
