"""Fine-tuning follows the year's rules, learns what can be learned, and resumes with the same numbers."""

import gzip
import json
import os
import random
import shutil
import signal
from pathlib import Path

import evaluate
import finetune
import train
from model import MIXERS, load
from support import console
from support.console import run_script
from support.processes import local_rank
from support.settings import UserError, configure

import numpy as np
import pytest
import torch
from processes import fork_many, lines_of_text, needs_fork

QUICK = dict(device="cpu", dtype="float32", untrained=False, learning_rate=3e-3, epochs=3)


def write(task, split, lines, cut=None):
    Path("data/glue").mkdir(parents=True, exist_ok=True)
    raw = gzip.compress("".join(line + "\n" for line in lines).encode())
    Path(f"data/glue/{task}.{split}.jsonl.gz").write_bytes(raw[:cut])


def toy_rows(n, seed):
    """Items like RTE's; label 1 if the second text is about a teacher, 0 if it is about an animal."""
    r, rows = random.Random(seed), []
    for i in range(n):
        label, animal = i % 2, r.choice(["cat", "dog", "bird"])
        text = "The teacher" if label else f"The {animal}"
        more = " and the ".join(r.choice(["cat", "dog", "bird", "child"]) for _ in range(r.randint(1, 6)))
        rows.append(
            {"sentence1": f"The {more} sees it.", "sentence2": f"{text} helps", "label": label, "idx": i}
        )
    return rows


@pytest.fixture
def toy(workplace):
    """A task that can be learned, in the place of RTE."""
    write("rte", "train", map(json.dumps, toy_rows(192, 0)))
    write("rte", "valid", map(json.dumps, toy_rows(139, 1)))


def run(**settings):
    s = finetune.Settings("out/tiny", **QUICK | {"tasks": "rte"} | settings)
    s.check()
    return finetune.main(s)


def glue(**settings):
    return run(**settings)["benchmarks"]["glue"]


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_learns_a_separable_task(mixer, toy, tiny):
    """At least 95 % of items it has not seen, from new weights."""
    s = tiny(mixer=mixer, position="rope" if mixer == "attention" else "none", context=64)
    task = encoded()
    settings = finetune.Settings(protocol="2025", device="cpu", dtype="float32", learning_rate=1e-2, epochs=8)
    how = finetune.recipe(settings, "rte", 0, len(task.train.labels))
    found = finetune.fine_tune(finetune.model_for(None, s, 0, untrained=True), task, how, "2025")
    assert finetune.accuracy(task.valid["rte"].labels, found["predictions"]["rte"]) >= 95


def encoded(length=128):
    _, tokenizer, _ = load("out/tiny")
    return finetune.read_task("rte", "2024").encode(tokenizer, length)


@pytest.mark.filterwarnings("ignore:A single label")
def test_metrics_are_scikit_learns():
    peer = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(0)
    for n in (2, 5, 100):
        for _ in range(20):
            labels, said = draw.integers(2, size=(2, n)).tolist()
            assert finetune.accuracy(labels, said) == pytest.approx(100 * peer.accuracy_score(labels, said))
            assert finetune.f1(labels, said) == pytest.approx(
                100 * peer.f1_score(labels, said, zero_division=0)
            )
            with np.errstate(all="ignore"):
                assert finetune.mcc(labels, said) == pytest.approx(100 * peer.matthews_corrcoef(labels, said))


def test_padding_order_and_batch_size_change_no_prediction(toy):
    model, _, _ = load("out/tiny")
    torch.manual_seed(0)
    module = finetune.Classifier(model, finetune.mlp_head(16, 2))
    texts = encoded().valid["rte"].texts
    with torch.no_grad():  # so that both labels occur
        module.head[-1].bias -= module.eval().classify(*finetune.padded(texts)).mean(dim=0)
    expected = [int(module.classify(*finetune.padded([ids])).argmax()) for ids in texts]
    assert 0 < sum(expected) < len(texts)
    for size in (1, 7, 64, 1000):
        assert finetune.predict(module, texts, size) == expected
    assert finetune.predict(module, texts[::-1], 5) == expected[::-1]
    longest = [*texts, list(range(3, 120))]  # pads all others far beyond their end
    assert finetune.predict(module, longest, 1000)[:-1] == expected


def test_inputs_are_the_years(toy):
    """<s> text <s> text; of a pair that is too long, the longer text is cut first."""
    _, tokenizer, _ = load("out/tiny")
    one, two = (
        tokenizer.encode(text, add_special_tokens=False).ids
        for text in ("The cat sees it.", "The cat helps.")
    )
    row = {"sentence1": "The cat sees it.", "sentence2": "The cat helps.", "label": 1}
    assert finetune.read_item(json.dumps(row), "rte") == (["The cat sees it.", "The cat helps."], 1)
    items = finetune.Items([["The cat sees it.", "The cat helps."], ["The cat helps."]], [1, 0])
    task = finetune.Task("rte", items, {"rte": items}, 2)
    assert task.encode(tokenizer, 128).train.texts == [[1, *one, 1, *two], [1, *two]]
    room = len(one) + len(two) + 1
    assert task.encode(tokenizer, room).train.texts[0] == [1, *one[: room - 2 - len(two)], 1, *two]
    wsc = {"text": "Joe saw Tim. He ran.", "span1_text": "Joe", "span2_text": "He", "label": 0}
    question = 'Does "He" refer to "Joe" in this passage?'
    assert finetune.read_item(json.dumps(wsc), "wsc")[0] == [question, wsc["text"]]
    multirc = {"question": "Who?", "answer": "Tim", "paragraph": "Tim ran.", "label": 1}
    assert finetune.read_item(json.dumps(multirc), "multirc")[0] == ["Question: Who? Answer: Tim", "Tim ran."]


def test_recipes_are_the_years():
    """Steps, learning rates, batches and heads by hand, for the sizes that the tasks have."""
    how = finetune.recipe(finetune.Settings(), "rte", 7, 2490)  # 39 batches of 64, the last of 58
    assert (how.max_steps, how.warmup, how.batch_size, how.weight_decay, how.seed) == (390, 0, 64, 0, 7)
    rates = [train.learning_rate(step, how, 390) for step in (0, 195, 389)]
    assert rates == pytest.approx([5e-5, 2.5e-5, 5e-5 / 390])
    how = finetune.recipe(finetune.Settings(protocol="2025"), "rte", 0, 2490)  # 77 whole batches of 32
    assert (how.max_steps, how.warmup, how.weight_decay, how.grad_clip, how.beta2) == (
        770,
        46,
        0.01,
        0,
        0.999,
    )
    rates = [train.learning_rate(step, how, 770) for step in (22, 46, 408, 770)]
    assert rates == pytest.approx([3e-5 * 23 / 46, 3e-5, 3e-5 * 0.55, 3e-6])
    s = finetune.Settings(protocol="2026")
    assert finetune.recipe(s, "wsc", 0, 554).max_steps == 30 * 17
    assert finetune.recipe(s, "boolq", 0, 9427).max_steps == 10 * 589
    assert [finetune.RULES[year].length for year in ("2024", "2025", "2026")] == [128, 512, 512]
    one, two = finetune.linear_head(8, 3), finetune.mlp_head(8, 3)
    assert sum(p.numel() for p in one.parameters()) == 24
    assert sum(p.numel() for p in two.parameters()) == 8 * 8 + 8 + 8 * 3 + 3


def test_all_weights_decay_and_each_item_is_seen_once_an_epoch(toy):
    model, _, _ = load("out/tiny")
    task, s = encoded(), finetune.Settings(protocol="2025", device="cpu", dtype="float32")
    how = finetune.recipe(s, "rte", 0, 192)
    fit = finetune.Fit(
        finetune.Classifier(model, finetune.mlp_head(16, 2)), how, torch.float32, torch.device("cpu")
    )
    assert {group["weight_decay"] for group in fit.optimizer.param_groups} == {0.01}
    batches, seen = finetune.Batches(task.train, how), []
    for step in range(6):
        tokens, targets = batches.rows(32 * step, 32)
        for ids, labels in zip(tokens, targets):
            (last,) = (labels != -100).nonzero()[0].tolist()
            seen.append((*ids[: last + 1].tolist(), labels[last].item()))
    assert sorted(seen) == sorted((*ids, label) for ids, label in zip(*task.train))


def test_the_best_epoch_counts_and_patience_ends_a_fit(toy, monkeypatch):
    scores = iter([50.0, 60.0, 60.05, 60.0, 60.08, 99.0])
    monkeypatch.setattr(finetune, "validation_score", lambda *args: next(scores))
    monkeypatch.setattr(
        train, "take_step", lambda fit, *args: fit.took_step(0, {"loss": torch.tensor(0.0)}, 0)
    )
    assert glue(epochs=6)["subtasks"]["rte"]["seeds"][0]["epoch"] == 5  # 3 epochs within 0.1 of 60: it ends


def test_results_stand_beside_evaluations(toy):
    """In results.json, with what evaluate.py found before and finds later; another protocol starts anew."""
    Path("pairs.jsonl").write_text('{"sentence_good": "The cat.", "sentence_bad": "Cat the."}\n')
    before = evaluate.main(evaluate.Settings("out/tiny", "pairs.jsonl", device="cpu", dtype="bfloat16"))
    results = run(seeds=[0, 1], untrained=True, results="copy.json")
    assert (
        results
        == json.loads(Path("out/tiny/results.json").read_text())
        == json.loads(Path("copy.json").read_text())
    )
    assert results["dtype"] == "bfloat16" and results["perplexity"] == before["perplexity"]
    assert results["benchmarks"]["pairs"] == before["benchmarks"]["pairs"]
    found = results["benchmarks"]["glue"]["subtasks"]["rte"]
    scores = [x["score"] for x in found["seeds"]]
    assert found["score"] == sum(scores) / 2
    assert found["interval"] == pytest.approx(12.706 * abs(scores[0] - scores[1]) / 2)
    assert found["partial"] == {"rows": 192, "of": 2490} and found["n"] == 139
    assert found["majority"] == pytest.approx(100 * 70 / 139)
    assert found["untrained"] == sum(x["untrained"] for x in found["seeds"]) / 2
    assert results["benchmarks"]["glue"]["partial"] and "wsc" in results["benchmarks"]["glue"]["missing"]
    again = evaluate.main(evaluate.Settings("out/tiny", "pairs.jsonl", device="cpu", dtype="bfloat16"))
    assert again["benchmarks"]["glue"] == results["benchmarks"]["glue"]
    assert "pairs" not in run(protocol="2025")["benchmarks"]


def test_predictions_are_kept_as_the_leaderboard_takes_them(toy):
    found = glue(seeds=[3, 4])["subtasks"]["rte"]["seeds"]
    kept = finetune.leaderboard_predictions("out/tiny", "2024")["rte"]["predictions"]
    assert [x["id"] for x in kept] == [f"rte_{i}" for i in range(139)]
    labels = [row["label"] for row in toy_rows(139, 1)]
    assert finetune.accuracy(labels, [x["pred"] for x in kept]) == found[0]["score"]
    before = Path("out/tiny/glue_predictions.jsonl").read_bytes()
    assert finetune.leaderboard_predictions("out/tiny", "2025") == {}
    assert Path("out/tiny/glue_predictions.jsonl").read_bytes() == before


def test_each_task_may_be_fine_tuned_in_its_own_way(toy):
    """And in its own dtype; an evaluation in another keeps them all."""
    write("mrpc", "train", map(json.dumps, toy_rows(192, 0)))
    write("mrpc", "valid", map(json.dumps, toy_rows(204, 1)))
    glue(tasks="rte")
    found = glue(tasks="mrpc", learning_rate=1e-3)["subtasks"]
    assert set(found) == {"rte", "mrpc"} and found["rte"]["how"] != found["mrpc"]["how"]
    predictions = finetune.leaderboard_predictions("out/tiny", "2024")
    assert {task: len(x["predictions"]) for task, x in predictions.items()} == {"rte": 139, "mrpc": 204}
    checkpoint = Path("out/tiny/checkpoint.pt")
    what = evaluate.identity(evaluate.Settings(dtype="bfloat16"), evaluate.fingerprint(checkpoint))
    results = evaluate.save_results(what | {"benchmarks": {"pairs": {}}}, {}, what, checkpoint)
    assert set(results["benchmarks"]) == {"pairs", "glue"}


def test_fits_by_the_rules_of_another_year_are_kept(toy):
    glue(seeds=[3])
    before = Path("out/tiny/glue_predictions.jsonl").read_bytes()
    glue(seeds=[3], protocol="2025")
    assert Path("out/tiny/glue_predictions.jsonl").read_bytes().startswith(before)


class Killed(BaseException):
    pass


def test_killed_at_any_moment_it_resumes_with_the_same_numbers(toy, monkeypatch):
    """In a step of the first, second and third fit, while a line is written, and after it."""
    settings = dict(seeds=[0, 1], untrained=True)
    shutil.copytree("out/tiny", "out/whole")
    whole = finetune.main(finetune.Settings("out/whole", **QUICK | {"tasks": "rte"} | settings))
    whole_lines = Path("out/whole/glue_predictions.jsonl").read_text()
    take_step, append, merged = train.take_step, finetune.append, finetune.merged

    def kill_at(step):
        def counted(fit, *args):
            nonlocal step
            step -= 1
            if step < 0:
                raise Killed
            take_step(fit, *args)

        return counted

    def kill_in_line(path, fit):
        with open(path, "a") as file:
            file.write(json.dumps(fit)[:50])
        raise Killed

    for moment in (
        1,
        10,
        9,
    ):  # steps after the start; a fit has nine, so these are in the first, second, third
        monkeypatch.setattr(train, "take_step", kill_at(moment))
        with pytest.raises(Killed):
            run(**settings)
    monkeypatch.setattr(train, "take_step", take_step)
    monkeypatch.setattr(finetune, "append", kill_in_line)
    with pytest.raises(Killed):
        run(**settings)
    monkeypatch.setattr(finetune, "append", append)
    monkeypatch.setattr(finetune, "merged", kill_at(0))
    with pytest.raises(Killed):
        run(**settings)
    monkeypatch.setattr(finetune, "merged", merged)
    monkeypatch.setattr(train, "take_step", kill_at(0))  # all is known: no step is taken
    assert run(**settings)["benchmarks"]["glue"] == whole["benchmarks"]["glue"]
    assert Path("out/tiny/glue_predictions.jsonl").read_text() == whole_lines


COMMAND = ["out/tiny", "--tasks=rte,wsc", "--epochs=1", "--device=cpu", "--dtype=float32"]


def finetune_with(count):
    """finetune.py of joined processes -> their exit statuses, what all of them have printed."""
    return fork_many(count, lambda: run_script(lambda _: finetune.script(COMMAND)))


@pytest.fixture
def two_tasks(toy, monkeypatch):
    """Four fits to make, two of each task; the file `makers` tells which process makes which."""
    for split, rows in (("train", toy_rows(70, 2)), ("valid", toy_rows(52, 3))):
        names = {"sentence1": "text", "sentence2": "span1_text"}
        lines = [{names.get(name, name): x for name, x in row.items()} for row in rows]
        write("wsc", split, [json.dumps(line | {"span2_text": "It"}) for line in lines])
    fine_tune = finetune.fine_tune

    def noted(model, task, how, protocol):
        with open("makers", "a") as file:
            file.write(f"{local_rank()} {task.name}\n")
        return fine_tune(model, task, how, protocol)

    monkeypatch.setattr(finetune, "fine_tune", noted)


def written():
    """The bytes of the results and of the fits; they are removed."""
    files = [Path("out/tiny", name) for name in ("results.json", "glue_predictions.jsonl")]
    found = [path.read_bytes() for path in files]
    for path in files:
        path.unlink()
    return found


@needs_fork
def test_several_processes_share_the_fits_and_write_what_one_does(two_tasks):
    """The same bytes, though 64 texts of a batch cannot be shared by three; only the first speaks."""
    codes, expected = finetune_with(1)
    whole = written()
    for count in (2, 3):
        Path("makers").unlink()
        codes, said = finetune_with(count)
        assert codes == [0] * count and lines_of_text(said) == lines_of_text(expected), said
        assert written() == whole
        makers = [line[0] for line in Path("makers").read_text().splitlines()]
        assert len(makers) == 4 and set(makers) == {str(rank) for rank in range(count)}


@needs_fork
@pytest.mark.parametrize("before, after", [(2, 1), (1, 3)])
def test_it_resumes_with_another_number_of_processes(two_tasks, monkeypatch, before, after):
    """Killed while the second of four lines is written: the first fit is not made again."""
    assert finetune_with(1)[0] == [0]
    whole, append = written(), finetune.append

    def append_or_die(path, fit):
        if path.exists():
            with open(path, "a") as file:
                file.write(json.dumps(fit)[:50])
            os.kill(os.getpid(), signal.SIGKILL)
        append(path, fit)

    with monkeypatch.context() as patch:
        patch.setattr(finetune, "append", append_or_die)
        codes, _ = finetune_with(before)
    assert codes[0] == -signal.SIGKILL and 0 not in codes
    Path("makers").unlink()
    codes, said = finetune_with(after)
    assert codes == [0] * after and written() == whole, said
    assert len(Path("makers").read_text().splitlines()) == 3


@needs_fork
def test_a_fit_that_fails_ends_all_processes_with_the_same_line(two_tasks, monkeypatch):
    monkeypatch.setattr(console, "wait_to_be_ended", lambda: None)
    command = [*COMMAND, "--learning_rate=1e30"]
    codes, said = fork_many(2, lambda: run_script(lambda _: finetune.script(command)))
    lines = lines_of_text(said)
    assert codes == [2, 2] and len(lines) == 2 and lines[0] == lines[1], said
    assert lines[0].startswith("rte, seed 0: the model's answers are NaN or inf; lower --learning_rate")


GOOD = json.dumps(toy_rows(1, 0)[0])
BAD_LINES = {
    GOOD.replace("sentence2", "sentence_2"): "no field 'sentence2'",
    GOOD.replace('"label": 0, ', ""): "no field 'label'",
    GOOD.replace('"label": 0', '"label": 2'): "label = 2: the labels of rte are 0, 1",
    GOOD.replace('"label": 0', '"label": -1'): "label = -1",
    GOOD.replace('"label": 0', '"label": true'): "label = True",
    GOOD.replace('"The', '3, "x": "The', 1): "sentence1 = 3 is not text",
    GOOD[:-20]: "not an item of rte",
    "[1, 2]": "not an item of rte",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_is_named_by_file_and_number(line, toy, refusal):
    write("rte", "train", [GOOD, line])
    before = sorted(Path("out/tiny").iterdir())
    assert f"data/glue/rte.train.jsonl.gz:2: {BAD_LINES[line]}" in refusal(run)
    assert sorted(Path("out/tiny").iterdir()) == before


def test_files_that_are_cut_short_or_missing_are_named(toy, refusal, capsys):
    write("rte", "valid", [GOOD] * 138)
    assert "data/glue/rte.valid.jsonl.gz: 138 lines and not 139; fetch it again" in refusal(run)
    write("rte", "valid", [GOOD] * 139, cut=-9)
    assert "data/glue/rte.valid.jsonl.gz: cannot be read" in refusal(run)
    assert (
        refusal(
            run,
        ).count("\n")
        == 1
    )
    Path("data/glue/rte.valid.jsonl.gz").unlink()
    assert "rte: put it at data/glue/rte.valid.jsonl.gz, or set NANORNN_DATA" in refusal(run)
    with pytest.raises(UserError, match="no task has its files here"):
        run(tasks="")
    assert "left out: wsc: put it at" in capsys.readouterr().out


WRONG = {
    "--tasks=rtee": "tasks = 'rtee': did you mean 'rte'?",
    "--tasks=cola --protocol=2025": "tasks = 'cola': not among the tasks of 2025, boolq, mnli",
    "--tasks=rte,rte": "rte is there twice",
    "--protocol=2023": "ossible: 2024, 2025, 2026",
    "--seeds=[]": "seeds = []: name at least one",
    "--seeds=[0,0]": "each once",
    "--seeds=[0.5]": "must be whole numbers",
    "--epochs=-1": "epochs = -1",
    "--learning_rate=-1": "learning_rate = -1.0: must be a number, at least 0",
    "--dtype=float64": "dtype = 'float64': did you mean",
    "--compile=yes --kernels=loop": "loops are not compiled",
}


@pytest.mark.parametrize("flags", WRONG)
def test_wrong_settings_are_one_line(flags, refusal):
    said = refusal(configure, finetune.Settings(), flags.split(), "run")
    assert WRONG[flags] in said and said.count("\n") == 1


def test_a_model_of_learned_positions_reads_as_much_as_it_can(toy, tiny):
    train.main(tiny(run="gpt", position="learned", mixer="attention", max_steps=1))
    results = finetune.main(finetune.Settings("out/gpt", "rte", **QUICK | {"epochs": 1}))
    assert results["benchmarks"]["glue"]["subtasks"]["rte"]["how"]["length"] == 16


def test_it_runs_as_a_script(toy, script):
    ended = script(
        "finetune.py", "out/tiny", "--tasks=rte", "--epochs=1", "--untrained=False", "--device=cpu"
    )
    assert ended.returncode == 0 and "trained on 192 of 2,490 rows" in ended.stdout
