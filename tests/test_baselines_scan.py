"""Mamba, S4D and Hyena are what their papers and their authors' code say, at any length and in any split."""

import math

import baselines
from fast.convolution import causal_convolution
from kernels import use_kernels
from model import MIXERS, Config

import pytest
import torch
import torch.nn.functional as F
from test_model import build, copy


@pytest.fixture(params=["loop", "auto"])
def form(request):
    return request.param


def mixer_of(name, form="auto", **settings):
    """One in float64, its parameters moved from where they start, so that each of them counts."""
    torch.manual_seed(0)
    config = Config(mixer=name, **settings)
    mixer = MIXERS[name](config, layer=0).double()
    baselines.initialise_baseline(mixer, config)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    use_kernels(form, mixer)
    return mixer


def close(x, y):
    torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


def test_mamba_is_transformers_mamba(form):
    """Logits to 1e-5, by its plain PyTorch form."""
    transformers = pytest.importorskip("transformers")
    ours = build(form, mixer="mamba", mlp="none", expand=2, d_state=8, norm_eps=1e-5).eval()
    theirs = transformers.MambaForCausalLM(
        transformers.MambaConfig(
            vocab_size=50, hidden_size=32, num_hidden_layers=3, state_size=8, expand=2, tie_word_embeddings=False
        )
    ).eval()  # fmt: skip
    pairs = [
        (ours.embed.weight, theirs.backbone.embeddings.weight),
        (ours.head.weight, theirs.lm_head.weight),
    ]
    pairs += [(ours.norm.weight, theirs.backbone.norm_f.weight)]
    for x, y in zip(ours.layers, theirs.backbone.layers):
        x, y, norms = x.mixer, y.mixer, (x.mixer_norm.weight, y.norm.weight)
        pairs += [norms, (x.log_A, y.A_log), (x.skip, y.D)]
        names = ("input", "in_proj"), ("conv", "conv1d"), ("select", "x_proj"), ("step", "dt_proj")
        for a, b in (*names, ("output", "out_proj")):
            a, b = getattr(x, a), getattr(y, b)
            pairs += [(a.weight, b.weight)] + ([] if a.bias is None else [(a.bias, b.bias)])
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    copy(pairs)
    assert len(pairs) == len(list(ours.parameters()))
    tokens = torch.randint(50, (2, 64))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens)[0], theirs(tokens).logits, rtol=1e-5, atol=1e-5)


def s4d_step(mixer, x_t, h):
    """One step, as the docstring of S4D says it."""
    A = torch.complex(-mixer.log_decay.exp(), mixer.frequency)
    dtA = mixer.log_dt.exp()[:, None] * A
    C = torch.view_as_complex(mixer.read) * (dtA.exp() - 1) / A
    h = dtA.exp() * h + x_t[:, :, None]
    y = 2 * (C * h).sum(-1).real + mixer.skip * x_t
    a, b = mixer.output(F.gelu(y)).chunk(2, dim=-1)
    return a * b.sigmoid(), h


@pytest.mark.parametrize("T", [1, 2, 40, 200])
def test_s4d_is_the_recurrence_of_its_paper(T, form):
    """Outputs and the last state, from an initial state."""
    mixer = mixer_of("s4d", form, d_model=8, d_state=6)
    x, h, ys = torch.randn(2, T, 8).double(), torch.randn(2, 8, 3, dtype=torch.complex128), []
    y, last = mixer(x, h)
    for x_t in x.unbind(1):
        y_t, h = s4d_step(mixer, x_t, h)
        ys.append(y_t)
    close(y, torch.stack(ys, dim=1))
    close(last, h)


def test_s4d_is_the_closed_form_of_its_authors(form):
    """K_l = 2 Re sum_n C_n (e^{dt A_n} - 1) / A_n e^{dt A_n l}, each by itself, and y = K * x + D x."""
    mixer, T = mixer_of("s4d", form, d_model=4, d_state=6), 70
    x, A = torch.randn(1, T, 4).double(), torch.complex(-mixer.log_decay.exp(), mixer.frequency)
    dt, C = mixer.log_dt.exp()[:, None], torch.view_as_complex(mixer.read)
    K = [2 * (C * (torch.exp(dt * A) - 1) / A * torch.exp(dt * A * t)).sum(1).real for t in range(T)]
    y = torch.stack([sum(K[t - s] * x[:, s] for s in range(t + 1)) for t in range(T)], dim=1)
    close(mixer(x)[0], F.glu(mixer.output(F.gelu(y + mixer.skip * x)), dim=-1))


@pytest.mark.parametrize("T", [1, 40, 90])
def test_hyena_is_the_closed_form_of_its_authors(T, form):
    """As safari's standalone_hyena.py with the settings of its language models, sum by sum."""
    L = 90
    mixer = mixer_of("hyena", form, d_model=6, context=L)
    start, x = mixer_of("hyena", form, d_model=6, context=L), torch.randn(2, T, 6).double()
    baselines.initialise_baseline(start, Config(context=L))
    i, f = torch.arange(L).double()[:, None], torch.linspace(1e-4, 15, 16)
    angle = 2 * math.pi * i / L * f
    PE = torch.cat([i / (L - 1), torch.exp(-1j * angle).real, torch.exp(-1j * angle).imag], dim=1)
    torch.testing.assert_close(start.positions.detach(), PE, rtol=1e-5, atol=1e-5)

    delta = torch.linspace(math.log(0.01) / 1.5, math.log(0.01) / 0.3, 6, dtype=torch.float64)
    z = mixer.positions
    for layer in mixer.filter:
        z = torch.sin(mixer.w * F.linear(z, layer.weight, layer.bias))
    k = z @ mixer.filter_output.weight.T * torch.exp(-i / (L - 1) * delta.abs())
    padded = F.pad(mixer.input(x), (0, 0, 2, 0))
    taps = mixer.conv.weight.squeeze(1).T
    short = sum(padded[:, i : i + T] * taps[i] for i in range(3)) + mixer.conv.bias
    x0, x1, v = short.chunk(3, dim=-1)
    v = v * x1
    y = torch.stack([sum(k[t - s] * v[:, s] for s in range(t + 1)) for t in range(T)], dim=1)
    close(mixer(x)[0], mixer.output((y + mixer.skip * v) * x0))


@pytest.mark.parametrize("name", ["mamba", "s4d", "hyena"])
@pytest.mark.parametrize("cuts", [(1,), (150,), (64, 65, 299), tuple(range(1, 300, 7))])
def test_long_texts_in_parts_are_the_whole(name, cuts, form):
    """To 1e-9 in float64, where pieces are many, and at lengths that no power of two divides."""
    mixer = mixer_of(name, form, d_model=8, d_state=6, context=300)
    x, state, ys = torch.randn(2, 300, 8).double(), None, []
    for part in torch.tensor_split(x, cuts, dim=1):
        y, state = mixer(part, state)
        ys.append(y)
    whole, last = mixer(x)
    close(torch.cat(ys, dim=1), whole)
    for a, b in zip(*([s] if name == "s4d" else s for s in (state, last))):
        close(a, b)


# ----------------------------------------------------------------------------------------------------
# The convolution as long as the text


@pytest.mark.parametrize("T", [1, 2, 63, 64, 65, 127, 129, 300, 513])
def test_the_long_convolution_is_the_sum_it_stands_for(T):
    x, k = torch.randn(2, T, 3).double().requires_grad_(), torch.randn(T, 3).double().requires_grad_()
    w = torch.randn(2, T, 3).double()
    slow = torch.stack([(k[: t + 1].flip(0) * x[:, : t + 1]).sum(1) for t in range(T)], dim=1)
    fast = causal_convolution(x, k)
    for ours, exact in zip(*((y, *torch.autograd.grad((y * w).sum(), (x, k))) for y in (fast, slow))):
        close(ours, exact)


@pytest.mark.parametrize("T", [50, 65, 300, 1024])
def test_the_future_changes_no_bit_of_a_long_convolution(T):
    """However large it is: one Fourier transform of the whole would fail here."""
    x, k = torch.randn(2, T, 3), torch.randn(T, 3)
    y = causal_convolution(x, k)
    for t in (1, T // 2, T // 2 + 1, T - 1):
        edited = torch.cat([x[:, :t], 1e6 * torch.randn(2, T - t, 3)], dim=1)
        assert torch.equal(causal_convolution(edited, k)[:, :t], y[:, :t])


def test_what_is_kept_for_the_gradient_is_small():
    """Of no step all N states, nor all waves of S4D, nor a T x T matrix."""
    B, T, D, N = 2, 400, 32, 32
    for name in ("mamba", "s4d", "hyena"):
        mixer, sizes = mixer_of(name, d_model=D, d_state=N, context=T), []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            mixer(torch.randn(B, T, D).double())[0].sum().backward()
        assert max(sizes) < B * T * D * N / 8, name


# ----------------------------------------------------------------------------------------------------
# Beginnings and refusals


def test_mambas_first_steps_are_between_a_thousandth_and_a_tenth():
    config = Config(mixer="mamba", n_layer=4, d_model=64, expand=2, d_state=4)
    torch.manual_seed(0)
    mixer = MIXERS["mamba"](config, layer=0)
    before = mixer.output.weight.clone()
    baselines.initialise_baseline(mixer, config)
    dt = F.softplus(mixer.step.bias)
    assert 1e-3 <= dt.min() < 2e-3 and 0.05 < dt.max() <= 0.1
    torch.testing.assert_close(mixer.log_A.exp(), torch.arange(1.0, 5).expand(128, 4))
    assert mixer.step.weight.abs().max() <= 0.5 and (mixer.skip == 1).all()  # 4^-1/2, the rank being 64 / 16
    torch.testing.assert_close(mixer.output.weight, before / 2)  # by sqrt(4 layers)


def test_s4d_starts_from_the_lin_form():
    config = Config(mixer="s4d", d_model=200, d_state=6)
    mixer = MIXERS["s4d"](config, layer=0)
    baselines.initialise_baseline(mixer, config)
    torch.testing.assert_close(mixer.log_decay.exp(), torch.full((200, 3), 0.5))
    torch.testing.assert_close(mixer.frequency, math.pi * torch.arange(3.0).expand(200, 3))
    assert 1e-3 <= mixer.log_dt.exp().min() and mixer.log_dt.exp().max() <= 0.1
    assert mixer.read.detach().square().sum(-1).mean() == pytest.approx(1, abs=0.15)


def test_s4d_refuses_an_odd_number_of_states(refusal):
    assert "d_state = 15: s4d needs an even one" in refusal(Config(mixer="hgrn2 s4d", d_state=15).check)
    Config(mixer="hgrn2 mamba", d_state=15).check()


def test_hyena_ends_where_its_filter_ends(refusal):
    model = build(mixer="hyena", context=20).eval()
    _, states = model(torch.zeros(1, 20, dtype=torch.long))
    said = refusal(model, torch.zeros(1, 1, dtype=torch.long), states)
    assert said == "21 tokens: this model's filter has 20; shorten the text\n"
