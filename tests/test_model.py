"""What every mixer promises, whatever is inside it, and that each is what its paper or best-known code says."""

import re
from pathlib import Path

import train
from kernels import use_kernels
from model import MIXERS, Config, LanguageModel
from support.devices import find_device
from support.settings import configure

import pytest
import torch
import torch.nn.functional as F

ROOT = Path(__file__).parents[1]
SHAPE = dict(vocab_size=50, n_layer=3, d_model=32, n_head=4, d_mlp=48, context=64)
VARIANTS = {name: dict(mixer=name) for name in MIXERS}
VARIANTS |= {
    "llama": dict(mixer="attention", position="rope"),
    "gpt2": dict(mixer="attention", position="learned", norm="layernorm", mlp="gelu", tie_embeddings=True),
    "minrnn's language model": dict(mixer="mingru", conv=4, expand=2),
    "a hybrid": dict(mixer="hgrn2 minlstm attention", mlp="gelu none swiglu"),
}


FORMS = ("loop", "auto")  # as it is written, and with what fast/ puts in its place


def build(form="auto", **settings):
    torch.manual_seed(0)
    model = LanguageModel(Config(**SHAPE | settings))
    use_kernels(form, model)
    return model


@pytest.fixture(params=FORMS)
def form(request):
    return request.param


@pytest.fixture(params=[(name, form) for name in VARIANTS for form in FORMS], ids="-".join)
def model(request):
    name, form = request.param
    return build(form, **VARIANTS[name]).eval()


def test_states_hold_on_to_nothing_else(model):
    """A state is no view of a whole sequence; attention's are as long as that."""

    def tensors(x):
        return [x] if isinstance(x, torch.Tensor) else [z for y in x or () for z in tensors(y)]

    with torch.no_grad():
        states = model(torch.randint(50, (2, 40)))[1]
    for x in tensors([state for state in states if not isinstance(state, int)]):
        assert x.untyped_storage().nbytes() <= 2 * x.nbytes + 8 * 2 * 40


def test_states_of_another_depth_are_refused():
    states = build(n_layer=2)(torch.randint(50, (1, 3)))[1]
    with pytest.raises(ValueError):
        build(n_layer=3)(torch.randint(50, (1, 3)), states)


@pytest.mark.parametrize("mixer", ["mingru", "minlstm", "hgrn2", "mamba", "aaren", "mlstm"])
def test_in_bfloat16_a_token_at_a_time_is_as_exact_as_all_at_once(mixer, form):
    """Of a memory that moves slowly, whose small steps a state in bfloat16 would not take."""
    model = build(form, mixer=mixer, n_layer=1).eval()
    for name in ("update", "forget"):
        if hasattr(model.layers[0].mixer, name) and mixer.startswith("min"):
            getattr(model.layers[0].mixer, name).bias.data += 7 if name == "forget" else -7
    tokens, states, parts = torch.randint(50, (1, 256)), None, []
    with torch.no_grad():
        exact = model.double()(tokens)[0]
        with torch.autocast("cpu", torch.bfloat16):
            whole = model.float()(tokens)[0]
            for t in range(256):
                logits, states = model(tokens[:, t : t + 1], states)
                parts.append(logits)
    errors = [(x.double() - exact).abs().max() for x in (torch.cat(parts, 1), whole)]
    assert errors[0] < 2 * errors[1]


def test_gpt_drops_weights_of_attention_and_positions_as_nanogpt_does():
    model = build(mixer="attention", position="learned", dropout=0.5).train()
    x = torch.randn(2, 8, SHAPE["d_model"])
    positions, block = model.layers[:2]
    assert not torch.equal(block.mixer(x)[0], block.mixer(x)[0])
    assert 0.3 < (positions(x)[0] == 0).float().mean() < 0.7 and not (model.dropout(x) == 0).any()
    rope = build(mixer="attention", position="rope", dropout=0.5).train().layers[0].mixer
    assert torch.equal(rope(x)[0], rope(x)[0])


def test_a_gpu_that_is_not_here_is_named(monkeypatch, refusal):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("cuda:1") == torch.device("cuda:1")
    assert refusal(find_device, "cuda:2") == "device = 'cuda:2': there are 2 GPUs here\n"


def test_the_future_does_not_leak(model):
    """Other tokens from t on leave all logits before t as they were, to the bit."""
    tokens = torch.randint(50, (2, 40))
    logits, _ = model(tokens)
    for t in (1, 7, 16, 31, 39):
        edited = tokens.clone()
        edited[:, t:] = torch.randint(50, (2, 40 - t))
        assert torch.equal(model(edited)[0][:, :t], logits[:, :t])


@torch.no_grad()
def test_reading_in_parts_changes_nothing(model):
    """Any split of a text, down to single tokens, gives the same logits to 1e-5."""
    tokens = torch.randint(50, (2, 40))
    whole, _ = model(tokens)
    for cuts in ((1,), (20,), (39,), (7, 8, 30), tuple(range(1, 40))):
        states, logits = None, []
        for part in torch.tensor_split(tokens, cuts, dim=1):
            part_logits, states = model(part, states)
            logits.append(part_logits)
        torch.testing.assert_close(torch.cat(logits, dim=1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", [(name, "auto") for name in VARIANTS], indirect=True, ids=VARIANTS)
def test_every_mixer_learns_a_sentence_by_heart(model):
    tokens = torch.arange(12).repeat(1, 2)[:, :20] * 3 % 50
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = F.cross_entropy(model(tokens[:, :-1])[0].flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.1:
            break
    assert loss < 0.1


def test_gradients_reach_every_parameter(model):
    model(torch.randint(50, (2, 40)))[0].square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_features_under_autocast_stay_close(model):
    """bfloat16 changes logits by little: gates, norms and recurrences are made in float32."""
    tokens = torch.randint(50, (2, 40))
    with torch.autocast("cpu", torch.bfloat16):
        low = model(tokens)[0]
    torch.testing.assert_close(low.float(), model(tokens)[0], rtol=0.05, atol=0.05)


# ----------------------------------------------------------------------------------------------------
# Agreement with implementations by others, weights copied over


def copy(pairs):
    with torch.no_grad():
        for ours, theirs in pairs:
            theirs.copy_(ours)


def test_attention_with_rope_is_transformers_llama():
    transformers = pytest.importorskip("transformers")
    ours = build(**VARIANTS["llama"]).eval()
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
            intermediate_size=48, rms_norm_eps=1e-6, tie_word_embeddings=False,
        )
    ).eval()  # fmt: skip
    pairs = [(ours.embed.weight, theirs.model.embed_tokens.weight), (ours.head.weight, theirs.lm_head.weight)]
    pairs += [(ours.norm.weight, theirs.model.norm.weight)]
    for x, y in zip(ours.layers, theirs.model.layers):
        pairs += [(x.mixer_norm.weight, y.input_layernorm.weight)]
        pairs += [(x.mlp_norm.weight, y.post_attention_layernorm.weight)]
        pairs += [(getattr(x.mixer, a).weight, getattr(y.self_attn, b).weight) for a, b in
                  (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("output", "o_proj"))]  # fmt: skip
        pairs += [
            (getattr(x.mlp, a).weight, getattr(y.mlp, f"{a}_proj").weight) for a in ("gate", "up", "down")
        ]
    copy(pairs)
    tokens = torch.randint(50, (2, 64))
    torch.testing.assert_close(ours(tokens)[0], theirs(tokens).logits, rtol=1e-5, atol=1e-5)


def test_attention_with_learned_positions_is_transformers_gpt2():
    transformers = pytest.importorskip("transformers")
    ours = build(**VARIANTS["gpt2"], norm_eps=1e-5, d_mlp=128).eval()
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=50, n_positions=64, n_embd=32, n_layer=3, n_head=4)
    ).eval()
    positions, *blocks = ours.layers
    with torch.no_grad():
        for parameter in ours.parameters():  # biases begin at 0 and norms at 1: make them count
            parameter.add_(0.1 * torch.randn_like(parameter))
    pairs = [
        (ours.embed.weight, theirs.transformer.wte.weight),
        (positions.table.weight, theirs.transformer.wpe.weight),
    ]
    pairs += [(getattr(ours.norm, x), getattr(theirs.transformer.ln_f, x)) for x in ("weight", "bias")]
    for x, y in zip(blocks, theirs.transformer.h):
        inputs = [x.mixer.query, x.mixer.key, x.mixer.value]
        pairs += [(torch.cat([w.weight for w in inputs]).T, y.attn.c_attn.weight)]
        pairs += [(torch.cat([w.bias for w in inputs]), y.attn.c_attn.bias)]
        for a, b in ((x.mixer.output, y.attn.c_proj), (x.mlp.up, y.mlp.c_fc), (x.mlp.down, y.mlp.c_proj)):
            pairs += [(a.weight.T, b.weight), (a.bias, b.bias)]
        for a, b in ((x.mixer_norm, y.ln_1), (x.mlp_norm, y.ln_2)):
            pairs += [(a.weight, b.weight), (a.bias, b.bias)]
    copy(pairs)
    tokens = torch.randint(50, (2, 64))
    torch.testing.assert_close(ours(tokens)[0], theirs(tokens).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Triton is not supported")
def test_hgrn2_is_flash_linear_attentions():
    """fla's layer needs a GPU, so its own lines around fla's naive recurrence: fla 0.6.0, layers/hgrn2.py."""
    naive = pytest.importorskip("fla.ops.gla.naive")
    ours = build(mixer="hgrn2").eval()
    with torch.no_grad():
        table = ours.floors.table.normal_()
    floors = table.softmax(0).cumsum(0) - table.softmax(0)[0]

    def theirs(mixer, x, layer):
        q, f, i = F.silu(mixer.query(x)), mixer.forget(x), mixer.input(x)
        if layer == 0:
            g = F.logsigmoid(f)
        else:
            g = torch.logaddexp(floors[layer].log(), torch.log1p(-floors[layer]) + F.logsigmoid(f))
        heads = [z.unflatten(-1, (4, 8)) for z in (q, 1 - g.exp(), i, g)]
        o, _ = naive.naive_recurrent_gla(*heads)  # scales q by K^-1/2
        return mixer.output(F.rms_norm(o.flatten(2), (32,), mixer.norm.weight, 1e-6))

    tokens = torch.randint(50, (2, 64))
    x = ours.embed(tokens)
    for layer, block in enumerate(ours.layers):
        x = x + theirs(block.mixer, block.mixer_norm(x), layer)
        x = x + block.mlp(block.mlp_norm(x))
    torch.testing.assert_close(ours(tokens)[0], ours.head(ours.norm(x)), rtol=1e-5, atol=1e-5)


def g(x):
    return torch.where(x >= 0, x + 0.5, x.sigmoid())


def min_gru_step(mixer, x_t, h):
    """arXiv:2410.01201, listing of minGRU in sequential mode."""
    z = mixer.update(x_t).sigmoid()
    return (1 - z) * h + z * g(mixer.candidate(x_t))


def min_lstm_step(mixer, x_t, h):
    """The same paper, listing of minLSTM in sequential mode."""
    f, i = mixer.forget(x_t).sigmoid(), mixer.input(x_t).sigmoid()
    return f / (f + i) * h + i / (f + i) * g(mixer.candidate(x_t))


@pytest.mark.parametrize("name, step", [("mingru", min_gru_step), ("minlstm", min_lstm_step)])
def test_min_rnns_are_the_papers_sequential_listing(name, step, form):
    mixer = MIXERS[name](Config(**SHAPE | dict(expand=2)), layer=0)
    use_kernels(form, mixer)
    x, h, hs = torch.randn(2, 64, 32), torch.rand(2, 64), []
    y, last = mixer(x, h)
    for x_t in x.unbind(1):
        h = step(mixer, x_t, h)
        hs.append(h)
    torch.testing.assert_close(y, mixer.output(torch.stack(hs, dim=1)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last, h, rtol=1e-5, atol=1e-5)


# ----------------------------------------------------------------------------------------------------
# The papers' models


# Of the models of Shakespeare, by hand, with D = 384, E = 2 D = 768, an MLP of 4 D = 1,536 and 65 characters:
#     convolution 4 D + D = 1,920, a projection D to E (D + 1) E = 295,680, back (E + 1) D = 295,296,
#     MLP (D + 1) 4 D + (4 D + 1) D = 1,181,568, an RMSNorm D = 384
MINGRU_LAYER = 1_920 + 2 * 295_680 + 295_296 + 1_181_568 + 2 * 384  # = 2,070,912
MINLSTM_LAYER = MINGRU_LAYER + 295_680  # one more gate
#     attention's four projections 4 (D + 1) D = 591,360, a LayerNorm 2 D = 768
GPT_LAYER = 591_360 + 1_181_568 + 2 * 768  # = 1,774,464
# Of xLSTM, with D = 1024, E = 2 D = 2048, 4 heads and an MLP of 1344:
#     mLSTM: up 2 D E, down D E, convolution 5 E, q, k, v in blocks of 4 3 x 4 E, two gates a head 8 (3 E + 1),
#     norm of heads and skip 2 E, LayerNorm D
#     sLSTM: convolution 5 D, four gates from x and as many from h 8 D D / 4, biases 4 D, norm of heads D,
#     MLP 3 D 1344, two LayerNorms 2 D
MLSTM_LAYER = 3 * 1024 * 2048 + 5 * 2048 + 12 * 2048 + 8 * (3 * 2048 + 1) + 2 * 2048 + 1024  # = 6,380,552
SLSTM_LAYER = 5 * 1024 + 2 * 1024**2 + 4 * 1024 + 1024 + 3 * 1024 * 1344 + 2 * 1024  # = 6,238,208
# Of the LSTM, with D = 512 and E = 4096: gates, two biases each, 4 E (D + E + 2), down (E + 1) D, RMSNorm D
LSTM_LAYER = 4 * 4096 * (512 + 4096 + 2) + 4097 * 512 + 512  # = 77,628,416
#     Mamba, with N = 16 and a rank of D / 16 = 24: input 2 D E = 589,824, convolution 4 E + E = 3,840, selection
#     E (24 + 2 N) = 43,008, step (24 + 1) E = 19,200, A and skip (N + 1) E = 13,056, output E D = 294,912
MAMBA_LAYER = 589_824 + 3_840 + 43_008 + 19_200 + 13_056 + 294_912 + 384  # = 964,224
SIZES = {
    "lstm_10m": 2 * LSTM_LAYER + 2 * 16_000 * 512 + 512,  # = 171,641,344: layers, two tables, last norm
    "xlstm_10m": 42 * MLSTM_LAYER + 6 * SLSTM_LAYER + 2 * 16_000 * 1024 + 1024,  # = 338,181,456
    "hgrn2_10m": 366_846_976,
    "hgrn2_100m": 366_846_976,
    "hgrn2_1b": 990_529_536,
    "llama_10m": 401_912_832,
    "mamba_10m": 350_438_400,
    "mingru_shakespeare": 3 * MINGRU_LAYER + 2 * 65 * 384 + 384,  # = 6,263,040: layers, two tables, last norm
    "minlstm_shakespeare": 3 * MINLSTM_LAYER + 2 * 65 * 384 + 384,  # = 7,150,080
    "gpt_shakespeare": 3 * GPT_LAYER + 65 * 384 + 256 * 384 + 768,  # = 5,447,424: one table, 256 positions
    "mamba_shakespeare": 3 * MAMBA_LAYER + 2 * 65 * 384 + 384,  # = 2,942,976
}


@pytest.mark.parametrize("name, count", SIZES.items())
def test_the_papers_models_have_the_papers_sizes(name, count):
    """To the last parameter, and as the first lines of the settings file say, or of its base."""
    text = (ROOT / f"config/{name}.py").read_text(encoding="utf-8")
    for base in re.findall(r'^base = "(.+)"', text, re.MULTILINE):
        text += (ROOT / "config" / base).read_text(encoding="utf-8")
    assert f"{count:,} parameters" in text
    with torch.device("meta"):
        model = LanguageModel(configure(train.Settings(), [str(ROOT / f"config/{name}.py")]))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_floors_rise_with_depth_and_are_one_table():
    """At the start layer l's floor is l / n_layer: 0 in the first."""
    model = build(mixer="hgrn2")
    floors = model.floors()
    assert [name for name, _ in model.named_parameters() if "floors" in name] == ["floors.table"]
    assert list(floors) == [0, 1, 2]
    expected = torch.tensor([[0.0], [1 / 3], [2 / 3]]).expand(3, 32)
    torch.testing.assert_close(torch.stack([*floors.values()]), expected)


def test_in_a_hybrid_floors_go_by_the_depth_of_a_layer_and_to_hgrn2_alone():
    model = build(mixer="attention hgrn2 hgrn2", n_layer=3)
    floors = {layer: floor.mean().item() for layer, floor in model.floors().items()}
    assert floors == pytest.approx({1: 1 / 3, 2: 2 / 3})
    assert build(mixer="mingru attention").floors is None
    assert build(mixer="mingru attention hgrn2", n_layer=2).floors is None


def test_every_layer_of_hgrn2_forgets_above_its_own_floor(form):
    """Also where a convolution stands before each block."""
    model, seen = build(form, mixer="hgrn2", conv=4), []
    model.floors.table.data.normal_()
    for layer in model.layers:
        if hasattr(layer, "mixer"):
            layer.mixer.register_forward_pre_hook(lambda mixer, inputs: seen.append(inputs[2]))
    model(torch.randint(50, (1, 5)))
    assert len(seen) == 3 and all(map(torch.equal, seen, model.floors().values()))


def test_saturated_gates_give_no_nan(form):
    """Forget logits of +-1000: f is 0 or 1 to the last bit, and every gradient is finite."""
    model = build(form, mixer="hgrn2")
    with torch.no_grad():
        for block in model.layers:
            block.mixer.forget.weight.normal_(std=1000)
    model(torch.randint(50, (2, 40)))[0].square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
