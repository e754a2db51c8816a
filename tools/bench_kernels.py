"""
The recurrences alone: ours beside the loop and, on a GPU, flash-linear-attention's kernels.

    python -m tools.bench kernels                              all
    python -m tools.bench kernels --recurrences=linear_scan    one of them

Each is timed over the length of a sequence at about the same number of tokens, without a gradient ("forward")
and with it, alternating between the ways to compute it. On a GPU inputs are bfloat16, except for HGRN2's log f
and Mamba's dt, float32 as in training under autocast, and the times are the GPU's own, without the launches. A
row's floor_seconds is the least time that the card needs: to move each input and result once, at the speed of a
copy measured beside it, or for selective_scan to compute its exponentials. A way that is not installed, or fails,
is a row that says so, {"failed": reason}.
"""

import functools
import math

import kernels
from support.console import progress
from support.devices import find_device
from tools.measure import Clock, take_turns

import torch
import torch.nn.functional as F


def sweep(tokens, longest, **widths):
    """Sizes for T from 256 to the longest, at about the same number of tokens."""
    lengths = [2**n for n in range(8, longest.bit_length())]
    return [dict(B=max(1, tokens // T), T=T, **widths) for T in lengths]


SIZES = {
    "cuda": {
        "linear_scan": sweep(32_768, longest=32_768, D=1024),
        "gated_linear_attention": sweep(16_384, longest=32_768, H=8, K=128),
        "selective_scan": sweep(16_384, longest=32_768, E=2048, N=16),
    },
    "cpu": {
        "linear_scan": sweep(4096, longest=2048, D=256),
        "gated_linear_attention": sweep(2048, longest=2048, H=4, K=64),
        "selective_scan": sweep(2048, longest=2048, E=128, N=16),
    },
}
LONGEST_LOOP = 4096  # steps
EXPONENTIALS = 16  # of a multiprocessor in a clock cycle


# ----------------------------------------------------------------------------------------------------
# The recurrences. Each function takes a device, a type and sizes and returns two things: the ways to compute the
# recurrence, {name: (function, inputs)}, and a tensor of the result's size and type


def linear_scan(device, dtype, B, T, D):
    a = torch.rand(B, T, D, device=device, dtype=dtype)
    b = torch.randn(B, T, D, device=device, dtype=dtype)
    ways = {
        "ours": (kernels.linear_scan, [a, b]),
        "loop": (kernels.linear_scan_loop, [a.float(), b.float()]),
        "fla chunk_hgrn": (fla_hgrn, [b, a.float().log().to(dtype)]),
    }
    return ways, b


def fla_hgrn(b, log_a):
    from fla.ops.hgrn import chunk_hgrn

    return chunk_hgrn(b, log_a)


def gated_linear_attention(device, dtype, B, T, H, K):
    """HGRN2's: k = 1 - f, which ours computes and fla's is given. log f is in float32."""
    q, v = torch.randn(2, B, T, H, K, device=device, dtype=dtype)
    log_f = F.logsigmoid(torch.randn(B, T, H, K, device=device) + 3)
    k = -torch.expm1(log_f).to(dtype)
    ways = {
        "ours": (tied_attention, [q, v, log_f]),
        "loop": (kernels.gated_linear_attention_loop, [x.float() for x in (q, k, v, log_f)]),
        "fla chunk_gla": (fla_gla, [q, k, v, log_f]),
    }
    return ways, v


def tied_attention(q, v, log_f):
    return kernels.gated_linear_attention(q, None, v, log_f)


def fla_gla(q, k, v, log_f):
    from fla.ops.gla import chunk_gla

    return chunk_gla(q, k, v, log_f, scale=1.0)


def selective_scan(device, dtype, B, T, E, N):
    x = torch.randn(B, T, E, device=device, dtype=dtype)
    dt = F.softplus(torch.randn(B, T, E, device=device) - 4)
    A = -torch.arange(1.0, N + 1, device=device).repeat(E, 1)
    into, out = torch.randn(2, B, T, N, device=device, dtype=dtype)
    inputs = [x, dt, A, into, out]
    ways = {
        "ours": (kernels.selective_scan, inputs),
        "loop": (kernels.selective_scan_loop, [x.float() for x in inputs]),
    }
    return ways, x


KERNELS = {f.__name__: f for f in (linear_scan, gated_linear_attention, selective_scan)}


# ----------------------------------------------------------------------------------------------------
# Measuring


def measure(s):
    """Return rows, those of one recurrence together."""
    device = find_device(s.device)
    sizes = SIZES.get(device.type, SIZES["cpu"])
    cases = [(name, size) for name in s.chosen("recurrences", sizes) for size in sizes[name]]
    clock, rows = Clock(device, queued=True), []
    for name, size in progress(cases, desc="kernels"):
        rows += measure_case(name, size, clock, s.repeats)
    return rows


def measure_case(name, size, clock, repeats):
    """Return a row for each way to compute a recurrence, forward, then forward and backward."""
    device, rows = clock.device, []
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    ways, result = KERNELS[name](device, dtype, **size)
    read, written = sum(x.nbytes for x in ways["ours"][1]), result.nbytes
    for way in list(ways):
        too_long = way == "loop" and size["T"] > LONGEST_LOOP
        if too_long or (way.startswith("fla") and device.type != "cuda"):
            del ways[way]
    for backward in (False, True):
        makers = {way: functools.partial(make_task, *ways[way], backward) for way in ways}
        times = take_turns(makers, clock, range(repeats))
        moved = 3 * read + 2 * written if backward else read + written
        best = {"bytes": moved, "floor_seconds": floor(name, size, moved, backward, device)}
        about = {"pass": "forward and backward" if backward else "forward", "dtype": str(dtype)[6:]} | size
        for way in ways:
            row = {"kernel": name, "model": way} | about | times[way]
            if "seconds" in row:
                row |= best
                share = moved / row["seconds"] / limits(device)["copy_bytes_per_second"]
                row["share_of_bandwidth"] = share
            rows.append(row)
    return rows


def make_task(function, inputs, backward, parameters=()):
    """
    Return a function that computes function(*inputs), a result or a tuple that begins with it, once; and if
    `backward` the gradients of all inputs and parameters.
    """
    inputs = [x.detach().requires_grad_(backward) for x in inputs]

    def forward():
        result = function(*inputs)
        return result[0] if isinstance(result, tuple) else result

    with torch.no_grad():
        gradient = torch.randn_like(forward())

    def run():
        with torch.set_grad_enabled(backward):
            result = forward()
            if backward:
                torch.autograd.grad(result, [*inputs, *parameters], gradient)

    return run


def floor(name, size, moved, backward, device):
    """Seconds the device needs to move so many bytes, or for selective_scan's exponentials if that is longer."""
    best = limits(device)
    seconds = moved / best["copy_bytes_per_second"]
    if name == "selective_scan" and device.type == "cuda":
        exponentials = math.prod(size.values()) * (2 if backward else 1)
        seconds = max(seconds, exponentials / best["exponentials_per_second"])
    return seconds


@functools.cache
def limits(device):
    """Return bytes that a copy reads and writes in a second, and on a GPU how many exponentials it computes."""
    size = 2**31 if device.type == "cuda" else 2**28
    x, y = torch.empty(2, size, dtype=torch.int8, device=device)
    clock = Clock(device, queued=True)
    seconds = min(clock(lambda: y.copy_(x)) for _ in range(9))
    found = {"copy_bytes_per_second": 2 * size / seconds}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found["exponentials_per_second"] = EXPONENTIALS * card.multi_processor_count * card.clock_rate * 1e3
    return found
