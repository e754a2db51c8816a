"""Training: it learns, its recipe is the one written down, and it says what is wrong."""

import json
import math
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import contents, log, losses, same, saved

import checkpoint
import train
from model import LanguageModel, load


@pytest.mark.parametrize("model", [dict(mixer="hgrn2"), dict(mixer="attention", position="rope")], ids=str)
def test_the_loss_falls(workplace, tiny, model):
    train.main(tiny(**model, fresh=True, max_steps=60))
    validation = [record["val_loss"] for record in log() if "val_loss" in record]
    assert abs(losses()[0] - math.log(300)) < 0.1
    assert losses()[-1] < 2.5 and validation[-1] < 2.5


def test_the_run_folder_holds_all_that_the_model_needs(workplace, tiny, tmp_path, monkeypatch):
    """Copied elsewhere, without the corpus, it loads and says the same."""
    assert {file.name for file in Path("out/tiny").iterdir()} == {
        *("checkpoint.pt", "previous.pt", "best.pt", "settings.json"),
        *("tokenizer.json", "log.jsonl", "learning_curve.svg"),
    }
    assert json.loads(Path("out/tiny/settings.json").read_text()) == asdict(tiny())
    assert Path("out/tiny/tokenizer.json").read_text() == Path("data/tiny/tokenizer.json").read_text()
    tokens = torch.arange(16)[None]
    before = load("out/tiny")[0](tokens)[0]
    shutil.move("out/tiny", tmp_path / "elsewhere")
    shutil.rmtree(workplace / "data")
    monkeypatch.chdir(tmp_path)
    model, tokenizer, settings = load("elsewhere")
    assert torch.equal(model(tokens)[0], before)
    assert (tokenizer.get_vocab_size(), settings.run) == (300, "tiny")


def test_the_same_seed_gives_the_same_run_to_the_bit(workplace, tiny):
    first = contents()
    train.main(tiny(fresh=True))
    same(contents(), first)
    train.main(tiny(fresh=True, seed=1))
    assert losses()[0] != json.loads(first[0][1])["loss"]


def test_accumulating_changes_nothing(workplace, tiny):
    for accumulate in (1, 4):
        train.main(tiny(run=f"by{accumulate}", accumulate=accumulate, dtype="float64", max_steps=20))
    assert losses("by4") == pytest.approx(losses("by1"), abs=1e-9) and len(losses("by1")) == 20


@pytest.mark.parametrize(
    "change, remedy",
    [
        (dict(corpus="nothing"), "make it with: python data.py text nothing FILES..."),
        (dict(vocab_size=299), "data/tiny has 300 tokens; set vocab_size = 300 or more"),
        (dict(context=4000), "tokens are not enough for context = 4000"),
    ],
    ids=str,
)
def test_a_corpus_that_does_not_fit_is_one_line_and_leaves_nothing(workplace, tiny, refusal, change, remedy):
    said = refusal(train.main, tiny(run="new", **change))
    assert remedy in said and said.count("\n") == 1
    assert not Path("out/new").exists()


# ----------------------------------------------------------------------------------------------------
# The recipe


@pytest.mark.parametrize("log_every", [1, 10])
def test_a_loss_that_is_no_number_stops_the_run(workplace, tiny, refusal, monkeypatch, log_every):
    """The line names step, learning rate and the last good checkpoint, which stays as it was."""
    take_step = train.take_step

    def poison(run, *rest):
        if run.step == 6:
            run.model.head.weight.data[3, 3] = math.nan
        take_step(run, *rest)

    monkeypatch.setattr(train, "take_step", poison)
    s = tiny(fresh=True, log_every=log_every, save_every=5, schedule="constant")
    said = refusal(train.main, s)
    assert re.search(r"step 7: the loss is nan, .* learning rate of 0.01\b.*out/tiny/checkpoint.pt\n", said)
    assert not checkpoint.damage("out/tiny/checkpoint.pt") and saved()["step"] == 5


RATES = {  # schedule -> step -> learning rate: up to 1 in four steps, then down to 0.2 at step 12
    "linear": {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0, 6: 0.8, 8: 0.6, 12: 0.2},
    "cosine": {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0, 6: 0.6 + 0.4 * 2**-0.5, 8: 0.6, 12: 0.2},
    "constant": {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0, 6: 1.0, 12: 1.0},
}


@pytest.mark.parametrize("schedule", RATES)
def test_the_learning_rate_by_hand(tiny, schedule):
    s = tiny(learning_rate=1.0, min_lr=0.2, warmup=4, schedule=schedule)
    assert {step: train.learning_rate(step, s, 12) for step in RATES[schedule]} == pytest.approx(
        RATES[schedule]
    )


@pytest.mark.parametrize(
    "model, undecayed",
    [
        (dict(mixer="hgrn2"), r"norm|floors"),
        (dict(mixer="mingru", conv=4, norm="layernorm"), r"norm|bias|conv|update|candidate"),
        (dict(mixer="minlstm", mlp="gelu"), r"norm|bias|forget|input|candidate"),
        (dict(mixer="attention", position="learned", tie_embeddings=True), r"norm|bias"),
    ],
    ids=str,
)
def test_weight_decay_is_for_matrices(tiny, model, undecayed):
    """Not for norms, biases, floors, convolutions, nor minRNN's gates and candidates."""
    s = tiny(**model, weight_decay=0.1)
    model = LanguageModel(s)
    decay = {
        id(p): group["weight_decay"]
        for group in train.make_optimizer(model, s).param_groups
        for p in group["params"]
    }
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.0 if re.search(undecayed, name) else 0.1), name


@pytest.mark.parametrize("best_by", ["loss", "pairs"])
def test_best_pt_is_the_best_by_validation(workplace, tiny, monkeypatch, best_by):
    """The run is spoilt after step 12 by a learning rate of 1, so its best is not its last."""
    pairs = [
        ("The cat sees the dog and the cat.", "The cat. see cat"),
        ("The bird likes the dog.", "dog the like"),
    ]
    lines = [{"sentence_good": good, "sentence_bad": bad} for good, bad in [*pairs, pairs[0][::-1]]]
    Path("pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(train, "learning_rate", lambda step, s, steps: 1e-2 if step < 12 else 1.0)
    train.main(tiny(fresh=True, eval_every=4, eval_pairs="pairs.jsonl", best_by=best_by))
    evaluations = [record for record in log() if "val_loss" in record]
    by = {"loss": lambda r: -r["val_loss"], "pairs": lambda r: r["pairs"]["pairs.jsonl"]["score"]}[best_by]
    assert [record["step"] for record in evaluations] == [0, 4, 8, 12, 16, 20, 24, 28, 30]
    assert saved("best.pt")["step"] == max(evaluations, key=by)["step"] < 30
