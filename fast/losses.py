"""
The output layer and its losses a slice of tokens at a time, so that the logits (tokens x vocabulary), the largest
tensor of any language model, are never held whole: in place of model.NextToken and distill.Distillation.

A loss needs one number of each row; its gradient with respect to the logits is p - onehot(target) or, of KL,
(p - q) / temperature. So the slice that has just been made is turned into its gradient on the spot and
multiplied into dx and dW, which are kept instead: no logit is computed twice.

Shapes:  D width   V vocabulary   N tokens of a batch   ... any, such as batch and time
"""

import math
from typing import NamedTuple

from fast.linear import linear, product
from kernels import at_least_float32, plain_class

import torch
import torch.nn.functional as F
from torch import Tensor

NAMESPACE = "nanornn"  # of the operators in torch.ops
SLICE = 256  # tokens, at least
SLICE_ON_GPU = 2**24  # logits: 64 MiB in float32


def next_token_forward(self, tokens, targets):
    """Fast form of model.NextToken.forward, for a head that is nn.Linear without a bias."""
    if not has_plain_head(self.model):
        return self.plain.forward(self, tokens, targets)
    x = features_of(self.model, tokens)
    return {"loss": linear_cross_entropy(x, self.model.head.weight, targets)}


def distillation_forward(self, tokens, targets):
    """Fast form of distill.Distillation.forward, for such heads."""
    if not all(map(has_plain_head, (self.model, *self.teachers))):
        return self.plain.forward(self, tokens, targets)
    with torch.no_grad():
        taught = [(features_of(teacher, tokens), teacher.head.weight) for teacher in self.teachers]
    x = features_of(self.model, tokens)
    how = Teaching(self.hard, self.soft, self.temperature, self.mean_of)
    loss, ce, kl = linear_distillation(x, self.model.head.weight, targets, taught, how)
    return {"loss": loss, "ce": ce, "kl": kl}


def has_plain_head(model):
    """True if the logits are features x head.weight."""
    return plain_class(model.head) is torch.nn.Linear and model.head.bias is None


def features_of(model, tokens):
    """The features (..., D) of tokens in which documents may follow each other."""
    x, _ = model.features(tokens, reset=model.document_starts(tokens))
    return x


class Teaching(NamedTuple):
    """The loss is hard cross-entropy + soft KL(teachers || student), both distributions at a temperature."""

    hard: float = 1.0
    soft: float = 0.0
    temperature: float = 1.0
    mean_of: str = "logits"  # what is averaged over teachers: logits or probabilities


def linear_cross_entropy(x, weight, targets):
    """x (..., D), weight (V, D), targets (...), -100 where there is none -> the mean loss, in float32 at least."""
    return linear_distillation(x, weight, targets, [], Teaching())[0]


def linear_distillation(x, weight, targets, teachers, how):
    """
    x, weight, targets as above, teachers [(features (..., D_i), head (V, D_i)), ...] -> the loss, which is
    hard cross-entropy + soft KL(q || p), the cross-entropy and the KL; only the loss has a gradient, for x and
    weight. p is softmax(W x / temperature), and q that of the mean of the teachers' logits or, with
    mean_of = "probabilities", the mean of their probabilities.
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    else:
        dtype = torch.promote_types(x.dtype, weight.dtype)
    with_gradient = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    targets = targets.flatten()
    features, heads = [y.flatten(0, -2) for y, _ in teachers], [head for _, head in teachers]
    numbers, mean_of = [how.hard, how.soft, how.temperature], how.mean_of
    x = x.flatten(0, -2)
    sums = summed_losses(x, weight, targets, features, heads, numbers, mean_of, dtype, with_gradient)[:3]
    loss, cross_entropy, kl = (y / (targets != -100).sum().clamp(min=1) for y in sums)
    return loss, cross_entropy.detach(), kl.detach()


@torch.library.custom_op(f"{NAMESPACE}::linear_losses", mutates_args=())
def summed_losses(
    x: Tensor, weight: Tensor, targets: Tensor, features: list[Tensor], heads: list[Tensor],
    numbers: list[float], mean_of: str, dtype: torch.dtype, with_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """
    x (N, D), weight (V, D), targets (N,), the teachers' features (N, D_i) and heads (V, D_i), numbers = hard,
    soft, temperature -> sums of the loss, cross-entropy and KL, and the gradients of the loss with respect to x
    and weight, or two empty tensors. Matrix products are in dtype, the rest in float32 at least.
    """
    teachers = [(y.to(dtype), head.to(dtype)) for y, head in zip(features, heads)]
    how = Teaching(*numbers, mean_of)
    with torch.autocast(x.device.type, enabled=False):
        return sliced_losses(x, weight, targets, teachers, how, dtype, with_gradient)


@summed_losses.register_fake
def _(x, weight, targets, features, heads, numbers, mean_of, dtype, with_gradient):
    wide = torch.promote_types(x.dtype, torch.float32)
    losses = [x.new_empty((), dtype=wide) for _ in range(3)]
    if with_gradient:
        return *losses, torch.empty_like(x), torch.empty_like(weight, dtype=wide)
    return *losses, x.new_empty(0), x.new_empty(0)


def save_gradients(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[3:])
    ctx.teachers = len(inputs[3])


def scale_gradients(ctx, dloss, *_):
    dx, dweight = ctx.saved_tensors
    no_gradients = [None] * ctx.teachers
    return dx * dloss, dweight * dloss, None, no_gradients, no_gradients, None, None, None, None


summed_losses.register_autograd(scale_gradients, setup_context=save_gradients)


def rows_of_slice(x, V):
    """Tokens in a slice of x: more on a GPU than on a CPU, or launches would take longer than the work."""
    return max(SLICE, SLICE_ON_GPU // V) if x.device.type == "cuda" else SLICE


def sliced_losses(x, weight, targets, teachers, how, dtype, with_gradient):
    """The body of summed_losses; teachers [(features, head), ...] in dtype."""
    wide = torch.promote_types(x.dtype, torch.float32)
    real = (targets != -100).unsqueeze(-1)  # (N, 1)
    targets = targets.unsqueeze(-1).where(real, 0)
    cross_entropy, kl = (x.new_zeros((), dtype=wide) for _ in range(2))
    dx, dweight = x.new_empty(0), x.new_empty(0)
    if with_gradient:
        dx, dweight = torch.empty_like(x), torch.zeros_like(weight, dtype=wide)
    x_low, weight_low = x.to(dtype), weight.to(dtype)
    # in float16 small p - onehot would be lost here, before a gradient scaler has multiplied them
    x_back, weight_back = (x.to(wide), weight.to(wide)) if dtype == torch.float16 else (x_low, weight_low)
    minus_one = torch.full_like(cross_entropy, -1.0)
    size = rows_of_slice(x, len(weight))
    for start in range(0, len(x), size):
        rows = slice(start, start + size)
        logits = product(x_low[rows], weight_low)  # (slice, V)
        log_p = F.log_softmax(logits, dim=-1, dtype=wide)
        cross_entropy -= (log_p.gather(1, targets[rows]) * real[rows]).sum()
        if teachers:
            taught = [product(features[rows], head) for features, head in teachers]
            distance, p_minus_q = divergence(logits, taught, how, wide)
            kl += (distance * real[rows]).sum()
        if with_gradient:
            dlogits = log_p.exp_().scatter_add_(1, targets[rows], minus_one.expand_as(targets[rows]))
            if teachers:
                dlogits.mul_(how.hard).add_(p_minus_q, alpha=how.soft / how.temperature)
            dlogits = dlogits.to(x_back.dtype)
            dx[rows] = product(dlogits, weight_back.T) * real[rows]
            dweight += product(dlogits.T, (x_back[rows] * real[rows]).T)
        logits = log_p = dlogits = taught = p_minus_q = None  # free them before the next slice is made
    return how.hard * cross_entropy + how.soft * kl, cross_entropy, kl, dx, dweight


def divergence(logits, teachers, how, dtype):
    """Logits (slice, V) of a student and of teachers -> KL(q || p), (slice, 1), and p - q, (slice, V)."""
    log_p = (logits.to(dtype) / how.temperature).log_softmax(dim=-1)
    if how.mean_of == "logits":
        mean = sum(z.to(dtype) for z in teachers) / (len(teachers) * how.temperature)
        log_q = mean.log_softmax(dim=-1)
    else:
        log_q = torch.stack([(z.to(dtype) / how.temperature).log_softmax(dim=-1) for z in teachers])
        log_q = log_q.logsumexp(dim=0) - math.log(len(teachers))
    q = log_q.exp()
    kl = log_q.sub_(log_p).mul_(q).sum(dim=-1, keepdim=True)
    return kl, log_p.exp_().sub_(q)


@torch.no_grad()
def next_token_log_p(x, weight, rows, tokens):
    """
    x (N, D), weight (V, D) -> log p(tokens[j]) after x[rows[j]], for each j, in float32 at least, without
    gradients. A row's logits are computed once, however many of its tokens are asked for, and not at all if
    none is.
    """
    size = rows_of_slice(x, len(weight))
    wanted, rows = rows.unique(return_inverse=True)
    rows, order = rows.sort()
    counts = torch.bincount(rows // size).tolist()  # how many are asked of each slice
    rows, tokens = (z.to(x.device).split(counts) for z in (rows % size, tokens[order]))
    slices = (at_least_float32(linear(part, weight))[0] for part in x[wanted.to(x.device)].split(size))
    log_p = [y.log_softmax(dim=-1)[row, token] for y, row, token in zip(slices, rows, tokens)]
    return torch.cat(log_p)[order.argsort().to(x.device)]
