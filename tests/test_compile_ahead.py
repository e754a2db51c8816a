"""
Every Triton kernel compiles for the cards it is to run on, fits them and hardly spills; without a GPU, and in
processes of their own, since in this one Triton may be interpreting.
"""

from types import SimpleNamespace

import kernels
from support.devices import check_kernels
from tools import compile_kernels
from tools.compile_kernels import SHARED_BYTES, attention, compile_all, configurations, scan, selective

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


def launch(kernel, N=32, STAGES=1, warps=4):
    x = torch.empty(1, dtype=torch.bfloat16)
    globals()[kernel][(1,)](x, x, N, STAGES, num_warps=warps)


WRONG = {  # what is said: the kernel that is so
    "": dict(kernel="square"),
    "more shared memory than": dict(kernel="square", N=128, STAGES=6),
    "registers spill": dict(kernel="square", N=128, warps=2),
    "does not compile": dict(kernel="misspelt"),
}


@pytest.fixture(scope="module")
def capabilities(request):
    """The A100, A6000, H100 and B200; or all."""
    return tuple(SHARED_BYTES) if request.config.getoption("--long") else (80, 86, 90, 100)


@pytest.fixture(scope="module")
def rows(request, capabilities):
    """All that is compiled here, at once, for processes take seconds to start."""
    ours = list(configurations()) if request.config.getoption("--long") else SAMPLE
    ours = ours + [(wrong, launch, arguments) for wrong, arguments in WRONG.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")  # which is not for these processes
        return compile_all(ours, capabilities, processes=2)


def test_kernels_compile_and_fit(rows, capabilities):
    rows = [row for row in rows if row["for"] not in WRONG]
    assert {row["capability"] for row in rows} == set(capabilities)
    wrong = [
        f"{row['for']}: {row['kernel']} on sm_{row['capability']}: {row['wrong']}"
        for row in rows
        if row["wrong"]
    ]
    assert not wrong, "\n".join(wrong)


def test_what_is_wrong_with_a_kernel_is_said(rows, capabilities):
    rows = [row for row in rows if row["for"] in WRONG]
    assert [row["for"] for row in rows] == [wrong for wrong in WRONG for _ in capabilities]
    assert all(row["for"] in row["wrong"] if row["for"] else not row["wrong"] for row in rows), rows


def test_products_are_counted(rows, capabilities):
    """A product of 32 rows is by mma.sync on every card; one of 128 rows is not, on Hopper and the B200."""
    rows = {row["capability"]: row for row in rows if row["for"] == ""}
    for capability in capabilities:
        row = rows[capability]
        assert row["mma"] > 0 and row["registers"] > 16 and row["shared_bytes"] >= 32 * 32 * 2


def test_a_card_before_the_a100_is_refused_by_name(monkeypatch, refusal):
    """kernels = "triton" there; "auto" takes PyTorch's form."""
    T4 = SimpleNamespace(major=7, name="Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: T4)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: T4.name)
    said = refusal(check_kernels, "triton", "cuda")
    assert "(A100 or newer); here is Tesla T4; set kernels = 'auto'" in said and said.count("\n") == 1
    check_kernels("auto", "cuda")
    assert not kernels.has_triton(torch.device("cuda"))


def test_without_triton_it_says_so(monkeypatch, refusal):
    monkeypatch.setattr(kernels, "triton", None)
    assert "Triton is not installed" in refusal(compile_kernels.measure, None)
