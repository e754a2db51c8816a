"""
Compile, recompute and shard a model for training; and save a sharded model as one checkpoint file.

All of it is done to the modules in place, block by block. The names of the weights stay the same, so a checkpoint
can be resumed with any other setting of `parallel`, `compile` and `checkpoint_activations`.
"""

from functools import partial
from typing import NamedTuple

from kernels import use_kernels
from model import LanguageModel
from support.processes import from_first, rank, world_size
from support.settings import UserError

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint


def models_in(module):
    """The language models in a training objective: the one that is trained, and its teachers."""
    return [part for part in module.modules() if isinstance(part, LanguageModel)]


def compile_blocks(module):
    """
    Compile each block by itself. Blocks of one kind share the result, so a deep model compiles as fast as a
    shallow one. An evaluation can still run the same model uncompiled, on texts of many lengths.
    """
    torch._dynamo.config.recompile_limit = 64  # kinds of blocks in a process: compare.py trains many models
    for model in models_in(module):
        parts = list(model.layers) if model.floors is None else [*model.layers, model.floors]
        for part in parts:
            part.forward = torch.compile(part.forward)


def recompute_blocks(module):
    """
    Keep only each block's input for the backward pass and recompute the rest: less memory, more time. UserError
    with dropout on a Mac's GPU, whose random numbers PyTorch does not restore.
    """
    model, *_ = models_in(module)
    dropout = any(part.p > 0 for part in model.modules() if isinstance(part, torch.nn.Dropout))
    if dropout and model.embed.weight.device.type == "mps":
        what = "drops other features when a block is computed again on a Mac's GPU"
        raise UserError(f"checkpoint_activations = True, but dropout {what}; set dropout = 0.0")
    for layer in model.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


# ----------------------------------------------------------------------------------------------------
# Fully sharded data parallelism (FSDP2)


def shard(module, device):
    """
    Leave each process its share of all weights, and so of gradients and optimizer state, on the device. A block's
    weights are gathered while it computes, in float32: autocast then casts them, as it does under DDP.
    """
    mesh = init_device_mesh(device.type, (world_size(),))
    for model in models_in(module):
        for layer in model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        register_fsdp_forward_method(model, "features")  # what the fast losses call in place of forward


def whole(x):
    """The whole of a tensor; if it is sharded, all processes have to call this."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def own_part(x):
    """The part of a tensor that this process has: all of it, unless it is sharded."""
    return x.to_local() if isinstance(x, DTensor) else x


def sharded(model):
    return isinstance(model.embed.weight, DTensor)


def whole_model(model, s):
    """The model to evaluate: itself or, if it is sharded, a copy that needs no other process to compute."""
    if not sharded(model):
        return model
    with torch.device("meta"):
        copy = LanguageModel(s)
    copy.load_state_dict({name: whole(x) for name, x in model.state_dict().items()}, assign=True)
    use_kernels(s.kernels, copy)
    return copy


# ----------------------------------------------------------------------------------------------------
# The content of a checkpoint: a nest of dicts, lists, numbers, text and tensors


def gathered(content):
    """The content with whole tensors: shards are gathered one by one, and only the first process keeps them."""
    if isinstance(content, dict):
        return {key: gathered(value) for key, value in content.items()}
    if isinstance(content, DTensor):
        tensor = content.full_tensor()
        return tensor.cpu() if rank() == 0 else None
    return content


class Place(NamedTuple):
    """Stands for a tensor in the outline of a checkpoint."""

    shape: tuple
    dtype: torch.dtype


def shared(read, targets):
    """
    Call read() on the first process and return its result on all. Each tensor is sent on its own, and placed like
    its counterpart in `targets`: same device, same sharding. A UserError is raised on all.
    """
    content = {}

    def outline():
        content.update(read())
        return outline_of(content)

    return received(from_first(outline), content, targets)


def outline_of(content):
    """The content, with a Place for each tensor that has a dimension."""
    if isinstance(content, dict):
        return {key: outline_of(value) for key, value in content.items()}
    if isinstance(content, torch.Tensor) and content.ndim:
        return Place(tuple(content.shape), content.dtype)
    return content


def received(outline, content, target):
    """shared(), once all processes have the outline. A target that is one tensor stands for all below it."""
    if isinstance(outline, Place):
        return received_tensor(outline, content, target)
    if not isinstance(outline, dict):
        return outline
    parts = {}
    for key, part in outline.items():
        own = content[key] if rank() == 0 else None
        parts[key] = received(part, own, target.get(key) if isinstance(target, dict) else target)
    return parts


def received_tensor(place, tensor, target):
    """A tensor of the first process, on this one: where the target is, and as its shard."""
    if rank() > 0:
        tensor = torch.empty(place.shape, dtype=place.dtype)
    tensor = tensor.to(target.device)
    if world_size() > 1:
        dist.broadcast(tensor, 0)
    if isinstance(target, DTensor):
        tensor = distribute_tensor(tensor, target.device_mesh, target.placements, src_data_rank=None)
    return tensor
