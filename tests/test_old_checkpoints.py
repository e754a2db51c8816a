"""Runs trained before HGRN2's forget floors were one table of the model: each of its layers had the same one."""

from pathlib import Path

import distill
import evaluate
import sample
import train
from conftest import saved
from model import load
from support.files import fingerprint, save

import pytest
import torch


def with_old_names(weights, layers):
    """Weights as they were named then: the floors in each of these layers."""
    old = {name: weight for name, weight in weights.items() if name != "floors.table"}
    for layer in layers:
        old[f"layers.{layer}.mixer.floors.table"] = weights["floors.table"]
    return old


@pytest.fixture
def old(workplace):
    """out/old, which is out/tiny with the names of then."""
    for name in ("checkpoint.pt", "best.pt"):
        state = saved(name)
        save(state | {"model": with_old_names(state["model"], (0, 1))}, Path("out/old", name))
    for name in ("settings.json", "tokenizer.json", "log.jsonl"):
        Path("out/old", name).write_bytes(Path("out/tiny", name).read_bytes())
    return Path("out/old")


def test_an_old_run_says_the_same(old):
    tokens = torch.arange(16)[None]
    assert "layers.1.mixer.floors.table" in saved(run="old")["model"]
    for name in ("", "best.pt"):
        assert torch.equal(load(old / name)[0](tokens)[0], load(f"out/tiny/{name}")[0](tokens)[0])


def test_so_does_an_old_hybrid(old, tiny):
    train.main(tiny(run="new", mixer="hgrn2 attention", n_layer=4, max_steps=2))
    state = saved(run="new")
    save(state | {"model": with_old_names(state["model"], (0, 2))}, old / "checkpoint.pt")
    tokens = torch.arange(16)[None]
    assert torch.equal(load(old)[0](tokens)[0], load("out/new")[0](tokens)[0])


def test_it_is_scored_sampled_and_teaches(old, tiny, capsys):
    Path("pairs.jsonl").write_text('{"sentence_good": "The cat sees.", "sentence_bad": "cat The sees."}\n')
    said, perplexity = [], []
    for run in ("out/tiny", str(old)):
        settings = evaluate.Settings(run, tasks="pairs.jsonl", device="cpu")
        perplexity.append(evaluate.main(settings)["perplexity"])
        capsys.readouterr()
        sample.main(sample.Settings(run, tokens=20, device="cpu"))
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and perplexity[0] == perplexity[1]
    s = vars(tiny(run="pupil", max_steps=2)) | {"teacher": str(old)}
    distill.main(distill.Settings(**s))
    assert saved(run="pupil")["settings"]["teacher_is"] == fingerprint(old / "checkpoint.pt")[:16]


def test_it_cannot_be_resumed(old, tiny, refusal):
    """Its optimizer's numbers are in the order of the weights of then."""
    before = (old / "checkpoint.pt").read_bytes()
    said = refusal(train.main, tiny(run="old", max_steps=31))
    assert said.startswith("out/old/checkpoint.pt: holds weights alone, or is of an earlier version")
    assert said.count("\n") == 1 and (old / "checkpoint.pt").read_bytes() == before
