"""Shared by all benchmarks of tools.bench: clock, timing in turns, peak memory, the machine, the results file."""

import gc
import json
import platform
import re
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import accumulate
from multiprocessing import get_context

from support.devices import find_device
from support.files import replacing
from support.settings import UserError

import torch
from torch.profiler import ProfilerActivity, profile

FLUSH_BYTES = 2**28  # written before each timing on a GPU: more than any second-level cache
PAUSE_CYCLES = 2_000_000  # of a GPU, about a millisecond


def set_up(s):
    """Use the GPU that the settings name."""
    device = find_device(s.device)
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)


# ----------------------------------------------------------------------------------------------------
# Time


class Clock:
    """
    clock(task) -> seconds from the call to the last result.

    On a GPU the second-level cache is overwritten before each call. If `queued`, the launches wait behind a pause,
    so the time is the GPU's own; otherwise it includes the launches.
    """

    def __init__(self, device, queued=False):
        self.device, self.queued = device, queued
        if device.type == "cuda":
            self.buffer = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
            self.start = torch.cuda.Event(enable_timing=True)
            self.end = torch.cuda.Event(enable_timing=True)

    def __call__(self, task):
        if self.device.type == "cuda":
            return self.time_on_gpu(task)
        began = time.perf_counter()
        task()
        if self.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter() - began

    def time_on_gpu(self, task):
        self.buffer.zero_()
        if self.queued:
            torch.cuda._sleep(PAUSE_CYCLES)
        else:
            torch.cuda.synchronize()
        self.start.record()
        task()
        self.end.record()
        self.end.synchronize()
        return self.start.elapsed_time(self.end) / 1000


def take_turns(makers, clock, turns, average=statistics.median):
    """
    Time tasks alternately, so that whatever else the machine does affects all of them alike.

    makers     {name: function that returns the task to time}; a task is called twice to compile and warm up
    turns      an iterable: each of its items is a turn, in which each task is timed once

    Returns {name: {"seconds": average}}, or {"failed": reason} for a task that could not be made or run.
    """
    free_memory()
    tasks, failed = {}, {}
    times = {name: [] for name in makers}
    for _ in turns:
        for name, make in makers.items():
            if name in failed:
                continue
            try:
                if name not in tasks:
                    tasks[name] = warmed_up(make())
                times[name].append(clock(tasks[name]))
            except Exception as error:
                tasks.pop(name, None)
                failed[name] = {"failed": failure(error)}
            if name in failed:  # not above, where the traceback still holds what failed
                free_memory()
    return {name: failed.get(name) or {"seconds": average(times[name])} for name in makers}


def warmed_up(task):
    """Run a task twice and return it."""
    task()
    task()
    return task


def failure(error):
    """One line on why something was not measured."""
    if isinstance(error, ImportError):
        return f"not installed: {error}"
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


# ----------------------------------------------------------------------------------------------------
# Memory


def in_own_process(s, function, *args):
    """
    Return function(s, *args), a dict, computed in a new process; {"failed": reason} if it raises or is killed.

    The peak memory of the new process is the function's own, or that of this process so far if that is larger:
    measure memory first.
    """
    with ProcessPoolExecutor(1, get_context("spawn"), set_up, (s,)) as process:
        try:
            return process.submit(function, s, *args).result()
        except Exception as error:
            return {"failed": failure(error)}


def free_memory():
    """Give back the memory of tasks that are over."""
    gc.collect()  # compiled models refer to themselves
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_of_process(device):
    """Peak memory of this process in bytes: on the GPU if that is the device, else in all; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu":
        return None
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_of_task(task, device):
    """Largest number of bytes that PyTorch holds while a task runs, beyond those held before; None if unknown."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        task()
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        return None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        task()
    events = profiler.profiler.kineto_results.events()
    changes = [event for event in events if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in changes))


# ----------------------------------------------------------------------------------------------------
# The results file


def machine(s):
    """The machine: device, threads, PyTorch's version, system."""
    device = find_device(s.device)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else name_of_cpu(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "system": platform.system(),
    }


def name_of_cpu():
    """Name of the CPU and of its vector instructions."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    name = capabilities.get("cpu_name") or platform.processor()
    if capabilities.get("avx512_f"):
        return f"{name} AVX-512"
    if capabilities.get("avx2"):
        return f"{name} AVX2"
    return name


def read_results(path):
    """Contents of a results file; {} if there is none yet."""
    if not path.exists():
        return {}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        results = None
    if not isinstance(results, dict):
        raise UserError(
            f"{path}: not a results file of tools.bench; move it away, or name another by --results"
        )
    return results


def write_results(path, results):
    """Write JSON, with one line for each row."""
    text = re.sub(r"{[^{}]*}", lambda row: " ".join(row[0].split()), json.dumps(results, indent=1))
    with replacing(path) as file:
        file.write(text + "\n")
