"""A run is the same to the bit however often it is stopped, and the same on two processes as on one."""

import json
import os
import random
import re
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import data
import evaluate
import support.run
import train
from conftest import TINY, bits, contents, log, losses, same, saved
from model import LanguageModel, load
from support.files import read, save
from support.processes import Stopped

import pytest
from processes import fork, fork_two, needs_fork, stopping_at, wait_until

# 30 steps, three epochs, and best before the end; weights are kept at ten of the steps, twice at two of them
LONGER = dict(run="longer", dropout=0.1, eval_every=4, learning_rate=0.2, schedule="constant")
LONGER |= dict(checkpoints="babylm")
MILLION = 150  # words, so that there are marks to pass


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """They take longer than such a run; test_train.py has one."""
    monkeypatch.setattr("tools.figures.learning_curve", lambda folder: "")


def kept(run):
    """The weights that a run has kept after so many words."""
    return {path.name: bits(saved(path.name, run)) for path in Path("out", run).glob("chck_*.pt")}


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

        def in_order_then_stop(blocks, *most):
            for batch in in_order(blocks, *most):
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
        patch.setattr("support.run.MILLION", MILLION)
        s = train.Settings(**TINY | LONGER)
        train.main(s)
        content = contents("longer"), kept("longer")
        shutil.rmtree("out/longer")
    return s, *content


STOPS = [[(8, True)], [(0, True)], [(5, False), (16, True), (23, False)]]  # [(step, while validating), ...]


def test_a_stopped_run_continues_to_the_bit(workplace, uninterrupted, stop_at, monkeypatch, times):
    """Same log and checkpoints as never stopped: with dropout, over ends of epochs, after three resumes."""
    s, content, weights = uninterrupted
    monkeypatch.setattr("support.run.MILLION", MILLION)
    steps = random.Random(0).sample(range(1, 30), times(2, 29))
    for stops in STOPS + [[(step, False)] for step in steps]:
        for step, validating in stops:
            stop_at(step, validating)
            with pytest.raises(Stopped):
                train.main(s)
            assert saved(run="longer")["step"] == step
        stop_at(None)
        train.main(s)
        same(contents("longer"), content)
        assert kept("longer") == weights and len(weights) == 12, stops
        shutil.rmtree("out/longer")


def test_weights_kept_by_another_plan_are_kept_anew(workplace, tiny, monkeypatch):
    """A run is killed between two saves, and goes on with more steps and other learning rates."""
    monkeypatch.setattr("support.run.MILLION", MILLION)
    train.main(tiny(run="long", schedule="linear", max_steps=17, checkpoints="babylm"))
    take_step = train.take_step

    def take_step_or_die(run, *args):
        if run.step == 5:
            raise MemoryError
        take_step(run, *args)

    with monkeypatch.context() as patch:
        patch.setattr(train, "take_step", take_step_or_die)
        with pytest.raises(MemoryError):
            train.main(tiny(run="longer", schedule="linear", max_steps=8, checkpoints="babylm"))
    assert saved(run="longer")["step"] == 0 and len(kept("longer")) == 6
    train.main(tiny(run="longer", schedule="linear", max_steps=17, checkpoints="babylm"))
    assert kept("longer") == kept("long")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_pairs_are_scored_stops_after_the_batch(workplace, tiny, monkeypatch, number):
    """... and what is evaluated anew, when the run continues, gives the same log and the same best.pt."""
    lines = [
        {"sentence_good": f"The cat sees {i}.", "sentence_bad": f"cat The {i} sees."} for i in range(500)
    ]
    Path("many.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    s = tiny(run="scored", max_steps=4, eval_every=2, eval_pairs="many.jsonl", best_by="pairs")
    train.main(s)
    content, batches = contents("scored"), []
    shutil.rmtree("out/scored")
    score_task = evaluate.score_task

    def stopped(model, tokenizer, task, each_batch):
        def after_batch():
            batches.append(len(log("scored")))
            if batches.count(3) == 1:  # of the evaluation at step 2
                signal.raise_signal(number)
            each_batch()

        return score_task(model, tokenizer, task, after_batch)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "score_task", stopped)
        with pytest.raises(Stopped):
            train.main(s)
    assert batches.count(3) == 1 and len(batches) > 2
    assert saved(run="scored")["step"] == 2
    train.main(s)
    same(contents("scored"), content)


@needs_fork
def test_kill_9_loses_none_of_the_kept_weights(workplace, uninterrupted, monkeypatch, times):
    """Killed at random moments, within a save and between two: at the end all are as if never killed."""
    s, content, weights = uninterrupted
    monkeypatch.setattr("support.run.MILLION", MILLION)
    r, kills, ended = random.Random(0), 0, 0
    while kills < times(3, 40) or not ended:
        folder = Path(f"out/killed{ended}")
        training = fork(partial(train.main, replace(s, run=folder.name, save_every=3)))
        lines = len(log(folder.name)) + r.randrange(20 if kills < times(3, 40) else 999)
        inside = r.random() < 0.5  # a file being written
        wait_until(
            lambda: len(log(folder.name)) >= lines and (not inside or [*folder.glob("chck*.unfinished")]),
            training,
        )
        training.kill()
        training.join()
        if training.exitcode == 0:
            same(contents(folder.name), content)
            assert kept(folder.name) == weights and not [*folder.glob("*.unfinished")]
            ended += 1
        else:
            kills += 1
            assert kept(folder.name).items() <= weights.items()


def test_what_was_logged_after_the_last_checkpoint_is_logged_once(workplace, tiny):
    """As after kill -9: the log is longer than the checkpoint knows, and its last line is cut."""
    content = contents()
    shutil.copy("out/tiny/previous.pt", "out/tiny/checkpoint.pt")
    assert saved()["step"] < 30
    with open("out/tiny/log.jsonl", "a") as file:
        file.write('{"step": 3')
    train.main(tiny())
    same(contents(), content)


def test_a_finished_run_says_so_and_stays(workplace, tiny, capsys):
    before = contents()
    train.main(tiny())
    assert "done: 30 of 30 steps" in capsys.readouterr().out
    same(contents(), before)


def test_fewer_steps_than_are_done_take_none(workplace, tiny, capsys, stop_at):
    """Stopped at 23, asked for 21: done, and not training for ever after a step that will not come."""
    stop_at(23)
    with pytest.raises(Stopped):
        train.main(tiny(run="other"))
    train.main(tiny(run="other", max_steps=21))
    assert saved(run="other")["step"] == 23 and "done: 23 of 21 steps" in capsys.readouterr().out


def test_a_corpus_made_anew_is_noticed_and_one_that_moved_is_not(workplace, tiny, refusal):
    """What counts is the text and the tokenizer, not where the files lie."""
    Path("elsewhere").mkdir()
    moved = Path("text.txt").rename("elsewhere/text.txt")
    data.prepare("tiny", [str(moved)], data.Settings(vocab_size=300, val_share=0.1))
    train.main(tiny(max_steps=31))
    assert saved()["step"] == 31
    moved.write_text(moved.read_text() + "Another story.\n")
    data.prepare("tiny", [str(moved)], data.Settings(vocab_size=300, val_share=0.1))
    assert "another corpus by the name 'tiny'" in refusal(train.main, tiny(max_steps=32))


@pytest.mark.parametrize(
    "change, listed",
    [
        (dict(learning_rate=0.5), "learning_rate 0.01 then, 0.5 now"),
        (dict(n_layer=3), "n_layer 2 then, 3 now"),
    ],
)
def test_changed_settings_are_listed_unless_the_run_starts_anew(workplace, tiny, refusal, change, listed):
    before = contents()
    assert listed in refusal(train.main, tiny(**change))
    same(contents(), before)
    train.main(tiny(**change, fresh=True, max_steps=1))
    assert saved()["step"] == 1 and len(losses()) == 1


def test_how_long_and_how_often_may_change(workplace, tiny):
    train.main(tiny(max_steps=32, log_every=2, eval_every=3, save_every=5, accumulate=2, kernels="loop"))
    assert saved()["step"] == 32


def test_a_run_made_longer_says_how_its_learning_rate_jumps(workplace, tiny, capsys):
    train.main(tiny(max_steps=60))
    said = "30 steps were planned, now 60: the learning rate jumps from 3.4e-05 to 0.0054; "
    assert said in capsys.readouterr().out
    for max_steps in (4, 8):
        train.main(tiny(run="flat", schedule="constant", max_steps=max_steps))
    assert "jumps" not in capsys.readouterr().out


def test_a_wsd_run_made_longer_is_as_if_it_had_been_long_from_the_start(
    workplace, tiny, capsys, monkeypatch
):
    """It continues from where its learning rate was still constant, twice."""
    monkeypatch.setattr("support.run.MILLION", MILLION)
    s = tiny(run="long", schedule="wsd", max_steps=17, save_every=3, warmup=2, checkpoints="babylm")
    train.main(s)
    for max_steps in (5, 8, 17):
        train.main(replace(s, run="longer", max_steps=max_steps))
    same(contents("longer"), contents("long"))
    assert kept("longer") == kept("long") and len(kept("long")) == 11
    assert "jumps" not in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------
# Two processes


@needs_fork
def test_two_processes_are_one(workplace, tiny):
    """In float64 twenty losses are within 1e-9 of one process."""
    s = tiny(run="one", dtype="float64", max_steps=20)
    train.main(s)
    codes, said = fork_two(partial(train.main, replace(s, run="two")))
    assert codes == [0, 0] and said.count("done: 20 of 20") == 1, said
    assert losses("two") == pytest.approx(losses("one"), abs=1e-9) and len(losses("two")) == 20
    values = [[record["val_loss"] for record in log(run) if "val_loss" in record] for run in ("one", "two")]
    assert values[0] == pytest.approx(values[1], abs=1e-9)


@needs_fork
def test_two_processes_keep_each_of_the_weights_once(workplace, tiny, monkeypatch):
    """... at the step that one process would; and what they keep, load() takes."""
    save = support.run.save

    def save_and_say(state, path, *previous):
        save(state, path, *previous)
        print("wrote", path.name)

    monkeypatch.setattr("support.run.MILLION", MILLION)
    monkeypatch.setattr("support.run.save", save_and_say)
    codes, said = fork_two(partial(train.main, tiny(checkpoints="babylm", fresh=True)))
    assert codes == [0, 0], said
    wrote = re.findall(r"wrote (chck_\w+\.pt)", said)
    marks = {saved(name)["step"] for name in wrote}
    assert sorted(wrote) == sorted(kept("tiny")) and len(wrote) == 12
    assert marks == {*range(1, 9), 17, 25}  # round(mark x 156 blocks / (1,728 words x 16 blocks a step))
    assert all(load(f"out/tiny/{name}") for name in wrote)


@needs_fork
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_signal_to_one_process_stops_both_at_one_step(workplace, tiny, monkeypatch, parallel):
    """... and in float32 the first loss and gradient are within 1e-6 of one process."""
    train.main(tiny(run="one", max_steps=1))
    monkeypatch.setattr(train, "take_step", stopping_at(3, number=1))
    codes, said = fork_two(partial(train.main, tiny(run="two", parallel=parallel)))
    assert 0 not in codes and said.count("stopped at step 3 of 30 and saved") == 1
    assert saved(run="two")["step"] == 3
    first_of_one, first_of_two = ([r for r in log(run) if "loss" in r][0] for run in ("one", "two"))
    for name in ("loss", "grad_norm"):
        assert first_of_two[name] == pytest.approx(first_of_one[name], rel=1e-6)


def test_a_checkpoint_with_other_weights_is_refused_by_name(workplace, tiny, monkeypatch, refusal):
    """As after a layer was renamed in model.py."""
    monkeypatch.setattr(LanguageModel, "state_dict", lambda self: {"another": None})
    said = refusal(train.main, tiny(max_steps=40))
    assert "checkpoint.pt: its weights have other names than this model's" in said.replace(os.sep, "/")


@pytest.mark.parametrize("tokens", [64, 128])
def test_the_best_is_of_one_validation_text(workplace, tiny, tokens):
    """A loss that cannot be beaten stays the best, but not with another eval_tokens."""
    part = partial(tiny, run="part", eval_every=2, schedule="constant")
    train.main(part(max_steps=4, eval_tokens=64))
    checkpoint = Path("out/part/checkpoint.pt")
    state, _ = read(checkpoint)
    del state["digest"]
    save(state | {"best": 0.0}, checkpoint)
    train.main(part(max_steps=6, eval_tokens=tokens))
    assert (saved(run="part")["best"] == 0.0) == (tokens == 64)
