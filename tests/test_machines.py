"""Several machines, each a process in a folder of its own: their data, and one run that the first keeps."""

import os
import shutil
import signal
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import compare
import data
import distill
import train
from conftest import TINY
from support import processes
from support.console import run_script
from support.files import alone_in, read
from support.run import read_log
from support.settings import UserError

import pytest
import torch
import torch.distributed as dist
from processes import fork, fork_many, needs_fork, stopping_at

pytestmark = needs_fork
MACHINES = ["first", "second"]


@pytest.fixture
def machines(workplace):
    """Two folders, each as the working directory of a machine that has the corpus."""
    for name in MACHINES:
        shutil.copytree("data", f"{name}/data")
    return MACHINES


def find_for(s):
    """What train.py does first, with its messages and exit status."""
    processes.join_processes(torch.device("cpu"))
    run_script(lambda args: print(f"found {data.find_for(s)}"))


@pytest.fixture
def recipe(workplace, monkeypatch):
    """The corpus can be made, which adds a line to the file `made` here; it is not there yet."""
    shutil.rmtree("data/tiny")
    for name in MACHINES:
        Path(name, "data").mkdir(parents=True)
    made = Path("made").resolve()

    def make(name):
        with open(made, "a") as file:
            file.write(f"{Path.cwd().name}\n")
        return data.prepare(name, [workplace / "text.txt"], data.Settings(vocab_size=300, val_share=0.1))

    monkeypatch.setitem(data.RECIPES, "tiny", "a recipe")
    monkeypatch.setattr(data, "recipe", lambda name: SimpleNamespace(make=make))
    return made


def test_without_a_shared_folder_the_first_process_of_each_machine_makes_the_data(recipe, tiny):
    codes, said = fork_many(2, partial(find_for, tiny()), MACHINES)
    assert codes == [0, 0] and said.count("found data/tiny") == 2, said
    assert recipe.read_text() == "first\nsecond\n"


def test_in_a_shared_folder_the_first_process_of_all_makes_the_data(recipe, tiny):
    codes, said = fork_many(2, partial(find_for, tiny()), ["first", "first"])
    assert codes == [0, 0] and said.count("found data/tiny") == 2, said
    assert recipe.read_text() == "first\n"


@pytest.mark.parametrize("machine", MACHINES)
def test_data_that_a_machine_cannot_make_ends_all_with_the_same_line(recipe, tiny, monkeypatch, machine):
    make = data.recipe("tiny").make

    def refuse(name):
        if Path.cwd().name == machine:
            raise UserError("data/tiny: no network here")
        return make(name)

    monkeypatch.setattr(data, "recipe", lambda name: SimpleNamespace(make=refuse))
    codes, said = fork_many(2, partial(find_for, tiny()), MACHINES)
    assert codes == [2, 2]
    assert [line for line in said.splitlines() if "words" not in line] == 2 * ["data/tiny: no network here"]


def test_another_corpus_on_a_machine_is_named(machines, tiny, monkeypatch):
    monkeypatch.setattr("platform.node", lambda: f"node of the {Path.cwd().name}")
    Path("other.txt").write_text(Path("text.txt").read_text().replace("cat", "cow"))
    data.prepare("tiny", ["other.txt"], data.Settings(vocab_size=300, val_share=0.1))
    shutil.rmtree("second/data")
    shutil.copytree("data", "second/data")
    codes, said = fork_many(2, partial(find_for, tiny()), machines)
    what = "data/tiny on node of the second is another corpus than on node of the first"
    line = f"{what}: copy it from there, or make both with the same command\n"
    assert codes == [2, 2] and said == 2 * line


def test_only_data_may_take_longer_than_a_step(recipe, tiny, monkeypatch):
    """A step waits for 30 minutes, data for hours: here for a second, and for as long as it takes."""
    assert processes.USUAL == timedelta(minutes=30) and processes.PATIENCE >= timedelta(hours=6)
    monkeypatch.setattr(processes, "USUAL", timedelta(seconds=1))
    make = data.recipe("tiny").make

    def make_slowly(name):
        time.sleep(2)
        return make(name)

    def find_then_step(s):
        find_for(s)
        patience = time.monotonic() + 30
        while processes.rank() == 0 and not Path("gave up").exists() and time.monotonic() < patience:
            time.sleep(0.01)  # until the other has waited long enough, however slow the machine is
        with pytest.raises(RuntimeError):
            processes.sum_over_processes(1)
        Path("gave up").touch()

    monkeypatch.setattr(data, "recipe", lambda name: SimpleNamespace(make=make_slowly))
    codes, said = fork_many(2, partial(find_then_step, tiny()), ["first", "first"])
    assert codes == [0, 0] and said.count("found data/tiny") == 2, said


def join_and_count(late=0.0):
    time.sleep(late)
    processes.join_processes(torch.device("cpu"))
    print(f"restart {processes.restarts()}")


def ask_and_die():
    """As a process that is killed while it joins: the store keeps its question."""
    store, rank, _ = next(dist.rendezvous("env://"))
    store.set(f"asked by {rank}", "killed")
    os.kill(os.getpid(), signal.SIGKILL)


def test_restarts_are_counted_alike_where_torchrun_counts_them_apart(workplace):
    """It counts those that began on a machine. Its store remembers, so also killed processes and old addresses."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2"}
    address |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}

    def start(first, second, counted):
        started = []
        for rank, work in enumerate((first, second)):
            here = address | {"RANK": str(rank), "TORCHELASTIC_RESTART_COUNT": str(counted[rank])}
            started.append(fork(work, f"said by {rank}", **here))
        for process in started:
            process.join(timeout=30)
        return [process.exitcode for process in started], [Path(f"said by {i}").read_text() for i in (0, 1)]

    assert start(join_and_count, join_and_count, (0, 0)) == ([0, 0], ["restart 0\n"] * 2)
    assert start(lambda: None, ask_and_die, (0, 0))[0] == [0, -signal.SIGKILL]
    assert start(join_and_count, partial(join_and_count, 1), (0, 1)) == ([0, 0], ["restart 1\n"] * 2)


def train_in(s):
    run_script(lambda args: train.main(s))


def log_in(folder, run):
    return read_log(Path(folder, "out", run))


def test_two_machines_train_as_one_process_and_the_first_keeps_the_run(machines, tiny):
    """... resumed from its folder, which the other does not have: float64, so within 1e-9; pairs equal."""
    pairs = '{"sentence_good": "The cat sees.", "sentence_bad": "The cat cat sees.", "UID": "verb"}\n'
    for folder in (".", *machines):
        Path(folder, "mine.jsonl").write_text(pairs)
    same = dict(dtype="float64", schedule="constant", eval_every=4, eval_pairs="mine.jsonl")
    train.main(tiny(run="one", max_steps=8, **same))
    for steps in (5, 8):
        codes, said = fork_many(2, partial(train_in, tiny(run="two", max_steps=steps, **same)), machines)
        assert codes == [0, 0], said
    assert not Path("second/out").exists()
    one, two = log_in(".", "one"), log_in("first", "two")
    assert [record["step"] for record in two if "loss" in record] == list(range(1, 9))
    steps = {record["step"]: record for record in one if "loss" in record}
    for record in two:
        if "loss" in record:
            assert record["loss"] == pytest.approx(steps[record["step"]]["loss"], abs=1e-9)
    assert two[-1]["val_loss"] == pytest.approx(one[-1]["val_loss"], abs=1e-9)
    assert two[-1]["pairs"] == one[-1]["pairs"]


def test_a_run_on_another_machine_than_the_first_is_not_begun_anew(machines, tiny, monkeypatch):
    monkeypatch.setattr("platform.node", lambda: f"the {Path.cwd().name}")
    shutil.copytree("out", "second/out")
    codes, said = fork_many(2, partial(train_in, tiny()), machines)
    assert codes == [2, 2]
    assert said.count("out/tiny is on the second and not on the first machine: start that one with") == 2
    codes, said = fork_many(2, partial(train_in, tiny(fresh=True, max_steps=1)), machines)
    assert codes == [0, 0] and read(Path("first/out/tiny"))[0]["step"] == 1


def test_a_teacher_that_a_machine_lacks_or_has_another_of_ends_all_with_the_same_line(machines):
    shutil.copytree("out", "first/out")
    s = distill.Settings(**TINY | dict(run="student", teacher="out/tiny"))
    codes, said = fork_many(2, partial(run_script, lambda args: distill.main(s)), machines)
    assert codes == [2, 2] and said.count("teacher = 'out/tiny': there is no out/tiny;") == 2, said
    shutil.copytree("out", "second/out")
    shutil.copy("second/out/tiny/previous.pt", "second/out/tiny/checkpoint.pt")
    codes, said = fork_many(2, partial(run_script, lambda args: distill.main(s)), machines)
    line = "teacher = 'out/tiny': not the same checkpoint on all machines; copy it\n"
    assert codes == [2, 2] and said == 2 * line


def test_a_run_that_another_process_trains_ends_all_with_the_same_line(machines, tiny):
    with alone_in(Path("first/out/two")):
        codes, said = fork_many(2, partial(train_in, tiny(run="two")), machines)
    line = "out/two: another process is training there; wait until it ends, or set --run=NAME\n"
    assert codes == [2, 2] and said == 2 * line


def test_sigterm_on_one_machine_stops_all_at_one_step(machines, tiny, monkeypatch):
    monkeypatch.setattr(train, "take_step", stopping_at(3, number=1))
    codes, said = fork_many(2, partial(train_in, tiny(run="two")), machines)
    assert codes == [130, 130] and said.count("stopped at step 3 of 30 and saved") == 1
    assert read(Path("first/out/two"))[0]["step"] == 3 and not Path("second/out").exists()


def test_a_comparison_on_machines_that_share_no_folder_is_refused(machines):
    """They would each look in a folder of their own for what is done, and train different runs together."""
    kept = {name: value for name, value in TINY.items() if name != "run"}
    lines = [f"{name} = {value!r}" for name, value in kept.items()]
    for name in MACHINES:
        Path(name, "two.py").write_text("\n".join([*lines, 'models = {"A": {}, "B": {"d_mlp": 32}}']) + "\n")
    work = partial(run_script, lambda args: compare.main(["two.py"]))
    codes, said = fork_many(2, work, MACHINES)
    assert codes == [2, 2] and said.count("a comparison needs this folder on all machines") == 2, said
    assert not Path("second/out").exists()
