"""
A submission to the BabyLM challenge of 2026: a repository with a branch for each checkpoint, and
the file of predictions and scores that the leaderboard takes.

    python -m tools.submit out/RUN                    writes out/RUN/submission
    python -m tools.submit out/RUN --hub=OWNER/NAME   also uploads the models to the Hub

The run must have been trained with --checkpoints=babylm. The final model is the branch `main`,
chck_1M.pt is `chck_1M` and so on, each a folder as tools/export.py writes it. On disk they
have the layout of the Hub's cache, because transformers ignores `revision` for a plain folder:

    AutoModelForCausalLM.from_pretrained(
        "OWNER/NAME", revision="chck_1M", cache_dir="out/RUN/submission/hub",
        local_files_only=True, trust_remote_code=True)

results.json has what the organisers' collate_preds.py makes: for `main` the text that it prefers
in every item of the full benchmarks, for each checkpoint its scores on the fast ones. Whatever has
not been scored yet is scored first, except GLUE, which finetune.py does. A missing benchmark is
None, and is named.

The models may be published. EWoK's texts may not: its authors ask that no item is stored in the
open. So its predictions, which are sentences, are in the file only with --ewok, which then goes to
the leaderboard alone.
"""

import json
import math
import re
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # `python tools/submit.py` would look for our modules beside it
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import evaluate
import finetune
from corpora.benchmarks import read_benchmark
from corpora.download import GLUE
from support.console import run_script
from support.files import damage, fingerprint, read, replacing
from support.settings import UserError, configure, one_of
from tools import export

YEAR = "2026"
SMALL = [*range(1, 10), *range(10, 101, 10)]  # millions of words
TRACKS = {"strict-small": SMALL, "strict": [*SMALL, *range(200, 1001, 100)]}
FULL = {  # the leaderboard's name: the benchmark
    "blimp": "blimp_filtered",
    "blimp_supplement": "supplement",
    "ewok": "ewok_filtered",
    "entity_tracking_filtered": "entity_tracking",
    "comps": "comps",
    "global_piqa": "global_piqa",  # two there, global_piqa_parallel and _nonparallel
    "reading": "reading",
}
FAST = {
    "blimp": "blimp_fast",
    "blimp_supplement": "supplement_fast",
    "ewok": "ewok_fast",
    "entity_tracking_filtered": "entity_tracking_fast",
    "global_piqa": "global_piqa",
    "reading": "reading",
}
SIZES = {  # predictions that the leaderboard expects
    "blimp": 59_875,
    "blimp_supplement": 5218,
    "ewok": 7618,
    "entity_tracking_filtered": 6780,
    "comps": 91_028,
    "global_piqa_parallel": 103,
    "global_piqa_nonparallel": 100,
    "reading": 1726,
}


@dataclass
class Settings:
    run: str = "out/toy"  # a run folder, with chck_1M.pt and so on in it
    to: str = ""  # the folder to write; none: submission in the run's folder
    hub: str = ""  # OWNER/NAME of a repository on the Hugging Face Hub to upload the models to
    track: str = "strict-small"  # strict-small (100M words read) or strict (1000M)
    aoa: str = ""  # the folder AoA_word that BabyLM's own script has written: surprisal.json, aoa_score.json
    ewok: bool = False  # have EWoK's sentences in results.json, which then goes to the leaderboard alone

    def check(self):
        one_of("track", self.track, tuple(TRACKS))
        if self.hub and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.hub):
            raise UserError(f"hub = {self.hub!r} is not OWNER/NAME, such as --hub=me/babyhgrn")


def main(s):
    """Write the submission, and upload its models if the settings say where to; returns its folder."""
    run = Path(s.run)
    folder = Path(s.to) if s.to else run / "submission"
    if (folder / "checkpoint.pt").exists():
        raise UserError(f"to = {s.to!r} is a run, whose results.json would be lost: name a new folder")
    checkpoints = find_checkpoints(run, s.track)
    hub = open_hub(s.hub) if s.hub else None
    name = s.hub or f"nanornn/{run.resolve().name}"
    content = collect_results(checkpoints, s)
    check_sizes(content)
    path = folder / "results.json"
    with replacing(path) as file:
        file.write(json.dumps(content) + "\n")
    snapshots = write_models(checkpoints, folder / "hub", name)
    if hub:
        upload(hub, s.hub, snapshots)
    say_what_goes_where(s, folder, name, content)
    return folder


def find_checkpoints(run, track):
    """
    {"chck_1M": its file, ..., "main": the last checkpoint}; UserError if one is damaged, if all are missing, or if
    the run has read more words than its track allows. Missing ones are named.
    """
    marks = {words: run / f"chck_{words}M.pt" for words in TRACKS[track]}
    there = {words: path for words, path in marks.items() if path.exists()}
    if not there:
        remedy = "train with --checkpoints=babylm, for a million words or more"
        raise UserError(f"{run}: no chck_1M.pt and so on; {remedy}")
    found = {f"chck_{words}M": path for words, path in there.items()} | {"main": run / "checkpoint.pt"}
    for path in found.values():
        problem = damage(path)
        if problem:
            raise UserError(f"{path}: cannot be submitted ({problem})")
    most = max(there)
    millions = most * read(found["main"])[0]["step"] / read(there[most])[0]["step"]
    if millions > 1.01 * max(marks):
        limit = f"{track} allows {max(marks)}M: train for fewer epochs"
        raise UserError(f"{run} has read {millions:.1f}M words, and {limit}, or submit to another track")
    for words in sorted(set(marks) - set(there)):
        why = "lost" if words < millions else f"the run has read {millions:.1f}M words"
        print(f"chck_{words}M.pt is missing ({why}), and so will be its scores")
    return found


# ----------------------------------------------------------------------------------------------------
# The models


def write_models(checkpoints, cache, name):
    """Export each checkpoint into a cache as the Hub's library lays it out -> {revision: folder}."""
    repository, snapshots = cache / f"models--{name.replace('/', '--')}", {}
    for revision, path in checkpoints.items():
        commit = fingerprint(path)[:40]
        snapshots[revision] = repository / "snapshots" / commit
        export.write_folder(path, export.Settings(to=str(snapshots[revision])), name)
        with replacing(repository / "refs" / revision) as file:
            file.write(commit)
    return snapshots


def open_hub(name):
    """The Hub, with the repository made; UserError if there is no network or nobody is logged in."""
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        hub.create_repo(name, exist_ok=True)
    except Exception as error:  # the library's and its HTTP client's are many
        what = str(error).strip().partition("\n")[0]
        remedy = "is there a network? If so, log in with `hf auth login` and a token that may write"
        raise UserError(f"hub = {name!r}: {what}; {remedy}")
    return hub


def upload(hub, name, snapshots):
    """Upload each folder to its branch, the final model last; what is there already is not sent again."""
    try:
        for revision, folder in snapshots.items():
            if revision != "main":
                hub.create_branch(name, branch=revision, exist_ok=True)
            hub.upload_folder(
                repo_id=name, folder_path=folder, revision=revision, commit_message=f"{revision}, by nanoRNN"
            )
            print(f"uploaded: {name}, {revision}")
    except Exception as error:
        what = str(error).strip().partition("\n")[0]
        raise UserError(f"hub = {name!r}: {revision} was not uploaded ({what}); the same command continues")


# ----------------------------------------------------------------------------------------------------
# Predictions and scores


def collect_results(checkpoints, s):
    """The content of results.json, with None for what is not here."""
    full, fast = available(FULL), available(FAST)
    content = predictions_of(checkpoints["main"], full)
    if not s.ewok:
        content["ewok"] = None
    content |= {"aoa_surprisals": read_aoa(s, "surprisal.json"), "aoa": read_aoa(s, "aoa_score.json")}
    glue = finetune.leaderboard_predictions(checkpoints["main"], YEAR)
    content["glue"] = {task: glue[task] for task in sorted(glue)}
    scores = []
    for words in TRACKS[s.track]:  # the leaderboard tells checkpoints by their place in the list
        path = checkpoints.get(f"chck_{words}M")
        scores.append(fast_scores(path, fast) if path else {})
    names = [name for name in SIZES if name != "comps"]  # which has no fast form
    content["fast_eval_results"] = {name: [x.get(name) for x in scores] for name in names}
    return content


def read_aoa(s, name):
    """What BabyLM's script found of the age of acquisition, or None."""
    path = Path(s.aoa, name)
    try:
        return json.loads(path.read_text(encoding="utf-8")) if s.aoa else None
    except (OSError, ValueError) as error:
        raise UserError(f"aoa = {s.aoa!r}: cannot read {path} ({error})") from error


def available(benchmarks):
    """{the leaderboard's name: {subtask: Subtask}} of the benchmarks whose files are here; others are named."""
    found = {}
    for name, task in benchmarks.items():
        try:
            found[name] = read_benchmark(task, YEAR)
        except UserError as error:
            print(f"{name}: left out; {error}")
    return found


def predictions_of(checkpoint, found):
    """{the leaderboard's name: {subtask: {"predictions": [{"id", "pred"}, ...]}} or None} of a checkpoint."""
    content = dict.fromkeys(SIZES)
    results = evaluated(checkpoint, [FULL[name] for name in found])
    for name, subtasks in found.items():
        path = evaluate.beside(checkpoint, f"pairs_{FULL[name]}.jsonl")
        rows = export.read_verdicts(path, subtasks, results[FULL[name]]["score"], YEAR)
        if name == "reading":
            content[name] = {"reading": {"predictions": surprisals(rows["reading"])}}
        elif name == "global_piqa":
            for half, subtask in subtasks.items():
                content[f"global_piqa_{half}"] = by_example(subtask, rows[half])
        else:
            content[name] = {}
            for uid, subtask in subtasks.items():
                preds = [preferred(name, subtask, row) for row in with_records(subtask, rows[uid])]
                numbered = [{"id": f"{uid}_{n}", "pred": pred} for n, pred in enumerate(preds)]
                content[name][uid] = {"predictions": numbered}
    return content


def evaluated(checkpoint, tasks):
    """A checkpoint's results on these benchmarks; what is missing in them is scored first."""
    run = checkpoint.parent if checkpoint.stem == "checkpoint" else checkpoint
    return evaluate.known_or_made(evaluate.Settings(str(run), ",".join(tasks), YEAR))["benchmarks"]


def with_records(subtask, rows):
    """Rows together with the fields of their records."""
    records = {record["i"]: record for record in subtask.records}
    return [records[row["i"]] | row for row in rows]


def preferred(name, subtask, row):
    """The text that a verdict prefers, as the leaderboard compares it."""
    right = likeliest(row, {True: row["good"], False: row["bad"]})
    if subtask.kind == "pairs":
        return row["sentence_good" if right else "sentence_bad"]
    if subtask.kind == "ewok":
        own, other = (2, 1) if row["swapped"] else (1, 2)
        context = row[f"Context{own if right else other}"]
        return f"{context} {row[f'Target{own}']}"
    context, text = row["options"][best_option(row)]
    return f"{context} {text}" if name == "comps" else text


def best_option(row):
    """The number of the option that a verdict prefers."""
    scores = dict(enumerate(row.get("scores", [row["bad"], row["bad"]])))
    return likeliest(row, scores | {row["right"]: row["good"]})


def likeliest(row, scores):
    """The key of the highest score; a tie is broken by a hash of the item's number, as good as at random."""
    best = [key for key, score in scores.items() if score == max(scores.values())]
    return best[zlib.crc32(str(row["i"]).encode()) % len(best)]


def by_example(subtask, rows):
    """GlobalPIQA's predictions, one per example: {its id: {"predictions": [{"id", "pred"}]}}."""
    found = {}
    for row in with_records(subtask, rows):
        pred = f" {row['options'][best_option(row)][1]}"
        found[row["id"]] = {"predictions": [{"id": f"{row['id']}_0", "pred": pred}]}
    return found


def surprisals(rows):
    """The predictions of the reading benchmark, in nats; NaN where there is no word before."""
    found = []
    for row in rows:
        before = math.nan if row["before"] is None else row["before"]
        found.append({"id": row["i"], "pred": row["surprisal"], "prev_pred": before})
    return found


def fast_scores(checkpoint, found):
    """{the leaderboard's name: {subtask: share of its items that are right}} of a checkpoint."""
    results, scores = evaluated(checkpoint, [FAST[name] for name in found]), {}
    for name in found:
        subtasks = results[FAST[name]]["subtasks"]
        shares = {uid: x["score"] / 100 for uid, x in subtasks.items()}
        if name == "reading":
            scores[name] = {"spr": shares["self_paced"], "rt": shares["eye_tracking"]}
        elif name == "global_piqa":
            scores |= {f"global_piqa_{half}": {f"global_piqa_{half}": x} for half, x in shares.items()}
        else:
            scores[name] = shares
    return scores


def check_sizes(content):
    """Refuse predictions that the leaderboard would: of any other number than its own items have."""
    expected = {name: (content[name], n) for name, n in SIZES.items() if content[name] is not None}
    for task, predictions in content["glue"].items():
        expected[task] = {task: predictions}, GLUE[f"{task}.valid.jsonl"]
    for name, (subtasks, n) in expected.items():
        count = sum(len(x["predictions"]) for x in subtasks.values())
        if count != n:
            raise UserError(f"{name}: {count:,} predictions, and the leaderboard expects {n:,}")


def say_what_goes_where(s, folder, name, content):
    """Print what is missing, and which file may go where."""
    missing = [task for task in [*SIZES, "aoa"] if content[task] is None]
    tasks = sorted({file.split(".")[0] for file in GLUE} - set(content["glue"]))
    if missing or tasks:
        print(f"missing from results.json and counted as 0: {', '.join(missing + tasks)}")
    if not s.ewok and any(content["fast_eval_results"]["ewok"]):
        print("ewok: only its fast scores are in results.json; --ewok adds the predictions, which are sentences")
    print(f"{folder / 'hub'}: may be published" + (f"; it is at huggingface.co/{name}" if s.hub else ""))
    print(
        f'  from_pretrained("{name}", revision="chck_1M", cache_dir="{folder / "hub"}", local_files_only=True,'
    )
    print("                  trust_remote_code=True) loads a checkpoint of it")
    only = " and nowhere else: it holds EWoK's sentences" if s.ewok else ""
    print(f"{folder / 'results.json'}: goes to the leaderboard{only}")


if __name__ == "__main__":
    run_script(lambda args: main(configure(Settings(), args, word="run")))
