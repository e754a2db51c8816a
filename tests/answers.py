"""
Answers to exercises.md, for teachers, in the form of a my.py:

    MY=tests/answers.py pytest -rs --tb=short tests/test_exercises.py
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
    """Return every h_t = a_t h_{t-1} + b_t, (B, T, D), for a, b (B, T, D) and h0 (B, D)."""
    h, hs = h0, []
    for t in range(a.shape[1]):
        h = a[:, t] * h + b[:, t]
        hs.append(h)
    return torch.stack(hs, dim=1)


# ----------------------------------------------------------------------------------------------------
# 02


def predict(z, c, h0):
    """Return minGRU's last state h_T (B, D) if every gate is z, for candidates c (B, T, D) and h0 (B, D)."""
    T = c.shape[1]
    shares = z * (1 - z) ** torch.arange(T - 1, -1, -1)  # of each candidate in h_T
    return (1 - z) ** T * h0 + (shares[:, None] * c).sum(dim=1)


def half_life(z):
    """Return after how many steps, not rounded, half of the old state is left, for 0 < z < 1."""
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
        """Return what HGRN2 returns with floor 0, whatever `floor` is."""
        return super().forward(x, state)


@torch.no_grad()
def half_lives(model, tokens):
    """Return the .median() of -ln 2 / ln f over all f of each layer; a model of HGRN2 blocks, tokens (1, T)."""
    x, medians = model.embed(tokens), []
    floors = model.floors() if model.floors else {}  # only for layers whose mixer is named "hgrn2"
    for layer, block in enumerate(model.layers):
        floor = floors.get(layer, 0.0)
        log_f = log_forget_gate(block.mixer.forget(block.mixer_norm(x)), floor)
        medians.append((-math.log(2) / log_f).median().item())
        x, _ = block(x, None, floor)
    return medians


# ----------------------------------------------------------------------------------------------------
# 05


def mingru_with_reset(z, c, h0, reset):
    """Return every h_t of minGRU, (B, T, D), for gates z, candidates c (B, T, D), h0 (B, D) and reset (B, T)."""
    keep = (1 - z).masked_fill(reset[..., None], 0)
    return kernels.linear_scan(keep, z * c, h0)


# ----------------------------------------------------------------------------------------------------
# 06


def bigram(tokens, vocab_size, d=0.75):
    """Return p(w | h) for every h (rows) and w (columns), counted in a training text, tokens (N,)."""
    c = torch.zeros(vocab_size, vocab_size)
    for h, w in zip(tokens[:-1], tokens[1:]):
        c[h, w] += 1
    total, followers = c.sum(dim=1, keepdim=True), (c > 0).sum(dim=1, keepdim=True)  # c(h·), n(h·)
    preceding = (c > 0).sum(dim=0)  # n(·w)
    lower = (preceding - d).clamp(min=0) + d * (preceding > 0).sum() / vocab_size
    lower = lower / preceding.sum()  # p(w)
    p = ((c - d).clamp(min=0) + d * followers * lower) / total
    return torch.where(total > 0, p, lower)


# ----------------------------------------------------------------------------------------------------
# 07: a moving average whose speed is learned, one per channel


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
# 08: a state is made of candidates that have been through g already


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
# 09


@torch.no_grad()
def distillation_loss(student, teacher, temperature):
    """Return the loss, a number, and its gradient with respect to student; student, teacher are logits (N, V)."""
    log_p, r = (student / temperature).log_softmax(dim=-1), (teacher / temperature).softmax(dim=-1)
    loss = -(temperature**2) * (r * log_p).sum(dim=-1).mean()
    gradient = temperature * (log_p.exp() - r) / len(student)
    return loss, gradient


# ----------------------------------------------------------------------------------------------------
# 10


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
# 11

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
# 12


def chunked_attention(q, k, v, log_f, S, C):
    """Return every o_t (T, V) and the last S (K, V) of one head; q, k, log_f (T, K), v (T, V), S before (K, V)."""
    o = []
    for q, k, v, log_f in zip(q.split(C), k.split(C), v.split(C), log_f.split(C)):
        D = log_f.cumsum(0).exp()  # (C, K)
        A = ((q * D) @ (k / D).mT).tril()  # (C, C)
        o.append(A @ v + (q * D) @ S)
        S = D[-1, :, None] * S + (D[-1] * k / D).mT @ v
    return torch.cat(o), S


# ----------------------------------------------------------------------------------------------------
# The end of the frame

MIXERS |= dict(retnet=RetNet, floorless=Floorless, mine=Mine)

if __name__ == "__main__":  # python my.py train.py ... runs train.py with your mixers
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
