"""
The recurrences of kernels.py as Triton kernels, for NVIDIA GPUs.

kernels.py has what they compute, twice: the loop and the fast PyTorch form. Here is where it happens: what a card
spends its time on is moving numbers, so a kernel reads its inputs once, keeps all that is between them and the
result on the chip, and writes the result. Matrix products run on tensor cores, in the type of the inputs, and add
up in float32; all else is float32. A GPU runs the functions marked @triton.jit many times at once, each run a
"program" that finds out from its number which part of the data it owns: the first comment of each says which.

    linear_scan               one program walks through time with some channels of one sequence
    gated_linear_attention    two or three kernels per direction, a chunk of time at a time
    selective_scan            one program walks through time with some channels of one sequence, and their states

On a machine without a GPU, TRITON_INTERPRET=1 runs them in Python, slowly; the tests do.

Rules kept throughout:
 * plain pointers; 64-bit offsets for all that grows with B x T; one-dimensional grids, which cannot be too long;
 * rows past T and columns past K or V are read as what changes nothing, and are not written;
 * the result of a product is never transposed: Triton 3.4 to 3.7.0 gets that wrong on Hopper;
 * no autotuning: the first step of a run is not its slowest, and equal inputs are rounded equally.
"""

import os

import torch
import triton
import triton.language as tl

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


# ---------------------------------------------------------------------------------------------------
# linear scan:  h_t = a_t h_{t-1} + b_t

# Steps can be joined: (a, b) followed by (a', b') is (a' a, a' b + b'). Joining is associative, so BT steps need
# not wait for each other: a tile of them is joined in log2(BT) rounds, and then takes in the h before it at once.
# The next tile is fetched meanwhile. Backwards, db_t = a_{t+1} db_{t+1} + dh_t is the same from the last step to
# the first. minGRU and minLSTM compute a and b on the way in, from what their linear layers give, and their
# gradients on the way out: 3 and 4 tensors are moved in place of 8 and 11.


@triton.jit
def join(a, b, a_next, b_next):
    return a_next * a, a_next * b + b_next


@triton.jit
def load(p, at, mask):
    return tl.load(p + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def log_sigmoid(x):
    return tl.minimum(x, 0.0) - tl.log(1 + tl.exp(-tl.abs(x)))


@triton.jit
def load_gates(x, y, at, mask, KIND: tl.constexpr):
    """What is kept of h, and the share of the new. Of min_lstm's two gates each is divided by their sum."""
    X = load(x, at, mask)
    if KIND == "linear":
        return X, tl.full(X.shape, 1.0, tl.float32)
    elif KIND == "min_gru":
        return tl.sigmoid(-X), tl.sigmoid(X)
    else:
        ratio = log_sigmoid(X) - log_sigmoid(load(y, at, mask))
        return tl.sigmoid(ratio), tl.sigmoid(-ratio)


@triton.jit
def positive(z, KIND: tl.constexpr):
    """g(z) of min_gru and min_lstm, and its slope."""
    if KIND == "linear":
        return z, tl.full(z.shape, 1.0, tl.float32)
    else:
        s = tl.sigmoid(z)
        return tl.where(z >= 0, z + 0.5, s), tl.where(z >= 0, 1.0, s * (1 - s))


@triton.jit
def scan_forward(
    x, y, z, h0, h, T, D, KIND: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, STAGES: tl.constexpr
):
    # One program: BD channels of one sequence, from its first step to its last, BT of them at a time.
    #     x, y, z    (B, T, D): linear a, -, b; min_gru gate, -, candidate; min_lstm forget, input, candidate
    blocks = tl.cdiv(D, BD)
    sequence = (tl.program_id(0) // blocks).to(tl.int64)
    d, i = (tl.program_id(0) % blocks) * BD + tl.arange(0, BD), tl.arange(0, BT)
    carry = load(h0, sequence * D + d, d < D)
    for start in tl.range(0, T, BT, num_stages=STAGES):
        t = start + i
        at, mask = (sequence * T + t[:, None]) * D + d[None, :], (t < T)[:, None] & (d < D)[None, :]
        keep, new = load_gates(x, y, at, mask, KIND)
        g, _ = positive(load(z, at, mask), KIND)
        kept, H = tl.associative_scan((keep, new * g), 0, join)
        H += kept * carry[None, :]
        tl.store(h + at, H.to(h.dtype.element_ty), mask=mask)
        carry = tl.sum(tl.where(i[:, None] == BT - 1, H, 0.0), 0)


@triton.jit
def scan_backward(
    x, y, z, h0, h, dh, dx, dy, dz, dh0, T, D,
    KIND: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # One program: the same channels, from the last step to the first.
    blocks, tiles = tl.cdiv(D, BD), tl.cdiv(T, BT)
    sequence = (tl.program_id(0) // blocks).to(tl.int64)
    d, i = (tl.program_id(0) % blocks) * BD + tl.arange(0, BD), tl.arange(0, BT)
    h_before = load(h0, sequence * D + d, d < D)
    carry = tl.zeros([BD], tl.float32)
    for j in tl.range(0, tiles, num_stages=STAGES):
        t = (tiles - 1 - j) * BT + i
        at, here = (sequence * T + t[:, None]) * D + d[None, :], (d < D)[None, :]
        mask = (t < T)[:, None] & here
        keep_next, _ = load_gates(x, y, at + D, (t < T - 1)[:, None] & here, KIND)
        kept, db = tl.associative_scan((keep_next, load(dh, at, mask)), 0, join, reverse=True)
        db += kept * carry[None, :]
        carry = tl.sum(tl.where(i[:, None] == 0, db, 0.0), 0)
        h_last = tl.where((t > 0)[:, None], load(h, at - D, mask & (t > 0)[:, None]), h_before[None, :])
        if KIND == "linear":
            tl.store(dx + at, (db * h_last).to(dx.dtype.element_ty), mask=mask)
            tl.store(dz + at, db.to(dz.dtype.element_ty), mask=mask)
        else:
            keep, new = load_gates(x, y, at, mask, KIND)
            g, slope = positive(load(z, at, mask), KIND)
            tl.store(dz + at, (db * new * slope).to(dz.dtype.element_ty), mask=mask)
            change = db * keep * new * (g - h_last)  # what a larger share of the new would bring
            if KIND == "min_gru":
                tl.store(dx + at, change.to(dx.dtype.element_ty), mask=mask)
            else:
                d_forget = -change * tl.sigmoid(-load(x, at, mask))
                d_input = change * tl.sigmoid(-load(y, at, mask))
                tl.store(dx + at, d_forget.to(dx.dtype.element_ty), mask=mask)
                tl.store(dy + at, d_input.to(dy.dtype.element_ty), mask=mask)
    keep, _ = load_gates(x, y, sequence * T * D + d, d < D, KIND)
    tl.store(dh0 + sequence * D + d, (keep * carry).to(dh0.dtype.element_ty), mask=d < D)


def scan_tile(z):
    """-> steps and channels of a tile, its warps, and how many tiles are on their way at once."""
    return 64, min(64, triton.next_power_of_2(z.shape[2])), 8, 3


def scan(kind, x, y, z, h0):
    """x, y, z (B, T, D), h0 (B, D) -> h (B, T, D) in z's type; for kind see scan_forward."""
    B, T, D = z.shape
    x, y, z, h0 = contiguous(x, y, z, h0)
    BT, BD, warps, stages = scan_tile(z)
    h = torch.empty_like(z)
    grid = (B * triton.cdiv(D, BD),)
    with torch.cuda.device_of(z):
        scan_forward[grid](x, y, z, h0, h, T, D, kind, BT, BD, stages, num_warps=warps)
    return h


def scan_gradients(kind, x, y, z, h0, h, dh):
    """-> the gradients of x, y (if there is one), z and h0."""
    B, T, D = z.shape
    x, y, z, h0, dh = contiguous(x, y, z, h0, dh)
    BT, BD, warps, stages = scan_tile(z)
    dx, dy, dz, dh0 = (None if like is None else torch.empty_like(like) for like in (x, y, z, h0))
    grid = (B * triton.cdiv(D, BD),)
    with torch.cuda.device_of(z):
        scan_backward[grid](x, y, z, h0, h, dh, dx, dy, dz, dh0, T, D, kind, BT, BD, stages, num_warps=warps)
    return [like for like in (dx, dy, dz, dh0) if like is not None]


def contiguous(*tensors):
    return (None if x is None else x.contiguous() for x in tensors)
