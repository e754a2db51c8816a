"""torch.compile takes the recurrences as they are: in one graph, with the same loss and gradients."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import kernels


class Mamba(nn.Module):
    """A small one: projections around a selective scan."""

    def __init__(self, D=8, N=4):
        super().__init__()
        self.select, self.output = nn.Linear(D, 2 * D + 2 * N), nn.Linear(D, D)
        self.log_A = nn.Parameter(torch.rand(D, N))
        self.split = D, D, N, N

    def forward(self, x):
        x, dt, B, C = self.select(x).split(self.split, -1)
        y, h = kernels.selective_scan(x, F.softplus(dt), -self.log_A.exp(), B, C)
        return self.output(y), h


@pytest.mark.parametrize("mixer", [Mamba])
def test_a_mixer_is_one_graph(mixer):
    torch.manual_seed(0)
    mixer, x = mixer(), torch.randn(2, 20, 8)
    breaks = torch._dynamo.explain(mixer)(x).graph_break_count
    torch._dynamo.reset()
    results = []
    for f in (mixer, torch.compile(mixer, backend="aot_eager", fullgraph=True)):
        y, h = f(x)
        loss = (y**2).mean() + (h**2).mean()
        results.append([loss, *torch.autograd.grad(loss, list(mixer.parameters()))])
    assert breaks == 0
    for eager, compiled in zip(*results):
        torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-7)
