"""
The recurrences alone: ours beside the loop, the same in plain PyTorch, and what others have written.

    python bench.py kernels                          all, in 8 minutes at most
    python bench.py kernels --kernels=linear_scan    one of them; the rows of the others stay

Each is timed over the length of a sequence at about the same number of tokens, without a gradient ("forward") and
with it, all ways to compute it in turn. On a GPU times are between two events, the second-level cache overwritten
before and the launches waiting behind a pause, so that they are the GPU's own; "eager" ones include the launches.
A row's floor_seconds is what the card needs for the numbers alone: each input and result moved once, at the speed
of a copy measured beside it, or for selective_scan its exponentials. A way that is not installed, or fails, is a
row that says so.
"""

import functools
import importlib
import math
import statistics
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Callable
from unittest.mock import patch

import torch
import torch.nn.functional as F

import kernels
from config import progress
from model import find_device


def sweep(tokens, first, longest, **widths):
    """Sizes for T from 256, at about the same number of tokens; first, if time should run out, our target's."""
    lengths = [2**n for n in range(8, longest.bit_length())]
    return [dict(B=max(1, tokens // T), T=T) | widths for T in sorted(lengths, key=lambda T: T != first)]


SIZES = {
    "cuda": {
        "linear_scan": sweep(32_768, first=4096, longest=32_768, D=1024),
        "gated_linear_attention": sweep(16_384, first=2048, longest=32_768, H=8, K=128),
        "small": [dict(B=8, T=256, H=4, K=64)],
        "selective_scan": sweep(16_384, first=2048, longest=32_768, E=2048, N=16),
    },
    "cpu": {
        "linear_scan": sweep(4096, first=512, longest=2048, D=256),
        "gated_linear_attention": sweep(2048, first=256, longest=2048, H=4, K=64),
        "selective_scan": sweep(2048, first=256, longest=2048, E=128, N=16),
    },
}
LONGEST_LOOP = 4096  # steps
FOR_GPUS = (
    "ours in PyTorch",
    "ours, CUDA",
    "fla",
    "accelerated",
    "mamba",
)  # no news on a CPU, or not to be had
FLUSHED = 2**28  # bytes, more than any second-level cache
PAUSE = 2_000_000  # clocks, a millisecond
PASSES = "forward", "forward and backward"
EXPONENTIALS = 16  # that a multiprocessor takes in a clock


# ----------------------------------------------------------------------------------------------------
# The kernels. Each takes sizes, a type and a device -> the inputs, something of the result's size, and the ways.


@dataclass
class Way:
    """One way to compute something."""

    function: Callable  # of the inputs -> the result, or a tuple that begins with it
    inputs: list
    parameters: tuple = ()  # of a layer
    in_pytorch: bool = False  # ours, but not in Triton

    def task(self, backward):
        """A function that computes it once."""
        inputs = [x.detach().requires_grad_(backward) for x in self.inputs]
        form = functools.partial(patch.object, kernels, "runs_triton", lambda x: False)
        dy = []

        def run():
            with form() if self.in_pytorch else nullcontext(), torch.set_grad_enabled(backward):
                y = self.function(*inputs)
                y = y[0] if isinstance(y, tuple) else y
                if not dy:
                    dy.append(torch.randn_like(y))
                if backward:
                    torch.autograd.grad(y, [*inputs, *self.parameters], dy)

        return run


def theirs(module, function, *inputs, **options):
    """A Way by a function of a library that may not be installed."""
    return Way(functools.partial(getattr(importlib.import_module(module), function), **options), list(inputs))


def linear_scan(device, dtype, B, T, D):
    a, b = torch.rand(B, T, D, device=device, dtype=dtype), torch.randn(B, T, D, device=device, dtype=dtype)
    log_a, zeros = a.float().log().to(dtype), torch.zeros(B, D, device=device)
    ways = {
        "ours": lambda: Way(kernels.linear_scan, [a, b]),
        "ours in PyTorch": lambda: Way(kernels.linear_scan, [a, b], in_pytorch=True),
        "loop": lambda: Way(lambda a, b: kernels.linear_scan_loop(a, b, zeros), [a.float(), b.float()]),
        "fla chunk_hgrn": lambda: theirs("fla.ops.hgrn", "chunk_hgrn", b, log_a),
        "fla fused_recurrent_hgrn": lambda: theirs("fla.ops.hgrn", "fused_recurrent_hgrn", b, log_a),
        "accelerated-scan": lambda: theirs(
            "accelerated_scan.warp", "scan", a.mT.contiguous(), b.mT.contiguous()
        ),
    }
    return [a, b], b, ways


def gated_linear_attention(device, dtype, B, T, H, K):
    """HGRN2's: k = 1 - f, which ours compute and fla's are given."""
    q, v = (torch.randn(B, T, H, K, device=device, dtype=dtype) for _ in range(2))
    log_f = F.logsigmoid(torch.randn(B, T, H, K, device=device) + 3).to(dtype)
    k = -torch.expm1(log_f.float()).to(dtype)
    zeros = torch.zeros(B, H, K, K, device=device)

    def tied(q, v, log_f):
        return kernels.gated_linear_attention(q, None, v, log_f)

    def loop(*inputs):
        return kernels.gated_linear_attention_loop(*inputs, zeros)

    ways = {
        "ours": lambda: Way(tied, [q, v, log_f]),
        "ours, k given": lambda: Way(kernels.gated_linear_attention, [q, k, v, log_f]),
        "ours in PyTorch": lambda: Way(tied, [q, v, log_f], in_pytorch=True),
        "loop": lambda: Way(loop, [x.float() for x in (q, k, v, log_f)]),
        "fla chunk_gla": lambda: theirs("fla.ops.gla", "chunk_gla", q, k, v, log_f, scale=1.0),
    }
    return [q, v, log_f], v, ways


def small(device, dtype, **sizes):
    """gated_linear_attention for a class: here the GPU waits for Python, unless the launches are recorded once."""
    inputs, result, ways = gated_linear_attention(device, dtype, **sizes)
    ways = {name: ways[name] for name in ("ours", "fla chunk_gla")}
    return inputs, result, {f"{name}, {how}": ways[name] for name in ways for how in ("eager", "CUDA graph")}


def selective_scan(device, dtype, B, T, E, N):
    x, into, out = (torch.randn(B, T, width, device=device, dtype=dtype) for width in (E, N, N))
    dt = F.softplus(torch.randn(B, T, E, device=device) - 4).to(dtype)
    A = -torch.arange(1.0, N + 1, device=device).repeat(E, 1)
    inputs, zeros = [x, dt, A, into, out], torch.zeros(B, E, N, device=device)
    mamba = functools.partial(theirs, "mamba_ssm.ops.selective_scan_interface", "selective_scan_fn")
    ways = {
        "ours": lambda: Way(kernels.selective_scan, inputs),
        "ours in PyTorch": lambda: Way(kernels.selective_scan, inputs, in_pytorch=True),
        "loop": lambda: Way(lambda *x: kernels.selective_scan_loop(*x, zeros), [x.float() for x in inputs]),
        "mamba_ssm": lambda: mamba(*(x.mT.contiguous() for x in (x, dt)), A, into.mT, out.mT),
    }
    return inputs, x, ways


KERNELS = {f.__name__: f for f in (linear_scan, gated_linear_attention, small, selective_scan)}


# ----------------------------------------------------------------------------------------------------
# Measuring


class Clock:
    """clock(task) -> seconds"""

    def __init__(self, device):
        self.device = device
        if device.type == "cuda":
            self.buffer = torch.empty(FLUSHED, dtype=torch.int8, device=device)
            self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self, task, eager=False):
        if self.device.type != "cuda":
            began = time.perf_counter()
            task()
            if self.device.type == "mps":
                torch.mps.synchronize()
            return time.perf_counter() - began
        self.buffer.zero_()
        if eager:
            torch.cuda.synchronize()
        else:
            torch.cuda._sleep(PAUSE)  # meanwhile the launches queue up
        self.start.record()
        task()
        self.end.record()
        self.end.synchronize()
        return self.start.elapsed_time(self.end) / 1000


def graphed(task):
    """The task with its launches recorded, to be repeated without Python."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # which makes the inputs
    with torch.cuda.stream(stream):
        task()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        task()
    return graph.replay


def timings(make, name, backward, clock):
    """Yield seconds, without end."""
    task = make().task(backward)
    task = graphed(task) if name.endswith("CUDA graph") else task
    for _ in range(2):  # to compile, to tune, to warm up
        task()
    while True:
        yield clock(task, eager=name.endswith("eager"))


def take_turns(ways, backward, clock, repeats):
    """-> {name: median seconds}, {name: why there is none}. Three times each at least, then for half a second."""
    seconds, failed = {name: [] for name in ways}, {}
    runs = {name: timings(make, name, backward, clock) for name, make in ways.items()}
    for _ in range(max(3, repeats)):
        for name in set(runs) - set(failed):
            if len(seconds[name]) < 3 or sum(seconds[name]) < 0.5:
                try:
                    seconds[name].append(next(runs[name]))
                except ImportError as error:
                    failed[name] = f"not installed: {error}"
                except Exception as error:
                    failed[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return {name: statistics.median(seconds[name]) for name in ways if name not in failed}, failed


@functools.cache
def limits(device):
    """What the machine does at best: bytes read and written by a copy, operations of a product, exponentials."""
    on_gpu, clock = device.type == "cuda", Clock(device)
    x, y = torch.empty(2, 2**31 if on_gpu else 2**28, dtype=torch.int8, device=device)
    n, dtype = (8192, torch.bfloat16) if on_gpu else (1024, torch.float32)
    m = torch.randn(n, n, device=device, dtype=dtype)
    found = {
        "copy_bytes_per_second": 2 * len(x) / min(clock(lambda: y.copy_(x)) for _ in range(9)),
        "products_per_second": 2 * n**3 / min(clock(lambda: m @ m) for _ in range(9)),
    }
    if on_gpu:
        card = torch.cuda.get_device_properties(device)
        found["exponentials_per_second"] = EXPONENTIALS * card.multi_processor_count * card.clock_rate * 1e3
    return found


def worthwhile(way, T, device):
    return (way != "loop" or T <= LONGEST_LOOP) and (device.type == "cuda" or not way.startswith(FOR_GPUS))


def measure_case(name, size, device, clock, repeats):
    """-> a row for each way, forward, and forward and backward"""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    inputs, result, ways = KERNELS[name](device, dtype, **size)
    ways = {way: ways[way] for way in ways if worthwhile(way, size["T"], device)}
    read, copied, rows = sum(x.nbytes for x in inputs), limits(device)["copy_bytes_per_second"], []
    for backward in (False, True):
        moved = 3 * read + 2 * result.nbytes if backward else read + result.nbytes
        floor = moved / copied
        if name == "selective_scan" and device.type == "cuda":  # E N B T of them, and again on the way back
            exponentials = math.prod(size.values()) * (1 + backward)
            floor = max(floor, exponentials / limits(device)["exponentials_per_second"])
        seconds, failed = take_turns(ways, backward, clock, repeats)
        for way in ways:
            row = {
                "kernel": name,
                "model": way,
                "pass": PASSES[backward],
                "dtype": str(inputs[0].dtype)[6:],
            } | size
            if way in failed:
                rows.append(row | {"failed": failed[way]})
                continue
            shares = {"floor_seconds": floor, "share_of_bandwidth": moved / seconds[way] / copied}
            rows.append(row | {"seconds": seconds[way], "bytes": moved} | shares)
    return rows


def measure(s):
    """The benchmark of bench.py: rows, those of one kernel together, in the order of T."""
    device = find_device(s.device)
    clock, deadline, rows = Clock(device), time.monotonic() + 60 * s.minutes, []
    sizes = SIZES.get(device.type, SIZES["cpu"])
    asked = [name for name in sizes if not s.kernels or name in s.kernels.split(",")]
    cases = [(turn, name, size) for name in asked for turn, size in enumerate(sizes[name])]
    for _, name, size in progress(sorted(cases, key=lambda case: case[0]), desc="kernels"):
        if time.monotonic() > deadline:
            rows.append({"kernel": name, "model": "all", "failed": "no time was left"} | size)
            continue
        rows += measure_case(name, size, device, clock, s.repeats)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return sorted(rows, key=lambda row: (asked.index(row["kernel"]), row["T"]))
