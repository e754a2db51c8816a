"""
Every Triton kernel compiles for the cards it is to run on, fits them and spills nothing; without a GPU, and in
processes of their own, since in this one Triton may be interpreting.
"""

from tools import compile_kernels
from tools.compile_kernels import attention, compile_all, configurations, scan, selective

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")
tl = triton.language

SAMPLE = [
    ("linear_scan", scan, dict(kind="linear_scan", inputs=2, dtype=torch.bfloat16)),
    ("min_lstm", scan, dict(kind="min_lstm", inputs=3, dtype=torch.float32)),
    ("attention", attention, dict(K=128, V=128, dtype=torch.bfloat16)),
    ("attention", attention, dict(K=64, V=64, dtype=torch.float32, tied=False)),
    ("selective", selective, dict(N=16, dtype=torch.bfloat16)),
]


def test_kernels_compile_and_fit(times):
    rows = compile_all(times(SAMPLE, list(configurations())), processes=2)
    assert {row["capability"] for row in rows} == {80, 86, 90}
    wrong = [
        f"{row['for']}: {row['kernel']} on sm_{row['capability']}: {row['wrong']}"
        for row in rows
        if row["wrong"]
    ]
    assert not wrong, "\n".join(wrong)


@triton.jit
def square(x, y, N: tl.constexpr, STAGES: tl.constexpr):
    i = tl.arange(0, N)
    at = i[:, None] * N + i[None, :]
    total = tl.zeros([N, N], tl.float32)
    for j in tl.range(0, 8, num_stages=STAGES):
        total = tl.dot(tl.load(x + at + j * N), tl.load(x + at - j * N), total)
    tl.store(y + at, total)


@triton.jit
def misspelt(x, y, N: tl.constexpr, STAGES: tl.constexpr):
    tl.store(y, tl.lode(x))


def launch(kernel, N=64, STAGES=1, warps=4):
    x = torch.empty(1, dtype=torch.bfloat16)
    globals()[kernel][(1,)](x, x, N, STAGES, num_warps=warps)


def test_what_is_wrong_with_a_kernel_is_said():
    kernels = {
        "": dict(kernel="square"),
        "more shared memory than": dict(kernel="square", N=128, STAGES=6),
        "registers spill": dict(kernel="square", N=128, warps=2),
        "does not compile": dict(kernel="misspelt"),
    }
    sets = [(wrong, launch, arguments) for wrong, arguments in kernels.items()]
    rows = compile_all(sets, capabilities=[86, 90], processes=2)
    assert [row["for"] for row in rows] == [wrong for wrong in kernels for _ in (86, 90)]
    assert all(row["for"] in row["wrong"] if row["for"] else not row["wrong"] for row in rows), rows


def test_what_it_counts(monkeypatch):
    """On Hopper a product of 64 rows is wgmma; before it, mma.sync."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # which is not for these processes
    old, new = compile_all(
        [("mine", launch, dict(kernel="square", STAGES=3))], capabilities=[80, 90], processes=1
    )
    assert old["mma"] and not old["wgmma"] and new["wgmma"]
    assert old["registers"] > 16 and new["shared_bytes"] >= 2 * 64 * 64 * 2


def test_without_triton_it_says_so(monkeypatch, refusal):
    monkeypatch.setattr(compile_kernels.kernels, "triton", None)
    assert "Triton is not installed" in refusal(compile_kernels.measure, None)
