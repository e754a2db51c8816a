"""The benchmark: it measures what it says, among equals, and a peer that is not here is a row that says so."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

import bench
import bench_kernels
import bench_minrnn
import figures

SMALL = dict(
    n_layer=1, d_model=16, n_head=2, d_mlp=24, vocab_size=300, repeats=1, device="cpu",
    shapes="2x16 1x32", positions="3 20", pairs_each=2, results="bench.json", models="HGRN2,transformers Llama",
)  # fmt: skip


def measure(what, **settings):
    return bench.main(bench.Settings(what=what, **SMALL | settings))


def test_training_is_a_row_for_each_model_and_shape(workplace):
    rows = measure("train", shapes="2x16")
    assert [row["model"] for row in rows] == ["HGRN2", "transformers Llama"]
    for row in rows:
        if row["model"] == "transformers Llama" and not importlib.util.find_spec("transformers"):
            continue  # then its row is empty
        assert row["tokens_per_second"] == pytest.approx(32 / row["seconds"]) and row["peak_bytes"] >= 0


def test_generation_is_a_row_for_each_model_and_position(workplace):
    rows = measure("generate")
    assert [(row["model"], row["position"]) for row in rows] == [
        (model, position) for position in (3, 20) for model in ("HGRN2", "transformers Llama")
    ]


def test_scoring_names_the_peer_that_is_not_here(workplace, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    rows = measure("score", pairs="toyland", models="HGRN2")
    assert rows[0]["pairs_per_second"] > 0 and 0.3 < rows[0]["tokens_read"] < 1
    assert rows[-1] == {"model": "lm-eval", "pairs": rows[0]["pairs"]}


def test_without_transformers_its_rows_have_no_figures(workplace, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    ours, theirs = measure("generate", positions="3")
    assert ours["seconds"] > 0 and theirs == {"model": "transformers Llama", "position": 3}


def test_a_run_that_ends_before_its_first_step_is_not_a_time(workplace, monkeypatch, refusal):
    monkeypatch.setattr(bench.data, "find", lambda name: workplace / "data" / "tiny")
    monkeypatch.setattr(bench, "__file__", str(workplace / "bench.py"))  # there is no train.py beside it
    assert "ended before its first step" in refusal(bench.start, bench.Settings(what="start", **SMALL))


def test_results_of_another_benchmark_stay(workplace):
    measure("generate", positions="3", models="HGRN2")
    measure("generate", positions="3", models="HGRN2", dtype="bfloat16")
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
    return lambda **settings: measure("kernels", models="", **settings)


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
    kernels(kernels="small,linear_scan")
    kernels(kernels="small", minutes=0)
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
    works, missing, breaks = kernels(kernels="small")[:3]
    assert works["seconds"] > 0 and missing["failed"].startswith("not installed")
    assert breaks["failed"].startswith("AttributeError")


def test_ours_in_pytorch_is_not_ours_in_triton(monkeypatch):
    """Forward and backward."""
    asked = []
    monkeypatch.setattr(bench_kernels.kernels, "runs_triton", lambda x: asked.append(x))
    inputs = [torch.rand(1, 8, 2), torch.rand(1, 8, 2)]
    for in_pytorch in (False, True):
        asked.clear()
        bench_kernels.Way(bench_kernels.kernels.linear_scan, inputs, in_pytorch=in_pytorch).task(True)()
        assert bool(asked) != in_pytorch


def test_the_figure_of_kernels_takes_what_there_is(kernels):
    kernels()
    figures.main(["bench.json"])
    assert Path("bench_kernels.svg").stat().st_size > 10_000


def test_all_models_learn_the_same_task_with_about_as_many_parameters():
    """Else a figure would compare unequals."""
    s = bench.Settings(vocab_size=4096)
    pytest.importorskip("transformers")
    sizes = {name: sum(p.numel() for p in bench.make(s, name).parameters()) for name in bench.MODELS}
    learned = {name: size - s.d_model * 8192 * ("GPT-2" in name) for name, size in sizes.items()}  # positions
    assert max(learned.values()) < 1.1 * min(learned.values()), sizes
    tokens = torch.randint(4096, (2, 8))
    losses = {name: bench.make(s, name)(tokens, tokens).item() for name in bench.MODELS}
    assert all(7 < loss < 10 for loss in losses.values()), losses


@pytest.mark.parametrize(
    "wrong, remedy",
    [(dict(what="trian"), "did you mean 'train'"), (dict(models="HGRN"), "did you mean 'HGRN2'"),
     (dict(shapes="8*256"), "whole numbers"), (dict(shapes="8x0"), "whole numbers"),
     (dict(kernels="liner_scan"), "did you mean 'linear_scan'"),
     (dict(n_head=3), "does not divide"), (dict(results="."), "is a folder")],
)  # fmt: skip
def test_wrong_settings_are_one_line(wrong, remedy, refusal):
    assert remedy in refusal(bench.Settings(**dict(what="train") | wrong).check)


def test_minrnn_is_a_row_for_each_layer_and_size(workplace, monkeypatch):
    """One that is not there says so; times the loop are those of its own loop."""
    mixers = {name: bench_minrnn.MIXERS["mingru"] for name in ("mingru", "minlstm", "gru_loop", "mamba")}
    monkeypatch.setattr(bench_minrnn, "MIXERS", mixers)
    rows = measure("minrnn", models="", sizes="2x8x4 1x16x4")
    assert [(x["B"], x["T"], x["D"], x["model"]) for x in rows] == [
        (B, T, 4, name) for B, T in ((2, 8), (1, 16)) for name in bench_minrnn.LAYERS
    ]
    found = {x["model"]: x for x in rows[: len(bench_minrnn.LAYERS)]}
    assert found["minGRU"]["times_the_loop"] == found["GRU, a loop"]["seconds"] / found["minGRU"]["seconds"]
    assert "times_the_loop" not in found["minLSTM"] and found["minLSTM"]["seconds"] > 0
    assert found["torch GRU"]["failed"] == "not installed: there is no mixer 'gru'"


def test_memory_is_the_most_that_is_held_at_once():
    """By hand, of a thousand float32: two results and their sum, then four at once, then one after the other."""
    x = torch.ones(1000)
    assert bench_minrnn.peak_bytes(lambda: (x * x) + (x + x), torch.device("cpu")) == 12_000
    assert bench_minrnn.peak_bytes(lambda: [x + x for _ in range(4)], torch.device("cpu")) == 16_000
    assert bench_minrnn.peak_bytes(lambda: [(x + x).sum() for _ in range(4)], torch.device("cpu")) < 5_000


def test_the_figure_of_minrnn_says_the_papers_figure_beside_ours(workplace):
    loop = dict(model="GRU, a loop", B=64, T=512, D=64, seconds=1.0, peak_bytes=10)
    rows = [
        loop,
        loop | dict(model="minGRU", seconds=0.01, peak_bytes=20, times_the_loop=100.0),
        loop | dict(T=256),
    ]
    assert figures.times_the_loop(rows) == "minGRU at T = 512: 100.0 times its loop (paper: 175)"
    with open("bench.json", "w", encoding="utf-8") as file:
        json.dump(
            {"minrnn": {"rows": rows + [dict(model="Mamba", B=64, T=512, D=64, failed="not there")]}}, file
        )
    figures.main(["bench.json"])
    assert Path("bench_minrnn.svg").stat().st_size > 10_000
