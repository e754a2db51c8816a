"""Ctrl-C and SIGTERM at any moment end with one line, and everything is saved. Long with --long."""

import gc
import os
import random
import re
import shutil
import signal
import time
import weakref
from functools import partial
from pathlib import Path

import data
import evaluate
import sample
import train
from conftest import ROOT, saved, stories
from support.console import run_script
from support.processes import Stop
from support.settings import configure

import pytest
from processes import (
    TORCHRUN,
    being_saved,
    children,
    flags,
    fork,
    launch,
    lines_of,
    needs_fork,
    needs_proc,
    unfinished,
    wait_until,
)
from test_kills import HEAVY
from test_strangers import write_pairs

BUSY = dict(run="busy", max_steps=1_000_000)
SCORING = dict(eval_every=1, eval_pairs="many.jsonl")
SAVING = HEAVY | dict(save_every=1) | BUSY


def training(file="tiny.py", **settings):
    return lambda args: train.main(configure(train.Settings(), [file, *flags(BUSY | settings)]))


# when -> the script's main, what to wait for, and for how many seconds at most the signal then waits
MOMENTS = {
    "start-up": (training(), lambda: True, 0.2),
    "making data": (training("toy.py"), lambda: Path("data/toyland").exists(), 5),
    "training": (training(), lambda: lines_of("busy") > 3, 1),
    "validation": (training(**SCORING), lambda: Path("out/busy/log.jsonl").exists(), 3),
    "saving": (training(**SAVING), lambda: lines_of("busy") > 1 and being_saved("busy", 0), 0.1),
    "evaluate.py": (
        lambda args: evaluate.main(evaluate.Settings("out/tiny", tasks="many.jsonl")),
        lambda: Path("out/tiny/pairs_many.jsonl.part").exists(),
        2,
    ),
    "sample.py": (
        lambda args: sample.main(sample.Settings("out/tiny", tokens=1_000_000, temperature=0.0)),
        lambda: Path("said").stat().st_size > 0,
        1,
    ),
    "data.py": (lambda args: data.main(["text", "big", "big.txt", "--vocab_size=2000"]), lambda: True, 2),
}


def catches_signals(process):
    """Return True once run_script has begun."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16)
    return caught >> (signal.SIGTERM - 1) & 1


@needs_fork
@needs_proc
@pytest.mark.parametrize("when", MOMENTS)
def test_signals_at_any_moment_end_with_one_line(workplace, times, figure, when):
    """Status 130; saved if there is what to save; nothing half-written; gone within five seconds."""
    main, ready, delay = MOMENTS[when]
    r, count, good, slowest = random.Random(0), times(1, 6), 0, 0
    shutil.copy(ROOT / "config" / "toy.py", "toy.py")
    if when in ("validation", "evaluate.py"):
        write_pairs("many.jsonl", 120_000, paradigms=120)  # none of the jobs ends by itself
    if when == "data.py":
        Path("big.txt").write_text("".join(stories(400, seed) for seed in range(150)))
    for number in range(count):
        for made in ("out/busy", "data/toyland", "data/toy"):
            shutil.rmtree(made, ignore_errors=True)
        process = fork(partial(run_script, main), "said")
        assert wait_until(lambda: catches_signals(process), process) and wait_until(ready, process)
        time.sleep(r.random() * times(min(delay, 0.5), delay))
        began = time.monotonic()
        os.kill(process.pid, [signal.SIGTERM, signal.SIGINT][(number + len(when)) % 2])
        process.join(timeout=60)
        slowest = max(slowest, time.monotonic() - began)
        said = Path("said").read_text()
        lines = [line for line in said.splitlines() if "stopped" in line]
        assert process.exitcode == 130 and len(lines) == 1 and "Traceback" not in said, said
        assert not unfinished()
        if lines[0].startswith("stopped at step"):
            assert f"stopped at step {saved(run='busy')['step']:,} of" in lines[0]
        else:
            assert when not in ("training", "validation", "saving"), said
        good += times(True, time.monotonic() - began < 5)
    figure(f"Ctrl-C and SIGTERM: {when}", good, count, "one line, 130, within 5 s", slowest=round(slowest, 1))


class Watched:
    """Is pressed Ctrl-C when it goes, if it is told so."""

    pressed = False

    def __del__(self):
        if self.pressed:
            signal.raise_signal(signal.SIGINT)


def in_a_destructor():
    Watched().pressed = True


def in_a_weak_references_callback():
    watched = Watched()
    reference = weakref.ref(watched, lambda _: signal.raise_signal(signal.SIGINT))
    del watched
    assert reference() is None


def as_garbage_is_collected():
    watched = Watched()
    watched.pressed, watched.cycle = True, watched
    del watched
    gc.collect()


@needs_fork
@pytest.mark.parametrize("lose", [in_a_destructor, in_a_weak_references_callback, as_garbage_is_collected])
def test_a_ctrl_c_that_python_loses_is_pressed_again(workplace, lose):
    """Python drops an exception raised there: a full collection of a large program takes half a second."""

    def main(args):
        lose()
        print("lost", flush=True)
        for _ in range(600):
            time.sleep(0.1)

    process = fork(partial(run_script, main), "said")
    process.join(timeout=50)  # a collection takes seconds on a busy machine; main would end after 60
    process.kill()
    said = Path("said").read_text()  # on a busy machine the second press may come before "lost" is printed
    assert said.removeprefix("lost\n") == "stopped\n" and process.exitcode == 130


@needs_fork
def test_a_second_ctrl_c_after_a_second_ends_at_once(workplace, monkeypatch):
    """The first waits for a step that takes a minute."""

    def sleep(*rest):
        print("asleep", flush=True)
        time.sleep(60)

    monkeypatch.setattr(train, "take_step", sleep)
    process = fork(partial(run_script, training()), "said")
    assert wait_until(lambda: "asleep" in Path("said").read_text(), process)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(1.2)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGINT)
    process.join(timeout=30)
    assert Path("said").read_text().count("stopped") == 1 and process.exitcode == 130


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="has no SIGHUP")
def test_a_run_started_by_nohup_goes_on_when_the_terminal_closes():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop() as stop:
            signal.raise_signal(signal.SIGHUP)
            stop.check()
    finally:
        signal.signal(signal.SIGHUP, before)


STEPS = f"""
import os, sys; sys.path.insert(0, {str(ROOT)!r})
import train
from support.console import run_script
from support.run import Run
save = Run.save
def save_and_tell(run):
    save(run)
    open("step of " + os.environ["RANK"], "w").write(str(run.step))
Run.save = save_and_tell
run_script(train.script)
"""


@needs_proc
def test_a_signal_under_torchrun_stops_both_at_one_step(workplace, times, figure):
    Path("steps.py").write_text(STEPS)
    for whom, count in times({"torchrun": 1}, {"torchrun": 5, "one of two": 5}).items():
        together = 0
        for _ in range(count):
            shutil.rmtree("out/busy", ignore_errors=True)
            process = launch(workplace / "steps.py", "tiny.py", *flags(BUSY), launcher=[*TORCHRUN, "--"])
            assert wait_until(lambda: lines_of("busy") > 5, process)
            target = process.pid if whom == "torchrun" else sorted(children(process))[-1]
            os.kill(target, signal.SIGTERM)
            said = process.communicate(timeout=120)[0]
            steps = {Path(f"step of {rank}").read_text() for rank in (0, 1)} | {
                str(saved(run="busy")["step"])
            }
            together += len(steps) == 1 and said.count("stopped at step") == 1
        figure(f"SIGTERM to {whom}", together, count, "both stop at one step, which is saved")
