"""The fast forms are the loops: the same values, the same gradients, for every gate from 0 to 1."""

import functools
import itertools

import kernels
from fast import operators, recurrences

import pytest
import torch
import torch.nn.functional as F

INF = float("inf")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}

GATES = {  # name: random numbers, uniform numbers -> log f
    "at initialisation": lambda x, u: F.logsigmoid(x),
    "near 1": lambda x, u: F.logsigmoid(x + 6),
    "saturated at 1": lambda x, u: torch.zeros_like(x),
    "near 0": lambda x, u: F.logsigmoid(x - 6),
    "all 1e-4": lambda x, u: torch.full_like(x, -9.2),
    "all 1e-8": lambda x, u: torch.full_like(x, -18.4),
    "wide": lambda x, u: F.logsigmoid(8 * x),
    "a hard reset now and then": lambda x, u: torch.where(u < 0.05, -INF, F.logsigmoid(x + 4)),
    "a hard reset at each step": lambda x, u: torch.full_like(x, -INF),
    "of all kinds": lambda x, u: torch.where(u < 0.1, -INF, torch.where(u < 0.3, 0.0, -16 * (u - 0.3) ** 2)),
}


def log_gates(kind, *shape):
    return GATES[kind](torch.randn(shape), torch.rand(shape))


def attention_inputs(B, T, H, K, V, kind="at initialisation", gates=None):
    """q, k, v, log_f, S0, in float32"""
    q, k, v, S0 = (torch.randn(shape) for shape in ((B, T, H, K), (B, T, H, K), (B, T, H, V), (B, H, K, V)))
    return [q, k, v, log_gates(kind, B, T, H, gates or K), S0]


def values_and_gradients(f, inputs, dtype):
    """Every result of f, then the gradient of every input; no two elements of the results weigh the same."""
    inputs = [x.detach().to(dtype, copy=True).requires_grad_() for x in inputs]
    results = f(*inputs)
    results = results if isinstance(results, tuple) else (results,)
    generator = torch.Generator(torch.get_default_device()).manual_seed(1)
    weights = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(dtype) for y in results]
    gradients = torch.autograd.grad(results, inputs, weights)
    return [x.detach() for x in (*results, *gradients)]


def assert_same(fast, loop, inputs, dtype=torch.float32):
    """All that `fast` gives in `dtype` is what `loop` gives in float64, elementwise and as a whole."""
    ours, exact = values_and_gradients(fast, inputs, dtype), values_and_gradients(loop, inputs, torch.float64)
    for i, (x, y) in enumerate(zip(ours, exact, strict=True)):
        name = f"number {i} of results and gradients"
        assert x.dtype == dtype and x.shape == y.shape and x.isfinite().all(), name
        error, size = x.double() - y, max(y.abs().max().item(), 1e-30)
        assert error.abs().max() <= TOLERANCE[dtype] * size, f"{name}: {error.abs().max()}"
        assert error.norm() <= TOLERANCE[dtype] * max(y.norm().item(), 1e-30), f"{name}, as a whole"


# ---------------------------------------------------------------------------------------------------
# linear scan


def test_linear_scan_by_hand():
    """h = 0.5 * 2 + 1 = 2, then 0.5 * 2 + 3 = 4, then 0.5 * 4 + 0 = 2."""
    a, b, h0 = torch.full((1, 3, 1), 0.5), torch.tensor([[[1.0], [3.0], [0.0]]]), torch.tensor([[2.0]])
    assert kernels.linear_scan_loop(a, b, h0).flatten().tolist() == [2, 4, 2]
    assert kernels.linear_scan(a, b, h0).flatten().tolist() == [2, 4, 2]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("B, T, D", [(1, 1, 1), (2, 2, 3), (2, 7, 5), (3, 33, 4), (2, 100, 16)])
def test_linear_scan_is_the_loop(B, T, D, kind, dtype):
    inputs = log_gates(kind, B, T, D).exp(), torch.randn(B, T, D), torch.randn(B, D)
    assert_same(kernels.linear_scan, kernels.linear_scan_loop, inputs, dtype)


@pytest.mark.parametrize("kind", GATES)
def test_linear_scan_is_the_loop_over_2048_steps(kind):
    inputs = log_gates(kind, 1, 2048, 8).exp(), torch.randn(1, 2048, 8), torch.randn(1, 8)
    assert_same(kernels.linear_scan, kernels.linear_scan_loop, inputs)


def test_linear_scan_takes_gates_of_any_sign_and_size():
    inputs = 1.5 * torch.randn(2, 50, 8), torch.randn(2, 50, 8), torch.randn(2, 8)
    assert_same(kernels.linear_scan, kernels.linear_scan_loop, inputs, torch.float64)


def test_linear_scan_starts_from_nothing_where_no_state_is_given():
    a, b = torch.rand(2, 20, 3), torch.randn(2, 20, 3)
    assert torch.equal(kernels.linear_scan(a, b), kernels.linear_scan(a, b, torch.zeros(2, 3)))


@pytest.mark.parametrize("scan", [kernels.linear_scan, kernels.min_gru])
def test_a_scan_in_two_parts_changes_nothing(scan):
    a, b = torch.rand(2, 50, 3), torch.randn(2, 50, 3)
    whole = scan(a, b)
    for cut in (1, 7, 32, 49):
        head = scan(a[:, :cut], b[:, :cut])
        tail = scan(a[:, cut:], b[:, cut:], head[:, -1])
        torch.testing.assert_close(torch.cat([head, tail], dim=1), whole, rtol=1e-5, atol=1e-6)


def test_the_future_does_not_leak_into_a_scan():
    """Not by a single bit."""
    a, b = torch.rand(2, 50, 3), torch.randn(2, 50, 3)
    h = kernels.linear_scan(a, b)
    for t in range(1, 50):
        edited = [torch.cat([x[:, :t], torch.rand(2, 50 - t, 3)], dim=1) for x in (a, b)]
        assert torch.equal(kernels.linear_scan(*edited)[:, :t], h[:, :t])


def min_gru_listing(gate, candidate, h):
    """The paper's sequential mode, with its g."""
    z = torch.sigmoid(gate)
    g = torch.where(candidate >= 0, candidate + 0.5, torch.sigmoid(candidate))
    return kernels.linear_scan_loop(1 - z, z * g, h)


def min_lstm_listing(forget, input, candidate, h):
    """The paper's sequential mode, with its g."""
    f, i = torch.sigmoid(forget), torch.sigmoid(input)
    g = torch.where(candidate >= 0, candidate + 0.5, torch.sigmoid(candidate))
    return kernels.linear_scan_loop(f / (f + i), i / (f + i) * g, h)


@pytest.mark.parametrize(
    "listing, fast", [(min_gru_listing, kernels.min_gru), (min_lstm_listing, kernels.min_lstm)]
)
@pytest.mark.parametrize("size", [1, 10])
def test_min_gru_and_min_lstm_are_the_papers_listings(listing, fast, size):
    inputs = [size * torch.randn(2, 40, 6) for _ in range(2 if fast is kernels.min_gru else 3)]
    assert_same(fast, listing, [*inputs, torch.rand(2, 6)])


def test_min_lstm_shares_out_gates_that_both_underflow():
    """sigmoid(-200) is 0 in float32, but f / (f + i) is still one half for equal projections."""
    closed, candidate = torch.full((1, 3, 1), -200.0), torch.full((1, 3, 1), 0.5)
    h = kernels.min_lstm(closed, closed, candidate)  # h = (h + 1) / 2
    torch.testing.assert_close(h.flatten(), torch.tensor([0.5, 0.75, 0.875]))


# ---------------------------------------------------------------------------------------------------
# gated linear attention


def test_gated_linear_attention_by_hand():
    """S = 0.5 * 2 + 1 * 3 = 4, read by q = 1: 4; then S = 0.5 * 4 + 2 * 1 = 4, read by q = 10: 40."""
    q, k, v = (torch.tensor(x).view(1, 2, 1, 1) for x in ([1.0, 10.0], [1.0, 2.0], [3.0, 1.0]))
    log_f, S0 = torch.full((1, 2, 1, 1), 0.5).log(), torch.full((1, 1, 1, 1), 2.0)
    for f in (kernels.gated_linear_attention, kernels.gated_linear_attention_loop):
        o, S = f(q, k, v, log_f, S0)
        torch.testing.assert_close(o.flatten(), torch.tensor([4.0, 40.0]))
        torch.testing.assert_close(S.flatten(), torch.tensor([4.0]))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize(
    "B, T, H, K, V", [(1, 1, 1, 1, 1), (2, 15, 1, 16, 24), (1, 100, 2, 24, 16), (1, 129, 1, 64, 64)]
)
def test_gated_linear_attention_is_the_loop(B, T, H, K, V, kind, dtype):
    inputs = attention_inputs(B, T, H, K, V, kind)
    assert_same(kernels.gated_linear_attention, kernels.gated_linear_attention_loop, inputs, dtype)


@pytest.mark.parametrize("T", [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65])
def test_no_length_is_special(T):
    inputs = attention_inputs(2, T, 2, 5, 3, "of all kinds")
    assert_same(kernels.gated_linear_attention, kernels.gated_linear_attention_loop, inputs)


@pytest.mark.parametrize("kind", GATES)
def test_one_gate_for_a_whole_head(kind):
    """log_f (B, T, H, 1), as in the mLSTM."""
    inputs = attention_inputs(2, 50, 2, 16, 24, kind, gates=1)
    assert_same(kernels.gated_linear_attention, kernels.gated_linear_attention_loop, inputs)


@pytest.mark.parametrize("gates", [None, 1])
@pytest.mark.parametrize("kind", GATES)
def test_without_k_it_is_what_the_gates_let_go(kind, gates):
    """k = None means 1 - f, as in HGRN2; what log f owes to it is part of its gradient."""

    def loop(q, v, log_f, S0):
        return kernels.gated_linear_attention_loop(q, (1 - log_f.exp()).expand_as(q), v, log_f, S0)

    q, _, v, log_f, S0 = attention_inputs(2, 50, 2, 16, 24, kind, gates)
    assert_same(lambda q, *rest: kernels.gated_linear_attention(q, None, *rest), loop, (q, v, log_f, S0))


@pytest.mark.parametrize("kind", GATES)
def test_gated_linear_attention_is_the_loop_over_2048_steps(kind):
    inputs = attention_inputs(1, 2048, 1, 16, 8, kind)
    assert_same(kernels.gated_linear_attention, kernels.gated_linear_attention_loop, inputs)


@pytest.mark.parametrize("T", [3, 6])
def test_a_state_in_float64_stays_so(T):
    q, k, v, log_f = attention_inputs(1, T, 1, 4, 4, "near 1")[:4]
    inputs = [x.float() for x in (q, k, v, log_f)]
    S0 = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    assert kernels.gated_linear_attention(*inputs, S0)[1].dtype == torch.float64


@pytest.mark.parametrize("kind", ["at initialisation", "near 1", "saturated at 1"])
@pytest.mark.parametrize("T, C", [(1, 16), (15, 16), (16, 16), (17, 16), (50, 16), (50, 7), (129, 64)])
def test_the_idea_of_chunks_is_the_loop(T, C, kind):
    """C steps at a time as two matrix products, where gates are not near 0; the last chunk may be shorter."""
    inputs = attention_inputs(2, T, 3, 5, 4, kind)
    chunks = functools.partial(kernels.gated_linear_attention_chunks, C=C)
    assert_same(chunks, kernels.gated_linear_attention_loop, inputs, torch.float64)


def test_chunks_alone_do_not_survive_gates_near_0():
    """Why kernels.py goes on after them: D_j underflows, and k_j / D_j is infinite."""
    inputs = attention_inputs(1, 64, 1, 4, 4, "all 1e-8")
    o, _ = kernels.gated_linear_attention_chunks(*inputs)
    assert not o.isfinite().all()
    assert_same(kernels.gated_linear_attention, kernels.gated_linear_attention_loop, inputs)


def test_segments_are_only_a_matter_of_speed(monkeypatch):
    """Worked on in pieces of 32 rows, the first of them ragged, or all at once."""
    inputs = attention_inputs(2, 150, 2, 16, 24, "of all kinds")
    for size in (1, 2**30):
        monkeypatch.setattr(recurrences, "SEGMENT", size)
        assert_same(kernels.gated_linear_attention, kernels.gated_linear_attention_loop, inputs)


def test_gradients_are_those_of_finite_differences():
    inputs = attention_inputs(1, 19, 1, 2, 3)
    inputs = [x.double().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(kernels.gated_linear_attention, inputs)
    a, b, h0 = (
        torch.rand(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((1, 11, 2), (1, 11, 2), (1, 2))
    )
    assert torch.autograd.gradcheck(kernels.linear_scan, (a, b, h0))


def test_the_gradient_of_a_hard_reset_is_zero():
    """d/d(log f) = f d/df, and f is 0: exactly, for all gates that are closed."""
    q, k, v, log_f, S0 = attention_inputs(2, 70, 2, 16, 16, "a hard reset now and then")
    log_f.requires_grad_()
    o, S = kernels.gated_linear_attention(q, k, v, log_f, S0)
    (o.sum() + S.sum()).backward()
    assert (log_f.grad[log_f == -INF] == 0).all() and (log_f.grad[log_f > -INF] != 0).any()


@pytest.mark.parametrize("kind", ["at initialisation", "of all kinds"])
@pytest.mark.parametrize("cut", [1, 5, 8, 31, 32, 64, 99])
def test_reading_in_two_parts_changes_nothing(cut, kind):
    q, k, v, log_f, S0 = attention_inputs(2, 100, 2, 16, 24, kind)
    whole, S_whole = kernels.gated_linear_attention(q, k, v, log_f, S0)
    head, S = kernels.gated_linear_attention(*(x[:, :cut] for x in (q, k, v, log_f)), S0)
    tail, S = kernels.gated_linear_attention(*(x[:, cut:] for x in (q, k, v, log_f)), S)
    for ours, exact in ((torch.cat([head, tail], dim=1), whole), (S, S_whole)):
        assert (ours - exact).abs().max() <= 1e-5 * exact.abs().max()


@pytest.mark.parametrize("T", [1, 5, 12, 18, 32, 33, 100])
@pytest.mark.parametrize("grad", [True, False])
def test_no_state_is_a_state_of_zeros(T, grad):
    q, k, v, log_f, S0 = attention_inputs(2, T, 3, 16, 8)
    with torch.set_grad_enabled(grad):
        for nothing, zeros in zip(
            *(kernels.gated_linear_attention(q, k, v, log_f, S) for S in (None, 0 * S0))
        ):
            torch.testing.assert_close(nothing, zeros, rtol=1e-6, atol=1e-6)


def test_the_loop_computes_1_less_f_in_float32():
    q, _, v, log_f, S0 = (x.bfloat16() for x in attention_inputs(2, 20, 2, 16, 24))
    k = -torch.expm1(log_f.double())
    o, S = kernels.gated_linear_attention_loop(q, None, v, log_f, S0)
    exact, last = kernels.gated_linear_attention_loop(q.double(), k, v.double(), log_f.double(), S0.double())
    torch.testing.assert_close(o, exact.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(S, last.float(), rtol=1e-5, atol=1e-5)


def test_token_by_token_is_all_at_once():
    """Generation, without gradients, takes the loop: it must tell the same story."""
    q, _, v, log_f, _ = attention_inputs(2, 40, 2, 16, 24)
    whole, S_whole = kernels.gated_linear_attention(q, None, v, log_f)
    S, o = None, []
    with torch.no_grad():
        for t in range(40):
            o_t, S = kernels.gated_linear_attention(
                q[:, t : t + 1], None, v[:, t : t + 1], log_f[:, t : t + 1], S
            )
            o.append(o_t)
    torch.testing.assert_close(torch.cat(o, dim=1), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(S, S_whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["at initialisation", "of all kinds"])
def test_the_future_does_not_leak_into_attention(kind):
    """Not by a single bit: no row's factors depend on a later gate, key, value or query."""
    inputs = attention_inputs(1, 70, 2, 16, 16, kind)
    o, _ = kernels.gated_linear_attention(*inputs)
    for t in range(1, 70):
        others = attention_inputs(1, 70 - t, 2, 16, 16, "of all kinds")
        edited = [torch.cat([x[:, :t], 10 * y], dim=1) for x, y in zip(inputs[:4], others[:4])]
        assert torch.equal(kernels.gated_linear_attention(*edited, inputs[4])[0][:, :t], o[:, :t]), (
            f"from {t}"
        )


def test_autocast_leaves_recurrences_in_float32():
    """Forward and backward: products of many gates do not survive bfloat16."""

    def under_autocast(f):
        def run(*inputs):
            with torch.autocast("cpu", torch.bfloat16):
                return f(*inputs)

        return run

    inputs = attention_inputs(1, 70, 2, 16, 16)
    assert_same(under_autocast(kernels.gated_linear_attention), kernels.gated_linear_attention_loop, inputs)
    inputs = torch.rand(2, 50, 3), torch.randn(2, 50, 3), torch.randn(2, 3)
    assert_same(under_autocast(kernels.linear_scan), kernels.linear_scan_loop, inputs)
    with torch.autocast("cpu", torch.bfloat16):  # also where the caller runs the backward pass inside
        inputs = attention_inputs(1, 70, 2, 16, 16)
        assert_same(kernels.gated_linear_attention, kernels.gated_linear_attention_loop, inputs)


def test_bfloat16_inputs_are_computed_in_float32():
    """o comes back in bfloat16, the state stays in float32."""
    inputs = [x.bfloat16() for x in attention_inputs(2, 50, 2, 16, 24)]
    o, S = kernels.gated_linear_attention(*inputs)
    exact, S_exact = kernels.gated_linear_attention_loop(*(x.double() for x in inputs))
    assert o.dtype == torch.bfloat16 and S.dtype == torch.float32
    assert torch.equal(o, kernels.gated_linear_attention(*(x.float() for x in inputs))[0].bfloat16())
    assert (o - exact).abs().max() <= 1e-2 * exact.abs().max() and (
        S - S_exact
    ).abs().max() <= 1e-5 * S_exact.abs().max()


def test_inputs_need_not_be_contiguous():
    inputs = attention_inputs(2, 40, 4, 16, 16)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    assert torch.equal(
        kernels.gated_linear_attention(*strided)[0], kernels.gated_linear_attention(*inputs)[0]
    )


@pytest.mark.parametrize("B, H", [(1, 1), (2, 3)])
def test_inputs_are_left_alone(B, H):
    inputs = [x.requires_grad_() for x in attention_inputs(B, 64, H, 16, 16)]
    before = [x.detach().clone() for x in inputs]
    o, S = kernels.gated_linear_attention(*inputs)
    (o.sum() + S.sum()).backward()
    assert all(torch.equal(x, y) for x, y in zip(inputs, before))


# ---------------------------------------------------------------------------------------------------
# selective scan

STEPS = {  # name: uniform numbers -> dt; A is about -1
    "usual": lambda u: u,
    "near 0": lambda u: 1e-4 * u,
    "all 0": lambda u: 0 * u,
    "large": lambda u: 20 + u,
    "a hard reset at each step": lambda u: 300 + u,
    "a hard reset now and then": lambda u: torch.where(u < 0.1, 100.0, u),
    "of all kinds": lambda u: torch.where(u < 0.2, 100.0, torch.where(u < 0.4, 1e-4, u)),
}


def selective_inputs(B, T, E, N, kind="usual"):
    """x, dt, A, B, C, h0, in float32"""
    x, b, c, h0 = (torch.randn(shape) for shape in ((B, T, E), (B, T, N), (B, T, N), (B, E, N)))
    return [x, STEPS[kind](torch.rand(B, T, E)), -0.5 - torch.rand(E, N), b, c, h0]


def test_selective_scan_by_hand():
    """h = 4 / 2 + 1 * 3 * 2 = 8, read by C = 1: 8; then h = 8 / 4 + 2 * 0.5 * 1 = 3, read by C = 10: 30."""
    x, dt, B, C = (torch.tensor(x).view(1, 2, 1) for x in ([3.0, 0.5], [1.0, 2.0], [2.0, 1.0], [1.0, 10.0]))
    A, h0 = torch.full((1, 1), 0.5).log(), torch.full((1, 1, 1), 4.0)
    for f in (kernels.selective_scan, kernels.selective_scan_loop):
        y, h = f(x, dt, A, B, C, h0)
        torch.testing.assert_close(y.flatten(), torch.tensor([8.0, 30.0]))
        torch.testing.assert_close(h.flatten(), torch.tensor([3.0]))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize(
    "B, T, E, N", [(1, 1, 1, 1), (2, 15, 3, 8), (3, 16, 4, 16), (2, 17, 5, 5), (1, 63, 7, 8), (2, 129, 6, 16)]
)
def test_selective_scan_is_the_loop(B, T, E, N, kind, dtype):
    inputs = selective_inputs(B, T, E, N, kind)
    assert_same(kernels.selective_scan, kernels.selective_scan_loop, inputs, dtype)


def test_sequences_at_once_are_only_a_matter_of_speed(monkeypatch):
    inputs = selective_inputs(5, 40, 3, 4)
    for size in (1, 2 * 16 * 12, 2**30):
        monkeypatch.setattr(recurrences, "STATES", size)
        assert_same(kernels.selective_scan, kernels.selective_scan_loop, inputs)


def test_gradients_of_the_selective_scan_are_those_of_finite_differences():
    inputs = [x.double().requires_grad_() for x in selective_inputs(2, 18, 2, 3)]
    assert torch.autograd.gradcheck(kernels.selective_scan, inputs)


@pytest.mark.parametrize("kind", ["usual", "of all kinds"])
@pytest.mark.parametrize("cut", [1, 3, 15, 16, 17, 48, 99])
def test_a_selective_scan_in_two_parts_changes_nothing(cut, kind):
    x, dt, A, B, C, h0 = selective_inputs(2, 100, 6, 8, kind)
    whole, h_whole = kernels.selective_scan(x, dt, A, B, C, h0)
    head, h = kernels.selective_scan(x[:, :cut], dt[:, :cut], A, B[:, :cut], C[:, :cut], h0)
    tail, h = kernels.selective_scan(x[:, cut:], dt[:, cut:], A, B[:, cut:], C[:, cut:], h)
    for ours, exact in ((torch.cat([head, tail], dim=1), whole), (h, h_whole)):
        assert (ours - exact).abs().max() <= 1e-5 * exact.abs().max()


@pytest.mark.parametrize("grad", [True, False])
def test_a_selective_scan_starts_from_nothing_where_no_state_is_given(grad):
    *inputs, h0 = selective_inputs(2, 4, 3, 5)
    inputs[0].requires_grad_(grad)
    for nothing, zeros in zip(kernels.selective_scan(*inputs), kernels.selective_scan(*inputs, 0 * h0)):
        assert torch.equal(nothing, zeros)


def test_the_future_does_not_leak_into_a_selective_scan():
    """Not by a single bit."""
    *inputs, h0 = selective_inputs(2, 40, 6, 8)
    y, _ = kernels.selective_scan(*inputs, h0)
    for t in range(1, 40):
        others = selective_inputs(2, 40, 6, 8, "of all kinds")
        edited = [
            x if x.dim() == 2 else torch.cat([x[:, :t], 10 * z[:, t:]], dim=1) for x, z in zip(inputs, others)
        ]
        assert torch.equal(kernels.selective_scan(*edited, h0)[0][:, :t], y[:, :t]), f"from {t}"


def test_a_selective_scan_of_bfloat16_is_computed_in_float32():
    """y and the gradients come back in bfloat16, the state stays in float32; also under autocast."""
    inputs = [x.bfloat16().requires_grad_() for x in selective_inputs(2, 50, 6, 8)]
    y, h = kernels.selective_scan(*inputs)
    exact, h_exact = kernels.selective_scan_loop(*(x.double() for x in inputs))
    assert y.dtype == torch.bfloat16 and h.dtype == torch.float32
    assert (y - exact).abs().max() <= 1e-2 * exact.abs().max()
    assert (h - h_exact).abs().max() <= 1e-5 * h_exact.abs().max()
    for ours, theirs in zip(torch.autograd.grad(y.sum(), inputs), torch.autograd.grad(exact.sum(), inputs)):
        assert ours.dtype == torch.bfloat16 and (ours - theirs).abs().max() <= 1e-2 * theirs.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        inputs = selective_inputs(2, 50, 6, 8)
        assert_same(kernels.selective_scan, kernels.selective_scan_loop, inputs)


def test_a_selective_scan_never_holds_the_states_of_all_steps():
    """Forward and backward take less memory than half of (B, T, E, N), where the loop takes twice it."""

    def memory(scan):
        with torch.profiler.profile(profile_memory=True) as profile:
            y, h = scan(*inputs)
            torch.autograd.grad(y.sum() + h.sum(), inputs)
        events = sorted(profile.events(), key=lambda event: event.time_range.start)
        return max(itertools.accumulate(event.self_cpu_memory_usage for event in events))

    B, T, E, N = 2, 128, 64, 16
    inputs = [x.requires_grad_() for x in selective_inputs(B, T, E, N)]
    whole = 4 * B * T * E * N  # bytes
    assert memory(kernels.selective_scan) < whole / 2 and memory(kernels.selective_scan_loop) > whole * 2


@pytest.mark.parametrize("name", ["x", "dt", "A", "B", "C", "h0"])
def test_a_selective_scan_names_what_does_not_fit(name):
    inputs = dict(zip(("x", "dt", "A", "B", "C", "h0"), selective_inputs(2, 5, 3, 4)))
    inputs[name] = inputs[name][..., :-1]
    with pytest.raises(ValueError, match="must be"):
        kernels.selective_scan(**inputs)


# ---------------------------------------------------------------------------------------------------
# all three


def example(name):
    """A function and fitting arguments, by name."""
    if name == "linear_scan":
        shapes = dict(a="BTD", b="BTD", h0="BD")
    elif name == "min_lstm":
        shapes = dict(forget="BTD", input="BTD", candidate="BTD", h0="BD")
    elif name == "gated_linear_attention":
        shapes = dict(q="BTHK", k="BTHK", v="BTHV", log_f="BTHK", S0="BHKV")
    else:
        shapes = dict(x="BTE", dt="BTE", A="EN", B="BTN", C="BTN", h0="BEN")
    lengths = dict(B=2, T=6, H=3, K=4, V=5, D=4, E=4, N=3)
    return getattr(kernels, name), {x: -torch.rand([lengths[n] for n in s]) for x, s in shapes.items()}


FUNCTIONS = ["linear_scan", "min_lstm", "gated_linear_attention", "selective_scan"]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("wrong", ["a length", "a dimension", "nothing", "integers", "another device"])
def test_a_wrong_argument_is_named(name, wrong):
    """Whichever it is, the error says its name, before anything is computed."""
    f, arguments = example(name)
    changes = {
        "a length": lambda x: torch.cat([x, x], dim=-1),
        "a dimension": lambda x: x[..., None],
        "nothing": lambda x: x[:0],
        "integers": lambda x: x.long(),
        "another device": lambda x: x.to("meta"),
    }
    for argument, x in arguments.items():
        with pytest.raises(ValueError, match=rf"\b{argument}\b" if wrong != "a length" else " has shape "):
            f(**arguments | {argument: changes[wrong](x)})


def test_a_gate_is_one_for_each_key_or_for_each_head():
    f, arguments = example("gated_linear_attention")
    with pytest.raises(ValueError, match=r"log_f has shape \(2, 6, 3, 2\): must be .* with"):
        f(**arguments | {"log_f": -torch.rand(2, 6, 3, 2)})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_may_lie_in_memory_as_they_like(name):
    f, arguments = example(name)
    strided = {x: y.mT.contiguous().mT for x, y in arguments.items()}
    plain, results = f(**arguments), f(**strided)
    for x, y in zip(*((z if isinstance(z, tuple) else (z,)) for z in (plain, results))):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)


def loop_and_default(name, arguments):
    """All results of a public function as form "loop" and as form "auto" give them."""
    f, results = getattr(kernels, name), []
    for form in ("loop", "auto"):
        kernels.use_kernels(form)
        y = f(**arguments)
        results.append(y if isinstance(y, tuple) else (y,))
    return results


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FUNCTIONS + ["min_gru"])
def test_the_form_changes_neither_values_nor_types(name, dtype):
    """What is carried on stays in float32 where outputs are bfloat16, in either form."""
    _, arguments = example("min_lstm" if name == "min_gru" else name)
    if name == "min_gru":
        arguments["gate"] = arguments.pop("forget") + arguments.pop("input")
    plain, fast = loop_and_default(name, {x: y.to(dtype) for x, y in arguments.items()})
    bound = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    for x, y in zip(plain, fast, strict=True):
        torch.testing.assert_close(x, y, rtol=bound, atol=bound)  # the same type, too


@pytest.mark.parametrize("gates", [4, 1])
def test_the_loop_too_makes_keys_of_gates(gates):
    """k = None, with a gate for each key or for a whole head."""
    q, _, v, log_f, S0 = attention_inputs(2, 9, 3, 4, 5, gates=gates)
    plain, fast = loop_and_default("gated_linear_attention", dict(q=q, k=None, v=v, log_f=log_f, S0=S0))
    for x, y in zip(plain, fast):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


def test_an_unknown_form_is_refused_and_changes_nothing():
    kernels.use_kernels("torch")
    with pytest.raises(ValueError, match="kernels = 'cuda': possible are auto, loop, torch, triton"):
        kernels.use_kernels("cuda")
    assert kernels.form == "torch"


def test_where_triton_cannot_run_its_form_is_torchs():
    """On a CPU, without the interpreter."""
    inputs = attention_inputs(2, 20, 2, 4, 5)
    results = []
    for form in ("triton", "torch"):
        kernels.use_kernels(form)
        results.append(kernels.gated_linear_attention(*inputs))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("name", ["linear_scan", "gated_linear_attention", "selective_scan"])
def test_operators_keep_what_they_promise_pytorch(name, monkeypatch):
    """torch.library's own check: schema, shapes without data, gradients, compilation."""
    operator = {"linear_scan": "scan", "gated_linear_attention": "attention", "selective_scan": "selective"}
    operator, calls = operator[name], []
    original = getattr(operators, operator)
    monkeypatch.setattr(operators, operator, lambda *inputs: calls.append(inputs) or original(*inputs))
    f, arguments = example(name)
    f(**{x: y.requires_grad_() for x, y in arguments.items()})
    torch.library.opcheck(original, calls[0])


@pytest.mark.parametrize("name", ["gated_linear_attention", "selective_scan"])
def test_a_result_that_nothing_is_made_of_changes_no_gradient(name):
    f, arguments = example(name)
    inputs = [x.requires_grad_() for x in arguments.values()]
    for used in (0, 1):
        alone = torch.autograd.grad(f(*inputs)[used].sum(), inputs, materialize_grads=True)
        both = f(*inputs)
        zeros = torch.autograd.grad(both[used].sum() + 0 * both[1 - used].sum(), inputs)
        assert all(map(torch.equal, alone, zeros))
