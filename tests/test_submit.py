"""A submission: what the leaderboard takes is there and nothing else; every branch is its own checkpoint."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import evaluate
from corpora import benchmarks
from model import load
from support.console import UserError
from support.files import read, save
from tools import submit

import huggingface_hub
import pytest
import torch

CHECKPOINTS = [f"chck_{n}M" for n in [*range(1, 10), *range(10, 101, 10)]]  # of strict-small
SECRET = "The secret box is made of tin."


def jsonl(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def archive(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for name, records in files.items():
            file.writestr(name, jsonl(records))


def pairs(n):
    return [
        {"sentence_good": f"The cats see {x}.", "sentence_bad": f"The cats sees {x}."} for x in "abcdef"[:n]
    ]


def write_benchmarks(folder):
    """A few items of every benchmark of 2026, laid out like the real ones."""
    place = folder / "babylm_eval"
    archive(place / "blimp_filtered.zip", {"one.jsonl": pairs(4), "two.jsonl": pairs(3)})
    archive(place / "blimp_fast.zip", {"one.jsonl": pairs(2)})
    for name in ("supplement_filtered", "supplement_fast"):
        (place / name).mkdir()
        (place / name / "hypernym.jsonl").write_text(jsonl(pairs(2)))
    item = {"Context1": SECRET, "Context2": "It is wood.", "Target1": "It rusts.", "Target2": "It burns."}
    item |= {"Domain": "materials", "in_babylm_vocab": True}
    archive(folder / "ewok" / "ewok-core-1.0.zip", {"ewok.jsonl": [item, item]})
    archive(folder / "ewok" / "ewok_fast.zip", {"ewok_fast/materials.jsonl": [item]})
    boxes = []
    for n, options in enumerate([["a.", "b.", "c."], ["nothing.", "b.", "c."], ["c.", "a.", "b."]]):
        boxes.append({"input_prefix": f"Box {n} contains ", "options": options, "numops": n})
    archive(place / "entity_tracking.zip", {"e/regular.jsonl": boxes, "e/ambiref.jsonl": boxes})
    (place / "comps").mkdir()
    concept = {"prefix_acceptable": "A cat", "prefix_unacceptable": "A car", "property_phrase": "has fur."}
    (place / "comps" / "comps_base.jsonl").write_text(jsonl([concept]))
    (place / "global_piqa").mkdir()
    for half, n in (("parallel", 4), ("nonparallel", 2)):
        record = {"prompt": "To cook:", "label": 1, "example_id": f"{half}-7"}
        record |= {f"solution{i}": f"heat it {i}." for i in range(n)}
        (place / "global_piqa" / f"global_piqa_{half}.jsonl").write_text(jsonl([record]))


@pytest.fixture
def run(workplace, monkeypatch):
    """A tiny run with all checkpoints of strict-small, and a few items of every benchmark."""
    data = workplace / "benchmarks"
    data.mkdir()
    write_benchmarks(data)
    monkeypatch.setenv("NANORNN_DATA", str(data))
    for table in ("ALL", "EACH"):
        monkeypatch.setattr(benchmarks, table, {})
    monkeypatch.setattr(submit, "check_sizes", lambda content: None)
    for number, name in enumerate(CHECKPOINTS):
        shutil.copy(f"out/tiny/{'best' if number else 'previous'}.pt", f"out/tiny/{name}.pt")
    return Path("out/tiny")


def verdicts(task):
    return [json.loads(line) for line in Path(f"out/tiny/pairs_{task}.jsonl").read_text().splitlines()]


def test_the_results_file_is_what_the_leaderboard_takes(run, capsys):
    folder = submit.main(submit.Settings(str(run)))
    text = (folder / "results.json").read_text()
    found = json.loads(text)
    keys = "blimp blimp_supplement ewok entity_tracking_filtered comps global_piqa_parallel"
    keys += " global_piqa_nonparallel reading aoa_surprisals aoa glue fast_eval_results"
    assert set(found) == set(keys.split())
    assert found["ewok"] is None and found["reading"] is None and found["glue"] == {}
    assert SECRET not in text and "It rusts." not in text

    for uid in ("one", "two"):
        rows = [row for row in verdicts("blimp_filtered") if row["uid"] == uid]
        wanted = []
        for n, (row, pair) in enumerate(zip(rows, pairs(9), strict=False)):
            side = "sentence_good" if row["good"] >= row["bad"] else "sentence_bad"
            wanted.append({"id": f"{uid}_{n}", "pred": pair[side]})
        assert found["blimp"][uid] == {"predictions": wanted}
    boxes = found["entity_tracking_filtered"]
    assert set(boxes) == {f"{file}_{n}_ops" for file in ("regular", "ambiref") for n in (0, 2)}
    (row,) = [row for row in verdicts("entity_tracking") if row["uid"] == "regular_2_ops"]
    best = ["c.", "a.", "b."][row["scores"].index(max(row["scores"]))]
    assert boxes["regular_2_ops"]["predictions"] == [{"id": "regular_2_ops_0", "pred": best}]
    (comps,) = found["comps"]["base"]["predictions"]
    assert comps["pred"] in ("A cat has fur.", "A car has fur.")
    (piqa,) = found["global_piqa_parallel"]["parallel-7"]["predictions"]
    assert piqa["id"] == "parallel-7_0" and re.fullmatch(r" heat it \d\.", piqa["pred"])

    fast = found["fast_eval_results"]
    assert {name: len(scores) for name, scores in fast.items()} == dict.fromkeys(fast, len(CHECKPOINTS))
    own = json.loads(Path("out/tiny/chck_1M_results.json").read_text())["benchmarks"]["blimp_fast"]
    assert fast["blimp"][0] == {"one": own["score"] / 100} and fast["reading"] == [None] * 19
    said = capsys.readouterr().out
    assert "missing from results.json and counted as 0: ewok, reading, aoa, boolq," in said
    assert "may be published" in said


def test_ewoks_sentences_are_in_the_file_only_when_asked_for(run, capsys):
    folder = submit.main(submit.Settings(str(run), ewok=True))
    found = json.loads((folder / "results.json").read_text())["ewok"]["materials"]["predictions"]
    contexts = {False: (SECRET, "It is wood."), True: ("It is wood.", SECRET)}
    assert len(found) == 4
    for x, row in zip(found, verdicts("ewok_filtered"), strict=True):
        context = contexts[row["swapped"]][0 if row["good"] >= row["bad"] else 1]
        assert x["pred"] == f"{context} {'It burns.' if row['swapped'] else 'It rusts.'}"
    assert "to the leaderboard and nowhere else" in capsys.readouterr().out
    for path in (folder / "hub").rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes()


LOAD = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer

options = dict(cache_dir=sys.argv[1], local_files_only=True, trust_remote_code=True)
tokens, logits = torch.arange(3, 40)[None], {}
for revision in ("chck_1M", "chck_100M", "main"):
    model = AutoModelForCausalLM.from_pretrained("nanornn/tiny", revision=revision, **options)
    logits[revision] = model(tokens).logits.detach()
tokenizer = AutoTokenizer.from_pretrained("nanornn/tiny", revision="chck_2M", **options)
assert tokenizer("A dog").input_ids[0] == 1
torch.save(logits, "logits.pt")
"""


def test_each_revision_is_its_own_checkpoint(run, monkeypatch, tmp_path):
    """Loaded by transformers in a process of its own, without a network, from what lies as in the Hub's cache."""
    monkeypatch.setattr(submit, "available", lambda benchmarks: {})
    folder = submit.main(submit.Settings(str(run)))
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", LOAD, str(folder / "hub")]
    subprocess.run(command, env=environment, check=True)
    theirs = torch.load("logits.pt")
    for revision, file in {"chck_1M": "previous", "chck_100M": "best", "main": "checkpoint"}.items():
        with torch.no_grad():
            ours = load(f"out/tiny/{file}.pt", kernels="loop")[0](torch.arange(3, 40)[None])[0]
        assert torch.allclose(theirs[revision], ours, atol=1e-5)
    assert not torch.equal(theirs["chck_1M"], theirs["main"])
    repository = folder / "hub/models--nanornn--tiny"
    snapshot = repository / "snapshots" / (repository / "refs/main").read_text()
    card = (snapshot / "README.md").read_text()
    assert "license: mit" in card and len(card) > 400 and "nanornn/tiny" in card


class FakeHub:
    """What is called of huggingface_hub.HfApi, without a network; `fails` uploads end in an error first."""

    sent, branches, fails = {}, [], 0

    def create_repo(self, name, exist_ok):
        if name == "nobody/x":
            raise RuntimeError("401 Unauthorized")

    def create_branch(self, name, branch, exist_ok):
        self.branches.append(branch)

    def upload_folder(self, repo_id, folder_path, revision, commit_message):
        if FakeHub.fails:
            FakeHub.fails -= 1
            raise ConnectionError("no route to host")
        config = json.loads((Path(folder_path) / "config.json").read_text())
        self.sent[revision] = repo_id, config["nanornn_checkpoint"]


def test_every_checkpoint_becomes_a_branch_on_the_hub(run, monkeypatch):
    monkeypatch.setattr(submit, "available", lambda benchmarks: {})
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    FakeHub.fails = 1
    with pytest.raises(
        UserError, match="chck_1M was not uploaded .no route to host.*the same command continues"
    ):
        submit.main(submit.Settings(str(run), hub="me/babyhgrn"))
    submit.main(submit.Settings(str(run), hub="me/babyhgrn"))
    assert list(FakeHub.sent) == [*CHECKPOINTS, "main"]  # the final model last
    assert set(FakeHub.branches) == set(CHECKPOINTS)
    digests = {name: evaluate.fingerprint(run / f"{name}.pt") for name in CHECKPOINTS}
    digests["main"] = evaluate.fingerprint(run / "checkpoint.pt")
    assert FakeHub.sent == {name: ("me/babyhgrn", digest) for name, digest in digests.items()}


def test_what_cannot_be_submitted_is_said_in_a_line(run, monkeypatch, refusal):
    assert "OWNER/NAME" in refusal(submit.Settings(str(run), hub="babyhgrn").check)
    assert "is a run, whose results.json" in refusal(submit.main, submit.Settings(str(run), to=str(run)))
    assert "cannot read none" in refusal(submit.main, submit.Settings(str(run), aoa="none"))
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    assert "log in" in refusal(submit.main, submit.Settings(str(run), hub="nobody/x"))
    whole = (run / "chck_3M.pt").read_bytes()
    (run / "chck_3M.pt").write_bytes(whole[:-9])
    assert "chck_3M.pt: cannot be submitted" in refusal(submit.main, submit.Settings(str(run)))
    for name in CHECKPOINTS:
        (run / f"{name}.pt").unlink()
    assert "--checkpoints=babylm" in refusal(submit.main, submit.Settings(str(run)))
    assert not (run / "submission").exists()


def test_sizes_are_those_that_the_leaderboard_expects():
    rows = {"predictions": [{"id": "x", "pred": "y"}]}
    empty = dict.fromkeys(submit.SIZES) | {"glue": {}}
    submit.check_sizes(empty)
    with pytest.raises(UserError, match="reading: 1 predictions, and the leaderboard expects 1,726"):
        submit.check_sizes(empty | {"reading": {"reading": rows}})
    with pytest.raises(UserError, match="rte: 1 predictions, and the leaderboard expects 139"):
        submit.check_sizes(empty | {"glue": {"rte": rows}})
    whole = {"predictions": [{"id": f"reading_{n}", "pred": math.nan} for n in range(1726)]}
    submit.check_sizes(empty | {"reading": {"reading": whole}})


def test_a_missing_checkpoint_leaves_its_place_in_the_list(run, capsys):
    """The leaderboard tells checkpoints by their place: others do not move up."""
    (run / "chck_2M.pt").unlink()
    for name in CHECKPOINTS[-2:]:  # of 90 and 100 million words
        (run / f"{name}.pt").unlink()
    shutil.copy("out/tiny/checkpoint.pt", run / "chck_80M.pt")
    found = json.loads((submit.main(submit.Settings(str(run))) / "results.json").read_text())
    scores = found["fast_eval_results"]["blimp"]
    assert [x is None for x in scores] == [number in (1, 17, 18) for number in range(len(CHECKPOINTS))]
    said = capsys.readouterr().out
    assert "chck_2M.pt is missing (lost), and so will be its scores\n" in said
    assert "chck_90M.pt is missing (the run has read 80.0M words), and so will be its scores\n" in said


def test_a_run_that_has_read_more_words_than_its_track_allows_is_refused(run, refusal):
    """By the steps of its last mark: half as many again after 100M words are 150M."""
    state, _ = read(run / "checkpoint.pt")
    save(state | {"step": 20}, run / "chck_100M.pt")
    save(state | {"step": 30}, run / "checkpoint.pt")
    said = refusal(submit.find_checkpoints, run, "strict-small")
    assert "has read 150.0M words, and strict-small allows 100M" in said
    assert "main" in submit.find_checkpoints(run, "strict")


def test_what_the_organisers_found_of_the_age_of_acquisition_is_handed_in(run, tmp_path):
    (tmp_path / "surprisal.json").write_text('{"results": [1]}')
    (tmp_path / "aoa_score.json").write_text('{"score": 2}')
    checkpoints = submit.find_checkpoints(run, "strict-small")
    content = submit.collect_results(checkpoints, submit.Settings(aoa=str(tmp_path)))
    assert content["aoa_surprisals"] == {"results": [1]} and content["aoa"] == {"score": 2}


def test_ties_are_broken_evenly_and_always_alike():
    rows = [{"i": i, "good": -1.0, "bad": -1.0, "right": 1} for i in range(400)]
    chosen = [submit.best_option(row) for row in rows]
    assert 160 < sum(chosen) < 240 and chosen == [submit.best_option(row) for row in rows]
    assert submit.best_option(rows[0] | {"bad": -2.0}) == 1 and submit.best_option(rows[0] | {"bad": 0.0}) == 0
    three = [submit.best_option(row | {"scores": [-1.0, -1.0, -3.0, -1.0]}) for row in rows]
    assert {three.count(n) > 100 for n in (0, 1, 3)} == {True} and 2 not in three
