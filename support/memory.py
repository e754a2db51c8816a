"""
The GPU memory that training will take, reported before it begins.

    peak = weights + optimizer + gradients + sequences of a pass x what each keeps for the gradient

The last term is measured: two passes of different sizes separate what each sequence keeps from what any pass
takes, such as copies of the weights in bfloat16. The other terms are computed.
"""

from dataclasses import dataclass
from itertools import product

from support.console import say
from support.muon import matrices_of_layers
from support.parallel import models_in, own_part, sharded
from support.processes import world_size

import torch

GIB = 2**30
COMPILED = 0.88  # of what blocks keep for the gradient, the share that they keep when compiled
SPARE = 0.92  # of the card; the rest is for CUDA itself and for gaps between tensors


@dataclass
class Memory:
    """Bytes of a GPU's memory that training takes, by what takes them."""

    weights: int  # of the teachers, too
    gradients: int
    optimizer: int  # Adam's two numbers a weight, Muon's one
    fixed: float  # by a pass of any size
    each: float  # kept of a sequence, outside blocks
    blocks: list  # kept of a sequence, by each block
    inputs: int  # of all blocks, of a sequence
    compiled: bool

    def peak(self, rows, parts, recompute, ddp):
        """The peak in bytes if a pass reads `rows` sequences and a step has `parts` parts."""
        blocks = self.inputs + max(self.blocks) if recompute else sum(self.blocks)
        passing = self.fixed + rows * (self.each + blocks * (COMPILED if self.compiled else 1))
        held = self.gradients if parts > 1 or ddp else 0  # there while a pass begins
        return self.weights + self.optimizer + max(passing + held, self.gradients)


def measure(module, s, autocast, compiled):
    """The Memory that training this objective takes; it is not compiled yet, nor told to recompute."""
    model, *_ = models_in(module)
    gradients = sum(own_part(p).nbytes for p in model.parameters())
    muons = sum(own_part(p).nbytes for p in matrices_of_layers(model)) if s.optimizer == "muon" else 0
    weights = torch.cuda.memory_allocated()
    rows = min(2, max(1, s.batch_size // s.accumulate // world_size() // 2))
    memory_of_pass(module, rows, s.context, autocast)  # warm up
    one, two = (memory_of_pass(module, n, s.context, autocast) for n in (rows, 2 * rows))
    peak, *blocks = ((b - a) / rows for a, b in zip(one, two))
    fixed = 2 * one[0] - two[0]
    if sharded(model):  # FSDP gathers the gradients outside blocks whole
        outside = (p for name, p in model.named_parameters() if not name.startswith("layers."))
        fixed += sum(4 * p.numel() for p in outside)
    torch.cuda.empty_cache()
    return Memory(
        weights, gradients, 2 * gradients - muons, fixed, each=peak - sum(blocks), blocks=blocks,
        inputs=len(blocks) * s.context * s.d_model * 4, compiled=compiled,
    )  # fmt: skip


def memory_of_pass(module, rows, context, autocast):
    """[peak bytes of a pass forward and back over `rows` sequences, bytes that each block keeps between, ...]."""
    model, *_ = models_in(module)
    marks, hooks = [], []
    for layer in model.layers:
        for hook in (layer.register_forward_pre_hook, layer.register_forward_hook):
            hooks.append(hook(lambda *_: marks.append(torch.cuda.memory_allocated())))
    tokens = torch.zeros(rows, context, dtype=torch.long, device=model.embed.weight.device)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    try:
        with autocast:
            loss = module(tokens, tokens)["loss"]
        loss.backward()
    finally:
        module.zero_grad()
        for hook in hooks:
            hook.remove()
    peak = torch.cuda.max_memory_allocated() - before
    return [peak, *(after - start for start, after in zip(marks[::2], marks[1::2]))]


def say_memory(module, s, autocast, compiled):
    """Measure what training takes and say it, before its first step."""
    try:
        memory = measure(module, s, autocast, compiled)
    except torch.OutOfMemoryError:
        if world_size() > 1:  # the others may have had enough memory, and wait for this one
            raise
        memory = None
    if memory:
        say_forecast(memory, s)
    else:  # the error is gone by now, and with it what it held
        torch.cuda.empty_cache()
        say("memory of a GPU: too little is free to measure what training takes; it may still fit")


def say_forecast(memory, s):
    """Say what training takes and, if that is more than there is, the smallest change with which it fits."""
    processes = world_size()
    there = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    ddp = processes > 1 and s.parallel == "ddp"
    rows = s.batch_size // processes

    def peak(parts, recompute):
        return memory.peak(rows // parts, parts, recompute, ddp)

    expected = peak(s.accumulate, s.checkpoint_activations)
    state = (memory.weights + memory.optimizer) / GIB
    where = f"{state:.1f} of it weights and the optimizer's averages"
    say(f"memory of a GPU: about {expected / GIB:.1f} of {there / GIB:.1f} GiB, {where}")
    if expected <= SPARE * there:
        return
    divisors = [parts for parts in range(1, rows + 1) if rows % parts == 0]
    choices = [True] if s.checkpoint_activations else [False, True]
    for recompute, parts in product(choices, divisors):
        if peak(parts, recompute) <= SPARE * there:
            flags = f"--accumulate={parts}" + (" --checkpoint_activations" if recompute else "")
            say(f"that does not fit; with {flags} it takes {peak(parts, recompute) / GIB:.1f} GiB")
            return
    remedy = "lower d_model, or take more GPUs with --parallel=fsdp"
    say(f"that does not fit, however the batch is divided; {remedy}")
