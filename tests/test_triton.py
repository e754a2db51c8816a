"""
The Triton kernels are the loops too: on a GPU compiled, elsewhere in Triton's interpreter, which is slow, so sizes
are small here.
"""

import kernels
from fast import operators
from model import Config, LanguageModel
from train import NextToken

import numpy as np
import pytest
import torch
from test_kernels import (
    FUNCTIONS,
    GATES,
    STEPS,
    assert_same,
    attention_inputs,
    example,
    log_gates,
    min_gru_listing,
    min_lstm_listing,
    selective_inputs,
)

pytest.importorskip("triton", reason="Triton is not installed")
ON_GPU = torch.cuda.is_available()
# above the diagonal of a leaf, where it is dropped; and in a float16 that is too large for it
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setattr(kernels, "INTERPRETED", not ON_GPU)
    torch.set_default_device("cuda" if ON_GPU else "cpu")
    yield
    torch.set_default_device(None)


def test_the_form_is_chosen_by_device_and_number_format():
    """float64 goes to PyTorch's form even where Triton runs; form "torch" sends all there."""
    assert kernels.runs_triton(torch.empty(0)) and not kernels.runs_triton(torch.empty(0).double())
    kernels.use_kernels("torch")
    assert not kernels.runs_triton(torch.empty(0))


# ---------------------------------------------------------------------------------------------------
# linear scan


@pytest.fixture
def tile(monkeypatch):
    """A small one for the interpreter, which joins steps one by one."""
    if ON_GPU:
        return
    monkeypatch.setattr(kernels, "scan_tile", lambda kind, backward=False: (4, 4, 8, 1))


LENGTHS = [(1, 1, 1), (2, 15, 3), (1, 16, 16), (2, 17, 12), (1, 50, 5)]
if ON_GPU:  # where a tile has 128 steps
    LENGTHS += [(1, 63, 5), (1, 129, 3)]


@pytest.mark.parametrize("B, T, D", LENGTHS)
def test_linear_scan_is_the_loop(B, T, D, tile):
    inputs = log_gates("of all kinds", B, T, D).exp(), torch.randn(B, T, D), torch.randn(B, D)
    assert_same(kernels.linear_scan, kernels.linear_scan_loop, inputs)


@pytest.mark.parametrize("kind", GATES)
def test_linear_scan_takes_every_gate(kind, tile):
    inputs = log_gates(kind, 1, 40, 8).exp(), torch.randn(1, 40, 8), torch.randn(1, 8)
    assert_same(kernels.linear_scan, kernels.linear_scan_loop, inputs)


@pytest.mark.parametrize("size", [1, 10])
@pytest.mark.parametrize("T", [1, 40])
def test_min_gru_and_min_lstm_are_the_papers_listings(T, size, tile):
    for listing, fast, n in ((min_gru_listing, kernels.min_gru, 2), (min_lstm_listing, kernels.min_lstm, 3)):
        inputs = [size * torch.randn(2, T, 6) for _ in range(n)]
        assert_same(fast, listing, [*inputs, torch.rand(2, 6)])


# ---------------------------------------------------------------------------------------------------
# selective scan


@pytest.mark.parametrize("kind", STEPS)
def test_selective_scan_is_the_loop(kind):
    for B, T, E, N in ((1, 1, 1, 1), (1, 33, 2, 8)):
        assert_same(kernels.selective_scan, kernels.selective_scan_loop, selective_inputs(B, T, E, N, kind))


def test_selective_scan_over_several_blocks_of_channels(monkeypatch):
    monkeypatch.setattr(kernels, "selective_tile", lambda E, N, backward: (16, 4, 4 if backward else 2, 1))
    assert_same(kernels.selective_scan, kernels.selective_scan_loop, selective_inputs(2, 17, 7, 3))


def test_selective_scan_without_a_gradient():
    """No states are kept."""
    inputs = selective_inputs(1, 20, 3, 4)
    for ours, exact in zip(kernels.selective_scan(*inputs), kernels.selective_scan_loop(*inputs)):
        torch.testing.assert_close(ours, exact)


# ---------------------------------------------------------------------------------------------------
# gated linear attention


def tied(f):
    """f without k, which is 1 - f; for the loop, with it."""
    if f is kernels.gated_linear_attention:
        return lambda q, v, log_f, S0: f(q, None, v, log_f, S0)
    return lambda q, v, log_f, S0: f(q, -torch.expm1(log_f).expand_as(q), v, log_f, S0)


@pytest.mark.parametrize("kind", GATES)
def test_gated_linear_attention_is_the_loop(kind):
    """Forward, all gradients and both states, for every gate, with keys of its own and with those of the gates."""
    q, k, v, log_f, S0 = attention_inputs(1, 45, 1, 24, 16, kind)
    fast, loop = kernels.gated_linear_attention, kernels.gated_linear_attention_loop
    assert_same(fast, loop, [q, k, v, log_f, S0])
    assert_same(tied(fast), tied(loop), [q, v, log_f, S0])


@pytest.mark.parametrize("T", [1, 7, 8, 17, 31, 32, 33, 65])
def test_no_length_is_special(T):
    """Chunks have 32 steps, leaves 8."""
    inputs = attention_inputs(1, T, 1, 16, 16, "of all kinds")
    assert_same(kernels.gated_linear_attention, kernels.gated_linear_attention_loop, inputs)


@pytest.mark.parametrize(
    "B, T, H, K, V", [(1, 1, 1, 1, 1), (2, 33, 2, 5, 40), (1, 33, 1, 32, 64), (1, 33, 1, 72, 24)]
)
def test_no_width_is_special(B, T, H, K, V):
    """K and V are cut into slices of 16 or 32."""
    inputs = attention_inputs(B, T, H, K, V, "of all kinds")
    assert_same(kernels.gated_linear_attention, kernels.gated_linear_attention_loop, inputs)


def test_a_wide_memory_of_odd_width_is_padded():
    """To 264, so that rows are aligned; nobody sees it."""
    inputs = attention_inputs(1, 5, 1, 4, 257, gates=1)
    assert_same(kernels.gated_linear_attention, kernels.gated_linear_attention_loop, inputs)


@pytest.mark.parametrize("kind", ["at initialisation", "of all kinds"])
def test_one_gate_for_a_whole_head(kind):
    inputs = attention_inputs(1, 40, 2, 16, 24, kind, gates=1)
    assert_same(kernels.gated_linear_attention, kernels.gated_linear_attention_loop, inputs)


def test_the_tiles_of_bfloat16(monkeypatch):
    """In float32: several slices of K and of V, the last ones not full."""
    monkeypatch.setitem(kernels.TILES, torch.float32, kernels.TILES[torch.bfloat16])
    for gates in (40, 1):
        inputs = attention_inputs(1, 70, 1, 40, 264, "of all kinds", gates=gates)
        assert_same(kernels.gated_linear_attention, kernels.gated_linear_attention_loop, inputs)


@pytest.mark.parametrize("kind", ["at initialisation", "of all kinds"])
def test_the_future_does_not_leak_into_the_past(kind):
    """Not by a single bit, whatever comes later."""
    *inputs, S0 = attention_inputs(1, 45, 1, 16, 16, kind)
    o = kernels.gated_linear_attention(*inputs, S0)[0]
    for t in (1, 7, 8, 20, 32):
        later = attention_inputs(1, 45, 1, 16, 16, "wide")
        edited = [torch.cat([x[:, :t], y[:, t:]], dim=1) for x, y in zip(inputs, later)]
        assert torch.equal(kernels.gated_linear_attention(*edited, S0)[0][:, :t], o[:, :t]), t


def test_reading_in_two_parts_changes_nothing():
    q, k, v, log_f, S0 = attention_inputs(1, 60, 1, 16, 24, "of all kinds")
    whole, S_whole = kernels.gated_linear_attention(q, k, v, log_f, S0)
    for cut in (1, 16, 35):
        head, S = kernels.gated_linear_attention(*(x[:, :cut] for x in (q, k, v, log_f)), S0)
        tail, S = kernels.gated_linear_attention(*(x[:, cut:] for x in (q, k, v, log_f)), S)
        for ours, exact in ((torch.cat([head, tail], dim=1), whole), (S, S_whole)):
            assert (ours - exact).abs().max() <= 1e-5 * exact.abs().max()


@pytest.mark.parametrize("B, T, H, K, V", [(1, 5, 2, 3, 5), (1, 33, 1, 24, 16)])
def test_nothing_outside_the_tensors_is_read_or_written(B, T, H, K, V, monkeypatch):
    """All lie between margins of NaN: results are finite, and the margins are as before."""
    margins = []

    def with_margins(x):
        whole = torch.full((4096 + x.numel() + 4096,), torch.nan)
        margins.extend((whole[:4096], whole[4096 + x.numel() :]))
        return whole[4096 : 4096 + x.numel()].view(x.shape).copy_(x)

    monkeypatch.setattr(torch, "empty_like", lambda x: with_margins(torch.zeros(x.shape)))  # the launchers'
    q, k, v, log_f, S0 = inputs = [with_margins(x) for x in attention_inputs(B, T, H, K, V)]
    results = [with_margins(torch.zeros(x.shape)) for x in operators.attention_results(*inputs, True)]
    kernels.attend_triton(*inputs, results)
    o, S, *saved = results
    grads = [with_margins(torch.zeros(x.shape)) for x in inputs]
    kernels.attend_backward_triton(inputs, saved, torch.ones(o.shape), torch.ones(S.shape), grads)

    *projections, h0 = (with_margins(torch.rand(shape)) for shape in (*3 * [(B, T, K)], (B, K)))
    h = kernels.scan_triton("min_lstm", *projections, h0)
    grads += kernels.scan_backward_triton("min_lstm", (*projections, h0), h, torch.ones(h.shape))
    assert all(x.isfinite().all() for x in (*results, h, *grads)) and all(x.isnan().all() for x in margins)


@pytest.mark.parametrize("mixer", ["hgrn2", "minlstm", "mamba"])
def test_a_whole_model_with_triton_is_the_plain_one(mixer, tile):
    """The training loss and all gradients: what model.py gives a kernel is what it is made for."""
    config = Config(mixer=mixer, vocab_size=30, n_layer=2, d_model=8, n_head=2, d_mlp=8, d_state=4, conv=3)
    objective, results = NextToken(LanguageModel(config)), []
    tokens, targets = torch.randint(30, (2, 2, 20))
    for form in ("loop", "triton"):
        kernels.use_kernels(form, objective)
        loss = objective(tokens, targets)["loss"]
        results.append([loss.detach(), *torch.autograd.grad(loss, list(objective.parameters()))])
    for plain, fast in zip(*results):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------------
# bfloat16, which the interpreter computes wrongly: it multiplies the bits


@pytest.fixture
def bfloat16(monkeypatch):
    """Have the interpreter compute bfloat16 as a GPU does: in float32, rounded to the nearest."""
    if ON_GPU:
        return
    tl, interpreter = kernels.tl, pytest.importorskip("triton.runtime.interpreter")
    builder, Handle = interpreter.InterpreterBuilder, interpreter.TensorHandle

    def widen(x):
        if x.dtype.scalar != tl.bfloat16:
            return x
        return Handle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def narrow(x):
        bits = x.data.astype(np.float32).view(np.uint32)
        return Handle(((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16), tl.bfloat16)

    def cast(self, x, dtype, plain=builder.cast_impl):
        if dtype.scalar == tl.bfloat16 and x.dtype.scalar == tl.float32:
            return narrow(x)
        return plain(self, widen(x), dtype)

    def binary(self, x, y, f, plain=builder.binary_op):
        z = plain(self, widen(x), widen(y), f)
        return narrow(z) if x.dtype.scalar == tl.bfloat16 and z.data.dtype == np.float32 else z

    def dot(self, x, y, *rest, plain=builder.create_dot):
        return plain(self, widen(x), widen(y), *rest)

    for name, function in (("cast_impl", cast), ("binary_op", binary), ("create_dot", dot)):
        monkeypatch.setattr(builder, name, function)


def assert_near(fast, loop, inputs):
    """Results and gradients in bfloat16 are, as a whole, within 1e-2 of those in float64 from the same inputs."""
    results = []
    for f, dtype in ((fast, None), (loop, torch.float64)):
        given = [x.detach().to(dtype or x.dtype, copy=True).requires_grad_() for x in inputs]
        outputs = f(*given)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.manual_seed(1)
        weights = [torch.randn(y.shape).to(y.dtype) for y in outputs]
        results.append([*outputs, *torch.autograd.grad(outputs, given, weights)])
    for i, (x, y) in enumerate(zip(*results, strict=True)):
        assert (x.double() - y).norm() <= 1e-2 * y.norm() + 1e-30, f"number {i} of results and gradients"


SHAPES = [(1, 70, 1, 32, 32)]  # two chunks and a part of one
if ON_GPU:  # every tile as it is: several slices of K and of V, several chunks
    SHAPES += [(2, 300, 3, K, V) for K, V in ((16, 16), (64, 64), (128, 128), (256, 64), (64, 256))]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("gates", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "kind", ["at initialisation", "near 1", "near 0", "wide", "a hard reset now and then"]
)
def test_gated_linear_attention_in_bfloat16(kind, gates, shape, bfloat16):
    fast, loop = kernels.gated_linear_attention, kernels.gated_linear_attention_loop
    q, k, v, log_f, S0 = attention_inputs(*shape, kind)
    q, k, v, log_f = q.bfloat16(), k.bfloat16(), v.bfloat16(), log_f.to(gates)
    assert_near(fast, loop, [q, k, v, log_f, S0])
    assert_near(tied(fast), tied(loop), [q, v, log_f, S0])


def test_one_gate_for_a_whole_head_in_bfloat16(bfloat16):
    for shape in SHAPES:
        q, k, v, log_f, S0 = attention_inputs(*shape, "a hard reset now and then", gates=1)
        inputs = [q.bfloat16(), k.bfloat16(), v.bfloat16(), log_f, S0]
        assert_near(kernels.gated_linear_attention, kernels.gated_linear_attention_loop, inputs)


def test_the_gradient_of_a_hard_reset_is_zero():
    *inputs, log_f, S0 = attention_inputs(1, 40, 1, 16, 16, "a hard reset now and then")
    log_f.requires_grad_()
    o, S = kernels.gated_linear_attention(*inputs, log_f, S0)
    (gradient,) = torch.autograd.grad(o.sum() + S.sum(), log_f)
    assert (gradient[log_f == -torch.inf] == 0).all() and (gradient != 0).any()


def test_keys_of_gates_near_1_are_exact():
    """1 - exp(-1e-4) has lost a thousandth of itself to rounding."""
    q, _, v, log_f, S0 = attention_inputs(1, 20, 1, 16, 16)
    inputs = [q, v, torch.full_like(log_f, -1e-4), 0 * S0]
    assert_same(tied(kernels.gated_linear_attention), tied(kernels.gated_linear_attention_loop), inputs)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_tensors_may_lie_in_memory_as_they_like(name, tile):
    """Arguments, and the gradients of results."""
    f, arguments = example(name)
    found = []
    for lie in (lambda x: x, lambda x: x.mT.contiguous().mT):
        inputs = [lie(x).requires_grad_() for x in arguments.values()]
        results = f(*inputs)
        results = results if isinstance(results, tuple) else (results,)
        given = [lie(torch.arange(x.numel()).view(x.shape).to(x)) for x in results]
        found.append([*results, *torch.autograd.grad(results, inputs, given)])
    for x, y in zip(*found):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)


def test_float16_is_computed_in_float32():
    """Its range is too small for the factors of a leaf, and for states."""
    q, k, v, log_f, S0 = attention_inputs(1, 40, 1, 16, 16, "wide")
    inputs = [q.half(), k.half(), v.half(), log_f, 1e5 * S0]
    o, S = kernels.gated_linear_attention(*inputs)
    exact, S_exact = kernels.gated_linear_attention_loop(*(x.double() for x in inputs))
    assert o.dtype == torch.float16 and (S - S_exact).abs().max() <= 1e-5 * S_exact.abs().max()
    small = exact.abs() < 6e4  # the largest float16
    assert ((o - exact)[small].abs() <= 1e-3 * exact[small].abs() + 1e-2).all()


def test_scans_in_bfloat16(bfloat16, tile):
    gate, forget, candidate = torch.randn(3, 2, 40, 6).bfloat16()
    h0 = torch.rand(2, 6).bfloat16()
    assert_near(kernels.linear_scan, kernels.linear_scan_loop, [gate.sigmoid(), candidate, h0])
    assert_near(kernels.min_gru, min_gru_listing, [gate, candidate, h0])
    assert_near(kernels.min_lstm, min_lstm_listing, [forget, gate, candidate, h0])


def test_selective_scan_in_bfloat16(bfloat16):
    x, dt, A, B, C, h0 = selective_inputs(1, 33, 4, 8, "usual")
    inputs = [x.bfloat16(), dt.bfloat16(), A, B.bfloat16(), C.bfloat16(), h0]
    assert_near(kernels.selective_scan, kernels.selective_scan_loop, inputs)
