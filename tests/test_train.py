"""Training: it learns, its recipe is the one written down, and it says what is wrong."""

import importlib
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import threading
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import data
import evaluate
import support
import train
from conftest import ROOT, bits, contents, log, losses, same, saved
from model import LanguageModel, load
from support.files import damage
from support.run import find_marks

import pytest
import torch


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """They take longer than such a run; that of the prepared run is there."""
    monkeypatch.setattr("tools.figures.learning_curve", lambda folder: "")


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
        *("tokenizer.json", "log.jsonl", "times.jsonl", "learning_curve.svg"),
    }
    kept = json.loads(Path("out/tiny/settings.json").read_text())
    assert (
        asdict(tiny()) == kept | {"fresh": False, "kernels": "auto"} and len(kept) == len(asdict(tiny())) - 2
    )
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


def test_it_trains_in_a_thread(workplace, tiny):
    """As in a notebook's server, where Python allows no signal handlers."""
    thread = threading.Thread(target=train.main, args=[tiny(run="threaded", max_steps=2)])
    thread.start()
    thread.join()
    assert saved(run="threaded")["step"] == 2


def test_threads_spin_less_where_others_want_the_cores(monkeypatch):
    """On two cores with six busy processes a run took two to three times the CPU time, and now a quarter more."""
    spins = {}
    for busy in (0.5, 6.0):
        monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
        monkeypatch.setattr(os, "getloadavg", lambda: (busy, busy, busy))
        monkeypatch.setattr(os, "cpu_count", lambda: 2)
        importlib.reload(support)
        spins[busy] = int(os.environ["GOMP_SPINCOUNT"])
    assert spins[6.0] <= 0.1 * spins[0.5]


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
    """The line names step, learning rate and a command that goes on from the last good checkpoint."""
    take_step = train.take_step

    def poison(run, *rest):
        if run.step == 6:
            run.model.head.weight.data[3, 3] = math.nan
        take_step(run, *rest)

    monkeypatch.setattr(train, "take_step", poison)
    s = tiny(fresh=True, log_every=log_every, save_every=5, schedule="constant", min_lr=0.008)
    said = refusal(train.main, s)
    assert re.match(r"step 7: the loss is nan, .* learning rate of 0.01\. Go on from", said)
    assert not damage("out/tiny/checkpoint.pt") and saved()["step"] == 5
    monkeypatch.setattr(train, "take_step", take_step)
    python, script, *args = shlex.split(said.rpartition(": ")[2])
    train.script(args)
    assert (python, script) == ("python", "train.py") and saved(run="tiny_lower")["step"] == 30
    assert max(record.get("learning_rate", 0) for record in log("tiny_lower")) == 0.005
    assert log("tiny_lower")[0]["val_loss"] < log()[0]["val_loss"] - 0.1


RATES = {  # schedule -> step -> learning rate: up to 1 in four steps, then down to 0.2 at step 12
    "linear": {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0, 6: 0.8, 8: 0.6, 12: 0.2},
    "cosine": {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0, 6: 0.6 + 0.4 * 2**-0.5, 8: 0.6, 12: 0.2},
    "constant": {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0, 6: 1.0, 12: 1.0},
    "wsd": {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0, 9: 1.0, 11: 0.2 + 0.8 / 2.4, 12: 0.2},
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
        (dict(mixer="mamba", mlp="none"), r"norm|bias|conv|log_A|skip"),
        (dict(mixer="s4d"), r"norm|bias|log_dt|log_decay|frequency|read|skip"),
        (dict(mixer="hyena"), r"norm|bias|conv|positions|filter|mixer\.w|skip"),
    ],
    ids=str,
)
def test_weight_decay_is_for_matrices(tiny, model, undecayed):
    """Not for norms, biases, floors, convolutions, minRNN's gates and candidates, nor what others exempt."""
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


def test_the_macro_score_is_the_mean_over_benchmarks(workplace, tiny, monkeypatch, capsys):
    """Two tasks of unequal size with scores made up by hand; best at step 8, while the loss still falls."""
    scores = {"a.jsonl": iter([50, 80, 60, 70]), "b.jsonl": iter([50, 40, 70, 60])}
    sizes = {"a.jsonl": 1, "b.jsonl": 9}
    for task in scores:
        Path(task).touch()

    def score_task(model, tokenizer, task, each_batch):
        score = next(scores[task])
        return {"score": score, "subtasks": {f"{task} {i}": score for i in range(sizes[task])}}

    monkeypatch.setattr(evaluate, "score_task", score_task)
    train.main(tiny(fresh=True, max_steps=12, eval_every=4, eval_pairs="a.jsonl,b.jsonl", best_by="pairs"))
    assert {r["step"]: r["macro"] for r in log() if "val_loss" in r} == {0: 50, 4: 60, 8: 65, 12: 65}
    assert saved("best.pt")["step"] == 8
    assert "best macro score: 65.0 % at step 8\n" in capsys.readouterr().out


@pytest.mark.parametrize("warmup, steps, top", [(100, 60, "0.006"), (20, 30, "0.01"), (15, 30, None)])
def test_a_warm_up_of_most_of_the_run_is_said(workplace, tiny, monkeypatch, capsys, warmup, steps, top):
    monkeypatch.setattr(train, "loop", lambda *rest: None)
    train.main(tiny(fresh=True, warmup=warmup, max_steps=steps))
    said = f"warmup = {warmup}: the learning rate rises for most of the {steps} steps, to {top}; lower warmup"
    assert (said in capsys.readouterr().out) == (top is not None)


def test_times_are_beside_the_log(workplace, tiny, monkeypatch):
    """... in a file that grows with each start, for no two runs have the same; seconds count from the start."""
    steps = []  # by a clock that a step takes a second of
    take_step = train.take_step
    monkeypatch.setattr(train, "take_step", lambda *rest: steps.append(1) or take_step(*rest))
    monkeypatch.setattr("support.run.time", SimpleNamespace(perf_counter=lambda: 100.0 + len(steps)))
    train.main(tiny(run="timed", max_steps=4, log_every=2))
    train.main(tiny(run="timed", max_steps=6, log_every=2))
    records = [json.loads(line) for line in Path("out/timed/times.jsonl").read_text().splitlines()]
    assert [(x["step"], x["tokens"]) for x in records] == [(2, 512), (4, 1024), (6, 1536)]
    assert [x["seconds"] for x in records] == [2, 4, 2]
    assert [x["tokens_per_second"] for x in records] == [256] * 3
    train.main(tiny(run="timed", max_steps=2, log_every=2, fresh=True))
    assert len(Path("out/timed/times.jsonl").read_text().splitlines()) == 1


# ----------------------------------------------------------------------------------------------------
# From another run's weights


def test_a_run_begins_with_the_weights_of_another(workplace, tiny):
    """Of its last checkpoint or an earlier one; with other settings of training and, if recurrent, of context."""
    other = dict(context=8, batch_size=4, optimizer="adam", dropout=0.1, learning_rate=0.0, max_steps=1)
    for source, name in (("out/tiny", "checkpoint.pt"), ("out/tiny/previous.pt", "previous.pt")):
        train.main(tiny(run="new", from_run=source, fresh=True, **other))
        assert bits(saved(run="new")["model"]) == bits(saved(name)["model"])


def test_a_run_from_another_resumes_without_it(workplace, tiny):
    """... to the bit, for the weights count at the start only."""
    s = tiny(run="whole", from_run="out/tiny", max_steps=8, save_every=4)
    train.main(s)
    train.main(replace(s, run="halves"))
    shutil.copy("out/halves/previous.pt", "out/halves/checkpoint.pt")
    shutil.rmtree("out/tiny")
    train.main(replace(s, run="halves"))
    same(contents("halves"), contents("whole"))


UNFIT = {  # settings of the run that begins -> what is said
    "another model": (dict(n_head=4), "is another model (n_head 2 then, 4 now)"),
    "another mixer": (dict(mixer="mingru"), "is another model (mixer 'hgrn2' then, 'mingru' now)"),
    "no run": (dict(from_run="out/none"), "from_run = 'out/none': out/none: no checkpoint here"),
    "no checkpoint": (dict(from_run="text.txt"), "from_run = 'text.txt': text.txt: not a checkpoint"),
    "another tokenizer": (dict(corpus="other"), "has another tokenizer than data/other"),
}


@pytest.mark.parametrize("settings, words", UNFIT.values(), ids=list(UNFIT))
def test_weights_that_do_not_fit_are_one_line_and_leave_nothing(workplace, tiny, refusal, settings, words):
    if "corpus" in settings:
        Path("other.txt").write_text("Quite another text, of other words.\n" * 100)
        data.prepare("other", ["other.txt"], data.Settings(vocab_size=300, val_share=0.1))
    said = refusal(train.main, tiny(**dict(run="new", from_run="out/tiny") | settings))
    assert words in said.splitlines()[-1] and not Path("out/new").exists()


# ----------------------------------------------------------------------------------------------------
# Weights kept after so many words


def test_words_are_counted_by_hand(tiny, tmp_path):
    """The paper's batches and corpus: 421.875 steps an epoch, and ten epochs of 9,999,894 words are the 100M."""
    s = tiny(checkpoints="babylm", batch_size=64)
    (tmp_path / "meta.json").write_text(json.dumps({"train": {"words": 9_999_894}}))
    marks = find_marks(s, tmp_path, blocks=27_000)
    names = [f"chck_{n}M.pt" for n in [*range(1, 10), *range(10, 100, 10), *range(100, 1001, 100)]]
    assert [name for step in sorted(marks) for name in marks[step]] == names and len(names) == 28
    steps = {name: step for step in marks for name in marks[step]}
    assert [steps[f"chck_{n}M.pt"] for n in (1, 2, 10, 20, 100)] == [42, 84, 422, 844, 4219]
    assert max(step for step in marks if step <= math.ceil(10 * 27_000 / 64)) == 4219
    assert not find_marks(tiny(), tmp_path, blocks=27_000)


def test_the_last_mark_is_not_missed_by_a_step(tiny, tmp_path):
    """Ten epochs of 9,999,894 words in small batches end a step before 100M words, which BabyLM calls 100M."""
    s = tiny(checkpoints="babylm", batch_size=8, max_steps=0, epochs=10)
    (tmp_path / "meta.json").write_text(json.dumps({"train": {"words": 9_999_894}}))
    marks = find_marks(s, tmp_path, blocks=109_374)  # 136,718 steps; 100M words would be 136,719
    assert marks[136_718] == ["chck_100M.pt"] and 136_719 not in marks


def test_a_flag_without_effect_is_refused(refusal):
    said = refusal(train.script, ["--epochs=10"])
    assert said == "epochs = 10 has no effect beside max_steps = 300: add --max_steps=0\n"


KEEPING = dict(checkpoints="babylm", schedule="constant", max_steps=14)  # 1.4 epochs


def marks_of(s):
    """{step: [name, ...]} for a run on the tiny corpus."""
    return find_marks(s, Path("data/tiny"), data.Blocks("data/tiny/train.bin", s.context).n)


@pytest.fixture
def kept(workplace, tiny, monkeypatch):
    """A run that has kept chck_1M.pt and so on, where a million is 300 -> {step: [name, ...]} to find there."""
    monkeypatch.setattr("support.run.MILLION", 300)
    train.main(tiny(run="kept", **KEEPING))
    marks = marks_of(tiny(**KEEPING))
    return {step: marks[step] for step in marks if step <= 14}


def test_a_kept_file_holds_the_weights_of_its_step(workplace, tiny, kept):
    """Those of a run that ends there, without the optimizer; files of later marks are not made."""
    assert {x.name for x in Path("out/kept").glob("chck*")} == {x for names in kept.values() for x in names}
    step = sorted(kept)[1]
    train.main(tiny(run="shorter", **KEEPING | dict(max_steps=step)))
    path = Path("out/kept", kept[step][0])
    model, tokenizer, settings = load(path)
    shorter = load("out/shorter")[0].state_dict()
    assert all(torch.equal(weight, shorter[name]) for name, weight in model.state_dict().items())
    assert saved(path.name, "kept")["step"] == step and settings.run == "kept" and settings.checkpoint == path
    assert not damage(path) and "optimizer" not in saved(path.name, "kept")
    assert path.stat().st_size < 0.5 * Path("out/kept/checkpoint.pt").stat().st_size


def test_what_was_kept_stays_until_fresh(workplace, tiny, kept, refusal):
    """A run that comes by again writes only what is damaged; other settings are refused; --fresh removes it."""
    second = Path("out/kept", kept[sorted(kept)[1]][0])
    before = {path: (path.stat().st_ino, path.read_bytes()) for path in Path("out/kept").glob("chck*")}
    for name in ("checkpoint.pt", "previous.pt"):
        Path("out/kept", name).unlink()
    second.write_bytes(before[second][1][:-99])
    assert "grad_clip 1.0 then, 0.5 now" in refusal(train.main, tiny(run="kept", **KEEPING, grad_clip=0.5))
    train.main(tiny(run="kept", **KEEPING))
    after = {path: (path.stat().st_ino, path.read_bytes()) for path in Path("out/kept").glob("chck*")}
    assert {path for path in before if after[path] != before[path]} == {second}
    assert after[second][1] == before[second][1]
    train.main(tiny(run="kept", **KEEPING | dict(max_steps=1, fresh=True)))
    assert not [*Path("out/kept").glob("chck*")]


def test_marks_that_passed_before_they_were_asked_for_are_not_made_up(workplace, tiny, monkeypatch):
    monkeypatch.setattr("support.run.MILLION", 300)
    marks = marks_of(tiny(**KEEPING))
    train.main(tiny(run="late", max_steps=8))
    train.main(tiny(run="late", max_steps=14, checkpoints="babylm"))
    made = {saved(path.name, "late")["step"] for path in Path("out/late").glob("chck*")}
    assert made == {step for step in marks if 8 <= step <= 14} and len(made) > 1


@pytest.mark.skipif(not shutil.which("make"), reason="no make here")
def test_make_train_scores_a_run_once(tmp_path):
    """... again after more training; and it ends with three stories each time."""

    def commands():
        command = ["make", "--dry-run", "train"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    shutil.copy(ROOT / "Makefile", tmp_path)
    for second, name in enumerate(["requirements.txt", ".venv/runtime", "out/toy/checkpoint.pt"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (second, second))
    assert "evaluate.py out/toy\n" in commands()
    (tmp_path / "out/toy/results.json").touch()
    assert "evaluate.py" not in commands() and "sample.py out/toy --samples=3" in commands()
    os.utime(tmp_path / "out/toy/checkpoint.pt")
    os.utime(tmp_path / "out/toy/results.json", (9, 9))
    assert "evaluate.py out/toy\n" in commands()
