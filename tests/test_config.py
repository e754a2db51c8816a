"""Settings: the last word wins, nothing is executed, and every mistake is one line that says what to do."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import data
import evaluate
import sample
import train
from config import configure

ROOT = Path(train.__file__).parent
SCRIPTS = {"train.py": train, "data.py": data, "evaluate.py": evaluate, "sample.py": sample}


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
    ],
)
def test_flags_are_read_as_the_type_of_the_default(flag, value):
    name = re.match(r"--(\w+)", flag)[1]
    found = getattr(read(flag), name)
    assert found == value and type(found) is type(value)


def test_a_settings_file_may_have_spaces_and_equals_signs_in_its_path(tmp_path):
    file = tmp_path / "my settings" / "a=b.py"
    file.parent.mkdir()
    file.write_text("n_layer = 3\n")
    assert read(str(file)).n_layer == 3


def test_a_run_folder_stands_for_the_settings_it_was_made_with(workplace, tiny):
    assert read("out/tiny") == tiny()


@pytest.mark.parametrize("file", sorted((ROOT / "config").glob("[!_]*.py")), ids=lambda file: file.name)
def test_every_file_in_config_works(file):
    assert read(str(file)).run == file.stem


MISTAKES = {  # flag -> words that tell the remedy
    "--n_layers=3": "did you mean 'n_layer'",
    "--lerning_rate=1": "did you mean 'learning_rate'",
    "--zzz=3": "--help",
    "--n_layer=three": "'three' is not of type int",
    "--n_layer=3.0": "3.0 is not of type int, like 6",
    "--n_layer=True": "not of type int",
    "--n_layer={[]: 1}": "not of type int",
    "--n_layer": "write --n_layer=6",
    "--n_layer=0": "at least 1",
    "--fresh=1": "not of type bool",
    "--learning_rate=-1": "learning_rate = -1.0: must be a number, at least 0",
    "--learning_rate=1e999": "must be a number",
    "--dropout=1.0": "below 1",
    "--beta1=1.0": "below 1",
    "--seed=99999999999999999999": "seed",
    "--mixer=hgrn": "did you mean 'hgrn2'",
    "--mixer=": "possible: hgrn2",
    "--norm=rmsnrm": "did you mean 'rmsnorm'",
    "--optimizer=adamw adam": "ossible: adamw, adam",
    "--device=gpu": "cpu",
    "--n_head=3": "n_head = 3 does not divide d_model = 256",
    "--vocab_size=100000": "at most 65536",
    "--accumulate=3": "batch_size = 16 is not a multiple of accumulate",
    "--best_by=pairs": "best_by = 'pairs'",
    "--eval_pairs=toyladn": "did you mean 'toyland'",
    "--epochs=0": "max_steps = 0 and epochs = 0",
    "--run=a/b": "cannot name a folder",
    "--run=..": "cannot name a folder",
    "--corpus=../toy": "cannot name a folder under data/: use letters",
    "--corpus=": "corpus = '' cannot name",
    "config/nothing.py": "config/nothing.py: cannot read these settings",
    "stray": "stray: cannot read these settings",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_setting_is_one_line_with_the_remedy(mistake, refusal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = refusal(read, mistake)
    assert MISTAKES[mistake] in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "settings, mistake, remedy",
    [
        (data.Settings(), "--vocab_size=70000", "at most 65536"),
        (data.Settings(), "--val_share=1.0", "below 1"),
        (evaluate.Settings(), "--tasks=blmp", "did you mean 'blimp'"),
        (evaluate.Settings(), "--protocol=2023", "ossible: 2024, 2025"),
        (evaluate.Settings(), "--device=gpu", "cpu"),
        (sample.Settings(), "--top_p=0", "above 0"),
        (sample.Settings(), "--temperature=-1", "at least 0"),
        (sample.Settings(), "--device=gpu", "cpu"),
    ],
)
def test_so_it_is_in_the_other_scripts(settings, mistake, remedy, refusal):
    said = refusal(configure, settings, [mistake])
    assert remedy in said and said.count("\n") == 1


@pytest.mark.parametrize("module", [train, evaluate, sample], ids=lambda module: module.__name__)
def test_a_device_that_is_not_there_is_one_line(module, workplace, refusal):
    device = "mps" if torch.cuda.is_available() else "cuda"
    said = refusal(lambda: module.main(configure(module.Settings(), [f"--device={device}"])))
    assert said == f"device = {device!r}: PyTorch finds none here; --device=cpu works everywhere\n"


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


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_lists_every_setting_with_its_default_and_meaning(name, script):
    result = script(name, "--help")
    assert result.returncode == 0 and result.stderr == ""
    defaults = SCRIPTS[name].Settings()
    for field in fields(defaults):
        assert re.search(
            rf"(?m)^  --{field.name}={re.escape(str(getattr(defaults, field.name)))} +\w", result.stdout
        )


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_mistake_ends_the_script_with_status_2_and_no_traceback(name, script, workplace):
    before = sorted(workplace.rglob("*"))
    result = script(name, *[str(ROOT / "config/toy.py")] * (name == "train.py"), "--no_such_setting=1")
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(r"--no_such_setting: there is no setting 'no_such_setting'; .*\n", result.stderr)
    assert sorted(workplace.rglob("*")) == before
