"""
minGRU and minLSTM beside what they simplify, as in figure 1 of their paper (arXiv:2410.01201): the time and memory
of one layer over the length of a sequence.

    python bench.py minrnn                        64 sequences, width 64; on a GPU also 1024
    python bench.py minrnn --sizes="8x512x64"     sequences x tokens x width

Forward, a loss and backward in float32, all layers in turn. The loops are GRU and LSTM as one writes them in
PyTorch, the paper's baseline; torch's are those of a library, cuDNN's on a GPU. Times are from the call to the
last result, launches included. `times_the_loop` is how many times as fast as its own loop a layer is.
"""

from itertools import accumulate

import torch
from torch.profiler import ProfilerActivity, profile

from baselines import initialise_baseline
from bench_kernels import Clock, Way, take_turns
from config import progress
from model import MIXERS, Config, find_device

SIZES = {"cuda": [(64, T, D) for D in (64, 1024) for T in (256, 512, 1024, 2048, 4096)]}
SIZES["cpu"] = [(B, T, 64) for B in (64, 8) for T in (64, 128, 256, 512)]
LAYERS = {
    "minGRU": "mingru",
    "minLSTM": "minlstm",
    "Mamba": "mamba",
    "GRU, a loop": "gru_loop",
    "LSTM, a loop": "lstm_loop",
    "torch GRU": "gru",
    "torch LSTM": "lstm",
}
LOOPS = {"minGRU": "GRU, a loop", "minLSTM": "LSTM, a loop"}


def make(name, device, B, T, D):
    """A Way to compute a layer's loss."""
    if LAYERS[name] not in MIXERS:
        raise ImportError(f"there is no mixer {LAYERS[name]!r}")
    torch.manual_seed(0)
    config = Config(mixer=LAYERS[name], d_model=D)
    layer = MIXERS[LAYERS[name]](config, 0)
    initialise_baseline(layer, config)
    layer.to(device)
    inputs = [torch.randn(B, T, D, device=device)]
    return Way(lambda x: layer(x)[0].square().mean(), inputs, tuple(layer.parameters()))


def measure(s):
    """The benchmark of bench.py: a row for each size and layer."""
    device = find_device(s.device)
    sizes = [tuple(map(int, size.split("x"))) for size in s.sizes.split()]
    sizes = sizes or SIZES.get(device.type, SIZES["cpu"])
    return [row for size in progress(sizes, desc="minrnn") for row in rows_of(size, device, s.repeats)]


def rows_of(size, device, repeats):
    """-> a row for each layer, on B sequences of T tokens and width D."""
    clock, ways = Clock(device), {name: lambda name=name: make(name, device, *size) for name in LAYERS}
    seconds, failed = take_turns(ways, True, lambda task, eager: clock(task, eager=True), repeats)
    rows = []
    for name in LAYERS:
        rows.append({"model": name} | dict(zip("BTD", size)))
        if name in failed:
            rows[-1]["failed"] = failed[name]
            continue
        rows[-1] |= {"seconds": seconds[name], "peak_bytes": peak_bytes(ways[name]().task(True), device)}
        if LOOPS.get(name) in seconds:
            rows[-1]["times_the_loop"] = seconds[LOOPS[name]] / seconds[name]
    return rows


def peak_bytes(task, device):
    """The most that PyTorch holds while a task runs, beyond what it held before; None where that is not known."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        task()
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        return None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        task()
    events = (x for x in watched.profiler.kineto_results.events() if x.name() == "[memory]")
    return max(accumulate(x.nbytes() for x in sorted(events, key=lambda x: x.start_ns())))
