"""Settings: the last word wins, nothing is executed, and every mistake is one line that says what to do."""

import gzip
import os
import random
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from functools import partial
from pathlib import Path

import compare
import data
import distill
import evaluate
import finetune
import sample
import train
from conftest import TINY
from model import MIXERS
from support import console
from support.settings import UserError, configure, explain
from tools import export, page

import pytest
import torch

ROOT = Path(train.__file__).parent
SCRIPTS = {  # name -> module, the settings file that it takes if none is given
    "train.py": (train, "toy.py"),
    "distill.py": (distill, "distill_toy.py"),
    "data.py": (data, ""),
    "evaluate.py": (evaluate, ""),
    "finetune.py": (finetune, ""),
    "sample.py": (sample, ""),
}


def read(*args):
    return configure(train.Settings(), list(args))


def test_the_last_word_wins(tmp_path):
    """Defaults, then the file, then the flags in their order."""
    file = tmp_path / "small.py"
    file.write_text("n_layer = 3\nd_model = 64  # a comment\n\nseed = 1\n")
    s = read("--seed=7", str(file), "--seed=8", "--d_model=32")
    assert (s.n_layer, s.d_model, s.seed, s.n_head) == (3, 32, 8, train.Settings().n_head)


def test_the_run_is_named_after_the_file_unless_it_has_a_name(tmp_path):
    file = tmp_path / "small.py"
    file.write_text("n_layer = 3\n")
    assert read(str(file)).run == "small"
    assert read(str(file), "--run=other").run == "other"


@pytest.mark.parametrize(
    "flag, value",
    [
        ("--learning_rate=1e-3", 0.001),
        ("--learning_rate=1", 1.0),
        ("--weight_decay=.5", 0.5),
        ("--max_steps=1_000", 1000),
        ("--run=my run, a=b", "my run, a=b"),
        ("--corpus=3", "3"),
        ("--eval_pairs=", ""),
        ("--mixer=hgrn2 hgrn2 attention", "hgrn2 hgrn2 attention"),
        ("--fresh", True),
        ("--fresh=False", False),
        ("--fresh=true", True),
        ("-n_layer=4", 4),
    ],
)
def test_flags_are_read_as_the_type_of_the_default(flag, value):
    name = re.match(r"-+(\w+)", flag)[1]
    found = getattr(read(flag), name)
    assert found == value and type(found) is type(value)


def test_a_settings_file_may_have_spaces_and_equals_signs_in_its_path(tmp_path):
    file = tmp_path / "my settings" / "a=b.py"
    file.parent.mkdir()
    file.write_text("n_layer = 3\n")
    assert read(str(file)).n_layer == 3


def test_a_copied_run_is_a_run_of_its_own(workplace):
    shutil.copytree("out/tiny", "out/my copy")
    assert configure(train.Settings(), ["out/my copy"]).run == "my copy"


@pytest.mark.parametrize(
    "text, said",
    [
        ("n_layer = 2\nn_layer = 3\n", "x.py:2: n_layer is there twice; leave one out"),
        ("d_model = n_layer = 3\n", "x.py:1: expected `name = literal`"),
        ("models = {}\n", "x.py:1: there is no setting 'models'; that is one of compare.py's"),
        ("alpha = 0.5\n", "x.py:1: there is no setting 'alpha'; that is one of distill.py's"),
        (f"learning_rate = 1{'0' * 400}\n", "x.py:1: learning_rate = 1"),
    ],
)
def test_what_would_be_lost_silently_is_refused(text, said, refusal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x.py").write_text(text)
    assert said in refusal(configure, train.Settings(), ["x.py"])


def test_a_run_folder_stands_for_the_settings_it_was_made_with(workplace, tiny):
    assert read("out/tiny") == tiny()


FILES = [
    file
    for file in sorted((ROOT / "config").glob("[!_]*.py"))
    if not re.match("(compare|distill|babyhgrn)_", file.stem)
]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_file_in_config_works(file):
    """Those of compare.py and distill.py have tests in test_compare.py and test_distill.py."""
    assert read(str(file)).run == file.stem


@pytest.mark.parametrize(
    "code",
    [
        "import os",
        "open('trace', 'w')",
        "run = open('trace', 'w').name",
        "n_layer = __import__('os').system('touch trace')",
        "run = f\"{open('trace', 'w')}\"",
        "n_layer = [open('trace', 'w') for _ in 'a'][0]",
        "n_layer: int = open('trace', 'w')",
        "if open('trace', 'w'):\n    n_layer = 3",
        "n_layer = 3 +",
        "run = 'x\0y'",
    ],
)
def test_a_settings_file_is_read_and_never_executed(code, refusal, tmp_path, monkeypatch):
    """What is not `name = literal` is refused with its file and line, and leaves no trace."""
    monkeypatch.chdir(tmp_path)
    Path("bad.py").write_text("seed = 1\n" + code + "\n")
    said = refusal(read, "bad.py")
    assert said.startswith("bad.py:") and said.count("\n") == 1
    assert not Path("trace").exists()


def test_a_flag_is_never_executed(refusal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refusal(read, "--n_layer=open('trace', 'w')")
    assert not Path("trace").exists()


# ----------------------------------------------------------------------------------------------------
# The battery: whole commands that cannot work -> words of the one line that they end with

WRONG = """
train.py tiny.py --n_layers=3                   -> --n_layers: there is no setting 'n_layers'; did you mean
train.py tiny.py --zzz                          -> --zzz: there is no setting 'zzz'; --help=all lists all
train.py tiny.py --                             -> --help=all lists all
train.py tiny.py --=3                           -> --help=all lists all
train.py tiny.py --lerning_rate=1               -> did you mean 'learning_rate'
train.py tiny.py --LR=1                         -> did you mean 'learning_rate'
train.py tiny.py --lr=1e-3                      -> did you mean 'learning_rate'
train.py tiny.py --bs=8                         -> did you mean 'batch_size'
train.py tiny.py --heads=8                      -> did you mean 'n_head'
train.py tiny.py --steps=8                      -> did you mean 'max_steps'
train.py tiny.py --eval_interval=8              -> did you mean 'eval_every'
train.py tiny.py --D-MODEL=32                   -> did you mean 'd_model'
train.py tiny.py --n_layer 3                    -> --n_layer has no value: write --n_layer=3
train.py tiny.py --mixer mingru                 -> --mixer has no value: write --mixer=mingru
train.py tiny.py -n_layer 3                     -> write --n_layer=3
train.py tiny.py --n_layer                      -> write --n_layer=6
train.py tiny.py n_layer=3                      -> n_layer=3: did you mean --n_layer=3?
train.py tiny.py n_layer 3                      -> n_layer: did you mean --n_layer=VALUE?
train.py tiny.py lr=1e-3                        -> lr=1e-3: did you mean --learning_rate=1e-3?
train.py tiny.py --fresh True                   -> --fresh has no value: write --fresh=True
train.py out/tiny/best.pt                       -> to train as that run was, name its folder, out/tiny
train.py tiny.py –n_layer=3                     -> did you mean --n_layer=3?
train.py config/toi.py                          -> did you mean config/toy.py?
train.py toy                                    -> did you mean config/toy.py?
train.py other_version.json                     -> no setting 'n_layers'; the file is of another version of
train.py -n_layer=x tiny.py                     -> n_layer = 'x' is not of type int, like 6
train.py tiny.py --n_layer=                     -> n_layer = '' is not of type int
train.py tiny.py --n_layer=1e3                  -> n_layer = 1000.0 is not of type int
train.py tiny.py --seed=1e-3                    -> seed = 0.001 is not of type int
train.py tiny.py --batch_size=16.0              -> batch_size = 16.0 is not of type int
train.py tiny.py --n_layer=None                 -> n_layer = None is not of type int
train.py tiny.py --n_layer=True                 -> n_layer = True is not of type int
train.py tiny.py --n_layer=[3]                  -> n_layer = [3] is not of type int
train.py tiny.py --n_layer=3 --n_layer=x        -> n_layer = 'x' is not of type int
train.py tiny.py --d_model=32 --d_model=15      -> n_head = 2 does not divide d_model = 15
train.py tiny.py --fresh=yes                    -> fresh = 'yes' is not of type bool, like False
train.py tiny.py --fresh=1                      -> fresh = 1 is not of type bool
train.py tiny.py --learning_rate=fast           -> learning_rate = 'fast' is not of type float, like 0.001
train.py tiny.py --learning_rate=nan            -> learning_rate = 'nan' is not of type float
train.py tiny.py --learning_rate=1e999          -> learning_rate = inf: must be a number, at least 0
train.py tiny.py --learning_rate=-1e-3          -> learning_rate = -0.001: must be a number, at least 0
train.py tiny.py --min_lr=1                     -> min_lr = 1.0 is above learning_rate = 0.01
train.py tiny.py --n_layer=-1                   -> n_layer = -1: must be a number, at least 1
train.py tiny.py --n_head=3                     -> n_head = 3 does not divide d_model = 16
train.py tiny.py --mixer=attention --position=rope --n_head=16 -> needs an even d_model / n_head
train.py tiny.py --mixer=hgrm2                  -> mixer = 'hgrm2': did you mean 'hgrn2'?
train.py tiny.py --mixer=HGRN2                  -> mixer = 'HGRN2': did you mean 'hgrn2'?
train.py tiny.py --mixer=min-GRU                -> mixer = 'min-GRU': did you mean 'mingru'?
train.py tiny.py --mixer=transformer            -> mixer = 'transformer': did you mean 'attention'?
train.py tiny.py --mixer=                       -> mixer = '': possible: hgrn2
train.py tiny.py --norm=RMS_norm                -> did you mean 'rmsnorm'?
train.py tiny.py "--mixer=hgrn2 hgrn2 atention" -> mixer = 'atention': did you mean 'attention'?
train.py tiny.py "--mixer= "                    -> mixer = '': possible: hgrn2, mingru, minlstm, attention
train.py tiny.py "--mlp=gelu nope"              -> mlp = 'nope': did you mean 'none'? Possible
train.py tiny.py --norm=batchnorm               -> norm = 'batchnorm': possible: rmsnorm, layernorm
train.py tiny.py --position=sin                 -> position = 'sin': possible: none, rope, learned
train.py tiny.py --conv=-1                      -> conv = -1: must be a number, at least 0
train.py tiny.py --dropout=1                    -> dropout = 1.0: must be below 1
train.py tiny.py --beta2=1                      -> must be below 1
train.py tiny.py --vocab_size=65537             -> at most 65536
train.py tiny.py --vocab_size=299               -> set vocab_size = 300 or more
train.py tiny.py --context=100000               -> tokens are not enough for context = 100000; lower it
train.py tiny.py --accumulate=7                 -> batch_size = 16 is not a multiple of accumulate x processes = 7
train.py tiny.py --epochs=0 --max_steps=0       -> max_steps = 0 and epochs = 0: nothing to do; set one of them
train.py tiny.py --epochs=1.5                   -> epochs = 1.5 is not of type int
train.py tiny.py --log_every=0                  -> log_every = 0: must be a number, at least 1
train.py tiny.py --eval_every=-1                -> eval_every = -1: must be a number, at least 0
train.py tiny.py --seed=4294967296              -> must be below 2^32
train.py tiny.py --schedule=cos                 -> schedule = 'cos': did you mean 'cosine'?
train.py tiny.py --optimizer=sgd                -> optimizer = 'sgd': possible: adamw, adam
train.py tiny.py --dtype=fp16                   -> dtype = 'fp16': did you mean 'float16'?
train.py tiny.py --compile=True                 -> compile = 'True': possible: auto, yes, no
train.py tiny.py --checkpoints=babylmm          -> checkpoints = 'babylmm': did you mean 'babylm'?
train.py tiny.py --kernels=lop                  -> did you mean 'loop'
train.py tiny.py --device=gpu                   -> device = 'gpu': can be auto, cuda, cuda:1 and so on, mps or cpu
train.py tiny.py --kernels=triton               -> kernels = 'triton': needs Triton and an NVIDIA GPU
train.py tiny.py --best_by=pairs                -> best_by = 'pairs', but eval_pairs names none
train.py tiny.py --eval_pairs=toyladn           -> eval_pairs = 'toyladn': did you mean 'toyland'?
train.py tiny.py --eval_pairs=missing.jsonl     -> eval_pairs = 'missing.jsonl': possible: toyland, toyland_ewok
train.py tiny.py --eval_pairs=toyland,          -> eval_pairs = '': possible: toyland, toyland_ewok
train.py tiny.py --eval_pairs=blimp             -> blimp: put it at data/blimp/blimp.zip
train.py tiny.py --corpus=nosuch                -> make it with: python data.py text nosuch FILES...
train.py tiny.py --corpus=tini                  -> did you mean 'tiny'? Or make it with: python data.py text
train.py tiny.py --corpus=Shakespear            -> did you mean 'shakespeare'?
train.py tiny.py --corpus=                      -> corpus = '' cannot name a folder under data/
train.py tiny.py --corpus=../data/tiny          -> corpus = '../data/tiny' cannot name a folder under data/
train.py tiny.py --corpus=tiny/../tiny          -> use letters, digits, - and _
train.py tiny.py --run=                         -> run = '' cannot name a folder
train.py tiny.py --run=..                       -> run = '..' cannot name a folder
train.py tiny.py --run=/elsewhere/x             -> cannot name a folder
train.py tiny.py "--run=a:b = c"                -> run = 'a:b = c' cannot name a folder
train.py tiny.py --n_layer=3                    -> made with other settings (n_layer 2 then, 3 now): set them back
train.py tiny.py stray                          -> stray: cannot read these settings (No such file or directory)
train.py "no such/a=b.py"                       -> no such/a=b.py: cannot read these settings
train.py ""                                     -> cannot read these settings
train.py folder                                 -> folder/settings.json: cannot read these settings
train.py LONG_NAME                              -> : File name too long
train.py binary.py                              -> binary.py: cannot read these settings (byte 128 is not UTF-8)
train.py utf16.py                               -> utf16.py: cannot read these settings (byte 0 is not UTF-8)
train.py latin1.py                              -> latin1.py: cannot read these settings (byte 2 is not UTF-8)
train.py nul.py                                 -> nul.py:1: expected lines `name = literal`
train.py deep.py                                -> deep.py:1: expected
train.py minus.py                               -> minus.py:1: expected
train.py deep.json                              -> deep.json: expected settings as JSON
train.py list.json                              -> list.json: expected settings as JSON
train.py cut.json                               -> cut.json: expected settings as JSON
train.py text.txt                               -> text.txt:1: expected lines `name = literal` (invalid syntax)
train.py sample_settings.py                     -> sample_settings.py:2: there is no setting 'temperature'
train.py own_base.py                            -> own_base.py:1: base = 'own_base.py' is not another settings
train.py round_base.py                          -> own_round.py:1: base = 'round_base.py' is not another
train.py no_base.py                             -> no_base.py:1: base = 3 is not another settings file
train.py two_at_once.py                         -> two_at_once.py:1: expected `name = literal`
train.py wrong_type.py                          -> wrong_type.py:1: n_layer = '3' is not of type int, like 6
data.py                                         -> what to prepare? python data.py text | toy | shakespeare
data.py text mine                               -> text mine: write python data.py text NAME FILES...
data.py txet mine text.txt                      -> did you mean 'text'?
data.py toy text.txt                            -> toy text.txt: write python data.py toy
data.py toy --vocab_size=300                    -> toy is always made the same way: no settings, please
data.py shakespeare --val_share=0.2             -> shakespeare is always made the same way
data.py shakespeare text.txt                    -> text.txt: not tiny Shakespeare, 1,115,394 bytes of SHA-256
data.py shakespeare missing.txt                 -> by hand and put it at data/tinyshakespeare.txt
data.py shakespeare folder                      -> folder: cannot be read (Is a directory)
data.py shakespeare cut.gz                      -> cut.gz: cannot be read (Compressed file ended
data.py text ../mine text.txt                   -> corpus = '../mine' cannot name a folder under data/
data.py text a/b text.txt                       -> use letters, digits, - and _
data.py text "" text.txt                        -> corpus = '' cannot name a folder
data.py text mine missing.txt                   -> missing.txt: there is no such text file
data.py text mine "*.nothing"                   -> *.nothing: there is no such text file
data.py text mine folder                        -> folder: a folder, not a text file
data.py text mine ""                            -> '': there is no such text file
data.py text mine LONG_NAME                     -> there is no such text file
data.py text mine text.txt --val=missing.txt    -> missing.txt: there is no such text file
data.py text mine text.txt --val=./text.txt     -> val = './text.txt': these are all the files there are
data.py text mine text.txt --val text.txt       -> --val has no value: write --val=
data.py text mine text.txt --vocab=300          -> there is no setting 'vocab'; did you mean 'vocab_size'?
data.py text mine text.txt --vocab_size=259     -> vocab_size = 259: must be a number, at least 260
data.py text mine text.txt --vocab_size=70000   -> at most 65536
data.py text mine text.txt --val_share=0        -> the share of documents to validate on, above 0 and below 1
data.py text mine text.txt --val_share=10       -> the share of documents to validate on, above 0 and below 1
data.py text mine cut.gz                        -> cut.gz: cannot be read (Compressed file ended
data.py text mine not.gz                        -> not.gz: cannot be read (Not a gzipped file
data.py text mine utf16.txt                     -> utf16.txt: cannot be read (this is UTF-16, not UTF-8 text
data.py text mine empty.txt                     -> data/mine: no text to train on; are the files empty?
data.py text mine line.txt --val_share=1e-9     -> too little text to keep some for validation; name more
evaluate.py out/none                            -> out/none: no checkpoint here; make one: python train.py
evaluate.py ""                                  -> no checkpoint here
evaluate.py out/tiny toyland                    -> toyland: did you mean --tasks=toyland?
evaluate.py run=out/tiny                        -> run=out/tiny: did you mean --run=out/tiny?
evaluate.py out/none out/other                  -> no runs among these
evaluate.py LONG_NAME                           -> File name too long
evaluate.py out/tiny --task=toyland             -> there is no setting 'task'; did you mean 'tasks'?
evaluate.py out/tiny --tasks=blmp               -> tasks = 'blmp': did you mean 'blimp'?
evaluate.py out/tiny --tasks=missing.jsonl      -> tasks = 'missing.jsonl': possible: toyland, toyland_ewok
evaluate.py out/tiny --tasks=,                  -> tasks = '': possible: toyland
evaluate.py out/tiny --tasks=blimp              -> blimp: put it at data/blimp/blimp.zip, or set
evaluate.py out/tiny --tasks=BLiMP              -> tasks = 'BLiMP': did you mean 'blimp'?
evaluate.py tiny                                -> tiny: there is no such run; did you mean out/tiny?
evaluate.py out/tini                            -> did you mean out/tiny?
evaluate.py out                                 -> out: a folder of runs; name one of them, such as out/tiny
evaluate.py out/tiny/log.jsonl                  -> not a checkpoint; name the run's folder, out/tiny, or a .pt
evaluate.py pairs.jsonl                         -> pairs.jsonl: not a checkpoint; name the run's folder
evaluate.py out/tiny --tasks=folder             -> folder: no .jsonl files with records in it
evaluate.py out/tiny --tasks=text.txt           -> text.txt:1: not a record of BLiMP, EWoK or BEAR
evaluate.py out/tiny --tasks=half.jsonl         -> half.jsonl:1: not a record of BLiMP, EWoK or BEAR
evaluate.py out/tiny --tasks=latin1.jsonl       -> latin1.jsonl: cannot be read (byte 19 is not UTF-8)
evaluate.py out/tiny --tasks=pairs.jsonl,cut.gz -> cut.gz: cannot be read
evaluate.py out/tiny --tasks=none.zip           -> none.zip: cannot be read (File is not a zip file)
evaluate.py out/tiny --tasks=pairs.jsonl --results=folder -> results = 'folder' is a folder: name a file in it
evaluate.py out/tiny --tasks=pairs.jsonl,./pairs.jsonl -> two of them would be 'pairs' in the results; rename
evaluate.py out/tiny --protocol=2023            -> ossible: 2024, 2025
evaluate.py out/tiny --protocol 2025            -> --protocol has no value: write --protocol=2025
evaluate.py out/tiny --dtype=float16            -> ossible: float32, bfloat16, float64
evaluate.py out/tiny --kernels=fast             -> kernels = 'fast': possible: auto, loop, torch, triton
evaluate.py out/tiny --device=cuda:x            -> device = 'cuda:x': can be
sample.py out/none                              -> no checkpoint here
sample.py out/tiny The cat                      -> out/tiny The cat: one at a time, please
sample.py out/tiny --prompt "The cat"           -> --prompt has no value: write --prompt='The cat'
sample.py out/tiny --samples=-1                 -> samples = -1: must be a number, at least 0
sample.py out/tiny --max_new_tokens=9           -> did you mean 'tokens'
sample.py out/tiny --promt=x                    -> did you mean 'prompt'?
sample.py out/tiny --tokens=0                   -> tokens = 0: must be a number, at least 1
sample.py out/tiny --tokens=1e3                 -> tokens = 1000.0 is not of type int
sample.py out/tiny --temperature=-1             -> temperature = -1.0: must be a number, at least 0
sample.py out/tiny --temperature=1e999          -> temperature = inf: must be a number
sample.py out/tiny --top_k=-1                   -> top_k = -1: must be a number, at least 0
sample.py out/tiny --top_p=0                    -> top_p = 0.0: must be above 0 and at most 1
sample.py out/tiny --seed=99999999999999999999  -> must be below 2^32
-m tools.figures                                -> of what? python -m tools.figures out/toy
-m tools.figures out/none                       -> out/none: neither a run folder with a log.jsonl nor
-m tools.figures folder                         -> folder: neither a run folder
-m tools.figures text.txt                       -> text.txt: neither a run folder
-m tools.figures --dpi=300                      -> neither a run folder
-m tools.figures list.json                      -> list.json: not a result file of evaluate.py
-m tools.figures cut.json                       -> cut.json: not a result file of evaluate.py
-m tools.figures utf16.json                     -> utf16.json: not a result file of evaluate.py
-m tools.bench train --models=llamma            -> models = 'llamma':
-m tools.bench score --pairs=blmip              -> benchmark = 'blmip': did you mean 'blimp'?
-m corpora.toyland                              -> toyland.py takes a folder, --print=200 or --check, not nothing
-m corpora.toyland ""                           -> toyland.py takes a folder
-m corpora.toyland a b                          -> toyland.py takes a folder
-m corpora.toyland --print=x                    -> toyland.py takes a folder
-m corpora.toyland --chek                       -> toyland.py takes a folder
-m corpora.toyland --words=5 x                  -> toyland.py takes a folder
-m corpora.toyland text.txt                     -> text.txt
"""
WRONG = [line.rpartition(" -> ") for line in WRONG.strip().splitlines()]

ODD_FILES = {
    "sample_settings.py": b"\xef\xbb\xbfseed = 1\ntemperature = 0.5\n",  # a byte order mark does no harm
    "two_at_once.py": b"n_layer, d_model = 3, 4\n",
    "own_base.py": b"base = 'own_base.py'\n",
    "round_base.py": b"base = 'own_round.py'\n",
    "own_round.py": b"base = 'round_base.py'\n",
    "no_base.py": b"base = 3\n",
    "wrong_type.py": b"n_layer = '3'\n",
    "utf16.py": "n_layer = 3\n".encode("utf-16"),
    "latin1.py": b"# \xe9\nn_layer = 3\n",
    "binary.py": bytes(range(256)),
    "nul.py": b"n_layer = 3\0\n",
    "deep.py": b"n_layer = " + b"(" * 5000 + b"3" + b")" * 5000,
    "minus.py": b"n_layer = " + b"-" * 3000 + b"3",
    "deep.json": b"[" * 100_000,
    "list.json": b"[3]",
    "other_version.json": b'{"n_layers": 3, "d_model": 16}',
    "cut.json": b'{"n_layer": ',
    "utf16.json": '{"benchmarks": {}, "training": []}'.encode("utf-16"),
    "pairs.jsonl": b'{"sentence_good": "The cat sees the dog.", "sentence_bad": "The cat see the dog."}\n',
    "half.jsonl": b'{"sentence_good": "The cat sees the dog."}\n',
    "latin1.jsonl": b'{"sentence_good": "\xe9", "sentence_bad": "x"}\n',
    "none.zip": b"PK, no more",
    "cut.gz": gzip.compress(b"some words\n" * 1000)[:-20],
    "not.gz": b"some words\n",
    "utf16.txt": "some words\n".encode("utf-16"),
    "empty.txt": b"",
    "line.txt": b"a single line\n",
}


@pytest.fixture(scope="module")
def odd_place(prepared, tmp_path_factory):
    """A prepared folder with files in it that no script can use."""
    folder = tmp_path_factory.mktemp("odd") / "place"
    shutil.copytree(prepared, folder)
    (folder / "folder").mkdir()
    for name, content in ODD_FILES.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def end_of(odd_place, monkeypatch, capsys):
    """end_of("train.py --n_layer 3") -> status, stdout, stderr of the script, run in this process."""
    monkeypatch.chdir(odd_place)
    monkeypatch.delenv("NANORNN_DATA", raising=False)

    def run(command):
        script, *args = shlex.split(command.replace("LONG_NAME", "x" * 5000))
        if script == "-m":
            script = args.pop(0).replace(".", "/") + ".py"
        monkeypatch.setattr(sys, "argv", [script, *args])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        capsys.readouterr()
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return status, *capsys.readouterr()

    return run


def files(folder):
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def shortcomings(wrong, ends, folder):
    """Which of the commands do not end as they should: status 2, one line that helps, nothing written."""
    for command, _, words in wrong:
        before = files(folder)
        status, out, err = ends(command)
        if (status, out, err.count("\n")) != (2, "", 1) or words not in err or files(folder) != before:
            yield command, status, out[:500], err[:500]


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_lists_every_setting_with_its_value_and_meaning(name, end_of):
    status, said, complaint = end_of(f"{name} --help=all")
    assert (status, complaint) == (0, "")
    module, file = SCRIPTS[name]
    settings = configure(module.Settings(), [str(ROOT / "config" / file)]) if file else module.Settings()
    for field in fields(settings):
        value = re.escape(str(getattr(settings, field.name)))
        assert re.search(rf"(?m)^  --{field.name}={value}(?: +|\n {{28}})\S", said), field.name


def test_each_setting_of_a_comparison_has_a_meaning():
    settings = compare.Settings()
    for name, lines in explain(settings).items():
        assert " ".join(lines).strip() != f"--{name}={getattr(settings, name)}"


def test_help_is_given_of_several_runs_too(end_of):
    said = end_of("evaluate.py out/tiny out/tiny -h")[1]
    assert "Settings:" in said


@pytest.mark.parametrize("name", [*SCRIPTS, "compare.py"])
def test_help_fits_a_screen(name, end_of):
    """Where all settings do not, those that the file names are explained, and the others listed."""
    lines = end_of(f"{name} --help")[1].splitlines()
    assert max(map(len, lines)) <= 100 and len(lines) <= 40


def test_help_shows_the_values_of_the_file_and_flags_and_what_else_there_is(end_of):
    said = " ".join(end_of("train.py tiny.py --n_layer=3 --mixer=hgrn2 --help")[1].split())
    assert "--n_layer=3 blocks" in said and "--d_model=16 width" in said and "--run=tiny" in said
    assert f"possible: {', '.join(MIXERS)} --n_layer" in said
    assert "--help=all explains: --" in said and "--expand=1 " in said
    assert "possible: toyland, toyland_ewok" in " ".join(end_of("evaluate.py --help=all")[1].split())
    assert "--mixer=hgrn2 what" in " ".join(end_of("train.py out/tiny --help")[1].split())


@pytest.mark.parametrize("name", ["agree", "bench"])
def test_help_keeps_values_and_meanings_apart(name, end_of):
    said = end_of(f"-m tools.{name} --help=all")[1]
    for line in said[said.index("Settings:") :].splitlines()[1:]:
        assert re.match(r" {28}\S|  --\w+=.{,20}  \S|  --\w+=.{13,}$", line), line


def test_a_home_folder_is_found_in_every_path(monkeypatch, tmp_path):
    """~ in a flag, of one path or several, in a settings file and in a word; not in a text."""
    monkeypatch.chdir(tmp_path)  # a word may also be a run in out/
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "small.py").write_text('n_layer = 3\nteacher = "~/a,~/b"\n')
    s = configure(distill.Settings(), ["~/small.py"])
    assert (s.n_layer, s.teacher) == (3, f"{tmp_path}/a,{tmp_path}/b")
    (tmp_path / "mine.jsonl").touch()
    s = configure(
        evaluate.Settings(), ["~/run", "--results=~/x.json", "--tasks=blimp,~/mine.jsonl"], word="run"
    )
    assert (s.run, s.results) == (f"{tmp_path}/run", f"{tmp_path}/x.json")
    assert s.tasks == f"blimp,{tmp_path}/mine.jsonl"
    assert configure(export.Settings(), ["--to=~/x"]).to == f"{tmp_path}/x"
    assert configure(sample.Settings(), ["--prompt=~/x"]).prompt == "~/x"


@pytest.mark.parametrize("module", [train, evaluate, sample], ids=lambda module: module.__name__)
def test_a_device_that_is_not_there_is_one_line(module, workplace, refusal):
    device = "mps" if torch.cuda.is_available() else "cuda"
    said = refusal(lambda: module.main(configure(module.Settings(), [f"--device={device}"])))
    assert said == f"device = {device!r}: PyTorch finds none here; --device=cpu works everywhere\n"


def test_a_command_that_cannot_work_ends_with_one_line_and_nothing_written(end_of, odd_place, figure):
    failed = list(shortcomings(WRONG, end_of, odd_place))
    assert not failed, "\n".join(map(str, failed))
    figure(
        "wrong settings, files and words",
        len(WRONG) - len(failed),
        len(WRONG),
        "one line that helps, status 2",
    )


def end_as_a_process(command):
    """As end_of, for one started as a user does."""
    script, *args = shlex.split(command.replace("LONG_NAME", "x" * 5000))
    script = script if script == "-m" else str(ROOT / script)
    environment = {name: value for name, value in os.environ.items() if name != "NANORNN_DATA"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, script, *args]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    return ended.returncode, ended.stdout, ended.stderr


def test_so_it_does_as_a_process_of_its_own(odd_place, figure, times, monkeypatch):
    monkeypatch.chdir(odd_place)
    wrong = times(random.Random(0).sample(WRONG, 1), WRONG)
    failed = list(shortcomings(wrong, end_as_a_process, odd_place))
    assert not failed
    good = len(wrong) - len(failed)
    figure("wrong settings, each in a process of its own", good, len(wrong), "no traceback")


def test_the_folder_of_the_battery_is_sound(end_of):
    """The same files and words work where nothing is wrong with them."""
    status, out, err = end_of("evaluate.py out/tiny --tasks=pairs.jsonl --results=results.json")
    assert status == 0 and "mean of 1 subtasks" in out and err == ""
    assert end_of("-m tools.figures results.json") == (0, "results.svg\nresults_benchmarks.svg\n", "")


@pytest.mark.parametrize(
    "command", ["sample.py out/gpt --tokens=17", "evaluate.py out/gpt --tasks=pairs.jsonl"]
)
def test_text_longer_than_the_learned_positions_is_one_line(command, end_of):
    settings = TINY | dict(run="gpt", mixer="attention", position="learned", context=8, max_steps=1)
    train.main(train.Settings(**settings))
    status, _, err = end_of(command)
    shutil.rmtree("out/gpt")  # the folder is the whole file's, and the battery counts on one run in it
    assert status == 2
    assert re.search(r"\d+ tokens: this model has learned 8 positions; shorten the text\n\Z", err)


@pytest.mark.parametrize("ended", [True, False])
def test_under_torchrun_one_process_says_it(monkeypatch, capsys, ended):
    """The others do only if torchrun does not end them, as it does after the first has refused."""

    def sleep(seconds):
        if ended:
            raise KeyboardInterrupt  # what SIGTERM becomes

    def refuse(args):
        raise UserError("no")

    monkeypatch.setattr(time, "sleep", sleep)
    for local_rank, said in (("0", "no\n"), ("1", "" if ended else "no\n")):
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        with pytest.raises(SystemExit) as end:
            console.run_script(refuse)
        assert (end.value.code, capsys.readouterr().err) == (2, said)


def test_scripts_of_one_process_refuse_torchrun(monkeypatch, refusal):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for script in (partial(sample.script, ["out/tiny"]), partial(page.main, ["out/tiny"])):
        assert "start it with python, not torchrun" in refusal(script)
