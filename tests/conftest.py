"""
What the tests share: a tiny corpus, a tiny run on it, the ways in which a script can end, and `--long`, which
turns the samples of `make test` into the whole batteries of `make test-long` and writes results/faults.json.
"""

import json
import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; scripts that tests start inherit it

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
REAL_DATA = Path(os.environ.get("NANORNN_DATA", ROOT.parent / "shared" / "data")).resolve()

sys.path.insert(0, str(ROOT))
torch.set_num_threads(1)
ON_GPU = ("test_triton.py",)  # where there is one; all else is about the CPU, on every machine
if torch.cuda.is_available():
    torch.cuda.init()
    torch.cuda.device_count()  # cached once CUDA is initialised; counted below, PyTorch would find none
else:
    os.environ["TRITON_INTERPRET"] = "1"  # read as Triton and kernels.py are imported below; see test_triton.py
    import kernels

    if kernels.triton:
        import triton.experimental.gluon.language  # noqa: F401  (later it would miss the variable)

        kernels.INTERPRETED = False
    os.environ.pop("TRITON_INTERPRET")  # other tests, and scripts they start, take the plain PyTorch forms

import data
import kernels
import train
from support.run import read_log
from support.settings import UserError

data.ROOT = Path()  # tests make their data/ in the current folder, not in the repository

TINY = dict(
    corpus="tiny", run="tiny", vocab_size=300, n_layer=2, d_model=16, n_head=2, d_mlp=24, context=16,
    batch_size=16, max_steps=30, learning_rate=1e-2, warmup=3, log_every=1, device="cpu", dtype="float32",
)  # fmt: skip


FIGURES = ROOT / "results" / "faults.json"


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="whole batteries; writes results/faults.json")


@pytest.fixture(scope="session", autouse=True)
def no_gpu_for_scripts():
    """Scripts that tests start find no GPU; set here, not above, where pytest-xdist's workers would inherit it."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True)
def gpu_or_not(request, monkeypatch):
    """For device = "auto" there is no GPU, except in ON_GPU."""
    if request.path.name not in ON_GPU:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(autouse=True)
def anew():
    """Each test begins with the form of the recurrences that a new process has, and with the same seed."""
    kernels.use_kernels("auto")
    torch.manual_seed(0)


@pytest.fixture
def times(request):
    """times(3, 50) -> how often to try: 3 for a sample, 50 with --long."""
    return lambda sample, whole: whole if request.config.getoption("--long") else sample


@pytest.fixture
def figure(request):
    """
    figure("kill -9 inside the save", good=15, of=15): hold good == of; with --long, also keep it for the README. A
    `note` says what counts as good, in a few words; other numbers, such as seconds=1.2, are kept as they are.
    """

    def keep(name, good, of, note="", **numbers):
        if request.config.getoption("--long"):
            known = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}
            known[name] = {"good": good, "of": of, "note": note} | numbers
            text = json.dumps(dict(sorted(known.items())), indent=1)
            FIGURES.write_text(text + "\n", encoding="utf-8", newline="\n")
        assert good == of, name

    return keep


def log(run="tiny"):
    return read_log(Path("out") / run)


def losses(run="tiny"):
    return [record["loss"] for record in log(run) if "loss" in record]


def saved(name="checkpoint.pt", run="tiny"):
    return torch.load(Path("out", run, name), weights_only=True)


def bits(x):
    """A checkpoint's tensors as bytes, so that == compares them to the bit."""
    if isinstance(x, dict):
        return {name: bits(part) for name, part in x.items() if name != "settings"}
    return x.numpy().tobytes() if isinstance(x, torch.Tensor) else x


def contents(run="tiny"):
    """What two runs have in common if they are the same to the bit: the log, the last and the best checkpoint."""
    lines = Path("out", run, "log.jsonl").read_text().splitlines()
    return lines, bits(saved("checkpoint.pt", run)), bits(saved("best.pt", run))


def same(one, other):
    """Compare contents() without printing megabytes."""
    equal = one == other
    assert one[0] == other[0] and equal


def stories(documents=40, seed=0):
    """A text of short stories, about 2,000 words."""
    r = random.Random(seed)
    nouns, verbs = "cat dog bird child teacher".split(), "sees hears likes follows helps".split()

    def sentence():
        return f"The {r.choice(nouns)} {r.choice(verbs)} the {r.choice(nouns)} and the {r.choice(nouns)}."

    return "\n\n".join("\n".join(sentence() for _ in range(6)) for _ in range(documents)) + "\n"


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A folder with text.txt, the corpus data/tiny made of it, the settings file tiny.py, and a run, out/tiny."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("NANORNN_DATA", raising=False)
        Path("text.txt").write_text(stories())
        Path("tiny.py").write_text("".join(f"{name} = {value!r}\n" for name, value in TINY.items()))
        data.prepare("tiny", ["text.txt"], data.Settings(vocab_size=300, val_share=0.1))
        train.main(train.Settings(**TINY))
    return folder


@pytest.fixture
def workplace(prepared, tmp_path, monkeypatch):
    """The current folder of a test: a copy of the prepared one, and no other data in reach."""
    folder = tmp_path / "work place"  # with a space, as on many a laptop
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("NANORNN_DATA", raising=False)
    return folder


@pytest.fixture
def tiny():
    """tiny(n_layer=3) -> training settings that take a second."""
    return lambda **settings: train.Settings(**TINY | settings)


@pytest.fixture
def script(workplace):
    """script("train.py", "tiny.py", ...) runs it as a user would, in the workplace -> a CompletedProcess."""

    def run(name, *args, launcher=()):
        command = [sys.executable, *launcher, str(ROOT / name), *args]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            said = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun then ends those that it has started
            process.communicate()
            raise
        return subprocess.CompletedProcess(command, process.returncode, *said)

    return run


@pytest.fixture
def refusal(capsys):
    """refusal(function, argument, ...) -> what a script would say on stderr when this raises UserError."""

    def call(function, *args):
        capsys.readouterr()
        with pytest.raises(UserError) as end:
            function(*args)
        return f"{capsys.readouterr().err}{end.value}\n"

    return call


@pytest.fixture(scope="session")
def real_data():
    """real_data("blimp/blimp.zip") -> its path; where it is not, the test is skipped by name."""

    def find(name):
        return REAL_DATA / name if (REAL_DATA / name).exists() else pytest.skip(f"no {REAL_DATA / name}")

    return find
