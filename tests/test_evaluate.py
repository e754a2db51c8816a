"""Scores are what a reader would compute by hand, whatever the batch, the file or an interruption."""

import errno
import gzip
import json
import math
import os
import random
import shutil
import signal
import tempfile
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import data
import evaluate
import train
from conftest import log
from corpora import benchmarks, toyland
from fast import scoring
from kernels import use_kernels
from model import MIXERS, MLPS, Block, Config, LanguageModel, MinGRU, NextToken, SwiGLU, load
from support.console import run_script
from support.files import fingerprint, save
from support.processes import rank

import pytest
import torch
import torch.nn.functional as F
from processes import fork_many, lines_of_text, needs_fork
from tokenizers import Tokenizer, models


def minimal_pairs(n=12, seed=0):
    """{paradigm: pairs in BLiMP's format}: who follows whom, in right and in wrong order, of several lengths."""
    r, nouns, paradigms = random.Random(seed), "cat dog bird child teacher".split(), {}
    for uid, term in (("order_1", "word_order"), ("order_2", "word_order"), ("twice", "doubling")):
        paradigms[uid] = []
        for i in range(n):
            words = ["the", r.choice(nouns), "sees"] + ["the", r.choice(nouns), "and"] * r.randrange(4)
            words += ["the", r.choice(nouns)]
            wrong = words + words[-1:] if term == "doubling" else r.sample(words, len(words))
            good, bad = (" ".join(x).capitalize() + "." for x in (words, wrong))
            pair = {"sentence_good": good, "sentence_bad": bad, "UID": uid, "linguistics_term": term}
            paradigms[uid].append(pair | {"pairID": str(i)})
    return paradigms


def jsonl(pairs):
    return "".join(json.dumps(pair) + "\n" for pair in pairs)


def write_pairs(folder):
    """Write them as a folder of files."""
    Path(folder).mkdir()
    for uid, paradigm in minimal_pairs().items():
        Path(folder, f"{uid}.jsonl").write_text(jsonl(paradigm))
    return minimal_pairs()


@pytest.fixture
def pairs(workplace):
    return write_pairs("pairs")


def score(**settings):
    return evaluate.main(evaluate.Settings(**dict(run="out/tiny", tasks="pairs") | settings))


def lines_of(file):
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def by_brute_force(model, tokenizer, context, text, protocol="2024"):
    """sum of log p(token | tokens before) of one text alone, in float64."""

    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False).ids

    ids, first = [tokenizer.token_to_id("<s>"), *encode(" " * (protocol == "2024") + text)], 1
    if context:
        start = [] if protocol == "2024" else ids[:1]
        ids, first = start + encode(f"{context} {text}"), len(start) + len(encode(context.rstrip()))
    with torch.no_grad():
        log_p = model.double()(torch.tensor([ids]))[0][0].log_softmax(dim=-1)
    return sum(log_p[t - 1, ids[t]].item() for t in range(first, len(ids)))


def texts_of(source, real_data):
    """Some texts of a benchmark, whole records of two subtasks, each (context, text)."""
    if source == "ours":
        pairs = minimal_pairs(4, 0)["order_1"] + minimal_pairs(4, 1)["order_1"]
        return [("", pair[x]) for pair in pairs for x in ("sentence_good", "sentence_bad")]
    if source == "odd":  # nothing shared; one begins the other; equal; line breaks; longer than in training
        odd = ["The cat sees.", "A dog.", "The cat sees. The", "A dog.", "What?\nThe cat.", "What?\nThe dog."]
        odd += ["the cat and " * 40, "", " "]
        contexts = ("What?\nA cat.", "Good"), ("A", "b"), ("The cat. ", "A dog."), ("A dog.\n", "The cat.")
        return [("", x) for x in odd] + [*contexts]
    real_data(benchmarks.BENCHMARKS[source])
    subtasks = list(benchmarks.read_benchmark(source).values())[1::5][:2]
    each = [benchmarks.ask(subtask, record) for subtask in subtasks for record in subtask.records[:2]]
    return [text for texts in each for text in texts[:4]]


@pytest.mark.parametrize("source", ["ours", "odd", "blimp", "supplement", "ewok_fast", "bear"])
def test_scores_equal_brute_force(workplace, real_data, monkeypatch, source):
    """One text at a time in float64 against shared prefixes and batches in float32: within 5e-6."""
    if source not in ("ours", "odd"):
        monkeypatch.setenv("NANORNN_DATA", str(real_data("blimp/blimp.zip").parent.parent))
    texts = texts_of(source, real_data)
    model, tokenizer, _ = load("out/tiny")
    plain = load("out/tiny", kernels=None)[0]
    for protocol in ("2024", "2025"):
        with torch.no_grad():
            found = evaluate.score_texts(model, evaluate.encode(tokenizer, texts, protocol))
        exact = [by_brute_force(plain, tokenizer, *text, protocol) for text in texts]
        assert found == pytest.approx(exact, rel=5e-6), protocol


def branching(n, seed=0):
    """Lists of tokens as of sentences: each goes on where one before it was cut."""
    r, rows = random.Random(seed), [[1]]
    for _ in range(n):
        rows.append(
            r.choice(rows)[: r.randrange(1, 9)] + [r.randrange(2, 40) for _ in range(r.randrange(1, 5))]
        )
    return rows[1:]


EACH = [*MIXERS, "hgrn2 attention", "learned", "conv"]


@pytest.mark.parametrize("mixer, room", [*((mixer, 60) for mixer in EACH), ("hgrn2", 512), ("hgrn2", 7)])
def test_sharing_prefixes_changes_no_score(mixer, room, monkeypatch):
    """Whatever the mixer, wherever scoring starts, in large batches and in batches of a sentence, in float64."""
    more = {"learned": dict(mixer="attention", position="learned"), "conv": dict(mixer="mingru", conv=4)}
    more = more.get(mixer, dict(mixer=mixer))
    config = Config(n_layer=2, d_model=16, n_head=2, d_mlp=24, vocab_size=40, **more)
    model, r = LanguageModel(config).double().eval(), random.Random(1)
    for weight in model.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    texts = [(ids, min(r.choice([1, 1, 1, 2, 4]), len(ids))) for ids in branching(80)]
    monkeypatch.setitem(scoring.BATCH_TOKENS, "cpu", room)
    alone = []
    with torch.no_grad():
        for ids, first in texts:
            log_p = model(torch.tensor([ids]))[0][0].log_softmax(dim=-1)
            alone.append(sum(log_p[t - 1, ids[t]].item() for t in range(first, len(ids))))
    exact = 1e-11 if mixer == "hyena" else 1e-12  # whose Fourier transforms are as long as the longest text
    for form in ("loop", "torch"):
        use_kernels(form, model)
        done = []
        with torch.no_grad():
            found = evaluate.score_texts(model, texts, done.append)
        assert found == pytest.approx(alone, rel=exact) and sum(done) == len(texts), form


class Capped(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x).tanh()


@pytest.mark.parametrize(
    "head",
    [
        torch.nn.Linear(16, 40),
        Capped(16, 40, bias=False),
        torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 40)),
    ],
)
def test_another_head_is_trained_and_scored_as_it_is(head):
    model = LanguageModel(Config(n_layer=1, d_model=16, n_head=2, d_mlp=24, vocab_size=40)).double().eval()
    model.head = head.double()
    scores, losses, texts = [], [], [([*row, 1], 1) for row in branching(20)]
    tokens = torch.arange(40).view(2, 20)
    for form in ("loop", "torch"):
        objective = NextToken(model)
        use_kernels(form, objective)
        with torch.no_grad():
            scores.append(evaluate.score_texts(model, texts))
            losses.append(objective(tokens, tokens)["loss"].item())
    assert scores[0] == pytest.approx(scores[1], rel=1e-12)
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_a_mixer_that_takes_one_step_after_another_shares_prefixes_too(monkeypatch):
    """Its linear layers then read (B, D), which the tree leaves alone."""

    def forward(self, x, state=None):
        h, hs = torch.zeros(len(x), self.update.out_features, dtype=x.dtype), []
        for x_t in x.unbind(1):
            share = self.update(x_t).sigmoid()
            h = (1 - share) * h + share * self.candidate(x_t)
            hs.append(h)
        return self.output(torch.stack(hs, dim=1)), h

    monkeypatch.setattr(MinGRU, "forward", forward)
    config = Config(mixer="mingru", n_layer=2, d_model=16, n_head=2, d_mlp=24, vocab_size=40)
    model, texts = LanguageModel(config).double().eval(), [([*row, 1], 1) for row in branching(20)]
    texts.sort()
    with torch.no_grad():
        assert scoring.score_tree(model, texts) == pytest.approx(evaluate.score_plainly(model, texts), rel=1e-12)


def test_a_tree_is_read_only_where_all_but_the_mixers_maps_each_token_by_itself(monkeypatch):
    """A student's MLP that also sees the token before, or their own Block, is scored as it is written."""

    class Shifted(SwiGLU):
        def forward(self, x):
            return super().forward(x + F.pad(x[:, :-1], (0, 0, 1, 0)))

    def forward(self, x, state=None, *floor, **reset):
        return plain(self, x + F.pad(x[:, :-1], (0, 0, 1, 0)), state, *floor, **reset)

    config, plain = Config(n_layer=2, d_model=16, n_head=2, d_mlp=24, vocab_size=40), Block.forward
    texts = [([*row, 1], 1) for row in branching(20)]
    assert scoring.fits(LanguageModel(config))
    for target, name, new in ((MLPS, "swiglu", Shifted), (Block, "forward", forward)):
        with monkeypatch.context() as patched:
            (patched.setitem if target is MLPS else patched.setattr)(target, name, new)
            model, found = LanguageModel(config).double().eval(), []
            for form in ("loop", "torch"):
                use_kernels(form, model)
                found.append(evaluate.score_texts(model, texts))
        assert found[0] == pytest.approx(found[1], rel=1e-12)


def test_a_text_of_one_token_has_nothing_to_score():
    model = LanguageModel(Config(n_layer=1, d_model=16, n_head=2, d_mlp=24, vocab_size=40)).eval()
    with torch.no_grad():
        assert list(evaluate.score_texts(model, [([1], 1)])) == [0.0]


def test_batches_keep_to_their_size():
    """All texts, in order; no more nodes than allowed but for the last text's, no more places than four times."""
    rows = sorted(branching(300))
    texts = [([*row, 1], 1) for row in rows]
    for most in (1, 20, 10_000):
        found = list(scoring.batches(range(300), texts, most))
        assert sum(found, []) == list(range(300))
        for some in found:
            part = [rows[i] for i in some]
            if len(some) > 1:
                assert len(scoring.as_tree(part)[0]) <= most and len(part) * max(map(len, part)) <= 4 * most


def test_a_short_text_is_scored_where_few_positions_are_known():
    config = Config(
        mixer="attention", position="learned", context=3, n_layer=1, d_model=16, n_head=2, d_mlp=24
    )
    with torch.no_grad():
        assert evaluate.score_texts(LanguageModel(config).eval(), [([1, 2, 3], 1)])[0] < 0


def test_a_tree_has_one_node_for_each_prefix():
    """Against the set of all prefixes; each text's nodes carry its tokens."""
    for seed in range(20):
        rows = sorted(branching(2 + 3 * seed, seed))
        tokens, paths = scoring.as_tree(rows)
        assert len(tokens) == len({tuple(row[: n + 1]) for row in rows for n in range(len(row))})
        assert [[tokens[node] for node in path] for path in paths] == rows


def test_a_model_is_itself_again_after_an_error(workplace):
    model, tokens = load("out/tiny")[0], torch.tensor([[1, 2, 3]])
    before, _ = model(tokens)
    with pytest.raises(IndexError), torch.no_grad():
        evaluate.score_texts(model, [([1, 2, 3], 1), ([1, 10**6, 3], 1)])
    assert torch.equal(model(tokens)[0], before)


def test_a_shared_prefix_is_read_once(workplace, monkeypatch):
    """Sixty answers to one question cost one reading of it."""
    model, tokenizer, _ = load("out/tiny")
    texts = evaluate.encode(
        tokenizer, [("", f"the cat sees the dog and the child and {'abcde'[i]}") for i in range(5)]
    )
    read, features = [], model.features
    monkeypatch.setattr(
        model, "features", lambda x, states=None: read.append(x.numel()) or features(x, states)
    )
    with torch.no_grad():
        evaluate.score_texts(model, texts)
    assert sum(read) < 1.3 * len(texts[0][0])


@pytest.mark.parametrize("change", ["mixer", "weights", "settings", "d_model", "nothing"])
def test_a_run_of_another_version_is_refused(workplace, refusal, change):
    """One line that names the file, and nothing in the folder changed."""
    state = torch.load("out/tiny/checkpoint.pt", weights_only=True)
    settings = state["settings"]
    new = {
        "mixer": state | {"settings": settings | {"mixer": "hgrn9"}},
        "weights": state | {"model": {f"old.{name}": x for name, x in state["model"].items()}},
        "settings": {"model": state["model"]},
        "d_model": state | {"settings": settings | {"d_model": 32}},
        "nothing": {},
    }
    save(new[change], "out/tiny/checkpoint.pt")
    before = {path: path.read_bytes() for path in Path("out/tiny").iterdir()}
    said = refusal(evaluate.main, evaluate.Settings(run="out/tiny", tasks="toyland"))
    assert said.startswith("out/tiny/checkpoint.pt: not a model of this version of nanoRNN (")
    assert (
        said.count("\n") == 1 and {path: path.read_bytes() for path in Path("out/tiny").iterdir()} == before
    )


def test_a_setting_that_a_run_does_not_know_yet_has_its_default(workplace):
    state = torch.load("out/tiny/checkpoint.pt", weights_only=True)
    del state["settings"]["conv"]
    save(state, "out/tiny/checkpoint.pt")
    assert load("out/tiny")[2].conv == 0


def test_a_tokenizer_without_a_start_is_refused(workplace, refusal):
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    assert "has no <s>" in refusal(evaluate.encode, tokenizer, [("", "a")])


def test_a_context_of_blanks_is_no_context(workplace):
    """Where nothing is before the text, it is scored after <s>."""
    tokenizer = load("out/tiny")[1]
    for protocol in ("2024", "2025"):
        ids, first = evaluate.encode(tokenizer, [(" ", "The cat.")], protocol)[0]
        assert first == 1 and ids[0] == tokenizer.token_to_id("<s>")


def test_both_protocols_score_the_same_tokens(pairs):
    """Our tokenizer begins a sentence with a space as it is, so 2024's own makes no difference."""
    found = {protocol: score(protocol=protocol) for protocol in ("2024", "2025")}
    assert [results["protocol"] for results in found.values()] == ["2024", "2025"]
    assert found["2024"]["benchmarks"] == found["2025"]["benchmarks"]


def test_perplexity_by_hand(pairs):
    """exp of the mean loss over all tokens but the first, read in blocks of the context's length."""
    model, _, trained = load("out/tiny")
    losses = []
    with torch.no_grad():
        for tokens, targets in data.Blocks("data/tiny/val.bin", trained.context).in_order(1):
            chosen = model(tokens)[0].log_softmax(dim=-1).gather(-1, targets[:, :, None])
            losses += (-chosen).flatten().tolist()
    assert score()["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)


# ----------------------------------------------------------------------------------------------------
# What is written


def test_results_and_every_pair_are_written(pairs):
    results = score(results="results/copy.json")
    assert results == json.loads(Path("out/tiny/results.json").read_text())
    assert results == json.loads(Path("results/copy.json").read_text())
    assert results["protocol"] == "2024"
    assert results["checkpoint"] == fingerprint("out/tiny/checkpoint.pt")
    benchmark, rows = results["benchmarks"]["pairs"], lines_of("out/tiny/pairs_pairs.jsonl")
    assert [(row["uid"], row["i"]) for row in rows] == [(uid, i) for uid in sorted(pairs) for i in range(12)]
    for uid, subtask in benchmark["subtasks"].items():
        right = [row["good"] >= row["bad"] for row in rows if row["uid"] == uid]
        assert subtask["score"] == 100 * sum(right) / 12 and subtask["n"] == 12
    assert benchmark["score"] == pytest.approx(sum(x["score"] for x in benchmark["subtasks"].values()) / 3)
    assert list(rows[0]) == ["uid", "i", "good", "bad"] and rows[0]["good"] < 0
    assert results["settings"]["mixer"] == "hgrn2" and "checkpoint" not in results["settings"]
    assert results["training"] == [record for record in log() if "val_loss" in record]
    assert (results["steps"], results["tokens"]) == (30, 30 * 16 * 16)


def subtask(kind="pairs", n=1, **record):
    return benchmarks.Subtask(kind, "", [{"i": i} | record for i in range(n)], "")


def test_ties_intervals_and_means_by_hand():
    """
    4 of 6 right, a tie among them: p = (4 + 2) / (6 + 4) = 0.6, half width 1.96 sqrt(0.6 * 0.4 / 10) = 30.36 %.
    2 of 2: p = 4 / 6, 1.96 sqrt(p (1 - p) / 6) = 37.72 %. Of the mean: sqrt(30.36^2 + 37.72^2) / 2 = 24.21 %.
    The mean is of subtasks, whatever their sizes: 83.3 %, where all eight pairs together would give 75 %.
    """
    values = {"a": [(-1, -2)] * 3 + [(-2, -2)] + [(-3, -2)] * 2, "b": [(-1, -9)] * 2}
    rows = {uid: [{"good": good, "bad": bad} for good, bad in pairs] for uid, pairs in values.items()}
    result = benchmarks.summary({"a": subtask(n=6), "b": subtask(n=2)}, rows)
    a, b = result["subtasks"]["a"], result["subtasks"]["b"]
    assert (a["score"], b["score"], a["n"], b["n"]) == (pytest.approx(100 * 4 / 6), 100, 6, 2)
    assert (a["interval"], b["interval"]) == (pytest.approx(30.36, abs=0.01), pytest.approx(37.72, abs=0.01))
    assert result["score"] == pytest.approx(250 / 3) and result["interval"] == pytest.approx(24.21, abs=0.01)


def test_both_readings_of_ewok_by_hand():
    """
    log p of T1 after C1, T2 after C1, T2 after C2, T1 after C2. The pipeline compares targets after one context, a
    tie is right; the paper compares one target after both contexts, a tie is wrong.
    """
    one, two = subtask("ewok", 2), subtask("ewok", 1)
    texts = benchmarks.ask(one, {"Context1": "C1", "Context2": "C2", "Target1": "T1", "Target2": "T2"})
    assert texts == [("C1", "T1"), ("C1", "T2"), ("C2", "T2"), ("C2", "T1")]
    rows = {"a": [], "b": benchmarks.judge(two, {}, [-1, -1, -1, -1])}
    rows["a"] += benchmarks.judge(one, {}, [-1, -2, -1, -3])  # right, right | right, right
    rows["a"] += benchmarks.judge(one, {}, [-2, -1, -5, -4])  # wrong, wrong | right, wrong
    result = benchmarks.summary({"a": one, "b": two}, rows)
    first = [(row["swapped"], row["good"], row["bad"]) for row in rows["a"][:2]]
    assert first == [(False, -1, -2), (True, -1, -3)]
    assert result["subtasks"]["a"]["score"] == 50 and result["subtasks"]["b"]["score"] == 100
    assert result["score"] == 75 and result["subtasks"]["a"]["n"] == 4
    assert result["readings"] == {"p(T1|C1) > p(T2|C1)": 75, "p(T1|C1) > p(T1|C2)": 62.5}


@pytest.mark.parametrize("place", ["ewok_fast.zip", "fast_eval/ewok_fast", "ewok_filtered.jsonl"])
def test_a_row_of_babylms_files_of_ewok_is_asked_one_way(tmp_path, monkeypatch, place):
    """By hand: three texts, one verdict; for the mirrored item the file has a row of its own."""
    monkeypatch.chdir(tmp_path)
    item = {"Context1": "C1", "Context2": "C2", "Target1": "T1", "Target2": "T2", "Domain": "d"}
    path = Path(place)
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("d.jsonl", jsonl([item]))
    elif path.suffix:
        path.write_text(jsonl([item]))
    else:
        path.mkdir()
        (path / "d.jsonl").write_text(jsonl([item]))
    found = benchmarks.read_benchmark(place)
    (record,) = found["d"].records
    assert benchmarks.ask(found["d"], record) == [("C1", "T1"), ("C1", "T2"), ("C2", "T1")]
    rows = benchmarks.judge(found["d"], record, [-2, -3, -1])
    assert rows == [{"swapped": False, "good": -2, "bad": -3, "other": -1}]
    result = benchmarks.summary(found, {"d": rows})
    assert result["score"] == 100 and result["subtasks"]["d"]["n"] == 1
    assert result["readings"] == {"p(T1|C1) > p(T2|C1)": 100, "p(T1|C1) > p(T1|C2)": 0}


def test_bear_by_hand():
    """All statements count alike, whatever their relation; of a tie the first answer is the one that is given."""
    three = dict(templates=["[X] is [Y].", "[Y]!"], answers=["a", "b", "c"], right=1, sub_label="my x")
    one, two = subtask("bear", 2, **three), subtask("bear", 1, **three | {"answers": ["a", "b"]})
    assert benchmarks.ask(one, one.records[0])[:4] == [("", f"My x is {x}.") for x in "abc"] + [("", "A!")]
    rows = {"one": [], "two": benchmarks.judge(two, two.records[0], [-2, -1, -1, -1])}  # right; a tie: wrong
    for values in ([-3, -1, -2, -2, -2, -2], [-1, -1, -3, -3, -1, -1]):  # right, wrong; wrong, right
        rows["one"] += benchmarks.judge(one, one.records[0], values)
    result = benchmarks.summary({"one": one, "two": two}, rows)
    assert [row["answer"] for row in rows["one"]] == [1, 0, 0, 1]
    assert (rows["one"][0]["good"], rows["one"][0]["bad"]) == (-1, -2)
    assert result["score"] == 50 and result["templates"] == pytest.approx([200 / 3, 100 / 3])
    assert result["chance"] == pytest.approx(100 * (1 / 3 + 1 / 3 + 1 / 2) / 3)


def test_a_random_scorer_is_at_chance_on_bear(workplace, real_data, monkeypatch):
    """4.68 % on BEAR, known from its answer spaces; a random scorer is within 0.75 of it on each template."""
    monkeypatch.setenv("NANORNN_DATA", str(real_data("bear/BEAR.zip").parent.parent))
    subtasks, r, rows = benchmarks.read_benchmark("bear"), random.Random(0), {}
    texts = sum(len(benchmarks.ask(x, x.records[0])) * len(x.records) for x in subtasks.values())
    for uid, x in subtasks.items():
        count = len(benchmarks.ask(x, x.records[0]))
        rows[uid] = [
            row
            for record in x.records
            for row in benchmarks.judge(x, record, [r.random() for _ in range(count)])
        ]
    result = benchmarks.summary(subtasks, rows)
    assert texts == 3 * 209_499 and len(subtasks) == 60
    assert result["chance"] == pytest.approx(4.68, abs=0.005)
    assert result["templates"] == pytest.approx([4.68] * 3, abs=0.75)


def test_a_usual_benchmark_that_is_not_here_is_named_and_left_out(workplace, capsys):
    """Of a corpus of one's own; see test_settings.py for one that is asked for."""
    results = score(tasks="")
    assert results["perplexity"] > 1 and results["benchmarks"] == {}
    assert "left out: blimp: put it at data/blimp/blimp.zip" in capsys.readouterr().out
    assert json.loads(Path("out/tiny/results.json").read_text()) == results
    Path("data/tiny/val.bin").unlink()
    assert score(tasks="")["perplexity"] is None
    assert "no perplexity: data/tiny" in capsys.readouterr().out


def test_results_name_the_checkpoint_that_was_scored(pairs, monkeypatch):
    """Though train.py saves another one while the first is being scored."""
    first, read = fingerprint("out/tiny/checkpoint.pt"), evaluate.read_benchmark

    def save_another(*args):
        save(torch.load("out/tiny/best.pt", weights_only=True) | {"step": 99}, "out/tiny/checkpoint.pt")
        return read(*args)

    monkeypatch.setattr(evaluate, "read_benchmark", save_another)
    results = score()
    assert (results["checkpoint"], results["steps"]) == (first, 30)
    assert fingerprint("out/tiny/checkpoint.pt") != first


def test_a_read_only_run_is_scored(pairs, monkeypatch, capsys):
    """What was not written is said; a copy of the results goes elsewhere."""
    before = {path: path.read_bytes() for path in Path("out/tiny").iterdir()}
    read_only = OSError(errno.EROFS, "Read-only file system")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: raise_(read_only))
    results = score(results="copy.json")
    assert json.loads(Path("copy.json").read_text()) == results
    said = capsys.readouterr().out
    assert "mean of 3 subtasks" in said and "not written: out/tiny/results.json" in said
    assert {path: path.read_bytes() for path in Path("out/tiny").iterdir()} == before


def test_what_is_known_of_a_read_only_run_stays_known(pairs, monkeypatch):
    known = score()["benchmarks"]
    Path("other.jsonl").write_text(Path("pairs/twice.jsonl").read_text())
    read_only = OSError(errno.EROFS, "Read-only file system")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: raise_(read_only))
    both = evaluate.known_or_made(evaluate.Settings("out/tiny", f"{','.join(known)},other.jsonl", device="cpu"))
    assert both["benchmarks"].keys() == {*known, evaluate.name_of("other.jsonl")}
    assert both["benchmarks"].items() >= known.items()


def test_a_file_that_has_changed_is_scored_again(pairs):
    Path("other.jsonl").write_text(Path("pairs/twice.jsonl").read_text())
    s = evaluate.Settings("out/tiny", "other.jsonl", device="cpu")
    before = evaluate.known_or_made(s)["benchmarks"]
    assert evaluate.known_or_made(s)["benchmarks"] == before
    Path("other.jsonl").write_text("".join(Path("other.jsonl").read_text().splitlines(True)[:3]))
    found = evaluate.known_or_made(s)["benchmarks"]
    assert found != before and found == evaluate.main(s)["benchmarks"]


def test_a_run_that_was_only_fine_tuned_is_still_evaluated(pairs):
    known = score() | {"benchmarks": {"glue": {"score": 50.0}}}
    del known["perplexity"]
    Path("out/tiny/results.json").write_text(json.dumps(known))
    assert evaluate.known_or_made(evaluate.Settings("out/tiny", "", device="cpu"))["perplexity"] > 1


def test_a_benchmark_is_found_unpacked(monkeypatch, tmp_path):
    monkeypatch.setenv("NANORNN_DATA", str(tmp_path))
    file = tmp_path / "babylm_eval" / "reading" / "reading_data.csv"
    file.parent.mkdir(parents=True)
    file.touch()
    assert benchmarks.find_benchmark("reading") == file


def raise_(error):
    raise error


def test_an_evaluation_does_not_take_what_another_protocol_has_left(pairs, monkeypatch):
    """Of two on one folder at once, each resumes from its own subtasks: the scores here tell whose they are."""

    def scored(model, tokenizer, subtask, protocol, *rest):
        return [{"i": x["i"], "good": -float(protocol), "bad": -9999.0} for x in subtask.records]

    def stopped_at(uid, meanwhile=lambda: None):
        def scoring(model, tokenizer, subtask, *rest):
            if uid in subtask.file:
                raise KeyboardInterrupt
            if "order_2" in subtask.file:
                meanwhile()
            return scored(model, tokenizer, subtask, *rest)

        return scoring

    def another():
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(evaluate, "score_subtask", stopped_at("order_2"))
            score(protocol="2025")

    monkeypatch.setattr(evaluate, "score_subtask", stopped_at("twice", meanwhile=another))
    with pytest.raises(KeyboardInterrupt):
        score(protocol="2024")
    monkeypatch.setattr(evaluate, "score_subtask", scored)
    score(protocol="2025")
    assert {row["good"] for row in lines_of("out/tiny/pairs_pairs.jsonl")} == {-2025.0}


def test_two_evaluations_at_once_keep_each_others_results(pairs):
    """In threads, as in a notebook's server; processes are the same to them. The file holds both tasks."""
    shutil.copytree("pairs", "more")
    with ThreadPoolExecutor() as threads:
        for done in [threads.submit(score, tasks=task) for task in ("pairs", "more", "pairs", "more")]:
            assert done.result()["benchmarks"]
    assert set(json.loads(Path("out/tiny/results.json").read_text())["benchmarks"]) == {"pairs", "more"}
    assert not list(Path("out/tiny").glob("*.part")) + list(Path("out/tiny").glob("*.unfinished"))


def test_another_task_is_added_and_another_protocol_or_model_starts_anew(pairs):
    shutil.copytree("pairs", "more")
    score()
    assert set(score(tasks="more")["benchmarks"]) == {"pairs", "more"}
    assert set(score(tasks="more", protocol="2025")["benchmarks"]) == {"more"}
    shutil.copy("out/tiny/best.pt", "out/tiny/checkpoint.pt") and score()
    shutil.copy("out/tiny/previous.pt", "out/tiny/checkpoint.pt")
    assert set(score()["benchmarks"]) == {"pairs"}


def test_a_stopped_evaluation_goes_on_where_it_was(pairs, monkeypatch):
    whole, score_subtask, scored = score(), evaluate.score_subtask, []
    rows = Path("out/tiny/pairs_pairs.jsonl").read_bytes()

    def stop_in_the_second(*args):
        scored.append(args[2])
        if len(scored) == 2:
            raise KeyboardInterrupt
        return score_subtask(*args)

    monkeypatch.setattr(evaluate, "score_subtask", stop_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        score()
    with open("out/tiny/pairs_pairs.jsonl.part", "a") as file:
        file.write('{"order_2": [[-1')  # as if killed while writing
    monkeypatch.setattr(
        evaluate, "score_subtask", lambda *args: 1 / 0 if args[2] == scored[0] else score_subtask(*args)
    )
    assert score() == whole and Path("out/tiny/pairs_pairs.jsonl").read_bytes() == rows
    assert not Path("out/tiny/pairs_pairs.jsonl.part").exists()


def test_what_was_scored_before_a_stop_is_not_scored_again(pairs, monkeypatch):
    """Also where it was the whole of another task; but what has changed since is."""
    shutil.copytree("pairs", "more")
    scored, score_subtask = [], evaluate.score_subtask

    def stop_after(count):
        def scoring(model, tokenizer, subtask, *rest):
            scored.append(subtask.file)
            return score_subtask(model, tokenizer, subtask, *rest) if len(scored) <= count else 1 / 0

        scored.clear()
        monkeypatch.setattr(evaluate, "score_subtask", scoring)

    stop_after(4)
    with pytest.raises(ZeroDivisionError):
        score(tasks="pairs,more")
    assert scored[3:] == ["more/order_1.jsonl", "more/order_2.jsonl"]
    Path("more/twice.jsonl").write_text(jsonl(minimal_pairs()["twice"][1:]))
    stop_after(9)
    assert score(tasks="pairs,more")["benchmarks"]["more"]["subtasks"]["twice"]["n"] == 11
    assert scored == ["more/order_2.jsonl", "more/twice.jsonl"]
    assert not list(Path("out/tiny").glob("*.part"))


def test_each_dtype_has_its_own_scores_and_results(pairs):
    """float64 is brute force's, bfloat16 is near; results of one are not added to those of another."""
    shutil.copytree("pairs", "more")
    found = {}
    for dtype in ("float32", "bfloat16", "float64"):
        results = score(dtype=dtype, tasks="more" if dtype == "float64" else "pairs")
        found[dtype] = [row["good"] for row in lines_of(sorted(Path("out/tiny").glob("pairs_*"))[0])]
    assert set(results["benchmarks"]) == {"more"}
    model, tokenizer, _ = load("out/tiny")
    first = by_brute_force(model, tokenizer, "", minimal_pairs()["order_1"][0]["sentence_good"])
    assert found["float64"][0] == pytest.approx(first, rel=1e-12)
    assert found["float32"] == pytest.approx(found["float64"], rel=5e-6)
    assert found["bfloat16"] == pytest.approx(found["float64"], rel=0.05)
    assert found["bfloat16"] != pytest.approx(found["float64"], rel=5e-6)


def test_a_subtask_may_be_scored_in_parts(pairs, monkeypatch):
    """So that memory stays flat: never more texts at once than are allowed."""
    whole, counts, score_texts = score(), [], evaluate.score_texts
    monkeypatch.setattr(evaluate, "TEXTS_AT_ONCE", 5)
    monkeypatch.setattr(
        evaluate, "score_texts", lambda m, x, f: counts.append(len(x)) or score_texts(m, x, f)
    )
    assert score() == whole and set(counts) == {4}


def test_bears_statements_are_read_as_they_are(workplace, monkeypatch):
    protocols, encode = [], evaluate.encode
    monkeypatch.setattr(evaluate, "encode", lambda *args: protocols.append(args[-1]) or encode(*args))
    record = {"sub_label": "my cat", "templates": ["[X] is [Y]."], "answers": ["a", "b"], "right": 0}
    evaluate.score_subtask(*load("out/tiny")[:2], subtask("bear", **record), "2024")
    assert protocols == ["2025"]


def test_perplexity_is_not_of_other_tokens(pairs):
    path = Path("data/tiny/tokenizer.json")
    path.write_text(path.read_text() + "\n")
    assert score()["perplexity"] is None


def test_perplexity_is_not_of_another_text(pairs, capsys):
    path = Path("data/tiny/meta.json")
    meta = json.loads(path.read_text())
    meta["sources"]["another.txt"] = "its digest"
    path.write_text(json.dumps(meta))
    assert score()["perplexity"] is None
    assert "no perplexity: data/tiny has another text than the run's" in capsys.readouterr().out


def test_what_unpacks_without_end_is_refused_and_a_mark_of_utf8_is_not(pairs, monkeypatch, refusal):
    Path("bom.jsonl").write_text(jsonl(pairs["twice"]), encoding="utf-8-sig")
    assert [len(x.records) for x in benchmarks.read_benchmark("bom.jsonl").values()] == [12]
    Path("bomb.jsonl.gz").write_bytes(gzip.compress(b" " * 9999))
    monkeypatch.setattr(benchmarks, "LARGEST", 999)
    assert "bomb.jsonl.gz: more than 0 MB once unpacked" in refusal(
        benchmarks.read_benchmark, "bomb.jsonl.gz"
    )


def test_a_file_is_not_taken_for_the_benchmark_it_is_called_after(pairs):
    assert [evaluate.name_of(x) for x in ("blimp", "blimp.jsonl", "my/own.jsonl.gz", "../more")] == [
        "blimp", "blimp_file", "my_own", "more",
    ]  # fmt: skip


def test_two_files_that_would_share_their_results_are_refused(pairs, refusal):
    Path("my").mkdir()
    for name in ("my/own.jsonl", "my_own.jsonl"):
        shutil.copy("pairs/twice.jsonl", name)
    said = refusal(evaluate.Settings(tasks="my/own.jsonl,my_own.jsonl").check)
    assert "two of them would be 'my_own' in the results; rename a file" in said and said.count("\n") == 1


def test_a_copied_run_is_scored_without_its_corpus(pairs):
    shutil.rmtree("data")
    assert score()["benchmarks"]["pairs"]["subtasks"]


# ----------------------------------------------------------------------------------------------------
# Several processes


def evaluate_with(count, *args, machines=None):
    """evaluate.py of joined processes -> their exit statuses, what all of them have printed."""
    return fork_many(count, lambda: run_script(lambda _: evaluate.script(list(args))), machines)


def written(run="tiny"):
    """The bytes of what an evaluation writes into a run's folder."""
    files = [Path("out", run, name) for name in ("results.json", "pairs_pairs.jsonl")]
    return [path.read_bytes() for path in files]


@needs_fork
@pytest.mark.parametrize("kernels", ["auto", "loop"])
@pytest.mark.parametrize("mixer", ["hgrn2", "attention"])
def test_several_processes_share_the_work_and_write_what_one_does(pairs, tiny, monkeypatch, mixer, kernels):
    """The same bytes, and each batch is read by one of them; only the first speaks."""
    if mixer != "hgrn2":
        train.main(tiny(mixer=mixer, position="rope", fresh=True, max_steps=3))
    monkeypatch.setattr(evaluate, "BATCH", 5)
    monkeypatch.setattr(evaluate, "VALIDATION_BATCH", 3)
    monkeypatch.setitem(scoring.BATCH_TOKENS, "cpu", 60)
    for module, name in ((evaluate, "score_plainly"), (scoring, "score_tree"), (evaluate, "tally")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    command = ["out/tiny", "--tasks=pairs", f"--kernels={kernels}", "--device=cpu", "--results=copy.json"]
    found, said, batches = {}, {}, set()
    for count in (1, 2, 3):
        Path("readers").write_text("")
        codes, said[count] = evaluate_with(count, *command)
        assert codes == [0] * count, said
        found[count] = [*written(), Path("copy.json").read_bytes()]
        readers = Path("readers").read_text().splitlines()
        assert sorted(set(readers)) == [str(rank) for rank in range(count)]
        batches.add(len(readers))
        Path("out/tiny/results.json").unlink()
    assert found[1] == found[2] == found[3] and len(batches) == 1
    assert lines_of_text(said[1]) == lines_of_text(said[2]) == lines_of_text(said[3])


def counted(read):
    """A function that also notes, in the file `readers`, which process has called it."""

    def call(*args):
        with open("readers", "a") as file:
            file.write(f"{rank()}\n")
        return read(*args)

    return call


@needs_fork
@pytest.mark.parametrize("before, after", [(2, 1), (1, 3)])
def test_it_resumes_with_another_number_of_processes(pairs, monkeypatch, before, after):
    """What was scored before the kill is not scored again; the same bytes in the end."""
    score()
    whole, append, score_subtask = written(), evaluate.append, evaluate.score_subtask
    Path("out/tiny/results.json").unlink()

    def append_and_die(path, record):
        append(path, record)
        if path.read_text().count("\n") == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    def score_the_last(model, tokenizer, subtask, *rest):
        assert subtask.file == "pairs/twice.jsonl"
        return score_subtask(model, tokenizer, subtask, *rest)

    command = ["out/tiny", "--tasks=pairs", "--device=cpu"]
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "append", append_and_die)
        codes, _ = evaluate_with(before, *command)
    assert codes[0] == -signal.SIGKILL and 0 not in codes
    monkeypatch.setattr(evaluate, "score_subtask", score_the_last)
    codes, said = evaluate_with(after, *command)
    assert codes == [0] * after and written() == whole, said


@needs_fork
def test_several_processes_compare_runs_as_one_does(pairs):
    shutil.copytree("out/tiny", "out/two")
    shutil.copy("out/two/previous.pt", "out/two/checkpoint.pt")
    command = ["out/tiny", "out/two", "--tasks=pairs", "--device=cpu"]
    evaluate.script(command)
    whole = written(), written("two"), Path("out/leaderboard.csv").read_bytes()
    for path in [*Path("out").rglob("*results.json"), Path("out/leaderboard.csv")]:
        path.unlink()
    codes, said = evaluate_with(2, *command)
    assert codes == [0, 0] and said.count("written: out/leaderboard.csv") == 1, said
    assert whole == (written(), written("two"), Path("out/leaderboard.csv").read_bytes())


@needs_fork
def test_what_a_machine_lacks_or_has_another_of_ends_all_with_the_same_line(pairs):
    """The run, then a benchmark; nothing is written."""
    for name in ("first", "second"):
        shutil.copytree("pairs", f"{name}/pairs")
    shutil.copytree("out", "first/out")
    command = ["out/tiny", "--tasks=pairs", "--device=cpu"]
    before = sorted(Path("first/out/tiny").iterdir())
    codes, said = evaluate_with(2, *command, machines=["first", "second"])
    assert codes == [2, 2] and said.count("out/tiny: no checkpoint here; make one:") == 2, said
    shutil.copytree("out", "second/out")
    Path("second/pairs/twice.jsonl").write_text(jsonl(minimal_pairs()["twice"][1:]))
    codes, said = evaluate_with(2, *command, machines=["first", "second"])
    line = "out/tiny: not the same checkpoint and test files on all machines; copy both from the first\n"
    assert codes == [2, 2] and said == 2 * line, said
    assert sorted(Path("first/out/tiny").iterdir()) == before


@needs_fork
def test_ctrl_c_is_said_once(pairs, monkeypatch):
    """It reaches one process after the other, while two wait for the one that scores a batch."""

    def score_for_long(model, texts):
        Path("begun").touch()
        time.sleep(30)

    def send(pid):
        while not Path("begun").exists():
            time.sleep(0.01)
        time.sleep(0.1 + 0.02 * rank())
        os.kill(pid, signal.SIGINT)

    def work():
        threading.Thread(target=send, args=[os.getpid()], daemon=True).start()
        run_script(lambda _: evaluate.script(["out/tiny", "--tasks=pairs", "--device=cpu"]))

    monkeypatch.setattr(scoring, "score_tree", score_for_long)
    codes, said = fork_many(3, work)
    assert codes[0] == 130 and {2, 130} >= set(codes), codes
    assert lines_of_text(said)[1:] == ["stopped"], said


# ----------------------------------------------------------------------------------------------------
# What is read


def read(path):
    """A benchmark's records, wherever they were."""
    return {uid: (x.kind, x.term, x.records) for uid, x in benchmarks.read_benchmark(path).items()}


def test_folders_archives_and_packed_files_are_the_same(pairs):
    Path("packed").mkdir()
    with zipfile.ZipFile("pairs.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for uid, paradigm in pairs.items():
            archive.writestr(f"blimp/{uid}.jsonl", jsonl(paradigm))
            Path("packed", f"{uid}.jsonl.gz").write_bytes(gzip.compress(jsonl(paradigm).encode()))
    folder = read("pairs")
    assert folder == read("packed") == read("pairs.zip")
    assert {"twice": folder["twice"]} == read("pairs/twice.jsonl") == read("packed/twice.jsonl.gz")
    first = {name: pairs["twice"][0][name] for name in ("sentence_good", "sentence_bad")}
    assert folder["twice"] == ("pairs", "doubling", folder["twice"][2]) and folder["twice"][2][0] == first | {
        "i": 0
    }


def test_paradigms_are_told_apart_by_uid_and_hidden_files_are_left_out(pairs):
    """One file may hold several paradigms; archives made on a Mac hold a hidden twin of each file."""
    Path("mix.jsonl").write_text("".join(jsonl(paradigm) for paradigm in pairs.values()))
    with zipfile.ZipFile("mac.zip", "w") as archive:
        archive.write("mix.jsonl", "mix.jsonl")
        archive.writestr("__MACOSX/._mix.jsonl", b"\x00\x05\x16\x07\xff")
    found = read("pairs")
    assert read("mix.jsonl") == read("mac.zip")  # but for the line, which is the file's
    for uid, (_, _, records) in read("mix.jsonl").items():
        assert [record | {"i": 0} for record in records] == [record | {"i": 0} for record in found[uid][2]]
    assert sorted(record["i"] for _, _, records in read("mix.jsonl").values() for record in records) == [
        *range(36)
    ]


@pytest.mark.parametrize("line", [
    "{",
    "[1]",
    '{"sentence_good": "A."}',
    '{"sentence_good": null, "sentence_bad": "A."}',
    '{"Context1": "A.", "Context2": "B.", "Target1": "C."}',
    '{"sub_label": "A", "obj_id": 1, "obj_label": "B"}',
])  # fmt: skip
def test_a_broken_line_is_named(pairs, refusal, line):
    with open("pairs/twice.jsonl", "a") as file:
        file.write(line + "\n")
    said = refusal(evaluate.read_benchmark, "pairs")
    assert said.startswith("pairs/twice.jsonl:13: not a record of BLiMP, EWoK or BEAR")
    assert said.count("\n") == 1


def test_blank_lines_are_left_out(pairs):
    """The records after one keep the number of their line."""
    path = Path("pairs/twice.jsonl")
    path.write_text("\n" + path.read_text() + "\n")
    assert [x["i"] for x in benchmarks.read_benchmark("pairs")["twice"].records] == [*range(1, 13)]


@pytest.mark.parametrize(
    "name", ["cut.jsonl.gz", "altered.jsonl.gz", "not.zip", "latin.jsonl", "empty.jsonl"]
)
def test_a_file_that_cannot_be_read_is_named(pairs, refusal, name):
    packed = gzip.compress(jsonl(pairs["twice"]).encode())
    Path("cut.jsonl.gz").write_bytes(packed[:-9])
    Path("altered.jsonl.gz").write_bytes(packed[:30] + bytes(20) + packed[50:])
    Path("not.zip").write_bytes(packed)
    Path("latin.jsonl").write_bytes(b'{"sentence_good": "\xe9"}\n')
    Path("empty.jsonl").write_bytes(b"")
    said = refusal(evaluate.read_benchmark, name)
    assert said.startswith(f"{name}: ") and said.count("\n") == 1


@pytest.mark.parametrize(
    "odd", ["", "\ud800", "\u2028", "\x85", "\0", "</s>", "🙂", "A.\nB.", "x" * 500], ids=ascii
)
def test_odd_sentences_are_scored(workplace, odd):
    """A lone surrogate, which JSON allows, counts as U+FFFD; "</s>" is text; separators do not split a line."""
    pair = {"sentence_good": f"The cat {odd}", "sentence_bad": odd}
    Path("odd.jsonl").write_bytes(json.dumps(pair, ensure_ascii=odd == "\ud800").encode() + b"\n")
    score(tasks="odd.jsonl")
    (row,) = lines_of("out/tiny/pairs_odd.jsonl")
    assert math.isfinite(row["good"]) and math.isfinite(row["bad"])


@pytest.fixture
def real(workplace, real_data, monkeypatch):
    """The real benchmarks, by name."""
    folder = real_data("blimp/blimp.zip").parent.parent
    monkeypatch.setenv("NANORNN_DATA", str(folder))
    return folder


@pytest.mark.parametrize(
    "task, subtasks, verdicts",
    [
        ("blimp", 67, 67_000),
        ("blimp_filtered", 67, 59_875),
        ("blimp_fast", 67, 13_400),
        ("supplement", 5, 5218),
        ("supplement_fast", 5, 250),
        ("ewok", 11, 8748),
        ("ewok_filtered", 11, 7618),
        ("ewok_fast", 11, 1100),  # each row asks one way, as the leaderboard does
        ("bear", 60, 3 * 7731),
        ("bear_big", 78, 3 * 40_916),
    ],
)
def test_real_benchmarks_are_whole(real, task, subtasks, verdicts):
    found = benchmarks.read_benchmark(task)
    each = {"pairs": 1, "ewok": 1 if task == "ewok_fast" else 2, "bear": 3}
    first = next(iter(found.values()))
    scores = [0.0] * len(benchmarks.ask(first, first.records[0]))
    assert len(benchmarks.judge(first, first.records[0], scores)) == each[first.kind]
    assert len(found) == subtasks
    assert sum(each[x.kind] * len(x.records) for x in found.values()) == verdicts


def test_domains_of_ewok_have_the_counts_that_are_published(real):
    counts = {uid: 2 * len(x.records) for uid, x in benchmarks.read_benchmark("ewok_filtered").items()}
    assert counts["agent-properties"] == 2210 and counts["material-dynamics"] == 770


def test_records_of_two_kinds_under_one_name_are_refused(workplace, refusal):
    pair = {"sentence_good": "a", "sentence_bad": "b", "UID": "x"}
    item = dict.fromkeys(benchmarks.FIELDS["ewok"], "a") | {"UID": "x"}
    Path("two.jsonl").write_text(json.dumps(pair) + "\n" + json.dumps(item) + "\n")
    assert "two.jsonl:2: a record of ewok among pairs" in refusal(benchmarks.read_benchmark, "two.jsonl")


def test_ewok_is_filtered_by_the_words_of_its_items(workplace, monkeypatch, refusal):
    """As the pipeline does, by the words of Context1, Context2, Target1 and Target2, unless marked."""
    texts = "Ann can't sit.", "Bo cannot stand.", "It is Li's tea-cup, 7,500.", "Is it?"
    words = "ann ca n't sit . bo can not stand it is li 's tea-cup , 7,500 ?".split()
    assert set(benchmarks.WORD.findall(" ".join(texts).lower())) == set(words)
    record = dict(zip(benchmarks.FIELDS["ewok"], [*texts, "a domain"]))
    other = record | {"Target2": "Is it sitting?"}
    Path("data/ewok").mkdir(parents=True)
    with zipfile.ZipFile("data/ewok/ewok-core-1.0.zip", "w") as archive:
        archive.writestr(
            "x.jsonl", "\n".join(map(json.dumps, (other, record, other | {"in_babylm_vocab": True})))
        )
    monkeypatch.setitem(benchmarks.ALL, "ewok_filtered", 2)
    said = refusal(benchmarks.read_benchmark, "ewok_filtered")
    assert said.endswith("data/ewok/vocab.txt; python data.py ewok_vocabulary\n")
    Path("data/ewok/vocab.txt").write_text("\n".join(words))
    assert [x["i"] for x in benchmarks.read_benchmark("ewok_filtered")["a domain"].records] == [1, 2]


def test_the_words_of_ewok_tell_what_is_marked(real):
    """Of the real items: one that is left out has a word that no other has."""
    with_marks = benchmarks.read_benchmark("ewok_filtered")
    fields = [field for field in benchmarks.FIELDS["ewok"] if field != "Domain"]

    def words(record):
        return set(benchmarks.WORD.findall(" ".join(record[field] for field in fields).lower()))

    known = {word for x in with_marks.values() for record in x.records for word in words(record)}
    everything = [record for x in benchmarks.read_benchmark("ewok").values() for record in x.records]
    assert sum(words(record) <= known for record in everything) == 3809


def test_no_text_of_ewok_is_written(workplace):
    """Scores and numbers only, in every file that an evaluation leaves."""
    item = dict(Context1="The cat sees.", Context2="The dog sees.", Target1="It hears.", Target2="It likes.")
    Path("mine.jsonl").write_text(jsonl([item | {"Domain": "d"}] * 3))
    score(tasks="mine.jsonl", results="copy.json")
    written = "".join(path.read_text() for path in [*Path("out/tiny").rglob("*.json*"), Path("copy.json")])
    assert '"swapped": true' in written and not any(text in written for text in item.values())
    row = lines_of("out/tiny/pairs_mine.jsonl")[0]
    assert list(row) == ["uid", "i", "swapped", "good", "bad", "other"]


def damaged(real, task, change):
    """A benchmark's folder or archive under data/, its files changed by change(name, bytes) -> bytes or None."""
    source, target = real / benchmarks.BENCHMARKS[task], Path("data", benchmarks.BENCHMARKS[task])
    target.parent.mkdir(parents=True)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            if (raw := change(name, old.read(name))) is not None:
                new.writestr(name, raw)


def change_in(word, change):
    """A change of the files that have a word in their names; None leaves them out."""
    return lambda name, raw: change(raw) if word in name else raw


def without_last_line(raw):
    return raw[: raw[:-1].rfind(b"\n") + 1]


DAMAGE = [  # benchmark, what happens to it, what is said
    ("blimp_fast", change_in("adjunct_island", without_last_line),
     "adjunct_island has 199 lines and not 200; fetch it again"),
    ("blimp_filtered", change_in("adjunct_island", without_last_line),
     "59,874 lines in all and not 59,875; fetch it again: python data.py blimp"),
    ("blimp_fast", change_in("adjunct_island", lambda raw: raw[:-9]), "jsonl:200: not a record"),
    ("bear", change_in("P103", without_last_line), "7,730 lines in all and not 7,731"),
    ("bear", change_in("metadata", lambda raw: raw[:999]), "metadata_relations.json: not BEAR's"),
    ("bear", change_in("metadata", lambda raw: b'{"P103": {}}'), "relation P103 does not fit"),
    ("bear", change_in("P103", lambda raw: raw.replace(b"Q", b"R")), "relation P103 does not fit"),
    ("bear", change_in("metadata", lambda raw: None), "relation P103 does not fit"),
    ("bear", change_in("P103", lambda raw: b"\xff"), "cannot be read (byte 0 is not UTF-8)"),
]  # fmt: skip


@pytest.mark.parametrize("task, change, said", DAMAGE)
def test_a_damaged_benchmark_is_refused(real, monkeypatch, refusal, task, change, said):
    damaged(real, task, change)
    monkeypatch.delenv("NANORNN_DATA")
    line = refusal(benchmarks.read_benchmark, task)
    assert said in line and line.count("\n") == 1 and line.startswith(f"data/{benchmarks.BENCHMARKS[task]}")


def test_a_cut_archive_and_another_password_are_refused(real, monkeypatch, refusal):
    with monkeypatch.context() as patch:
        patch.setattr(benchmarks, "PASSWORDS", (b"wrong", b"also wrong"))
        said = refusal(benchmarks.read_benchmark, "ewok_fast")
        assert "ewok_fast.zip: cannot be read (locked, and not with a password that" in said
    monkeypatch.delenv("NANORNN_DATA")
    for task in ("blimp", "ewok_fast", "bear"):
        target = Path("data", benchmarks.BENCHMARKS[task])
        target.parent.mkdir(parents=True)
        target.write_bytes((real / benchmarks.BENCHMARKS[task]).read_bytes()[:-99])
        line = refusal(benchmarks.read_benchmark, task)
        assert line.startswith(f"{target}: cannot be read (") and line.count("\n") == 1


def test_two_benchmarks_in_one_folder_are_refused(pairs, refusal):
    record = {"Context1": "A.", "Context2": "B.", "Target1": "C.", "Target2": "D.", "Domain": "d"}
    Path("pairs/ewok.jsonl").write_text(jsonl([record]))
    assert "files of different benchmarks" in refusal(benchmarks.read_benchmark, "pairs")


def test_toyland_knows_all_three_kinds(workplace, monkeypatch):
    """Made on the spot, and scored by default of a run on toyland."""
    monkeypatch.setattr(toyland, "write", partial(toyland.write, words=3000))  # seconds less
    for task, kind in (("toyland", "pairs"), ("toyland_ewok", "ewok"), ("toyland_bear", "bear")):
        assert {x.kind for x in benchmarks.read_benchmark(task).values()} == {kind}


def test_a_kept_checkpoint_has_results_of_its_own(pairs):
    last = score()
    best = score(run="out/tiny/best.pt")
    assert json.loads(Path("out/tiny/results.json").read_text()) == last
    assert json.loads(Path("out/tiny/best_results.json").read_text()) == best
    assert Path("out/tiny/best_pairs_pairs.jsonl").exists()


# ----------------------------------------------------------------------------------------------------
# What small slips would change


def test_the_answers_to_bear_are_its_tables_and_keep_their_capitals(tmp_path):
    assert benchmarks.fill("[X] of [Y].", "the Seine", "New York") == "The Seine of New York."
    record = dict(sub_label="a", obj_id="Q2", obj_label="two, as the record says")
    (tmp_path / "P1.jsonl").write_text(jsonl([record]))
    relation = {
        "templates": ["[X] [Y]"],
        "answer_space_ids": ["Q1", "Q2"],
        "answer_space_labels": ["one", "two"],
    }
    (tmp_path / "metadata_relations.json").write_text(json.dumps({"P1": relation}))
    (record,) = benchmarks.read_benchmark(str(tmp_path))["P1"].records
    assert (record["answers"], record["right"]) == (["one", "two"], 1)


def test_files_in_an_archive_are_read_by_name(pairs):
    with zipfile.ZipFile("b.zip", "w") as archive:
        for uid in sorted(pairs, reverse=True):
            archive.writestr(f"{uid}.jsonl", jsonl(pairs[uid]))
    assert list(benchmarks.read_benchmark("b.zip")) == sorted(pairs)


def test_a_password_that_looks_right_at_first_is_not_the_last(real_data, monkeypatch):
    monkeypatch.setattr(benchmarks, "PASSWORDS", (b"496", *benchmarks.PASSWORDS))
    assert len(benchmarks.read_benchmark(str(real_data("ewok/ewok_fast.zip")))) == 11


def test_the_table_has_phenomena_totals_readings_and_templates(capsys):
    one = {
        "a": dict(score=80.0, interval=5.0, n=10, term="t"),
        "b": dict(score=60.0, interval=5.0, n=30, term="t"),
    }
    more = dict(readings={"p": 55.0}, templates=[1.0, 2.0], chance=4.0)
    evaluate.print_table("x", dict(score=70.0, interval=3.5, subtasks=one) | more, "2024")
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()[2:]]
    assert lines == ["t 70.0", "a 80.0 ± 5.0 10", "b 60.0 ± 5.0 30", "all statements 70.0 ± 3.5 40",
                     "read as p 55.0", "template 0 1.0", "template 1 2.0", "by chance 4.0"]  # fmt: skip
