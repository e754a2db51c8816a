"""
Answers to exercises.md, for those who teach with it, in the form of a my.py:

    MY=tests/answers.py pytest -rs tests/test_exercises.py
"""

# ruff: noqa: E402
import math
import runpy
import sys

import kernels
from model import HGRN2, MIXERS, log_forget_gate

import torch
import torch.nn.functional as F
from torch import nn

# ----------------------------------------------------------------------------------------------------
# 01


def linear_scan(a, b, h0):
    """a, b (B, T, D), h0 (B, D) -> every h_t = a_t h_{t-1} + b_t, (B, T, D)."""
    h, hs = h0, []
    for t in range(a.shape[1]):
        h = a[:, t] * h + b[:, t]
        hs.append(h)
    return torch.stack(hs, dim=1)


# ----------------------------------------------------------------------------------------------------
# 02


def predict(z, c, h0):
    """What minGRU remembers at last if all gates are z: candidates c (B, T, D), h0 (B, D) -> h_T (B, D)."""
    T = c.shape[1]
    shares = z * (1 - z) ** torch.arange(T - 1, -1, -1)  # of each token in h_T
    return (1 - z) ** T * h0 + (shares[:, None] * c).sum(dim=1)


def half_life(z):
    """After how many steps half of what was there is left, for 0 < z < 1; fractions of a step count."""
    return -math.log(2) / math.log(1 - z)


# ----------------------------------------------------------------------------------------------------
# 03


class RetNet(HGRN2):
    def forward(self, x, state=None):
        q = F.silu(self.query(x)) * (x.shape[-1] // self.n_head) ** -0.5
        q, k, v = (z.unflatten(-1, (self.n_head, -1)) for z in (q, self.forget(x), self.input(x)))
        f = 1 - 2.0 ** (-5 - torch.arange(self.n_head, device=x.device))  # (H,)
        log_f = f.log()[:, None].expand(*x.shape[:2], -1, 1)
        o, S = kernels.gated_linear_attention(q, k, v, log_f, state)
        return self.output(self.norm(o.flatten(2))), S


# ----------------------------------------------------------------------------------------------------
# 04


class Floorless(HGRN2):
    def forward(self, x, state=None, floor=0.0):
        """HGRN2's, with floor 0 whatever it is given."""
        return super().forward(x, state)


@torch.no_grad()
def half_lives(model, tokens):
    """A model of HGRN2 blocks, tokens (1, T) -> for each layer the .median() of -ln 2 / ln f over all f."""
    x, medians = model.embed(tokens), []
    floors = model.floors() if model.floors else {}  # only of layers that are named "hgrn2"
    for layer, block in enumerate(model.layers):
        floor = floors.get(layer, 0.0)
        log_f = log_forget_gate(block.mixer.forget(block.mixer_norm(x)), floor)
        medians.append((-math.log(2) / log_f).median().item())
        x, _ = block(x, None, floor)
    return medians


# ----------------------------------------------------------------------------------------------------
# 05


class Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b, h0):
        h = kernels.linear_scan_loop(a, b, h0)
        ctx.save_for_backward(a, h0, h)
        return h

    @staticmethod
    def backward(ctx, dh):
        a, h0, h = ctx.saved_tensors
        a_next = torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], dim=1)
        db = kernels.linear_scan_loop(a_next.flip(1), dh.flip(1), torch.zeros_like(h0)).flip(1)
        da = db * torch.cat([h0[:, None], h[:, :-1]], dim=1)
        dh0 = a[:, 0] * db[:, 0]
        return da, db, dh0


# ----------------------------------------------------------------------------------------------------
# 06

import triton
import triton.language as tl


@triton.jit
def scan_kernel(a, b, h0, h, T, D, BLOCK: tl.constexpr):
    sequence, d = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = d < D
    state = tl.load(h0 + sequence * D + d, mask=inside)
    for t in range(T):
        at = (sequence * T + t) * D + d
        state = tl.load(a + at, mask=inside) * state + tl.load(b + at, mask=inside)
        tl.store(h + at, state, mask=inside)


# ----------------------------------------------------------------------------------------------------
# 07


def chunked_attention(q, k, v, log_f, S, C):
    """One head of one sequence: q, k, log_f (T, K), v (T, V), S (K, V) -> every o_t (T, V), the last S."""
    o = []
    for q, k, v, log_f in zip(q.split(C), k.split(C), v.split(C), log_f.split(C)):
        D = log_f.cumsum(0).exp()  # (C, K)
        A = ((q * D) @ (k / D).mT).tril()  # (C, C)
        o.append(A @ v + (q * D) @ S)
        S = D[-1, :, None] * S + (D[-1] * k / D).mT @ v
    return torch.cat(o), S


# ----------------------------------------------------------------------------------------------------
# 08: a moving average, each channel at a speed that it learns


class Mine(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        D = config.d_model
        self.decay = nn.Parameter(torch.zeros(D))
        self.value, self.output = nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x, state=None):
        a = torch.sigmoid(self.decay).expand_as(x)
        h = kernels.linear_scan(a, (1 - a) * self.value(x), state)
        y, state = self.output(h), h[:, -1]
        return y, state


# ----------------------------------------------------------------------------------------------------
# 09: a state is remembered candidates, which have been through g already


class BuggyMinLSTM(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        D = config.d_model
        self.forget, self.input, self.candidate, self.output = (nn.Linear(D, D) for _ in range(4))

    def forward(self, x, state=None):
        f, i = torch.sigmoid(self.forget(x)), torch.sigmoid(self.input(x))
        past = [] if state is None else [state[:, None]]
        values = kernels.g(torch.cat([*past, self.candidate(x)], dim=1))  # the past comes first
        h0 = state
        h = kernels.linear_scan(f / (f + i), i / (f + i) * values[:, len(past) :], h0)
        return self.output(h), h[:, -1]


# ----------------------------------------------------------------------------------------------------
# 10


@torch.no_grad()
def distillation_loss(student, teacher, temperature):
    """Logits (N, V) of both -> the loss, a number, and its gradient (N, V) with respect to student."""
    log_p, r = (student / temperature).log_softmax(dim=-1), (teacher / temperature).softmax(dim=-1)
    loss = -(temperature**2) * (r * log_p).sum(dim=-1).mean()
    gradient = temperature * (log_p.exp() - r) / len(student)
    return loss, gradient


# ----------------------------------------------------------------------------------------------------
# The frame's end

MIXERS |= dict(retnet=RetNet, floorless=Floorless, mine=Mine)

if __name__ == "__main__":  # python my.py train.py ... is python train.py ... with your mixers
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
