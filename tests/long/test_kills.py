"""kill -9 at any moment: what was saved is there, and the end is the same to the bit. Long with --long."""

import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import train
from conftest import contents, log, same
from support.files import damage, read

import pytest
from processes import (
    TORCHRUN,
    being_saved,
    children,
    flags,
    fork,
    fork_two,
    launch,
    lines_of,
    needs_fork,
    needs_proc,
    wait_until,
)

# a run whose checkpoint of 40 MB takes a while to write; dropout on; over the ends of epochs
HEAVY = dict(
    d_model=256, n_head=4, d_mlp=768, n_layer=4, context=8, batch_size=8, dropout=0.1,
    max_steps=60, eval_every=9, save_every=2, learning_rate=1e-3,
)  # fmt: skip
WHOLE = {
    *("checkpoint.pt", "previous.pt", "best.pt"),
    *("settings.json", "tokenizer.json", "log.jsonl", "times.jsonl", "learning_curve.svg"),
}


def kill_once(s, r, aimed):
    """Kill a run at a random moment, or aimed inside a save -> whether it was killed, whether inside a save."""
    began = time.time()
    process = fork(partial(train.main, s))
    if aimed or r.random() < 0.7:  # else: anywhere, also while it starts
        lines = lines_of(s.run) + r.randrange(1, 4)
        wait_until(lambda: lines_of(s.run) >= lines and being_saved(s.run, began) >= aimed, process)
        time.sleep(r.random() * (0.05 if aimed else 1))
    else:
        time.sleep(r.random())
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL, being_saved(s.run, began)


def is_whole(run):
    """Return True if all checkpoints are undamaged and the one that loads is of the last finished save."""
    files = [file for file in Path("out", run).glob("*.pt") if file.name != "best.pt"]
    steps = [record["step"] for record in log(run) if "loss" in record]
    finished = (steps[-1] - 1) // 2 * 2 if steps else -1  # a step is taken after what came before was saved
    if finished < 0 and not files:
        return True
    return not any(map(damage, files)) and read(Path("out", run))[0]["step"] >= finished


@needs_fork
def test_kill_9_at_any_moment_loses_nothing_that_was_saved(workplace, tiny, times, figure):
    """Runs killed again and again until their end; a third of the kills, at least, land inside the save."""
    settings = HEAVY | dict(max_steps=times(8, 60))
    train.main(tiny(run="never", **settings))
    reference, r = contents("never"), random.Random(0)
    kills = inside = whole = whole_inside = ended = 0
    while kills < times(3, 50) or inside < times(1, 15):
        run = f"killed{ended}"
        killed, within = kill_once(tiny(run=run, **settings), r, aimed=kills % 2)
        if killed:
            good = is_whole(run)
            kills, inside = kills + 1, inside + within
            whole, whole_inside = whole + good, whole_inside + (good and within)
        else:
            same(contents(run), reference)
            ended += 1
    train.main(tiny(run=f"killed{ended}", **settings))
    equal = sum(contents(f"killed{i}") == reference for i in range(ended + 1))
    for i in range(ended + 1):
        assert {file.name for file in Path("out", f"killed{i}").iterdir()} == WHOLE
    note = "the restart loads a whole checkpoint, none older than the last finished save"
    figure("kill -9 of a run in training", whole, kills, note)
    figure("kill -9 inside the save", whole_inside, inside, note)
    note = "at the end equal, to the bit, to one never killed"
    figure("runs killed again and again", equal, ended + 1, note)


@needs_proc
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_torchrun_continues_a_run_whose_process_was_killed(workplace, tiny, times, figure, request, parallel):
    """One of two processes is killed, once or twice; --fresh counts for the first start only."""
    if parallel == "fsdp" and not request.config.getoption("--long"):
        pytest.skip("shards too: with --long")
    steps = times(10, 60)
    settings = HEAVY | dict(d_model=64, d_mlp=96, eval_every=7, max_steps=steps, parallel=parallel)
    codes, said = fork_two(partial(train.main, tiny(run="never", **settings)))
    assert codes == [0, 0], said
    reference, r, runs, equal, kills = contents("never"), random.Random(0), times(1, 6), 0, 0
    for i in range(runs):
        command = "train.py", "tiny.py", f"--run=killed{i}", "--fresh", *flags(settings)
        process = launch(*command, launcher=[*TORCHRUN, "--max-restarts=3", "--"])
        for step in sorted(r.sample(range(2, steps - 4), 1 + i % 2)):
            if wait_until(lambda: lines_of(f"killed{i}") > step, process):
                victims = sorted(children(process))
                os.kill(r.choice(victims), signal.SIGKILL)
                kills += 1
                gone = lambda: not set(victims) & set(children(process))  # noqa: E731
                assert wait_until(gone, process)
        said, complained = process.communicate(timeout=600)
        assert process.returncode == 0, said + complained
        equal += contents(f"killed{i}") == reference
    name = "one of two processes of torchrun killed: " + ("with shards" if parallel == "fsdp" else "whole models")
    figure(name, equal, runs, "restarted; equal to the bit", kills=kills)
