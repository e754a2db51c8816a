"""
Many models under one recipe: BabyHGRN's first experiment.

    python compare.py                             config/compare_toy.py: twelve mixers on toyland
    python compare.py config/compare_english.py   six models on real English, ten minutes of a GPU
    torchrun --nproc_per_node=4 compare.py config/compare_10m.py    the paper's five and minGRU, at its sizes

Trains every model at every learning rate with every seed, evaluates each run after every epoch (or eval_every
steps), and holds the best evaluation at each model's best learning rate against the others', as the paper does.
The file has the settings that all runs share, and

    models = {
        "minGRU": {"mixer": "mingru", "learning_rates": [1e-2]},    what differs, maybe rates of its own
        "Mamba": "config/mamba_10m.py",                             or a file, where the recipe says nothing
        "student": {"mixer": "mingru", "teacher": "minGRU"},        distilled from a row above, at its best rate:
    }                                                               from its first seed's best, second's, ...

Every run is an ordinary run folder, out/COMPARISON/MODEL-RATE-SEED. Stopped at any moment, the same command goes
on. At the end there is a table, and out/COMPARISON has results.json and its pictures. With `tasks`, the best runs
of each row are also put through evaluate.py; with `against`, all rows are held against that one, seed by seed.
"""

from start import begin

begin(__name__)  # before torch is loaded

import gc
import io
import json
import math
import os
import shutil
import statistics
import sys
from collections import defaultdict
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch

import data
import distill
import evaluate
import train
from checkpoint import (
    MAY_CHANGE,
    Diverged,
    World,
    best_evaluation,
    data_digest,
    differences,
    leave_group,
    read_log,
    replacing,
    say,
    wait_for_all,
)
from config import Share, close_bars, fail, given, naming, one_of, progress, read_file, run_script, typed
from evaluate import PAPER, write_json
from model import LanguageModel

DEFAULT = "config/compare_toy.py"
NOT_IN_ROWS = {"run", "learning_rate", "seed", "eval_pairs", "best_by", "fresh"}
T95 = 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262  # Student's t for 2, 3, ... 10 seeds


@dataclass
class Settings(train.Settings):
    """What is compared; all other settings are those of a run, for all runs."""

    models: dict = field(default_factory=dict)  # name of the row: {setting: value}, or a settings file
    learning_rates: list = field(default_factory=list)  # tried with each model; none: learning_rate
    seeds: list = field(default_factory=list)  # each run is repeated with these; none: seed
    tasks: str = ""  # benchmarks for the best run of each row and seed, in the end, with commas
    against: str = ""  # the row that the others are held against
    results: str = ""  # also write the results here, such as results/compare_toy.json


def main(args):
    """Make all runs that are not made yet; returns the content of results.json."""
    file = next((arg for arg in args if not arg.startswith("-")), DEFAULT)
    settings = given(Settings(), args, default=DEFAULT)
    s = replace(Settings(), **settings)
    rows = plan(s, settings, file)
    train.start(s)  # and meet the other processes, if torchrun has started some
    if World.rank == 0:
        look_for_data(s, rows)
    wait_for_all()
    facts, above = {}, {}
    for name, runs in progress(rows.items(), desc="models", unit="model"):
        facts[name] = examine(runs[0], f"{file}: models[{name!r}]", above)
        above[name] = runs[0]
    runs = [run for name in rows for run in rows[name]]
    for run in runs:
        if s.fresh and World.rank == 0 and not World.restarts:
            shutil.rmtree(Path("out", run.run), ignore_errors=True)
        wait_for_all()
        refuse_another_recipe(run, {"teacher"})  # which is not known yet
    try:
        make(rows)
        leave_group()
        if World.rank > 0:
            return None  # what is left is for one
        found = {name: facts[name] | summary(rows[name]) for name in rows}
        if s.tasks:
            examine_best(s, found)
    except (KeyboardInterrupt, SystemExit) as end:
        if getattr(end, "code", 130) != 130:
            raise
        close_bars()
        done, again = sum(map(bool, map(finished, runs))), " without --fresh" * s.fresh
        say(f"stopped: {done} of {len(runs)} runs are done; the same command{again} goes on")
        sys.exit(130)
    return report(s, settings, found)


# ----------------------------------------------------------------------------------------------------
# What there is to do, checked before the first step


def plan(s, settings, file):
    """{row: [train.Settings of each run]}; ends with a line that names file and row if one cannot be made."""
    known = {x.name for x in fields(train.Settings)}
    shared = {name: value for name, value in settings.items() if name in known}
    with naming(file):
        replace(train.Settings(), run=s.run).check()
        seeds = numbers("seeds", s.seeds or [s.seed], int)
        evaluate.Settings(tasks=s.tasks, device=s.device).check()
        if os.path.isdir(s.results):
            fail(f"results = {s.results!r} is a folder: name a file in it")
        if not s.models:
            fail("models: none named; they are like {'minGRU': {'mixer': 'mingru'}}")
        if Path("out", s.run, "settings.json").exists():
            fail(f"run = {s.run!r}: out/{s.run} is a run of its own; use another --run=NAME")
        if not all(isinstance(name, str) for name in s.models):
            fail(f"models: their names must be words in quotes, not {min(map(str, s.models))}")
        if s.against:
            one_of("against", s.against, list(s.models))
    rows = defaultdict(list)
    for name, model in s.models.items():
        with naming(f"{file}: models[{name!r}]"):
            own, rates, own_seeds = read_model(model, shared)
            if len(numbers("seeds", own_seeds or seeds, int)) != len(seeds):
                fail(f"seeds = {own_seeds}: {len(seeds)} are needed, as many as all rows have")
            by = "pairs" if s.eval_pairs else "loss"
            if settings.get("best_by", by) != by:
                fail(f"best_by = {s.best_by!r}: it goes by the {by} here, as eval_pairs = {s.eval_pairs!r}")
            if below := [x for x in own.get("teacher", "").split(",") if x in s.models and x not in rows]:
                fail(f"teacher = {below[0]!r}: it must be a row above this one")
            kind = distill.Settings if set(own) - known else train.Settings
            for rate in numbers("learning_rates", rates or s.learning_rates or [s.learning_rate], float):
                for seed in own_seeds or seeds:
                    own |= {"run": f"{name}-{rate:g}-{seed}", "learning_rate": rate, "seed": seed}
                    run = kind(**own | {"best_by": by, "fresh": False})
                    run.check()
                    rows[name].append(replace(run, run=f"{s.run}/{run.run}"))
    names = [run.run.lower() for runs in rows.values() for run in runs]  # some file systems take A for a
    if twice := {name for name in names if names.count(name) > 1}:
        fail(f"{file}: two runs would be out/{min(twice)}; rename a row, or leave out a rate")
    return rows


def read_model(model, shared):
    """A value of `models` -> its settings, the shared ones too, its own learning rates and its own seeds."""
    if isinstance(model, str):
        return read_file(model, distill.Settings()) | {"eval_pairs": ""} | shared, [], []
    if not isinstance(model, dict):
        fail(f"{model!r}: should be settings, like {{'mixer': 'mingru'}}, or the name of a settings file")
    own = {name: value for name, value in model.items() if name not in ("learning_rates", "seeds")}
    if taken := NOT_IN_ROWS & set(own):
        fail(f"{min(taken)!r} is not for a row; it may have learning_rates and seeds, which are lists")
    own = {name: typed(name, own[name], distill.Settings(), "its settings") for name in own}
    return shared | own, model.get("learning_rates", []), model.get("seeds", [])


def numbers(name, values, kind):
    """Refuse what is not a list of numbers that make sense, each once."""
    good = isinstance(values, list) and all(type(x) in (int, kind) and 0 <= x < math.inf for x in values)
    if not good or (kind is float and 0 in values) or len(set(values)) < len(values):
        fail(f"{name} = {values!r}: should be numbers in brackets, each once, like [{kind(1)}, {kind(2)}]")
    return [kind(x) for x in values]


def look_for_data(s, rows):
    """Find or make every corpus and benchmark."""
    for corpus in {run.corpus for runs in rows.values() for run in runs}:
        data.find(corpus)
    for task in s.tasks.split(",") if s.tasks else []:
        evaluate.read_benchmark(task)  # now, and not after days of training


def examine(run, where, above):
    """Build a model and let it read a context. What it has: parameters, numbers remembered."""
    with naming(where):
        corpus = train.find_corpus(run)
        if not data.Blocks(corpus / "train.bin", run.context).n:
            fail(f"context = {run.context}: longer than the text of {corpus}; lower it")
        if isinstance(run, distill.Settings):
            distill.check_tokenizers(run, distill.find_teachers(run, above))
        model = LanguageModel(run).eval()
        with torch.inference_mode():
            _, states = model.features(torch.zeros(1, run.context, dtype=torch.long))
    return {"parameters": sum(p.numel() for p in model.parameters()), "state": numbers_in(states)}


def numbers_in(state):
    """Real numbers in a state, however it is nested."""
    if isinstance(state, torch.Tensor):
        return state.numel() * (1 + state.is_complex())
    return sum(map(numbers_in, state)) if isinstance(state, (list, tuple)) else 0


def refuse_another_recipe(run, may_change=frozenset()):
    """End the script if a run's folder is of other settings than these, or of another corpus."""
    folder = Path("out", run.run)
    if any((folder / name).exists() for name in ("checkpoint.pt", "previous.pt", "finished.json")):
        then = asdict(type(run)()) | read_file(folder, distill.Settings())  # perhaps it was a student then
        may_change |= MAY_CHANGE - {"epochs", "max_steps", "eval_every"} | {"teacher_is"}
        listed = differences(then, asdict(run), may_change)
        if (finished(run) or {}).get("corpus") not in (None, data_digest(data.find(run.corpus))):
            listed = f"another corpus by the name {run.corpus!r}"
        if listed:
            fail(f"{folder} is of another recipe ({listed}): set it back, or use --run=NAME or --fresh")


# ----------------------------------------------------------------------------------------------------
# Making the runs: one after the other in this process, and not by starting train.py, so that a kill -9 leaves none
# behind that goes on writing. A run depends on nothing that the one before leaves: train.main sets its seeds.


def make(rows):
    """Train what is not finished. A run whose loss is not a number any more ends there; the others go on."""
    runs = [(run, own) for own in rows.values() for run in own]
    bar = whole(run for run, _ in runs)
    for run, own in runs:
        if isinstance(run, distill.Settings):
            run = taught(run, seeds_of(own).index(run.seed), rows)
            refuse_another_recipe(run)
        if finished(run):
            continue
        share, diverged = Share(bar, run.run), False
        try:
            with redirect_stdout(io.StringIO()):  # what train.py says of a run on its own
                (distill if isinstance(run, distill.Settings) else train).main(run, progress=share)
        except Diverged:
            diverged, bar = True, whole(run for run, _ in runs)  # the other was closed for the message
            say(f"{run.run} ended there: its best evaluation before counts")
        found = {"diverged": diverged, "tokens_per_second": share.speed()}
        found["corpus"] = data_digest(data.find(run.corpus))
        if World.rank == 0:
            with replacing(Path("out", run.run, "finished.json")) as file:
                file.write(json.dumps(found) + "\n")
        wait_for_all()
        gc.collect()
        torch.cuda.empty_cache()
        if "torch._dynamo" in sys.modules:  # what torch.compile has made for this model
            torch._dynamo.reset()
    bar.close()


def seeds_of(runs):
    return list(dict.fromkeys(run.seed for run in runs))


def taught(run, place, rows):
    """A student with a checkpoint for each teacher that is a row: its best, of the seed in the student's place."""

    def best_of(name):
        if name not in rows:
            return name
        best = summary(rows[name])["best"]
        if not best or (best["diverged"] and not best["step"]):  # before the first evaluation, or the second
            fail(f"{run.run}: its teacher {name!r} diverged; lower its rates")
        teacher = f"{name}-{best['learning_rate']:g}-{seeds_of(rows[name])[place]}"
        return str(Path("out", run.run).with_name(teacher) / "best.pt")

    return replace(run, teacher=",".join(map(best_of, run.teacher.split(","))))


def whole(runs):
    """The bar over all runs."""
    runs = list(runs)
    return progress(total=len(runs), initial=sum(map(bool, map(finished, runs))), unit="run", smoothing=0)


def finished(run):
    """What finished.json says of a run; None if it is not finished."""
    try:
        return json.loads(Path("out", run.run, "finished.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


# ----------------------------------------------------------------------------------------------------
# What came of it


def summary(runs):
    """A model's runs -> each with its evaluations, the means over seeds at each rate, and the best of these."""
    by_rate = defaultdict(list)
    for run in runs:
        log = [x for x in read_log(Path("out", run.run)) if "val_loss" in x]
        best = best_evaluation(log) or min(log, key=lambda x: x["val_loss"], default=None)
        about = {"learning_rate": run.learning_rate, "seed": run.seed, "best": best} | finished(run)
        by_rate[run.learning_rate].append(about | {"evaluations": log})
    rates = [mean(made) for made in by_rate.values() if all(run["best"] for run in made)]
    best = max(rates, key=worth, default=None)
    return {"best": best, "rates": rates, "runs": [run for made in by_rate.values() for run in made]}


def worth(record):
    """What the best has most of: macro score or, where no pairs are scored, the loss with its sign changed."""
    return record.get("macro", -record["val_loss"])


def mean(runs):
    """Means of the best evaluations of several seeds, with the interval; of one seed, with that of its pairs."""
    best = [run["best"] for run in runs]
    pairs = best[0].get("pairs", {})
    names = ["step", "epoch", "val_loss"] + ["macro"] * bool(pairs)
    found = {name: statistics.fmean(x[name] for x in best) for name in names}
    found["scores"] = {task: statistics.fmean(x["pairs"][task]["score"] for x in best) for task in pairs}
    if len(runs) > 1:
        found["interval"] = half_width(map(worth, best))
    elif pairs:
        found["interval"] = sum(x["interval"] ** 2 for x in pairs.values()) ** 0.5 / len(pairs)
    speeds = [run["tokens_per_second"] for run in runs if run["tokens_per_second"]]
    found["tokens_per_second"] = statistics.median(speeds) if speeds else None
    found["diverged"] = any(run["diverged"] for run in runs)
    return {"learning_rate": runs[0]["learning_rate"]} | found


def half_width(values):
    """Half of the 95 % interval of a mean over seeds, by Student's t; of more than ten a little too wide."""
    values = list(values)
    return T95[min(len(values), 10) - 2] * statistics.stdev(values) / len(values) ** 0.5


def at_best(row):
    """A row's runs at its best learning rate, one a seed."""
    rate = row["best"] and row["best"]["learning_rate"]
    return [run for run in row["runs"] if run["learning_rate"] == rate]


def examine_best(s, rows):
    """Put the best run of each row and seed through evaluate.py, which goes on where it stopped. Keeps scores."""
    tasks = [evaluate.name_of(task) for task in s.tasks.split(",")]
    best = [(name, run) for name, row in rows.items() for run in at_best(row)]
    for name, run in progress(best, desc="evaluations", unit="run"):
        file = Path("out", s.run, f"{name}-{run['learning_rate']:g}-{run['seed']}", "best.pt")
        with redirect_stdout(io.StringIO()):
            found = evaluate.known_or_made(evaluate.Settings(str(file), s.tasks, device=s.device))
        run["benchmarks"] = {task: found["benchmarks"][task] for task in tasks}
    for row in rows.values():
        found = [run["benchmarks"] for run in at_best(row)]
        row["benchmarks"] = {task: over_seeds([x[task] for x in found]) for task in tasks if found}


def over_seeds(results):
    """What evaluate.py says of several seeds -> the mean score, its interval (of one seed, its own), subtasks'."""
    scores = [x["score"] for x in results]
    width = half_width(scores) if len(scores) > 1 else results[0]["interval"]
    subtasks = {
        uid: {"score": statistics.fmean(x["subtasks"][uid]["score"] for x in results), "term": first["term"]}
        for uid, first in results[0]["subtasks"].items()
    }
    return {"score": statistics.fmean(scores), "interval": width, "subtasks": subtasks}


def difference(row, other):
    """{loss or score: {"mean": row's less the other's, seed by seed, "interval": ...}}, each row at its best."""
    pairs = list(zip(map(all_scores, at_best(row)), map(all_scores, at_best(other))))
    found = {}
    for name in pairs[0][0] if pairs else []:
        values = [own[name] - others[name] for own, others in pairs]
        found[name] = {"mean": statistics.fmean(values)}
        found[name] |= {"interval": half_width(values)} if len(values) > 1 else {}
    return found


def all_scores(run):
    """The validation loss of a run's best evaluation and its scores, in per cent."""
    scores = {"loss": run["best"]["val_loss"]}
    for found in run["best"].get("pairs", {}), run.get("benchmarks", {}):
        scores |= {task: x["score"] for task, x in found.items()}
    return scores


def report(s, settings, rows):
    """Print the tables; write and draw what everything can be drawn from; returns it."""
    from bench import machine  # not above: it brings what only measuring needs
    from figures import draw_results

    tasks = s.eval_pairs.split(",") if s.eval_pairs else []
    paper = json.loads(PAPER.read_text(encoding="utf-8"))["rows"]
    paper = [x for x in paper if set(tasks + s.tasks.split(",")) & set(x["benchmarks"])]
    settings = {name: value for name, value in settings.items() if name not in ("results", "fresh")}
    results = {"comparison": s.run, "settings": settings, "machine": machine(s), "tasks": tasks}
    of = "seeds (Student's t)" if len(s.seeds) > 1 else "pairs (binomial)"
    if s.against:
        others = {name: row for name, row in rows.items() if name != s.against}
        results["differences"] = {name: difference(row, rows[s.against]) for name, row in others.items()}
    results |= {"interval": of, "rows": rows, "paper": paper}
    print_tables(results)
    for path in [Path("out", s.run, "results.json")] + [Path(s.results)] * bool(s.results):
        write_json(path, results)
        print("drawn:", *draw_results(path))
    return results


def print_tables(results):
    """What was found while training, a row a model, the best first; what evaluate.py says; the differences."""
    tasks, rows = results["tasks"], results["rows"]
    scores = tasks + ["macro"] * (len(tasks) > 1)
    table = [["model", "parameters", "state", "rate", "step", "epoch", "loss", *scores, "95 %", "tokens/s"]]
    for name in sorted(rows, key=lambda x: -worth(rows[x]["best"]) if rows[x]["best"] else math.inf):
        size = [name, f"{rows[name]['parameters']:,}", f"{rows[name]['state']:,}"]
        table.append(size + cells(rows[name]["best"], scores))
    for row in results["paper"]:  # whose first experiment is table 2
        if tasks and "2" in row["table"].split(", ") and set(tasks) <= set(row["benchmarks"]):
            own = row["benchmarks"] | {"macro": statistics.fmean(row["benchmarks"][task] for task in tasks)}
            each = [f"{own[task]:.1f}" for task in scores]
            table.append([f"{row['name']} (paper)", f"{row['parameters']:,}", *[""] * 5, *each, "", ""])
    print_columns(table)
    print(
        "state: numbers remembered at the end of a sequence; rate: the best learning rate; step, epoch and loss:"
    )
    print(f"of the best evaluation; 95 %: half the interval over the {results['interval']}\n")
    if examined := {name: row["benchmarks"] for name, row in rows.items() if row.get("benchmarks")}:
        columns = list(next(iter(examined.values())))
        best = {name: [spread(x[task]["score"], x[task]) for task in columns] for name, x in examined.items()}
        print_columns([["per cent right", *columns], *([name, *row] for name, row in best.items())])
    for name, found in results.get("differences", {}).items():
        each = (f"{what} {spread(x['mean'], x, '+')}" for what, x in found.items())
        print(f"{name} less {results['settings']['against']}: {', '.join(each)}")


def print_columns(table):
    """Rows of words, the first word to the left, the others to the right."""
    widths = [max(map(len, column)) + 2 for column in zip(*table)]
    for name, *row in table:
        print(name.ljust(widths[0]) + "".join(map(str.rjust, row, widths[1:])))


def spread(value, x, sign=""):
    """A number and, if it has one, its interval, which says how many digits count."""
    if "interval" not in x:
        return f"{value:{sign}.3f}"
    digits = max(1, 1 - math.floor(math.log10(x["interval"] or 1)))
    return f"{value:{sign}.{digits}f} ± {x['interval']:.{digits}f}"


def cells(best, scores):
    """What the table says of a model's best; the macro score of one task is its score."""
    if not best:
        return ["diverged", *[""] * (5 + len(scores))]
    rate = f"{best['learning_rate']:g}" + ", diverged" * best["diverged"]
    when = [f"{best['step']:,.0f}", f"{best['epoch']:.2f}", f"{best['val_loss']:.3f}"]
    each = [f"{best['scores'].get(task, best.get('macro')):.1f}" for task in scores]
    interval = f"± {best['interval']:.2g}" if "interval" in best else ""
    return [rate, *when, *each, interval, f"{best['tokens_per_second'] or 0:,.0f}"]


if __name__ == "__main__":
    run_script(main)
