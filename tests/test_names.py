"""
Names and places. Packages of others that have the names of our scripts: both are to be had, in one process, in any
order. And what is ours is found from any folder.
"""

import os
import re
import subprocess
import sys

import evaluate
import kernels
import train
from conftest import ROOT
from support import namesakes
from support.settings import configure

import pytest

OURS = "baselines compare corpora data distill evaluate fast finetune kernels model sample".split()
OURS += ["support", "tools", "train"]


@pytest.fixture
def site(tmp_path):
    """A folder of packages with our names, as pip may install them, and a library that imports some of them."""
    before = set(sys.modules)
    for name in [*OURS, "config"]:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").write_text(f"from {name}.part import load\n__version__ = 'theirs'\n")
        (folder / "part.py").write_text("def load(name):\n    return f'their {name}'\n")
        (folder / "late.py").write_text("late = 'loaded late'")
    lines = "from evaluate import load", "from kernels import __version__ as version", "import config"
    (tmp_path / "library.py").write_text("\n".join(lines))
    yield tmp_path
    for module in (kernels, evaluate):
        vars(module).pop("__path__", None)
        vars(module).pop("late", None)
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(sys.modules[name].__spec__):
            del sys.modules[name]


def test_another_library_gets_the_package_and_we_our_script(site, monkeypatch):
    """Ours were imported first. Names that the package lacks too are an ordinary error."""
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(namesakes, "packages", {})
    scan = kernels.linear_scan
    import library

    assert library.load("accuracy") == "their accuracy" and library.version == "theirs"
    assert sys.modules["kernels"] is kernels and sys.modules["evaluate"] is evaluate
    assert kernels.linear_scan is scan
    assert kernels.part.load("kernel") == "their kernel"
    from evaluate.late import late  # only now, and not by the package itself

    assert late == evaluate.late.late == "loaded late"
    with pytest.raises(ImportError, match="cannot import name 'no_such_name' from 'kernels'"):
        from kernels import no_such_name  # noqa: F401


def test_without_such_a_package_a_script_has_what_it_has():
    assert not hasattr(kernels, "get_kernel") and not hasattr(kernels, "__path__")


FIRST_THEIRS = f"""
import library
assert library.load("accuracy") == "their accuracy" and library.version == library.config.__version__ == "theirs"
for name in {OURS}:
    module = __import__(name)
    print(name, module.__file__)
from tools import agree, bench, export
from model import load
"""


def test_python_started_in_the_repository_finds_both(site):
    """The library is imported before ours; then all of ours are ours, with packages of these names installed."""
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-c", FIRST_THEIRS]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    found = dict(line.split(" ", 1) for line in ended.stdout.splitlines())
    assert list(found) == OURS and all(file.startswith(str(ROOT)) for file in found.values())


def test_scripts_in_folders_start_by_their_path_from_any_folder(tmp_path):
    """As well as by `python -m tools.NAME`: the first thing they do is to look where our modules are."""
    command = [sys.executable, str(ROOT / "tools" / "figures.py")]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.startswith("of what? ") and ended.stderr.count("\n") == 1
    scripts = [path for room in ("tools", "corpora") for path in (ROOT / room).glob("*.py")]
    started = [
        text for text in (path.read_text(encoding="utf-8") for path in scripts) if "run_script(" in text
    ]
    assert len(started) >= 5
    for text in started:
        assert text.index("if not __package__:") < min(
            map(text.index, re.findall(r"^(?:from|import) support.*", text, re.M))
        )


def test_the_default_run_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    s = configure(train.Settings(), [], default="config/toy.py")
    assert s.corpus == s.run == "toy" and s.max_steps + s.epochs > 1
