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


# ---------------------------------------------------------------------------------------------------
# selective scan:  h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t,   y_t = C_t^T h_t

# The linear scan again, over tiles of [BT, BN, BE] numbers, which are never written. Triton lays threads
# along the last axis first and has none left for the first: each holds all steps of its states, and joins
# them one by one in its registers.
#
# Backwards, h_t = kept_t + dt_t B_t x_t is computed again from the state saved before the tile, and what the
# loss owes to it, dh_t = C_t dy_t + owed_t with owed_{t-1} = exp(dt_t A) dh_t, from the last step to the
# first. The gradient of dt_t A is dh_t kept_t. To get kept_t and dh_t by subtraction would leave nothing of
# them where decays are small: the scans carry them along. To flip a tile and scan it in order costs nothing,
# as registers are only renamed; Triton's own reverse=True sends all numbers from thread to thread.


@triton.jit
def join_kept(a, h, kept, a_next, h_next, kept_next):
    """A step is (a, b, 0); of many, `kept` is all of h but the last b."""
    return a_next * a, a_next * h + h_next, a_next * h + kept_next


@triton.jit
def join_owed(a, owed, reach, dh, a_next, owed_next, reach_next, dh_next):
    """Backwards, a step is (a, a g, 1, g); of many, what is owed at first reaches the last one's dh."""
    return a_next * a, a_next * owed + owed_next, reach_next * a, reach_next * owed + dh_next


@triton.jit
def flip(x):
    """x (16, ...), last step first: on each axis of 2 x 2 x 2 x 2, both become their sum less themselves."""
    bits = x.to(tl.int32, bitcast=True).reshape([2, 2, 2, 2, x.shape[1], x.shape[2]])
    for axis in tl.static_range(4):
        bits = tl.sum(bits, axis, keep_dims=True) - bits
    return bits.reshape(x.shape).to(tl.float32, bitcast=True)


@triton.jit
def rows(sequence, t, T, j, J):
    """Where [sequence, t, j] of a (B, T, J) are, and which of them there are."""
    return (sequence * T + t[:, None]) * J + j[None, :], (t < T)[:, None] & (j < J)[None, :]


@triton.jit
def selective_forward(
    x, dt, A, B, C, h0, y, h, states, T, E,
    N: tl.constexpr, KEEP: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    # One program: BE channels of one sequence with all their states, BT steps at a time.
    #     x, dt, y (B, T, E)   A (E, N)   B, C (B, T, N)   h0, h (B, E, N)   states (B, tiles, N, E)
    blocks, tiles = tl.cdiv(E, BE), tl.cdiv(T, BT)
    sequence = (tl.program_id(0) // blocks).to(tl.int64)
    e, n, i = (tl.program_id(0) % blocks) * BE + tl.arange(0, BE), tl.arange(0, BN), tl.arange(0, BT)
    of_state, here = e[None, :] * N + n[:, None], (n < N)[:, None] & (e < E)[None, :]
    log_decay = load(A, of_state, here) * 1.4426950408889634  # log2(e), as exp(z) is 2^(z log2(e))
    carry = load(h0, sequence * E * N + of_state, here)
    for j in tl.range(0, tiles, num_stages=3):
        te, in_te = rows(sequence, j * BT + i, T, e, E)
        tn, in_tn = rows(sequence, j * BT + i, T, n, N)
        if KEEP:
            tl.store(states + (sequence * tiles + j) * N * E + n[:, None] * E + e[None, :], carry, mask=here)
        dt_t = load(dt, te, in_te)
        b = (dt_t * load(x, te, in_te))[:, None, :] * load(B, tn, in_tn)[:, :, None]
        kept, H = tl.associative_scan((tl.exp2(dt_t[:, None, :] * log_decay[None]), b), 0, join)
        H += kept * carry[None]
        y_t = tl.sum(H * load(C, tn, in_tn)[:, :, None], 1)
        tl.store(y + te, y_t.to(y.dtype.element_ty), mask=in_te)
        carry = tl.sum(tl.where((i == BT - 1)[:, None, None], H, 0.0), 0)
    tl.store(h + sequence * E * N + of_state, carry, mask=here)


@triton.jit
def selective_backward(
    x, dt, A, B, C, states, dy, dh, dx, ddt, dA, dB, dC, dh0, T, E,
    N: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    # One program: the same, from the last tile to the first. Its parts of what is summed over channels or
    # sequences: dB, dC (B, T, blocks, N), dA (B, E, N).
    blocks, tiles = tl.cdiv(E, BE), tl.cdiv(T, BT)
    sequence, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    e, n, i = block * BE + tl.arange(0, BE), tl.arange(0, BN), tl.arange(0, BT)
    of_state, here = e[None, :] * N + n[:, None], (n < N)[:, None] & (e < E)[None, :]
    A_e, owed = load(A, of_state, here), load(dh, sequence * E * N + of_state, here)
    dA_e = tl.zeros_like(A_e)
    for back in tl.range(0, tiles, num_stages=3):
        j = tiles - 1 - back
        te, in_te = rows(sequence, j * BT + i, T, e, E)
        tn, in_tn = rows(sequence, j * BT + i, T, n, N)
        parts, _ = rows(sequence, j * BT + i, T, block * N + n, blocks * N)
        dt_t, x_t, dy_t = load(dt, te, in_te), load(x, te, in_te), load(dy, te, in_te)
        B_t, C_t = load(B, tn, in_tn)[:, :, None], load(C, tn, in_tn)[:, :, None]
        before = load(states, (sequence * tiles + j) * N * E + n[:, None] * E + e[None, :], here)

        a, added = tl.exp2(dt_t[:, None, :] * (A_e * 1.4426950408889634)[None]), (dt_t * x_t)[:, None, :]
        b = added * B_t
        reach, _, kept = tl.associative_scan((a, b, tl.zeros_like(b)), 0, join_kept)
        kept += reach * before[None]
        tl.store(dC + parts, tl.sum((kept + b) * dy_t[:, None, :], 2), mask=in_tn)

        a, g = flip(a), flip(C_t * dy_t[:, None, :])
        steps = a, a * g, tl.full(a.shape, 1.0, tl.float32), g
        a, owed_t, reach, dh_t = tl.associative_scan(steps, 0, join_owed)
        dh_t = flip(dh_t + reach * owed[None])
        owed = tl.sum(tl.where((i == BT - 1)[:, None, None], owed_t + a * owed[None], 0.0), 0)
        tl.store(dB + parts, tl.sum(dh_t * added, 2), mask=in_tn)

        due, d_added = dh_t * kept, tl.sum(dh_t * B_t, 1)  # the gradients of dt_t A and of dt_t x_t
        dA_e += tl.sum(due * dt_t[:, None, :], 0)
        tl.store(dx + te, (d_added * dt_t).to(dx.dtype.element_ty), mask=in_te)
        tl.store(ddt + te, (tl.sum(due * A_e[None], 1) + d_added * x_t).to(ddt.dtype.element_ty), mask=in_te)
    tl.store(dA + sequence * E * N + of_state, dA_e, mask=here)
    tl.store(dh0 + sequence * E * N + of_state, owed.to(dh0.dtype.element_ty), mask=here)


# Chosen by what the compiler makes of them for a Hopper card, bfloat16 and N = 16, not by the clock. The
# exponential unit takes as long for a number as 8 instructions do; issued for each number of a tile are
#
#     forward    64 numbers a thread    15.8      of 32     21.2
#     backward   32 numbers a thread    59.5      of 16     70.4      of 64, more than the 255 registers
#
# and a narrower backward tile has fewer (8 channels: 55), but makes the parts of dB and dC twice as large.


def selective_tile(E, N, backward):
    """-> steps, states and channels of a tile, and its warps."""
    BN = triton.next_power_of_2(N)
    most = max(1, (512 if backward else 2048) // BN)
    BE = min(16 if backward else 32, triton.next_power_of_2(E), most)
    return 16, BN, BE, max(1, BN * BE // (64 if backward else 128))


def selective(x, dt, A, B, C, h0, y, h, states):
    """Inputs as in the loop; writes y, the last h, and if there is room the states before all tiles."""
    (batch, T, E), N = x.shape, A.shape[1]
    x, dt, A, B, C, h0 = contiguous(x, dt, A, B, C, h0)
    *tile, warps = selective_tile(E, N, backward=False)
    keep, grid = states.numel() > 0, (batch * triton.cdiv(E, tile[2]),)
    with torch.cuda.device_of(x):
        selective_forward[grid](x, dt, A, B, C, h0, y, h, states, T, E, N, keep, *tile, num_warps=warps)


def selective_gradients(x, dt, A, B, C, h0, states, dy, dh):
    """-> the gradients of x, dt, A, B, C, h0."""
    (batch, T, E), N = x.shape, A.shape[1]
    x, dt, A, B, C, dy, dh = contiguous(x, dt, A, B, C, dy, dh)
    *tile, warps = selective_tile(E, N, backward=True)
    blocks = triton.cdiv(E, tile[2])
    dx, ddt, dA, dh0 = (torch.empty_like(z) for z in (x, dt, dh, h0.contiguous()))
    dB, dC = (dh.new_empty(batch, T, blocks, N) for _ in range(2))
    with torch.cuda.device_of(x):
        selective_backward[(batch * blocks,)](
            x, dt, A, B, C, states, dy, dh, dx, ddt, dA, dB, dC, dh0, T, E, N, *tile, num_warps=warps
        )
    return [dx, ddt, dA.sum(0).to(A.dtype), dB.sum(2).to(B.dtype), dC.sum(2).to(C.dtype), dh0]


def contiguous(*tensors):
    return (None if x is None else x.contiguous() for x in tensors)
