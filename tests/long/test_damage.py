"""Checkpoints with flipped bits, cut short, zeroed: named, and the one before them taken. Long with --long."""

import json
import random
from pathlib import Path

import evaluate
import sample
import train
from conftest import contents, same
from support import files

import pytest
import torch

STATE = {"step": 7, "weights": {"w": torch.arange(9000.0)}, "text": "a", "list": [1, 2.5, None]}


def flip_a_bit(raw, r):
    i = r.randrange(len(raw))
    return raw[:i] + bytes([raw[i] ^ 1 << r.randrange(8)]) + raw[i + 1 :]


def truncate(raw, r):
    return raw[: r.randrange(len(raw))]


def zero_a_block(raw, r):
    start = r.randrange(len(raw) - 4096)
    if not any(raw[start : start + 4096]):  # zero already: no damage
        return zero_a_block(raw, r)
    return raw[:start] + bytes(4096) + raw[start + 4096 :]


DAMAGE = {"flipped bits": flip_a_bit, "files cut short": truncate, "4 KiB blocks of zeros": zero_a_block}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(tmp_path, times, figure, capsys, kind):
    for step in (6, 7):
        files.save(STATE | {"step": step}, tmp_path / "checkpoint.pt", tmp_path / "previous.pt")
    file, r, refused, count = tmp_path / "checkpoint.pt", random.Random(0), 0, times(10, 100)
    raw = file.read_bytes()
    for _ in range(count):
        file.write_bytes(DAMAGE[kind](raw, r))
        state, path = files.read(tmp_path)
        named = capsys.readouterr().err.startswith(f"{file} is damaged")
        refused += named and path == tmp_path / "previous.pt" and state["step"] == 6
    figure(f"checkpoints with {kind}", refused, count, "refused by name, the one before is taken")


@pytest.mark.parametrize("kind", DAMAGE)
def test_all_scripts_go_on_from_the_checkpoint_before(workplace, tiny, capsys, kind):
    """train.py ends with what an undamaged run has; evaluate.py and sample.py work with what is left."""
    before, file, r = contents(), Path("out/tiny/checkpoint.pt"), random.Random(1)
    file.write_bytes(DAMAGE[kind](file.read_bytes(), r))
    pair = {"sentence_good": "The cat sees a dog.", "sentence_bad": "dogs a the."}
    Path("pairs.jsonl").write_text(json.dumps(pair) + "\n")
    for work in (
        lambda: evaluate.main(evaluate.Settings(run="out/tiny", tasks="pairs.jsonl", device="cpu")),
        lambda: sample.main(sample.Settings(run="out/tiny", tokens=2, device="cpu")),
        lambda: train.main(tiny()),
    ):
        work()
        assert f"{file} is damaged" in capsys.readouterr().err
    same(contents(), before)
