"""
The recurrences alone: ours beside the loop, the form for CPUs, and what others have written.

    python -m tools.bench kernels                              all, in 8 minutes at most
    python -m tools.bench kernels --recurrences=linear_scan    one of them; the rows of the others stay

Each is timed over the length of a sequence at about the same number of tokens, without a gradient ("forward") and
with it, all ways to compute it in turn. On a GPU the times are the GPU's own, without the launches, which only the
"eager" rows include. A row's floor_seconds is what the card needs for the numbers alone: each input and result
moved once, at the speed of a copy measured beside it, or for selective_scan its exponentials. A way that is not
installed, or fails, is a row {"failed": reason}.
"""

import functools
import importlib
import math
import time
from dataclasses import dataclass
from typing import Callable

import kernels
from model import find_device
from support.console import progress
from tools.measure import Clock, take_turns

import torch
import torch.nn.functional as F


def sweep(tokens, first, longest, **widths):
    """Sizes for T from 256 to the longest, at about the same number of tokens, beginning with T = first."""
    lengths = [2**n for n in range(8, longest.bit_length())]
    lengths.sort(key=lambda T: T != first)
    return [dict(B=max(1, tokens // T), T=T, **widths) for T in lengths]


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
# Beginnings of the names of ways that on a CPU are the same as "ours", or not there
FOR_GPUS = ("ours in PyTorch", "ours, CUDA", "fla", "accelerated", "mamba")
ENOUGH = 0.5  # seconds of timings for a way
EXPONENTIALS = 16  # of a multiprocessor in a clock cycle


# ----------------------------------------------------------------------------------------------------
# The kernels. Each function takes a device, a type and sizes and returns the inputs, a tensor of the result's size
# and {name: function that returns a Way}.


@dataclass
class Way:
    """One way to compute something."""

    function: Callable  # of the inputs; returns the result, or a tuple that begins with it
    inputs: list
    parameters: tuple = ()  # of a layer
    form: str = ""  # of our kernels, as in kernels.use_kernels; none: the one that is chosen

    def task(self, backward):
        """Return a function that computes the result once, and if `backward` all gradients."""
        inputs = [x.detach().requires_grad_(backward) for x in self.inputs]

        def forward():
            result = self.function(*inputs)
            return result[0] if isinstance(result, tuple) else result

        with torch.no_grad():
            gradient = torch.randn_like(forward())

        def run():
            with torch.set_grad_enabled(backward):
                result = forward()
                if backward:
                    torch.autograd.grad(result, [*inputs, *self.parameters], gradient)

        return in_form(self.form, run) if self.form else run


def in_form(form, function):
    """Return the function with our kernels in this form while it runs."""

    def run():
        before = kernels.form
        kernels.use_kernels(form)
        try:
            return function()
        finally:
            kernels.use_kernels(before)

    return run


def theirs(module, function, *inputs, **options):
    """A Way by a function of a library; ImportError if it is not installed."""
    function = getattr(importlib.import_module(module), function)
    return Way(functools.partial(function, **options), list(inputs))


def linear_scan(device, dtype, B, T, D):
    a = torch.rand(B, T, D, device=device, dtype=dtype)
    b = torch.randn(B, T, D, device=device, dtype=dtype)
    log_a = a.float().log().to(dtype)

    def accelerated():
        return theirs("accelerated_scan.warp", "scan", a.mT.contiguous(), b.mT.contiguous())

    ways = {
        "ours": lambda: Way(kernels.linear_scan, [a, b]),
        "ours in PyTorch": lambda: Way(kernels.linear_scan, [a, b], form="torch"),
        "loop": lambda: Way(kernels.linear_scan_loop, [a.float(), b.float()]),
        "fla chunk_hgrn": lambda: theirs("fla.ops.hgrn", "chunk_hgrn", b, log_a),
        "fla fused_recurrent_hgrn": lambda: theirs("fla.ops.hgrn", "fused_recurrent_hgrn", b, log_a),
        "accelerated-scan": accelerated,
    }
    return [a, b], b, ways


def gated_linear_attention(device, dtype, B, T, H, K):
    """HGRN2's: k = 1 - f, which ours computes and fla's is given."""
    q, v = torch.randn(2, B, T, H, K, device=device, dtype=dtype)
    log_f = F.logsigmoid(torch.randn(B, T, H, K, device=device) + 3).to(dtype)
    k = -torch.expm1(log_f.float()).to(dtype)

    def tied(q, v, log_f):
        return kernels.gated_linear_attention(q, None, v, log_f)

    ways = {
        "ours": lambda: Way(tied, [q, v, log_f]),
        "ours, k given": lambda: Way(kernels.gated_linear_attention, [q, k, v, log_f]),
        "ours in PyTorch": lambda: Way(tied, [q, v, log_f], form="torch"),
        "loop": lambda: Way(kernels.gated_linear_attention_loop, [x.float() for x in (q, k, v, log_f)]),
        "fla chunk_gla": lambda: theirs("fla.ops.gla", "chunk_gla", q, k, v, log_f, scale=1.0),
    }
    return [q, v, log_f], v, ways


def small(device, dtype, **sizes):
    """gated_linear_attention for a class: here the GPU waits for Python, unless the launches are recorded once."""
    inputs, result, ways = gated_linear_attention(device, dtype, **sizes)
    launches = "eager", "CUDA graph"
    named = {f"{name}, {how}": ways[name] for name in ("ours", "fla chunk_gla") for how in launches}
    return inputs, result, named


def selective_scan(device, dtype, B, T, E, N):
    x = torch.randn(B, T, E, device=device, dtype=dtype)
    dt = F.softplus(torch.randn(B, T, E, device=device) - 4).to(dtype)
    A = -torch.arange(1.0, N + 1, device=device).repeat(E, 1)
    into, out = torch.randn(2, B, T, N, device=device, dtype=dtype)
    inputs = [x, dt, A, into, out]

    def mamba():
        transposed = x.mT.contiguous(), dt.mT.contiguous(), A, into.mT, out.mT
        return theirs("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn", *transposed)

    ways = {
        "ours": lambda: Way(kernels.selective_scan, inputs),
        "ours in PyTorch": lambda: Way(kernels.selective_scan, inputs, form="torch"),
        "loop": lambda: Way(kernels.selective_scan_loop, [x.float() for x in inputs]),
        "mamba_ssm": mamba,
    }
    return inputs, x, ways


KERNELS = {f.__name__: f for f in (linear_scan, gated_linear_attention, small, selective_scan)}


# ----------------------------------------------------------------------------------------------------
# Measuring


def measure(s):
    """Return rows, those of one kernel together, in the order of T."""
    device = find_device(s.device)
    sizes = SIZES.get(device.type, SIZES["cpu"])
    asked = s.chosen("recurrences", sizes)
    cases = [(turn, name, size) for name in asked for turn, size in enumerate(sizes[name])]
    cases.sort(key=lambda case: case[0])
    clock, deadline, rows = Clock(device), time.monotonic() + 60 * s.minutes, []
    for _, name, size in progress(cases, desc="kernels"):
        if time.monotonic() > deadline:
            rows.append({"kernel": name, "model": "all", "failed": "no time was left"} | size)
        else:
            rows += measure_case(name, size, clock, range(max(3, s.repeats)))
    return sorted(rows, key=lambda row: (asked.index(row["kernel"]), row["T"]))


def measure_case(name, size, clock, turns):
    """Return a row for each way to compute a kernel, forward, then forward and backward."""
    device, rows = clock.device, []
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    inputs, result, ways = KERNELS[name](device, dtype, **size)
    ways = {way: ways[way] for way in ways if worthwhile(way, size["T"], device)}
    queued = [way for way in ways if not way.endswith("eager")]
    for backward in (False, True):
        read, written = sum(x.nbytes for x in inputs), result.nbytes
        moved = 3 * read + 2 * written if backward else read + written
        copied = limits(device)["copy_bytes_per_second"]
        floor = moved / copied
        if name == "selective_scan" and device.type == "cuda":
            exponentials = math.prod(size.values()) * (2 if backward else 1)
            floor = max(floor, exponentials / limits(device)["exponentials_per_second"])
        makers = {way: functools.partial(make_task, ways[way], way, backward) for way in ways}
        times = take_turns(makers, clock, turns, queued, ENOUGH)
        about = {"pass": "forward and backward" if backward else "forward", "dtype": str(dtype)[6:]} | size
        for way in ways:
            row = {"kernel": name, "model": way} | about | times[way]
            if "seconds" in row:
                row |= {"bytes": moved, "floor_seconds": floor}
                row["share_of_bandwidth"] = moved / row["seconds"] / copied
            rows.append(row)
    return rows


def worthwhile(way, T, device):
    if way == "loop":
        return T <= LONGEST_LOOP
    return device.type == "cuda" or not way.startswith(FOR_GPUS)


def make_task(make, way, backward):
    task = make().task(backward)
    return graphed(task) if way.endswith("CUDA graph") else task


def graphed(task):
    """Return the task with its launches recorded, to be repeated without Python."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # which makes the inputs
    with torch.cuda.stream(stream):
        task()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        task()
    return graph.replay


@functools.cache
def limits(device):
    """Return bytes that a copy reads and writes in a second, and on a GPU how many exponentials it computes."""
    size = 2**31 if device.type == "cuda" else 2**28
    x, y = torch.empty(2, size, dtype=torch.int8, device=device)
    clock = Clock(device)
    seconds = min(clock(lambda: y.copy_(x), queued=True) for _ in range(9))
    found = {"copy_bytes_per_second": 2 * size / seconds}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found["exponentials_per_second"] = EXPONENTIALS * card.multi_processor_count * card.clock_rate * 1e3
    return found
