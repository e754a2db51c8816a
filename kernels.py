"""
The recurrences, fast.

Each goes from slow to fast: first what a student would write, which is the specification; then the same in a few
large PyTorch operations, its gradient by hand; last the public function, which takes the Triton form of
triton_kernels.py where there is a GPU. The tests hold the fast forms to the slow one, values and gradients, for
every gate from 0 to 1.

    linear_scan               h_t = a_t h_{t-1} + b_t                            minGRU, minLSTM, Aaren
    gated_linear_attention    S_t = diag(f_t) S_{t-1} + k_t v_t^T                HGRN2, mLSTM
    selective_scan            h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t           Mamba

All are computed in float32 at least, also under autocast: a product of many gates does not survive bfloat16.
Forward and backward are one operator each to PyTorch (torch.library), whose insides torch.compile leaves alone.

Shapes:  B batch   T time   D, E width   H heads   K, V key and value width of a head   N states of a channel
         C chunk length   n chunks
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from layers import at_least_float32

try:
    import triton_kernels  # Linux with Triton
except ImportError:
    triton_kernels = None


def runs_triton(x):
    """Whether the Triton form is taken for x: on a recent NVIDIA GPU, or interpreted on a CPU; not in float64."""
    return triton_kernels is not None and x.dtype != torch.float64 and triton_kernels.run_on(x.device)


def check(**tensors):
    """
    check(a=(a, "BTD"), h0=(h0, "BD")): in all but None a letter is the same length, at least 1, or it is a
    ValueError that names the argument. No text is made before: torch.compile would compile for every length.
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


def where_given(inputs, gradients):
    """One gradient for each input that is not None, and None for the others."""
    gradients = iter(gradients)
    return [None if x is None else next(gradients) for x in inputs]


def zeros_where_none(gradients, results):
    """The gradients, and zeros for those of results that nothing was made of."""
    return [torch.zeros_like(y) if dy is None else dy for dy, y in zip(gradients, results)]


# ---------------------------------------------------------------------------------------------------
# linear scan:  h_t = a_t h_{t-1} + b_t


def linear_scan_loop(a, b, h0):
    """a, b (B, T, D), h0 (B, D) -> every h_t (B, T, D)."""
    h, hs = h0, []
    for t in range(a.shape[1]):
        h = a[:, t] * h + b[:, t]
        hs.append(h)
    return torch.stack(hs, dim=1)


# The same, all chunks of C steps at a time. Over a chunk, h_out = p h_in + s: p is the product of its gates
# and s is what it would leave behind if it started from nothing.
#
#     1. p and s of all chunks at once: C steps, each over (B, n, D)
#     2. from chunk to chunk, every chunk's h_in: n steps over (B, D)
#     3. the recurrence itself, in all chunks at once, each from its own h_in: C steps over (B, n, D)
#
# So T = 512 takes about 16 + 32 + 16 large steps instead of 512 small ones. Nothing is divided and no
# logarithm is taken: a product of gates that underflows is 0, which is the right answer.


def chunked_scan(a, b, h0, reverse=False):
    """linear_scan_loop's h; with `reverse`, from the last step to the first, h0 coming after the last."""
    B, T, D = b.shape
    C = max(1, round((T / 2) ** 0.5))
    if T % C:
        a, b = (F.pad(x, (0, 0, 0, -T % C), value=fill) for x, fill in ((a, 1.0), (b, 0.0)))
    a, b = (x.unflatten(1, (-1, C)) for x in (a, b))  # (B, n, C, D)
    steps, chunks = list(range(C)), list(range(a.shape[1]))
    if reverse:
        steps, chunks = steps[::-1], chunks[::-1]

    p, s = a[:, :, steps[0]].clone(), b[:, :, steps[0]].clone()  # (B, n, D)
    for i in steps[1:]:
        torch.addcmul(b[:, :, i], a[:, :, i], s, out=s)
        p *= a[:, :, i]
    h_in = torch.empty_like(s)
    for j in chunks:
        h_in[:, j] = h0
        h0 = torch.addcmul(s[:, j], p[:, j], h0)
    h, hs = h_in, torch.empty_like(b)  # (B, n, D), (B, n, C, D)
    for i in steps:
        h = torch.addcmul(b[:, :, i], a[:, :, i], h, out=hs[:, :, i])
    return hs.flatten(1, 2)[:, :T].contiguous()


# The gradient of a linear scan is a linear scan run backwards: with db_t for all that the loss owes to h_t,
#
#     db_t = a_{t+1} db_{t+1} + dh_t,   da_t = db_t h_{t-1},   dh_0 = a_1 db_1


def scan_gradients(a, h0, h, dh):
    a_next = F.pad(a[:, 1:], (0, 0, 0, 1))
    db = chunked_scan(a_next, dh, torch.zeros_like(h0), reverse=True)
    da = torch.empty_like(db)
    torch.mul(db[:, 0], h0, out=da[:, 0])
    torch.mul(db[:, 1:], h[:, :-1], out=da[:, 1:])
    return [da, db, a[:, 0] * db[:, 0]]


# There are three kinds of it: "linear", of x = a and z = b, and "min_gru" and "min_lstm", which take the raw
# projections, x = gate or x, y = forget, input and z = candidate, and keep nothing else for the gradient. With r
# = -gate or log(f / i) both are h_t = sigmoid(r) h_{t-1} + sigmoid(-r) g, so that
#
#     dr = sigmoid(r) sigmoid(-r) (h_{t-1} - g) db,   dg = sigmoid(-r) db


def min_rnn(kind, x, y, z):
    """-> sigmoid(r), sigmoid(-r), g(z)"""
    r = -x if kind == "min_gru" else F.logsigmoid(x) - F.logsigmoid(y)  # finite also where f and i underflow
    return torch.sigmoid(r), torch.sigmoid(-r), positive(z)


def min_rnn_gradients(kind, x, y, z, h0, h, dh):
    keep, add, g = min_rnn(kind, x, y, z)
    dkeep, db, dh0 = scan_gradients(keep, h0, h, dh)
    dr = dkeep.addcmul_(g, db, value=-1).mul_(keep).mul_(add)
    s = z.clamp(max=0).sigmoid_()
    slope = s.addcmul_(s, s, value=-1).add_(z.clone().ge_(0), alpha=0.75)  # of g: s - s^2, from 0 upwards 1
    dz = db.mul_(add).mul_(slope)
    if kind == "min_gru":
        return [dr.neg_(), dz, dh0]
    return [dr * torch.sigmoid(-x), torch.sigmoid(-y).mul_(dr).neg_(), dz, dh0]


def positive(x):
    """g of the paper: x + 0.5 from 0 upwards, sigmoid(x) below; continuous, and never negative."""
    return x.clamp(max=0).sigmoid_().add_(x.clamp(min=0))


@torch.library.custom_op("nanornn::scan", mutates_args=())
def scan(kind: str, x: Tensor, y: Tensor | None, z: Tensor, h0: Tensor) -> Tensor:
    if runs_triton(z):
        return triton_kernels.scan(kind, x, y, z, h0)
    if kind != "linear":
        x, add, g = min_rnn(kind, x, y, z)
        z = g.mul_(add)
    return chunked_scan(x, z, h0)


@torch.library.custom_op("nanornn::scan_backward", mutates_args=())
def scan_backward(
    kind: str, x: Tensor, y: Tensor | None, z: Tensor, h0: Tensor, h: Tensor, dh: Tensor
) -> list[Tensor]:
    """-> the gradients of x, y (if there is one), z, h0"""
    if runs_triton(z):
        return triton_kernels.scan_gradients(kind, x, y, z, h0, h, dh)
    if kind != "linear":
        return min_rnn_gradients(kind, x, y, z, h0, h, dh)
    return scan_gradients(x, h0, h, dh)


@scan.register_fake
def _(kind, x, y, z, h0):
    return z.new_empty(z.shape)


@scan_backward.register_fake
def _(kind, x, y, z, h0, h, dh):
    return [like.new_empty(like.shape) for like in (x, y, z, h0) if like is not None]


def keep_for_scan_backward(ctx, inputs, output):
    ctx.kind, x, y, z, h0 = inputs
    ctx.save_for_backward(x, y, output if ctx.kind == "linear" else z, h0, output)  # b itself is not needed


def run_scan_backward(ctx, dh):
    inputs = ctx.saved_tensors
    return None, *where_given(inputs[:4], scan_backward(ctx.kind, *inputs, dh))


scan.register_autograd(run_scan_backward, setup_context=keep_for_scan_backward)


def linear_scan(a, b, h0=None):
    """
    a, b (B, T, D), h0 (B, D), zeros if None -> every h_t = a_t h_{t-1} + b_t, (B, T, D), in b's type. Here and
    below, what does not fit together is a ValueError.
    """
    check(b=(b, "BTD"), a=(a, "BTD"), h0=(h0, "BD"))
    return raw_scan("linear", a, None, b, h0)


def min_gru(gate, candidate, h0=None):
    """
    z = sigmoid(gate), h_t = (1 - z) h_{t-1} + z g(candidate): projections (B, T, D), h0 (B, D) -> every h_t, in
    candidate's type. Minimal GRU, arXiv:2410.01201, with its g(x) = x + 0.5 for x >= 0, else sigmoid(x).
    """
    check(candidate=(candidate, "BTD"), gate=(gate, "BTD"), h0=(h0, "BD"))
    return raw_scan("min_gru", gate, None, candidate, h0)


def min_lstm(forget, input, candidate, h0=None):
    """f, i = sigmoid(forget, input), h_t = (f h_{t-1} + i g(candidate)) / (f + i): likewise."""
    check(candidate=(candidate, "BTD"), forget=(forget, "BTD"), input=(input, "BTD"), h0=(h0, "BD"))
    return raw_scan("min_lstm", forget, input, candidate, h0)


def raw_scan(kind, x, y, z, h0):
    """A scan of this kind, in z's type."""
    h0 = z.new_zeros(z[:, 0].shape) if h0 is None else h0
    if runs_triton(z):
        return scan(kind, x, y, z, h0)
    return scan(kind, *at_least_float32(x, y, z, h0)).to(z.dtype)


# ---------------------------------------------------------------------------------------------------
# gated linear attention:  S_t = diag(f_t) S_{t-1} + k_t v_t^T,   o_t = S_t^T q_t


def gated_linear_attention_loop(q, k, v, log_f, S0):
    """q, k, log_f (B, T, H, K), v (B, T, H, V), S0 (B, H, K, V) -> every o_t (B, T, H, V), the last S."""
    f, S, o = log_f.exp(), S0, []
    for t in range(q.shape[1]):
        S = f[:, t, :, :, None] * S + k[:, t, :, :, None] * v[:, t, :, None, :]
        o.append((q[:, t, :, None, :] @ S).squeeze(-2))
    return torch.stack(o, dim=1), S


# The same, a chunk of C = 32 steps at a time, as matrix products. Let D_ij = f_{j+1} ... f_i (over K) be
# what is left in row i of something written in row j, S the state before the chunk and S' the one after it.
# Then
#
#     o_i = S^T (q_i D_i,start)   +  sum over j <= i of A_ij v_j,   A_ij = sum over K of q_i D_ij k_j
#     S'  = diag(D_end,start) S   +  sum over j of (k_j D_end,j) v_j^T
#
# A is a product of rows with columns once D_ij is cut in two. Where a boundary b lies between j and i, it
# is D_ib D_bj: products of gates, at most 1 both. So A is made of squares: the lower left quarter crosses
# the middle of the chunk; inside each half, again the lower left quarter crosses the middle; and so on,
# down to leaves of 8 rows:
#
#     leaf
#     8  leaf
#     16 16 leaf
#     16 16  8  leaf
#
# Inside a leaf no boundary is left, so D_ij = D_i0 / D_j0, both since its first row. With each f at least
# 2^-24, less being nothing beside 1 in float32, seven of them come to 2^-168 at least; and started from 2^72
# in place of 1, which rounds nothing and cancels, every factor stays between 2^-96 and 2^96. What overflows
# lies above the diagonal, and is dropped.
#
# Everywhere else gates are what they are, also 0: a product that underflows is right. No row's factors know
# a later gate, so that the future cannot leak into the past even by rounding.

LEAF, CHUNK = 8, 32  # rows
SEGMENT = 2**17  # numbers of q (or v) that are worked on at once, so that they stay in a core's own cache
AWAY = 32  # times as many elsewhere than on a CPU, where starting an operation takes longer than it does
ROWS_FOR_LOOP = 4  # up to here the loop is faster


def chunk_length(T):
    """The longest chunk that pads T rows by an eighth at most, or by no more than a leaf does."""
    return next(C for C in (CHUNK, CHUNK // 2, LEAF) if -T % C <= max(T // 8, -T % LEAF))


def to_chunks(x, C, dtype):
    """(B, T, H, K) -> (n B H, C, K). Rows of zeros come in front: they forget nothing and add nothing."""
    x = x.to(dtype)
    x = F.pad(x, (0, 0, 0, 0, -x.shape[1] % C, 0)) if x.shape[1] % C else x
    return x.unflatten(1, (-1, C)).permute(1, 0, 3, 2, 4).flatten(0, 2).contiguous()


def from_chunks(x, out):
    """Write (n B H, C, K) into out (B, T, H, K), without the rows that were added in front."""
    (B, T, H, _), C = out.shape, x.shape[1]
    x = x.unflatten(0, (-1, B, H)).permute(1, 0, 3, 2, 4)  # (B, n, C, H, K)
    if T % C:
        out.copy_(x.flatten(1, 2)[:, -T:])
    else:
        out.unflatten(1, (-1, C)).copy_(x)


def prepare(q, k, v, log_f, dtype):
    """(B, T, H, ...) -> q, k, v, f (n B H, C, ...), k = 1 - f where it is None, and leaf_decays(f)."""
    C = chunk_length(q.shape[1])
    q, v, log_f = (to_chunks(x, C, dtype) for x in (q, v, log_f))
    k = torch.expm1(log_f).neg_().expand_as(q) if k is None else to_chunks(k, C, dtype)
    f = log_f.exp()
    return q, k, v, f, *leaf_decays(f)


def leaves(x):
    """(n B H, C, K) -> (leaves, 8, K)"""
    return x.view(-1, LEAF, x.shape[-1])


def halves(x, size):
    """(n B H, C, K) -> the upper and the lower halves of all blocks of 2 size rows, each (blocks, size, K)"""
    return x.view(-1, 2, size, x.shape[-1]).unbind(1)


def leaf_decays(f):
    """f (n B H, C, K) -> D_i0 2^72, then D_i,start and D_end,j of each leaf, all (n B H, C, K)."""
    least = torch.finfo(f.dtype).eps / 2
    since_first, since_start, to_end = f.clamp(min=least), f.clone(), torch.ones_like(f)
    f_rows, first, start, end = (leaves(x).unbind(1) for x in (f, since_first, since_start, to_end))
    first[0].fill_(least**-3)
    for i in range(1, LEAF):
        first[i].mul_(first[i - 1])
        start[i].mul_(start[i - 1])
        torch.mul(end[-i], f_rows[-i], out=end[-i - 1])
    return since_first, since_start, to_end


def doublings(since_start, to_end):
    """Yield 8, 16, ... below C; after each, make the decays of blocks of so many rows those of two joined."""
    size = LEAF
    while size < since_start.shape[1]:
        yield size
        (upper, lower), (end, _) = halves(since_start, size), halves(to_end, size)
        end *= lower[:, -1:]
        lower *= upper[:, -1:]
        size *= 2


def carry(S, across, added, reverse=False):
    """S (B H, K, V), across (n, B H, K, 1) -> S before each chunk and after the last, (n + 1, B H, K, V)."""
    n = len(across)
    Ss = S.new_empty(n + 1, *S.shape)
    before, after = (Ss[1:], Ss[:-1]) if reverse else (Ss[:-1], Ss[1:])
    torch.bmm(*added, out=after.flatten(0, 1))
    Ss[-1 if reverse else 0] = S
    for i in reversed(range(n)) if reverse else range(n):
        after[i].addcmul_(across[i], before[i])
    return Ss


def attend(q, k, v, log_f, S, o_out, S_out):
    """One segment, shapes as in the loop, S None at the start: writes o (B, T, H, V) and the S after it."""
    q, k, v, f, since_first, since_start, to_end = prepare(q, k, v, log_f, S_out.dtype)
    A = torch.bmm(leaves(q * since_first), leaves(k / since_first).mT).tril_()  # (leaves, 8, 8)
    o = torch.bmm(A, leaves(v)).view_as(v)
    for size in doublings(since_start, to_end):
        lower = halves(q, size)[1] * halves(since_start, size)[1]
        upper = halves(k, size)[0] * halves(to_end, size)[0]
        halves(o, size)[1].add_(torch.bmm(torch.bmm(lower, upper.mT), halves(v, size)[0]))
    S_out, added = S_out.flatten(0, 1), ((k * to_end).mT, v)  # (B H, K, V)
    if S is None and len(q) == len(S_out):  # one chunk, and nothing before it
        torch.bmm(*added, out=S_out)
    else:
        S = torch.zeros_like(S_out) if S is None else S.flatten(0, 1).to(S_out)
        Ss = carry(S, since_start[:, -1].view(-1, len(S), f.shape[-1], 1), added)
        o += torch.bmm(q * since_start, Ss[:-1].flatten(0, 1))
        S_out.copy_(Ss[-1])
    from_chunks(o, o_out)


# Backwards, each sum is transposed. The gradient of the gates needs no sum of its own: log f_t is in every
# D_ij with i >= t > j, and a pair's share of the loss grows by q_i dq_i = k_j dk_j as log D_ij does. So
# dlog_f_t is the sum of q_i dq_i over rows i >= t less that of k_j dk_j over rows j >= t, which takes away
# the pairs that lie wholly behind t. Pairs with i = j know no gate: they are left out, or their rounding
# would drown the gradient of gates near 0.


def attend_backward(q, k, v, log_f, S, do, dS, outs):
    """One segment's inputs, do and dS -> the dS before it; dq, dk, dv, dlog_f are written to outs."""
    tied = k is None
    q, k, v, f, since_first, since_start, to_end = prepare(q, k, v, log_f, S.dtype)
    do = to_chunks(do, q.shape[1], S.dtype)
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for size in doublings(since_start, to_end):
        between_halves(*(halves(x, size) for x in (q, k, v, do, since_start, to_end, dq, dk, dv)))
    dS_before, dlog_f = between_chunks(
        q, k, v, since_start, to_end, S.flatten(0, 1), do, dS.flatten(0, 1), dq, dk, dv
    )
    inside_leaves(*(leaves(x) for x in (q, k, v, f, since_first, do, dq, dk, dv, dlog_f)))
    if tied:
        dlog_f.addcmul_(f, dk.sum_to_size(f.shape), value=-1)
    for x, out in zip((dq, dk, dv, dlog_f), outs):
        if out is not None:
            from_chunks(x, out)
    return dS_before.view_as(dS)


def between_halves(q, k, v, do, since_start, to_end, dq, dk, dv):
    """Add what lower halves (1) owe to upper ones (0), and these to them."""
    to_row, to_column = since_start[1], to_end[0]
    q, k, v, do = q[1] * to_row, k[0] * to_column, v[0], do[1]
    A, dA = torch.bmm(q, k.mT), torch.bmm(do, v.mT)
    dv[0].add_(torch.bmm(A.mT, do))
    dq[1].addcmul_(torch.bmm(dA, k), to_row)
    dk[0].addcmul_(torch.bmm(dA.mT, q), to_column)


def between_chunks(q, k, v, since_start, to_end, S, do, dS, dq, dk, dv):
    """Add what goes through the states -> the first dS, and dlog_f but for the pairs inside leaves."""
    q_start, k_end, across = q * since_start, k * to_end, since_start[:, -1]  # (n B H, C, K), (n B H, K)
    steps = across.view(-1, len(S), across.shape[-1], 1)
    S_before = carry(S, steps, (k_end.mT, v))[:-1].flatten(0, 1)  # (n B H, K, V)
    dSs = carry(dS, steps, (q_start.mT, do), reverse=True)
    dS_after = dSs[1:].flatten(0, 1)
    dv.baddbmm_(k_end, dS_after)
    dq.addcmul_(torch.bmm(do, S_before.mT), since_start)
    dk_end = torch.bmm(v, dS_after.mT).mul_(to_end)

    passed_on = k * dk_end  # from row j to the chunk's end: in the sum from t on if j < t
    passed_on[:, -1] = 0  # no gate lies between the last row and the end
    dlog_f = (q * dq).addcmul_(k, dk, value=-1).sub_(passed_on)
    dlog_f[:, -1] += passed_on.sum(1).addcmul_(across, (S_before * dS_after).sum(-1))
    dk += dk_end
    return dSs[0], suffix_sums(dlog_f.sum_to_size(since_start.shape))


def inside_leaves(q, k, v, f, since_first, do, dq, dk, dv, dlog_f):
    """Add what the rows of each leaf owe each other; all (leaves, 8, ...)."""
    q_row, k_column = q * since_first, k / since_first
    A, dA = torch.bmm(q_row, k_column.mT).tril_(), torch.bmm(do, v.mT)
    dv.add_(torch.bmm(A.mT, do))
    diagonal = dA.diagonal(dim1=1, dim2=2).unsqueeze(-1).clone()  # (leaves, 8, 1)
    dA.tril_(-1)
    dq_row, dk_column = torch.bmm(dA, k_column), torch.bmm(dA.mT, q_row)
    dq.addcmul_(dq_row, since_first).addcmul_(diagonal, k)
    dk.addcdiv_(dk_column, since_first).addcmul_(diagonal, q)
    dlog_leaf = (dq_row * q_row).addcmul_(dk_column, k_column, value=-1).sum_to_size(f.shape)
    clamped = f.clamp(min=torch.finfo(f.dtype).eps / 2)  # what since_first is made of
    dlog_f.addcmul_(suffix_sums(dlog_leaf), f / clamped).mul_(f.sign())  # f df, so 0 where f is 0


def suffix_sums(x):
    """x (blocks, rows, K) -> in each row, the sum from it to the last row of its block."""
    ones = x.new_ones(x.shape[1], x.shape[1]).triu()
    return torch.bmm(ones.expand(len(x), -1, -1), x)


def attend_in_segments(q, k, v, log_f, S0, o, S, between, _):
    """Write o, the last S, and the states between segments unless there is no room for them."""
    pieces = segments(q, v)
    S_outs = [*between, S] if len(between) else [torch.empty_like(S) for _ in pieces[1:]] + [S]
    with torch.autocast(q.device.type, enabled=False):
        for t, S_in, S_out in zip(pieces, [S0, *S_outs], S_outs):
            attend(*at(t, q, k, v, log_f), S_in, o[:, t], S_out)


def attend_in_segments_backward(q, k, v, log_f, S0, between, do, dS, grads):
    """Write the gradients of q, k, v, log_f, S0 to grads, but for those that are None there."""
    with torch.autocast(q.device.type, enabled=False):
        for t, S in reversed(list(zip(segments(q, v), [S0, *between]))):
            S = torch.zeros_like(dS) if S is None else S.to(dS)
            dS = attend_backward(*at(t, q, k, v, log_f), S, do[:, t], dS, at(t, *grads[:4]))
    if S0 is not None:
        grads[4].copy_(dS)


def segments(q, v):
    """Slices of time in which q and v (B, T, H, ...) have about SEGMENT numbers; a shorter one is first."""
    B, T, H, _ = q.shape
    most = SEGMENT if q.device.type == "cpu" else AWAY * SEGMENT
    length = max(1, most // (B * H * max(q.shape[-1], v.shape[-1]) * CHUNK)) * CHUNK
    return [slice(max(0, end - length), end) for end in reversed(range(T, 0, -length))]


def at(t, *tensors):
    """The tensors' segment t, None staying None."""
    return [None if x is None else x[:, t] for x in tensors]


@torch.library.custom_op("nanornn::gated_linear_attention", mutates_args=())
def attention(
    q: Tensor, k: Tensor | None, v: Tensor, log_f: Tensor, S0: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> o, the last S, and if asked what the gradient needs: states on the way, and in Triton all A"""
    results = attention_results(q, k, v, log_f, S0, keep)
    (triton_kernels.attend if runs_triton(q) else attend_in_segments)(q, k, v, log_f, S0, *results)
    return results


@attention.register_fake
def attention_results(q, k, v, log_f, S0, keep):
    """The results, empty."""
    (B, T, H, K), V = q.shape, v.shape[-1]
    dtype = functools.reduce(torch.promote_types, (x.dtype for x in (q, v, log_f)), torch.float32)
    if runs_triton(q):
        C, low = triton_kernels.attention_chunk(q, v), triton_kernels.in_bfloat16(q, v)
        kept = torch.bfloat16 if low else torch.float32
        states = q.new_empty(keep * B, H, -(-T // C), K, V, dtype=kept)
        A = q.new_empty(B, T, H, keep * C, dtype=kept)
    else:
        states, A = q.new_empty(keep * (len(segments(q, v)) - 1), B, H, K, V, dtype=dtype), q.new_empty(0)
    return v.new_empty(v.shape), q.new_empty(B, H, K, V, dtype=dtype), states, A


@torch.library.custom_op("nanornn::gated_linear_attention_backward", mutates_args=())
def attention_backward(
    q: Tensor, k: Tensor | None, v: Tensor, log_f: Tensor, S0: Tensor | None,
    states: Tensor, A: Tensor, do: Tensor, dS: Tensor,
) -> list[Tensor]:  # fmt: skip
    """-> the gradients of those of q, k, v, log_f, S0 that there are"""
    inputs = q, k, v, log_f, S0
    grads = [None if x is None else x.new_empty(x.shape) for x in inputs]
    if runs_triton(q):
        triton_kernels.attend_backward(*inputs, states, A, do, dS, grads)
    else:
        attend_in_segments_backward(*inputs, states, do, dS, grads)
    return [x for x in grads if x is not None]


@attention_backward.register_fake
def _(q, k, v, log_f, S0, states, A, do, dS):
    return [x.new_empty(x.shape) for x in (q, k, v, log_f, S0) if x is not None]


def keep_for_attention_backward(ctx, inputs, output):
    _, _, states, A = output
    ctx.mark_non_differentiable(states, A)
    ctx.set_materialize_grads(False)  # zeros as large as states and A
    ctx.save_for_backward(*inputs[:5], states, A)


def run_attention_backward(ctx, do, dS, *_):
    *inputs, states, A = ctx.saved_tensors
    do, dS = zeros_where_none((do, dS), attention_results(*inputs, False))
    return *where_given(inputs, attention_backward(*inputs, states, A, do, dS)), None


attention.register_autograd(run_attention_backward, setup_context=keep_for_attention_backward)


def gated_linear_attention(q, k, v, log_f, S0=None):
    """
    q, k, log_f (B, T, H, K), v (B, T, H, V), S0 (B, H, K, V), zeros if None -> o (B, T, H, V) in v's type, and the
    last S, in float32 at least. log_f are natural logarithms, at most 0; -inf closes a gate. It may also be
    (B, T, H, 1), one gate for a whole head, and k may be None, meaning 1 - f. q is not scaled.
    """
    gates = "BTHK" if log_f.shape[-1:] == q.shape[-1:] else "BTH1"
    check(q=(q, "BTHK"), k=(k, "BTHK"), v=(v, "BTHV"), log_f=(log_f, gates), S0=(S0, "BHKV"))
    if v.shape[3] > 256 and v.shape[3] % 8 and runs_triton(v):  # mLSTM's 513: unaligned rows take registers
        V, extra = v.shape[3], -v.shape[3] % 8
        S0 = None if S0 is None else F.pad(S0, (0, extra))
        o, S = gated_linear_attention(q, k, F.pad(v, (0, extra)), log_f, S0)
        return o[..., :V], S[..., :V].clone()
    with_gradient = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (q, k, v, log_f, S0)
    )
    if q.shape[1] <= ROWS_FOR_LOOP and not with_gradient:
        return few_rows(q, k, v, log_f, S0)
    o, S, *_ = attention(q, k, v, log_f, S0, with_gradient)
    return o, S


def few_rows(q, k, v, log_f, S0):
    dtype = v.dtype
    q, k, v, log_f, S0 = at_least_float32(q, k, v, log_f, S0)
    S0 = v.new_zeros(q.shape[0], *q.shape[2:], v.shape[3]) if S0 is None else S0
    k = -torch.expm1(log_f).expand_as(q) if k is None else k
    with torch.autocast(q.device.type, enabled=False):
        o, S = gated_linear_attention_loop(q, k, v, log_f, S0)
    return o.to(dtype), S


# ---------------------------------------------------------------------------------------------------
# selective scan:  h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t,   y_t = C_t^T h_t


def selective_scan_loop(x, dt, A, B, C, h0):
    """x, dt (B, T, E), A (E, N), B, C (B, T, N), h0 (B, E, N) -> every y_t (B, T, E), the last h."""
    h, y = h0, []
    for t in range(x.shape[1]):
        decay = torch.exp(dt[:, t, :, None] * A)  # (B, E, N)
        h = decay * h + (dt[:, t] * x[:, t])[:, :, None] * B[:, t, None, :]
        y.append((h * C[:, t, None, :]).sum(-1))
    return torch.stack(y, dim=1), h


# The same, a chunk of 16 steps at a time. A few large operations give all its decays and all that is added:
# only h = decay h + added is left for each step. The states of all steps would be N times as large as x: for
# the gradient those before each chunk are kept, and the others computed again. In a chunk, time comes first
# and E last, so that a step is one piece of memory, and sums over N or E are matrix products.

STEPS = 16  # of a chunk; in triton_kernels.py too
MOST_STATES = 128  # of a channel in Triton; more do not fit there
STATES = 2**19  # numbers of h that are worked on at once, so that they stay in the cache
LOG2_E = 1.4426950408889634  # exp(z) = 2^(z log2(e)), which takes a CPU half the time


def sequences(A, T, *tensors):
    """The tensors, so many sequences at a time that their states in a chunk are about STATES numbers."""
    most = STATES if A.device.type == "cpu" else AWAY * STATES
    return zip(*(x.split(max(1, most // (A.numel() * min(T, STEPS)))) for x in tensors))


def chunks(T):
    """The slices of time."""
    return [slice(t, min(t + STEPS, T)) for t in range(0, T, STEPS)]


def time_first(t, dtype, *tensors):
    """Steps t of (B, T, E) as (steps, B, 1, E)."""
    return [x[:, t].transpose(0, 1).to(dtype).contiguous().unsqueeze(2) for x in tensors]


def put(x, out, t):
    """Write (steps, B, 1, E) into steps t of (B, T, E)."""
    out[:, t] = x.squeeze(2).transpose(0, 1)


def space(x, A, more=0):
    """For the states of a chunk and `more`: (steps, B, N, E), A being (N, E)."""
    return A.new_empty(min(x.shape[1], STEPS) + more, len(x), *A.shape)


def take_steps(added, dt, A, B, decay, h):
    """From h[0], write a chunk's decays and the states after its steps -> both, cut to its length."""
    decay, h = decay[: len(dt)], h[: len(dt) + 1]
    torch.mul(dt, A * LOG2_E, out=decay).exp2_()
    torch.mul(B.mT, added, out=h[1:])
    before = h[0]
    for decay_t, h_t in zip(decay, h[1:]):
        before = h_t.addcmul_(decay_t, before)
    return decay, h


def step_through(A, x, dt, B, C, h0, y, h_last, states):
    """Some sequences: write y, the last h, and if there is room the states before each chunk (B, n, N, E)."""
    A = A.to(h_last.dtype).mT.contiguous()
    decay, h = space(x, A), space(x, A, more=1)
    h[0] = h0.mT
    for i, t in enumerate(chunks(x.shape[1])):
        x_t, dt_t, B_t, C_t = time_first(t, A.dtype, x, dt, B, C)
        _, h_t = take_steps(dt_t * x_t, dt_t, A, B_t, decay, h)
        put(C_t @ h_t[1:], y, t)
        if states.shape[1]:
            states[:, i] = h[0]
        h[0] = h_t[-1]
    h_last.copy_(h[0].mT)


# Backwards, with dh_t for all that the loss owes to h_t, and w_t for what it owes to dt_t A:
#
#     dh_t = C_t dy_t + exp(dt_{t+1} A) dh_{t+1}       w_t = dh_t exp(dt_t A) h_{t-1}
#
#     dC_t = sum over E of h_t dy_t             d(dt_t x_t) = sum over N of B_t dh_t
#     dB_t = sum over E of dh_t dt_t x_t              ddt_t = x_t d(dt_t x_t) + sum over N of A w_t
#                                                        dA = sum over B and T of dt_t w_t


def step_back(A, x, dt, B, C, states, dy, dh_last, dx, ddt, dB, dC, dh0):
    """Some sequences: write the gradients, all but that of A -> dA (E, N)."""
    A = A.to(dh_last.dtype).mT.contiguous()
    decay, h, dh = space(x, A), space(x, A, more=1), space(x, A)
    dA, carry = torch.zeros_like(A), dh_last.mT.contiguous()
    for i, t in reversed(list(enumerate(chunks(x.shape[1])))):
        x_t, dt_t, B_t, C_t, dy_t = time_first(t, A.dtype, x, dt, B, C, dy)
        added, h[0] = dt_t * x_t, states[:, i]
        decay_t, h_t = take_steps(added, dt_t, A, B_t, decay, h)
        dh_t = torch.mul(C_t.mT, dy_t, out=dh[: len(dt_t)])
        for decay_now, dh_now in zip(decay_t.unbind()[::-1], dh_t.unbind()[::-1]):
            dh_now += carry
            carry = decay_now.mul_(dh_now)  # what is owed to the state before, in the decay's place
        carry = carry.clone()

        put(dy_t @ h_t[1:].mT, dC, t)
        put(added @ dh_t.mT, dB, t)
        dadded = B_t @ dh_t
        put(dadded * dt_t, dx, t)
        w = decay_t.mul_(h_t[:-1])
        put(torch.mul(w, A, out=dh_t).sum(2, keepdim=True).addcmul_(dadded, x_t), ddt, t)
        dA += w.mul_(dt_t).sum((0, 1))
    dh0.copy_(carry.mT)
    return dA.mT


@torch.library.custom_op("nanornn::selective_scan", mutates_args=())
def selective(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """-> y, the last h, and if asked the states that the gradient needs"""
    results = selective_results(x, dt, A, B, C, h0, keep)
    if runs_triton(x) and A.shape[1] <= MOST_STATES:
        triton_kernels.selective(x, dt, A, B, C, h0, *results)
    else:
        with torch.autocast(x.device.type, enabled=False):
            for part in sequences(A, x.shape[1], x, dt, B, C, h0, *results):
                step_through(A, *part)
    return results


@selective.register_fake
def selective_results(x, dt, A, B, C, h0, keep):
    """The results, empty."""
    dtype = functools.reduce(torch.promote_types, (z.dtype for z in (x, dt, A, B, C, h0)), torch.float32)
    states = x.new_empty(len(x), keep * -(-x.shape[1] // STEPS), *A.mT.shape, dtype=dtype)
    return x.new_empty(x.shape), x.new_empty(h0.shape, dtype=dtype), states


@torch.library.custom_op("nanornn::selective_scan_backward", mutates_args=())
def selective_backward(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor, states: Tensor, dy: Tensor, dh: Tensor
) -> list[Tensor]:
    """-> the gradients of x, dt, A, B, C, h0"""
    if runs_triton(x) and A.shape[1] <= MOST_STATES:
        return triton_kernels.selective_gradients(x, dt, A, B, C, h0, states, dy, dh)
    dx, ddt, dB, dC, dh0 = (z.new_empty(z.shape) for z in (x, dt, B, C, h0))
    with torch.autocast(x.device.type, enabled=False):
        parts = sequences(A, x.shape[1], x, dt, B, C, states, dy, dh, dx, ddt, dB, dC, dh0)
        dA = sum(step_back(A, *part) for part in parts).to(A.dtype)
    return [dx, ddt, dA.contiguous(), dB, dC, dh0]


@selective_backward.register_fake
def _(x, dt, A, B, C, h0, states, dy, dh):
    return [z.new_empty(z.shape) for z in (x, dt, A, B, C, h0)]


def keep_for_selective_backward(ctx, inputs, output):
    states = output[2]
    ctx.mark_non_differentiable(states)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:6], states)


def run_selective_backward(ctx, dy, dh, _):
    *inputs, states = ctx.saved_tensors
    dy, dh = zeros_where_none((dy, dh), selective_results(*inputs, False))
    return *selective_backward(*inputs, states, dy, dh), None


selective.register_autograd(run_selective_backward, setup_context=keep_for_selective_backward)


def selective_scan(x, dt, A, B, C, h0=None):
    """
    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t, y_t = C_t^T h_t (Mamba, arXiv:2312.00752): x, dt (B, T, E), dt
    positive, A (E, N) negative, B, C (B, T, N), h0 (B, E, N), zeros if None -> y (B, T, E) in x's type, and the
    last h, in float32 at least.
    """
    check(x=(x, "BTE"), dt=(dt, "BTE"), A=(A, "EN"), B=(B, "BTN"), C=(C, "BTN"), h0=(h0, "BEN"))
    h0 = A.new_zeros(len(x), *A.shape) if h0 is None else h0
    inputs = x, dt, A, B, C, h0
    with_gradient = torch.is_grad_enabled() and any(z.requires_grad for z in inputs)
    if x.shape[1] <= ROWS_FOR_LOOP and not with_gradient:
        y, h = selective_scan_loop(*at_least_float32(*inputs))
        return y.to(x.dtype), h
    y, h, _ = selective(*inputs, with_gradient)
    return y, h
