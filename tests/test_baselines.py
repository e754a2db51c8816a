"""The recurrent baselines are what their papers' code, PyTorch or a closed form says: values and gradients."""

from copy import deepcopy

from baselines import BASELINES, GEGLU
from kernels import use_kernels
from model import Config, LanguageModel
from train import Settings, make_optimizer

import pytest
import torch

SIZES = dict(vocab_size=50, n_layer=3, d_model=32, n_head=4, d_mlp=64, norm_eps=1e-5, context=64)


def build(mixer, layer=0, **settings):
    """A mixer whose parameters all count: none is 0 or 1, as many are at the start."""
    mixer = BASELINES[mixer](Config(mixer=mixer, **SIZES | settings), layer)
    return shaken(mixer)


def shaken(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


# ----------------------------------------------------------------------------------------------------
# LSTM, GRU, Aaren


@pytest.mark.parametrize("name", ["lstm", "gru"])
@pytest.mark.parametrize("started", [False, True])
def test_the_cell_written_out_is_torchs(name, started):
    """Its loop and PyTorch's own cell, with the same weights: values, states and gradients to 1e-6."""
    loop = build(name, expand=2)
    library = deepcopy(loop)
    use_kernels("auto", library)
    assert type(library) is not type(loop)
    x = torch.randn(2, 20, 32)
    with torch.no_grad():
        state = library(torch.randn(2, 5, 32))[1] if started else None
    results = []
    for mixer in (library, loop):
        y, last = mixer(x, state)
        loss = (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum() + sum(z.sum() for z in last)
        results.append([y, *last, *torch.autograd.grad(loss, list(mixer.parameters()))])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6 * max(1, b.abs().max().item()))


def prefix_softmax(mixer, x):
    """Aaren's closed form: softmax over the scores of all tokens so far, written out."""
    B, T, _ = x.shape
    k, v = (w(x).view(B, T, 4, 8) for w in (mixer.key, mixer.value))
    s = torch.einsum("bthk,hk->bth", k, mixer.query) / 8**0.5
    o = [torch.einsum("bsh,bshv->bhv", s[:, : t + 1].softmax(dim=1), v[:, : t + 1]) for t in range(T)]
    return mixer.output(torch.stack(o, dim=1).flatten(2))


@pytest.mark.parametrize("size", [1, 1e4])
def test_aaren_is_the_softmax_over_all_tokens_so_far(size):
    """Values and gradients in float64 to 1e-9, also where scores are in the ten thousands."""
    mixer = build("aaren").double()
    mixer.query.data *= size
    x = torch.randn(2, 30, 32, dtype=torch.float64, requires_grad=True)
    results = []
    for y in (mixer(x)[0], prefix_softmax(mixer, x)):
        loss = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum()
        results.append([y, *torch.autograd.grad(loss, [x, *mixer.parameters()])])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * max(1, b.abs().max().item()))


# ----------------------------------------------------------------------------------------------------
# xLSTM against its authors' package, vanilla backend


def mlstm_pairs(ours, theirs):
    """(ours, theirs) of an mLSTM layer; the package has two layers of gates."""
    (i, f), (bi, bf) = ours.gates.weight.chunk(2), ours.gates.bias.chunk(2)
    cell = theirs.mlstm_cell
    return [
        (ours.up.weight, theirs.proj_up.weight),
        (ours.conv.weight, theirs.conv1d.conv.weight),
        (ours.conv.bias, theirs.conv1d.conv.bias),
        (ours.query.weight, theirs.q_proj.weight),
        (ours.key.weight, theirs.k_proj.weight),
        (ours.value.weight, theirs.v_proj.weight),
        (i, cell.igate.weight),
        (f, cell.fgate.weight),
        (bi, cell.igate.bias),
        (bf, cell.fgate.bias),
        (ours.norm.weight, cell.outnorm.weight),
        (ours.skip, theirs.learnable_skip),
        (ours.output.weight, theirs.proj_down.weight),
    ]


def slstm_pairs(ours, theirs):
    """Likewise of an sLSTM layer; what the package calls fgate goes to its cell's input gate, and the reverse."""
    cell = theirs.slstm_cell
    return [
        (ours.conv.weight, theirs.conv1d.conv.weight),
        (ours.conv.bias, theirs.conv1d.conv.bias),
        (ours.input.weight, theirs.fgate.weight),
        (ours.forget.weight, theirs.igate.weight),
        (ours.candidate.weight, theirs.zgate.weight),
        (ours.show.weight, theirs.ogate.weight),
        (ours.recurrent.mT, cell._recurrent_kernel_),  # (H, K, 4 K) and (H, 4 K, K)
        (ours.bias.view(4, 4, 8).transpose(0, 1), cell._bias_),  # (heads, gates, K) and (gates, heads, K)
        (ours.norm.weight, theirs.group_norm.weight),
    ]


def feed_forward_pairs(ours, theirs):
    gate, up = theirs.proj_up.weight.chunk(2)
    return [(ours.gate.weight, gate), (ours.up.weight, up), (ours.down.weight, theirs.proj_down.weight)]


def assert_same(ours, theirs, pairs, norms=()):
    """The same output and gradients to 1e-4; `pairs` gives our parameters and theirs, and holds for gradients."""
    with torch.no_grad():
        for x, y in pairs(ours, theirs):
            y.copy_(x.reshape(y.shape))
        for norm in norms:  # theirs adds 1
            norm.weight -= 1
    x, weights, results = torch.randn(2, 64, 32, requires_grad=True), torch.randn(2, 64, 32), []
    for module in (ours, theirs):
        y = module(x)
        y = y[0] if isinstance(y, tuple) else y  # ours has a state as well
        dx, *gradients = torch.autograd.grad((y * weights).sum(), [x, *module.parameters()])
        twin = deepcopy(module)
        for parameter, gradient in zip(twin.parameters(), gradients):
            parameter.data = gradient
        results.append((y, dx, twin))
    (y, dx, twin), (their_y, their_dx, their_twin) = results
    for a, b in [(y, their_y), (dx, their_dx), *pairs(twin, their_twin)]:
        scale = b.abs().max().clamp(min=1)
        torch.testing.assert_close(a.reshape(b.shape) / scale, b / scale, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gates", [1, 10])
def test_mlstm_is_the_xlstm_packages(gates):
    """The whole layer, also where gates are open or shut for good."""
    xlstm = pytest.importorskip("xlstm")
    ours = build("mlstm", expand=2)
    with torch.no_grad():
        ours.gates.weight *= gates
    theirs = xlstm.mLSTMLayer(xlstm.mLSTMLayerConfig(embedding_dim=32, num_heads=4, context_length=64))
    assert_same(ours, theirs, mlstm_pairs, [theirs.mlstm_cell.outnorm])


@pytest.mark.parametrize("gates", [1, 10])
def test_slstm_is_the_xlstm_packages(gates):
    xlstm = pytest.importorskip("xlstm")
    ours = build("slstm")
    with torch.no_grad():
        ours.input.weight *= gates
        ours.forget.weight *= gates
    theirs = xlstm.sLSTMLayer(xlstm.sLSTMLayerConfig(embedding_dim=32, num_heads=4, backend="vanilla"))
    assert_same(ours, theirs, slstm_pairs, [theirs.group_norm])


def test_geglu_is_the_xlstm_packages():
    xlstm = pytest.importorskip("xlstm")
    ours = shaken(GEGLU(Config(**SIZES)))
    theirs = xlstm.GatedFeedForward(xlstm.FeedForwardConfig(embedding_dim=32))  # 1.3 x 32, rounded up to 64
    assert_same(ours, theirs, feed_forward_pairs)


@pytest.fixture
def both_xlstms():
    """Ours and the package's language model of three layers, the second with sLSTM."""
    xlstm = pytest.importorskip("xlstm")
    settings = dict(mixer="mlstm slstm mlstm", mlp="none geglu none", norm="layernorm_nobias", expand=2)
    mlstm = xlstm.mLSTMBlockConfig(xlstm.mLSTMLayerConfig(num_heads=4))
    slstm = xlstm.sLSTMBlockConfig(xlstm.sLSTMLayerConfig(num_heads=4, backend="vanilla"))
    theirs = xlstm.xLSTMLMModelConfig(mlstm, slstm, 64, 3, 32, slstm_at=[1], vocab_size=50)
    theirs = xlstm.xLSTMLMModel(theirs)
    theirs.reset_parameters()
    return LanguageModel(Config(**SIZES | settings)), theirs


def language_model_pairs(ours, theirs):
    stack = theirs.xlstm_block_stack
    pairs = [(ours.embed.weight, theirs.token_embedding.weight), (ours.head.weight, theirs.lm_head.weight)]
    pairs += [(ours.norm.weight, stack.post_blocks_norm.weight)]
    for x, y in zip(ours.layers, stack.blocks):
        pairs += [(x.mixer_norm.weight, y.xlstm_norm.weight)]
        pairs += (slstm_pairs if x.mlp else mlstm_pairs)(x.mixer, y.xlstm)
        if x.mlp:
            pairs += [(x.mlp_norm.weight, y.ffn_norm.weight), *feed_forward_pairs(x.mlp, y.ffn)]
    return pairs


@torch.no_grad()
def test_a_language_model_of_both_is_the_xlstm_packages(both_xlstms):
    """Layout, norms and MLP too; as many parameters."""
    ours, theirs = both_xlstms
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    shaken(ours)
    for x, y in language_model_pairs(ours, theirs):
        y.copy_(x.reshape(y.shape))
    for module in theirs.modules():
        if hasattr(module, "residual_weight"):  # norms there add 1 to their weight
            module.weight -= 1
    tokens = torch.randint(50, (2, 64))
    torch.testing.assert_close(ours(tokens)[0], theirs(tokens), rtol=1e-4, atol=1e-4)


def test_xlstm_starts_as_the_package_has_it(both_xlstms):
    """Constants are the same, and what is random has the same spread, but for the two tables of tokens."""
    for x, y in language_model_pairs(*both_xlstms)[3:]:
        x = x.detach().reshape(y.shape)
        if y.numel() > 1000:
            assert x.std().item() == pytest.approx(y.std().item(), rel=0.15)
        elif y.std() == 0:  # norms there are 1 + 0
            assert torch.equal(x, y) or (y == 0).all() and (x == 1).all()
    mixers = [layer.mixer for layer in both_xlstms[0].layers]
    theirs = [block.xlstm for block in both_xlstms[1].xlstm_block_stack.blocks]
    forget_bias = mlstm_pairs(mixers[0], theirs[0])[9]
    recurrent_and_bias = slstm_pairs(mixers[1], theirs[1])[6:8]
    for x, y in [forget_bias, *recurrent_and_bias]:
        torch.testing.assert_close(x.reshape(y.shape), y)


# ----------------------------------------------------------------------------------------------------
# What is asked of all gates, and of settings


@pytest.mark.parametrize("form", ["loop", "auto"])
@pytest.mark.parametrize("name", ["lstm", "gru", "aaren", "mlstm", "slstm"])
def test_any_split_gives_the_same_whatever_the_parameters(name, form):
    """In float64, to 1e-10; at the start of training some recurrent weights are 0, and hide what they read."""
    mixer, x, state, parts = build(name).double(), torch.randn(2, 40, 32, dtype=torch.float64), None, []
    use_kernels(form, mixer)
    for part in x.tensor_split([1, 2, 17, 30], dim=1):
        y, state = mixer(part, state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=1), mixer(x)[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", ["loop", "auto"])
@pytest.mark.parametrize("low, high", [(-1000, -1000), (1000, 1000), (-1000, 1000)])
@pytest.mark.parametrize("name", ["mlstm", "slstm"])
def test_saturated_gates_give_no_nan(name, low, high, form):
    """Gates of e^1000, e^-1000 and any mixture: outputs and gradients are finite, in any split the same."""
    mixer = build(name)
    use_kernels(form, mixer)
    layers = [mixer.gates] if name == "mlstm" else [mixer.input, mixer.forget]
    with torch.no_grad():
        for layer in layers:
            layer.weight.zero_() if low == high else layer.weight.normal_(std=1000)
        bias = mixer.gates.bias if name == "mlstm" else mixer.bias
        bias.copy_(torch.linspace(low, high, bias.numel()).view_as(bias))
    x = torch.randn(2, 40, 32)
    y, _ = mixer(x)
    gradients = torch.autograd.grad(y.square().sum(), list(mixer.parameters()))
    assert y.isfinite().all() and all(gradient.isfinite().all() for gradient in gradients)
    head, state = mixer(x[:, :17])
    torch.testing.assert_close(torch.cat([head, mixer(x[:, 17:], state)[0]], dim=1), y, rtol=1e-4, atol=1e-4)


def test_widths_that_blocks_of_4_do_not_divide_are_refused(refusal):
    said = refusal(Config(mixer="hgrn2 mlstm", d_model=6, n_head=2, expand=3).check)
    assert "mlstm" in said and "multiple of 4, not 18" in said and said.count("\n") == 1
    Config(mixer="mlstm", d_model=6, n_head=2, expand=2).check()


def test_weight_decay_is_for_matrices():
    """As in the xlstm package, but for its convolutions: not for sLSTM's recurrent weights, norms and skips."""
    model = LanguageModel(Config(**SIZES | dict(mixer="mlstm slstm lstm")))
    decayed = make_optimizer(model, Settings()).param_groups[0]["params"]
    names = {name for name, p in model.named_parameters() if any(p is q for q in decayed)}
    mixers = {name.split("mixer.")[1] for name in names if "mixer." in name}
    gates = {"input.weight", "forget.weight", "candidate.weight", "show.weight"}
    mlstm = {"up.weight", "query.weight", "key.weight", "value.weight", "gates.weight", "output.weight"}
    assert mixers == gates | mlstm | {"cell.weight_ih_l0", "cell.weight_hh_l0"}
