"""Scores equal those of other people's tools; where they would not, it is said."""

import json
import zipfile
from pathlib import Path

from conftest import stories
from corpora import benchmarks
from model import load
from tools import agree

import pytest
import test_export

pytest.importorskip("transformers")
from transformers import dynamic_module_utils

ITEMS = [  # made up: EWoK's own are not to be published
    {"Context1": "The zorp is on the flim.", "Context2": "The zorp is under the flim.", "Domain": domain}
    | {"Target1": "The flim is below it.", "Target2": "The flim is above it.", "in_babylm_vocab": i > 0}
    for domain in ("spatial", "social")
    for i in range(3)
]


own_cache = test_export.own_cache  # a fixture


@pytest.fixture
def place(workplace, monkeypatch):
    """A workplace with pairs.jsonl and a made-up EWoK."""
    monkeypatch.setattr(benchmarks, "ALL", {})  # how many items there should be
    lines = stories(4).split("\n")
    pairs = [
        {"sentence_good": a, "sentence_bad": f"{b}\nThe dog" * 2} for a, b in zip(lines, lines[1:]) if a and b
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    Path("data/ewok").mkdir()
    with zipfile.ZipFile("data/ewok/ewok-core-1.0.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ewok/ewok.jsonl", "".join(json.dumps(item) + "\n" for item in ITEMS))
    return workplace


def settings(**changes):
    return agree.Settings(**dict(run="out/tiny", tasks="pairs.jsonl,ewok_filtered", each=2) | changes)


def test_transformers_agrees_and_the_rows_are_kept(place):
    rows = agree.main(settings())
    again = agree.main(settings(each=1))
    kept = json.loads(Path("results/agreement.json").read_text())
    assert len(rows) == 4 and kept == again and [row["pairs"] for row in kept] == [1, 1, 4, 4]
    assert [(row["benchmark"], row["protocol"]) for row in rows] == [
        (task, protocol) for task in ("pairs.jsonl", "ewok_filtered") for protocol in ("2024", "2025")
    ]
    assert [row["pairs"] for row in rows] == [2, 2, 8, 8]
    assert all(row["relative"] <= 5e-6 and row["logits"] <= 1e-5 and not row["verdicts"] for row in rows)


@pytest.mark.parametrize("content", ["{", "[1]", '[{"peer": "lm_eval"}]'])
def test_results_of_something_else_are_refused_first(place, refusal, content):
    Path("mine.json").write_text(content)
    assert refusal(settings(results="mine.json").check).startswith(
        "results = 'mine.json': not a file that agree"
    )
    assert "results = 'out': not a file" in refusal(settings(results="out").check)


def test_a_score_that_is_no_number_is_no_agreement(place, refusal, monkeypatch):
    class Other(agree.Transformers):
        def scores(self, items, with_start):
            return [*super().scores(items, with_start)[:-1], float("nan")]

    monkeypatch.setitem(agree.PEERS, "transformers", Other)
    assert "differ on pairs.jsonl" in refusal(agree.main, settings(tasks="pairs.jsonl"))


def test_a_tool_that_scores_otherwise_is_found_out(place, refusal, monkeypatch):
    class Other(agree.Transformers):
        def scores(self, items, with_start):
            return [score * (1 + 1e-5) for score in super().scores(items, with_start)]

    monkeypatch.setitem(agree.PEERS, "transformers", Other)
    said = refusal(agree.main, settings(tasks="pairs.jsonl"))
    assert said.endswith(
        "transformers and nanoRNN differ on pairs.jsonl, pairs.jsonl: see results/agreement.json\n"
    )
    assert json.loads(Path("results/agreement.json").read_text())[0]["relative"] == pytest.approx(
        1e-5, rel=0.1
    )


def test_ewok_is_never_written_down(place):
    agree.main(settings(tasks="ewok_filtered"))
    for path in [*place.rglob("*"), *Path(dynamic_module_utils.HF_MODULES_CACHE).rglob("*")]:
        assert not path.is_file() or b"zorp" not in path.read_bytes(), path


def test_a_continuation_is_worth_what_it_adds(place):
    """log p(T | <s> C) = log p(C T | <s>) - log p(C | <s>)."""
    model, tokenizer, _ = load("out/tiny")
    context, text = agree.some_texts("ewok_filtered", 1)[0]
    texts = [(context, text), ("", f"{context} {text}"), ("", context)]
    ours, whole, before = agree.score_texts(model, agree.encode(tokenizer, texts, "2025"))
    assert ours == pytest.approx(whole - before, rel=1e-4)


def test_an_item_that_is_asked_one_way_is_one_pair(place):
    Path("ewok_fast").mkdir()
    Path("ewok_fast/items.jsonl").write_text(json.dumps(ITEMS[0]))
    one, other = agree.some_texts("ewok_fast/items.jsonl", 1)
    assert one[0] == other[0] and one[1] != other[1]


def test_a_tool_that_is_not_there_is_named(place, refusal, monkeypatch):
    def missing(folder):
        raise ImportError("No module named 'lm_eval'")

    monkeypatch.setitem(agree.PEERS, "lm_eval", missing)
    said = refusal(agree.main, settings(peer="lm_eval"))
    assert "peer = 'lm_eval': this python lacks it (No module named 'lm_eval')" in said


def test_minicons_agrees(place):
    pytest.importorskip("minicons")
    rows = agree.main(settings(peer="minicons"))
    assert [row["benchmark"] for row in rows] == ["pairs.jsonl"] * 2


def test_lm_eval_agrees_also_by_its_own_road(place, monkeypatch):
    """A task file as its users write one, with a space before the sentence, and without: the same scores."""
    pytest.importorskip("lm_eval")
    assert len(agree.main(settings(peer="lm_eval"))) == 4
    import datasets
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", place / "cache")
    model, tokenizer, _ = load("out/tiny")
    harness = agree.Harness(str(agree.export.main(agree.export.Settings(run="out/tiny"))))
    for protocol, delimiter in ("2024", " "), ("2025", ""):
        task = {
            "task": f"pairs_{protocol}", "dataset_path": "json", "validation_split": "train",
            "dataset_kwargs": {"data_files": {"train": str(place / "pairs.jsonl")}},
            "output_type": "multiple_choice", "doc_to_text": "", "doc_to_target": 0,
            "doc_to_choice": "{{[sentence_good, sentence_bad]}}", "target_delimiter": delimiter, "num_fewshot": 0,
        }  # fmt: skip
        Path("tasks").mkdir(exist_ok=True)
        Path(f"tasks/pairs_{protocol}.yaml").write_text(json.dumps(task))
        manager = TaskManager(include_path="tasks", include_defaults=False)
        options = dict(log_samples=True, limit=5, bootstrap_iters=0, task_manager=manager)
        found = simple_evaluate(harness.models[True], tasks=[f"pairs_{protocol}"], **options)
        samples = sorted(found["samples"][f"pairs_{protocol}"], key=lambda sample: sample["doc_id"])
        theirs = [float(answer[0][0]) for sample in samples for answer in sample["resps"]]
        texts = agree.some_texts("pairs.jsonl", 0)[:10]
        ours = agree.score_texts(model, agree.encode(tokenizer, texts, protocol))
        items = [("", " " * (protocol == "2024") + text) for _, text in texts]
        assert harness.scores(items, True) == pytest.approx(theirs, rel=1e-6)
        assert ours == pytest.approx(theirs, rel=5e-6)
