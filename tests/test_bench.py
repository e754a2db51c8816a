"""The benchmark: it measures what it says, among equals, and a peer that is not here is a row that says so."""

import importlib.util
import json
import sys
from pathlib import Path

from fast import operators
from tools import bench, bench_kernels, bench_minrnn, bench_models, figures, figures_bench, measure

import pytest
import torch

SMALL = dict(
    n_layer=1, d_model=16, n_head=2, d_mlp=24, vocab_size=300, repeats=1, device="cpu",
    shapes="2x16 1x32", positions="3 20", pairs_each=2, results="bench.json", models="HGRN2,transformers Llama",
)  # fmt: skip


def rows_of(what, **settings):
    return bench.main(bench.Settings(what=what, **SMALL | settings))


def test_training_is_a_row_for_each_model_and_shape(workplace):
    rows = rows_of("train", shapes="2x16")
    assert [row["model"] for row in rows] == ["HGRN2", "transformers Llama"]
    for row in rows:
        if row["model"] == "transformers Llama" and not importlib.util.find_spec("transformers"):
            continue  # then its row says so
        assert row["tokens_per_second"] == pytest.approx(32 / row["seconds"]) and row["peak_bytes"] >= 0


def test_generation_is_a_row_for_each_model_and_position(workplace):
    rows = rows_of("generate")
    assert [(row["model"], row["position"]) for row in rows] == [
        (model, position) for position in (3, 20) for model in ("HGRN2", "transformers Llama")
    ]


def test_scoring_names_the_peer_that_is_not_here(workplace, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    ours, *theirs = rows_of("score", pairs="toyland")
    assert ours["pairs_per_second"] == pytest.approx(ours["pairs"] / ours["seconds"])
    assert ours["model"] == "HGRN2" and 0.3 < ours["tokens_read"] < 1
    assert [row["model"].split()[-1] for row in theirs] == ["16", "64", "256"]
    for row in theirs:
        assert row["pairs"] == ours["pairs"] and row["failed"].startswith("not installed")


def test_scoring_counts_each_paradigm_once(workplace, monkeypatch):
    """After a hundred records of the first one, twice, to warm up."""
    read = []
    monkeypatch.setattr(bench_models, "score_subtask", lambda model, tokenizer, x: read.append(x))
    rows_of("score", pairs="toyland", models="HGRN2", pairs_each=120)
    first, again, *subtasks = read
    assert first == again and len(first.records) == 100 and first.records == subtasks[0].records[:100]
    assert subtasks == [
        x._replace(records=x.records[:120]) for x in bench_models.read_benchmark("toyland").values()
    ]


def test_without_transformers_its_rows_say_so(workplace, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    ours, theirs = rows_of("generate", positions="3")
    assert ours["seconds"] > 0
    assert theirs["failed"].startswith("not installed") and "seconds" not in theirs


def no_room(*args):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")


def test_a_model_that_runs_out_of_memory_is_a_row_that_says_so(workplace, monkeypatch):
    """Of generation; of training, in the process that measures memory, or later where the time is taken."""
    said = "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    assert measure.in_own_process(bench.Settings(), no_room) == {"failed": said}
    monkeypatch.setitem(bench_models.MODELS, "minGRU", no_room)
    works, fails = rows_of("generate", models="HGRN2,minGRU", positions="3")
    assert works["seconds"] > 0 and fails == {"model": "minGRU", "position": 3, "failed": said}

    sizes = {"HGRN2": {"peak_bytes": 1}, "minGRU": {"peak_bytes": 1}, "minLSTM": {"failed": "no room"}}
    monkeypatch.setattr(bench_models, "in_own_process", lambda s, function, name, B, T: sizes[name])
    works, later, before = rows_of("train", models="HGRN2,minGRU,minLSTM", shapes="1x4")
    assert works["seconds"] > 0 and works["peak_bytes"] == 1
    assert later["failed"] == said and before["failed"] == "no room"


def test_the_gpu_that_is_named_is_the_one_that_is_timed(monkeypatch):
    used = []
    monkeypatch.setattr(measure, "find_device", torch.device)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    for device in ("cpu", "cuda", "cuda:1"):
        measure.set_up(bench.Settings(device=device))
    assert used == [0, 1]


def test_tasks_take_turns_and_the_average_is_theirs():
    """Two calls to warm up, then one in each turn, until there are three and they took long enough."""
    called = []
    makers = {name: lambda name=name: lambda: called.append(name) for name in "ab"}
    seconds = iter([5, 1, 7, 1, 6, 1, 1, 1])
    times = measure.take_turns(makers, lambda task, queued: task() or next(seconds), range(5), enough=6)
    assert "".join(called) == "aaabbb" + "ab" * 2 + "b" * 2
    assert times == {"a": {"seconds": 6}, "b": {"seconds": 1}}


def test_a_run_that_ends_before_its_first_step_is_not_a_time(workplace, monkeypatch, refusal):
    monkeypatch.setattr(bench_models.data, "find", lambda name: workplace / "data" / "tiny")
    monkeypatch.setattr(bench_models, "ROOT", workplace)  # there is no train.py in it
    assert "ended before its first step" in refusal(bench_models.start, bench.Settings(what="start", **SMALL))


def test_results_of_another_benchmark_stay(workplace):
    rows_of("generate", positions="3", models="HGRN2")
    rows_of("generate", positions="3", models="HGRN2", dtype="bfloat16")
    with open("bench.json", encoding="utf-8") as file:
        results = json.load(file)
    assert set(results) == {"generate_float32", "generate_bfloat16"}
    assert results["generate_float32"]["threads"] == torch.get_num_threads()


TINY = {
    "linear_scan": [dict(B=2, T=T, D=4) for T in (16, 8)], "gated_linear_attention": [dict(B=1, T=16, H=2, K=16)],
    "selective_scan": [dict(B=1, T=16, E=4, N=2)],
    "small": [dict(B=1, T=8, H=2, K=16)],
}  # fmt: skip


@pytest.fixture
def kernels(workplace, monkeypatch):
    """kernels(...) -> the rows of its benchmark, on next to nothing."""
    monkeypatch.setitem(bench_kernels.SIZES, "cpu", TINY)
    monkeypatch.setattr(bench_kernels, "limits", lambda device: {"copy_bytes_per_second": 1e9})
    return lambda **settings: rows_of("kernels", models="", **settings)


def test_kernels_are_rows_for_each_size_and_way(kernels):
    rows = kernels()
    assert not [row for row in rows if "failed" in row]
    scans = [(x["T"], x["pass"], x["model"]) for x in rows if x["kernel"] == "linear_scan"]
    passes = "forward", "forward and backward"
    assert scans == [(T, way, name) for T in (8, 16) for way in passes for name in ("ours", "loop")]
    one = rows[0]
    assert one["bytes"] == 3 * 2 * 8 * 4 * 4  # a, b and h, in float32
    assert one["floor_seconds"] == one["bytes"] / 1e9
    assert one["share_of_bandwidth"] == pytest.approx(one["floor_seconds"] / one["seconds"])
    assert {x["kernel"] for x in rows} == set(TINY)


def test_kernels_that_were_not_asked_for_stay(kernels):
    kernels(recurrences="small,linear_scan")
    kernels(recurrences="small", minutes=0)
    with open("bench.json", encoding="utf-8") as file:
        rows = json.load(file)["kernels"]["rows"]
    assert len(rows) == 9 and "seconds" in rows[0] and rows[-1]["failed"] == "no time was left"


def test_a_way_that_fails_is_a_row_that_says_so(kernels, monkeypatch):
    def broken(*inputs, **sizes):
        return [torch.ones(2)], torch.ones(2), {
            "works": lambda: bench_kernels.Way(lambda x: x * 2, [torch.ones(2)]),
            "is not there": lambda: bench_kernels.theirs("no_such_package", "scan"),
            "breaks": lambda: bench_kernels.Way(lambda x: x.no_such_method(), [torch.ones(2)]),
        }  # fmt: skip

    monkeypatch.setitem(bench_kernels.KERNELS, "small", broken)
    works, missing, breaks = kernels(recurrences="small")[:3]
    assert works["seconds"] > 0 and missing["failed"].startswith("not installed")
    assert breaks["failed"].startswith("AttributeError")


def test_ours_in_pytorch_is_not_ours_in_triton(monkeypatch):
    """Forward and backward; and the form is put back."""
    forms, chosen = [], operators.fast_form

    def noted(x):
        forms.append(bench_kernels.kernels.form)
        return chosen(x)

    monkeypatch.setattr(operators, "fast_form", noted)
    inputs = [torch.rand(1, 8, 2), torch.rand(1, 8, 2)]
    for form in ("", "torch"):
        task = bench_kernels.Way(bench_kernels.kernels.linear_scan, inputs, form=form).task(True)
        forms.clear()
        task()
        assert forms == [form or "auto"] * 2 and bench_kernels.kernels.form == "auto"


def test_the_figure_of_kernels_takes_what_there_is(kernels):
    kernels()
    figures.main(["bench.json"])
    assert Path("bench_kernels.svg").stat().st_size > 10_000


def test_all_models_learn_the_same_task_with_about_as_many_parameters():
    """Else a figure would compare unequals."""
    s = bench.Settings(vocab_size=4096)
    pytest.importorskip("transformers")
    models = {name: bench_models.make(s, name) for name in bench_models.MODELS}
    sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    learned = {name: size - s.d_model * 8192 * ("GPT-2" in name) for name, size in sizes.items()}  # positions
    assert max(learned.values()) < 1.1 * min(learned.values()), sizes
    tokens = torch.randint(4096, (2, 8))
    losses = {name: model(tokens, tokens)["loss"].item() for name, model in models.items()}
    assert all(7 < loss < 10 for loss in losses.values()), losses


@pytest.mark.parametrize(
    "wrong, remedy",
    [(dict(what="trian"), "did you mean 'train'"), (dict(models="HGRN"), "did you mean 'HGRN2'"),
     (dict(shapes="8*256"), "whole numbers"), (dict(shapes="8x0"), "whole numbers"),
     (dict(recurrences="liner_scan"), "did you mean 'linear_scan'"),
     (dict(n_head=3), "does not divide"), (dict(results="."), "is a folder")],
)  # fmt: skip
def test_wrong_settings_are_one_line(wrong, remedy, refusal):
    assert remedy in refusal(bench.Settings(**dict(what="train") | wrong).check)


def test_minrnn_is_a_row_for_each_layer_and_size(workplace, monkeypatch):
    """One that fails says so; times the loop are those of its own loop."""
    monkeypatch.setitem(bench_minrnn.LAYERS, "LSTM, a loop", ("no_such_mixer", False))
    rows = rows_of("minrnn", models="", sizes="2x8x4 1x16x4")
    assert [(x["B"], x["T"], x["D"], x["model"]) for x in rows] == [
        (B, T, 4, name) for B, T in ((2, 8), (1, 16)) for name in bench_minrnn.LAYERS
    ]
    found = {x["model"]: x for x in rows[: len(bench_minrnn.LAYERS)]}
    assert found["minGRU"]["times_the_loop"] == found["GRU, a loop"]["seconds"] / found["minGRU"]["seconds"]
    assert "times_the_loop" not in found["minLSTM"] and found["minLSTM"]["seconds"] > 0
    assert (
        found["LSTM, a loop"]["failed"] == "KeyError: 'no_such_mixer'" and found["torch GRU"]["seconds"] > 0
    )


def test_the_loops_of_minrnn_are_plain_and_the_librarys_cells_are_not():
    """torch's run their cells over all steps in one call."""
    calls = {}
    for name in ("GRU, a loop", "torch GRU"):
        task = bench_minrnn.make(name, torch.device("cpu"), 1, 8, 4)
        with torch.profiler.profile() as profiler:
            task()
        calls[name] = {event.key for event in profiler.key_averages()}
    assert "aten::gru" in calls["torch GRU"] and "aten::gru" not in calls["GRU, a loop"]


def test_memory_is_the_most_that_is_held_at_once():
    """By hand, of a thousand float32: two results and their sum, then four at once, then one after the other."""
    x = torch.ones(1000)
    assert measure.peak_of_task(lambda: (x * x) + (x + x), torch.device("cpu")) == 12_000
    assert measure.peak_of_task(lambda: [x + x for _ in range(4)], torch.device("cpu")) == 16_000
    assert measure.peak_of_task(lambda: [(x + x).sum() for _ in range(4)], torch.device("cpu")) < 5_000


def test_the_figure_of_minrnn_says_the_papers_figure_beside_ours(workplace):
    loop = dict(model="GRU, a loop", B=64, T=512, D=64, seconds=1.0, peak_bytes=10)
    rows = [
        loop,
        loop | dict(model="minGRU", seconds=0.01, peak_bytes=20, times_the_loop=100.0),
        loop | dict(T=256),
    ]
    assert figures_bench.times_the_loop(rows) == "minGRU at T = 512: 100.0 times its loop (paper: 175)"
    with open("bench.json", "w", encoding="utf-8") as file:
        json.dump(
            {"minrnn": {"rows": rows + [dict(model="Mamba", B=64, T=512, D=64, failed="not there")]}}, file
        )
    figures.main(["bench.json"])
    assert Path("bench_minrnn.svg").stat().st_size > 10_000
