"""
What every model here spends its time on besides its recurrence: linear layers, the norm, gates, the loss.

Each is PyTorch's own function, or a formula of a line, made faster or smaller by a gradient written by hand.

    linear                  y_t = W x_t + b                                    every model's layers
    rms_norm                y_t = x_t / sqrt(mean(x_t^2) + eps) * weight       before each mixer and MLP
    CausalConv1d            y_t = bias + sum_i weight_i x_{t-i}                before some mixers
    gated_unit              y_t = silu(gate_t) * up_t                          the MLP
    log_forget_gate         log(floor + (1 - floor) sigmoid(z_t))              HGRN2
    linear_cross_entropy    -log softmax(W x_t)[target_t], a slice at a time   every model's last layer
    linear_distillation     the same, and how far a teacher's softmax is       a student's last layer

Shapes:  D, E width in and out of a layer   V vocabulary   N tokens of a batch   ... any, such as batch and time
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def at_least_float32(*tensors):
    """The tensors in the widest of their types, and in float32 at least."""
    wide = functools.reduce(torch.promote_types, (x.dtype for x in tensors if x is not None), torch.float32)
    return [None if x is None else x.to(wide) for x in tensors]


def precise(*projections):
    """As they are while learning, else in float32 at least: a state carried on in bfloat16 loses small updates."""
    return projections if torch.is_grad_enabled() else at_least_float32(*projections)


def split_heads(x, n_head):
    """(B, T, D) -> (B, T, H, D / H)."""
    return x.unflatten(-1, (n_head, -1))


# ---------------------------------------------------------------------------------------------------
# linear layer:  y_t = W x_t + b

# PyTorch gives float32 products to the library MKL, which uses but half the width of an AMD processor. It also
# brings oneDNN, for bfloat16, which uses all of it in float32 too: 490 in place of 210 GFLOP/s on two cores with
# AVX-512. The gradients are products of the same kind, dx = dy W and dW = dy^T x.

ROWS_FOR_ONEDNN = 16  # below, a product is too small to gain


def onednn_pays(x):
    """Whether x @ weight.T is faster by oneDNN: float32, enough rows, a CPU with AVX-512."""
    rows = x.numel() // max(1, x.shape[-1])
    return HAS_AVX512 and x.dtype == torch.float32 and x.device.type == "cpu" and rows >= ROWS_FOR_ONEDNN


def has_avx512():
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_f")) and torch.backends.mkldnn.is_available()


HAS_AVX512 = has_avx512()


def product(x, weight, bias=None):
    """x (..., D), weight (E, D), bias (E,) -> x weight^T + bias (..., E). Without a gradient."""
    if onednn_pays(x):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        dx = product(dy, weight.T) if ctx.needs_input_grad[0] else None
        x, dy = x.flatten(0, -2), dy.flatten(0, -2)
        dweight = None
        if ctx.needs_input_grad[1]:  # of the two transposed factors oneDNN copies the first: the narrower one
            dweight = product(x.T, dy.T).T if x.shape[1] < dy.shape[1] else product(dy.T, x.T)
        return dx, dweight, dy.sum(0) if ctx.has_bias else None


def linear(x, weight, bias=None):
    """F.linear, differentiable once: x (..., D), weight (E, D), bias (E,) -> x weight^T + bias (..., E)."""
    if onednn_pays(x) and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling():
        return Product.apply(x, weight, bias)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """nn.Linear, at the full speed of a CPU."""

    def forward(self, x):
        return linear(x, self.weight, self.bias)


class UndecayedLinear(Linear):
    """A linear layer that weight decay leaves alone: as minRNN's official code its gates and candidate."""


class BlockLinear(nn.Module):
    """Each of so many blocks of x multiplied by a matrix of its own: forward(x), x and y (B, T, width)."""

    def __init__(self, width, blocks):
        super().__init__()
        size = width // blocks
        self.weight = nn.Parameter(torch.randn(blocks, size, size) * (2 / 5 / size) ** 0.5)

    def forward(self, x):
        weight = self.weight
        if weight.shape[1] < 16 and len(weight) % 4 == 0:  # four in one, with zeros between, are faster
            apart = torch.eye(4, dtype=x.dtype, device=x.device)
            weight = (
                torch.einsum("gnoi,nm->gnomi", weight.unflatten(0, (-1, 4)), apart).flatten(3).flatten(1, 2)
            )
        return torch.einsum("bthi,hoi->btho", split_heads(x, len(weight)), weight).flatten(2)


# ---------------------------------------------------------------------------------------------------
# norm:  y_t = x_t / rms_t * weight,   rms_t = sqrt(mean(x_t^2) + eps)

# On a CPU, PyTorch differentiates its rms_norm in a dozen passes over x, four times the work of the six here. With
# n = x / rms and g = dy weight,  dx = (g - n mean(g n)) / rms  and  dweight is the sum of dy n.


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


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight, in float32 at least (Zhang & Sennrich 2019, arXiv:1910.07467)."""

    def forward(self, x):
        return rms_norm(x, self.weight, self.eps)


# ---------------------------------------------------------------------------------------------------
# causal convolution:  y_t = bias + sum_i weight_i x_{t-i},  each channel apart


class CausalConv1d(nn.Conv1d):
    """
    CausalConv1d(channels, width): forward(x, state=None) -> y, state, both x and y (B, T, channels). What came
    before x are `state`, the last width - 1 inputs; zeros before the first.
    """

    def __init__(self, channels, width, bias=True):
        super().__init__(channels, channels, width, groups=channels, bias=bias)

    def forward(self, x, state=None):
        past = self.kernel_size[0] - 1
        state = x.new_zeros(x.shape[0], past, x.shape[2]) if state is None else state
        seen = torch.cat([state, x], dim=1)  # (B, past + T, channels)
        return super().forward(seen.mT).mT, seen[:, seen.shape[1] - past :].clone()


# ---------------------------------------------------------------------------------------------------
# gates:  silu(gate) * up   and   log(floor + (1 - floor) sigmoid(z))

# For the gradient of a chain of elementwise functions PyTorch keeps what is between them. These two keep their
# inputs alone and compute the rest again: a quarter less memory for a whole model, in the same time.


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


def gated_unit(gate, up):
    """silu(gate) * up, all of one shape."""
    return GatedUnit.apply(gate, up)


class LogForgetGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, floor):
        ctx.save_for_backward(z, floor)
        _, rest, f = forget_gate(z, floor)
        lost = (1 - f).addcmul_(rest, 1 - floor, value=-1)  # by f to rounding, which near 1 is all of log f
        return f.clamp_(min=1e-37).log_().add_(lost)

    @staticmethod
    @once_differentiable
    def backward(ctx, dlog_f):
        z, floor = ctx.saved_tensors
        s, rest, f = forget_gate(z, floor)
        dfloor = rest.mul_(dlog_f).div_(f.clamp_(min=1e-37))  # of each token
        return (dfloor * s).mul_(1 - floor).to(z.dtype), dfloor.flatten(0, -2).sum(0)


def forget_gate(z, floor):
    """-> s = sigmoid(z), 1 - s as exactly, and floor + (1 - floor) s, all in the type of floor."""
    z = z.to(floor.dtype)
    s = torch.sigmoid(z)
    return s, torch.sigmoid(-z), (s * (1 - floor)).add_(floor)


def log_forget_gate(z, floor):
    """
    log(floor + (1 - floor) sigmoid(z)): z (..., D), floor (D,), at least 0 and below 1 -> (..., D), in float32 at
    least: in bfloat16, 1 - f would be 0 or 1/256 and nothing between. At least log 1e-37, so that it is a number.
    """
    floor = floor.to(torch.promote_types(torch.promote_types(z.dtype, floor.dtype), torch.float32))
    return LogForgetGate.apply(z, floor)


# ---------------------------------------------------------------------------------------------------
# output layer and its losses, means over t:
#     cross-entropy  -log p_t(target_t),                        p_t = softmax(W x_t)
#     distillation   hard cross-entropy + soft KL(q_t || p_t),  q_t a teacher's, both at a temperature


def linear_cross_entropy_reference(x, weight, targets):
    """x (..., D), weight (V, D), targets (...) -> the mean over targets that are not -100; 0 if all are."""
    losses = F.cross_entropy((x @ weight.T).float().flatten(0, -2), targets.flatten(), reduction="sum")
    return losses / (targets != -100).sum().clamp(min=1)


def linear_distillation_reference(x, weight, targets, teachers, hard, soft, temperature=1.0):
    """
    The same and teachers [(features (..., D_i), head (V, D_i)), ...], whose logits are averaged -> the loss
    hard cross-entropy + soft KL, the cross-entropy, and KL(q || p) = sum_v q log(q / p) at the temperature.
    """
    taught = torch.stack([features @ head.T for features, head in teachers]).mean(dim=0)
    log_q, log_p = ((z.float() / temperature).log_softmax(dim=-1) for z in (taught, x @ weight.T))
    kl = (log_q.exp() * (log_q - log_p)).sum(dim=-1) * (targets != -100)
    kl = kl.sum() / (targets != -100).sum().clamp(min=1)
    cross_entropy = linear_cross_entropy_reference(x, weight, targets)
    return hard * cross_entropy + soft * kl, cross_entropy, kl


# The same, a slice of tokens at a time, so that their logits, the largest tensor of any language model, are
# never held whole. A loss needs one number of each row; its gradient with respect to the logits is p -
# onehot(target) or, of KL, (p - q) / temperature. So the slice that has just been made is turned into its
# gradient on the spot and multiplied into dx and dW, which are kept in its stead: no logit is computed twice.

SLICE = 256  # tokens


@torch.library.custom_op("nanornn::linear_losses", mutates_args=())
def summed_losses(
    x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, with_gradient: bool,
    teachers: list[Tensor], heads: list[Tensor], hard: float, soft: float, temperature: float, mean_of: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """
    x (N, D), weight (V, D), targets (N,), of teachers features (N, D_i) and heads (V, D_i) -> sums of the loss,
    cross-entropy and KL, and the loss's gradients with respect to x and weight, or two empty tensors; matrix
    products in dtype, the rest in float32 at least. One operator to torch.compile.
    """
    with torch.autocast(x.device.type, enabled=False):
        taught = [(features.to(dtype), head.to(dtype)) for features, head in zip(teachers, heads)]
        teaching = (taught, hard, soft, temperature, mean_of)
        return sliced_losses(x, weight, targets, dtype, with_gradient, *teaching)


@summed_losses.register_fake
def _(x, weight, targets, dtype, with_gradient, *_):
    wide = torch.promote_types(x.dtype, torch.float32)
    losses = [x.new_empty((), dtype=wide) for _ in range(3)]
    if with_gradient:
        return *losses, torch.empty_like(x), torch.empty_like(weight, dtype=wide)
    return *losses, x.new_empty(0), x.new_empty(0)


def keep_gradients(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[3:])
    ctx.none = [[None] * len(y) if isinstance(y, list) else None for y in inputs[2:]]


def scale_gradients(ctx, dloss, *_):
    dx, dweight = ctx.saved_tensors
    return dx * dloss, dweight * dloss, *ctx.none


summed_losses.register_autograd(scale_gradients, setup_context=keep_gradients)


def sliced_losses(x, weight, targets, dtype, with_gradient, teachers, hard, soft, temperature, mean_of):
    wide = torch.promote_types(x.dtype, torch.float32)
    real = (targets != -100).unsqueeze(-1)  # (N, 1)
    targets = targets.unsqueeze(-1).where(real, 0)
    cross_entropy, kl = (x.new_zeros((), dtype=wide) for _ in range(2))
    dx, dweight = x.new_empty(0), x.new_empty(0)
    if with_gradient:
        dx, dweight = torch.empty_like(x), torch.zeros_like(weight, dtype=wide)
    x_low, weight_low = x.to(dtype), weight.to(dtype)
    # float16 would lose small p - onehot here, before the factor of a gradient scaler has come
    x_back, weight_back = (x.to(wide), weight.to(wide)) if dtype == torch.float16 else (x_low, weight_low)
    minus_one = cross_entropy.new_tensor(-1.0)
    for start in range(0, len(x), SLICE):
        rows = slice(start, start + SLICE)
        logits = product(x_low[rows], weight_low)  # (slice, V)
        log_p = F.log_softmax(logits, dim=-1, dtype=wide)
        cross_entropy -= (log_p.gather(1, targets[rows]) * real[rows]).sum()
        if teachers:
            taught = [product(features[rows], head) for features, head in teachers]
            distance, p_minus_q = divergence(logits, taught, temperature, mean_of, wide)
            kl += (distance * real[rows]).sum()
        if with_gradient:
            dlogits = log_p.exp_().scatter_add_(1, targets[rows], minus_one.expand_as(targets[rows]))
            if teachers:
                dlogits.mul_(hard).add_(p_minus_q, alpha=soft / temperature)
            dlogits = dlogits.to(x_back.dtype)
            dx[rows] = product(dlogits, weight_back.T) * real[rows]
            dweight += product(dlogits.T, (x_back[rows] * real[rows]).T)
    return hard * cross_entropy + soft * kl, cross_entropy, kl, dx, dweight


def divergence(logits, teachers, temperature, mean_of, dtype):
    """Logits (slice, V) of a student and of teachers -> KL(q || p), (slice, 1), and p - q, (slice, V)."""
    log_p = (logits.to(dtype) / temperature).log_softmax(dim=-1)
    if mean_of == "logits":
        log_q = (sum(z.to(dtype) for z in teachers) / (len(teachers) * temperature)).log_softmax(dim=-1)
    else:
        log_q = torch.stack([(z.to(dtype) / temperature).log_softmax(dim=-1) for z in teachers])
        log_q = log_q.logsumexp(dim=0) - math.log(len(teachers))
    q = log_q.exp()
    kl = log_q.sub_(log_p).mul_(q).sum(dim=-1, keepdim=True)
    return kl, log_p.exp_().sub_(q)


def linear_cross_entropy(x, weight, targets):
    """x (..., D), weight (V, D), targets (...), -100 where there is none -> the mean loss, in float32."""
    return linear_distillation(x, weight, targets, [], hard=1.0, soft=0.0)[0]


def linear_distillation(x, weight, targets, teachers, hard, soft, temperature=1.0, mean_of="logits"):
    """
    The same and teachers [(features (..., D_i), head (V, D_i)), ...] -> the loss, hard cross-entropy + soft
    KL(q || p), and these two; only the loss has a gradient, for x and weight. p is softmax(W x / temperature), q
    that of the mean of the teachers' logits or, with mean_of = "probabilities", the mean of theirs.
    """
    with_gradient = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    autocast = torch.is_autocast_enabled(x.device.type)
    dtype = (
        torch.get_autocast_dtype(x.device.type) if autocast else torch.promote_types(x.dtype, weight.dtype)
    )
    targets = targets.flatten()
    features, heads = [y.flatten(0, -2) for y, _ in teachers], [head for _, head in teachers]
    teaching = (features, heads, hard, soft, temperature, mean_of)
    sums = summed_losses(x.flatten(0, -2), weight, targets, dtype, with_gradient, *teaching)[:3]
    loss, cross_entropy, kl = (x / (targets != -100).sum().clamp(min=1) for x in sums)
    return loss, cross_entropy.detach(), kl.detach()


@torch.no_grad()
def next_token_log_p(x, weight, rows, tokens):
    """
    x (N, D), weight (V, D) -> log p(tokens[j]) after x[rows[j]], for each j, in float32 at least: to evaluate.
    Many tokens may be asked of one row, whose logits are made once; of rows that nobody asks for, none are.
    """
    wanted, rows = rows.unique(return_inverse=True)
    rows, order = rows.sort()
    counts = torch.bincount(rows // SLICE).tolist()  # of questions to each slice
    rows, tokens = (z.to(x.device).split(counts) for z in (rows % SLICE, tokens[order]))
    slices = (at_least_float32(linear(part, weight))[0] for part in x[wanted.to(x.device)].split(SLICE))
    log_p = [y.log_softmax(dim=-1)[row, token] for y, row, token in zip(slices, rows, tokens)]
    return torch.cat(log_p)[order.argsort().to(x.device)]
