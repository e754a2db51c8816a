"""
The exported classes behave as models of transformers: a small Llama makes the same promises, for its answers to
the same calls are what anybody expects.
"""

import copy
import random
from pathlib import Path

from model import Config, LanguageModel

import pytest
import test_export
import torch
import torch.nn.functional as F
from test_export import TINY, exported, make_run, near, opened, tokens
from torch import nn

transformers = pytest.importorskip("transformers")
from transformers import (  # noqa: E402
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DynamicCache,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

hybrid = test_export.hybrid  # a fixture, as is the next
own_cache = pytest.fixture(scope="module", autouse=True)(test_export.isolated)
GREEDY = dict(max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
OURS = {
    "hgrn2": dict(mixer="hgrn2 attention", position="rope", tie_embeddings=True),
    "mingru": dict(mixer="mingru", conv=4, mlp="none"),
    "learned": dict(mixer="attention mlstm", position="learned", norm="layernorm", mlp="gelu"),
}


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        initializer_range=0.3, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory, prepared):
    """{name: a folder that from_pretrained takes}, ours and a Llama."""
    place = tmp_path_factory.mktemp("peers")
    llama().save_pretrained(place / "llama")
    found = {"llama": str(place / "llama")}
    for name, settings in OURS.items():
        make_run(place / name, prepared / "data/tiny/tokenizer.json", **settings)
        found[name] = exported(str(place / name))
    return found


@pytest.fixture(params=["llama", *OURS])
def folder(request, folders):
    return folders[request.param]


@pytest.fixture(scope="module")
def loaded():
    return {}


@pytest.fixture
def model(folder, loaded):
    if folder not in loaded:
        loaded[folder] = load(folder)
    return copy.deepcopy(loaded[folder])


def load(folder, kind=AutoModelForCausalLM, **options):
    return kind.from_pretrained(folder, trust_remote_code=True, **options).eval()


def is_llama(model):
    return "Llama" in type(model).__name__


def left_padded():
    x, mask = tokens(2, 8), torch.ones(2, 8, dtype=torch.long)
    mask[1, :5] = 0
    return x, mask


# ----------------------------------------------------------------------------------------------------
# The cache


@torch.no_grad()
def test_generate_goes_on_from_a_cache(model):
    """Of a prompt read in part, in several turns, copied, and by one token a time: the text of a single pass."""
    x = tokens(2, 12)
    expected = model.generate(x, **GREEDY).tolist()
    for read in (1, 8, 11):
        past = model(x[:, :read], use_cache=True).past_key_values
        again = copy.deepcopy(past)
        assert past.get_seq_length() == read
        assert model.generate(x, past_key_values=past, **GREEDY).tolist() == expected
        longer = torch.cat([torch.tensor(expected), tokens(2, 3)], dim=1)
        assert torch.equal(
            model.generate(longer, past_key_values=past, **GREEDY), model.generate(longer, **GREEDY)
        )
        assert model.generate(x, past_key_values=again, **GREEDY).tolist() == expected


@torch.no_grad()
def test_a_cache_is_updated_in_place(model):
    x = tokens(2, 12)
    past = model(x[:, :4], use_cache=True).past_key_values
    model(x[:, 4:8], past_key_values=past)
    assert near(model(x[:, 8:], past_key_values=past).logits, model(x).logits[:, 8:])
    past.reorder_cache(torch.tensor([1, 1]))
    assert near(
        model(x[[1, 1], :3], past_key_values=past).logits[0],
        model(torch.cat([x, x[:, :3]], 1)).logits[1, 12:],
    )


@torch.no_grad()
def test_padded_texts_have_a_cache_too(model):
    """After the prompt a token is all that is read of each, and beams take rows from it as from any other."""
    x, mask = left_padded()
    alone = [model.generate(x[:1], **GREEDY)[0, 8:], model.generate(x[1:, 5:], **GREEDY)[0, 3:]]
    lengths = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, y: lengths.append(y.shape[1]))
    both = model.generate(x, attention_mask=mask, **GREEDY)
    assert [row[8:].tolist() for row in both] == [row.tolist() for row in alone]
    assert max(lengths[-3:]) == 1
    write = GREEDY | dict(num_beams=3)
    beams = model.generate(x, attention_mask=mask, use_cache=False, **write)
    assert torch.equal(model.generate(x, attention_mask=mask, **write), beams)
    past = model(x[:, :7], attention_mask=mask[:, :7], use_cache=True).past_key_values
    y = model(x[:, 7:], attention_mask=mask, past_key_values=past).logits[:, 0]
    assert near(y, model(x, attention_mask=mask, use_cache=False).logits[:, -1])


@torch.no_grad()
def test_a_cache_outlives_a_call_that_failed(folders):
    model, x = load(folders["learned"]), tokens(1, 70)
    past = model(x[:, :60], use_cache=True).past_key_values
    with pytest.raises(Exception, match="65 tokens: this model has learned 64"):
        model(x[:, 60:65], past_key_values=past)
    assert near(model(x[:, 60:64], past_key_values=past).logits, model(x[:, :64]).logits[:, 60:])


@torch.no_grad()
def test_what_no_cache_of_ours_can_do_is_refused(folders):
    model, x, mask = load(folders["hgrn2"]), *left_padded()
    past = model(x, attention_mask=mask, use_cache=True).past_key_values
    for said, call in {
        "a DynamicCache cannot hold": lambda: model.generate(x, past_key_values=DynamicCache(), **GREEDY),
        "a list cannot hold": lambda: model(x, past_key_values=[]),
        "has seen all these": lambda: model.generate(x, attention_mask=mask, past_key_values=past, **GREEDY),
        "cache_implementation = 'static'": lambda: model.generate(x, cache_implementation="static", **GREEDY),
        "not supported with stateful": lambda: model.generate(x[:1], assistant_model=model, **GREEDY),
        "take back tokens": lambda: past.crop(3),
        "is of 2 texts": lambda: model(x[:1], past_key_values=past),
        "attention_mask differs": lambda: model(x, attention_mask=torch.ones(2, 16), past_key_values=past),
        "attention_mask is of shape": lambda: model(x, attention_mask=mask[:, :5]),
    }.items():
        with pytest.raises(ValueError, match=said):
            call()


@torch.no_grad()
def test_a_cache_follows_the_model_to_another_type_and_device(folders):
    x = tokens(2, 9)
    for name in OURS:
        model = load(folders[name])
        expected, past = model(x).logits[:, 5:], model(x[:, :5], use_cache=True).past_key_values
        wide = copy.deepcopy(model).double()
        assert near(wide(x[:, 5:], past_key_values=copy.deepcopy(past)).logits, expected)
        if name == "mingru":
            assert model.to("meta")(x[:, 5:].to("meta"), past_key_values=past).logits.is_meta


# ----------------------------------------------------------------------------------------------------
# What a caller asks for


@torch.no_grad()
def test_hidden_states_are_those_of_the_layers(model):
    x, mask = left_padded()
    y = model(x, attention_mask=mask, output_hidden_states=True, use_cache=False)
    assert [state.shape for state in y.hidden_states] == [(2, 8, 16)] * 4
    assert near(model.get_output_embeddings()(y.hidden_states[-1][1, 5:]), y.logits[1, 5:])
    if getattr(model.config, "position", "") != "learned":
        assert near(y.hidden_states[0][1, 5:], model.get_input_embeddings()(x[1, 5:]))
    alone = model(x[1:, 5:], output_hidden_states=True)
    for state, expected in zip(y.hidden_states, alone.hidden_states):
        assert near(state[1, 5:], expected[0])
    parts = model(x, output_hidden_states=True, return_dict=False, use_cache=False)
    assert len(parts) == 2 and len(parts[1]) == 4
    steps = model.generate(x, output_hidden_states=True, return_dict_in_generate=True, **GREEDY).hidden_states
    assert [len(step) for step in steps] == [4] * 6


@torch.no_grad()
def test_embeddings_may_be_given_in_place_of_tokens(model):
    x, mask = left_padded()
    embeddings = model.get_input_embeddings()(x)
    y = model(inputs_embeds=embeddings, attention_mask=mask).logits
    assert near(y[1, 5:], model(x, attention_mask=mask).logits[1, 5:])
    written = model.generate(inputs_embeds=embeddings, attention_mask=mask, **GREEDY)
    assert torch.equal(written, model.generate(x, attention_mask=mask, **GREEDY)[:, 8:])


@torch.no_grad()
def test_logits_of_the_last_tokens_and_a_decoder_like_anybodys(model):
    x = tokens(2, 8)
    logits = model(x).logits
    assert near(model(x, logits_to_keep=3).logits, logits[:, -3:])
    assert near(model(x, logits_to_keep=torch.tensor([1, 5])).logits, logits[:, [1, 5]])
    assert model.get_decoder() is model.base_model
    features = model.base_model(input_ids=x, attention_mask=torch.ones_like(x)).last_hidden_state
    assert near(model.get_output_embeddings()(features), logits)
    assert near(model(x, position_ids=torch.arange(8).expand(2, -1)).logits, logits)
    config = GenerationConfig(max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert torch.equal(model.generate(x, generation_config=config), model.generate(x, **GREEDY))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_is_chosen_as_for_any_model(folder, attention):
    assert load(folder, attn_implementation=attention).config._attn_implementation == attention


@torch.no_grad()
def test_what_is_asked_in_vain_is_an_error(folders):
    model, x = load(folders["hgrn2"]), tokens(2, 8)
    for said, call in {
        "output_attentions": lambda: model(x, output_attentions=True),
        "position_ids": lambda: model(x, position_ids=torch.arange(8) // 4),
        "token_type_ids": lambda: model(x, token_type_ids=torch.ones_like(x)),
        "no argument cu_seq_lens_q": lambda: model(x, cu_seq_lens_q=torch.tensor([0, 4, 8])),
        "either input_ids or inputs_embeds": lambda: model(x, inputs_embeds=torch.zeros(2, 8, 16)),
        "Flash Attention 2": lambda: load(folders["hgrn2"], attn_implementation="flash_attention_2"),
    }.items():
        with pytest.raises((ValueError, TypeError), match=said):
            call()


def test_gradient_checkpointing_changes_no_gradient(model):
    x, gradients = tokens(2, 9), []
    model.train()
    for use in (False, True):
        if use:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=False))
            runs = []
            last = (
                model.model.layers[-1].self_attn if is_llama(model) else model.model.nanornn.layers[-1].mixer
            )
            last.register_forward_pre_hook(lambda module, inputs: runs.append(1))
        model.zero_grad()
        model(x, labels=x).loss.backward()
        gradients.append([weight.grad for weight in model.parameters()])
    assert len(runs) == 2 and all(near(x, y) for x, y in zip(*gradients))


@torch.no_grad()
def test_the_whole_model_compiles(folders):
    model, x = load(folders["hgrn2"]), tokens(2, 9)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert near(compiled(x, use_cache=False).logits, model(x).logits)


def test_losses_are_divided_by_what_is_given(model):
    x = tokens(2, 8)
    total = model(x, labels=x).loss * 14
    assert model(x, labels=x, num_items_in_batch=5).loss.item() == pytest.approx(total.item() / 5)


def test_a_classifier_has_the_loss_of_its_problem(folder):
    model, x = load(folder, AutoModelForSequenceClassification, num_labels=3), tokens(2, 5)
    for kind, labels, loss in (
        ("multi_label_classification", [[1.0, 0, 1], [0, 0, 1]], F.binary_cross_entropy_with_logits),
        ("regression", [[1.0, 0.3, 2], [2, 0.1, 5]], F.mse_loss),
        (None, [[1.0, 0, 1], [0, 0, 1]], F.binary_cross_entropy_with_logits),
        (None, [2, 0], F.cross_entropy),
    ):
        model.config.problem_type, labels = kind, torch.tensor(labels)
        y = model(x, labels=labels)
        assert y.loss.item() == pytest.approx(loss(y.logits, labels).item()), kind
    one = load(folder, AutoModelForSequenceClassification, num_labels=1)
    y = one(x, labels=torch.tensor([1, 3]))
    assert y.loss.item() == pytest.approx(((y.logits[:, 0] - torch.tensor([1.0, 3.0])) ** 2).mean().item())


# ----------------------------------------------------------------------------------------------------
# Weights


@pytest.mark.parametrize("changed", [dict(vocab_size=450), dict(hidden_size=24), dict(num_hidden_layers=4)])
def test_weights_that_no_file_has_are_initialised_as_ours(folders, changed):
    """Those that do not fit as well; those that do are loaded."""
    torch.manual_seed(0)
    for name in ("hgrn2", "mingru"):
        old = load(folders[name])
        new = load(folders[name], ignore_mismatched_sizes=True, **changed)
        config = Config(**TINY | OURS[name]).__dict__ | {
            old.config.attribute_map.get(key, key): value for key, value in changed.items()
        }
        fresh = dict(LanguageModel(Config(**config)).named_parameters())
        known = dict(old.named_parameters())
        for key, weight in new.named_parameters():
            if key in known and known[key].shape == weight.shape:
                assert torch.equal(weight, known[key]), key
                continue
            expected = fresh[key.removeprefix("model.nanornn.").replace("lm_head", "head")]
            assert weight.shape == expected.shape, key
            spread = expected.std(correction=0).item()
            assert weight.std(correction=0).item() == pytest.approx(spread, rel=0.8), key
            error = spread / weight.numel() ** 0.5
            assert weight.mean().item() == pytest.approx(expected.mean().item(), abs=8 * error), key
        assert new(tokens(1, 5)).logits.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("mean", [True, False])
def test_new_tokens_get_embeddings(folder, mean, tmp_path):
    """And are still there when the model is saved, in shards, and loaded again."""
    model, x = load(folder), tokens(1, 5)
    before = model(x).logits
    model.resize_token_embeddings(333, mean_resizing=mean)
    new = model.get_input_embeddings().weight[300:]
    usual = 0.3 if is_llama(model) else 0.02
    assert model.config.vocab_size == 333 and 0 < new.std() < 2 * usual
    assert near(model(x).logits[..., :300], before)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == model.config.tie_word_embeddings
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert near(load(tmp_path)(x).logits, model(x).logits, 0)


def test_ties_are_as_asked(folders):
    for name, tie in (("hgrn2", False), ("hgrn2", True), ("llama", False)):
        model = load(folders[name], tie_word_embeddings=tie)
        assert (model.lm_head.weight is model.get_input_embeddings().weight) == tie


@pytest.mark.filterwarnings("ignore:torch.ao.quantization", "ignore:torch.quantize_per_tensor")
@torch.no_grad()
def test_dynamic_quantisation_finds_the_linear_layers(model):
    linear = sum(isinstance(part, nn.Linear) for part in model.modules())
    small = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert sum("quantized" in type(part).__module__ for part in small.modules()) >= linear
    assert near(small(tokens(2, 9)).logits, model(tokens(2, 9)).logits, 0.2)


# ----------------------------------------------------------------------------------------------------
# Padding, losses, new models and classifiers of ours


@pytest.mark.parametrize("side", ["left", "right", "both"])
@torch.no_grad()
def test_padding_does_no_harm(hybrid, side):
    """Wherever it is, and whatever the token types: each text's own logits, and its last ones at the padding."""
    ours, folder = hybrid
    x, mask = tokens(3, 12), torch.ones(3, 12, dtype=torch.long)
    for row, length in enumerate((12, 7, 1)):
        left = {"left": 12 - length, "right": 0, "both": (12 - length) // 2}[side]
        mask[row, :left] = mask[row, left + length :] = 0
    y = opened(folder)(x, attention_mask=mask, token_type_ids=torch.zeros_like(x), position_ids=None)
    features = opened(folder, AutoModel)(x, attention_mask=mask).last_hidden_state
    for row, real in enumerate(mask.bool()):
        alone = ours(x[row : row + 1, real])[0][0]
        assert near(y.logits[row, real], alone)
        assert (
            near(y.logits[row, ~real], alone[-1:].expand(int((~real).sum()), -1)) if not real.all() else True
        )
        assert near(features[row, -1], ours.features(x[row : row + 1, real])[0][0, -1])


@torch.no_grad()
def test_the_loss_is_of_the_next_tokens(hybrid):
    ours, folder = hybrid
    x = tokens(2, 9)
    labels = x.where(torch.arange(9) != 4, -100)
    model, (logits, _) = opened(folder), ours(x)
    loss = torch.nn.functional.cross_entropy(logits[:, [0, 1, 2, 4, 5, 6, 7]].mT, x[:, [1, 2, 3, 5, 6, 7, 8]])
    assert model(x, labels=labels).loss.item() == pytest.approx(loss.item(), rel=1e-5)
    padded, mask = F.pad(x, (3, 0)), F.pad(torch.ones_like(x), (3, 0))
    found = model(padded, attention_mask=mask, labels=F.pad(labels, (3, 0), value=7)).loss
    assert found.item() == pytest.approx(loss.item(), rel=1e-5)  # padding foretells nothing
    parts = model(x, labels=labels, return_dict=False, use_cache=False)
    assert isinstance(parts, tuple) and len(parts) == 2 and parts[0].item() == pytest.approx(loss.item())


def test_what_it_saves_it_can_load(hybrid):
    """With tied weights kept once."""
    model = opened(hybrid[1])
    model.save_pretrained("again")
    assert (
        Path("again/model.safetensors").stat().st_size
        < 1.2 * Path(hybrid[1], "model.safetensors").stat().st_size
    )
    x = tokens(2, 9)
    again = opened("again")
    assert near(again(x).logits, model(x).logits, 0)
    assert again.lm_head.weight is again.get_input_embeddings().weight


def test_new_models_begin_as_ours(hybrid):
    """from_config leaves LanguageModel's own initialisation as it is."""
    config = transformers.AutoConfig.from_pretrained(hybrid[1], trust_remote_code=True)
    assert config.hidden_size == 16 and config.num_hidden_layers == 3
    torch.manual_seed(3)
    new = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    torch.manual_seed(3)
    ours = LanguageModel(Config(**TINY, mixer="hgrn2 attention", position="rope", tie_embeddings=True))
    for name, x in new.model.nanornn.named_parameters():
        assert torch.equal(x, ours.get_parameter(name)), name


def test_a_classifier_learns_what_can_be_separated(workplace):
    """Which of two tokens is somewhere in a text, padded on either side: at least 95 % of new texts."""
    torch.manual_seed(0)
    r = random.Random(0)

    def batch(n):
        x, mask, labels = torch.zeros(n, 9, dtype=torch.long), torch.zeros(n, 9, dtype=torch.long), []
        for row in range(n):
            length, label = r.randint(3, 9), r.randint(0, 1)
            place = r.choice([slice(9 - length, 9), slice(0, length)])
            text = tokens(length) // 2 * 2  # even
            text[r.randrange(length)] = (101, 151)[label]
            x[row, place], mask[row, place] = text, 1
            labels.append(label)
        return dict(input_ids=x, attention_mask=mask, labels=torch.tensor(labels))

    make_run("out/small", mixer="hgrn2", n_layer=1)
    model = opened(exported("out/small"), AutoModelForSequenceClassification, num_labels=2).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(50):
        optimizer.zero_grad()
        model(**batch(32)).loss.backward()
        optimizer.step()
    with torch.no_grad():
        new = batch(200)
        right = (model.eval()(**new).logits.argmax(-1) == new["labels"]).float().mean().item()
        unmasked = model(input_ids=new["input_ids"]).logits  # padding is known by its token then
    assert right >= 0.95 and near(unmasked, model(**new).logits)
