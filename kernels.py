"""
The recurrences, fast, and what else every model here spends its time on.

Six chapters: the linear layer, the norm, gates, two recurrences, the loss. Each goes from slow to fast: first
what a student would write, which is the specification; then the same in a few large PyTorch operations, its
gradient by hand; last the public function that chooses. The tests hold the fast forms to the slow ones, values
and gradients, for every gate from 0 to 1.

    linear                    y_t = W x_t + b                                   every model's layers
    rms_norm                  y_t = x_t / sqrt(mean(x_t^2) + eps) * weight      before each mixer and MLP
    gated_unit                y_t = silu(gate_t) * up_t                         the MLP
    log_forget_gate           log(floor + (1 - floor) sigmoid(z_t))             HGRN2
    linear_scan               h_t = a_t h_{t-1} + b_t                           minGRU, minLSTM, Aaren
    gated_linear_attention    S_t = diag(f_t) S_{t-1} + k_t v_t^T               HGRN2, mLSTM
    linear_cross_entropy      -log softmax(W x_t)[target_t], a slice at a time  every model's last layer

Recurrences are computed in float32 at least, also under autocast: a product of many gates does not survive
bfloat16.

Shapes:  B batch   T time   D width   H heads   K, V key and value width of a head   C chunk length   n chunks
"""

import functools

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


def without_autocast(method):
    """A method of an autograd.Function whose matrix products keep the precision of their operands."""

    @functools.wraps(method)
    def run(ctx, x, *rest):
        with torch.autocast(x.device.type, enabled=False):
            return method(ctx, x, *rest)

    return run


def at_least_float32(*tensors):
    """The tensors in the widest of their types, and in float32 at least."""
    wide = functools.reduce(torch.promote_types, (x.dtype for x in tensors if x is not None), torch.float32)
    return [None if x is None else x.to(wide) for x in tensors]


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
        _, f = forget_gate(z, floor)
        return f.clamp_(min=1e-37).log_()

    @staticmethod
    @once_differentiable
    def backward(ctx, dlog_f):
        z, floor = ctx.saved_tensors
        s, f = forget_gate(z, floor)
        df = dlog_f / f.clamp_(min=1e-37)
        dfloor = (df * (1 - s)).flatten(0, -2).sum(0)
        return torch.ops.aten.sigmoid_backward(df, s).mul_(1 - floor).to(z.dtype), dfloor


def forget_gate(z, floor):
    """-> s = sigmoid(z), and floor + (1 - floor) s, both in the type of floor."""
    s = torch.sigmoid(z.to(floor.dtype))
    return s, (s * (1 - floor)).add_(floor)


def log_forget_gate(z, floor):
    """
    log(floor + (1 - floor) sigmoid(z)): z (..., D), floor (D,), at least 0 and below 1 -> (..., D), in float32 at
    least: in bfloat16, 1 - f would be 0 or 1/256 and nothing between. At least log 1e-37, so that it is a number.
    """
    floor = floor.to(torch.promote_types(torch.promote_types(z.dtype, floor.dtype), torch.float32))
    return LogForgetGate.apply(z, floor)


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
    return hs.flatten(1, 2)[:, :T]


class LinearScan(torch.autograd.Function):
    """The gradient of a linear scan is a linear scan run backwards, so one function serves both."""

    @staticmethod
    def forward(ctx, a, b, h0):
        h = chunked_scan(a, b, h0)
        ctx.save_for_backward(a, h, h0)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx, dh):
        a, h, h0 = ctx.saved_tensors
        a_next = F.pad(a[:, 1:], (0, 0, 0, 1))
        db = chunked_scan(a_next, dh, torch.zeros_like(h0), reverse=True)  # db_t = a_{t+1} db_{t+1} + dh_t
        da = torch.empty_like(db)
        torch.mul(db[:, 0], h0, out=da[:, 0])
        torch.mul(db[:, 1:], h[:, :-1], out=da[:, 1:])
        return da, db, a[:, 0] * db[:, 0]


# Third place: the Triton form.


def linear_scan(a, b, h0=None):
    """a, b (B, T, D), h0 (B, D) -> every h_t = a_t h_{t-1} + b_t, (B, T, D), in b's type."""
    dtype = b.dtype
    a, b, h0 = at_least_float32(a, b, h0)
    h0 = torch.zeros_like(b[:, 0]) if h0 is None else h0
    return LinearScan.apply(a, b, h0).to(dtype)


def min_gru(gate, candidate, h0=None):
    """z = sigmoid(gate), h_t = (1 - z) h_{t-1} + z g(candidate): projections (B, T, D) -> every h_t."""
    dtype = candidate.dtype
    gate, candidate, h0 = at_least_float32(gate, candidate, h0)
    z, keep = torch.sigmoid(gate), torch.sigmoid(-gate)
    return linear_scan(keep, z * positive(candidate), h0).to(dtype)


def min_lstm(forget, input, candidate, h0=None):
    """f, i = sigmoid(forget, input), h_t = (f h_{t-1} + i g(candidate)) / (f + i): likewise."""
    dtype = candidate.dtype
    forget, input, candidate, h0 = at_least_float32(forget, input, candidate, h0)
    ratio = F.logsigmoid(forget) - F.logsigmoid(input)  # log(f / i): finite also where f and i underflow
    f, i = torch.sigmoid(ratio), torch.sigmoid(-ratio)
    return linear_scan(f, i * positive(candidate), h0).to(dtype)


def positive(x):
    """g of the paper: x + 0.5 from 0 upwards, sigmoid(x) below; continuous, and never negative."""
    return torch.where(x >= 0, x + 0.5, torch.sigmoid(x))


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
ROWS_FOR_LOOP = 4  # up to here the loop is faster


def chunk_length(T):
    """The longest chunk that pads T rows by an eighth at most, or by no more than a leaf does."""
    return next(C for C in (CHUNK, CHUNK // 2, LEAF) if -T % C <= max(T // 8, -T % LEAF))


def to_chunks(x, C):
    """(B, T, H, K) -> (n B H, C, K). Rows of zeros come in front: they forget nothing and add nothing."""
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


def prepare(q, k, v, log_f):
    """(B, T, H, ...) -> q, k, v, f (n B H, C, ...), k = 1 - f where it is None, and leaf_decays(f)."""
    C = chunk_length(q.shape[1])
    q, v, log_f = (to_chunks(x, C) for x in (q, v, log_f))
    k = torch.expm1(log_f).neg_().expand_as(q) if k is None else to_chunks(k, C)
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


def attend(q, k, v, log_f, S, out):
    """One segment, shapes as in the loop, S None at the start -> the S after it; o goes to out (B, T, H, V)."""
    q, k, v, f, since_first, since_start, to_end = prepare(q, k, v, log_f)
    A = torch.bmm(leaves(q * since_first), leaves(k / since_first).mT).tril_()  # (leaves, 8, 8)
    o = torch.bmm(A, leaves(v)).view_as(v)
    for size in doublings(since_start, to_end):
        lower = halves(q, size)[1] * halves(since_start, size)[1]
        upper = halves(k, size)[0] * halves(to_end, size)[0]
        halves(o, size)[1].add_(torch.bmm(torch.bmm(lower, upper.mT), halves(v, size)[0]))
    B, _, H, V = out.shape
    added = (k * to_end).mT, v
    if S is None and len(q) == B * H:  # one chunk, and nothing before it
        S = torch.bmm(*added)
    else:
        S = q.new_zeros(B * H, q.shape[-1], V) if S is None else S.flatten(0, 1)
        Ss = carry(S, since_start[:, -1].view(-1, B * H, f.shape[-1], 1), added)
        o += torch.bmm(q * since_start, Ss[:-1].flatten(0, 1))
        S = Ss[-1].clone()
    from_chunks(o, out)
    return S.unflatten(0, (B, H))


# Backwards, each sum is transposed. The gradient of the gates needs no sum of its own: log f_t is in every
# D_ij with i >= t > j, and a pair's share of the loss grows by q_i dq_i = k_j dk_j as log D_ij does. So
# dlog_f_t is the sum of q_i dq_i over rows i >= t less that of k_j dk_j over rows j >= t, which takes away
# the pairs that lie wholly behind t. Pairs with i = j know no gate: they are left out, or their rounding
# would drown the gradient of gates near 0.


def attend_backward(q, k, v, log_f, S, do, dS, outs):
    """One segment's inputs, do and dS -> the dS before it; dq, dk, dv, dlog_f are written to outs."""
    tied = k is None
    q, k, v, f, since_first, since_start, to_end = prepare(q, k, v, log_f)
    do = to_chunks(do, q.shape[1])
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


class ChunkedAttention(torch.autograd.Function):
    """Segment after segment. Keeps inputs and the states between segments, and computes the rest again."""

    @staticmethod
    @without_autocast
    def forward(ctx, q, k, v, log_f, S):
        o, Ss = torch.empty_like(v, memory_format=torch.contiguous_format), [S]
        for t in segments(q, v):
            Ss.append(attend(*at(t, q, k, v, log_f), Ss[-1], o[:, t]))
        ctx.save_for_backward(q, k, v, log_f, *Ss[:-1])
        return o, Ss[-1]

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx, do, dS):
        *inputs, grads = *ctx.saved_tensors[:4], []
        S0 = ctx.saved_tensors[4]
        for x in inputs:
            grads.append(None if x is None else torch.empty_like(x, memory_format=torch.contiguous_format))
        for t, S in reversed(list(zip(segments(inputs[0], inputs[2]), ctx.saved_tensors[4:]))):
            S = torch.zeros_like(dS) if S is None else S
            dS = attend_backward(*at(t, *inputs), S, do[:, t], dS, at(t, *grads))
        return *grads, None if S0 is None else dS


def segments(q, v):
    """Slices of time in which q and v (B, T, H, ...) have about SEGMENT numbers; a shorter one is first."""
    B, T, H, _ = q.shape
    length = max(1, SEGMENT // (B * H * max(q.shape[-1], v.shape[-1]) * CHUNK)) * CHUNK
    return [slice(max(0, end - length), end) for end in reversed(range(T, 0, -length))]


def at(t, *tensors):
    """The tensors' segment t, None staying None."""
    return [None if x is None else x[:, t] for x in tensors]


# Third place: the Triton form.


def gated_linear_attention(q, k, v, log_f, S0=None):
    """
    q, k, log_f (B, T, H, K), v (B, T, H, V), S0 (B, H, K, V) -> o (B, T, H, V) in v's type, and the last S.
    log_f may also be (B, T, H, 1), one gate for a whole head, and k may be None, meaning 1 - f.
    """
    dtype = v.dtype
    q, k, v, log_f, S0 = at_least_float32(q, k, v, log_f, S0)
    if q.shape[1] <= ROWS_FOR_LOOP and not torch.is_grad_enabled():
        S0 = v.new_zeros(q.shape[0], *q.shape[2:], v.shape[3]) if S0 is None else S0
        k = -torch.expm1(log_f).expand_as(q) if k is None else k
        with torch.autocast(q.device.type, enabled=False):
            o, S = gated_linear_attention_loop(q, k, v, log_f, S0)
    else:
        o, S = ChunkedAttention.apply(q, k, v, log_f, S0)
    return o.to(dtype), S


# ---------------------------------------------------------------------------------------------------
# output layer and its loss:  the mean over t of  -log p(target_t),  p = softmax(W x_t)


def linear_cross_entropy_reference(x, weight, targets):
    """x (..., D), weight (V, D), targets (...) -> the mean over targets that are not -100; 0 if all are."""
    losses = F.cross_entropy((x @ weight.T).float().flatten(0, -2), targets.flatten(), reduction="sum")
    return losses / (targets != -100).sum().clamp(min=1)


# The same, a slice of tokens at a time, so that their logits, the largest tensor of any language model, are
# never held whole. The loss needs one number of each row; its gradient with respect to the logits is p -
# onehot(target). So the slice that has just been made is turned into its gradient on the spot and
# multiplied into dx and dW, which are kept in its stead: no logit is computed twice.

SLICE = 256  # tokens


class LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, targets, dtype, with_gradient):
        """x (N, D), weight (V, D), targets (N,); matrix products in dtype, the rest in float32 at least"""
        with torch.autocast(x.device.type, enabled=False):
            loss, dx, dweight = sliced_cross_entropy(x, weight, targets, dtype, with_gradient)
        count = (targets != -100).sum().clamp(min=1)
        ctx.save_for_backward(dx, dweight, count)
        return loss / count

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss):
        dx, dweight, count = ctx.saved_tensors
        return dx * (dloss / count), dweight * (dloss / count), None, None, None


def sliced_cross_entropy(x, weight, targets, dtype, with_gradient):
    """-> the summed loss, and its gradients dx (N, D) and dweight (V, D), or None twice"""
    wide = torch.promote_types(x.dtype, torch.float32)
    real = (targets != -100).unsqueeze(-1)  # (N, 1)
    targets = targets.unsqueeze(-1).where(real, 0)
    loss = x.new_zeros((), dtype=wide)
    dx, dweight = (
        (torch.empty_like(x), torch.zeros_like(weight, dtype=wide)) if with_gradient else (None, None)
    )
    x_low, weight_low = x.to(dtype), weight.to(dtype)
    # float16 would lose small p - onehot here, before the factor of a gradient scaler has come
    x_back, weight_back = (x.to(wide), weight.to(wide)) if dtype == torch.float16 else (x_low, weight_low)
    minus_one = loss.new_tensor(-1.0)
    for start in range(0, len(x), SLICE):
        rows = slice(start, start + SLICE)
        log_p = F.log_softmax(product(x_low[rows], weight_low), dim=-1, dtype=wide)  # (slice, V)
        loss -= (log_p.gather(1, targets[rows]) * real[rows]).sum()
        if with_gradient:
            dlogits = log_p.exp_().scatter_add_(1, targets[rows], minus_one.expand_as(targets[rows]))
            dlogits = dlogits.to(x_back.dtype)
            dx[rows] = product(dlogits, weight_back.T) * real[rows]
            dweight += product(dlogits.T, (x_back[rows] * real[rows]).T)
    return loss, dx, dweight


def linear_cross_entropy(x, weight, targets):
    """x (..., D), weight (V, D), targets (...), -100 where there is none -> the mean loss, in float32."""
    with_gradient = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    autocast = torch.is_autocast_enabled(x.device.type)
    dtype = (
        torch.get_autocast_dtype(x.device.type) if autocast else torch.promote_types(x.dtype, weight.dtype)
    )
    return LinearCrossEntropy.apply(x.flatten(0, -2), weight, targets.flatten(), dtype, with_gradient)


@torch.no_grad()
def token_losses(x, weight, targets):
    """x (N, D), weight (V, D), targets (N,) -> -log p(target) of each (N,), in float32 at least: to evaluate."""
    slices = zip(x.split(SLICE), targets.split(SLICE))
    logits = ((at_least_float32(linear(x, weight))[0], targets) for x, targets in slices)
    return torch.cat([F.cross_entropy(*pair, reduction="none") for pair in logits])


def keep_out_of_the_compiler():
    """
    Call before torch.compile: it then takes what is around these three and leaves them as they are. Unrolled,
    their many small steps would take minutes to compile and run no faster. (No decorator, since the compiler
    takes a second to import.)
    """
    for function in (LinearScan, ChunkedAttention, LinearCrossEntropy):
        function.apply = torch.compiler.disable(function.apply)
