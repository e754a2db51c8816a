"""Nothing is relied on that only some systems have: what is asked of systems and of devices."""

import os
import subprocess
import sys
from pathlib import Path

import kernels
import train
from conftest import ROOT
from support import devices, processes
from support.devices import find_device

import pytest
import torch

# Python as on Windows: without these modules and functions, and in our own modules it is an error to rely on the
# system's encoding. Libraries are imported before.
ELSEWHERE = """
import importlib, os, re, signal, sys, warnings
import matplotlib.pyplot, numpy, tokenizers, torch, tqdm

for name in "fcntl grp msvcrt posix pty pwd resource syslog termios tty winreg _winapi".split():
    sys.modules[name] = None
lacking = "SIGALRM SIGHUP SIGKILL SIGQUIT SIGUSR1 SIGUSR2 fork geteuid getuid kill killpg mkfifo sched_getaffinity"
for name in f"{lacking} setsid statvfs startfile O_DIRECTORY O_BINARY".split():
    for module in (os, signal):
        if hasattr(module, name):
            delattr(module, name)

files = MODULES
ours = "|".join(map(re.escape, files))
warnings.filterwarnings("error", category=EncodingWarning, module=f"({ours})$")
for name in files:
    importlib.import_module(name)
"""
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in (".", "fast", "support", "corpora", "tools")
    for path in sorted((ROOT / folder).glob("*.py"))
    if path.name not in ("my.py", "huggingface.py", "__init__.py")  # one runs inside transformers
]
A_RUN = """
import compare, data, evaluate, sample, train
from support.devices import find_device
from support.settings import configure

data.prepare("again", ["text.txt"], data.Settings(vocab_size=300, val_share=0.1))
train.main(configure(train.Settings(), ["tiny.py", "--run=again", "--corpus=again", "--max_steps=2"]))
train.main(configure(train.Settings(), ["tiny.py", "--run=again", "--corpus=again", "--max_steps=3"]))
pairs = '{"sentence_good": "The cat sees the dog.", "sentence_bad": "The cat see the dog."}'
with open("pairs.jsonl", "w", encoding="utf-8") as file:
    file.write(pairs)
evaluate.main(evaluate.Settings(run="out/again", tasks="pairs.jsonl", device="cpu"))
sample.main(sample.Settings(run="out/again", tokens=5, device="cpu"))
with open("compared.py", "w", encoding="utf-8") as file:
    file.write('base = "tiny.py"\\nmodels = {"one": {}}\\n')
compare.main(["compared.py", "--run=compared", "--max_steps=1"])
"""


def run(code, **environment):
    options = ["-X", "warn_default_encoding", "-c", code]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    ended = subprocess.run([sys.executable, *options], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_run_needs_nothing_that_other_systems_lack(workplace):
    """All files can be imported; a run is made, resumed, evaluated and sampled from, in UTF-8 by name."""
    said = run(ELSEWHERE.replace("MODULES", repr(MODULES)) + A_RUN)
    assert "done: 3 of 3 steps" in said and "step 2 of 3" in said
    assert all(b"\r" not in path.read_bytes() for path in Path("out/again").glob("*.json*"))


def test_what_relies_on_the_systems_encoding_is_found(workplace):
    """That test has teeth: a module that opens a file in whatever encoding there is ends it."""
    Path("careless.py").write_text("open('text.txt').read()\n")
    without_libraries = ELSEWHERE.replace("import matplotlib.pyplot, numpy, tokenizers, torch, tqdm\n", "")
    with pytest.raises(AssertionError, match="EncodingWarning"):
        run(without_libraries.replace("MODULES", "['careless']"))


def test_float64_is_not_asked_of_a_macs_gpu(monkeypatch, refusal):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert find_device("auto").type == "mps" and devices.fastest_dtype("mps") == "float32"
    said = refusal(train.Settings(dtype="float64").check)
    assert said == "dtype = 'float64': there is none on a Mac's GPU (mps); set device = 'cpu'\n"
    train.Settings(dtype="float64", device="cpu").check()


@pytest.mark.parametrize("native, dtype", [(True, torch.bfloat16), (False, torch.float16)], ids=str)
def test_a_gpu_without_bfloat16_gets_float16(native, dtype, monkeypatch):
    """A T4 has no bfloat16 of its own; PyTorch emulates it, which is slower than float32."""

    def supported(including_emulation=True):
        return including_emulation or native

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    device = processes.join_processes(find_device("auto"))
    assert (device, devices.dtype_of(train.Settings(), device)) == (torch.device("cuda:0"), dtype)


def test_float16_is_said_on_the_first_line_and_trains_with_a_scaler(workplace, tiny, monkeypatch, capsys):
    monkeypatch.setattr(devices, "fastest_dtype", lambda kind: "float16")
    train.main(tiny(run="half", dtype="auto", max_steps=5))
    assert "parameters, float16 on cpu; step 0 of 5, " in capsys.readouterr().out
    assert torch.load("out/half/checkpoint.pt", weights_only=True)["scaler"]["scale"] > 1


PAGES_CLEARED = """
import resource
import torch
from support.devices import find_device

def cleared():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**21) + torch.ones(2**21)  # three tensors of 2,048 pages, freed again
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = cleared()
find_device("cpu")
cleared()
print(before, cleared())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_memory_of_freed_tensors_is_not_cleared_for_the_next():
    before, after = map(int, run(PAGES_CLEARED).split())
    assert after < before / 4


class Driver:
    """Triton's driver where `what` is missing."""

    def __init__(self, what):
        self.what = what

    @property
    def active(self):
        raise self.what


MISSING = [
    RuntimeError("Failed to find C compiler. Please specify via CC environment variable"),
    subprocess.CalledProcessError(1, ["gcc", "cuda_utils.c"]),  # has written that there is no Python.h
    AssertionError("libcuda.so cannot found!\nPlease make sure GPU is set up"),
]


@pytest.mark.skipif(not kernels.triton, reason="no Triton here")
@pytest.mark.parametrize("what", MISSING, ids=lambda error: type(error).__name__)
def test_where_triton_cannot_compile_pytorchs_forms_run(monkeypatch, capsys, what):
    """On a GPU; it is said once, and nothing is compiled."""
    monkeypatch.setattr(kernels, "driver_found", None)
    monkeypatch.setattr(kernels.triton.runtime, "driver", Driver(what))
    monkeypatch.setattr(kernels, "gpu_generation", lambda device: 9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    kernels.use_kernels("auto")
    assert not kernels.has_triton(torch.device("cuda"))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "gcc python3-dev" in said and "PyTorch's forms" in said


def test_without_triton_all_recurrences_run():
    """As on a Mac and on Windows, where PyTorch brings none; the variable for its interpreter changes nothing."""
    code = """
import sys
sys.modules["triton"] = None
import torch, kernels
q, S = torch.rand(2, 9, 3, 4), torch.rand(2, 3, 4, 4)
assert kernels.triton is None
for form in kernels.FORMS:
    kernels.use_kernels(form)
    kernels.gated_linear_attention(q, q, q, -q, S), kernels.min_gru(q[..., 0], q[..., 0])
    kernels.selective_scan(q[..., 0], q[..., 0], -S[0, :, 0], q[:, :, 0], q[:, :, 0])
"""
    run(code, TRITON_INTERPRET="1")
