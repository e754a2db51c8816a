"""How tests start processes: as a user does, or as copies of the test's own, which need no seconds of imports."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import train
from conftest import ROOT
from support import processes

import pytest

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot copy a process")
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


def flags(settings):
    return [f"--{name}={value}" for name, value in settings.items()]


def launch(name, *args, launcher=()):
    """Start a script of ours as a user does, in the current folder."""
    command = [sys.executable, *launcher, str(ROOT / name), *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def fork(work, output=os.devnull, **environment):
    """Start work() in a copy of this process, with what is patched here; what it prints goes to the file."""

    def child():
        os.environ.update(environment)
        with file, redirect_stdout(file), redirect_stderr(file):
            work()
            processes.leave_processes()

    with open(output, "w") as file:
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
    return process


def fork_two(work):
    return fork_many(2, work)


def fork_many(count, work, machines=None):
    """
    Do work() in processes joined as torchrun's are -> their exit codes, what all have printed. With a list of
    folders, each process is alone on a machine, where that is the working directory.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(found.getsockname()[1])}
    address["WORLD_SIZE"] = str(count)
    files = [Path(f"said by {rank}") for rank in range(count)]
    started = []
    for rank, file in enumerate(files):
        here = partial(work_in, machines[rank], work) if machines else work
        local = 0 if machines else rank
        started.append(fork(here, file, RANK=str(rank), LOCAL_RANK=str(local), **address))
    for process in started:
        process.join(timeout=60)
        process.kill()  # if it still runs
        process.join()
    return [process.exitcode for process in started], "".join(file.read_text() for file in files)


def work_in(folder, work):
    os.chdir(folder)
    work()


def stopping_at(step, number):
    """Return a train.take_step after which, at this step, the process of this number is sent SIGTERM."""
    take_step = train.take_step

    def take_step_then_stop(run, *rest):
        take_step(run, *rest)
        if run.step == step and processes.rank() == number:
            signal.raise_signal(signal.SIGTERM)

    return take_step_then_stop


def runs(process):
    return process.is_alive() if hasattr(process, "is_alive") else process.poll() is None


def wait_until(condition, process):
    """Look often until the condition holds -> True; False if the process ended first."""
    while runs(process):
        if condition():
            return True
        time.sleep(0.001)
    return False


def children(process):
    """The processes that torchrun has started."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = stat.parent.name, stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(rest[1]) == process.pid and "--run=" in Path("/proc", pid, "cmdline").read_text():
            yield int(pid)


def lines_of(run):
    path = Path("out", run, "log.jsonl")
    return path.read_bytes().count(b"\n") if path.exists() else 0


def being_saved(run, since):
    """Return True if a checkpoint is being written that was begun after `since`."""
    try:
        begun = [file.stat().st_mtime for file in Path("out", run).glob("checkpoint.pt.*unfinished")]
    except OSError:  # it is complete by now
        return False
    return max(begun, default=0) > since


def unfinished():
    return [str(path) for path in Path(".").rglob("*.unfinished")]


def lines_of_text(said):
    """The lines that are not a progress bar's."""
    return [line for line in said.splitlines() if line.strip() and "%|" not in line]
