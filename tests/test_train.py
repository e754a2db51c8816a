"""Training: it learns, it is the same however it is interrupted or divided, and it says what is wrong."""

import json
import math
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import checkpoint
import data
import train
from model import LanguageModel, load

LONGER = dict(dropout=0.1, eval_every=8)  # 30 steps with 18 or so to the epoch


def log(run="tiny"):
    return checkpoint.read_log(Path("out") / run)


def losses(run="tiny"):
    return [record["loss"] for record in log(run) if "loss" in record]


def saved(name="checkpoint.pt", run="tiny"):
    return torch.load(Path("out", run, name), weights_only=True)


def bits(x):
    """A checkpoint's tensors as bytes, so that == compares them to the bit."""
    if isinstance(x, dict):
        return {name: bits(part) for name, part in x.items() if name != "settings"}
    return x.numpy().tobytes() if isinstance(x, torch.Tensor) else x


def contents(run="tiny"):
    """What two runs have in common if they are the same to the bit: the log, the last and the best checkpoint."""
    log = Path("out", run, "log.jsonl").read_text().splitlines()
    return log, bits(saved("checkpoint.pt", run)), bits(saved("best.pt", run))


def same(one, other):
    """Compare contents() without printing megabytes."""
    equal = one == other
    assert one[0] == other[0] and equal


@pytest.mark.parametrize("model", [dict(mixer="hgrn2"), dict(mixer="attention", position="rope")], ids=str)
def test_the_loss_falls(workplace, tiny, model):
    train.main(tiny(**model, fresh=True, max_steps=60))
    validation = [record["val_loss"] for record in log() if "val_loss" in record]
    assert abs(losses()[0] - math.log(300)) < 0.1
    assert losses()[-1] < 2.5 and validation[-1] < 2.5


def test_the_run_folder_holds_all_that_the_model_needs(workplace, tiny, tmp_path, monkeypatch):
    """Copied elsewhere, without the corpus, it loads and says the same."""
    assert {file.name for file in Path("out/tiny").iterdir()} == {
        *("checkpoint.pt", "previous.pt", "best.pt", "settings.json"),
        *("tokenizer.json", "log.jsonl", "learning_curve.svg"),
    }
    assert json.loads(Path("out/tiny/settings.json").read_text()) == asdict(tiny())
    assert Path("out/tiny/tokenizer.json").read_text() == Path("data/tiny/tokenizer.json").read_text()
    tokens = torch.arange(16)[None]
    before = load("out/tiny")[0](tokens)[0]
    shutil.move("out/tiny", tmp_path / "elsewhere")
    shutil.rmtree(workplace / "data")
    monkeypatch.chdir(tmp_path)
    model, tokenizer, settings = load("elsewhere")
    assert torch.equal(model(tokens)[0], before)
    assert (tokenizer.get_vocab_size(), settings.run) == (300, "tiny")


def test_the_same_seed_gives_the_same_run_to_the_bit(workplace, tiny):
    first = contents()
    train.main(tiny(fresh=True))
    same(contents(), first)
    train.main(tiny(fresh=True, seed=1))
    assert losses()[0] != json.loads(first[0][1])["loss"]


# ----------------------------------------------------------------------------------------------------
# Stopping and continuing


@pytest.fixture
def stop_at(monkeypatch):
    """stop_at(5) lets Ctrl-C come after the fifth step; stop_at(8, validating=True) within its validation."""
    take_step, in_order = train.take_step, data.Blocks.in_order

    def call(step, validating=False):
        def take_step_then_stop(run, *rest):
            take_step(run, *rest)
            now.append(run.step)
            if run.step == step and not validating:
                signal.raise_signal(signal.SIGINT)

        def in_order_then_stop(blocks, count):
            for batch in in_order(blocks, count):
                yield batch
                if now[-1] == step and validating:
                    signal.raise_signal(signal.SIGINT)

        now = [0]
        monkeypatch.setattr(train, "take_step", take_step_then_stop)
        monkeypatch.setattr(data.Blocks, "in_order", in_order_then_stop)

    return call


@pytest.fixture(scope="module")
def uninterrupted(prepared):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(prepared)
        patch.delenv("NANORNN_DATA", raising=False)
        s = train.Settings(**json.loads(Path("out/tiny/settings.json").read_text()) | LONGER | {"run": "longer"})
        train.main(s)
        content = contents("longer")
        shutil.rmtree("out/longer")
    return s, content


@pytest.mark.parametrize(
    "stops",
    [[(step, False)] for step in random.Random(0).sample(range(1, 30), 3)]
    + [[(8, True)], [(0, True)], [(5, False), (16, True), (23, False)]],
    ids=str,
)
def test_a_stopped_run_continues_to_the_bit(workplace, uninterrupted, stop_at, stops):
    """Same log, same checkpoints as never stopped: with dropout, over an epoch's end, resumed three times."""
    s, content = uninterrupted
    for step, validating in stops:
        stop_at(step, validating)
        with pytest.raises(SystemExit) as end:
            train.main(s)
        assert end.value.code == 130 and saved(run="longer")["step"] == step
    stop_at(None)
    train.main(s)
    same(contents("longer"), content)


def test_what_was_logged_after_the_last_checkpoint_is_logged_once(workplace, tiny):
    """As after kill -9: the log is longer than the checkpoint knows, and its last line is cut."""
    content = contents()
    shutil.copy("out/tiny/previous.pt", "out/tiny/checkpoint.pt")
    assert saved()["step"] < 30
    with open("out/tiny/log.jsonl", "a") as file:
        file.write('{"step": 3')
    train.main(tiny())
    same(contents(), content)


def test_sigterm_saves_and_the_same_command_continues(script, workplace):
    command = [sys.executable, str(ROOT / "train.py"), "tiny.py", "--run=long", "--max_steps=1000000"]
    training = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    while len(log("long")) < 5 and training.poll() is None:
        time.sleep(0.05)
    training.terminate()
    said = training.communicate(timeout=60)[0]
    step = saved(run="long")["step"]
    assert training.returncode == 130 and f"stopped at step {step:,} of" in said
    result = script("train.py", "tiny.py", "--run=long", f"--max_steps={step + 2}")
    assert result.returncode == 0 and f"step {step:,} of {step + 2:,}" in result.stdout
    assert saved(run="long")["step"] == step + 2


def test_a_finished_run_says_so_and_stays(workplace, tiny, capsys):
    before = contents()
    train.main(tiny())
    assert "done: 30 of 30 steps" in capsys.readouterr().out
    same(contents(), before)


@pytest.mark.parametrize(
    "change, listed",
    [(dict(learning_rate=0.5), "learning_rate 0.01 then, 0.5 now"), (dict(n_layer=3), "n_layer 2 then, 3 now")],
)
def test_changed_settings_are_listed_unless_the_run_starts_anew(workplace, tiny, refusal, change, listed):
    before = contents()
    assert listed in refusal(train.main, tiny(**change))
    same(contents(), before)
    train.main(tiny(**change, fresh=True, max_steps=1))
    assert saved()["step"] == 1 and len(losses()) == 1


def test_how_long_and_how_often_may_change(workplace, tiny):
    train.main(tiny(max_steps=32, log_every=2, eval_every=3, save_every=5, accumulate=2))
    assert saved()["step"] == 32


# ----------------------------------------------------------------------------------------------------
# One batch, divided


def test_accumulating_changes_nothing(workplace, tiny):
    for accumulate in (1, 4):
        train.main(tiny(run=f"by{accumulate}", accumulate=accumulate, dtype="float64", max_steps=20))
    assert losses("by4") == pytest.approx(losses("by1"), abs=1e-9) and len(losses("by1")) == 20


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--")
STOPPED_BY_ONE = f"""
import os, signal, sys; sys.path.insert(0, {str(ROOT)!r})
import train
from config import configure
take_step = train.take_step
def take_step_then_stop(run, *rest):
    take_step(run, *rest)
    if run.step == 3 and os.environ["RANK"] == "1":
        signal.raise_signal(signal.SIGTERM)
train.take_step = take_step_then_stop
train.main(configure(train.Settings(), sys.argv[1:]))
"""


def test_two_processes_are_one(script, workplace, tiny):
    """torchrun with two processes: in float64 twenty losses within 1e-9 of one process."""
    train.main(tiny(run="one", dtype="float64", max_steps=20))
    result = script(
        "train.py", "tiny.py", "--run=two", "--dtype=float64", "--max_steps=20", launcher=TORCHRUN
    )
    assert result.returncode == 0 and result.stdout.count("done: 20 of 20") == 1
    assert losses("two") == pytest.approx(losses("one"), abs=1e-9) and len(losses("two")) == 20
    values = [[record["val_loss"] for record in log(run) if "val_loss" in record] for run in ("one", "two")]
    assert values[0] == pytest.approx(values[1], abs=1e-9)


def test_a_signal_to_one_process_stops_both_at_one_step(script, workplace, tiny):
    """... and in float32 the first loss and gradient are within 1e-6 of one process."""
    Path("stopped_by_one.py").write_text(STOPPED_BY_ONE)
    result = script(workplace / "stopped_by_one.py", "tiny.py", "--run=two", launcher=TORCHRUN)
    assert result.returncode != 0 and "stopped at step 3 of 30 and saved" in result.stdout
    assert saved(run="two")["step"] == 3
    train.main(tiny(run="one", max_steps=1))
    first_of_one, first_of_two = ([r for r in log(run) if "loss" in r][0] for run in ("one", "two"))
    for name in ("loss", "grad_norm"):
        assert first_of_two[name] == pytest.approx(first_of_one[name], rel=1e-6)


# ----------------------------------------------------------------------------------------------------
# The recipe


@pytest.mark.parametrize("log_every", [1, 10])
def test_a_loss_that_is_no_number_stops_the_run(workplace, tiny, refusal, monkeypatch, log_every):
    """The line names step, learning rate and the last good checkpoint, which stays as it was."""
    take_step = train.take_step

    def poison(run, *rest):
        if run.step == 6:
            run.model.head.weight.data[3, 3] = math.nan
        take_step(run, *rest)

    monkeypatch.setattr(train, "take_step", poison)
    s = tiny(fresh=True, log_every=log_every, save_every=5, schedule="constant")
    said = refusal(train.main, s)
    assert re.search(r"step 7: the loss is nan, .* learning rate of 0.01\b.*out/tiny/checkpoint.pt\n", said)
    assert not checkpoint.damage("out/tiny/checkpoint.pt") and saved()["step"] == 5


@pytest.mark.parametrize(
    "schedule, step, expected",
    [(schedule, step, rate) for schedule in ("linear", "cosine", "constant") for step, rate in ((0, 0.25), (3, 1.0), (4, 1.0))]
    + [("linear", 6, 0.8), ("linear", 8, 0.6), ("linear", 12, 0.2), ("constant", 12, 1.0)]
    + [("cosine", 6, 0.2 + 0.4 * (1 + 2**-0.5)), ("cosine", 8, 0.6), ("cosine", 12, 0.2)],
)  # fmt: skip
def test_the_learning_rate_by_hand(tiny, schedule, step, expected):
    """Up to 1 in four steps, then down to 0.2 at step 12."""
    s = tiny(learning_rate=1.0, min_lr=0.2, warmup=4, schedule=schedule)
    assert train.learning_rate(step, s, 12) == pytest.approx(expected)


@pytest.mark.parametrize(
    "model, undecayed",
    [
        (dict(mixer="hgrn2"), r"norm|floors"),
        (dict(mixer="mingru", conv=4, norm="layernorm"), r"norm|bias|conv|update|candidate"),
        (dict(mixer="minlstm", mlp="gelu"), r"norm|bias|forget|input|candidate"),
        (dict(mixer="attention", position="learned", tie_embeddings=True), r"norm|bias"),
    ],
    ids=str,
)
def test_weight_decay_is_for_matrices(tiny, model, undecayed):
    """Not for norms, biases, floors, convolutions, nor minRNN's gates and candidates."""
    s = tiny(**model, weight_decay=0.1)
    model = LanguageModel(s)
    decay = {id(p): group["weight_decay"] for group in train.make_optimizer(model, s).param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.0 if re.search(undecayed, name) else 0.1), name


@pytest.mark.parametrize("best_by", ["loss", "pairs"])
def test_best_pt_is_the_best_by_validation(workplace, tiny, monkeypatch, best_by):
    """The run is spoilt after step 12 by a learning rate of 1, so its best is not its last."""
    pair = {"sentence_good": "The cat sees the dog and the bird.", "sentence_bad": "The bird. see cat cat sees and the"}
    Path("pairs.jsonl").write_text(json.dumps(pair) + "\n" + json.dumps({k: pair[v] for k, v in zip(pair, [*pair][::-1])}))
    monkeypatch.setattr(train, "learning_rate", lambda step, s, steps: 1e-2 if step < 12 else 1.0)
    train.main(tiny(fresh=True, eval_every=4, eval_pairs="pairs.jsonl", best_by=best_by))
    evaluations = [record for record in log() if "val_loss" in record]
    by = {"loss": lambda r: -r["val_loss"], "pairs": lambda r: r["pairs"]["pairs.jsonl"]["score"]}[best_by]
    assert [record["step"] for record in evaluations] == [0, 4, 8, 12, 16, 20, 24, 28, 30]
    assert saved("best.pt")["step"] == max(evaluations, key=by)["step"] < 30
