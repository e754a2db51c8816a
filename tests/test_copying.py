"""Selective copying: the corpus keeps the sampler's rules; its answers, and nothing else, are learned."""

import json
import math
from pathlib import Path

import data
import evaluate
import sample
import train
from conftest import log
from corpora import copying as corpus
from data import read_tokenizer
from support.settings import configure
from tools import figures

import numpy as np
import pytest
import torch
from torch import nn

SMALL = dict(length=12, tokens=3, sequences=50)


@pytest.fixture
def copying(workplace):
    """The corpus data/copying: 50 sequences of 3 letters among 12 tokens to train on, 1,000 to validate."""
    return corpus.make(s=corpus.Settings(**SMALL))


def sequences(split="train"):
    """-> inputs (sequences, 15), targets likewise, as the files have them."""
    tokens, targets = (np.fromfile(f"data/copying/{split}{x}.bin", dtype="<u2") for x in ("", "_targets"))
    return tokens[:-1].reshape(-1, 15), targets[1:].reshape(-1, 15)


def test_a_sequence_is_letters_in_noise_then_markers_at_which_they_are_said_in_order(copying):
    """The official sampler's rules: letters 1 to 14, noise 15, markers 0, as many as letters."""
    for split, count in ("train", 50), ("val", 1000):
        inputs, targets = sequences(split)
        assert len(inputs) == count
        for read, said in zip(inputs.tolist(), targets.tolist()):
            letters = [x for x in read[:12] if x != 15]
            assert len(letters) == 3 and all(1 <= x <= 14 for x in letters)
            assert read[12:] == [0, 0, 0] and said == [data.NO_TARGET] * 12 + letters


def test_letters_and_places_are_all_as_likely(copying):
    """Of 3,000 letters each of 14 has 214, each of 12 places 250, give or take five standard errors."""
    inputs, targets = sequences("val")
    assert all(abs(count - 214) < 72 for count in np.bincount(targets[:, 12:].ravel(), minlength=15)[1:])
    assert all(abs(count - 250) < 72 for count in (inputs[:, :12] != 15).sum(0))


def test_the_same_seed_gives_the_same_bytes(copying):
    def files():
        return {path.name: path.read_bytes() for path in copying.iterdir()}

    first = files()
    data.main(["copying", "--length=12", "--tokens=3", "--sequences=50"])
    assert files() == first
    data.main(["copying", "--length=12", "--tokens=3", "--sequences=50", "--seed=1"])
    assert files()["train.bin"] != first["train.bin"] and first["train.bin"][:500] != first["val.bin"][:500]


def test_blocks_are_sequences_with_no_target_but_the_answers(copying):
    blocks = data.Blocks("data/copying/train.bin", context=15)
    inputs, said = sequences()
    tokens, targets = blocks.read(range(blocks.n))
    assert blocks.n == 50 and tokens.tolist() == inputs.tolist()
    assert targets.tolist() == np.where(said == data.NO_TARGET, -100, said.astype(int)).tolist()
    assert sum(len(tokens) for tokens, _ in blocks.in_order(16)) == 50  # no shorter rest


def test_the_text_can_be_read(copying):
    tokenizer = read_tokenizer(copying)
    assert tokenizer.encode("?a..n", add_special_tokens=False).ids == [0, 1, 15, 15, 14]
    assert tokenizer.decode([15, 3, 0]) == ".c?"


class Copier(nn.Module):
    """Says the answers that it is given, of sequences of 15; at chosen places something else."""

    def __init__(self, answers, wrong=()):
        super().__init__()
        self.answers = answers.clamp(min=0)
        self.embed, self.head = nn.Embedding(1, 1), nn.Linear(16, 16, False)
        for place in wrong:
            self.answers[place] = 0  # the marker, which is never right
        nn.init.eye_(self.head.weight)

    def forward(self, tokens, states=None, reset=None):
        x, states = self.features(tokens)
        return self.head(x), states

    def document_starts(self, tokens):
        return None

    def features(self, tokens, states=None, reset=None):
        return 100 * nn.functional.one_hot(self.answers, 16).float(), None


def test_accuracy_is_the_share_of_answers_and_of_sequences_all_right(copying):
    """By hand: 150 answers in 50 sequences; three wrong, two of them in one sequence."""
    batch = data.Blocks("data/copying/train.bin", 15).read(range(50))
    loss, accuracy = evaluate.validation(Copier(batch[1]), [batch])
    assert loss < 1e-6 and accuracy == {"tokens": 100, "sequences": 100}
    loss, accuracy = evaluate.validation(Copier(batch[1], [(0, 12), (0, 13), (7, 14)]), [batch])
    assert accuracy == {"tokens": 98, "sequences": 96} and loss == pytest.approx(3 * 100 / 150)
    assert evaluate.validation(Copier(batch[1], [(0, 3)]), [batch])[1] == {"tokens": 100, "sequences": 100}


def test_text_has_no_accuracy_and_every_token_counts(copying):
    tokens = torch.randint(16, (2, 15))
    loss, accuracy = evaluate.validation(Copier(tokens, [(0, 0)]), [(tokens, tokens.clone().fill_(5))])
    wrong = (tokens != 5).sum().item() + (tokens[0, 0] == 5).item()
    assert accuracy == {} and loss == pytest.approx(100 * wrong / 30)


def settings(**flags):
    flags = (
        dict(n_layer=1, d_model=16, expand=1, context=15, batch_size=25, max_steps=4, eval_every=2, warmup=0)
        | flags
    )
    config = Path(__file__).resolve().parent.parent / "config" / "copying_laptop.py"
    flags = [f"--{name}={value}" for name, value in flags.items()]
    return configure(
        train.Settings(), [str(config), *flags, "--device=cpu", "--dtype=float32", "--run=copying"]
    )


def test_a_model_that_has_learned_nothing_is_at_chance(copying, capsys):
    """1 of 14 letters, and hardly ever a whole sequence; logged at each evaluation, and by evaluate.py."""
    train.main(settings(learning_rate=0.0))
    evaluations = [record for record in log("copying") if "val_loss" in record]
    assert len(evaluations) == 3
    for record in evaluations:
        assert 4 < record["accuracy"]["tokens"] < 10 and record["accuracy"]["sequences"] < 1
        assert record["val_loss"] == pytest.approx(math.log(16), rel=0.1)
    results = evaluate.main(evaluate.Settings(run="out/copying", device="cpu"))
    assert results["accuracy"] == pytest.approx(evaluations[-1]["accuracy"]) and results["benchmarks"] == {}
    assert math.log(results["perplexity"]) == pytest.approx(evaluations[-1]["val_loss"], rel=1e-4)
    assert f"tokens right: {results['accuracy']['tokens']:.1f} %" in capsys.readouterr().out
    assert json.loads(Path("out/copying/results.json").read_text())["accuracy"] == results["accuracy"]


def test_one_letter_is_learned(workplace):
    """With a place to look for it and one marker, a layer is enough."""
    corpus.make(s=corpus.Settings(length=4, tokens=1, sequences=2000))
    train.main(settings(context=5, max_steps=150, eval_every=150, learning_rate=3e-2))
    assert log("copying")[-1]["accuracy"]["tokens"] > 95


def test_the_learning_curve_shows_accuracy(copying, monkeypatch):
    train.main(settings())
    monkeypatch.setattr(figures, "keep", lambda figure, path: figure)
    titles = [axis.get_title() for axis in figures.learning_curve("out/copying").axes]
    figures.plt.close("all")
    assert "correct answers (%)" in titles


def test_such_a_model_answers_and_does_not_write(copying, refusal):
    train.main(settings())
    assert "has no <s>" in refusal(sample.main, sample.Settings(run="out/copying", device="cpu"))


def test_a_text_by_that_name_has_no_targets_of_before(copying):
    data.prepare("copying", ["text.txt"], data.Settings(vocab_size=300, val_share=0.1))
    blocks = data.Blocks("data/copying/train.bin", 16)
    tokens, targets = blocks.read([0])
    assert torch.equal(tokens[:, 1:], targets[:, :-1])


def test_targets_cut_short_are_damage(copying, refusal):
    path = copying / "val_targets.bin"
    path.write_bytes(path.read_bytes()[:-2])
    assert "val_targets.bin is not as long as val.bin" in refusal(data.read_meta, copying)


@pytest.mark.parametrize(
    "args, remedy",
    [("--tokens=80", "no more than length = 64"), ("--length=0", "at least 1"), ("--seed=-1", "at least 0"),
     ("--vocab_size=300", "there is no setting 'vocab_size'"), ("../mine", "cannot name a folder"),
     ("--lenght=64", "did you mean 'length'"), ("one two", "write python data.py copying [NAME]")],
)  # fmt: skip
def test_wrong_settings_are_one_line(workplace, args, remedy, refusal):
    said = refusal(data.main, ["copying", *args.split()])
    assert remedy in said and said.count("\n") == 1 and not Path("data/copying").exists()


def test_a_context_that_is_not_a_sequence_is_refused(copying, refusal):
    assert "set context = 15" in refusal(train.main, settings(context=16))
