"""
The recurrences, fast: what every model here spends its time on.

Three chapters: two recurrences and the loss. Each goes from slow to fast: first the loop that a student would write,
which is the specification; then the same in a few large PyTorch operations, with its gradient by hand; last the public
function that chooses. The tests hold the fast forms to the loops, values and gradients, for every gate from 0 to 1.

    linear_scan               h_t = a_t h_{t-1} + b_t                           minGRU, minLSTM, Aaren
    gated_linear_attention    S_t = diag(f_t) S_{t-1} + k_t v_t^T               HGRN2, mLSTM
    linear_cross_entropy      -log softmax(W x_t)[target_t], a slice at a time  every model's last layer

Recurrences are computed in float32 at least, also under autocast: a product of many gates does not survive bfloat16.

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
# linear scan:  h_t = a_t h_{t-1} + b_t


def linear_scan_loop(a, b, h0):
    """a, b (B, T, D), h0 (B, D) -> every h_t (B, T, D)."""
    h, hs = h0, []
    for t in range(a.shape[1]):
        h = a[:, t] * h + b[:, t]
        hs.append(h)
    return torch.stack(hs, dim=1)


# The same, all chunks of C steps at a time. Over a chunk, h_out = p h_in + s: p is the product of its gates and s is
# what it would leave behind if it started from nothing.
#
#     1. p and s of all chunks at once: C steps, each over (B, n, D)
#     2. from chunk to chunk, every chunk's h_in: n steps over (B, D)
#     3. the recurrence itself, in all chunks at once, each from its own h_in: C steps over (B, n, D)
#
# So T = 512 takes about 16 + 32 + 16 large steps instead of 512 small ones. Nothing is divided and no logarithm is
# taken: a product of gates that underflows is 0, which is the right answer.


def chunked_scan(a, b, h0, reverse=False):
    """linear_scan_loop's h; with `reverse`, from the last step to the first, h0 being what comes after the last."""
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
    """z = sigmoid(gate), h_t = (1 - z) h_{t-1} + z g(candidate): raw projections (B, T, D) -> every h_t (B, T, D)."""
    dtype = candidate.dtype
    gate, candidate, h0 = at_least_float32(gate, candidate, h0)
    z, keep = torch.sigmoid(gate), torch.sigmoid(-gate)
    return linear_scan(keep, z * positive(candidate), h0).to(dtype)


def min_lstm(forget, input, candidate, h0=None):
    """f, i = sigmoid of forget, input; h_t = (f h_{t-1} + i g(candidate)) / (f + i): (B, T, D) -> every h_t (B, T, D)."""
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
    """q, k, log_f (B, T, H, K), v (B, T, H, V), S0 (B, H, K, V) -> every o_t (B, T, H, V), the last S (B, H, K, V)."""
    f, S, o = log_f.exp(), S0, []
    for t in range(q.shape[1]):
        S = f[:, t, :, :, None] * S + k[:, t, :, :, None] * v[:, t, :, None, :]
        o.append((q[:, t, :, None, :] @ S).squeeze(-2))
    return torch.stack(o, dim=1), S


# The same, C = 32 steps at a time, as matrix products. Let D_ij = f_{j+1} ... f_i be what the gates leave at row i of
# something written at row j (a vector over K), S the state before the chunk, S' the one after it. Then
#
#     o_i = S^T (q_i D_i,start)  +  sum over j <= i of  A_ij v_j        with  A_ij = sum over K of  q_i D_ij k_j
#     S'  = diag(D_end,start) S  +  sum over j of  (k_j D_end,j) v_j^T
#
# A is no product of a matrix for rows with one for columns until D_ij is cut in two. Where a boundary b lies between j
# and i, D_ij = D_ib D_bj: two products of gates, both at most 1. So A is made of squares: halve the chunk, and the
# lower left quarter crosses the middle; halve the halves; and so on down to leaves of 8 rows.
#
#     leaf                    Inside a leaf there is no boundary to use, so D_ij = D_i0 / D_j0, both relative to its
#     x leaf                  first row. With f at least 2^-24 (less is nothing to float32, beside a 1) seven factors
#     x x leaf                are at least 2^-168. Started at 2^72 instead of 1, which rounds nothing and cancels, every
#     x x x leaf              factor stays within 2^-96 ... 2^96: nothing that is kept can overflow.
#
# No row's factors depend on a later gate, so that the future cannot leak into the past even by rounding. The gradient is
# the same sums transposed. That of log f is gathered from q dq and k dk: raising log f_t raises D_ij for all i >= t > j,
# so it is the sum from t to the chunk's end of (q dq - k dk), without the pairs i = j, which know no gate.

LEAF, CHUNK = 8, 32  # rows
SEGMENT = 2**17  # numbers per tensor that are worked on at once: about what a CPU core's own cache holds


def chunk_length(T):
    """The longest chunk that pads T rows by an eighth at most, or else a leaf."""
    return next((C for C in (CHUNK, CHUNK // 2) if -T % C <= T // 8), LEAF)


def segments(q, v):
    """Cut the time of (B, T, H, K) into slices; a shorter one comes first."""
    B, T, H, _ = q.shape
    length = max(1, SEGMENT // (B * H * max(q.shape[-1], v.shape[-1]) * CHUNK)) * CHUNK
    ends = range(T, 0, -length)
    return [slice(max(0, end - length), end) for end in reversed(ends)]


def to_chunks(x, C):
    """(B, T, H, K) -> (n B H, C, K). Rows of zeros are added in front: they forget nothing and add nothing."""
    x = F.pad(x, (0, 0, 0, 0, -x.shape[1] % C, 0)) if x.shape[1] % C else x
    return x.unflatten(1, (-1, C)).permute(1, 0, 3, 2, 4).flatten(0, 2)


def from_chunks(x, out):
    """Write (n B H, C, K) into out (B, T, H, K), without the rows that were added in front."""
    B, T, H, _ = out.shape
    C = x.shape[1]
    x = x.unflatten(0, (-1, B, H)).permute(1, 0, 3, 2, 4)  # (B, n, C, H, K)
    if T % C:
        out.copy_(x.flatten(1, 2)[:, -T:])
    else:
        out.unflatten(1, (-1, C)).copy_(x)


def leaves(x):
    """(n B H, C, K) -> (leaves, 8, K)"""
    return x.view(-1, LEAF, x.shape[-1])


def halves(x, size):
    """(n B H, C, K) -> the upper and the lower halves of all blocks of 2 size rows, each (blocks, size, K)"""
    return x.view(-1, 2, size, x.shape[-1]).unbind(1)


def leaf_decays(f):
    """f (n B H, C, K) -> three products of gates inside each leaf: from its first row (shifted), start, to its end."""
    least = torch.finfo(f.dtype).eps / 2
    shifted, since_start, to_end = f.clamp(min=least), f.clone(), torch.ones_like(f)
    rows, ps, qs, rs = (leaves(x).unbind(1) for x in (f, shifted, since_start, to_end))
    ps[0].fill_(least**-3)
    for i in range(1, LEAF):
        ps[i].mul_(ps[i - 1])
        qs[i].mul_(qs[i - 1])
        torch.mul(rs[-i], rows[-i], out=rs[-i - 1])
    return shifted, since_start, to_end


def levels(since_start, to_end):
    """Yield the sizes 8, 16, ... below C, and after each make the decays those of blocks twice as long."""
    size = LEAF
    while size < since_start.shape[1]:
        yield size
        (upper, lower), (end, _) = halves(since_start, size), halves(to_end, size)
        end *= lower[:, -1:]
        lower *= upper[:, -1:]
        size *= 2


def chunk_states(k_end, v, across, S):
    """S (B, H, K, V) before the first chunk -> before every chunk, and after the last (n + 1, B H, K, V)"""
    S = S.flatten(0, 1)
    Ss = S.new_empty(len(v) // len(S) + 1, *S.shape)
    torch.bmm(k_end.mT, v, out=Ss[1:].flatten(0, 1))
    Ss[0] = S
    for before, after, decay in zip(Ss[:-1], Ss[1:], across.view(len(Ss) - 1, len(S), -1, 1)):
        after.addcmul_(decay, before)
    return Ss


def attend(q, k, v, log_f, S, out):
    """One segment, q, k, log_f (B, T, H, K), v (B, T, H, V), S (B, H, K, V) -> o (B, T, H, V), S (B, H, K, V)"""
    q, k, v, f = chunked(q, k, v, log_f)
    shifted, since_start, to_end = leaf_decays(f)
    A = torch.bmm(leaves(q * shifted), leaves(k / shifted).mT).tril_()
    o = torch.bmm(A, leaves(v)).view_as(v)
    for size in levels(since_start, to_end):
        lower, upper = halves(q * since_start, size)[1], halves(k * to_end, size)[0]
        A = torch.bmm(lower, upper.mT)
        halves(o, size)[1].add_(torch.bmm(A, halves(v, size)[0]))
    Ss = chunk_states(k * to_end, v, since_start[:, -1], S)
    o += torch.bmm(q * since_start, Ss[:-1].flatten(0, 1))
    from_chunks(o, out)
    return Ss[-1].view_as(S)


def chunked(q, k, v, log_f):
    """(B, T, H, ...) -> q, k, v, f (n B H, C, ...), with k = 1 - f where it is None"""
    C = chunk_length(q.shape[1])
    q, v, log_f = (to_chunks(x, C) for x in (q, v, log_f))
    k = to_chunks(k, C) if k is not None else torch.expm1(log_f).neg_().expand_as(q)
    return q, k, v, log_f.exp()


def attend_backward(q, k, v, log_f, S, do, dS, outs):
    """One segment's inputs and the gradients of its results -> dq, dk, dv, dlog_f, dS"""
    tied, C = k is None, chunk_length(q.shape[1])
    q, k, v, f = chunked(q, k, v, log_f)
    do = to_chunks(do, C)
    shifted, since_start, to_end = leaf_decays(f)
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for size in levels(since_start, to_end):
        between_halves(size, *(halves(x, size) for x in (q, k, v, do, since_start, to_end, dq, dk, dv)))

    q_start, k_end, across = q * since_start, k * to_end, since_start[:, -1]
    Ss = chunk_states(k_end, v, across, S)
    n = len(Ss) - 1
    dSs = torch.empty_like(Ss)
    torch.bmm(q_start.mT, do, out=dSs[:-1].flatten(0, 1))
    dSs[-1] = dS.flatten(0, 1)
    for i in reversed(range(n)):
        dSs[i].addcmul_(across.view(n, len(dSs[i]), -1, 1)[i], dSs[i + 1])
    S_before, dS_after = Ss[:-1].flatten(0, 1), dSs[1:].flatten(0, 1)
    dv.baddbmm_(k_end, dS_after)
    dq.addcmul_(torch.bmm(do, S_before.mT), since_start)
    dk_end = torch.bmm(v, dS_after.mT).mul_(to_end)
    # gates
    kept = k * dk_end
    kept[:, -1] = 0
    dlog_f = torch.mul(q, dq).addcmul_(k, dk, value=-1).sub_(kept)
    dlog_f[:, -1] += kept.sum(1).addcmul_(across, (S_before * dS_after).sum(-1))
    dlog_f = suffix_sums_(dlog_f.sum_to_size(f.shape))
    dk += dk_end
    inside_leaves(f, shifted, *(leaves(x) for x in (q, k, v, do, dq, dk, dv, dlog_f)))
    if tied:
        dlog_f.addcmul_(f, dk.sum_to_size(f.shape), value=-1)
    for x, out in zip((dq, dk, dv, dlog_f), outs):
        if out is not None:
            from_chunks(x, out)
    return dSs[0].view_as(dS)


def between_halves(size, q, k, v, do, since_start, to_end, dq, dk, dv):
    """Add the gradients that cross the middle of each block."""
    to_row, to_column = since_start[1], to_end[0]
    q, k, v, do = q[1] * to_row, k[0] * to_column, v[0], do[1]
    A, dA = torch.bmm(q, k.mT), torch.bmm(do, v.mT)
    dv[0].add_(torch.bmm(A.mT, do))
    dq[1].addcmul_(torch.bmm(dA, k), to_row)
    dk[0].addcmul_(torch.bmm(dA.mT, q), to_column)


def inside_leaves(f, shifted, q, k, v, do, dq, dk, dv, dlog_f):
    f, shifted = leaves(f), leaves(shifted)
    q_row, k_col = q * shifted, k / shifted
    A, dA = torch.bmm(q_row, k_col.mT).tril_(), torch.bmm(do, v.mT)
    dv.add_(torch.bmm(A.mT, do))
    self = dA.diagonal(dim1=1, dim2=2).unsqueeze(-1).clone()
    dA.tril_(-1)
    dq_row, dk_col = torch.bmm(dA, k_col), torch.bmm(dA.mT, q_row)
    dq.addcmul_(dq_row, shifted).addcmul_(self, k)
    dk.addcdiv_(dk_col, shifted).addcmul_(self, q)
    gates = dq_row.mul_(q_row).addcmul_(dk_col, k_col, value=-1)
    gates = suffix_sums_(gates.sum_to_size(f.shape))
    dlog_f.addcmul_(gates, f / f.clamp(min=torch.finfo(f.dtype).eps / 2))
    dlog_f.masked_fill_(f == 0, 0)


def suffix_sums_(x):
    """x (blocks, rows, K) -> the sum from each row to the last, in place"""
    rows = x.unbind(1)
    for i in reversed(range(len(rows) - 1)):
        rows[i].add_(rows[i + 1])
    return x


class ChunkedAttention(torch.autograd.Function):
    """Keeps its inputs and a few states only: all the rest is computed again backwards."""

    @staticmethod
    @without_autocast
    def forward(ctx, q, k, v, log_f, S):
        o, Ss = torch.empty_like(v), [S]
        for t in segments(q, v):
            S = attend(*(x if x is None else x[:, t] for x in (q, k, v, log_f)), S, o[:, t])
            Ss.append(S)
        ctx.save_for_backward(q, k, v, log_f, *Ss[:-1])
        return o, S.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, do, dS):
        with torch.autocast(do.device.type, enabled=False):
            return attention_gradients(do, dS, *ctx.saved_tensors)


def attention_gradients(do, dS, q, k, v, log_f, *Ss):
    inputs = q, k, v, log_f
    grads = [x if x is None else torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs]
    for t, S in reversed(list(zip(segments(q, v), Ss))):
        at_t = ([x if x is None else x[:, t] for x in xs] for xs in (inputs, grads))
        dS = attend_backward(*next(at_t), S, do[:, t], dS, next(at_t))
    return *grads, dS


# Third place: the Triton form.


def gated_linear_attention(q, k, v, log_f, S0=None):
    """
    q, k, log_f (B, T, H, K), v (B, T, H, V), S0 (B, H, K, V) -> o (B, T, H, V) in v's type, the last S (B, H, K, V).
    log_f may also be (B, T, H, 1), one gate for a whole head; k may be None, meaning 1 - f.
    """
    dtype = v.dtype
    q, k, v, log_f, S0 = at_least_float32(q, k, v, log_f, S0)
    S0 = v.new_zeros(q.shape[0], *q.shape[2:], v.shape[3]) if S0 is None else S0
    if q.shape[1] < LEAF and not torch.is_grad_enabled():
        k = -torch.expm1(log_f).expand_as(q) if k is None else k
        o, S = gated_linear_attention_loop(q, k, v, log_f, S0)
    else:
        o, S = ChunkedAttention.apply(q, k, v, log_f, S0)
    return o.to(dtype), S


# ---------------------------------------------------------------------------------------------------
# output layer and its loss:  the mean over t of  -log p(target_t),  p = softmax(W x_t)


def linear_cross_entropy_reference(x, weight, targets):
    """x (..., D), weight (V, D), targets (...) -> the mean over the targets that are not -100, and 0 if all are."""
    losses = F.cross_entropy((x @ weight.T).float().flatten(0, -2), targets.flatten(), reduction="sum")
    return losses / (targets != -100).sum().clamp(min=1)


# The same, a slice of tokens at a time, so that their logits, the largest tensor of any language model, are never held
# whole. The loss needs one number of each row; its gradient with respect to the logits is p - onehot(target). So the
# slice that has just been made is turned into its gradient on the spot and multiplied into dx and dW, which are kept in
# its stead: no logit is computed twice.

SLICE = 256  # tokens


class LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, targets, dtype, with_gradient):
        """x (N, D), weight (V, D), targets (N,); products of matrices in `dtype`, the rest in float32 at least"""
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
    dx, dweight = (torch.empty_like(x), torch.zeros_like(weight, dtype=wide)) if with_gradient else (None, None)
    x_low, weight_low = x.to(dtype), weight.to(dtype)
    for start in range(0, len(x), SLICE):
        rows = slice(start, start + SLICE)
        log_p = F.log_softmax(x_low[rows] @ weight_low.T, dim=-1, dtype=wide)  # (slice, V)
        loss -= (log_p.gather(1, targets[rows]) * real[rows]).sum()
        if with_gradient:
            dlogits = log_p.exp_().scatter_add_(1, targets[rows], log_p.new_full((1, 1), -1.0).expand_as(targets[rows]))
            dlogits = dlogits.to(dtype)
            dx[rows] = (dlogits @ weight_low) * real[rows]
            dweight += dlogits.T @ (x_low[rows] * real[rows])
    return loss, dx, dweight


def linear_cross_entropy(x, weight, targets):
    """x (..., D), weight (V, D), targets (...), -100 where there is none -> the mean loss, in float32 at least."""
    with_gradient = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    autocast = torch.is_autocast_enabled(x.device.type)
    dtype = torch.get_autocast_dtype(x.device.type) if autocast else torch.promote_types(x.dtype, weight.dtype)
    return LinearCrossEntropy.apply(x.flatten(0, -2), weight, targets.flatten(), dtype, with_gradient)
