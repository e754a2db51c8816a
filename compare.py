"""
Train many models under one recipe and compare them: BabyHGRN's first experiment.

    python compare.py                             twelve mixers on toyland
    torchrun --nproc_per_node=4 compare.py config/compare_10m.py    at the paper's sizes

The file has the settings that all runs share, and a dict of rows:

    models = {"minGRU": {"mixer": "mingru", "learning_rates": [1e-2]},  # settings of this row
              "Mamba": "config/mamba_10m.py",                           # or a file with them
              "student": {"mixer": "mingru", "teacher": "minGRU"}}      # taught by a row above

A model is judged by its best evaluation at its best learning rate: by minimal pairs if training
scores some, unless best_by = "loss". A student's nth seed learns from the best run of its teacher's
nth seed. Ends with a table, results.json and pictures; after a stop, the same command resumes.
"""

import csv
import gc
import io
import json
import math
import shutil
import statistics
import sys
from collections import defaultdict
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path

import data
import distill
import evaluate
import finetune
import train
from corpora.benchmarks import read_benchmark
from kernels import use_kernels
from model import LanguageModel
from support.console import close_bars, only_first_speaks, progress, run_script, say
from support.devices import find_device
from support.files import alone_in, replacing, write_json
from support.processes import (
    Stopped,
    from_all,
    from_first,
    join_processes,
    leave_processes,
    rank,
    restarts,
    wait_for_all,
)
from support.run import MAY_CHANGE, Diverged, differences, read_log, runs_at_best_rate
from support.settings import UserError, given, naming, one_of, read_file, typed

import torch
from torch.utils._pytree import tree_leaves

DEFAULT = "config/compare_toy.py"
NOT_IN_ROWS = {"run", "learning_rate", "seed", "eval_pairs", "best_by", "kernels", "fresh"}
RUN_SETTINGS = {x.name for x in fields(train.Settings)}


@dataclass
class Settings(train.Settings):
    """The models to compare; all other settings are those of a run, shared by all runs."""

    models: dict = field(default_factory=dict)  # name of the row: {setting: value}, or a settings file
    learning_rates: list = field(default_factory=list)  # tried with each model; none: learning_rate
    seeds: list = field(default_factory=list)  # each run is repeated with these; none: seed
    tasks: str = ""  # benchmarks to score at the end on the best runs, comma-separated
    glue: str = ""  # (Super)GLUE tasks to fine-tune these runs on, such as rte,wsc
    protocol: str = "2024"  # the BabyLM challenge whose rules hold for tasks and glue: 2024, 2025 or 2026
    beside: str = ""  # other run folders to score on `tasks`, such as out/english_3gram,out/toy
    against: str = ""  # the row that the others are compared with
    results: str = ""  # also write the results here, such as results/compare_toy.json


@dataclass
class RowSettings(distill.Settings):
    """The settings of one row of `models`: those of a run or student, and its own rates and seeds."""

    learning_rates: list = field(default_factory=list)
    seeds: list = field(default_factory=list)


def main(args):
    """Train what is not finished, evaluate the best runs, report. Returns the content of results.json."""
    file = next((arg for arg in args if not arg.startswith("-")), DEFAULT)
    settings = given(Settings(), args, default=DEFAULT)
    s = replace(Settings(), **settings)
    if s.eval_pairs and "best_by" not in settings:
        s.best_by = "pairs"
    rows = plan(s, settings, file)
    runs = [run for row in rows.values() for run in row]
    join_processes(find_device(s.device))
    if rank() == 0:
        read_benchmarks(s, file)
    sizes = check_rows(rows, file)
    with alone_in(Path("out", s.run)):
        if not all(from_all(Path("out", s.run).exists())):
            remedy = "share it, or use one machine"
            raise UserError(f"out/{s.run}: a comparison needs this folder on all machines; {remedy}")
        check_folders(s, runs)
        try:
            train_all(rows)
            found = from_first(lambda: {name: sizes[name] | summarize(rows[name]) for name in rows})
            beside = {}
            if s.tasks or s.glue:
                with only_first_speaks():
                    evaluate_best(s, found)
                    named = runs_beside(s).items()
                    beside = {name: {"benchmarks": benchmark_scores(s, run)} for name, run in named}
            leave_processes()
            if rank() > 0:  # the rest is for one process
                return None
        except KeyboardInterrupt:
            close_bars()
            done = sum(read_finished(run) is not None for run in runs)
            again = "the same command without --fresh" if s.fresh else "the same command"
            say(f"stopped: {done} of {len(runs)} runs are done; {again} resumes")
            raise Stopped
        return report(s, settings, found, beside)


# ----------------------------------------------------------------------------------------------------
# The runs, planned and checked before the first step


def plan(s, settings, file):
    """
    {row: [train.Settings of each run]}; `settings` are those of s that a file or flag names. UserError, with the
    file and the row, if one of the runs cannot be made.
    """
    with naming(file):
        check_comparison(s)
    shared = {name: value for name, value in settings.items() if name in RUN_SETTINGS}
    rows = {}
    for name in s.models:
        with naming(f"{file}: models[{name!r}]"):
            rows[name] = plan_row(name, s, shared, rows)
    folders = [run.run.lower() for row in rows.values() for run in row]  # some file systems ignore case
    for folder in folders:
        if folders.count(folder) > 1:
            remedy = "rename a row, or leave out a rate or a seed"
            raise UserError(f"{file}: two runs would be out/{folder}; {remedy}")
    return rows


def check_comparison(s):
    """Raise UserError for settings that do not work, whatever the rows are."""
    replace(train.Settings(), run=s.run).check()
    how = dict(protocol=s.protocol, device=s.device, kernels=s.kernels, results=s.results)
    evaluate.Settings(tasks=s.tasks, **how).check()
    if s.glue:
        with naming("glue"):
            finetune.Settings(tasks=s.glue, protocol=s.protocol).check()
    if s.beside and not s.tasks:
        raise UserError(
            f"beside = {s.beside!r}, but tasks names none to score; set tasks = 'blimp_filtered', say"
        )
    if not s.models:
        raise UserError("models: none named; they are like {'minGRU': {'mixer': 'mingru'}}")
    for name in s.models:
        if not isinstance(name, str):
            raise UserError(f"models: their names must be words in quotes, not {name}")
    if Path("out", s.run, "settings.json").exists():
        raise UserError(f"run = {s.run!r}: out/{s.run} is a run of its own; use another --run=NAME")
    if s.against:
        one_of("against", s.against, list(s.models))


def read_benchmarks(s, file):
    """Raise UserError if a benchmark or a run beside the rows is not there: now, not after days of training."""
    for task in s.tasks.split(",") if s.tasks else []:
        read_benchmark(task, s.protocol)
    if s.glue:
        finetune.read_tasks(finetune.Settings(tasks=s.glue, protocol=s.protocol))
    for run in runs_beside(s).values():
        checkpoint = evaluate.checkpoint_of(run)
        if not checkpoint.exists():
            remedy = "train it, or make it with tools/ngram.py"
            raise UserError(f"{file}: beside: there is no {checkpoint}; {remedy}")


def plan_row(name, s, shared, above):
    """The settings of a row's runs, one for each learning rate and seed; `above` are the rows before it."""
    own = row_settings(s.models[name], shared)
    rates = own.pop("learning_rates", []) or s.learning_rates
    rates = rates or [own.get("learning_rate", s.learning_rate)]
    seeds = own.pop("seeds", []) or s.seeds or [s.seed]
    if len(seeds) != len(s.seeds or [s.seed]):
        raise UserError(f"seeds = {seeds}: {len(s.seeds or [s.seed])} are needed, as many as all rows have")
    for teacher in own.get("teacher", "").split(","):
        if teacher in s.models and teacher not in above:
            raise UserError(f"teacher = {teacher!r}: it must be a row above this one")
    kind = train.Settings if own.keys() <= RUN_SETTINGS else distill.Settings
    own |= {"eval_pairs": s.eval_pairs, "best_by": s.best_by, "kernels": s.kernels, "fresh": False}
    runs = []
    for rate in rates:
        for seed in seeds:
            own["learning_rate"] = typed("learning_rate", rate, train.Settings(), "learning_rates")
            own["seed"] = typed("seed", seed, train.Settings(), "seeds")
            own["run"] = folder_name(name, own["learning_rate"], seed)
            run = kind(**own)
            run.check()
            runs.append(replace(run, run=f"{s.run}/{run.run}"))
    return runs


def folder_name(row, rate, seed):
    return f"{row}-{rate:g}-{seed}"


def row_settings(model, shared):
    """A value of `models` -> the settings of its runs; the shared ones override a file's, but not a row's own."""
    if isinstance(model, str):
        return read_file(model, distill.Settings()) | shared
    if not isinstance(model, dict):
        what = "should be settings, like {'mixer': 'mingru'}, or the name of a settings file"
        raise UserError(f"{model!r}: {what}")
    own = {}
    for name, value in model.items():
        if name in NOT_IN_ROWS:
            what = "is not for a row; it may have learning_rates and seeds, which are lists"
            raise UserError(f"{name!r} {what}")
        own[name] = typed(name, value, RowSettings(), "its settings")
    return shared | own


def check_rows(rows, file):
    """
    Check what each row needs -> {row: {"parameters": how many, "state": how many numbers after a context, "words":
    of its corpus, "tokens_per_word": of the validation text, to compare losses between tokenizers}}.
    """
    sizes, above = {}, {}
    for name, runs in progress(rows.items(), desc="models", unit="model"):
        with naming(f"{file}: models[{name!r}]"):
            sizes[name] = check_row(runs[0], above)
        above[name] = runs[0]
    return sizes


def check_row(run, above):
    """Refuse a corpus or teacher that does not fit; build the model and run it once. Returns its sizes."""
    corpus = data.find_for(run)
    if not data.Blocks(corpus / "train.bin", run.context).n:
        raise UserError(f"context = {run.context}: longer than the text of {corpus}; lower it")
    if isinstance(run, distill.Settings):
        distill.check_tokenizers(run, distill.find_teachers(run, above))
    model = LanguageModel(run).eval()
    use_kernels(run.kernels, model)
    with torch.inference_mode():
        _, states = model.features(torch.zeros(1, run.context, dtype=torch.long))
    meta = data.read_meta(corpus)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "state": count_numbers(states),
        "words": meta["train"]["words"],
        "tokens_per_word": meta["val"]["tokens"] / max(1, meta["val"]["words"]),
    }


def count_numbers(state):
    """Real numbers in a state, a nest of tensors."""
    return sum(x.numel() * (1 + x.is_complex()) for x in tree_leaves(state) if isinstance(x, torch.Tensor))


def check_folders(s, runs):
    """Remove the runs' folders if s.fresh; UserError if one holds a run of another recipe."""
    if s.fresh and rank() == 0 and not restarts():
        for folder in [Path("out", run.run) for run in runs]:
            if folder.exists():
                shutil.rmtree(folder)
    wait_for_all()
    for run in runs:
        refuse_another_recipe(run, {"teacher"})  # the teacher's checkpoint is not known yet


def refuse_another_recipe(run, may_change=frozenset()):
    """Raise UserError if a run's folder was made with other settings than these, or from another corpus."""
    folder = Path("out", run.run)
    if not (folder / "settings.json").exists():
        return
    then = asdict(type(run)()) | read_file(folder, distill.Settings())  # perhaps it was a student then
    fixed = {"epochs", "max_steps", "eval_every", "eval_tokens"}
    may_change = may_change | (MAY_CHANGE - fixed) | {"teacher_is"}
    listed = differences(then, asdict(run), may_change)
    ended = read_finished(run)
    if ended and ended["corpus"] != data.data_digest(data.find(run.corpus)):
        listed = f"another corpus by the name {run.corpus!r}"
    if listed:
        remedy = "set it back, or use --run=NAME or --fresh"
        raise UserError(f"{folder} is of another recipe ({listed}): {remedy}")


# ----------------------------------------------------------------------------------------------------
# Training: one run after another in this process, because child processes would survive a kill -9 of it and go on
# writing. No run depends on what an earlier one leaves behind: train.main sets the seed.


def train_all(rows):
    """Train all unfinished runs, students after their teachers."""
    runs = [(row, run) for row in rows.values() for run in row]
    for number, (row, run) in enumerate(runs, start=1):
        if isinstance(run, distill.Settings):
            run = with_teachers(run, seeds_of(row).index(run.seed), rows)
            refuse_another_recipe(run)
        if from_first(lambda: not read_finished(run)):
            train_one(run, f"{number} of {len(runs)}: {Path(run.run).name}")
            clean_up()


def train_one(run, title):
    """Train a run to its end, or until it diverges, and write finished.json into its folder."""
    script = distill if isinstance(run, distill.Settings) else train
    ended = {"diverged": False, "corpus": data.data_digest(data.find(run.corpus))}
    try:
        with redirect_stdout(io.StringIO()):  # what train.py prints for a single run
            script.main(run, progress=partial(progress, desc=title))
    except Diverged as error:
        ended["diverged"] = True
        say(f"{run.run} diverged, its best evaluation until then counts: {error}")
    if rank() == 0:
        with replacing(Path("out", run.run, "finished.json")) as file:
            file.write(json.dumps(ended) + "\n")
    wait_for_all()


def clean_up():
    """Free the memory of the last model and of its compiled code."""
    gc.collect()
    torch.cuda.empty_cache()
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def seeds_of(runs):
    """A row's seeds, in their order."""
    return list(dict.fromkeys(run.seed for run in runs))


def with_teachers(run, place, rows):
    """A student's settings, with each row it names as teacher replaced by the best checkpoint of seed `place`."""
    teachers = []
    for name in run.teacher.split(","):
        if name in rows:
            row = summarize(rows[name])
            best = row["best"]
            its = best and runs_at_best_rate(row)[place]
            if not its or (its["diverged"] and not its["best"]["step"]):  # nothing learned
                raise UserError(f"{run.run}: its teacher {name!r} diverged; lower its rates")
            folder = folder_name(name, best["learning_rate"], seeds_of(rows[name])[place])
            name = str(Path("out", run.run).with_name(folder) / "best.pt")
        teachers.append(name)
    return replace(run, teacher=",".join(teachers))


def read_finished(run):
    """How a run ended, {"diverged": ..., "corpus": its digest}; None if it is not finished."""
    try:
        ended = json.loads(Path("out", run.run, "finished.json").read_text(encoding="utf-8"))
        return {"diverged": ended["diverged"], "corpus": ended["corpus"]}
    except (OSError, ValueError, LookupError, TypeError):
        return None


# ----------------------------------------------------------------------------------------------------
# Results: of a run, of a row, of two rows


def summarize(runs):
    """
    A row's finished runs -> {"runs": each with its evaluations, "rates": means over seeds at each learning rate,
    "best": the best of these or, if none of them has an evaluation of each seed, None}.
    """
    by_rate = defaultdict(list)
    for run in runs:
        by_rate[run.learning_rate].append(run_results(run))
    rates = [mean_over_seeds(some) for some in by_rate.values() if all(run["best"] for run in some)]
    best = max(rates, key=partial(selection_score, by=runs[0].best_by), default=None)
    return {"best": best, "rates": rates, "runs": [run for some in by_rate.values() for run in some]}


def run_results(run):
    """A finished run's learning rate and seed, its evaluations and the best of these, how it ended, its speed."""
    folder = Path("out", run.run)
    log = [record for record in read_log(folder) if "val_loss" in record]
    speeds = [record["tokens_per_second"] for record in read_log(folder, "times.jsonl")]
    return {
        "learning_rate": run.learning_rate,
        "seed": run.seed,
        "best": max(log, key=partial(selection_score, by=run.best_by), default=None),
        "diverged": read_finished(run)["diverged"],
        "tokens_per_second": statistics.median(speeds) if speeds else None,
        "evaluations": log,
    }


def selection_score(record, by):
    """The score that selects the best, higher is better: the macro score, or minus the validation loss."""
    return record["macro"] if by == "pairs" else -record["val_loss"]


def mean_over_seeds(runs):
    """Means of the best evaluations at one rate, with a 95 % interval over seeds or, for one run, over pairs."""
    best = [run["best"] for run in runs]
    pairs = best[0].get("pairs", {})
    found = {"learning_rate": runs[0]["learning_rate"]}
    for name in ("step", "epoch", "val_loss", "macro"):
        if name in best[0]:
            found[name] = statistics.fmean(record[name] for record in best)
    found["scores"] = {}
    for task in pairs:
        found["scores"][task] = statistics.fmean(record["pairs"][task]["score"] for record in best)
    if len(runs) > 1:
        found["interval"] = finetune.half_width([record.get("macro", record["val_loss"]) for record in best])
    elif pairs:
        found["interval"] = math.hypot(*(x["interval"] for x in pairs.values())) / len(pairs)
    speeds = [run["tokens_per_second"] for run in runs if run["tokens_per_second"]]
    found["tokens_per_second"] = statistics.median(speeds) if speeds else None
    found["diverged"] = any(run["diverged"] for run in runs)
    return found


def evaluate_best(s, rows):
    """
    Score the best checkpoint of each row and seed with evaluate.py and finetune.py, unless that is done already,
    and add "benchmarks" to these runs and, as means over seeds, to their rows.
    """
    tasks = [evaluate.name_of(task) for task in s.tasks.split(",") if task]
    best = [(name, run) for name, row in rows.items() for run in runs_at_best_rate(row)]
    for name, run in progress(best, desc="evaluations", unit="run"):
        file = Path("out", s.run, folder_name(name, run["learning_rate"], run["seed"]), "best.pt")
        run["benchmarks"] = benchmark_scores(s, file) if s.tasks else {}
        if s.glue:
            with redirect_stdout(io.StringIO()):
                run["benchmarks"]["glue"] = fine_tuned(s, file, run["seed"])
    if s.glue:
        tasks.append("glue")
    for row in rows.values():
        runs = runs_at_best_rate(row)
        row["benchmarks"] = {}
        for task in tasks if runs else []:
            row["benchmarks"][task] = mean_benchmark([run["benchmarks"][task] for run in runs])


def benchmark_scores(s, run):
    """{task: evaluate.py's results} of a run folder or checkpoint."""
    how = evaluate.Settings(str(run), s.tasks, s.protocol, device=s.device, kernels=s.kernels)
    with redirect_stdout(io.StringIO()):
        found = evaluate.known_or_made(how)["benchmarks"]
    return {name: found[name] for name in map(evaluate.name_of, s.tasks.split(","))}


def runs_beside(s):
    """{"english_3gram" or, of a checkpoint file, "toy/best": the path} of what `beside` names."""
    runs = {}
    for run in s.beside.split(",") if s.beside else []:
        path = Path(run)
        name = f"{path.parent.name}/{path.stem}" if path.suffix == ".pt" else path.name
        if name in runs or name in s.models:
            raise UserError(f"beside = {s.beside!r}: {name!r} is the name of two rows; rename one")
        runs[name] = run
    return runs


def fine_tuned(s, file, seed):
    """finetune.py's results of a checkpoint on the tasks of s.glue, fine-tuned once with this seed."""
    how = finetune.Settings(
        str(file), s.glue, s.protocol, seeds=[seed], untrained=False, device=s.device, kernels=s.kernels
    )
    found = finetune.main(how)["benchmarks"]["glue"]
    subtasks = {task: found["subtasks"][task] for task in s.glue.split(",")}
    return finetune.glue_of(subtasks, how.protocol)


def mean_benchmark(results):
    """evaluate.py's results on a benchmark, one per seed -> mean scores and the 95 % interval."""
    scores = [x["score"] for x in results]
    interval = finetune.half_width(scores) if len(scores) > 1 else results[0]["interval"]
    subtasks = {}
    for uid, first in results[0]["subtasks"].items():
        score = statistics.fmean(x["subtasks"][uid]["score"] for x in results)
        subtasks[uid] = {"score": score, "term": first["term"]}
    return {"score": statistics.fmean(scores), "interval": interval, "subtasks": subtasks}


def row_difference(row, other):
    """Difference of two rows at their best rates -> {"loss" or task: {"mean": over seeds, "interval": 95 %}}."""
    values = defaultdict(list)
    for run, its in zip(runs_at_best_rate(row), runs_at_best_rate(other)):
        others = all_scores(its)
        for name, score in all_scores(run).items():
            values[name].append(score - others[name])
    found = {}
    for name, each in values.items():
        found[name] = {"mean": statistics.fmean(each)}
        if len(each) > 1:
            found[name]["interval"] = finetune.half_width(each)
    return found


def all_scores(run):
    """{"loss": validation loss of a run's best evaluation, task: per cent, ...}."""
    scores = {"loss": run["best"]["val_loss"]}
    for results in (run["best"].get("pairs", {}), run.get("benchmarks", {})):
        for task, x in results.items():
            scores[task] = x["score"]
    return scores


# ----------------------------------------------------------------------------------------------------
# The report


def report(s, settings, rows, beside):
    """Print the tables; write the results, which all figures are drawn from, draw and return them."""
    from tools.figures import draw_results  # not above: matplotlib takes a second to load
    from tools.measure import machine

    tasks = s.eval_pairs.split(",") if s.eval_pairs else []
    settings = {name: value for name, value in settings.items() if name not in ("results", "fresh")}
    results = {"comparison": s.run, "settings": settings, "machine": machine(s), "tasks": tasks}
    if s.against:
        others = [name for name in rows if name != s.against]
        results["differences"] = {name: row_difference(rows[name], rows[s.against]) for name in others}
    results["interval"] = "seeds (Student's t)" if len(s.seeds) > 1 else "pairs (binomial)"
    results["rows"], results["beside"], results["best_by"] = rows, beside, s.best_by
    print_results(results)
    folder = Path("out", s.run)
    write_csv(folder / "results.csv", rows)
    paths = [folder / "results.json"]
    if s.results:
        paths.append(Path(s.results))
    for path in paths:
        write_json(path, results)
        print("drawn:", *draw_results(path))
    return results


def print_results(results):
    """Print each row at its best, then the benchmarks and the differences."""
    rows, scores = results["rows"], results["tasks"]
    if len(scores) > 1:
        scores = [*scores, "macro"]
    compared = [name for name in rows if rows[name]["best"]]
    compared.sort(key=lambda name: selection_score(rows[name]["best"], results["best_by"]), reverse=True)
    diverged = [name for name in rows if not rows[name]["best"]]
    table = [["model", "parameters", "state", "rate", "step", "epoch", "loss", *scores, "95 %", "tokens/s"]]
    for name in compared + diverged:
        sizes = [f"{rows[name]['parameters']:,}", f"{rows[name]['state']:,}"]
        table.append([name, *sizes, *cells(rows[name]["best"], scores)])
    print_columns(table)
    print("state: numbers remembered at the end of a sequence; rate: the best learning rate; step, epoch and")
    print(f"loss: of the best evaluation; 95 %: half the interval over the {results['interval']}\n")
    scored = {name: row["benchmarks"] for name, row in rows.items() if row.get("benchmarks")}
    if scored:
        tasks = list(next(iter(scored.values())))
        scored |= {name: row["benchmarks"] for name, row in results["beside"].items()}
        table = [["correct (%)", *tasks]]
        for name, found in scored.items():
            table.append([name, *(in_words(found.get(task)) for task in tasks)])
        print_columns(table)
    for name, found in results.get("differences", {}).items():
        each = [f"{what} {difference(what, x)}" for what, x in found.items()]
        print(f"{name} less {results['settings']['against']}: {', '.join(each)}")


def in_words(result):
    """A score with its interval; "" if there is none, as for an n-gram model, which is not fine-tuned."""
    return f"{result['score']:.1f} ± {result['interval']:.1f}" if result else ""


def cells(best, scores):
    """Columns of a row's best: rate, step, epoch, loss, scores, interval, speed."""
    if not best:
        return ["diverged"]
    rate = f"{best['learning_rate']:g}"
    if best["diverged"]:
        rate += ", diverged"
    when = [f"{best['step']:,.0f}", f"{best['epoch']:.2f}", f"{best['val_loss']:.3f}"]
    found = best["scores"] | {"macro": best.get("macro")}
    each = [f"{found[name]:.1f}" for name in scores]
    interval = f"± {best['interval']:.2g}" if "interval" in best else ""
    speed = f"{best['tokens_per_second']:,.0f}" if best["tokens_per_second"] else ""
    return [rate, *when, *each, interval, speed]


def difference(what, x):
    """A difference of the loss or of a score, with its interval if there is one, in words: +1.67 ± 2.47."""
    digits = 3 if what == "loss" else 2
    interval = f" ± {x['interval']:.{digits}f}" if "interval" in x else ""
    return f"{x['mean']:+.{digits}f}{interval}"


def print_columns(table):
    """Print rows of words in columns, the first flush left, the others flush right."""
    widths = [max(map(len, column)) + 2 for column in zip_longest(*table, fillvalue="")]
    for name, *words in table:
        print(name.ljust(widths[0]) + "".join(map(str.rjust, words, widths[1:])))


def write_csv(path, rows):
    """Write a line for each run: its row, learning rate, seed, and the scores of its best evaluation."""
    lines = []
    for name, row in rows.items():
        for run in row["runs"]:
            line = {"model": name, "parameters": row["parameters"], "state": row["state"]}
            for key in ("learning_rate", "seed", "diverged", "tokens_per_second"):
                line[key] = run[key]
            if run["best"]:
                line |= {"step": run["best"]["step"], "epoch": run["best"]["epoch"]} | all_scores(run)
            lines.append(line)
    columns = dict.fromkeys(key for line in lines for key in line)
    with replacing(path) as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    print(f"written: {path}")


if __name__ == "__main__":
    run_script(main)
