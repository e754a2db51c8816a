"""Scores are what a reader would compute by hand, whatever the batch, the file or an interruption."""

import gzip
import json
import math
import random
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

import checkpoint
import data
import evaluate
from model import load


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


@pytest.fixture
def pairs(workplace):
    """The pairs, also as the folder of files pairs/."""
    Path("pairs").mkdir()
    for uid, paradigm in minimal_pairs().items():
        Path("pairs", f"{uid}.jsonl").write_text(jsonl(paradigm))
    return minimal_pairs()


def score(**settings):
    return evaluate.main(evaluate.Settings(**dict(run="out/tiny", tasks="pairs") | settings))


def lines_of(file):
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def by_brute_force(model, tokenizer, sentence):
    """sum of log p(token | <s>, tokens before), one token after the other, in float64."""
    ids = [tokenizer.token_to_id("<s>"), *tokenizer.encode(sentence, add_special_tokens=False).ids]
    total = 0.0
    with torch.no_grad():
        for t in range(1, len(ids)):
            logits, _ = model.double()(torch.tensor([ids[:t]]))
            total += logits[0, -1].log_softmax(dim=-1)[ids[t]].item()
    return total


def sentences(source, real_data):
    if source == "ours":
        paradigms = minimal_pairs().values()
    else:
        archive = zipfile.ZipFile(real_data("blimp/blimp.zip"))
        names = random.Random(0).sample(archive.namelist(), 4)
        paradigms = [[json.loads(line) for line in archive.read(name).splitlines()[:4]] for name in names]
    return [
        pair[side]
        for paradigm in paradigms
        for pair in paradigm
        for side in ("sentence_good", "sentence_bad")
    ]


@pytest.mark.parametrize("source", ["ours", "blimp"])
def test_scores_equal_brute_force(workplace, real_data, source):
    """One sentence at a time in float64 against batches in float32: within 1e-5."""
    model, tokenizer, _ = load("out/tiny")
    texts = sentences(source, real_data)[:32]
    with torch.no_grad():
        found = evaluate.sentence_scores(model, tokenizer, texts)
    assert found == pytest.approx([by_brute_force(model, tokenizer, text) for text in texts], rel=1e-5)


def test_scores_do_not_depend_on_the_batch(workplace, real_data, monkeypatch):
    model, tokenizer, _ = load("out/tiny")
    found = []
    for size in (1, 64, 4096):
        monkeypatch.setitem(evaluate.BATCH_TOKENS, "cpu", size)
        with torch.no_grad():
            found.append(evaluate.sentence_scores(model, tokenizer, sentences("ours", real_data)))
    assert found[0] == pytest.approx(found[1], abs=1e-4) and found[0] == pytest.approx(found[2], abs=1e-4)


def test_both_protocols_score_the_same_tokens(pairs):
    """Our tokenizer begins a sentence with a space as it is, so 2024's own makes no difference."""
    found = {protocol: score(protocol=protocol) for protocol in ("2024", "2025")}
    assert {protocol: results["protocol"] for protocol, results in found.items()} == {
        "2024": "2024",
        "2025": "2025",
    }
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
    assert results["checkpoint"] == checkpoint.fingerprint("out/tiny/checkpoint.pt")
    benchmark, rows = results["benchmarks"]["pairs"], lines_of("out/tiny/pairs_pairs.jsonl")
    assert [(row["uid"], row["i"]) for row in rows] == [(uid, i) for uid in sorted(pairs) for i in range(12)]
    for uid, subtask in benchmark["subtasks"].items():
        right = [row["good"] >= row["bad"] for row in rows if row["uid"] == uid]
        assert subtask["score"] == 100 * sum(right) / 12 and subtask["n"] == 12
    assert benchmark["score"] == pytest.approx(sum(x["score"] for x in benchmark["subtasks"].values()) / 3)
    assert list(rows[0]) == ["uid", "i", "good", "bad"] and rows[0]["good"] < 0


def test_ties_intervals_and_means_by_hand():
    """
    4 of 6 right, a tie among them: p = (4 + 2) / (6 + 4) = 0.6, half width 1.96 sqrt(0.6 * 0.4 / 10) = 30.36 %.
    2 of 2: p = 4 / 6, 1.96 sqrt(p (1 - p) / 6) = 37.72 %. Of the mean: sqrt(30.36^2 + 37.72^2) / 2 = 24.21 %.
    """
    scores = {"a": [(-1, -2)] * 3 + [(-2, -2)] + [(-3, -2)] * 2, "b": [(-1, -9)] * 2}
    result = evaluate.summary({uid: {"term": "", "pairs": ...} for uid in scores}, scores)
    a, b = result["subtasks"]["a"], result["subtasks"]["b"]
    assert (a["score"], b["score"], a["n"], b["n"]) == (pytest.approx(100 * 4 / 6), 100, 6, 2)
    assert (a["interval"], b["interval"]) == (pytest.approx(30.36, abs=0.01), pytest.approx(37.72, abs=0.01))
    assert result["score"] == pytest.approx(250 / 3) and result["interval"] == pytest.approx(24.21, abs=0.01)


def test_another_task_is_added_and_another_protocol_or_model_starts_anew(pairs):
    shutil.copytree("pairs", "more")
    score()
    assert set(score(tasks="more")["benchmarks"]) == {"pairs", "more"}
    assert set(score(tasks="more", protocol="2025")["benchmarks"]) == {"more"}
    shutil.copy("out/tiny/best.pt", "out/tiny/checkpoint.pt") and score()
    shutil.copy("out/tiny/previous.pt", "out/tiny/checkpoint.pt")
    assert set(score()["benchmarks"]) == {"pairs"}


def test_a_stopped_evaluation_goes_on_where_it_was(pairs, monkeypatch):
    whole, score_pairs, scored = score(), evaluate.score_pairs, []
    rows = Path("out/tiny/pairs_pairs.jsonl").read_bytes()

    def stop_in_the_second(*args):
        scored.append(args[2][0])
        if len(scored) == 2:
            raise KeyboardInterrupt
        return score_pairs(*args)

    monkeypatch.setattr(evaluate, "score_pairs", stop_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        score()
    with open("out/tiny/pairs_pairs.jsonl.part", "a") as file:
        file.write('{"order_2": [[-1')  # as if killed while writing
    with pytest.raises(ZeroDivisionError):
        monkeypatch.setattr(
            evaluate, "score_pairs", lambda *args: score_pairs(*args) if args[2][0] == scored[1] else 1 / 0
        )
        score()
    monkeypatch.setattr(
        evaluate, "score_pairs", lambda *args: score_pairs(*args) if args[2][0] not in scored else 1 / 0
    )
    assert score() == whole and Path("out/tiny/pairs_pairs.jsonl").read_bytes() == rows
    assert not Path("out/tiny/pairs_pairs.jsonl.part").exists()


def test_a_copied_run_is_scored_without_its_corpus(pairs):
    shutil.rmtree("data")
    assert score()["benchmarks"]["pairs"]["subtasks"]


# ----------------------------------------------------------------------------------------------------
# What is read


def test_folders_archives_and_packed_files_are_the_same(pairs):
    Path("packed").mkdir()
    with zipfile.ZipFile("pairs.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for uid, paradigm in pairs.items():
            archive.writestr(f"blimp/{uid}.jsonl", jsonl(paradigm))
            Path("packed", f"{uid}.jsonl.gz").write_bytes(gzip.compress(jsonl(paradigm).encode()))
    folder = evaluate.read_pairs("pairs")
    assert folder == evaluate.read_pairs("packed") == evaluate.read_pairs("pairs.zip")
    assert {"twice": folder["twice"]} == evaluate.read_pairs("pairs/twice.jsonl")
    assert {"twice": folder["twice"]} == evaluate.read_pairs("packed/twice.jsonl.gz")
    first = pairs["twice"][0]
    assert folder["twice"]["pairs"][0] == (first["sentence_good"], first["sentence_bad"])


def test_paradigms_are_told_apart_by_uid_and_hidden_files_are_left_out(pairs):
    """One file may hold several paradigms; archives made on a Mac hold a hidden twin of each file."""
    Path("mix.jsonl").write_text("".join(jsonl(paradigm) for paradigm in pairs.values()))
    with zipfile.ZipFile("mac.zip", "w") as archive:
        archive.write("mix.jsonl", "mix.jsonl")
        archive.writestr("__MACOSX/._mix.jsonl", b"\x00\x05\x16\x07\xff")
    assert evaluate.read_pairs("pairs") == evaluate.read_pairs("mix.jsonl") == evaluate.read_pairs("mac.zip")


@pytest.mark.parametrize(
    "line", ["{", '{"sentence_good": "A."}', "[1]", '"text"', '{"sentence_good": null, "sentence_bad": "A."}']
)
def test_a_broken_line_is_named(pairs, refusal, line):
    with open("pairs/twice.jsonl", "a") as file:
        file.write(line + "\n")
    said = refusal(evaluate.read_pairs, "pairs")
    assert said.startswith("pairs/twice.jsonl:13: not a pair") and said.count("\n") == 1


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
    said = refusal(evaluate.read_pairs, name)
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


def test_where_there_are_no_pairs_the_line_says_where_to_put_them(workplace, refusal):
    assert "put it at data/blimp/blimp.zip, or set NANORNN_DATA" in refusal(
        evaluate.read_pairs, "blimp"
    )


def test_blimp_is_found_where_nanornn_data_says(workplace, real_data, monkeypatch):
    """67 paradigms of 1,000 pairs."""
    monkeypatch.setenv("NANORNN_DATA", str(real_data("blimp/blimp.zip").parent.parent))
    paradigms = evaluate.read_pairs("blimp")
    assert len(paradigms) == 67 and {len(paradigm["pairs"]) for paradigm in paradigms.values()} == {1000}
