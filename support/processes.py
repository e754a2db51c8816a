"""The processes that torchrun starts, and how all of them stop at one step."""

import os
import signal
import threading
import time
from datetime import timedelta

from support.settings import UserError

import torch
import torch.distributed as dist

PATIENCE = timedelta(hours=12)  # that processes wait for another: the first may have to fetch a corpus


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
    return dist.get_world_size() if dist.is_initialized() else 1


def join_processes(device):
    """
    Join the other processes -> the device of this one: each of several takes the GPU of its own number. Their
    addresses are exchanged under a store prefix unique to this restart, because those of an earlier one lead
    nowhere (github.com/pytorch/pytorch/issues/135712).
    """
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
        store = dist.PrefixStore(f"restart {restarts()}", store)
        dist.init_process_group(backend, store=store, rank=rank_, world_size=size_, timeout=PATIENCE)
    return device


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


def wait_for_all():
    """Return once every process has called this."""
    sum_over_processes(0)


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, after everything was saved and said: the script exits with status 130 and no message."""


class Stop:
    """While open, Ctrl-C and SIGTERM are only noted; check() raises Stopped in all processes at one step."""

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
