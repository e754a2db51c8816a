"""
The recurrences: as loops, and as Triton kernels for NVIDIA GPUs.

    linear_scan               h_t = a_t h_{t-1} + b_t                            minGRU, minLSTM, Aaren
    gated_linear_attention    S_t = diag(f_t) S_{t-1} + k_t v_t^T                HGRN2, mLSTM
    selective_scan            h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t           Mamba

Each chapter goes from slow to fast: the loop, which is what one would write on a blackboard and is the
specification; the idea that makes it parallel; the Triton kernels; last the public function, which models call.
use_kernels chooses between the forms. The form for CPUs, in few large PyTorch operations, is in
fast/recurrences.py. The tests hold all forms to the loop, values and gradients, for every gate from 0 to 1.

All compute in float32 at least, also under autocast: a product of many gates does not survive bfloat16.

A GPU spends its time on moving numbers, so a kernel reads its inputs once, keeps intermediate results on the
chip, and writes the output. A GPU runs many instances ("programs") of a function marked @jit at once; each finds
out from its number which part of the data it owns, and the first comment of a kernel says which part that is. On
a machine without a GPU, TRITON_INTERPRET=1 runs them in Python, slowly; the tests do. Rules kept throughout:
 * plain pointers; 64-bit offsets for all that grows with B x T; one-dimensional grids, which cannot be too long;
 * rows past T and columns past K or V are read as what changes nothing, and are not written;
 * the result of a product is transposed as a right factor only: as a left one, Triton 3.4 to 3.7.0 gets it
   wrong on Hopper;
 * no autotuning: the first step tries no tiles, and equal inputs are rounded equally.

Shapes:  B batch   T time   D, E width   H heads   K, V key and value width of a head   N states of a channel
         C chunk length   n chunks
"""

import functools
import os
import sys
from types import SimpleNamespace

import torch
import torch.nn.functional as F

try:
    import triton
    import triton.language as tl

    jit = triton.jit
except ImportError:  # a Mac, Windows: the kernels below are functions that nobody calls
    triton, tl = None, SimpleNamespace(constexpr=lambda value: SimpleNamespace(value=value))

    def jit(function=None, **options):
        return function or jit


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
FORMS = ("auto", "loop", "torch", "triton")
form = "auto"  # the one that is chosen; use_kernels sets it
driver_found = None  # whether Triton works here; triton_compiles sets it


def use_kernels(new_form, module=None):
    """
    Choose the form in which this process computes the recurrences of all models, and put the fast forms of layers
    and losses (fast/) in place inside `module`. Results stay the same to rounding, parameter names to the letter.

        auto      the best for each tensor's device: triton on NVIDIA GPUs since the A100, else torch
        loop      what is written in model.py, baselines.py and in the loops below, and nothing else
        torch     few large PyTorch operations
        triton    Triton's kernels; torch where they do not run, as in float64
    """
    global form
    if new_form not in FORMS:
        raise ValueError(f"kernels = {new_form!r}: possible are {', '.join(FORMS)}")
    form = new_form
    if torch.cuda.is_available():
        triton_compiles()  # asked now: torch.compile could not look into Triton's driver
    if module is not None:
        for part in module.modules():
            take_form(part)


def take_form(module):
    """Give one module, not those inside it, the methods of the chosen form."""
    module.__class__ = plain_class(module)
    if form != "loop":
        from fast.switch import fast_class

        module.__class__ = fast_class(type(module))


def plain_class(module):
    """The class of a module as it is written, whether or not faster methods are in place."""
    return getattr(type(module), "plain", type(module))


def runs_triton(x):
    """Return True where x goes to the Triton form, which has no float64."""
    return form != "torch" and x.dtype != torch.float64 and has_triton(x.device)


def has_triton(device):
    """Return True where the Triton kernels run: on NVIDIA GPUs since the A100, or interpreted on a CPU."""
    if triton is None:
        return False
    if gpu_generation(device) >= 8:
        return triton_compiles()
    return INTERPRETED and device.type == "cpu"


def triton_compiles():
    """Return True if Triton has a driver here, which it compiles once on each machine; else say what it needs."""
    global driver_found
    if triton is None:
        return False
    if driver_found is None:
        try:
            driver_found = triton.runtime.driver.active is not None
        except Exception as error:  # of several kinds: no compiler, no Python.h, no libcuda.so
            what = str(error).partition("\n")[0]
            needs = "it needs a C compiler and Python.h (apt-get install gcc python3-dev)"
            print(f"Triton does not work here ({what}): {needs}; PyTorch's forms are used", file=sys.stderr)
            driver_found = False
    return driver_found


def gpu_generation(device):
    """Major version of an NVIDIA GPU, 8 since the A100, 9 since the H100; 0 for anything else."""
    nvidia = device.type == "cuda" and torch.version.hip is None
    return torch.cuda.get_device_properties(device).major if nvidia else 0


def at_least_float32(*tensors):
    """The tensors (None stays None) in the widest of their types, and in float32 at least."""
    wide = functools.reduce(torch.promote_types, (x.dtype for x in tensors if x is not None), torch.float32)
    return [None if x is None else x.to(wide) for x in tensors]


def fill(x, reset, value):
    """x (B, T, ...), with this value where reset (B, T) is True; x itself if reset is None."""
    return x if reset is None else x.masked_fill(reset.view(*reset.shape, *[1] * (x.ndim - 2)), value)


def contiguous(*tensors):
    return (None if x is None else x.contiguous() for x in tensors)


# ---------------------------------------------------------------------------------------------------
# linear scan:  h_t = a_t h_{t-1} + b_t


def linear_scan_loop(a, b, h0=None):
    """a, b (B, T, D), h0 (B, D), zeros if None -> every h_t (B, T, D)."""
    a, b, h = at_least_float32(a, b, h0)
    h = torch.zeros_like(b[:, 0]) if h is None else h
    hs = []
    for t in range(a.shape[1]):
        h = a[:, t] * h + b[:, t]
        hs.append(h)
    return torch.stack(hs, dim=1)


# Steps can be joined: (a, b) followed by (a', b') is (a' a, a' b + b'). Joining is associative, so steps need not
# all wait for each other: a tile of G groups of S steps is joined inside each group, then from group to group, and
# then takes in the h before it at once. The gradient is a linear scan run backwards: with db_t = dL/dh_t,
#
#     db_t = a_{t+1} db_{t+1} + dh_t,   da_t = db_t h_{t-1},   dh_0 = a_1 db_1
#
# minGRU and minLSTM are linear scans whose a and b come from linear layers. Their kernels compute a and b on the
# way in and the gradients of the layers' outputs on the way out: 3 and 4 tensors are moved in place of 8 and
# 11. So there are three kinds of scan, of up to three inputs (B, T, D):
#
#     kind        keep       new      value        a                          b
#     linear      a          -        b            a                          b
#     min_gru     -          gate     candidate    sigmoid(-gate)             sigmoid(gate) g(candidate)
#     min_lstm    forget     input    candidate    f / (f + i)                i / (f + i) g(candidate)
#
# Each thread should hold one channel and the S steps of a group, which it then joins on its own. Triton lays
# threads along the last axis first, that of channels, but would give each thread 8 channels to load at once, and
# have threads left for the steps. So it is not told that `one`, the distance from channel to channel, is 1.


@jit
def join(a, b, a_next, b_next):
    return a_next * a, a_next * b + b_next


@jit
def exp(x):
    """In one instruction and a half: tl.exp takes five, for results below 2^-126."""
    return tl.exp2(x * 1.4426950408889634)


@jit
def load(p, at, mask):
    return tl.load(p + at, mask=mask, other=0.0).to(tl.float32)


@jit
def sigmoids(x):
    """sigmoid(x) and sigmoid(-x), both to about 1e-6 of themselves, for the price of one."""
    e = exp(-tl.abs(x))
    large = 1 / (1 + e)
    return tl.where(x >= 0, large, e * large), tl.where(x >= 0, e * large, large)


@jit
def gates_of(keep, new, KIND: tl.constexpr):
    """The gates as read -> the share of h that is kept, the share of the new value."""
    if KIND == "linear":
        return keep, tl.full(keep.shape, 1.0, tl.float32)
    elif KIND == "min_gru":
        share, rest = sigmoids(new)
        return rest, share
    else:  # each gate divided by the sum of both; log(f / i) is finite also where f and i underflow
        softplus_ratio = tl.log((1 + exp(-tl.abs(new))) / (1 + exp(-tl.abs(keep))))
        return sigmoids(tl.minimum(keep, 0.0) - tl.minimum(new, 0.0) + softplus_ratio)


@jit
def value_of(z, KIND: tl.constexpr):
    """z as read -> the value, z itself or for min_gru and min_lstm g(z); its derivative."""
    if KIND == "linear":
        return z, tl.full(z.shape, 1.0, tl.float32)
    else:
        s, rest = sigmoids(z)
        return tl.where(z >= 0, z + 0.5, s), tl.where(z >= 0, 1.0, s * rest)


@jit
def load_gates(keep, new, first, at, mask, KIND: tl.constexpr):
    """The share of h that is kept, the share of the new value, and the gates as read: one gate is given twice."""
    if KIND == "min_gru":
        k = load(new + first, at, mask)
    else:
        k = load(keep + first, at, mask)
    n = k
    if KIND == "min_lstm":
        n = load(new + first, at, mask)
    kept, share = gates_of(k, n, KIND)
    return kept, share, k, n


@jit
def join_groups(kept, h, carry):
    """kept and h inside groups (S, G, BD), h before the tile (BD,) -> h before each group, h after the tile."""
    s, g = tl.arange(0, kept.shape[0])[:, None, None], tl.arange(0, kept.shape[1])
    last = s == kept.shape[0] - 1
    kept, h = tl.sum(tl.where(last, kept, 0.0), 0), tl.sum(tl.where(last, h, 0.0), 0)  # (G, BD)
    kept, h = tl.associative_scan((kept, h), 0, join)
    after = h + kept * carry[None, :]
    before = tl.sum(tl.where((g[:, None] + 1 == g[None, :])[:, :, None], after[:, None, :], 0.0), 0)
    before = tl.where(g[:, None] == 0, carry[None, :], before)
    return before, tl.sum(tl.where(g[:, None] == kept.shape[0] - 1, after, 0.0), 0)


@jit(do_not_specialize=["one"])
def scan_forward(
    keep, new, value, h0, h, T, one, D: tl.constexpr, KIND: tl.constexpr,
    S: tl.constexpr, G: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    # One program: BD channels of one sequence, from its first step to its last, G groups of S steps at a time.
    blocks: tl.constexpr = (D + BD - 1) // BD
    sequence = (tl.program_id(0) // blocks).to(tl.int64)
    d = tl.program_id(0) % blocks * BD + tl.arange(0, BD)
    steps = tl.arange(0, G)[None, :, None] * S + tl.arange(0, S)[:, None, None]  # (S, G, 1)
    at = steps * D + d * one
    carry = load(h0, sequence * D + d, d < D)
    for start in range(0, T, S * G):
        first, mask = (sequence * T + start) * D, (steps < T - start) & (d < D)
        a, share, _, _ = load_gates(keep, new, first, at, mask, KIND)
        x, slope = value_of(load(value + first, at, mask), KIND)
        kept, H = tl.associative_scan((a, share * x), 0, join)
        before, carry = join_groups(kept, H, carry)
        H += kept * before[None, :, :]
        tl.store(h + first + at, H.to(h.dtype.element_ty), mask=mask)


@jit(do_not_specialize=["one"])
def scan_backward(
    keep, new, value, h0, h, dh, dkeep, dnew, dvalue, dh0, T, one, D: tl.constexpr, KIND: tl.constexpr,
    S: tl.constexpr, G: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    # One program: the same channels, from the last step to the first.
    blocks: tl.constexpr = (D + BD - 1) // BD
    sequence = (tl.program_id(0) // blocks).to(tl.int64)
    d = tl.program_id(0) % blocks * BD + tl.arange(0, BD)
    steps = tl.arange(0, G)[None, :, None] * S + tl.arange(0, S)[:, None, None]
    at = d * one - steps * D
    h_before, carry = load(h0, sequence * D + d, d < D)[None, None, :], tl.zeros([BD], tl.float32)
    for start in range(0, T, S * G):
        t = T - 1 - start - steps
        last, mask = (sequence * T + T - 1 - start) * D, (t >= 0) & (d < D)
        a_after, _, _, _ = load_gates(keep, new, last + D, at, mask & (t < T - 1), KIND)
        kept, db = tl.associative_scan((a_after, load(dh + last, at, mask)), 0, join)
        before, carry = join_groups(kept, db, carry)
        db += kept * before[None, :, :]
        h_last = tl.where(t > 0, load(h + last - D, at, mask & (t > 0)), h_before)
        a, share, k, n = load_gates(keep, new, last, at, mask, KIND)
        if KIND == "linear":
            tl.store(dkeep + last + at, (db * h_last).to(dkeep.dtype.element_ty), mask=mask)
            tl.store(dvalue + last + at, db.to(dvalue.dtype.element_ty), mask=mask)
        else:
            x, slope = value_of(load(value + last, at, mask), KIND)
            tl.store(dvalue + last + at, (db * share * slope).to(dvalue.dtype.element_ty), mask=mask)
            dr = db * a * share * (x - h_last)  # of r, where share = sigmoid(r) and a = sigmoid(-r)
            if KIND == "min_gru":
                tl.store(dnew + last + at, dr.to(dnew.dtype.element_ty), mask=mask)
            else:
                _, closed_k = sigmoids(k)
                _, closed_n = sigmoids(n)
                tl.store(dkeep + last + at, (-dr * closed_k).to(dkeep.dtype.element_ty), mask=mask)
                tl.store(dnew + last + at, (dr * closed_n).to(dnew.dtype.element_ty), mask=mask)
        if start + S * G >= T:  # the first step has been reached
            dh_first = tl.sum(tl.sum(tl.where(t == 0, db * a, 0.0), 0), 0)
            tl.store(dh0 + sequence * D + d, dh_first.to(dh0.dtype.element_ty), mask=d < D)


def scan_tile(kind, backward=False):
    """
    Steps of a group, groups and channels of a tile, and warps. A warp has a group, a thread a channel of it: its
    steps follow each other in one thread's registers: as many as fit there with Triton 3.7 (3.6 spills 8 to 24
    bytes backward on an H100), for about 20 instructions a step forward and 45 backward. Not yet tuned on a GPU:
    on an H200 the scan takes 2.5 to 3 times as long as flash-linear-attention's (results/README.md).
    """
    return 8 if backward and kind == "min_lstm" else 16, 8, 32, 8


def scan_triton(kind, keep, new, value, h0):
    """keep, new, value (B, T, D), h0 (B, D) -> h (B, T, D) in value's type; for kind see above."""
    B, T, D = value.shape
    keep, new, value, h0 = contiguous(keep, new, value, h0)
    S, G, BD, warps = scan_tile(kind)
    h = torch.empty_like(value)
    grid = (B * triton.cdiv(D, BD),)
    with torch.cuda.device_of(value):
        scan_forward[grid](keep, new, value, h0, h, T, 1, D, kind, S, G, BD, num_warps=warps)
    return h


def scan_backward_triton(kind, inputs, h, dh):
    """inputs = keep, new, value, h0 -> the gradients of those that are not None."""
    keep, new, value, h0 = contiguous(*inputs)
    B, T, D = value.shape
    S, G, BD, warps = scan_tile(kind, backward=True)
    gradients = [None if x is None else torch.empty_like(x) for x in (keep, new, value, h0)]
    grid = (B * triton.cdiv(D, BD),)
    with torch.cuda.device_of(value):
        tensors = (keep, new, value, h0, h, dh.contiguous(), *gradients)
        scan_backward[grid](*tensors, T, 1, D, kind, S, G, BD, num_warps=warps)
    return [x for x in gradients if x is not None]


def linear_scan(a, b, h0=None):
    """
    a, b (B, T, D), h0 (B, D), zeros if None -> every h_t = a_t h_{t-1} + b_t, (B, T, D), in b's type. Here and
    below, shapes or devices that do not match raise ValueError, except in the loops, which broadcast.
    """
    if form == "loop":
        return linear_scan_loop(a, b, h0).to(b.dtype)
    from fast.operators import scan_linear

    return scan_linear(a, b, h0)


def min_gru(gate, candidate, h0=None):
    """
    z = sigmoid(gate), h_t = (1 - z) h_{t-1} + z g(candidate): projections (B, T, D), h0 (B, D) -> every h_t,
    in candidate's type. Minimal GRU, arXiv:2410.01201, with its g(x) = x + 0.5 for x >= 0, else sigmoid(x).
    """
    if form == "loop":
        gate, x = at_least_float32(gate, candidate)
        return linear_scan_loop(torch.sigmoid(-gate), torch.sigmoid(gate) * g(x), h0).to(candidate.dtype)
    from fast.operators import scan_min_gru

    return scan_min_gru(gate, candidate, h0)


def min_lstm(forget, input, candidate, h0=None):
    """f, i = sigmoid(forget), sigmoid(input), h_t = (f h_{t-1} + i g(candidate)) / (f + i): as in min_gru."""
    if form == "loop":
        f, i, x = at_least_float32(forget, input, candidate)
        log_ratio = F.logsigmoid(f) - F.logsigmoid(i)  # log(f / i), finite also where both underflow
        keep, new = torch.sigmoid(log_ratio), torch.sigmoid(-log_ratio)
        return linear_scan_loop(keep, new * g(x), h0).to(candidate.dtype)
    from fast.operators import scan_min_lstm

    return scan_min_lstm(forget, input, candidate, h0)


def g(x):
    """minRNN's activation: x + 0.5 from 0 upwards, sigmoid(x) below; continuous, and never negative."""
    return torch.where(x >= 0, x + 0.5, torch.sigmoid(x))


# ---------------------------------------------------------------------------------------------------
# gated linear attention:  S_t = diag(f_t) S_{t-1} + k_t v_t^T,   o_t = S_t^T q_t


def gated_linear_attention_loop(q, k, v, log_f, S0=None):
    """
    q, k, log_f (B, T, H, K), v (B, T, H, V), S0 (B, H, K, V), zeros if None -> every o_t (B, T, H, V), the last S.
    k None means 1 - f.
    """
    q, k, v, log_f, S = at_least_float32(q, k, v, log_f, S0)
    k = -torch.expm1(log_f) if k is None else k
    f, o = log_f.exp(), []
    S = v.new_zeros(len(q), *q.shape[2:], v.shape[-1]) if S is None else S
    for t in range(q.shape[1]):
        S = f[:, t, :, :, None] * S + k[:, t, :, :, None] * v[:, t, :, None, :]
        o.append((S * q[:, t, :, :, None]).sum(-2))
    return torch.stack(o, dim=1), S


def gated_linear_attention_chunks(q, k, v, log_f, S, C=16):
    """
    The idea, for reading: the loop's results, C steps at a time, as matrix products. Let D_i = f_1 ... f_i be what
    is left in row i of a chunk of what was there before it. Then row i reads v_j, j <= i, with the weight A_ij =
    (q_i D_i) . (k_j / D_j), and the state before the chunk with q_i D_i. This fails for gates so near 0 that D_C
    underflows; the kernels compute D_i / D_j differently, see below.
    """
    causal, outputs = torch.ones(C, C, dtype=q.dtype, device=q.device).tril(), []
    q, k, v, log_f = (x.transpose(1, 2).split(C, dim=2) for x in (q, k, v, log_f))  # of (B, H, C, ...)
    for q, k, v, log_f in zip(q, k, v, log_f):
        D = log_f.cumsum(dim=2).exp()  # (B, H, C, K)
        A = (q * D) @ (k / D).mT * causal[: q.shape[2], : q.shape[2]]  # (B, H, C, C)
        outputs.append(A @ v + (q * D) @ S)
        S = D[:, :, -1:].mT * (S + (k / D).mT @ v)
    return torch.cat(outputs, dim=2).transpose(1, 2), S


# Where gates may be 0, D_i / D_j is taken apart: where a boundary b lies between j and i, it is D_ib D_bj,
# products of gates, at most 1 both. So A is made of squares: the lower left quarter of a chunk crosses its
# middle; inside each half, again the lower left quarter crosses the middle; and so on, down to leaves of 8 rows:
#
#     leaf
#     8  leaf
#     16 16 leaf
#     16 16  8  leaf
#
# Whatever can be a product of matrices is made one, for tensor cores are a hundred times faster than all else
# on the card. So are decays: with log f the logarithms of a chunk's gates, a row per step,
#
#     decays = exp(M log f),    M (C, C) of zeros and ones: its row r marks the steps t over which row r decays,
#
#     SINCE_START   t <= r          from the chunk's start to r
#     TO_END        t > r           from r to the chunk's end
#     LEAF_ROWS     t <= r          both in a leaf, t not its first row: from that row to r
#     HALVES        t <= r or > r   both in one half of a block of 16, 32, ... rows: from r in the lower half back,
#                                   or from r in the upper half on, to the boundary between them
#
# At that boundary rows of the lower half, as queries, meet rows of the upper half, as keys. All exponents are at
# most 0, so one tile X serves both: q below, k above, times their decays. X X^T holds the square of A where they
# meet. Backwards, with Z = dA below the diagonal and dA^T above, Z X has dq's share in the lower rows and dk's in
# the upper. No factor of a row knows a later gate: the future cannot leak into the past even by rounding.
#
# In a leaf, queries decay since its first row, and keys are divided by that. With gates of 2^-24 at least, less
# being nothing beside 1 in float32, seven of them and a shift by 2^84 stay between 2^-84 and 2^84; a row's own
# gate, the last of its decays, is taken as it is. Above the diagonal that may overflow, and is dropped.
#
# The gradient of a gate is made of the same rounded factors as the products. What a pair of rows adds to one sum
# and takes from the other then cancels for gates that do not lie between them; with other factors a residue would
# be left, which the sum over rows piles up.

LEAF = tl.constexpr(8)
NOTHING = tl.constexpr(-104.0)  # below the log of the least float32: a gate that is 0
LEAST = tl.constexpr(-16.625)  # log 2^-24, the bfloat16 nearest to it
SHIFT = tl.constexpr(58.2)  # half of seven times that
SINCE_START, TO_END, LEAF_ROWS, FROM_HERE, BEFORE, LEAF_BELOW, LEAF_ABOVE, HALVES, ACROSS = (
    tl.constexpr(number) for number in range(9)
)


@functools.cache
def marks(C, dtype, device):
    """All M (how many, C, C): those of decays, those of sums over rows, and the masks of the squares of A."""
    r, t, half = torch.arange(C, device=device)[:, None], torch.arange(C, device=device), LEAF.value
    leaf = r ^ t < LEAF.value
    M = [t <= r, t > r, leaf & (t <= r) & (t % LEAF.value > 0), t >= r, t < r, leaf & (t < r), leaf & (t > r)]
    while half < C:
        M += [(r ^ t < half) & torch.where(r // half % 2 == 1, t <= r, t > r), (r ^ t) // half == 1]
        half *= 2
    return torch.stack(M).to(dtype)


def levels(C):
    """The number of doublings from a leaf to a chunk."""
    return (C // LEAF.value).bit_length() - 1


@jit
def add_summed(M, x, total, DOT: tl.constexpr, EXACT: tl.constexpr):
    """M x + total. Every M is exact in DOT; an x that is not EXACT there goes in two parts."""
    total = tl.dot(M, x.to(DOT), total, input_precision="ieee")
    if not EXACT:
        total = tl.dot(M, (x - x.to(DOT).to(tl.float32)).to(DOT), total, input_precision="ieee")
    return total


@jit
def summed(M, x, DOT: tl.constexpr, EXACT: tl.constexpr):
    """M x. A single column, one gate for all, needs no tensor cores."""
    if x.shape[1] == 1:
        return tl.sum(M.to(tl.float32) * tl.trans(x), 1, keep_dims=True)
    else:
        return add_summed(M, x, tl.zeros(x.shape, tl.float32), DOT, EXACT)


@jit
def summed_right(x, M, DOT: tl.constexpr, EXACT: tl.constexpr):
    """x M; an x that is not EXACT goes in two parts, as in add_summed, and a single row as in summed."""
    if x.shape[0] == 1:
        return tl.sum(tl.trans(x) * M.to(tl.float32), 0, keep_dims=True)
    else:
        total = tl.dot(x.to(DOT), M, input_precision="ieee")
        if not EXACT:
            total = tl.dot((x - x.to(DOT).to(tl.float32)).to(DOT), M, total, input_precision="ieee")
        return total


@jit
def product(a, b, DOT: tl.constexpr):
    return tl.dot(a.to(DOT), b.to(DOT), input_precision="ieee")


@jit
def product_of_rows(a, b, DOT: tl.constexpr):
    """a b^T; of single columns, without tensor cores."""
    if a.shape[1] == 1:
        return a * tl.trans(b)
    else:
        return product(a, tl.trans(b), DOT)


@jit
def add_product(a, b, total, DOT: tl.constexpr):
    return tl.dot(a.to(DOT), b.to(DOT), total, input_precision="ieee")


@jit
def on_diagonal(x):
    i = tl.arange(0, x.shape[0])
    return tl.sum(tl.where(i[:, None] == i[None, :], x, 0.0), 1)


@jit
def place(C: tl.constexpr, H: tl.constexpr, T, slices: tl.constexpr):
    """Program number -> its slice, the number of its chunk, that chunk's first row in (B T H), rows left there."""
    pid, n = tl.program_id(0), tl.cdiv(T, C)
    chunk, bh = pid // slices % n, (pid // slices // n).to(tl.int64)
    return pid % slices, bh * n + chunk, (bh // H * T + chunk * C) * H + bh % H, T - chunk * C


@jit
def read_rows(p, first, r, c, left, H: tl.constexpr, W: tl.constexpr):
    """Rows r and columns c of a chunk of (B, T, H, W), of which `left` rows and W columns exist."""
    return tl.load(p + first * W + (r * (H * W) + c), mask=(r < left) & (c < W), other=0.0)


@jit
def write_rows(p, x, first, r, c, left, H: tl.constexpr, W: tl.constexpr):
    tl.store(p + first * W + (r * (H * W) + c), x.to(p.dtype.element_ty), mask=(r < left) & (c < W))


@jit
def read_state(p, number, c, cv, K: tl.constexpr, V: tl.constexpr):
    """Rows c and columns cv of one of many matrices (K, V)."""
    return tl.load(p + number * (K * V) + (c * V + cv), mask=(c < K) & (cv < V), other=0.0)


@jit
def write_state(p, S, number, c, cv, K: tl.constexpr, V: tl.constexpr):
    tl.store(p + number * (K * V) + (c * V + cv), S.to(p.dtype.element_ty), mask=(c < K) & (cv < V))


@jit
def gates(g, first, r, c, left, H: tl.constexpr, G: tl.constexpr):
    """log f, at least NOTHING: a column for each of c or, if G = 1, a single one for all."""
    if G == 1:
        c = tl.zeros([1, 1], tl.int32)
    return tl.maximum(read_rows(g, first, r, c, left, H, G).to(tl.float32), NOTHING)


@jit
def keys(k, x, first, r, c, left, H: tl.constexpr, K: tl.constexpr, TIED: tl.constexpr, DOT: tl.constexpr):
    """k or, where it is TIED to the gates exp(x), 1 - exp(x): by its series where the difference would round."""
    x, _ = tl.broadcast(x, c)  # one gate for all columns becomes as many as there are
    if not TIED:
        return read_rows(k, first, r, c, left, H, K).to(tl.float32)
    elif DOT == tl.float32:
        series = x * (1 + x * (1 / 2 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120 + x * (1 / 720))))))
        return tl.where(x > -0.25, -series, 1 - exp(x))
    else:
        return tl.where(x > -0.015, -x - 0.5 * x * x, 1 - exp(x))


@jit
def leaf_decays(M, log_f, DOT: tl.constexpr, EXACT: tl.constexpr):
    """The decays of queries and growths of keys since the first row of their leaf."""
    most = tl.maximum(log_f, LEAST)
    within = summed(M, most, DOT, EXACT) + SHIFT
    return exp(within + (log_f - most)), exp(-within)  # a query's own gate is not clamped


@jit
def chunk_states(
    x, y, g, S_in, states, S_out, marks, T,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, G: tl.constexpr, TIED: tl.constexpr, C: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, BACK: tl.constexpr, STARTED: tl.constexpr,
    DOT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    # One program: BK x BV of one head's state, from chunk to chunk. Forward, x and y are k and v, and `states`
    # gets the state before each chunk. BACK goes from the last chunk to the first: x and y are q and do, and
    # `states` gets the gradient of the state after each chunk.
    across: tl.constexpr = (V + BV - 1) // BV
    down: tl.constexpr = (K + BK - 1) // BK
    n, bh = tl.cdiv(T, C), (tl.program_id(0) // (down * across)).to(tl.int64)
    c = (tl.program_id(0) // across % down * BK + tl.arange(0, BK))[:, None]
    cv = (tl.program_id(0) % across * BV + tl.arange(0, BV))[None, :]
    i = tl.arange(0, C)
    t, r = i[:, None], i[None, :]  # x and the gates lie on their side, (BK, C): a product is never transposed
    M = tl.load(marks + (SINCE_START if BACK else TO_END) * C * C + r * C + t)
    S = tl.zeros([BK, BV], tl.float32)
    if STARTED:
        S += read_state(S_in, bh, c, cv, K, V).to(tl.float32)
    for j in range(n):
        chunk = n - 1 - j if BACK else j
        write_state(states, S, bh * n + chunk, c, cv, K, V)
        first, left = (bh // H * T + chunk * C) * H + bh % H, T - chunk * C
        log_f = gates(g, first, r, c, left, H, G)
        if BACK:
            X = read_rows(x, first, r, c, left, H, K).to(tl.float32)
        else:
            X = keys(x, log_f, first, r, c, left, H, K, TIED, DOT)
        X *= exp(summed_right(log_f, M, DOT, EXACT))
        Y = read_rows(y, first, t, cv, left, H, V)
        S = S * exp(tl.sum(log_f, 1))[:, None] + product(X, Y, DOT)
    write_state(S_out, S, bh, c, cv, K, V)


@jit
def add_squares(M, Q, X, log_f, attention, LEVELS: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr):
    """Add to A, below its diagonal, what some columns of K make of it; what is above the diagonal is no use."""
    C: tl.constexpr = attention.shape[0]
    r = tl.arange(0, C)[:, None]
    decays, growths = leaf_decays(tl.load(M + LEAF_ROWS * C * C), log_f, DOT, EXACT)
    leaf = product_of_rows(Q * decays, X * growths, DOT)  # above the diagonal it may overflow
    attention += tl.where(tl.load(M + LEAF_BELOW * C * C) > 0, leaf, 0.0)
    for level in tl.range(LEVELS, num_stages=1):
        decays = exp(summed(tl.load(M + (HALVES + 2 * level) * C * C), log_f, DOT, EXACT))
        meet = tl.where(r & (LEAF << level) > 0, Q, X) * decays
        attention += product_of_rows(meet, meet, DOT) * tl.load(M + (ACROSS + 2 * level) * C * C)
    return attention


@jit
def chunk_outputs(
    q, k, v, g, states, o, A, marks, T,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, G: tl.constexpr, TIED: tl.constexpr, C: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, LEVELS: tl.constexpr, KEEP: tl.constexpr,
    DOT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    # One program: BV columns of the outputs of one chunk, for one head.
    piece, number, first, left = place(C, H, T, (V + BV - 1) // BV)
    i = tl.arange(0, C)
    r, t = i[:, None], i[None, :]
    M = marks + (r * C + t)
    cv = (piece * BV + tl.arange(0, BV))[None, :]
    attention, diagonal, out = (
        tl.zeros([C, C], tl.float32),
        tl.zeros([C], tl.float32),
        tl.zeros([C, BV], tl.float32),
    )
    for start in range(0, K, BK):
        c = (start + tl.arange(0, BK))[None, :]
        log_f = gates(g, first, r, c, left, H, G)
        Q = read_rows(q, first, r, c, left, H, K).to(tl.float32)
        X = keys(k, log_f, first, r, c, left, H, K, TIED, DOT)
        diagonal += tl.sum(Q * X, 1)
        if G == 1:
            attention = add_product(Q, tl.trans(X), attention, DOT)
        else:
            attention = add_squares(M, Q, X, log_f, attention, LEVELS, DOT, EXACT)
        S = read_state(states, number, tl.trans(c), cv, K, V)
        decays = exp(summed(tl.load(M + SINCE_START * C * C), log_f, DOT, EXACT))
        out = add_product(Q * decays, S, out, DOT)
    if G == 1:  # the same decays for all columns: those of a query and a key that are 1
        log_f, one = gates(g, first, r, t, left, H, G), tl.full([C, 1], 1.0, tl.float32)
        decays = tl.zeros([C, C], tl.float32)
        attention *= add_squares(M, one, one, log_f, decays, LEVELS, DOT, EXACT)
    attention = tl.where(t < r, attention, tl.where(t == r, diagonal[:, None], 0.0))
    out = add_product(attention, read_rows(v, first, r, cv, left, H, V), out, DOT)
    write_rows(o, out, first, r, cv, left, H, V)
    if KEEP:
        if piece == 0:
            write_rows(A, attention, first, r, t, left, H, C)


@jit
def value_gradients(
    k, v, g, A, do, dstates, dv, dA, marks, T,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, G: tl.constexpr, TIED: tl.constexpr, C: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    # One program: BV columns of dv in one chunk, for one head; the first also dA, with dA^T above the diagonal.
    piece, number, first, left = place(C, H, T, (V + BV - 1) // BV)
    i = tl.arange(0, C)
    r, t = i[:, None], i[None, :]
    cv = (piece * BV + tl.arange(0, BV))[None, :]
    out = product(
        read_rows(A, first, t, r, left, H, C), read_rows(do, first, r, cv, left, H, V), DOT
    )  # A^T do
    M = tl.load(marks + TO_END * C * C + (r * C + t))
    for start in range(0, K, BK):
        c = (start + tl.arange(0, BK))[None, :]
        log_f = gates(g, first, r, c, left, H, G)
        X = keys(k, log_f, first, r, c, left, H, K, TIED, DOT) * exp(summed(M, log_f, DOT, EXACT))
        out = add_product(X, read_state(dstates, number, tl.trans(c), cv, K, V), out, DOT)
    write_rows(dv, out, first, r, cv, left, H, V)
    if piece == 0:
        below, above = tl.zeros([C, C], tl.float32), tl.zeros([C, C], tl.float32)
        for start in range(0, V, BV):
            cv = (start + tl.arange(0, BV))[None, :]
            Y, dO = read_rows(v, first, r, cv, left, H, V), read_rows(do, first, r, cv, left, H, V)
            below = add_product(dO, tl.trans(Y), below, DOT)
            above = add_product(Y, tl.trans(dO), above, DOT)
        write_rows(dA, tl.where(t < r, below, above), first, r, t, left, H, C)


@jit
def leaf_gradients(M, Z, Q, X, log_f, DOT: tl.constexpr, EXACT: tl.constexpr):
    """dq, dk and the summands of dlog_f that come from pairs of different rows in a leaf."""
    C: tl.constexpr = Z.shape[0]
    decays, growths = leaf_decays(tl.load(M + LEAF_ROWS * C * C), log_f, DOT, EXACT)
    query, key = (Q * decays).to(DOT), (X * growths).to(DOT)
    dQ = product(Z * tl.load(M + LEAF_BELOW * C * C), key, DOT)
    dK = product(Z * tl.load(M + LEAF_ABOVE * C * C), query, DOT)
    return dQ * decays, dK * growths, query * dQ - key * dK


@jit
def halves_gradients(M, Z, Q, X, log_f, level, r, DOT: tl.constexpr, EXACT: tl.constexpr):
    """dq, dk and the summands of dlog_f that come from pairs of rows in the two halves of a block."""
    C: tl.constexpr = Z.shape[0]
    lower = r & (LEAF << level) > 0
    decays = exp(summed(tl.load(M + (HALVES + 2 * level) * C * C), log_f, DOT, EXACT))
    meet = (tl.where(lower, Q, X) * decays).to(DOT)
    gradient = product(Z * tl.load(M + (ACROSS + 2 * level) * C * C), meet, DOT)
    owed = tl.where(lower, meet, -meet) * gradient
    gradient *= decays
    return tl.where(lower, gradient, 0.0), tl.where(lower, 0.0, gradient), owed


@jit
def state_gradients(
    v, states, do, dstates, number, first, r, c, left, H: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    C: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Through the states: do S^T and v dS^T (C, BK), before their decays, and the row sums of S * dS (BK,)."""
    read, left_behind = tl.zeros([C, BK], tl.float32), tl.zeros([C, BK], tl.float32)
    across = tl.zeros([BK, BK], tl.float32)
    for start in range(0, V, BV):
        cv = (start + tl.arange(0, BV))[None, :]
        S = read_state(states, number, c, tl.trans(cv), K, V)  # on their side, (BV, BK)
        dS = read_state(dstates, number, c, tl.trans(cv), K, V)
        read = add_product(read_rows(do, first, r, cv, left, H, V), S, read, DOT)
        left_behind = add_product(read_rows(v, first, r, cv, left, H, V), dS, left_behind, DOT)
        across = add_product(tl.trans(S), dS, across, DOT)
    return read, left_behind, on_diagonal(across)


@jit
def key_gradients(
    q, k, v, g, states, dA, do, dstates, dq, dk, dg, marks, T,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, G: tl.constexpr, TIED: tl.constexpr, C: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr, LEVELS: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    # One program: BK columns of dq, dk and dlog_f in one chunk, for one head.
    piece, number, first, left = place(C, H, T, (K + BK - 1) // BK)
    ALL_EXACT: tl.constexpr = DOT == tl.float32
    r, t = tl.arange(0, C)[:, None], tl.arange(0, C)[None, :]
    M, c = marks + (r * C + t), (piece * BK + tl.arange(0, BK))[None, :]
    Z = read_rows(dA, first, r, t, left, H, C).to(DOT)
    log_f = gates(g, first, r, c, left, H, G)
    X = keys(k, log_f, first, r, c, left, H, K, TIED, DOT).to(DOT)
    Q = read_rows(q, first, r, c, left, H, K).to(DOT)
    dQ, dK, owed = leaf_gradients(M, Z, Q, X, log_f, DOT, EXACT)
    diagonal = on_diagonal(Z.to(tl.float32))[:, None]
    dQ += diagonal * X
    dK += diagonal * Q
    for level in tl.range(LEVELS, num_stages=1):
        more_dQ, more_dK, more_owed = halves_gradients(M, Z, Q, X, log_f, level, r, DOT, EXACT)
        dQ, dK, owed = dQ + more_dQ, dK + more_dK, owed + more_owed

    read, left_behind, across = state_gradients(
        v, states, do, dstates, number, first, r, c, left, H, K, V, C, BK, BV, DOT
    )
    decays = exp(summed(tl.load(M + SINCE_START * C * C), log_f, DOT, EXACT))
    read *= decays
    left_behind *= exp(summed(tl.load(M + TO_END * C * C), log_f, DOT, EXACT))
    write_rows(dq, dQ + read, first, r, c, left, H, K)
    dK += left_behind
    if not TIED:
        write_rows(dk, dK, first, r, c, left, H, K)
    # dlog_f_t sums over what rows from t on have read, what rows before t leave behind, and what goes across.
    owed += Q * read + tl.where(r == C - 1, decays * across[None, :], 0.0)
    dlog_f = -exp(log_f) * dK if TIED else tl.zeros([C, BK], tl.float32)
    dlog_f = add_summed(tl.load(M + BEFORE * C * C), X * left_behind, dlog_f, DOT, ALL_EXACT)
    dlog_f = add_summed(tl.load(M + FROM_HERE * C * C), owed, dlog_f, DOT, ALL_EXACT)
    write_rows(dg, tl.where(log_f > NOTHING, dlog_f, 0.0), first, r, c, left, H, K)


CHUNK = 32  # C. No product then has the 64 rows for which Triton takes Hopper's own instruction, wgmma: the
# assembler that comes with Triton 3.6 and 3.7 (ptxas 12.8) lets it read past the end of shared memory, and with a
# newer one chunks of 64 were no faster on an H200.

# Widths of slices of K and V, warps, stages. In bfloat16 the fastest of 24 on an H200 (results/README.md); in
# float32 chosen by the compiler's counts alone (python -m tools.bench compile).
TILES = {
    torch.bfloat16: dict(
        chunk_states=(32, 64, 2, 3), chunk_outputs=(32, 128, 2, 1),
        value_gradients=(64, 64, 2, 2), key_gradients=(32, 128, 2, 1),
    ),
    torch.float32: dict(
        chunk_states=(32, 32, 8, 1), chunk_outputs=(16, 32, 8, 1),
        value_gradients=(16, 32, 8, 1), key_gradients=(16, 16, 8, 1),
    ),
}  # fmt: skip


def dot_dtype(q, v):
    """bfloat16 if both are, else float32: in float16 the factors of a leaf would overflow."""
    return torch.bfloat16 if q.dtype == v.dtype == torch.bfloat16 else torch.float32


def launch(kernel, programs, tensors, q, k, v, log_f, **settings):
    """Launch programs(slices of K, slices of V) programs of kernel(*tensors, ...), with its tiles."""
    T, H, K, V, G, dtype = *q.shape[1:], v.shape[3], log_f.shape[3], dot_dtype(q, v)
    BK, BV, warps, stages = TILES[dtype][kernel.__name__]
    BK, BV = (min(most, max(16, triton.next_power_of_2(size))) for most, size in ((BK, K), (BV, V)))
    kernel[(programs(triton.cdiv(K, BK), triton.cdiv(V, BV)),)](
        *tensors, marks(CHUNK, dtype, q.device), T,
        H=H, K=K, V=V, G=G, TIED=k is None, C=CHUNK, BK=BK, BV=BV, DOT=getattr(tl, str(dtype)[6:]),
        EXACT=torch.promote_types(log_f.dtype, dtype) == dtype, **settings, num_warps=warps, num_stages=stages,
    )  # fmt: skip


def saved_by_attend_triton(q, v, keep, _):
    """
    Tensors for the states before chunks (B, H, n, K, V) and all A (B, T, H, C), of size 0 unless `keep`, in the
    dtype of the matrix products.
    """
    (B, T, H, K), V, dtype = q.shape, v.shape[-1], dot_dtype(q, v)
    states = q.new_empty(B if keep else 0, H, -(-T // CHUNK), K, V, dtype=dtype)
    return states, q.new_empty(B, T, H, CHUNK if keep else 0, dtype=dtype)


def attend_triton(q, k, v, log_f, S0, results):
    """Fill results = o (B, T, H, V), the last S (B, H, K, V) and, unless of size 0, states before chunks, A."""
    o, S, states, A = results
    q, k, v, log_f, S0 = contiguous(q, k, v, log_f, S0)
    inputs, keep, heads, n = (q, k, v, log_f), len(states) > 0, len(q) * q.shape[2], -(-q.shape[1] // CHUNK)
    if not keep:
        states = A.new_empty(heads, n, q.shape[3], v.shape[3])
    with torch.cuda.device_of(q):
        tensors, settings = (k, v, log_f, S0, states, S), dict(BACK=False, STARTED=S0 is not None)
        launch(chunk_states, lambda down, across: heads * down * across, tensors, *inputs, **settings)
        tensors, settings = (q, k, v, log_f, states, o, A), dict(LEVELS=levels(CHUNK), KEEP=keep)
        launch(chunk_outputs, lambda down, across: heads * n * across, tensors, *inputs, **settings)


def attend_backward_triton(inputs, saved, do, dS, gradients):
    """inputs = q, k, v, log_f, S0; saved = states, A. Fill those gradients of the inputs that are not None."""
    q, k, v, log_f, do, dS = contiguous(*inputs[:4], do, dS)
    states, A = saved
    dq, dk, dv, dlog_f, dS0 = gradients
    inputs, heads, n = (q, k, v, log_f), len(q) * q.shape[2], -(-q.shape[1] // CHUNK)
    dstates, dS_first, dA = torch.empty_like(states), torch.empty_like(dS), torch.empty_like(A)
    dg = dlog_f if dlog_f.shape == q.shape else log_f.new_empty(q.shape, dtype=torch.float32)
    with torch.cuda.device_of(q):
        tensors, settings = (q, do, log_f, dS, dstates, dS_first), dict(BACK=True, STARTED=True)
        launch(chunk_states, lambda down, across: heads * down * across, tensors, *inputs, **settings)
        tensors = k, v, log_f, A, do, dstates, dv, dA
        launch(value_gradients, lambda down, across: heads * n * across, tensors, *inputs)
        tensors = q, k, v, log_f, states, dA, do, dstates, dq, dk, dg
        launch(key_gradients, lambda down, across: heads * n * down, tensors, *inputs, LEVELS=levels(CHUNK))
    if dg is not dlog_f:
        dlog_f.copy_(dg.sum(-1, keepdim=True))
    if dS0 is not None:
        dS0.copy_(dS_first)


def gated_linear_attention(q, k, v, log_f, S0=None):
    """
    q, k, log_f (B, T, H, K), v (B, T, H, V), S0 (B, H, K, V), zeros if None -> o (B, T, H, V) in v's type,
    and the last S, in float32 at least. log_f is the natural logarithm of f, at most 0; -inf is f = 0. It may also
    be (B, T, H, 1), one gate for a whole head, and k may be None, meaning 1 - f. q is not scaled.
    """
    if form == "loop":
        o, S = gated_linear_attention_loop(q, k, v, log_f, S0)
        return o.to(v.dtype), S
    from fast.operators import attend

    return attend(q, k, v, log_f, S0)


# ---------------------------------------------------------------------------------------------------
# selective scan:  h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t,   y_t = C_t^T h_t


def selective_scan_loop(x, dt, A, B, C, h0=None):
    """x, dt (B, T, E), A (E, N), B, C (B, T, N), h0 (B, E, N) or None -> every y_t (B, T, E), the last h."""
    x, dt, A, B, C, h = at_least_float32(x, dt, A, B, C, h0)
    h, y = A.new_zeros(len(x), *A.shape) if h is None else h, []
    for t in range(x.shape[1]):
        decay = torch.exp(dt[:, t, :, None] * A)  # (B, E, N)
        h = decay * h + (dt[:, t] * x[:, t])[:, :, None] * B[:, t, None, :]
        y.append((h * C[:, t, None, :]).sum(-1))
    return torch.stack(y, dim=1), h


# The linear scan again, over tiles of [BT, BN, BE] numbers, which are never written. Triton lays threads
# along the last axis first and has none left for the first: each holds all steps of its states, and joins
# them one by one in its registers.
#
# Backwards, h_t = kept_t + dt_t B_t x_t is computed again from the state saved before the tile, and its
# gradient dh_t = C_t dy_t + owed_t with owed_{t-1} = exp(dt_t A) dh_t, from the last step to the first. The
# gradient of dt_t A is dh_t kept_t. Subtraction would leave nothing of kept_t and dh_t where decays are small, so
# the scans carry them along. Flipping a tile and scanning it in order costs nothing, since registers are only
# renamed; Triton's own reverse=True sends all numbers from thread to thread.


@jit
def join_kept(a, h, kept, a_next, h_next, kept_next):
    """A step is (a, b, 0); of many, `kept` is all of h but the last b."""
    return a_next * a, a_next * h + h_next, a_next * h + kept_next


@jit
def join_owed(a, owed, reach, dh, a_next, owed_next, reach_next, dh_next):
    """Backwards, a step is (a, a g, 1, g); of many, what is owed at first reaches the last one's dh."""
    return a_next * a, a_next * owed + owed_next, reach_next * a, reach_next * owed + dh_next


@jit
def flip(x):
    """x (16, ...), last step first: on each axis of 2 x 2 x 2 x 2, both become their sum less themselves."""
    bits = x.to(tl.int32, bitcast=True).reshape([2, 2, 2, 2, x.shape[1], x.shape[2]])
    for axis in tl.static_range(4):
        bits = tl.sum(bits, axis, keep_dims=True) - bits
    return bits.reshape(x.shape).to(tl.float32, bitcast=True)


@jit
def rows(sequence, t, T, j, J):
    """Where [sequence, t, j] of a (B, T, J) are, and which of them there are."""
    return (sequence * T + t[:, None]) * J + j[None, :], (t < T)[:, None] & (j < J)[None, :]


@jit
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


@jit
def selective_backward(
    x, dt, A, B, C, states, dy, dh, dx, ddt, dA, dB, dC, dh0, T, E,
    N: tl.constexpr, BT: tl.constexpr, BN: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    # One program: BE channels of one sequence, from the last tile to the first. It writes its part of the sums
    # over channels, dB and dC (B, T, blocks, N), and over sequences, dA (B, E, N).
    blocks, tiles = tl.cdiv(E, BE), tl.cdiv(T, BT)
    sequence, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    e, n, i = block * BE + tl.arange(0, BE), tl.arange(0, BN), tl.arange(0, BT)
    of_state, here = e[None, :] * N + n[:, None], (n < N)[:, None] & (e < E)[None, :]
    A_e, owed = load(A, of_state, here), load(dh, sequence * E * N + of_state, here)
    dA_e = tl.zeros_like(A_e)
    for back in tl.range(0, tiles, num_stages=2):
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

STEPS = 16  # of a tile, in PyTorch's form too
MOST_STATES = 128  # of a channel; Triton's form has no room for more


def selective_tile(E, N, backward):
    """Steps, states and channels of a tile, and its warps."""
    BN = triton.next_power_of_2(N)
    most = max(1, (512 if backward else 2048) // BN)
    BE = min(16 if backward else 32, triton.next_power_of_2(E), most)
    return STEPS, BN, BE, max(1, BN * BE // (64 if backward else 128))


def selective_triton(inputs, results):
    """inputs = x, dt, A, B, C, h0; fill results = y, the last h and, unless of size 0, the states before tiles."""
    x, dt, A, B, C, h0 = contiguous(*inputs)
    y, h, states = results
    (batch, T, E), N = x.shape, A.shape[1]
    *tile, warps = selective_tile(E, N, backward=False)
    keep, grid = states.numel() > 0, (batch * triton.cdiv(E, tile[2]),)
    with torch.cuda.device_of(x):
        selective_forward[grid](x, dt, A, B, C, h0, y, h, states, T, E, N, keep, *tile, num_warps=warps)


def selective_backward_triton(inputs, states, dy, dh):
    """The gradients of inputs = x, dt, A, B, C, h0."""
    x, dt, A, B, C, h0 = contiguous(*inputs)
    dy, dh = contiguous(dy, dh)
    (batch, T, E), N = x.shape, A.shape[1]
    *tile, warps = selective_tile(E, N, backward=True)
    blocks = triton.cdiv(E, tile[2])
    dx, ddt, dA, dh0 = (torch.empty_like(z) for z in (x, dt, dh, h0))
    dB, dC = (dh.new_empty(batch, T, blocks, N) for _ in range(2))
    with torch.cuda.device_of(x):
        tensors = (x, dt, A, B, C, states, dy, dh, dx, ddt, dA, dB, dC, dh0)
        selective_backward[(batch * blocks,)](*tensors, T, E, N, *tile, num_warps=warps)
    return [dx, ddt, dA.sum(0).to(A.dtype), dB.sum(2).to(B.dtype), dC.sum(2).to(C.dtype), dh0]


def selective_scan(x, dt, A, B, C, h0=None):
    """
    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t, y_t = C_t^T h_t (Mamba, arXiv:2312.00752): x, dt (B, T, E), dt
    positive, A (E, N) negative, B, C (B, T, N), h0 (B, E, N), zeros if None -> y (B, T, E) in x's type, and
    the last h, in float32 at least.
    """
    if form == "loop":
        y, h = selective_scan_loop(x, dt, A, B, C, h0)
        return y.to(x.dtype), h
    from fast.operators import scan_selective

    return scan_selective(x, dt, A, B, C, h0)


TRITON = {
    "scan": scan_triton,
    "scan_backward": scan_backward_triton,
    "attend": attend_triton,
    "saved_by_attend": saved_by_attend_triton,
    "attend_backward": attend_backward_triton,
    "selective": selective_triton,
    "selective_backward": selective_backward_triton,
}


def __getattr__(name):
    """Hand over to Hugging Face's package `kernels`, which another library wants when it finds this file."""
    if name == "__path__":  # Python looks for it at every import
        raise AttributeError(name)
    from support.namesakes import attribute_of_package

    return attribute_of_package(__name__, name)
