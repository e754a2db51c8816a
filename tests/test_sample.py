"""Text comes out one token at a time, the same for the same seed, and as if it were decoded in one piece."""

import math
import re
from concurrent.futures import ThreadPoolExecutor

import sample
from corpora.shakespeare import character_tokenizer
from model import MIXERS, Config, LanguageModel, load

import pytest
import torch

TEXT = " The café, naïve 日本 🙂👩‍👩‍👧.\n\tNot  so!\n The </s> end."


def settings(**changes):
    return sample.Settings(**dict(run="out/tiny", tokens=40) | changes)


def written(capsys, **changes):
    capsys.readouterr()
    sample.main(settings(**changes))
    return capsys.readouterr().out


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = LanguageModel(
        Config(vocab_size=50, n_layer=2, d_model=16, n_head=2, d_mlp=24, mixer="hgrn2 attention")
    )
    model.head.weight.data *= 20  # opinions, so that the likeliest is not a matter of rounding
    return model.eval()


def test_the_same_seed_writes_the_same_text(workplace, capsys):
    one, again, other = (written(capsys, prompt="The cat", seed=seed) for seed in (1, 1, 2))
    assert one == again != other and one.startswith("The cat")


def test_several_texts_have_a_seed_each(workplace, capsys):
    one, two = (written(capsys, prompt="The cat", seed=seed) for seed in (1, 2))
    assert written(capsys, prompt="The cat", seed=1, samples=2) == f"{one}\n{two}"


def test_without_a_prompt_on_a_terminal_one_is_asked_for_until_ctrl_d(workplace, capsys, monkeypatch):
    """Not where the number of texts is given, or where nobody is there to ask."""
    alone = [written(capsys, seed=1), written(capsys, prompt="A dog", seed=2)]
    typed = ["", "A dog"]

    def read_line(shown):
        if not typed:
            raise EOFError
        return typed.pop(0)

    monkeypatch.setattr("builtins.input", read_line)
    monkeypatch.setattr(sample, "on_terminal", lambda: True)
    assert written(capsys, seed=1).splitlines()[1:] == "".join(alone).splitlines() + [""]
    assert written(capsys, seed=1, samples=1) == alone[0]


def test_text_is_sampled_in_a_thread(workplace, capsys):
    """As in a notebook's server."""
    with ThreadPoolExecutor() as threads:
        threads.submit(sample.main, settings()).result()
    assert capsys.readouterr().out == written(capsys)


def test_greedy_text_is_the_likeliest_token_of_the_whole_prefix(model):
    """Carrying states from token to token, or reading all again at each token: the same choice."""
    prefix = [1, 5, 9]
    for token in sample.generate(model, list(prefix), settings(temperature=0.0)):
        with torch.no_grad():
            assert token == model(torch.tensor([prefix]))[0][0, -1].argmax()
        prefix.append(token)
    assert len(prefix) == 43


def test_top_k_1_and_the_smallest_temperature_are_greedy(model):
    greedy = list(sample.generate(model, [1], settings(temperature=0.0)))
    assert greedy == list(sample.generate(model, [1], settings(temperature=2.0, top_k=1, seed=3)))
    assert greedy == list(sample.generate(model, [1], settings(temperature=1e-320)))


@pytest.mark.parametrize(
    "limits, possible",
    [
        (dict(top_p=0.5), {2}),
        (dict(top_p=0.51), {2, 0}),
        (dict(top_p=0.8), {2, 0}),
        (dict(top_p=0.81), {2, 0, 1}),
        (dict(top_k=2), {2, 0}),
        (dict(top_k=2, top_p=0.5), {2}),
        (dict(), {0, 1, 2}),
        (dict(top_k=99), {0, 1, 2}),
    ],
)
def test_top_p_and_top_k_by_hand(limits, possible):
    """Tokens 0, 1, 2 have probabilities 0.3, 0.2 and 0.5."""
    logits = torch.tensor([[math.log(0.3), math.log(0.2), math.log(0.5)]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    chosen = sample.choose(logits.expand(500, 3), settings(temperature=1.0, **limits), generator)
    assert set(chosen.flatten().tolist()) == possible


def test_a_low_temperature_sharpens():
    """p^(1/T): at T = 0.5 odds of 3 to 1 become 9 to 1."""
    logits = torch.tensor([[math.log(3.0), 0.0]]).expand(20_000, 2)
    chosen = sample.choose(logits, settings(temperature=0.5), torch.Generator().manual_seed(0))
    assert (chosen == 0).double().mean().item() == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("text", [TEXT, TEXT * 3, "", "\n", " a\n\n b"])
def test_streamed_text_is_the_text_of_all_tokens(workplace, capsys, monkeypatch, text):
    """Letters made of several tokens come out whole; only the space that begins each line is left out."""
    tokenizer = load("out/tiny")[1]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    monkeypatch.setattr(sample, "generate", lambda *rest: iter(ids))
    assert written(capsys) == re.sub(r"(?m)^ ", "", tokenizer.decode(ids)) + "\n"


def test_spaces_stay_where_letters_are_tokens(workplace, capsys, monkeypatch):
    text = " a\n  b\n"
    tokenizer = character_tokenizer({x: n for n, x in enumerate("\n ab")}, "\n")
    monkeypatch.setattr(sample, "load", lambda *rest: (None, tokenizer, None))
    monkeypatch.setattr(sample, "generate", lambda *rest: iter(tokenizer.encode(text).ids))
    assert written(capsys) == text + "\n"


def test_a_prompt_of_bytes_that_are_no_text_is_no_traceback(workplace, capsys):
    """Such bytes reach Python as lone surrogates."""
    assert written(capsys, prompt="The cat\udcff", tokens=1).startswith("The cat?")


def test_text_is_shown_while_it_is_written(workplace, capsys, monkeypatch):
    """When the second token is made, the first is on the screen."""
    ids, shown = load("out/tiny")[1].encode(" The cat sees", add_special_tokens=False).ids, []

    def slowly(*rest):
        for token in ids:
            shown.append(capsys.readouterr().out)
            yield token

    monkeypatch.setattr(sample, "generate", slowly)
    sample.main(settings())
    assert shown[0] == "" and all(shown[1:])


def test_the_text_ends_where_the_model_ends_it(workplace, capsys, monkeypatch):
    tokenizer = load("out/tiny")[1]
    ids = tokenizer.encode(" The end.", add_special_tokens=False).ids
    monkeypatch.setattr(sample, "generate", lambda *rest: iter([*ids, tokenizer.token_to_id("</s>"), *ids]))
    assert written(capsys, prompt="A prompt.\nOr two.") == "A prompt.\nOr two. The end.\n"


def numbers(states):
    """How many numbers the states of a model hold."""
    if isinstance(states, (list, tuple)):
        return sum(numbers(state) for state in states)
    return states.numel() if isinstance(states, torch.Tensor) else 0


@pytest.mark.parametrize("mixer", MIXERS)
def test_memory_does_not_grow_with_the_text_unless_it_is_attention_or_hyena(mixer):
    grows = mixer in ("attention", "hyena")
    config = Config(vocab_size=50, n_layer=2, d_model=16, n_head=2, d_mlp=24, mixer=mixer, conv=3)
    model, sizes = LanguageModel(config).eval(), []
    features = model.features

    def watched(tokens, states):
        assert states is None or tokens.shape == (1, 1)
        x, states = features(tokens, states)
        sizes.append(numbers(states))
        return x, states

    model.features = watched
    list(sample.generate(model, [1, 2, 3], settings(tokens=30)))
    assert (sizes[-1] > sizes[0]) == grows and len(sizes) == 30


def test_a_model_that_has_learned_positions_says_how_many(workplace, tiny, refusal):
    import train

    train.main(tiny(run="gpt", mixer="attention", position="learned", max_steps=1))
    said = refusal(sample.main, settings(run="out/gpt", tokens=17))
    assert said == "17 tokens: this model has learned 16 positions; shorten the text\n"
    sample.main(settings(run="out/gpt", tokens=16))
