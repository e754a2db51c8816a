"""The processes that torchrun starts, and how all of them stop at one step."""

import os
import signal
import threading
import time
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice
from uuid import uuid4

from support.settings import UserError

import torch
import torch.distributed as dist

USUAL = timedelta(minutes=30)  # how long a process waits for others in a step, say
PATIENCE = timedelta(hours=12)  # and where one may have to fetch a corpus
patient = None  # the group of all processes with this longer timeout


def rank():
    """This process's number among those that torchrun started; 0 without torchrun."""
    return int(os.environ.get("RANK", 0))


def local_rank():
    """This process's number on its machine: which GPU it takes."""
    return int(os.environ.get("LOCAL_RANK", 0))


def launched():
    """Number of processes that torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", 1))


def restarts():
    """Number of times that torchrun has restarted the processes, after one was killed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def world_size():
    """Number of processes that are joined: 1 before join_processes() and after leave_processes()."""
    return launched() if dist.is_initialized() else 1


@contextmanager
def alone():
    """Context manager: the process acts as if it were the only one, for work that each does on its own GPU."""
    names = {"RANK", "WORLD_SIZE"} & os.environ.keys()
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(hidden)


def rounds(items):
    """
    Deal out items, one for each process in a round: yield [this process's item], in the last round perhaps [], and
    the list of all items of the round.
    """
    items, place = iter(items), rank() if world_size() > 1 else 0
    while some := list(islice(items, world_size())):
        yield some[place : place + 1], some


def join_processes(device):
    """
    Join the other processes -> the device of this one: each of several takes the GPU of its own number. Their
    addresses are exchanged under a store prefix unique to this restart, because those of an earlier one lead
    nowhere (github.com/pytorch/pytorch/issues/135712).
    """
    global patient
    cuda = device.type == "cuda"
    if cuda:
        number = local_rank() if launched() > 1 else device.index or 0
        if number >= torch.cuda.device_count():
            what = f"there are {torch.cuda.device_count()} GPUs for {number + 1} processes or more"
            raise UserError(f"{what} here; lower torchrun's --nproc_per_node")
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    if launched() > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if cuda and dist.is_nccl_available() else "gloo"  # Windows has no NCCL
        store, rank_, size_ = next(dist.rendezvous("env://"))
        count_restarts(store)
        store = dist.PrefixStore(f"restart {restarts()}", store)
        dist.init_process_group(backend, store=store, rank=rank_, world_size=size_, timeout=USUAL)
        patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    return device


def count_restarts(store):
    """
    Give all processes the same restarts(). torchrun counts on each machine separately, and only the failures that
    began there. The store outlives restarts, so the first process keeps the count in it and answers the others.
    Each asks under its own name, because the store still holds the questions and answers of before a restart.
    """
    if rank() > 0:
        me = uuid4().hex
        store.set(f"asked by {rank()}", me)
        count = store.get(f"answer to {me}").decode()
        store.set(f"{rank()} knows of restart {count}", "")
    else:
        count = str(max(restarts(), store.add("starts", 1) - 1))
        for other in range(1, launched()):
            while not store.check([f"{other} knows of restart {count}"]):
                asker = store.get(f"asked by {other}").decode()
                store.set(f"answer to {asker}", count)
                time.sleep(0.05)
    os.environ["TORCHELASTIC_RESTART_COUNT"] = count


def leave_processes():
    """Leave the other processes: from here on each is alone."""
    if dist.is_initialized():
        dist.destroy_process_group()


def sum_over_processes(*numbers):
    """The sum of each number over all processes."""
    if world_size() == 1:
        return numbers
    total = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()


def from_first(make):
    """make() of the first process, a result of plain values, on all processes; or the UserError that it raised."""
    if world_size() == 1:
        return make()
    box = [None]
    if rank() == 0:
        try:
            box = [make()]
        except UserError as error:
            box = [error]
    dist.broadcast_object_list(box, device=torch.device("cpu"))
    if isinstance(box[0], UserError):
        raise box[0]
    return box[0]


def from_all(x):
    """[x of each process], plain values, on all processes, once all have called this; it may take hours."""
    if world_size() == 1:
        return [x]
    everyone = [None] * world_size()
    dist.all_gather_object(everyone, x, group=patient)
    return everyone


def wait_for_all():
    """Return once every process has called this; it may take hours."""
    from_all(None)


@contextmanager
def together():
    """Wait for all processes at the end. A UserError of one is raised in all, so that none waits for it."""
    problem = ""
    try:
        yield
    except UserError as error:
        problem = str(error)
    for problem in from_all(problem):
        if problem:
            raise UserError(problem)


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, after everything was saved and said: the script exits with status 130 and no message."""


class Stop:
    """Context manager: Ctrl-C and SIGTERM are only noted; check() raises Stopped in all processes at one step."""

    def __enter__(self):
        self.asked, self.handlers_before = None, {}  # the time of the first signal
        numbers = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
        for number in numbers:
            ignored = signal.getsignal(number) == signal.SIG_IGN  # by nohup
            if not ignored and threading.current_thread() is threading.main_thread():
                self.handlers_before[number] = signal.signal(number, self.ask)
        return self

    def ask(self, number, frame):
        now = time.monotonic()
        if self.asked and number == signal.SIGINT and now - self.asked > 1:  # torchrun repeats the first
            raise KeyboardInterrupt
        self.asked = self.asked or now

    def check(self):
        if sum_over_processes(self.asked is not None)[0]:
            raise Stopped

    def __exit__(self, *error):
        for number, handler in self.handlers_before.items():
            signal.signal(number, handler)
