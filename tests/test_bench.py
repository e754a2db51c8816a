"""The benchmark: it measures what it says, among equals, and a peer that is not here is a row that says so."""

import gc
import json
import sys
import weakref
from functools import partial
from pathlib import Path

from fast import generation
from support.settings import configure
from tools import bench, bench_kernels, bench_minrnn, bench_models, figures, figures_bench, measure

import pytest
import torch

SMALL = dict(
    n_layer=1, d_model=16, n_head=2, d_mlp=24, vocab_size=300, repeats=1, device="cpu",
    shapes="2x16 1x32", positions="3 20", pairs_each=2, results="bench.json", models="HGRN2,transformers Llama",
)  # fmt: skip


def rows_of(what, **settings):
    return bench.main(bench.Settings(what=what, **SMALL | settings))


def test_training_is_a_row_for_each_shape_and_its_memory_is_measured_apart(workplace):
    """A step that no memory holds is a row that says so."""
    works, fails = rows_of("train", models="HGRN2", shapes="2x16 1x99999999999999")
    assert works["tokens_per_second"] == pytest.approx(32 / works["seconds"])
    assert works["peak_bytes"] >= 0 and works["parameters"] > 0 and works["compiled"] is False
    assert "allocate" in fails["failed"] and "seconds" not in fails


def test_generation_is_a_row_for_each_model_and_position(workplace):
    rows = rows_of("generate")
    assert [(row["model"], row["position"]) for row in rows] == [
        (model, position) for position in (3, 20) for model in ("HGRN2", "transformers Llama")
    ]


def test_scoring_counts_each_paradigm_once_and_names_the_peer_that_is_not_here(workplace, monkeypatch):
    """Each once after the first one, twice, to warm up."""
    read, score_subtask = [], bench_models.score_subtask

    def noted(model, tokenizer, subtask):
        read.append(subtask)
        return score_subtask(model, tokenizer, subtask)

    monkeypatch.setattr(bench_models, "score_subtask", noted)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    ours, *theirs = rows_of("score", pairs="toyland")
    paradigms = bench_models.read_benchmark("toyland").values()
    first, again, *subtasks = read
    assert first == again == subtasks[0]
    assert subtasks == [paradigm._replace(records=paradigm.records[:2]) for paradigm in paradigms]
    assert ours["pairs_per_second"] == pytest.approx(ours["pairs"] / ours["seconds"])
    assert ours["model"] == "HGRN2" and 0.3 < ours["tokens_read"] < 1
    assert [row["model"].split()[-1] for row in theirs] == ["16", "64", "256"]
    for row in theirs:
        assert row["pairs"] == ours["pairs"] and row["failed"].startswith("not installed")


def test_without_transformers_its_rows_say_so(workplace, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    ours, theirs = rows_of("generate", positions="3")
    assert ours["seconds"] > 0
    assert theirs["failed"].startswith("not installed") and "seconds" not in theirs


def no_room(*args):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")


def test_a_model_that_runs_out_of_memory_is_a_row_that_says_so(workplace, monkeypatch):
    """Of generation; of training, where memory was enough in a process of its own but is not here."""
    said = "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    monkeypatch.setitem(bench_models.MODELS, "minGRU", no_room)
    works, fails = rows_of("generate", models="HGRN2,minGRU", positions="3")
    assert works["seconds"] > 0 and fails == {"model": "minGRU", "position": 3, "failed": said}

    monkeypatch.setattr(bench_models, "in_own_process", lambda *args: {"peak_bytes": 1})
    works, fails = rows_of("train", models="HGRN2,minGRU", shapes="1x4")
    assert works["seconds"] > 0 and works["peak_bytes"] == 1 and fails["failed"] == said


def test_training_is_timed_as_train_py_runs_it(workplace, monkeypatch):
    """Compiled on a GPU, ours block by block and a peer whole, and as it is; the rows say which."""
    compiled = []

    def compile_nothing(what, **options):
        compiled.append(type(getattr(what, "__self__", what)).__name__)
        return what

    monkeypatch.setattr(torch, "compile", compile_nothing)
    monkeypatch.setattr(bench_models, "in_own_process", lambda *args: {"peak_bytes": 1})
    blocks = ["Block", "ForgetFloors"]
    for name, setting, expected in (
        ("HGRN2", "auto", []), ("HGRN2", "yes", blocks), ("torch GRU", "yes", ["TorchRNN"])
    ):  # fmt: skip
        (row,) = rows_of("train", models=name, shapes="1x4", compiled=setting)
        assert row["compiled"] == bool(expected) and row["seconds"] > 0 and compiled == expected
        compiled.clear()
    monkeypatch.setattr(bench_models, "find_device", torch.device)
    assert bench_models.ways_to_run(bench.Settings(device="cuda:1")) == [False, True]


def test_on_a_gpu_generation_is_also_timed_by_a_cuda_graph(monkeypatch):
    """It reads on where the other reader stopped."""

    def record(step):
        step()
        return step

    s = bench.Settings(what="generate", **SMALL)
    text, _ = bench_models.random_tokens(s, 1, 20)
    monkeypatch.setattr(generation, "record", record)
    with torch.inference_mode():
        plain, graph = (
            bench_models.make_reader(s, name, text) for name in ("HGRN2", bench_models.WITH_GRAPH)
        )
        for _ in range(3):
            torch.testing.assert_close(graph(), plain())
    assert bench_models.generating(s) == ["HGRN2", "transformers Llama"]
    monkeypatch.setattr(bench_models, "find_device", torch.device)
    s.device = "cuda:1"
    assert bench_models.generating(s) == ["HGRN2", "transformers Llama", "HGRN2, CUDA graph"]


def test_the_gpu_that_is_named_is_the_one_that_is_timed(monkeypatch):
    used = []
    monkeypatch.setattr(measure, "find_device", torch.device)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    for device in ("cpu", "cuda", "cuda:1"):
        measure.set_up(bench.Settings(device=device))
    assert used == [0, 1]


def test_tasks_take_turns_and_the_average_is_theirs():
    """Two calls to warm up, then one in each turn."""
    called, seconds = [], iter([5, 1, 7, 2, 6, 9])
    makers = {name: lambda name=name: lambda: called.append(name) for name in "ab"}

    def clock(task):
        task()
        return next(seconds)

    assert measure.take_turns(makers, clock, range(3)) == {"a": {"seconds": 6}, "b": {"seconds": 2}}
    assert "".join(called) == "aaabbb" + "ab" * 2


def test_what_failed_leaves_no_memory_to_the_next_and_what_is_over_none_to_the_next_group():
    """Not by the traceback, nor by references in a circle, as a compiled model has to itself."""
    models = []

    class Model:
        def __init__(self, fails):
            self.itself, self.fails = self, fails
            models.append(weakref.ref(self))

        def __call__(self):
            if self.fails:
                raise torch.OutOfMemoryError("CUDA out of memory")

    def make(fails):
        assert not any(model() for model in models)
        return Model(fails)

    clock = measure.Clock(torch.device("cpu"))
    gc.disable()
    try:
        one = measure.take_turns({"a": partial(make, True), "b": partial(make, False)}, clock, range(2))
        other = measure.take_turns({"c": partial(make, False)}, clock, range(2))
    finally:
        gc.enable()
    assert "failed" in one["a"] and "seconds" in one["b"] and "seconds" in other["c"]


def test_a_run_that_ends_before_its_first_step_is_not_a_time(workplace, monkeypatch, refusal):
    monkeypatch.setattr(bench_models.data, "find", lambda name: workplace / "data" / "tiny")
    monkeypatch.setattr(bench_models, "ROOT", workplace)  # there is no train.py in it
    assert "ended before its first step" in refusal(bench_models.start, bench.Settings(what="start", **SMALL))


def test_results_of_another_benchmark_stay(workplace, refusal):
    """And a file that holds something else is refused before anything is measured."""
    rows_of("generate", positions="3", models="HGRN2")
    rows_of("generate", positions="3", models="HGRN2", dtype="bfloat16")
    with open("bench.json", encoding="utf-8") as file:
        results = json.load(file)
    assert set(results) == {"generate_float32", "generate_bfloat16"}
    assert results["generate_float32"]["threads"] == torch.get_num_threads()
    for text in ("[1, 2", "[1, 2]"):
        Path("bench.json").write_text(text, encoding="utf-8")
        assert "bench.json: not a results file" in refusal(rows_of, "train")


def test_nothing_to_measure_is_said(workplace, refusal):
    assert "generate measures none of models = 'torch GRU'" in refusal(
        lambda: rows_of("generate", models="torch GRU")
    )
    assert not Path("bench.json").exists()


TINY = {
    "linear_scan": [dict(B=2, T=T, D=4) for T in (16, 8)], "gated_linear_attention": [dict(B=1, T=16, H=2, K=16)],
    "selective_scan": [dict(B=1, T=16, E=4, N=2)],
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
    assert scans == [(T, way, name) for T in (16, 8) for way in passes for name in ("ours", "loop")]
    one = next(row for row in rows if row["T"] == 8)
    assert one["bytes"] == 3 * 2 * 8 * 4 * 4  # a, b and h, in float32
    assert one["floor_seconds"] == one["bytes"] / 1e9
    assert one["share_of_bandwidth"] == pytest.approx(one["floor_seconds"] / one["seconds"])
    assert {x["kernel"] for x in rows} == set(TINY)


def test_a_way_that_fails_is_a_row_that_says_so(kernels, monkeypatch):
    def is_not_there(x):
        import no_such_package  # noqa: F401

    def broken(device, dtype, **sizes):
        x = torch.ones(2)
        ways = {"ours": lambda x: x * 2, "is not there": is_not_there, "breaks": lambda x: x.no_such_method()}
        return {name: (function, [x]) for name, function in ways.items()}, x

    monkeypatch.setitem(bench_kernels.KERNELS, "selective_scan", broken)
    works, missing, breaks = kernels(recurrences="selective_scan")[:3]
    assert works["seconds"] > 0 and missing["failed"].startswith("not installed")
    assert breaks["failed"].startswith("AttributeError")


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn of benchmarks, {name of the file: figure}; they are also saved."""
    found, keep = {}, figures_bench.keep

    def keep_both(figure, path):
        found[path.name] = figure
        return keep(figure, path)

    monkeypatch.setattr(figures_bench, "keep", keep_both)
    return found


def test_the_figure_of_kernels_takes_what_there_is(kernels, drawn):
    rows = kernels()
    figures.main(["bench.json"])
    axes = drawn["bench_kernels.svg"].axes
    titles = [f"{x['kernel']}, {x['pass']}: time in ms".replace("_", " ") for x in rows]
    assert [axis.get_title() for axis in axes] == list(dict.fromkeys(titles)) and len(axes) == 6
    lines = {x["model"] for x in rows} | {"the machine's limit"}
    assert all({line.get_label() for line in axis.get_lines()} == lines for axis in axes)
    assert Path("bench_kernels.svg").exists()


def test_all_models_learn_the_same_task_with_about_as_many_parameters():
    """Else a figure would compare unequals."""
    s = bench.Settings(vocab_size=4096)
    models = {}
    for name in bench_models.MODELS:
        try:
            models[name] = bench_models.make(s, name)
        except ImportError:  # a peer that is not here
            assert name in ("transformers Llama", "fla HGRN2")
    sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    assert max(sizes.values()) < 1.1 * min(sizes.values()), sizes
    tokens = torch.randint(4096, (2, 8))
    models.pop("fla HGRN2", None)  # which runs on a GPU alone
    losses = {name: model(tokens, tokens)["loss"].item() for name, model in models.items()}
    assert all(7 < loss < 10 for loss in losses.values()), losses


def test_every_benchmark_is_started_by_its_name():
    for name in bench.BENCHMARKS:
        assert configure(bench.Settings(), [name, "--device=cpu"], word="what").what == name


@pytest.mark.parametrize(
    "wrong, remedy",
    [(dict(what="trian"), "did you mean 'train'"), (dict(models="HGRN"), "did you mean 'HGRN2'"),
     (dict(shapes="8*256"), "whole numbers"), (dict(shapes="8x0"), "whole numbers"),
     (dict(recurrences="liner_scan"), "did you mean 'linear_scan'"),
     (dict(n_head=3), "does not divide")],
)  # fmt: skip
def test_wrong_settings_are_one_line(wrong, remedy, refusal):
    said = refusal(bench.Settings(**dict(what="train") | wrong).check)
    assert remedy in said and said.count("\n") == 1


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


def test_the_figure_of_minrnn_says_the_papers_figure_beside_ours(workplace, drawn):
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
    assert "(paper: 175)" in drawn["bench_minrnn.svg"].axes[0].get_xlabel()
    assert Path("bench_minrnn.svg").exists()
