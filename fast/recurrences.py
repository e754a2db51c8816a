"""
The recurrences of kernels.py in a few large PyTorch operations, with hand-written gradients: the form for CPUs,
and for GPUs on which Triton does not run. Results are those of the loops.

Shapes:  B batch   T time   D, E width   H heads   K, V key and value width of a head   N states of a channel
         C chunk length   n chunks
"""

from kernels import STEPS

import torch
import torch.nn.functional as F

GPU_FACTOR = 32  # times as many numbers at once as on a CPU, where starting an operation takes less time


# ---------------------------------------------------------------------------------------------------
# linear scan:  h_t = a_t h_{t-1} + b_t

# All chunks of C steps advance together. Over a chunk, h_out = p h_in + s: p is the product of its gates and s is
# what it would leave behind if it started from nothing.
#
#     1. p and s of all chunks at once: C steps, each over (B, n, D)
#     2. from chunk to chunk, every chunk's h_in: n steps over (B, D)
#     3. the recurrence itself, in all chunks at once, each from its own h_in: C steps over (B, n, D)
#
# So T = 512 takes about 16 + 32 + 16 large steps instead of 512 small ones. Nothing is divided and no
# logarithm is taken: a product of gates that underflows is 0, which is the right answer.


def chunked_scan(a, b, h0, reverse=False):
    """
    a, b (B, T, D), h0 (B, D) -> every h_t; with `reverse` time runs backwards, and h0 is the state after step T.
    """
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


def linear_gradients(a, h0, h, dh):
    """da, db, dh0, where db_t = dL/dh_t: db_t = a_{t+1} db_{t+1} + dh_t and da_t = db_t h_{t-1}."""
    a_next = F.pad(a[:, 1:], (0, 0, 0, 1))
    db = chunked_scan(a_next, dh, torch.zeros_like(h0), reverse=True)
    da = torch.empty_like(db)
    torch.mul(db[:, 0], h0, out=da[:, 0])
    torch.mul(db[:, 1:], h[:, :-1], out=da[:, 1:])
    return [da, db, a[:, 0] * db[:, 0]]


# minGRU and minLSTM are linear scans of a = sigmoid(r) and b = sigmoid(-r) g, with r = -gate or log(f / i),
# so that
#
#     dr = sigmoid(r) sigmoid(-r) (h_{t-1} - g) db,   dg = sigmoid(-r) db


def min_rnn(kind, keep, new, value):
    """The scan's inputs as in kernels.py -> sigmoid(r), sigmoid(-r), g(value)."""
    if kind == "min_gru":
        r = -new
    else:
        r = F.logsigmoid(keep) - F.logsigmoid(new)  # finite even where f and i underflow
    g = value.clamp(max=0).sigmoid_().add_(value.clamp(min=0))  # kernels.g
    return torch.sigmoid(r), torch.sigmoid(-r), g


def gate_gradients(kind, gates, made, da, db):
    """
    gates = keep, new, value; made = what min_rnn makes of them -> the gradients of those gates that are not None.
    da and db are overwritten.
    """
    keep, new, value = gates
    a, share, g = made
    dr = da.addcmul_(g, db, value=-1).mul_(a).mul_(share)
    s = value.clamp(max=0).sigmoid_()
    # The slope of g is s - s^2 below 0; from 0 upwards s is 1/2, and 3/4 more make it 1.
    slope = s.addcmul_(s, s, value=-1).add_(value.clone().ge_(0), alpha=0.75)
    dvalue = db.mul_(share).mul_(slope)
    if kind == "min_gru":
        return [dr.neg_(), dvalue]
    return [dr * torch.sigmoid(-keep), torch.sigmoid(-new).mul_(dr).neg_(), dvalue]


def scan(kind, keep, new, value, h0):
    """Every h_t, (B, T, D)."""
    if kind == "linear":
        return chunked_scan(keep, value, h0)
    a, share, g = min_rnn(kind, keep, new, value)
    return chunked_scan(a, g.mul_(share), h0)


def scan_backward(kind, inputs, h, dh):
    """The gradients of those of inputs = keep, new, value, h0 that are not None."""
    *gates, h0 = inputs
    if kind == "linear":
        return linear_gradients(gates[0], h0, h, dh)
    made = min_rnn(kind, *gates)
    da, db, dh0 = linear_gradients(made[0], h0, h, dh)
    return [*gate_gradients(kind, gates, made, da, db), dh0]


# ---------------------------------------------------------------------------------------------------
# gated linear attention:  S_t = diag(f_t) S_{t-1} + k_t v_t^T,   o_t = S_t^T q_t

# A chunk of C = 32 steps at a time, as matrix products. Let D_ij = f_{j+1} ... f_i (over K) be what is left
# in row i of something written in row j, S the state before the chunk and S' the one after it. Then
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
# Everywhere else gates are taken as they are, even 0: a product that underflows is right. No row's factors
# depend on a later gate, so the future cannot leak into the past even by rounding.

LEAF, CHUNK = 8, 32  # rows
SEGMENT = 2**17  # numbers of q (or v) that are worked on at once, so that they stay in a core's own cache


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
    """f (n B H, C, K) -> D_i0 2^72, D_i,start and D_end,j within each leaf, all (n B H, C, K)."""
    least = torch.finfo(f.dtype).eps / 2
    since_first, since_start, to_end = f.clamp(min=least), f.clone(), torch.ones_like(f)
    f_rows, first, start, end = (leaves(x).unbind(1) for x in (f, since_first, since_start, to_end))
    first[0].fill_(least**-3)
    for i in range(1, LEAF):
        first[i].mul_(first[i - 1])
        start[i].mul_(start[i - 1])
        torch.mul(end[-i], f_rows[-i], out=end[-i - 1])
    return since_first, since_start, to_end


def join_blocks(since_start, to_end, size):
    """Turn the decays within blocks of `size` rows into those within pairs of them, in place."""
    (upper, lower), (end, _) = halves(since_start, size), halves(to_end, size)
    end *= lower[:, -1:]
    lower *= upper[:, -1:]


def carry(S, across, added, reverse=False):
    """
    S (B H, K, V), across (n, B H, K, 1), added = (n B H, K, C) and (n B H, C, V), whose product each chunk adds
    -> S before each chunk and after the last, (n + 1, B H, K, V); with `reverse`, from the last to the first.
    """
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
    size = LEAF
    while size < q.shape[1]:
        lower = halves(q, size)[1] * halves(since_start, size)[1]
        upper = halves(k, size)[0] * halves(to_end, size)[0]
        halves(o, size)[1].add_(torch.bmm(torch.bmm(lower, upper.mT), halves(v, size)[0]))
        join_blocks(since_start, to_end, size)
        size *= 2
    S_out, added = S_out.flatten(0, 1), ((k * to_end).mT, v)  # (B H, K, V)
    if S is None and len(q) == len(S_out):  # one chunk, and nothing before it
        torch.bmm(*added, out=S_out)
    else:
        S = torch.zeros_like(S_out) if S is None else S.flatten(0, 1).to(S_out)
        Ss = carry(S, since_start[:, -1].view(-1, len(S), f.shape[-1], 1), added)
        o += torch.bmm(q * since_start, Ss[:-1].flatten(0, 1))
        S_out.copy_(Ss[-1])
    from_chunks(o, o_out)


# Backwards, each sum is transposed. The gradient of the gates needs no sum over pairs of its own: log f_t is in
# every D_ij with i >= t > j, and dL / dlog D_ij is q_i dq_i = k_j dk_j. So dlog_f_t is the sum of q_i dq_i over
# rows i >= t less that of k_j dk_j over rows j >= t, which removes the pairs whose rows are both from t on. Pairs
# with i = j contain no gate: they are left out, or their rounding would drown the gradient of gates near 0.


def attend_backward(q, k, v, log_f, S, do, dS, outs):
    """One segment's inputs, do and dS -> the dS before it; dq, dk, dv, dlog_f are written to outs."""
    tied = k is None
    q, k, v, f, since_first, since_start, to_end = prepare(q, k, v, log_f, S.dtype)
    do = to_chunks(do, q.shape[1], S.dtype)
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    size = LEAF
    while size < q.shape[1]:
        between_halves(*(halves(x, size) for x in (q, k, v, do, since_start, to_end, dq, dk, dv)))
        join_blocks(since_start, to_end, size)
        size *= 2
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
    """Add the gradients of what lower halves, [1] of each pair, read from upper halves, [0]."""
    to_row, to_column = since_start[1], to_end[0]
    q, k, v, do = q[1] * to_row, k[0] * to_column, v[0], do[1]
    A, dA = torch.bmm(q, k.mT), torch.bmm(do, v.mT)
    dv[0].add_(torch.bmm(A.mT, do))
    dq[1].addcmul_(torch.bmm(dA, k), to_row)
    dk[0].addcmul_(torch.bmm(dA.mT, q), to_column)


def between_chunks(q, k, v, since_start, to_end, S, do, dS, dq, dk, dv):
    """Add the gradients through the states -> dS before the first chunk, dlog_f except for pairs inside leaves."""
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
    """Add the gradients of what rows of a leaf read from each other; all (leaves, 8, ...)."""
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
    """x (blocks, rows, K) -> for each row, the sum from it to the last row of its block."""
    ones = x.new_ones(x.shape[1], x.shape[1]).triu()
    return torch.bmm(ones.expand(len(x), -1, -1), x)


def saved_by_attend(q, v, keep, dtype):
    """A tensor for the states between segments (n, B, H, K, V), of size 0 unless `keep`; and nothing for A."""
    n = len(segments(q, v)) - 1 if keep else 0
    return q.new_empty(n, len(q), *q.shape[2:], v.shape[-1], dtype=dtype), q.new_empty(0)


def attend_in_segments(q, k, v, log_f, S0, results):
    """Fill results = o, the last S and, unless of size 0, the states between segments."""
    o, S, between, _ = results
    pieces = segments(q, v)
    S_outs = [*between, S] if len(between) else [torch.empty_like(S) for _ in pieces[1:]] + [S]
    with torch.autocast(q.device.type, enabled=False):
        for t, S_in, S_out in zip(pieces, [S0, *S_outs], S_outs):
            attend(*segment(t, q, k, v, log_f), S_in, o[:, t], S_out)


def attend_in_segments_backward(inputs, saved, do, dS, gradients):
    """inputs = q, k, v, log_f, S0. Fill those of their gradients that are not None."""
    q, k, v, log_f, S0 = inputs
    between, _ = saved
    with torch.autocast(q.device.type, enabled=False):
        for t, S in reversed(list(zip(segments(q, v), [S0, *between]))):
            S = torch.zeros_like(dS) if S is None else S.to(dS)
            dS = attend_backward(*segment(t, q, k, v, log_f), S, do[:, t], dS, segment(t, *gradients[:4]))
    if S0 is not None:
        gradients[4].copy_(dS)


def segments(q, v):
    """Slices of time in which q and v (B, T, H, ...) have about SEGMENT numbers; a shorter one is first."""
    B, T, H, _ = q.shape
    most = SEGMENT if q.device.type == "cpu" else GPU_FACTOR * SEGMENT
    length = max(1, most // (B * H * max(q.shape[-1], v.shape[-1]) * CHUNK)) * CHUNK
    return [slice(max(0, end - length), end) for end in reversed(range(T, 0, -length))]


def segment(t, *tensors):
    """The tensors' segment t, None staying None."""
    return [None if x is None else x[:, t] for x in tensors]


# ---------------------------------------------------------------------------------------------------
# selective scan:  h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t,   y_t = C_t^T h_t

# A chunk of 16 steps at a time. A few large operations give all its decays and all that is added: only h =
# decay h + added is left for each step. The states of all steps would be N times as large as x: for the
# gradient those before each chunk are kept, and the others computed again. In a chunk, time comes first and E
# last, so that a step is one piece of memory, and sums over N or E are matrix products.

STATES = 2**19  # numbers of h that are worked on at once, so that they stay in the cache
LOG2_E = 1.4426950408889634  # exp(z) = 2^(z log2(e)), which takes a CPU half the time


def sequences(A, T, *tensors):
    """The tensors in groups of sequences whose states in a chunk are about STATES numbers."""
    most = STATES if A.device.type == "cpu" else GPU_FACTOR * STATES
    return zip(*(x.split(max(1, most // (A.numel() * min(T, STEPS)))) for x in tensors))


def chunks(T):
    """The slices of T steps into chunks."""
    return [slice(t, min(t + STEPS, T)) for t in range(0, T, STEPS)]


def time_first(t, dtype, *tensors):
    """Steps t of (B, T, E) as (steps, B, 1, E)."""
    return [x[:, t].transpose(0, 1).to(dtype).contiguous().unsqueeze(2) for x in tensors]


def put(x, out, t):
    """Write (steps, B, 1, E) into steps t of (B, T, E)."""
    out[:, t] = x.squeeze(2).transpose(0, 1)


def space(x, A, more=0):
    """Memory for the states of a chunk and `more` steps, (steps, B, N, E), A being (N, E)."""
    return A.new_empty(min(x.shape[1], STEPS) + more, len(x), *A.shape)


def take_steps(added, dt, A, B, decay, h):
    """
    added, dt (steps, B, 1, E), A (N, E), B (steps, B, 1, N): write a chunk's decays and, from h[0] on, the states
    after its steps, (B, N, E) each -> both, cut to its length.
    """
    decay, h = decay[: len(dt)], h[: len(dt) + 1]
    torch.mul(dt, A * LOG2_E, out=decay).exp2_()
    torch.mul(B.mT, added, out=h[1:])
    before = h[0]
    for decay_t, h_t in zip(decay, h[1:]):
        before = h_t.addcmul_(decay_t, before)
    return decay, h


def step_through(A, inputs, results):
    """Some sequences: fill results = y, the last h and, unless of size 0, states before chunks (B, n, N, E)."""
    x, dt, B, C, h0 = inputs
    y, h_last, states = results
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


# Backwards, with dh_t = dL/dh_t and w_t = dL/d(dt_t A):
#
#     dh_t = C_t dy_t + exp(dt_{t+1} A) dh_{t+1}       w_t = dh_t exp(dt_t A) h_{t-1}
#
#     dC_t = sum over E of h_t dy_t             d(dt_t x_t) = sum over N of B_t dh_t
#     dB_t = sum over E of dh_t dt_t x_t              ddt_t = x_t d(dt_t x_t) + sum over N of A w_t
#                                                        dA = sum over B and T of dt_t w_t


def step_back(A, inputs, saved, gradients):
    """Some sequences: fill gradients = dx, ddt, dB, dC, dh0 -> dA (E, N)."""
    x, dt, B, C = inputs
    states, dy, dh_last = saved
    dx, ddt, dB, dC, dh0 = gradients
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
            carry = decay_now.mul_(dh_now)  # the gradient of the state before, in the decay's place
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


def selective(inputs, results):
    """inputs = x, dt, A, B, C, h0; fill results = y, the last h and, unless of size 0, states before chunks."""
    x, dt, A, B, C, h0 = inputs
    with torch.autocast(x.device.type, enabled=False):
        for part in sequences(A, x.shape[1], x, dt, B, C, h0, *results):
            step_through(A, part[:5], part[5:])


def selective_backward(inputs, states, dy, dh):
    """The gradients of inputs = x, dt, A, B, C, h0."""
    x, dt, A, B, C, h0 = inputs
    gradients = [z.new_empty(z.shape) for z in (x, dt, B, C, h0)]
    with torch.autocast(x.device.type, enabled=False):
        parts = sequences(A, x.shape[1], x, dt, B, C, states, dy, dh, *gradients)
        dA = sum(step_back(A, part[:4], part[4:7], part[7:]) for part in parts).to(A.dtype)
    dx, ddt, dB, dC, dh0 = gradients
    return [dx, ddt, dA.contiguous(), dB, dC, dh0]


TORCH = {
    "scan": scan,
    "scan_backward": scan_backward,
    "attend": attend_in_segments,
    "saved_by_attend": saved_by_attend,
    "attend_backward": attend_in_segments_backward,
    "selective": selective,
    "selective_backward": selective_backward,
}
