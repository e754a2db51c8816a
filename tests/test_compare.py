"""A comparison is ordinary runs and true arithmetic on their logs, the same however often it is killed."""

import csv
import json
import random
import re
import shutil
import signal
import statistics
import time
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import compare
import data
import distill
import evaluate
import finetune
import kernels
import train
from conftest import ROOT, contents, same
from corpora import toyland
from model import LanguageModel
from support.files import alone_in
from support.processes import Stopped
from support.run import read_log
from support.settings import given
from tools import figures

import matplotlib
import pytest
import torch
from processes import fork, fork_two, needs_fork, wait_until
from test_finetune import toy_rows
from test_finetune import write as write_items

RECIPE = dict(
    corpus="small", vocab_size=300, n_layer=1, d_model=16, n_head=2, d_mlp=24, context=32, batch_size=16,
    max_steps=6, eval_every=2, log_every=1, eval_pairs="./pairs", device="cpu", dtype="float32",
    models={"HGRN2": {"mixer": "hgrn2"}, "minGRU": {"mixer": "mingru", "learning_rates": [3e-2, 1e-2]}},
    learning_rates=[1e-2, 1e-3],
)  # fmt: skip
draw_results = figures.draw_results  # most tests do without: it takes longer than four such runs
RUNS = ["HGRN2-0.01-0", "HGRN2-0.001-0", "minGRU-0.03-0", "minGRU-0.01-0"]


def write(name="two.py", **settings):
    Path(name).write_text("".join(f"{key} = {value!r}\n" for key, value in (RECIPE | settings).items()))
    return name


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Without what takes longer than such a run: its picture, and looking for what a large model leaves behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "learning_curve", lambda folder: "")
        patch.setattr(compare, "gc", SimpleNamespace(collect=lambda: None))
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a little of toyland, and a comparison on it, two.py, made without a stop; what it returned."""
    folder = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("NANORNN_DATA", raising=False)
        Path("text.txt").write_text("\n\n".join(toyland.stories(seed=0, words=5_000)))
        data.prepare("small", ["text.txt"], data.Settings(vocab_size=300, val_share=0.05))
        Path("pairs").mkdir()
        for uid, pairs in list(toyland.minimal_pairs(10).items())[:3]:
            lines = (json.dumps(pair | {"UID": uid}) + "\n" for pair in pairs)
            Path("pairs", f"{uid}.jsonl").write_text("".join(lines))
        return folder, compare.main([write(), "--results=two.json"])


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """The current folder of a test: a copy of that one, without what the comparison left in out/."""
    shutil.copytree(made[0], tmp_path / "place", ignore=shutil.ignore_patterns("out", "two.json", "two.svg"))
    monkeypatch.chdir(tmp_path / "place")
    monkeypatch.delenv("NANORNN_DATA", raising=False)
    monkeypatch.setattr(figures, "draw_results", lambda path: [])


def timeless(results):
    """Results as text, without the one thing that differs from time to time."""
    return re.sub(r'"tokens_per_second": [^,}\s]+', "", json.dumps(results))


def evaluations(folder):
    return [record for record in read_log(folder) if "val_loss" in record]


def test_the_best_of_each_model_is_that_of_its_runs_logs(made):
    folder, results = made
    assert json.loads((folder / "two.json").read_text()) == results
    assert sorted(path.name for path in (folder / "out/two").iterdir() if path.is_dir()) == sorted(RUNS)
    for name, row in results["rows"].items():
        logs = {rate: evaluations(folder / f"out/two/{name}-{rate:g}-0") for rate in (3e-2, 1e-2, 1e-3)}
        assert [run["evaluations"] for run in row["runs"]] == [log for log in logs.values() if log][:2]
        assert row["best"]["macro"] == max(record["macro"] for log in logs.values() for record in log)
        assert len(row["rates"]) == 2 and all(run["tokens_per_second"] > 0 for run in row["runs"])
    assert results["rows"]["HGRN2"]["state"] == 2 * 8 * 8 and results["rows"]["minGRU"]["state"] == 16


def test_a_run_of_a_comparison_is_to_the_bit_what_train_py_makes_of_its_settings(made, place):
    s = given(train.Settings(), [str(made[0] / "out/two/minGRU-0.01-0")]) | {"run": "alone"}
    train.main(train.Settings(**s))
    shutil.copytree(made[0] / "out/two/minGRU-0.01-0", "out/compared")
    same(contents("alone"), contents("compared"))


def test_the_picture_has_every_model(made, monkeypatch):
    results = json.loads((made[0] / "two.json").read_text())
    assert (made[0] / "out/two/results.svg").read_bytes() == (made[0] / "two.svg").read_bytes()
    pictures = draw_results(made[0] / "two.json")
    assert [path.name for path in pictures] == ["two.svg", "two_pairs.svg"]
    monkeypatch.setattr(figures, "keep", lambda figure, path: figure)
    figure = figures.draw_comparison(results, None)
    words = {text.get_text() for text in figure.findobj(matplotlib.text.Text)}
    assert len(figure.axes) == 2 and {"HGRN2 (128)", "minGRU (16)", "millions of words read"} <= words


def test_all_runs_have_the_form_of_the_kernels_that_is_asked_for(made, place):
    models = {"HGRN2": {"mixer": "hgrn2", "learning_rates": [1e-2]}}
    results = compare.main([write(models=models, kernels="loop", tasks="pairs")])
    assert kernels.form == "loop"
    losses = [x["val_loss"] for x in results["rows"]["HGRN2"]["runs"][0]["evaluations"]]
    fast = [x["val_loss"] for x in evaluations(made[0] / "out/two/HGRN2-0.01-0")]
    assert losses == pytest.approx(fast, rel=1e-5)


def test_other_runs_are_scored_beside_the_rows(place):
    """... on the same tasks, as evaluate.py scores them alone; and by the loss where the file says so."""
    recipe = {name: value for name, value in RECIPE.items() if name not in ("models", "learning_rates")}
    train.main(train.Settings(**recipe | {"run": "other"}))
    models = {"HGRN2": {"mixer": "hgrn2", "learning_rates": [1e-2]}}
    how = dict(models=models, tasks="pairs", beside="out/other", best_by="loss", protocol="2025")
    results = compare.main([write(**how)])
    assert results["best_by"] == "loss" and results["rows"]["HGRN2"]["words"] > 4000
    losses = [x["val_loss"] for x in results["rows"]["HGRN2"]["runs"][0]["evaluations"]]
    assert results["rows"]["HGRN2"]["best"]["val_loss"] == min(losses)
    alone = evaluate.main(evaluate.Settings("out/other", "pairs", "2025", device="cpu"))["benchmarks"]
    assert results["beside"]["other"]["benchmarks"]["pairs"] == alone["pairs"]


def record(step, macro, loss=5.0, tasks=("blimp_filtered", "supplement", "ewok_filtered")):
    pairs = {task: {"score": macro, "interval": 3.0, "subtasks": {"a": macro}} for task in tasks}
    return {"step": step, "epoch": step / 10, "val_loss": loss} | (
        {"macro": macro, "pairs": pairs} if tasks else {}
    )


def logged(rate, seed, *records, diverged=False, row="a"):
    """A run with a log made by hand."""
    folder = Path("out/hand") / f"{row}-{rate:g}-{seed}"
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(x) + "\n" for x in records))
    (folder / "times.jsonl").write_text(json.dumps({"step": 1, "tokens_per_second": 10 * (seed + 1)}))
    (folder / "finished.json").write_text(json.dumps({"corpus": "", "diverged": diverged}))
    by = "pairs" if records and "pairs" in records[0] else "loss"
    return train.Settings(run=f"hand/{row}-{rate:g}-{seed}", learning_rate=rate, seed=seed, best_by=by)


def test_best_epoch_then_mean_over_seeds_then_best_rate(tmp_path, monkeypatch):
    """Seeds 60 and 62 beat 70 and 50; t(1) = 12.706, and the standard deviation is 2 / sqrt(2)."""
    monkeypatch.chdir(tmp_path)
    runs = [logged(1e-2, 0, record(10, 60), record(20, 55)), logged(1e-2, 1, record(10, 50), record(20, 62))]
    runs += [logged(1e-3, 0, record(10, 70), record(20, 65)), logged(1e-3, 1, record(10, 50))]
    found = compare.summarize(runs)
    best = found["best"]
    assert (best["learning_rate"], best["macro"], best["step"], best["epoch"]) == (1e-2, 61, 15, 1.5)
    assert best["interval"] == pytest.approx(12.706) and best["tokens_per_second"] == 15
    assert [rate["macro"] for rate in found["rates"]] == [61, 60]


def test_of_one_seed_the_interval_is_that_of_its_pairs(tmp_path, monkeypatch):
    """Of a mean of three, each within 3: sqrt(3 x 3^2) / 3."""
    monkeypatch.chdir(tmp_path)
    assert compare.summarize([logged(1e-2, 0, record(10, 60))])["best"]["interval"] == pytest.approx(3**0.5)


def test_without_pairs_the_lowest_loss_is_best(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [
        logged(r, 0, *(record(i, 0, x, ()) for i, x in enumerate(xs)))
        for r, xs in {1: [3, 2, 4], 2: [5, 1]}.items()
    ]
    best = compare.summarize(runs)["best"]
    assert (best["learning_rate"], best["val_loss"], best["step"]) == (2, 1, 1)


def test_the_table_has_a_line_a_row_and_the_csv_a_line_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runs = [logged(1e-2, 0, record(10, 60)), logged(1e-3, 0, diverged=True)]
    rows = {"_$x^{$": {"parameters": 1234567, "state": 89} | compare.summarize(runs)}
    tasks = "blimp_filtered,supplement,ewok_filtered"
    compare.report(compare.Settings(run="hand", eval_pairs=tasks, best_by="pairs"), {}, rows, {})
    line = capsys.readouterr().out.splitlines()[1]
    assert line.split() == "_$x^{$ 1,234,567 89 0.01 10 1.00 5.000 60.0 60.0 60.0 60.0 ± 1.7 10".split()
    with open("out/hand/results.csv", encoding="utf-8", newline="") as file:
        best, lost = csv.DictReader(file)
    assert best["model"] == "_$x^{$" and float(best["loss"]) == 5 and float(best["supplement"]) == 60
    assert (best["learning_rate"], best["diverged"], best["step"]) == ("0.01", "False", "10")
    assert (lost["learning_rate"], lost["diverged"], lost["loss"]) == ("0.001", "True", "")
    compare.report(compare.Settings(run="hand"), {}, {"a": rows["_$x^{$"] | {"best": None, "rates": []}}, {})
    assert "diverged" in capsys.readouterr().out


def test_a_run_that_diverges_ends_and_the_others_go_on(place, capsys):
    models = {"wild": {"mixer": "mingru", "learning_rates": [1e30, 1e-2]}, "mild": {"mixer": "mingru"}}
    results = compare.main([write(models=models, learning_rates=[1e-3])])
    assert [run["diverged"] for run in results["rows"]["wild"]["runs"]] == [True, False]
    said = capsys.readouterr().out
    assert "two/wild-1e+30-0 diverged, its best evaluation until then counts: step 2: the loss is nan" in said
    assert timeless(compare.main(["two.py"])) == timeless(results)
    assert "until then" not in capsys.readouterr().out


@needs_fork
def test_kill_9_at_random_moments_gives_the_same_table(made, place, times, figure):
    results, good, of, r = timeless(made[1]), 0, times(1, 5), random.Random(0)

    def begun():
        return len(list(Path().glob("out/two/*/log.jsonl")))

    for _ in range(of):
        for _ in range(times(2, 5)):
            before = begun()
            process = fork(partial(compare.main, ["two.py"]))
            wait_until(lambda: begun() > before or before == len(RUNS), process)
            time.sleep(r.uniform(0, 0.5))
            process.kill()
            process.join()
        good += timeless(compare.main(["two.py"])) == results
        shutil.rmtree("out")
    note = "the table and every evaluation in it as if never killed, five kills each"
    figure("kill -9 of compare.py, at random moments", good=good, of=of, note=note)


def test_ctrl_c_says_in_a_line_how_to_go_on(made, place, monkeypatch, capsys):
    take_step = train.take_step

    def take_step_then_stop(run, *rest):
        take_step(run, *rest)
        if run.step == 3 and run.s.run == "two/minGRU-0.03-0":
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(train, "take_step", take_step_then_stop)
        with pytest.raises(Stopped):
            compare.main(["two.py"])
    assert capsys.readouterr().out == "stopped: 2 of 4 runs are done; the same command resumes\n"
    assert not Path("out/two/minGRU-0.01-0").exists()
    assert timeless(compare.main(["two.py"])) == timeless(made[1])


# ----------------------------------------------------------------------------------------------------
# Students


SCHOOL = dict(
    models={
        "minGRU": {"mixer": "mingru", "learning_rates": [3e-2, 1e-4]},
        "pupil": {"mixer": "mingru", "teacher": "minGRU", "temperature": 2.0, "learning_rates": [1e-2]},
        "last": {"mixer": "hgrn2", "teacher": "pupil,out/alone", "alpha": 1.0, "learning_rates": [1e-2]},
    },
    seeds=[0, 1],
)  # fmt: skip


@pytest.fixture(scope="module")
def schooled(made, tmp_path_factory):
    """A folder with that comparison made without a stop, and out/alone, a run that is in no row; its results."""
    folder = tmp_path_factory.mktemp("school") / "place"
    shutil.copytree(made[0], folder, ignore=shutil.ignore_patterns("out"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("NANORNN_DATA", raising=False)
        s = {name: value for name, value in RECIPE.items() if name not in ("models", "learning_rates")}
        train.main(train.Settings(**s | {"run": "alone", "max_steps": 1}))
        return folder, compare.main([write("school.py", **SCHOOL)])


@pytest.fixture
def school(schooled, place):
    """The current folder, with what the comparison left there -> its results."""
    shutil.copytree(schooled[0] / "out", "out")
    write("school.py", **SCHOOL)
    return schooled[1]


def test_a_student_is_taught_by_the_best_of_the_row_it_names(school):
    """At that row's best rate, with its own seed, to the bit as distill.py would; students teach, too."""
    rows = school["rows"]
    rate = rows["minGRU"]["best"]["learning_rate"]
    for seed in (0, 1):
        files = [f"out/school/{row}-0.01-{seed}/settings.json" for row in ("pupil", "last")]
        pupil, last = (json.loads(Path(file).read_text()) for file in files)
        assert pupil["teacher"] == f"out/school/minGRU-{rate:g}-{seed}/best.pt"
        assert last["teacher"] == f"out/school/pupil-0.01-{seed}/best.pt,out/alone"
        assert (pupil["temperature"], last["alpha"], pupil["alpha"]) == (2.0, 1.0, 0.5)
    distill.main(distill.Settings(**pupil | {"run": "by hand"}))
    same(contents("by hand"), contents("school/pupil-0.01-1"))
    best = [max(x["macro"] for x in evaluations(f"out/school/pupil-0.01-{seed}")) for seed in (0, 1)]
    assert rows["pupil"]["best"]["macro"] == sum(best) / 2
    assert rows["pupil"]["best"]["interval"] == pytest.approx(12.706 * abs(best[0] - best[1]) / 2)


def test_students_go_on_where_they_were_stopped(school, monkeypatch):
    stops = ["school/minGRU-0.0001-1", "school/pupil-0.01-1", "school/last-0.01-0"]
    take_step = train.take_step

    def take_step_then_stop(run, *rest):
        take_step(run, *rest)
        if run.step == 3 and run.s.run in stops:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train, "take_step", take_step_then_stop)
    shutil.rmtree("out/school")
    for _ in stops:
        with pytest.raises(Stopped):
            compare.main(["school.py"])
    assert timeless(compare.main(["school.py"])) == timeless(school)


def test_seeds_may_be_added_and_a_teacher_may_not_change(school, refusal):
    for folder in Path("out/school").glob("*-1"):
        shutil.rmtree(folder)  # as if seed 1 had not been asked for
    assert timeless(compare.main(["school.py"])) == timeless(school)
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    models = SCHOOL["models"] | {"last": SCHOOL["models"]["last"] | {"teacher": "out/alone"}}
    said = refusal(compare.main, [write("school.py", **SCHOOL | dict(models=models))])
    changed = "(teacher 'out/school/pupil-0.01-0/best.pt,out/alone' then, 'out/alone' now)"
    assert f"out/school/last-0.01-0 is of another recipe {changed}" in said
    assert before == {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}


UNFIT = {  # the rows -> what is said of them
    "no such row": ({"x": {"teacher": "y"}}, "two.py: models['x']: teacher = 'y': there is no y; train it"),
    "itself": ({"x": {"teacher": "x"}}, "two.py: models['x']: teacher = 'x': it must be a row above this one"),
    "a row below": ({"x": {"teacher": "y"}, "y": {}}, "models['x']: teacher = 'y': it must be a row above"),
    "no teacher": ({"x": {"alpha": 0.5}}, "two.py: models['x']: teacher = '': name the run that teaches"),
    "alpha": ({"x": {}, "y": {"teacher": "x", "alpha": 2}}, "models['y']: alpha = 2.0: must be from 0"),
    "vocabulary": (
        {"x": {"vocab_size": 310}, "y": {"teacher": "x"}},
        "models['y']: teacher = 'x' has vocab_size = 310, the student 300",
    ),
    "positions": (
        {"x": {"mixer": "attention", "position": "learned", "context": 16}, "y": {"teacher": "x"}},
        "models['y']: teacher = 'x' reads at most 16 tokens",
    ),
}  # fmt: skip


@pytest.mark.parametrize("models, words", UNFIT.values(), ids=list(UNFIT))
def test_a_teacher_that_does_not_fit_is_one_line_before_the_first_step(place, refusal, models, words):
    said = refusal(compare.main, [write(models=models)])
    assert words in said and said.count("\n") == 1 and not Path("out").exists()


def test_a_teacher_that_always_diverges_is_said(tmp_path, monkeypatch, refusal):
    monkeypatch.chdir(tmp_path)
    run = distill.Settings(run="hand/pupil-1-0", teacher="a")
    assert (
        compare.with_teachers(run, 0, {"a": [logged(1, 0, record(10, 60))]}).teacher
        == "out/hand/a-1-0/best.pt"
    )
    said = refusal(compare.with_teachers, run, 0, {"a": [logged(2, 0, diverged=True)]})
    assert said == "hand/pupil-1-0: its teacher 'a' diverged; lower its rates\n"
    seeds = [logged(3, 0, record(10, 60)), logged(3, 1, record(0, 50), diverged=True)]
    assert refusal(compare.with_teachers, run, 1, {"a": seeds}) == said


# ----------------------------------------------------------------------------------------------------
# The best runs evaluated, the rows held against one, and many processes


EXAM = dict(
    models={"a": {"mixer": "hgrn2"}, "b": {"mixer": "mingru", "learning_rates": [3e-2], "seeds": [4, 5]}},
    learning_rates=[1e-2], seeds=[0, 1], max_steps=2, eval_pairs="", tasks="pairs", against="a",
)  # fmt: skip


def test_the_best_runs_are_evaluated_once_and_held_against_a_row(place, monkeypatch, capsys):
    """Seed by seed, by place: t(1) = 12.706, and of two the standard deviation is the distance / sqrt(2)."""
    results = compare.main([write("exam.py", **EXAM)])
    rows, scores = results["rows"], defaultdict(list)
    for name in ("a-0.01-0", "a-0.01-1", "b-0.03-4", "b-0.03-5"):
        found = evaluate.main(evaluate.Settings(f"out/exam/{name}/best.pt", "pairs"))["benchmarks"]["pairs"]
        scores[name[0]].append(found["score"])
    a, b = scores["a"], scores["b"]
    assert rows["b"]["benchmarks"]["pairs"]["score"] == sum(b) / 2
    assert rows["b"]["benchmarks"]["pairs"]["interval"] == pytest.approx(12.706 * abs(b[0] - b[1]) / 2)
    assert set(results["differences"]) == {"b"}
    distances = [y - x for x, y in zip(a, b)]
    found = results["differences"]["b"]["pairs"]
    assert found["mean"] == pytest.approx(sum(distances) / 2)
    assert found["interval"] == pytest.approx(12.706 * abs(distances[0] - distances[1]) / 2)
    losses = [min(x["val_loss"] for x in evaluations(f"out/exam/b-0.03-{seed}")) for seed in (4, 5)]
    losses = sum(losses) / 2 - rows["a"]["best"]["val_loss"]
    assert results["differences"]["b"]["loss"]["mean"] == pytest.approx(losses)
    said = capsys.readouterr().out
    assert "correct (%)" in said and "b less a: loss " in said and ", pairs " in said
    monkeypatch.setattr(evaluate, "main", None)
    assert timeless(compare.main(["exam.py"])) == timeless(results)
    pictures = [path.name for path in draw_results(Path("out/exam/results.json"))]
    assert pictures == ["results.svg", "results_benchmarks.svg", "results_pairs.svg"]


def test_the_best_runs_are_fine_tuned_each_once_with_its_own_seed(place, monkeypatch):
    """Their scores on GLUE stand in the table like a benchmark's, and are kept beside the checkpoint."""
    write_items("rte", "train", map(json.dumps, toy_rows(64, 0)))
    write_items("rte", "valid", map(json.dumps, toy_rows(139, 1)))
    recipe = EXAM | dict(models={"a": {}, "b": {"mixer": "mingru"}}, tasks="", glue="rte")
    results = compare.main([write("exam.py", **recipe)])
    for name, row in results["rows"].items():
        scores = []
        for run in row["runs"]:
            found = run["benchmarks"]["glue"]["subtasks"]["rte"]
            assert [x["seed"] for x in found["seeds"]] == [run["seed"]] and found["n"] == 139
            kept = Path(f"out/exam/{name}-0.01-{run['seed']}/best_results.json").read_text()
            assert json.loads(kept)["benchmarks"]["glue"]["subtasks"]["rte"] == found
            scores.append(found["score"])
        assert row["benchmarks"]["glue"]["score"] == statistics.fmean(scores)
    assert set(results["differences"]["b"]) == {"loss", "glue"}
    monkeypatch.setattr(finetune, "fine_tune", None)
    assert timeless(compare.main(["exam.py"])) == timeless(results)
    assert draw_results(Path("out/exam/results.json"))


@needs_fork
def test_two_processes_make_the_same_comparison_as_one(place):
    """With a teacher and a run that diverges; in float64, every loss within 1e-9."""
    rows = {"wild": {"mixer": "mingru", "learning_rates": [1e300]}}
    rows |= {"a": {"mixer": "mingru"}, "b": {"mixer": "mingru", "teacher": "a", "seeds": [1]}}
    recipe = EXAM | dict(models=rows, seeds=[0], dtype="float64")
    one = compare.main([write("exam.py", **recipe)])
    shutil.rmtree("out")
    codes, said = fork_two(partial(compare.main, ["exam.py"]))
    assert codes == [0, 0], said
    assert said.count("b less a") == said.count("wild-1e+300-0 diverged") == 1
    two = json.loads(Path("out/exam/results.json").read_text())
    for name in rows:
        losses = [[x["val_loss"] for x in y["rows"][name]["runs"][0]["evaluations"]] for y in (one, two)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-9)
        assert one["rows"][name]["benchmarks"] == two["rows"][name]["benchmarks"]


# ----------------------------------------------------------------------------------------------------
# Mistakes


REFUSED = {  # what the file says -> what is said of it
    "no mixer": (dict(models={"x": {"mixer": "minGR"}}), "two.py: models['x']: mixer = 'minGR': "),
    "no name": (dict(models={1: {"mixer": "mingru"}}), "two.py: models: their names must be words in quotes"),
    "pairs of its own": (dict(models={"x": {"eval_pairs": "toyland"}}), "'eval_pairs' is not for a row"),
    "best by no pairs": (dict(best_by="pairs", eval_pairs=""), "best_by = 'pairs', but eval_pairs names none"),
    "no tasks beside": (dict(beside="out/tiny"), "beside = 'out/tiny', but tasks names none to score"),
    "none beside": (dict(beside="out/none", tasks="./pairs"), "beside: there is no out/none; train it"),
    "no such year": (dict(protocol="2023"), "protocol = '2023': did you mean '2026'? Possible"),
    "no setting": (dict(models={"x": {"mixr": "mingru"}}), "there is no setting 'mixr'; did you mean 'mixer'?"),
    "wrong type": (dict(models={"x": {"n_layer": "3"}}), "models['x']: its settings: n_layer = '3' is not"),
    "bad name": (dict(models={"x/y": {}}), "models['x/y']: run = 'x/y-0.01-0' cannot name a folder"),
    "one name": (dict(models={"x": {}, "X": {}}), "two.py: two runs would be out/two/x-0.01-0"),
    "no file": (dict(models={"x": "none.py"}), "two.py: models['x']: none.py: cannot read these settings"),
    "no model": (dict(models={"x": 3}), "models['x']: 3: should be settings"),
    "no models": (dict(models={}), "two.py: models: none named"),
    "its own seed": (dict(models={"x": {"seed": 1}}), "models['x']: 'seed' is not for a row"),
    "its own kernels": (dict(models={"x": {"kernels": "loop"}}), "'kernels' is not for a row"),
    "no number": (dict(learning_rates=[1e-3, "high"]), "learning_rate = 'high' is not of type float"),
    "no list": (dict(models={"x": {"learning_rates": 1e-3}}), "learning_rates = 0.001 is not of type list"),
    "below zero": (dict(learning_rates=[-1.0]), "learning_rate = -1.0: must be a number, at least 0"),
    "one rate twice": (dict(learning_rates=[1e-3, 0.001]), "two.py: two runs would be out/two/hgrn2-0.001-0"),
    "few seeds": (dict(models={"x": {"seeds": [1]}}, seeds=[0, 1]), "models['x']: seeds = [1]: 2 are needed"),
    "no such row": (dict(against="LSTM"), "two.py: against = 'LSTM': possible: HGRN2, minGRU"),
    "no such task": (dict(tasks="blmp"), "two.py: tasks = 'blmp': did you mean 'blimp'?"),
    "no such GLUE": (dict(glue="rtee"), "two.py: glue: tasks = 'rtee': did you mean 'rte'?"),
    "no items": (dict(glue="rte"), "rte: put it at data/glue/rte.train.jsonl.gz"),
    "no benchmark": (dict(tasks="bear"), "bear: put it at data/bear/BEAR.zip"),
    "half a seed": (dict(seeds=[0.5]), "models['HGRN2']: seeds: seed = 0.5 is not of type int"),
    "long context": (dict(context=10**6), "models['HGRN2']: context = 1000000: longer than the text"),
    "few tokens": (dict(models={"x": {"vocab_size": 299}}), "models['x']: vocab_size = 299"),
    "heads": (dict(models={"x": {"n_head": 3}}), "models['x']: n_head = 3 does not divide d_model = 16"),
    "no corpus": (dict(corpus="none"), "corpus = 'none': there is no data/none"),
    "high floor": (dict(min_lr=5e-3), "models['HGRN2']: min_lr = 0.005 is above learning_rate = 0.001"),
    "results": (dict(results="pairs"), "two.py: results = 'pairs' is a folder"),
}  # fmt: skip


@pytest.mark.parametrize("args", [[], ["--fresh"], ["--max_steps=7", "--fresh"]], ids=" ".join)
def test_two_comparisons_in_one_folder_take_turns(made, place, refusal, args):
    """The second one's --fresh removed the runs of the first."""
    shutil.copytree(made[0] / "out", "out")
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    with alone_in(Path("out/two")):
        said = refusal(compare.main, [write(), *args])
    assert said.startswith("out/two: another process is training there")
    assert before == {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}


@pytest.mark.parametrize("text", ["[]", "{}", '{"diverged": fal'])
def test_a_run_whose_end_cannot_be_read_is_not_finished(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    run = logged(1, 0, record(10, 60))
    assert compare.read_finished(run) == {"diverged": False, "corpus": ""}
    Path("out", run.run, "finished.json").write_text(text)
    assert compare.read_finished(run) is None


def test_the_folder_of_a_run_is_not_taken(place, refusal):
    Path("out/two").mkdir(parents=True)
    Path("out/two/settings.json").write_text("{}")
    assert "run = 'two': out/two is a run of its own" in refusal(compare.main, [write()])


@pytest.mark.parametrize("settings, words", REFUSED.values(), ids=list(REFUSED))
def test_mistakes_are_one_line_before_the_first_step(place, refusal, settings, words):
    said = refusal(compare.main, [write(**settings)])
    assert words in said and said.count("\n") == 1 and not Path("out").exists()


def test_a_misspelt_setting_of_the_recipe_is_named_with_its_line(place, refusal):
    Path("two.py").write_text("learning_rate = 1e-3\nseedss = []\n")
    said = refusal(compare.main, ["two.py"])
    assert "two.py:2: there is no setting 'seedss'; did you mean 'seeds'?" in said


@pytest.mark.parametrize("change", [dict(max_steps=7), dict(d_mlp=32), dict(eval_every=3)], ids=str)
def test_another_recipe_is_refused_and_nothing_lost(made, place, refusal, change):
    shutil.copytree(made[0] / "out", "out")
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    (name,) = change
    said = refusal(compare.main, [write(**change)])
    assert (
        f"out/two/HGRN2-0.01-0 is of another recipe ({name} {RECIPE[name]} then, {change[name]} now)" in said
    )
    assert before == {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}


def test_another_corpus_by_the_same_name_is_refused_and_fresh_starts_anew(made, place, refusal):
    shutil.copytree(made[0] / "out", "out")
    Path("text.txt").write_text("\n\n".join(toyland.stories(seed=1, words=5_000)))
    data.prepare("small", ["text.txt"], data.Settings(vocab_size=300, val_share=0.05))
    assert "another corpus by the name 'small'" in refusal(compare.main, ["two.py"])
    models = {"HGRN2": {"mixer": "hgrn2", "learning_rates": [1e-2]}}
    results = compare.main([write(models=models), "--fresh"])
    old, new = (x["rows"]["HGRN2"]["runs"][0]["evaluations"] for x in (made[1], results))
    assert len(old) == len(new) and old[0] != new[0]


def test_a_file_gives_a_model_its_sizes_and_the_comparison_the_recipe(place):
    Path("own.py").write_text("n_layer = 3\nbatch_size = 99\nlearning_rate = 0.5\n")
    settings = given(compare.Settings(), [write(models={"x": "own.py"}), "--max_steps=5"])
    del settings["n_layer"]
    (runs,) = compare.plan(compare.Settings(**settings), settings, "two.py").values()
    assert [run.learning_rate for run in runs] == [1e-2, 1e-3]
    assert {(run.n_layer, run.batch_size, run.max_steps, run.d_model) for run in runs} == {(3, 16, 5, 16)}
    for name in ("learning_rate", "learning_rates"):
        settings.pop(name, None)  # without the comparison's, the file's own rate holds
    (runs,) = compare.plan(compare.Settings(**settings), settings, "two.py").values()
    assert {run.learning_rate for run in runs} == {0.5}


FILES = sorted([*(ROOT / "config").glob("compare_*.py"), *(ROOT / "config").glob("babyhgrn_*.py")])


def rows_of(file):
    """The rows of a comparison in config/, planned."""
    settings = given(compare.Settings(), [str(file)])
    return compare.plan(replace(compare.Settings(), **settings), settings, file.name)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_comparisons_in_config_can_be_made(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    for name, runs in rows_of(file).items():
        assert all(run.run.startswith(f"{file.stem}/{name}-") for run in runs)


@pytest.mark.parametrize("name, size", {"compare_toy": 865_920, "babyhgrn_mixers": 1_828_992}.items())
def test_what_is_compared_is_about_equal_in_size(name, size):
    for row, runs in rows_of(ROOT / "config" / f"{name}.py").items():
        with torch.device("meta"):
            parameters = sum(p.numel() for p in LanguageModel(runs[0]).parameters())
        assert abs(parameters / size - 1) < 0.05, row


def test_the_paper_s_models_keep_their_own_sizes_under_one_recipe(monkeypatch):
    monkeypatch.chdir(ROOT)
    rows = rows_of(ROOT / "config/compare_10m.py")
    assert [run.learning_rate for run in rows["HGRN2"]] == [1e-3, 1e-4, 1e-5, 1e-6]
    assert (rows["HGRN2"][0].n_layer, rows["Llama"][0].n_layer, rows["Llama"][0].d_mlp) == (26, 22, 4096)
    for runs in rows.values():
        assert {(run.corpus, run.epochs, run.batch_size, run.optimizer) for run in runs} == {
            ("babylm-10m", 5, 64, "adam")
        }


# ----------------------------------------------------------------------------------------------------
# What small slips would change


def test_a_rate_at_which_a_seed_is_lost_is_not_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [logged(1, 0, record(1, 60), diverged=True), logged(1, 1, record(1, 60))]
    found = compare.summarize(runs + [logged(2, 0, record(1, 99)), logged(2, 1, diverged=True)])
    assert [x["learning_rate"] for x in found["rates"]] == [1] and found["best"]["diverged"]


@pytest.mark.parametrize("n, t", {2: 12.706, 5: 2.776, 8: 2.365, 9: 2.306, 10: 2.262, 12: 2.262}.items())
def test_intervals_are_students(n, t):
    assert finetune.half_width(list(range(n))) == pytest.approx(t * statistics.stdev(range(n)) / n**0.5)


def test_benchmarks_over_seeds_are_means_of_each_part():
    found = [dict(score=x, interval=3.0, subtasks={"a": dict(score=x, term="t")}) for x in (60, 80)]
    assert compare.mean_benchmark(found)["subtasks"] == {"a": {"score": 70, "term": "t"}}
    assert compare.mean_benchmark(found[:1])["interval"] == 3.0
