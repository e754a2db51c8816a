"""
Compile every Triton kernel for the GPUs it is to run on, on a machine that has none.

    python -m tools.bench compile

The public functions of kernels.py are called, forward and backward, on tensors without values. Triton's questions
to its driver are answered for a GPU that is not there, and a launch stops after compiling, so what is compiled is
what would be launched. A kernel is wrong if it does not compile, if it needs more shared memory than the GPU has,
or so many more registers that a thread spills over 320 bytes into memory (some spills cost less than a narrower
tile), or if its bfloat16 products are not made by mma.sync, on tensor cores: see CHUNK there.
"""

import os
import re
import subprocess
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from unittest.mock import patch

import kernels
from support.console import progress
from support.settings import UserError

import torch

# Compute capability -> bytes of shared memory that one program may have: A100; A6000; L4, L40S and RTX 4090; H100
# and H200; B200; RTX 5090 and RTX PRO 6000
SHARED_BYTES = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
MOST_SPILLED = 320  # bytes of a thread; the fastest key_gradients of those timed on an H200 spills 192


# ----------------------------------------------------------------------------------------------------
# Calls of the kernels. The sizes are those of a training step: a kernel's tiles are chosen by them.


def scan(kind, inputs, dtype, shape=(8, 4096, 1024)):
    """Call linear_scan, min_gru or min_lstm, of so many inputs (B, T, D)."""
    x = torch.empty(shape, dtype=dtype)
    call(getattr(kernels, kind), *[x] * inputs, x[:, 0])


def attention(K, V, dtype, shape=(8, 2048, 8), tied=True, gates=None, one_gate=False, with_state=False):
    """Call gated_linear_attention on (B, T, H) keys and values; `gates` is the type of log f if it is another."""
    q = torch.empty(*shape, K, dtype=dtype)
    v = torch.empty(*shape, V, dtype=dtype)
    log_f = torch.empty(*shape, 1 if one_gate else K, dtype=gates or dtype)
    B, _, H = shape
    S0 = torch.empty(B, H, K, V) if with_state else None
    call(kernels.gated_linear_attention, q, None if tied else q, v, log_f, S0)


def selective(N, dtype, shape=(8, 2048, 2048)):
    """Call selective_scan on (B, T, E) with N states a channel; dt is float32, as under autocast."""
    x, dt = torch.empty(shape, dtype=dtype), torch.empty(shape)
    B, T, E = shape
    BC = torch.empty(B, T, N, dtype=dtype)
    call(kernels.selective_scan, x, dt, torch.empty(E, N), BC, BC)


def call(function, *inputs):
    """Call a function, and its backward pass where gradients are enabled."""
    inputs = [None if x is None else torch.empty_like(x).requires_grad_() for x in inputs]
    outputs = function(*inputs)
    if torch.is_grad_enabled():
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        given = [x for x in inputs if x is not None]
        torch.autograd.grad(outputs, given, [torch.empty_like(x) for x in outputs])


def configurations():
    """Yield (name, function, its arguments) for every kind of call that our models make."""
    cases = []
    for kind, inputs in (("linear_scan", 2), ("min_gru", 2), ("min_lstm", 3)):
        for shape in ({}, dict(shape=(8, 77, 20)), dict(shape=(1, 1, 1))):
            cases.append((scan, dict(kind=kind, inputs=inputs) | shape))
    for K, V in ((16, 16), (24, 24), (32, 32), (64, 64), (256, 256), (64, 128), (128, 32)):
        cases.append((attention, dict(K=K, V=V)))
    for more in HEADS_OF_128:
        cases.append((attention, dict(K=128, V=128) | more))
    for K in (64, 128, 256):
        for more in UNDER_AUTOCAST:
            cases.append((attention, dict(K=K, V=K) | more))
    cases.append((attention, dict(K=512, V=520) | UNDER_AUTOCAST[1]))  # mLSTM's 513, padded
    cases.append((attention, dict(K=64, V=64, shape=(1, 1, 1))))  # sizes of 1 are constants to Triton
    for more in STATES:
        cases.append((selective, more))
    for function, arguments in cases:
        for dtype in (torch.bfloat16, torch.float32):
            words = [str(dtype)[6:], *(f"{key} {value}" for key, value in arguments.items())]
            yield f"{function.__name__}: {', '.join(words)}", function, arguments | dict(dtype=dtype)


HEADS_OF_128 = [
    {}, dict(backward=False), dict(tied=False), dict(one_gate=True), dict(tied=False, one_gate=True),
    dict(with_state=True), dict(shape=(8, 77, 3)),
]  # fmt: skip
UNDER_AUTOCAST = [dict(gates=torch.float32), dict(gates=torch.float32, tied=False, one_gate=True)]
STATES = [
    dict(N=8), dict(N=16), dict(N=16, backward=False), dict(N=5, shape=(8, 77, 20)), dict(N=1, shape=(1, 1, 1)),
]  # fmt: skip


# ----------------------------------------------------------------------------------------------------
# Compiling


def measure(s):
    """Return a row for each kernel and compute capability."""
    if kernels.triton is None:
        raise UserError("Triton is not installed: on Linux, pip install -r requirements.txt")
    return compile_all(configurations())


def compile_all(configurations, capabilities=tuple(SHARED_BYTES), processes=None):
    """Return a row for each kernel and capability, with the name of the first configuration that launches it."""
    cases = [(*configuration, capability) for configuration in configurations for capability in capabilities]
    rows = {}
    with patch.dict(os.environ), ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        os.environ.pop("TRITON_INTERPRET", None)  # a process that begins with it has no compiler
        found = progress(pool.map(compile_case, cases), total=len(cases), desc="compile")
        for (name, *_), launched in zip(cases, found):
            for key, row in launched.items():
                rows.setdefault(key, {"for": name} | row)
    return list(rows.values())


def compile_case(case):
    """
    Return {hash: row} of the kernels that a case, (name, function, its arguments, capability), launches: forward
    only if arguments["backward"] is False. For a process that does nothing else.
    """
    from triton.backends.compiler import GPUTarget
    from triton.runtime import JITFunction, driver

    _, function, arguments, capability = case
    rows, run = {}, JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        row = {"kernel": self.__name__, "capability": capability}
        try:
            kernel = run(self, *args, grid=grid, warmup=True, **options)
            rows[kernel.hash] = row | examine(kernel, capability)
        except Exception as error:
            rows[f"{row} {arguments}"] = row | {"wrong": f"does not compile: {first_cause(error)}"}

    gpu = dict(
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
        get_current_device=lambda: capability,  # Triton keeps what it has compiled under this
        get_current_stream=lambda device: 0,
    )
    driver.set_active(SimpleNamespace(**gpu))
    arguments = {"backward": True} | arguments
    with (
        patch.object(JITFunction, "run", compile_only),
        patch.object(kernels, "gpu_generation", lambda device: capability // 10),
        torch.set_grad_enabled(arguments.pop("backward")),
    ):
        function(**arguments)
    return rows


def first_cause(error):
    """Last line of the first error: Triton shows the source before it, once for each function around it."""
    while error.__cause__:
        error = error.__cause__
    return (str(error).strip().splitlines() or [repr(error)])[-1][:200]


def examine(kernel, capability):
    """Return a row: what a compiled kernel takes of the GPU, its instructions, and what is wrong with it."""
    ptx = kernel.asm["ptx"]
    registers, spilled = registers_and_spills(kernel.asm["cubin"])
    row = {
        "warps": kernel.metadata.num_warps,
        "registers": registers,
        "spilled_bytes": spilled,
        "shared_bytes": kernel.metadata.shared,
        "mma": len(re.findall(r"\bmma\.sync", ptx)),
    }
    wrong = []
    if row["shared_bytes"] > SHARED_BYTES[capability]:
        wrong.append(f"more shared memory than {SHARED_BYTES[capability]:,} bytes")
    if spilled > MOST_SPILLED:
        wrong.append("registers spill")
    if re.search(r"tt\.dot .*xbf16>", kernel.asm["ttir"]) and not row["mma"]:
        wrong.append("products without mma.sync")
    return row | {"wrong": ", ".join(wrong)}


def registers_and_spills(cubin):
    """Return registers of a thread, and the bytes that it keeps in memory for want of registers."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with TemporaryDirectory() as folder:
        Path(folder, "kernel.cubin").write_bytes(cubin)
        said = subprocess.check_output([tool, "-res-usage", "kernel.cubin"], cwd=folder, text=True)
    return map(int, re.search(r"REG:(\d+) STACK:(\d+)", said).groups())
