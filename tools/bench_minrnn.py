"""
minGRU and minLSTM beside what they simplify, as in figure 1 of their paper (arXiv:2410.01201): the time and memory
of one layer over the length of a sequence.

    python -m tools.bench minrnn                        64 sequences, width 64; on a GPU also 1024
    python -m tools.bench minrnn --sizes="8x512x64"     sequences x tokens x width

Forward, a loss and backward in float32, all layers in turn. The loops are GRU and LSTM as one writes them in
PyTorch, the paper's baseline; torch's are those of a library, cuDNN's on a GPU. Times include the launches.
`times_the_loop` is the speedup of a layer over its own loop.
"""

from functools import partial

from baselines import initialise_baseline
from kernels import use_kernels
from model import MIXERS, Config
from support.console import progress
from support.devices import find_device
from tools.bench_kernels import make_task
from tools.measure import Clock, peak_of_task, take_turns

import torch

SIZES = {
    "cuda": [(64, T, D) for D in (64, 1024) for T in (256, 512, 1024, 2048, 4096)],
    "cpu": [(B, T, 64) for B in (64, 8) for T in (64, 128, 256, 512)],
}
LAYERS = {  # name -> (mixer, whether in its fast form)
    "minGRU": ("mingru", True),
    "minLSTM": ("minlstm", True),
    "Mamba": ("mamba", True),
    "GRU, a loop": ("gru", False),
    "LSTM, a loop": ("lstm", False),
    "torch GRU": ("gru", True),
    "torch LSTM": ("lstm", True),
}
LOOPS = {"minGRU": "GRU, a loop", "minLSTM": "LSTM, a loop"}


def measure(s):
    """Return a row for each size and layer."""
    device = find_device(s.device)
    clock, rows = Clock(device), []
    sizes = s.numbers("sizes") or SIZES.get(device.type, SIZES["cpu"])
    for B, T, D in progress(sizes, desc="minrnn"):
        rows += measure_size(B, T, D, clock, s.repeats)
    return rows


def measure_size(B, T, D, clock, repeats):
    """Return a row for each layer, on B sequences of T tokens and width D."""
    device, rows = clock.device, []
    makers = {name: partial(make, name, device, B, T, D) for name in LAYERS}
    times = take_turns(makers, clock, range(repeats))
    for name in LAYERS:
        row = {"model": name, "B": B, "T": T, "D": D} | times[name]
        if "seconds" in row:
            row["peak_bytes"] = peak_of_task(makers[name](), device)
            loop = times.get(LOOPS.get(name), {})
            if "seconds" in loop:
                row["times_the_loop"] = loop["seconds"] / row["seconds"]
        rows.append(row)
    return rows


def make(name, device, B, T, D):
    """Return a function that computes a layer's loss and gradients."""
    torch.manual_seed(0)
    mixer, fast = LAYERS[name]
    config = Config(mixer=mixer, d_model=D)
    layer = MIXERS[mixer](config, 0)
    initialise_baseline(layer, config)
    if fast:
        use_kernels("auto", layer)
    layer.to(device)
    inputs = [torch.randn(B, T, D, device=device)]

    def loss(x):
        y, _ = layer(x)
        return y.square().mean()

    return make_task(loss, inputs, backward=True, parameters=list(layer.parameters()))
