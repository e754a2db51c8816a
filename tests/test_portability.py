"""Nothing is relied on that only some systems have: a look at the source, and at what is asked of each device."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from model import find_device

ROOT = Path(train.__file__).parent
FILES = sorted([*ROOT.glob("*.py"), *ROOT.glob("config/*.py")])
NOT_EVERYWHERE = "fcntl grp msvcrt posix pty pwd resource syslog termios tty winreg _winapi"
LACKING = (
    "SIGALRM SIGHUP SIGKILL SIGQUIT SIGUSR1 SIGUSR2 fork geteuid getuid kill killpg mkfifo sched_getaffinity"
)
LACKING += " setsid statvfs startfile O_DIRECTORY O_BINARY"
MODULES = ("os", "signal")
ADDED = {  # lines that a bad edit could bring, and whether the look at the source finds them
    "open(path)": True,
    "open(path, encoding='utf-8')": False,
    "open(path, 'rb')": False,
    "open(path, mode='wb')": False,
    "open(path, 'w', encoding='utf-8')": True,
    "open(path, 'a', encoding='utf-8', newline='\\n')": False,
    "path.write_text('x', encoding='utf-8')": True,
    "path.read_text()": True,
    "gzip.open(path)": False,
    "gzip.open(path, 'rt')": True,
    "io.TextIOWrapper(file)": True,
    "import os, resource": True,
    "def f():\n    import pwd": False,
    "from fcntl import flock": True,
    "os.kill(1, signal.SIGKILL)": True,
    "getattr(signal, 'SIGHUP', None)": False,
    "open('/dev/null', 'rb')": True,
    "'/usr/x'": True,
    "x = 1 / 2  # /usr": False,
}


def troubles(tree):
    """What in a syntax tree works on some systems only, each with its line."""
    for node in tree.body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        yield from ((node.lineno, f"import {name}") for name in names if name in NOT_EVERYWHERE.split())
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and node.attr in LACKING.split()
            and ast.unparse(node.value) in MODULES
        ):
            yield node.lineno, f"{node.attr}, not asked for through getattr"
        if isinstance(node, ast.Constant) and re.match(r"/(tmp|dev|proc|etc|usr|bin)\b", str(node.value)):
            yield node.lineno, f"{node.value}, a path of Linux"
        if isinstance(node, ast.Call):
            yield from ((node.lineno, f"no {missing} named") for missing in unnamed(node))


def unnamed(call):
    """Which of encoding and newline a call that opens a text file leaves to the system."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    opens = {"open": "r", "read_text": "r", "write_text": "w", "TextIOWrapper": "r"}
    if name not in opens or None in given:  # None: **options, which name both
        return []
    words = [word.value for word in call.args if isinstance(word, ast.Constant)]
    modes = [word for word in words if re.fullmatch(r"[rwaxbt+]{1,3}", str(word))] if name == "open" else []
    mode = given["mode"].value if "mode" in given else modes[0] if modes else opens[name]
    module = getattr(getattr(call.func, "value", None), "id", "")
    if "b" in mode or module == "os" or (module in ("gzip", "archive") and "t" not in mode):
        return []
    known = set(given) | ({"encoding"} if name == "TextIOWrapper" and len(call.args) > 1 else set())
    asked = ["encoding"] + ["newline"] * (mode[0] in "wax")
    return [what for what in asked if what not in known]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_scripts_use_what_every_system_has(file):
    """Text files name their encoding and, when written, their line ends; nothing is imported that some lack."""
    assert list(troubles(ast.parse(file.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize("line", ADDED)
def test_that_look_at_the_source_finds_what_it_looks_for(line):
    assert bool(list(troubles(ast.parse(line)))) == ADDED[line]


def test_float64_is_not_asked_of_a_macs_gpu(monkeypatch, refusal):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert find_device("auto").type == "mps" and train.fastest_dtype("mps") == "float32"
    said = refusal(train.Settings(dtype="float64").check)
    assert said == "dtype = 'float64': there is none on a Mac's GPU (mps); set device = 'cpu'\n"
    train.Settings(dtype="float64", device="cpu").check()


@pytest.mark.parametrize("native, dtype", [(True, "bfloat16"), (False, "float16")])
def test_a_gpu_without_bfloat16_gets_float16(native, dtype, monkeypatch):
    """A T4 has no bfloat16 of its own; PyTorch emulates it, which is slower than float32."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native
    )
    assert train.start(train.Settings()) == (torch.device("cuda:0"), getattr(torch, dtype))


def test_float16_is_said_on_the_first_line_and_trains_with_a_scaler(workplace, tiny, monkeypatch, capsys):
    monkeypatch.setattr(train, "fastest_dtype", lambda kind: "float16")
    train.main(tiny(run="half", dtype="auto", max_steps=5))
    assert "parameters, float16 on cpu; step 0 of 5\n" in capsys.readouterr().out
    assert torch.load("out/half/checkpoint.pt", weights_only=True)["scaler"]["scale"] > 1


def test_without_triton_all_recurrences_run():
    """As on a Mac and on Windows, where PyTorch brings none."""
    code = """
import sys
sys.modules["triton"] = None
import torch, kernels
q, S = torch.rand(2, 9, 3, 4), torch.rand(2, 3, 4, 4)
assert kernels.triton_kernels is None
kernels.gated_linear_attention(q, q, q, -q, S), kernels.min_gru(q[..., 0], q[..., 0])
kernels.selective_scan(q[..., 0], q[..., 0], -S[0, :, 0], q[:, :, 0], q[:, :, 0])
"""
    environment = os.environ | {"TRITON_INTERPRET": "1"}  # which changes nothing then
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
