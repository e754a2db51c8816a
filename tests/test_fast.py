"""The fast forms of layers and losses give what PyTorch's own operations give: values and gradients."""

from fast import layers, losses
from fast.linear import linear
from model import log_forget_gate

import pytest
import torch
import torch.nn.functional as F
from test_kernels import TOLERANCE, assert_same, values_and_gradients

# ---------------------------------------------------------------------------------------------------
# linear layer, norm, gates


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [(1,), (3, 5), (16,), (4, 100), (2, 3, 50)], ids=str)
@pytest.mark.parametrize("D, E", [(16, 48), (48, 16), (1, 1), (33, 7)])
def test_linear_is_torchs(rows, D, E, dtype):
    """Also where PyTorch's own is not asked: values, and the gradients of input, weight and bias."""
    inputs = [torch.randn(shape) for shape in ((*rows, D), (E, D), (E,))]
    assert_same(linear, F.linear, inputs, dtype)
    assert_same(linear, F.linear, inputs[:2], dtype)


def test_linear_takes_inputs_as_they_lie_and_leaves_them_alone():
    x, weight = torch.randn(40, 5, 16).transpose(0, 1), torch.randn(16, 48).T
    before = x.clone(), weight.clone()
    assert_same(linear, F.linear, [x, weight])
    assert x.equal(before[0]) and weight.equal(before[1])


def test_a_linear_layer_under_autocast_is_torchs_to_the_bit():
    x, weight = torch.randn(64, 16), torch.randn(48, 16)
    with torch.autocast("cpu", torch.bfloat16):
        ours, torchs = (values_and_gradients(f, [x, weight], torch.float32) for f in (linear, F.linear))
    assert ours[0].dtype == torch.bfloat16 and all(map(torch.equal, ours, torchs))


def test_a_frozen_weight_or_input_gets_no_gradient():
    for frozen in (0, 1):
        tensors = [torch.randn(64, 16), torch.randn(48, 16)]
        tensors[1 - frozen].requires_grad_()
        linear(*tensors).sum().backward()
        assert tensors[frozen].grad is None and tensors[1 - frozen].grad is not None


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 2), (3, 5, 16), (100, 33)], ids=str)
@pytest.mark.parametrize("eps", [1e-6, 1.0])
def test_the_norm_is_torchs(shape, eps, dtype):
    inputs = [torch.randn(shape), torch.rand(shape[-1])]
    ours, torchs = lambda x, w: layers.rms_norm(x, w, eps), lambda x, w: F.rms_norm(x, w.shape, w, eps)
    assert_same(ours, torchs, inputs, dtype)


def test_the_norm_of_nothing_and_of_large_numbers():
    """Of zeros 0, and no division by it; of bfloat16, float32."""
    x = torch.tensor([[0.0, 0.0], [3e18, -3e18]], requires_grad=True)
    y = layers.rms_norm(x, torch.ones(2), 1e-6)
    y.sum().backward()
    assert torch.allclose(y, torch.tensor([[0.0, 0.0], [1.0, -1.0]])) and x.grad.isfinite().all()
    assert layers.rms_norm(torch.ones(3, 2).bfloat16(), torch.ones(2), 1e-6).dtype == torch.float32


def fast_log_forget_gate(z, floor):
    return layers.forget_gates(z, floor)[0]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gates_are_their_formulas(dtype):
    """Values and gradients, for every floor from 0 on, also where sigmoids are 0 or 1."""
    z, up, floor = 8 * torch.randn(4, 30, 16), torch.randn(4, 30, 16), torch.rand(16) * 0.99
    assert_same(layers.GatedUnit.apply, lambda x, y: F.silu(x) * y, (z, up), dtype)
    for gate in LOG_FORGET_GATES:
        assert_same(gate, forget_gate_formula, (z, floor), dtype)
    floor[:4] = 0
    assert_same(fast_log_forget_gate, forget_gate_formula, (z, floor), dtype)


LOG_FORGET_GATES = [log_forget_gate, fast_log_forget_gate]  # model.py's, and with gradients by hand


def forget_gate_formula(z, floor):
    return (floor + (1 - floor) * z.sigmoid()).log()


def exact_log_forget_gate(z, floor):
    """In float64: the logarithm of f or, where that is near 1, of 1 less what is lost."""
    z, lost = z.double(), (1 - floor) * torch.sigmoid(-z.double())
    return torch.where(lost < 0.5, torch.log1p(-lost.clamp(max=0.5)), forget_gate_formula(z, floor))


@pytest.mark.parametrize("floor", [0.0, 1e-3, 1 / 26, 0.5, 0.96])
@pytest.mark.parametrize("gate", LOG_FORGET_GATES, ids=["plain", "by hand"])
def test_log_f_is_exact_from_an_open_to_a_closed_gate(gate, floor):
    """In float32 to 1e-6 of itself, or to what the last bit of z is worth; also where f rounds to 0 or to 1."""
    z, floor = torch.linspace(-100, 100, 20_001).unsqueeze(1), torch.tensor([floor])
    log_f, exact = gate(z, floor).double(), exact_log_forget_gate(z, floor.double())
    assert ((log_f - exact).abs() <= 1e-6 * (1 + z.abs() / 16) * exact.abs())[z.abs() < 80].all()
    torch.testing.assert_close(log_f.exp(), exact.exp(), rtol=1e-5, atol=1e-37)
    torch.testing.assert_close(-log_f.expm1(), -exact.expm1(), rtol=1e-5, atol=1e-34)


@pytest.mark.parametrize("floor", [0.0, 0.5, 0.96])
def test_a_forget_gate_near_1_is_exact(floor):
    """What it forgets, too small to be seen in 1 - f, and what it learns: float32 against float64, relative."""
    z = torch.linspace(-20, 40, 241).unsqueeze(0)

    def found(gate, dtype):
        inputs = z.to(dtype).requires_grad_(), torch.full((241,), floor, dtype=dtype).requires_grad_()
        log_f = gate(*inputs)
        return log_f, *torch.autograd.grad(log_f.sum(), inputs)

    for gate in LOG_FORGET_GATES if floor else [fast_log_forget_gate]:
        for x, exact in zip(found(gate, torch.float32), found(gate, torch.float64)):
            torch.testing.assert_close(x.double(), exact, rtol=4e-6, atol=0)


def test_a_forget_gate_of_zero_is_a_number_and_learns_nothing():
    z, floor = torch.tensor([[-200.0, 0.0, 200.0]], requires_grad=True), torch.zeros(3, requires_grad=True)
    log_f = fast_log_forget_gate(z, floor)
    log_f.sum().backward()
    assert torch.allclose(log_f, torch.tensor([[1e-37, 0.5, 1.0]]).log())
    assert torch.allclose(z.grad, torch.tensor([[0.0, 0.5, 0.0]])) and floor.grad.isfinite().all()


def test_the_plain_forget_gate_has_a_gradient_whatever_the_gate():
    """Of floor 0 too, as in the first layer, whose floor does not learn."""
    z = torch.tensor([[-1000.0, -200.0, 0.0, 200.0, 1000.0]], requires_grad=True)
    for floor in (0.0, 0.5):
        log_f = log_forget_gate(z, floor)
        (gradient,) = torch.autograd.grad(log_f.sum(), z)
        assert log_f.isfinite().all() and gradient.isfinite().all()


# ---------------------------------------------------------------------------------------------------
# output layer and cross-entropy


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1,), (7,), (2, 5), (3, 100)])
def test_linear_cross_entropy_is_the_reference(shape, dtype, monkeypatch):
    """In slices of 64 tokens, the last one ragged, some targets ignored."""
    monkeypatch.setattr(losses, "SLICE", 64)
    targets = torch.randint(50, shape)
    if targets.numel() > 1:
        targets[torch.rand(shape) < 0.3] = -100

    def loss_of(f):
        return lambda x, weight: f(x, weight, targets)

    inputs = torch.randn(*shape, 16), torch.randn(50, 16)
    assert_same(loss_of(losses.linear_cross_entropy), loss_of(reference_loss), inputs, dtype)


def reference_loss(x, weight, targets):
    return F.cross_entropy(F.linear(x, weight).flatten(0, -2), targets.flatten())


def test_nothing_to_predict_is_a_loss_of_zero():
    """A batch of padding only: no NaN, and no gradient."""
    x, weight = torch.randn(5, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    loss = losses.linear_cross_entropy(x, weight, torch.full((5,), -100))
    loss.backward()
    assert loss == 0 and (x.grad == 0).all() and (weight.grad == 0).all()


def test_a_token_that_is_out_of_reach_costs_much_but_not_infinity():
    x, weight = torch.tensor([[200.0]]), torch.tensor([[1.0], [-1.0]])
    assert losses.linear_cross_entropy(x, weight, torch.tensor([1])) == 400


def test_the_loss_takes_a_factor_and_repeats_itself():
    """loss / 4, as in accumulation, gives a quarter of the gradient; the same call gives the same bits."""
    x, weight, targets = torch.randn(300, 16), torch.randn(50, 16), torch.randint(50, (300,))
    runs = [
        values_and_gradients(
            lambda x, w: losses.linear_cross_entropy(x, w, targets) / n, (x, weight), torch.float32
        )
        for n in (1, 1, 4)
    ]
    assert all(torch.equal(x, y) for x, y in zip(runs[0], runs[1]))
    assert all(torch.equal(x, 4 * y) for x, y in zip(runs[0], runs[2]))


def test_log_p_of_the_tokens_asked_for():
    """Rows in any order, some asked for several times, some never."""
    x, weight = torch.randn(600, 16), torch.randn(50, 16)
    rows, tokens = torch.randint(600, (900,)), torch.randint(50, (900,))
    expected = (x @ weight.T).log_softmax(dim=-1)[rows, tokens]
    torch.testing.assert_close(losses.next_token_log_p(x, weight, rows, tokens), expected)
    each = -losses.next_token_log_p(x, weight, torch.arange(600), tokens[:600])
    torch.testing.assert_close(each.mean(), losses.linear_cross_entropy(x, weight, tokens[:600]))


def test_only_what_needs_a_gradient_gets_one():
    x, weight, targets = (
        torch.randn(300, 16),
        torch.randn(50, 16, requires_grad=True),
        torch.randint(50, (300,)),
    )
    with torch.no_grad():
        evaluated = losses.linear_cross_entropy(x, weight, targets)
    loss = losses.linear_cross_entropy(x, weight, targets)
    loss.backward()
    assert not evaluated.requires_grad and evaluated == loss and x.grad is None and weight.grad is not None


def test_under_autocast_products_are_bfloat16_and_the_loss_is_float32():
    """As far from float64 as autocast's own output layer and cross-entropy, or nearer."""
    x, weight, targets = torch.randn(300, 16), torch.randn(50, 16), torch.randint(50, (300,))

    def run(f, dtype=torch.float32, autocast=True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return values_and_gradients(lambda x, w: f(x, w, targets), (x, weight), dtype)

    exact = run(reference_loss, torch.float64, autocast=False)
    for ours, torchs, y in zip(run(losses.linear_cross_entropy), run(reference_loss), exact):
        assert ours.dtype == torch.float32
        assert (ours - y).norm() <= max(1.2 * (torchs - y).norm(), 2e-3 * y.norm())


def test_float16_keeps_the_gradient_of_unlikely_tokens():
    """p = 2^-26 is 0 in float16: its gradient is taken in float32, before a scaler could have saved it."""
    x, weight = torch.ones(1, 1), torch.tensor([[18.0], [0.0]]).requires_grad_()
    with torch.autocast("cpu", torch.float16):
        losses.linear_cross_entropy(x, weight, torch.tensor([0])).backward()
    torch.testing.assert_close(weight.grad[1, 0], torch.sigmoid(torch.tensor(-18.0)), rtol=1e-3, atol=0)
