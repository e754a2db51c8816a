"""
Every Triton kernel, compiled for the cards it is to run on, on a machine that has none: `python bench.py compile`.

The public functions of kernels.py are called, forward and backward, on tensors that nobody fills; what Triton asks
of its driver is answered for a card that is not there; and a launch compiles, and ends there. So what is compiled
is what would be launched. A kernel is wrong if it does not compile, if it needs more shared memory than the card
has, or more registers, so that some spill into memory, or if its bfloat16 products are not on tensor cores.
"""

import os
import re
import struct
import subprocess
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from unittest.mock import patch

import torch

import kernels
from config import fail, progress

# What one program may have on an A100, on an A6000, and on an H100 or H200
SHARED_BYTES = {80: 166_912, 86: 101_376, 90: 232_448}


# ----------------------------------------------------------------------------------------------------
# What is launched. Sizes are those of a training step: with them a kernel's tiles are chosen.


def scan(kind, inputs, dtype, B=8, T=4096, D=1024):
    """linear_scan, min_gru or min_lstm, of so many inputs"""
    x = torch.empty(B, T, D, dtype=dtype)
    call(getattr(kernels, kind), *[x] * inputs, x[:, 0])


def attention(
    K, V, dtype, B=8, T=2048, H=8, tied=True, gates=None, one_gate=False, with_state=False, backward=True
):
    q, v = torch.empty(B, T, H, K, dtype=dtype), torch.empty(B, T, H, V, dtype=dtype)
    log_f = torch.empty(B, T, H, 1 if one_gate else K, dtype=gates or dtype)
    S0 = torch.empty(B, H, K, V) if with_state else None
    call(kernels.gated_linear_attention, q, None if tied else q, v, log_f, S0, backward=backward)


def selective(N, dtype, B=8, T=2048, E=2048, backward=True):
    x, BC = torch.empty(B, T, E, dtype=dtype), torch.empty(B, T, N, dtype=dtype)
    call(kernels.selective_scan, x, x, torch.empty(E, N), BC, BC, backward=backward)


def call(function, *inputs, backward=True):
    inputs = [None if x is None else torch.empty_like(x).requires_grad_(backward) for x in inputs]
    outputs = function(*inputs)
    if backward:
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        given = [x for x in inputs if x is not None]
        torch.autograd.grad(outputs, given, [torch.empty_like(x) for x in outputs])


def configurations():
    """Yield (name, function, its arguments) for all that models come to launch."""
    widths = (16, 16), (24, 24), (32, 32), (64, 64), (256, 256), (64, 128), (128, 32)
    heads = [dict(K=K, V=V) for K, V in widths]
    ways = ({}, dict(backward=False), dict(tied=False), dict(one_gate=True), dict(tied=False, one_gate=True))
    heads += [dict(K=128, V=128) | more for more in (*ways, dict(with_state=True), dict(T=77, H=3))]
    mixed = dict(gates=torch.float32), dict(gates=torch.float32, tied=False, one_gate=True)  # under autocast
    heads += [dict(K=width, V=width) | more for width in (64, 128) for more in mixed]
    heads += [dict(K=512, V=520, gates=torch.float32, tied=False, one_gate=True)]  # mLSTM's 513, padded
    heads += [dict(K=64, V=64, B=1, T=1, H=1)]  # lengths of 1 are constants to Triton
    kinds = dict(linear_scan=2, min_gru=2, min_lstm=3)
    scans = [dict(kind=kind, inputs=kinds[kind]) for kind in kinds]
    scans += [scan | more for scan in scans for more in (dict(T=77, D=20), dict(B=1, T=1, D=1))]
    states = [
        dict(N=8),
        dict(N=16),
        dict(N=16, backward=False),
        dict(N=5, T=77, E=20),
        dict(N=1, B=1, T=1, E=1),
    ]
    for function, sets in ((scan, scans), (attention, heads), (selective, states)):
        for arguments in sets:
            for dtype in (torch.bfloat16, torch.float32):
                words = [str(dtype)[6:], *(f"{key} {value}" for key, value in arguments.items())]
                yield f"{function.__name__}: {', '.join(words)}", function, arguments | dict(dtype=dtype)


# ----------------------------------------------------------------------------------------------------
# Compiling it


def measure(s):
    """The benchmark of bench.py: a row for each kernel and compute capability."""
    if kernels.triton_kernels is None:
        fail("Triton is not installed: on Linux, pip install -r requirements.txt")
    return compile_all(configurations())


def compile_all(configurations, capabilities=tuple(SHARED_BYTES), processes=None):
    """-> a row for each kernel and compute capability, named after the first configuration that launches it."""
    rows = {}
    with patch.dict(os.environ), ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        os.environ.pop("TRITON_INTERPRET", None)  # a process that begins with it has no compiler
        jobs = [
            (name, pool.submit(launched, function, arguments, capability))
            for name, function, arguments in configurations
            for capability in capabilities
        ]
        for _ in progress(as_completed([job for _, job in jobs]), total=len(jobs), desc="compile"):
            pass
    for name, job in jobs:
        for key, row in job.result().items():
            rows.setdefault(key, {"for": name} | row)
    return list(rows.values())


def launched(function, arguments, capability):
    """-> {hash: row} of the kernels that function(**arguments) launches. For a process that does nothing else."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import JITFunction, driver

    rows, run = {}, JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        row = {"kernel": self.__name__, "capability": capability}
        try:
            kernel = run(self, *args, grid=grid, warmup=True, **options)
            rows[kernel.hash] = row | examine(kernel, capability)
        except Exception as error:
            rows[f"{row} {arguments}"] = row | {"wrong": f"does not compile: {reason(error)}"}

    card = dict(
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
        get_current_device=lambda: capability,  # Triton keeps what it has compiled under this
        get_current_stream=lambda device: 0,
    )
    driver.set_active(SimpleNamespace(**card))
    with (
        patch.object(JITFunction, "run", compile_only),
        patch.object(kernels.triton_kernels, "run_on", lambda device: True),
        patch.object(kernels.triton_kernels, "is_hopper", lambda device: capability == 90),
    ):
        function(**arguments)
    return rows


def reason(error):
    """The last line of what was first: Triton shows the source before it, once for each function around it."""
    while error.__cause__:
        error = error.__cause__
    return str(error).strip().splitlines()[-1][:200]


def examine(kernel, capability):
    """What it takes of the card, what it is made of, and what is wrong with it, if anything is."""
    ptx, cubin = kernel.asm["ptx"], kernel.asm["cubin"]
    registers, spilled = registers_and_spills(cubin)
    row = {
        "warps": kernel.metadata.num_warps,
        "registers": registers,
        "spilled_bytes": spilled,
        "shared_bytes": kernel.metadata.shared,
        "code_bytes": code_size(cubin),
        "wgmma": ptx.count("wgmma.mma_async"),
        "mma": len(re.findall(r"\bmma\.sync", ptx)),
        "cp_async": len(re.findall(r"\bcp\.async\.c[ag]", ptx)),
    }
    heights = [int(M) for M in re.findall(r"tt\.dot .*: tensor<(\d+)x\d+xbf16>", kernel.asm["ttir"])]
    most = SHARED_BYTES[capability]
    wrong = {
        f"more shared memory than {most:,} bytes": row["shared_bytes"] > most,
        "registers spill": spilled > 0,
        "products without tensor cores": heights and not row["wgmma"] + row["mma"],
        "products of 64 rows without wgmma": capability == 90 and 64 in heights and not row["wgmma"],
    }
    return row | {"wrong": ", ".join(what for what in wrong if wrong[what])}


def registers_and_spills(cubin):
    """Registers of a thread, and the bytes that it keeps in memory in place of registers."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with TemporaryDirectory() as folder:
        Path(folder, "kernel.cubin").write_bytes(cubin)
        said = subprocess.check_output([tool, "-res-usage", "kernel.cubin"], cwd=folder, text=True)
    return map(int, re.search(r"REG:(\d+) STACK:(\d+)", said).groups())


def code_size(cubin):
    """Bytes of instructions: of an ELF file's sections those that are marked executable."""
    (start,), (size, count) = struct.unpack_from("<Q", cubin, 0x28), struct.unpack_from("<HH", cubin, 0x3A)
    sections = (struct.unpack_from("<8xQ16xQ", cubin, start + i * size) for i in range(count))
    return sum(length for flags, length in sections if flags & 4)
