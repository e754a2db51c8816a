"""
Layers with hand-written gradients, put in place of the plain ones of model.py and baselines.py: faster or
smaller, with the same results and the same parameters.

    nn.Linear      y_t = W x_t + b, by oneDNN on CPUs with AVX-512
    RMSNorm        half the passes over x
    SwiGLU         silu(gate) * up, keeping only its inputs for the gradient
    HGRN2          log(floor + (1 - floor) sigmoid(z)) likewise, and 1 - f made inside the recurrence
    BlockLinear    four small blocks as one matrix, where that is faster
    minGRU, ...    gates made inside the recurrence; LSTM and GRU by PyTorch's own cells

Shapes:  D, E width in and out of a layer   ... any, such as batch and time
"""

import math

from fast.linear import linear
from fast.recurrences import gate_gradients, min_rnn
from kernels import at_least_float32, fill, gated_linear_attention, linear_scan, min_gru, min_lstm

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

# ---------------------------------------------------------------------------------------------------
# linear layers


def linear_forward(self, x):
    """Fast form of nn.Linear.forward."""
    return linear(x, self.weight, self.bias)


def block_linear_forward(self, x):
    """Fast form of baselines.BlockLinear.forward: four blocks in one, zeros between, where that is faster."""
    weight = self.weight
    if weight.shape[1] < 16 and len(weight) % 4 == 0:
        apart = torch.eye(4, dtype=x.dtype, device=x.device)
        weight = torch.einsum("gnoi,nm->gnomi", weight.unflatten(0, (-1, 4)), apart)
        weight = weight.flatten(3).flatten(1, 2)
    return torch.einsum("bthi,hoi->btho", x.unflatten(-1, (len(weight), -1)), weight).flatten(2)


# ---------------------------------------------------------------------------------------------------
# norm:  y_t = x_t / rms_t * weight,   rms_t = sqrt(mean(x_t^2) + eps)

# On a CPU, PyTorch differentiates its rms_norm in a dozen passes over x, four times the work of the six here.
# With n = x / rms and g = dy weight,  dx = (g - n mean(g n)) / rms  and  dweight is the sum of dy n.


class RMSNormalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        rms = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).sqrt_()
        ctx.save_for_backward(x, weight, rms)
        return (x / rms).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, rms = ctx.saved_tensors
        n, g = x / rms, dy * weight
        dweight = (dy * n).flatten(0, -2).sum(0)
        return g.addcmul_(n, (g * n).mean(-1, keepdim=True), value=-1).div_(rms), dweight, None


def rms_norm(x, weight, eps):
    """x (..., D), weight (D,) -> x / sqrt(mean(x^2) + eps) * weight, in float32 at least."""
    x, weight = at_least_float32(x, weight)
    if x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return RMSNormalise.apply(x, weight, eps)
    return F.rms_norm(x, weight.shape, weight, eps)


def rms_norm_forward(self, x):
    """Fast form of model.RMSNorm.forward."""
    return rms_norm(x, self.weight, self.eps)


# ---------------------------------------------------------------------------------------------------
# gates:  silu(gate) * up   and   log(floor + (1 - floor) sigmoid(z))

# For the gradient of a chain of elementwise functions PyTorch keeps all intermediate results. These two keep only
# their inputs and recompute the rest: a quarter less memory for a whole model, in the same time. torch.compile
# does so by itself, and in torch 2.11 it silently gets in-place steps inside a Function wrong.


class GatedUnit(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(dy * up, gate), F.silu(gate).mul_(dy)


class LogForgetGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, floor, reset):
        ctx.save_for_backward(z, floor, reset)
        _, rest, f = forget_gate(z, floor)
        lost = (1 - f).addcmul_(rest, 1 - floor, value=-1)  # by rounding f: near 1 that is all of log f
        log_f = f.clamp_(min=1e-37).log_().add_(lost)
        if reset is None:
            return log_f, None
        return log_f.masked_fill_(reset.unsqueeze(-1), -math.inf), rest.mul_(1 - floor)

    @staticmethod
    @once_differentiable
    def backward(ctx, dlog_f, dk):
        z, floor, reset = ctx.saved_tensors
        s, rest, f = forget_gate(z, floor)
        df = dlog_f / f.clamp_(min=1e-37)
        if reset is not None:
            df.masked_fill_(reset.unsqueeze(-1), 0.0).sub_(dk)
        dfloor = df.mul_(rest)  # of each token
        return (dfloor * s).mul_(1 - floor).to(z.dtype), dfloor.flatten(0, -2).sum(0), None


def forget_gate(z, floor):
    """s = sigmoid(z), 1 - s without cancellation, and f = floor + (1 - floor) s, all in the type of floor."""
    z = z.to(floor.dtype)
    s = torch.sigmoid(z)
    return s, torch.sigmoid(-z), (s * (1 - floor)).add_(floor)


def forget_gates(z, floor, reset=None):
    """
    z (B, T, D), floor (D,) in [0, 1) -> log f of f = floor + (1 - floor) sigmoid(z), and k, both (B, T, D). log f
    is in float32 at least, since in bfloat16 1 - f would be 0 or 1/256, nothing between; and finite, at least
    log 1e-37. Without reset, k is None: the recurrence computes 1 - f. With reset (B, T), k is 1 - f, and log f is
    -inf where reset is True.
    """
    if torch.compiler.is_compiling():
        z, floor = at_least_float32(z, floor)
        log_f = F.logsigmoid(torch.logaddexp(z, floor.log()) - torch.log1p(-floor))
        k = None if reset is None else -torch.expm1(log_f)
        return fill(log_f, reset, -math.inf), k
    floor = floor.to(torch.promote_types(torch.promote_types(z.dtype, floor.dtype), torch.float32))
    return LogForgetGate.apply(z, floor, reset)


def swiglu_forward(self, x):
    """Fast form of model.SwiGLU.forward."""
    gate, up = self.gate(x), self.up(x)
    return self.down(F.silu(gate) * up if torch.compiler.is_compiling() else GatedUnit.apply(gate, up))


# ---------------------------------------------------------------------------------------------------
# mixers


def hgrn2_forward(self, x, state=None, floor=0.0, reset=None):
    """Fast form of model.HGRN2.forward."""
    q = F.silu(self.query(x)) * (x.shape[-1] // self.n_head) ** -0.5  # (B, T, D)
    z = self.forget(x)
    log_f, k = forget_gates(z, torch.as_tensor(floor, device=z.device).expand(z.shape[-1]), reset)
    i = self.input(x)
    q, log_f, i = (y.unflatten(-1, (self.n_head, -1)) for y in (q, log_f, i))  # (B, T, H, K or V)
    k = None if k is None else k.unflatten(-1, (self.n_head, -1))  # None: 1 - f is made inside
    o, S = gated_linear_attention(q, k, i, log_f, state)
    return self.output(self.norm(o.flatten(2))), S


def min_gru_forward(self, x, state=None, reset=None):
    """Fast form of model.MinGRU.forward."""
    if reset is None:
        h = min_gru(*for_states(self.update(x), self.candidate(x)), state)
    elif torch.compiler.is_compiling():
        return self.plain.forward(self, x, state, reset)
    else:
        h = linear_scan(*MinGates.apply("min_gru", reset, None, self.update(x), self.candidate(x)), state)
    return self.output(h), h[:, -1].clone()


def min_lstm_forward(self, x, state=None, reset=None):
    """Fast form of model.MinLSTM.forward."""
    if reset is None:
        h = min_lstm(*for_states(self.forget(x), self.input(x), self.candidate(x)), state)
    elif torch.compiler.is_compiling():
        return self.plain.forward(self, x, state, reset)
    else:
        gates = self.forget(x), self.input(x), self.candidate(x)
        h = linear_scan(*MinGates.apply("min_lstm", reset, *gates), state)
    return self.output(h), h[:, -1].clone()


class MinGates(torch.autograd.Function):
    """The inputs a and b of the linear scan in minGRU or minLSTM; a = 0 where reset (B, T) is True."""

    @staticmethod
    def forward(ctx, kind, reset, *inputs):
        ctx.kind = kind
        inputs = at_least_float32(*inputs)
        ctx.save_for_backward(reset, *inputs)
        a, share, g = min_rnn(kind, *inputs)
        return a.masked_fill_(reset.unsqueeze(-1), 0.0), g.mul_(share)

    @staticmethod
    @once_differentiable
    def backward(ctx, da, db):
        reset, *inputs = ctx.saved_tensors
        da = da.masked_fill(reset.unsqueeze(-1), 0.0)
        gradients = iter(gate_gradients(ctx.kind, inputs, min_rnn(ctx.kind, *inputs), da, db.clone()))
        return None, None, *(None if x is None else next(gradients) for x in inputs)


def for_states(*projections):
    """The projections; without gradients in float32 at least, as a state kept in bfloat16 loses small updates."""
    return projections if torch.is_grad_enabled() else at_least_float32(*projections)


@torch.compiler.disable  # it would unroll all steps
def lstm_run(self, x, state, reset=None):
    """Fast form of baselines.LSTM.run, by PyTorch's own cell."""
    h, last = run_cell(self.cell, x, state, reset)
    return h, tuple(last)


@torch.compiler.disable
def gru_run(self, x, state, reset=None):
    """Fast form of baselines.GRU.run, by PyTorch's own cell."""
    h, (last,) = run_cell(self.cell, x, None if state is None else (state,), reset)
    return h, last


def run_cell(cell, x, state, reset):
    """
    x (B, T, D), state [(B, E), ...] or None, reset (B, T) or None -> every h_t (B, T, E), the last state. The cell
    has no reset, so time is cut wherever a document begins in some row; there that row's state becomes zero.
    """
    if reset is None:
        return call_cell(cell, x, state)
    starts = [0, *(reset[:, 1:].any(dim=0).nonzero().flatten() + 1).tolist()]
    lengths = [end - start for start, end in zip(starts, [*starts[1:], x.shape[1]])]
    hs = []
    for start, piece in zip(starts, x.split(lengths, dim=1)):
        if state is not None:
            state = [z.masked_fill(reset[:, start, None], 0.0) for z in state]
        h, state = call_cell(cell, piece, state)
        hs.append(h)
    return torch.cat(hs, dim=1), state


def call_cell(cell, x, state):
    """x (B, T, D), state [(B, E), ...] or None -> every h_t (B, T, E), the last state, by torch.nn.LSTM or GRU."""
    is_lstm = isinstance(cell, torch.nn.LSTM)
    if state is not None:
        state = [z.unsqueeze(0) for z in state]
        state = tuple(state) if is_lstm else state[0]
    h, last = cell(x, state)
    return h, [z.squeeze(0) for z in (last if is_lstm else (last,))]
