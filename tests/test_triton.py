"""
The Triton kernels are the loops too: on a GPU compiled, elsewhere in Triton's interpreter, which is slow, so sizes
are small here.
"""

import pytest
import torch
from test_kernels import (
    GATES,
    STEPS,
    assert_same,
    log_gates,
    min_gru_listing,
    min_lstm_listing,
    selective_inputs,
)

import kernels

triton_kernels = pytest.importorskip("triton_kernels", reason="Triton is not installed")


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setattr(triton_kernels, "INTERPRETED", not torch.cuda.is_available())
    torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    yield
    torch.set_default_device("cpu")


# ---------------------------------------------------------------------------------------------------
# linear scan


@pytest.fixture
def tile(monkeypatch, request):
    """Steps and channels of a tile."""
    BT, BD = getattr(request, "param", (16, 16))
    monkeypatch.setattr(triton_kernels, "scan_tile", lambda z: (BT, BD, 4, 3))


@pytest.mark.parametrize(
    "B, T, D", [(1, 1, 1), (2, 15, 3), (1, 16, 16), (2, 17, 20), (1, 63, 5), (1, 129, 3)]
)
def test_linear_scan_is_the_loop(B, T, D, tile):
    inputs = log_gates("of all kinds", B, T, D).exp(), torch.randn(B, T, D), torch.randn(B, D)
    assert_same(kernels.linear_scan, kernels.linear_scan_loop, inputs)


@pytest.mark.parametrize("kind", GATES)
def test_linear_scan_takes_every_gate(kind, tile):
    inputs = log_gates(kind, 1, 40, 8).exp(), torch.randn(1, 40, 8), torch.randn(1, 8)
    assert_same(kernels.linear_scan, kernels.linear_scan_loop, inputs)


@pytest.mark.parametrize("size", [1, 10])
@pytest.mark.parametrize("T", [1, 40])
def test_min_gru_and_min_lstm_are_the_papers_listings(T, size, tile):
    for listing, fast, n in ((min_gru_listing, kernels.min_gru, 2), (min_lstm_listing, kernels.min_lstm, 3)):
        inputs = [size * torch.randn(2, T, 6) for _ in range(n)]
        assert_same(fast, listing, [*inputs, torch.rand(2, 6)])


# ---------------------------------------------------------------------------------------------------
# selective scan


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("B, T, E, N", [(1, 1, 1, 1), (2, 16, 3, 5), (1, 33, 2, 8)])
def test_selective_scan_is_the_loop(B, T, E, N, kind):
    assert_same(kernels.selective_scan, kernels.selective_scan_loop, selective_inputs(B, T, E, N, kind))


def test_selective_scan_over_several_blocks_of_channels(monkeypatch):
    monkeypatch.setattr(
        triton_kernels, "selective_tile", lambda E, N, backward: (16, 4, 4 if backward else 2, 1)
    )
    assert_same(kernels.selective_scan, kernels.selective_scan_loop, selective_inputs(2, 17, 7, 3))


def test_selective_scan_without_a_gradient():
    """No states are kept."""
    inputs = selective_inputs(1, 20, 3, 4)
    for ours, exact in zip(kernels.selective_scan(*inputs), kernels.selective_scan_loop(*inputs)):
        torch.testing.assert_close(ours, exact)
