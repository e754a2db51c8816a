"""
The recurrences of kernels.py in their fast forms, each as one PyTorch operator (torch.library), forward and
backward, that torch.compile treats as opaque: by Triton, in kernels.py, or by PyTorch, in recurrences.py.
"""

import functools

from fast.recurrences import TORCH
from kernels import (
    MOST_STATES,
    STEPS,
    TRITON,
    at_least_float32,
    gated_linear_attention_loop,
    runs_triton,
    selective_scan_loop,
)

import torch
import torch.nn.functional as F
from torch import Tensor

NAMESPACE = "nanornn"  # of the operators in torch.ops
ROWS_FOR_LOOP = 4  # up to here a loop is faster than PyTorch's form, as in generation


def fast_form(x):
    """{name: function}: the form, Triton's or PyTorch's, that the operators use for x."""
    return TRITON if runs_triton(x) else TORCH


def check(**tensors):
    """
    check(a=(a, "BTD"), h0=(h0, "BD")): raise a ValueError that names the argument unless each letter stands for
    one length everywhere, at least 1; None fits. The message is built only for an error, or torch.compile would
    compile for every length.
    """
    lengths, places = {"1": 1}, {}
    for name, (x, letters) in tensors.items():
        if x is None:
            continue
        before = lengths.copy()
        fits = x.ndim == len(letters) and 0 not in x.shape
        if not fits or any(lengths.setdefault(letter, n) != n for letter, n in zip(letters, x.shape)):
            known = ", ".join(f"{letter} = {before[letter]}" for letter in letters if letter in before)
            wanted = f"({', '.join(letters)}){known and ' with '}{known}, no length 0"
            raise ValueError(f"{name} has shape {tuple(x.shape)}: must be {wanted}")
        if not x.is_floating_point():
            raise ValueError(f"{name} is {x.dtype}: must be floating-point numbers")
        places[x.device] = name
    if len(places) > 1:
        where = ", ".join(f"{name} on {device}" for device, name in places.items())
        raise ValueError(f"{where}: must be on one device")


def zeros_where_none(gradients, results):
    """The gradients of results, with zeros in place of None."""
    return [torch.zeros_like(y) if dy is None else dy for dy, y in zip(gradients, results)]


def where_given(inputs, gradients):
    """One gradient for each input that is not None, and None for the others."""
    gradients = iter(gradients)
    return [None if x is None else next(gradients) for x in inputs]


# ---------------------------------------------------------------------------------------------------
# linear scan


@torch.library.custom_op(f"{NAMESPACE}::scan", mutates_args=())
def scan(kind: str, keep: Tensor | None, new: Tensor | None, value: Tensor, h0: Tensor) -> Tensor:
    return fast_form(value)["scan"](kind, keep, new, value, h0)


@torch.library.custom_op(f"{NAMESPACE}::scan_gradients", mutates_args=())
def scan_gradients(
    kind: str, keep: Tensor | None, new: Tensor | None, value: Tensor, h0: Tensor, h: Tensor, dh: Tensor
) -> list[Tensor]:
    """The gradients of those of keep, new, value, h0 that are not None."""
    return fast_form(value)["scan_backward"](kind, (keep, new, value, h0), h, dh)


@scan.register_fake
def _(kind, keep, new, value, h0):
    return value.new_empty(value.shape)


@scan_gradients.register_fake
def _(kind, keep, new, value, h0, h, dh):
    return [x.new_empty(x.shape) for x in (keep, new, value, h0) if x is not None]


def save_for_scan_backward(ctx, inputs, output):
    ctx.kind, keep, new, value, h0 = inputs
    if ctx.kind == "linear":
        value = output  # b itself is not needed
    ctx.save_for_backward(keep, new, value, h0, output)


def run_scan_backward(ctx, dh):
    *inputs, h = ctx.saved_tensors
    return None, *where_given(inputs, scan_gradients(ctx.kind, *inputs, h, dh))


scan.register_autograd(run_scan_backward, setup_context=save_for_scan_backward)


def scan_linear(a, b, h0=None):
    """Fast form of kernels.linear_scan."""
    check(b=(b, "BTD"), a=(a, "BTD"), h0=(h0, "BD"))
    return scan_any("linear", a, None, b, h0)


def scan_min_gru(gate, candidate, h0=None):
    """Fast form of kernels.min_gru."""
    check(candidate=(candidate, "BTD"), gate=(gate, "BTD"), h0=(h0, "BD"))
    return scan_any("min_gru", None, gate, candidate, h0)


def scan_min_lstm(forget, input, candidate, h0=None):
    """Fast form of kernels.min_lstm."""
    check(candidate=(candidate, "BTD"), forget=(forget, "BTD"), input=(input, "BTD"), h0=(h0, "BD"))
    return scan_any("min_lstm", forget, input, candidate, h0)


def scan_any(kind, keep, new, value, h0):
    """Every h_t (B, T, D) of a scan of this kind, in value's type."""
    h0 = value.new_zeros(value[:, 0].shape) if h0 is None else h0
    if runs_triton(value):
        return scan(kind, keep, new, value, h0)
    return scan(kind, *at_least_float32(keep, new, value, h0)).to(value.dtype)


# ---------------------------------------------------------------------------------------------------
# gated linear attention


@torch.library.custom_op(f"{NAMESPACE}::gated_linear_attention", mutates_args=())
def attention(
    q: Tensor, k: Tensor | None, v: Tensor, log_f: Tensor, S0: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """o, the last S and, if `keep`, what the gradient needs: states on the way and, by Triton, all A."""
    results = attention_results(q, k, v, log_f, S0, keep)
    fast_form(q)["attend"](q, k, v, log_f, S0, results)
    return results


@attention.register_fake
def attention_results(q, k, v, log_f, S0, keep):
    """Empty tensors for the results."""
    dtypes = (x.dtype for x in (q, k, v, log_f, S0) if x is not None)
    dtype = functools.reduce(torch.promote_types, dtypes, torch.float32)
    states, A = fast_form(q)["saved_by_attend"](q, v, keep, dtype)
    return v.new_empty(v.shape), q.new_empty(len(q), *q.shape[2:], v.shape[-1], dtype=dtype), states, A


@torch.library.custom_op(f"{NAMESPACE}::gated_linear_attention_gradients", mutates_args=())
def attention_gradients(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    log_f: Tensor,
    S0: Tensor | None,
    saved: list[Tensor],
    grads: list[Tensor],
) -> list[Tensor]:
    """saved = states, A; grads = do, dS -> the gradients of those of q, k, v, log_f, S0 that are not None."""
    inputs = q, k, v, log_f, S0
    gradients = [None if x is None else x.new_empty(x.shape) for x in inputs]
    fast_form(q)["attend_backward"](inputs, saved, *grads, gradients)
    return [x for x in gradients if x is not None]


@attention_gradients.register_fake
def _(q, k, v, log_f, S0, saved, grads):
    return [x.new_empty(x.shape) for x in (q, k, v, log_f, S0) if x is not None]


def save_for_attention_backward(ctx, inputs, output):
    _, _, states, A = output
    ctx.mark_non_differentiable(states, A)
    ctx.set_materialize_grads(False)  # zeros as large as states and A
    ctx.save_for_backward(*inputs[:5], states, A)


def run_attention_backward(ctx, do, dS, *_):
    *inputs, states, A = ctx.saved_tensors
    grads = zeros_where_none((do, dS), attention_results(*inputs, False))
    return *where_given(inputs, attention_gradients(*inputs, [states, A], grads)), None


attention.register_autograd(run_attention_backward, setup_context=save_for_attention_backward)


def attend(q, k, v, log_f, S0=None):
    """Fast form of kernels.gated_linear_attention."""
    gates = "BTHK" if log_f.shape[-1:] == q.shape[-1:] else "BTH1"
    check(q=(q, "BTHK"), k=(k, "BTHK"), v=(v, "BTHV"), log_f=(log_f, gates), S0=(S0, "BHKV"))
    if v.shape[3] > 256 and v.shape[3] % 8 and runs_triton(v):  # mLSTM's 513: unaligned rows take registers
        V, extra = v.shape[3], -v.shape[3] % 8
        S0 = None if S0 is None else F.pad(S0, (0, extra))
        o, S = attend(q, k, F.pad(v, (0, extra)), log_f, S0)
        return o[..., :V], S[..., :V].clone()
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, log_f, S0))
    if q.shape[1] <= ROWS_FOR_LOOP and not keep and not runs_triton(q):
        o, S = gated_linear_attention_loop(q, k, v, log_f, S0)
        return o.to(v.dtype), S
    o, S, *_ = attention(q, k, v, log_f, S0, keep)
    return o, S


# ---------------------------------------------------------------------------------------------------
# selective scan


@torch.library.custom_op(f"{NAMESPACE}::selective_scan", mutates_args=())
def selective(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last h and, if `keep`, the states that the gradient needs."""
    results = selective_results(x, dt, A, B, C, h0, keep)
    selective_form(x, A)["selective"]((x, dt, A, B, C, h0), results)
    return results


def selective_form(x, A):
    """fast_form(x), but PyTorch's for more than MOST_STATES states a channel, which Triton's has no room for."""
    if A.shape[1] <= MOST_STATES:
        return fast_form(x)
    return TORCH


@selective.register_fake
def selective_results(x, dt, A, B, C, h0, keep):
    """Empty tensors for the results."""
    dtype = functools.reduce(torch.promote_types, (z.dtype for z in (x, dt, A, B, C, h0)), torch.float32)
    tiles = -(-x.shape[1] // STEPS) if keep else 0
    states = x.new_empty(len(x), tiles, *A.mT.shape, dtype=dtype)
    return x.new_empty(x.shape), x.new_empty(h0.shape, dtype=dtype), states


@torch.library.custom_op(f"{NAMESPACE}::selective_scan_gradients", mutates_args=())
def selective_gradients(inputs: list[Tensor], states: Tensor, dy: Tensor, dh: Tensor) -> list[Tensor]:
    """The gradients of inputs = x, dt, A, B, C, h0."""
    x, _, A, *_ = inputs
    return selective_form(x, A)["selective_backward"](inputs, states, dy, dh)


@selective_gradients.register_fake
def _(inputs, states, dy, dh):
    return [z.new_empty(z.shape) for z in inputs]


def save_for_selective_backward(ctx, inputs, output):
    states = output[2]
    ctx.mark_non_differentiable(states)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:6], states)


def run_selective_backward(ctx, dy, dh, _):
    *inputs, states = ctx.saved_tensors
    dy, dh = zeros_where_none((dy, dh), selective_results(*inputs, False))
    return *selective_gradients(inputs, states, dy, dh), None


selective.register_autograd(run_selective_backward, setup_context=save_for_selective_backward)


def scan_selective(x, dt, A, B, C, h0=None):
    """Fast form of kernels.selective_scan."""
    check(x=(x, "BTE"), dt=(dt, "BTE"), A=(A, "EN"), B=(B, "BTN"), C=(C, "BTN"), h0=(h0, "BEN"))
    h0 = A.new_zeros(len(x), *A.shape) if h0 is None else h0
    inputs = x, dt, A, B, C, h0
    keep = torch.is_grad_enabled() and any(z.requires_grad for z in inputs)
    if x.shape[1] <= ROWS_FOR_LOOP and not keep and selective_form(x, A) is TORCH:
        y, h = selective_scan_loop(*inputs)
        return y.to(x.dtype), h
    y, h, _ = selective(*inputs, keep)
    return y, h
