"""torch.compile takes whole models as they are: in one graph, with the same loss and gradients."""

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from torch import nn

import kernels
from model import LanguageModel
from train import NextToken, Settings


class Mamba(nn.Module):
    """A small one: projections around a selective scan."""

    def __init__(self, D=8, N=4):
        super().__init__()
        self.select, self.output = nn.Linear(D, 2 * D + 2 * N), nn.Linear(D, D)
        self.log_A = nn.Parameter(torch.rand(D, N))
        self.split = D, D, N, N

    def forward(self, x, targets):
        x, dt, B, C = self.select(x).split(self.split, -1)
        y, h = kernels.selective_scan(x, F.softplus(dt), -self.log_A.exp(), B, C)
        return ((self.output(y) - targets) ** 2).mean() + (h**2).mean()


def language_model(**settings):
    """The training loss of a small one, as train.py compiles it."""
    settings = Settings(**TINY | settings)
    return NextToken(LanguageModel(settings)), *torch.randint(settings.vocab_size, (2, 3, 40))


MODELS = {
    "HGRN2": lambda: language_model(mixer="hgrn2"),
    "minGRU": lambda: language_model(mixer="mingru"),
    "minLSTM": lambda: language_model(mixer="minlstm", conv=4, dropout=0.0),
    "Llama": lambda: language_model(mixer="attention", position="rope"),
    "Mamba": lambda: (Mamba(), *torch.randn(2, 3, 40, 8)),
}


@pytest.mark.filterwarnings("error:Dynamo detected")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_model_is_one_graph(name, backend, request):
    """fullgraph=True is an error where a graph breaks. Inductor, which takes a minute, only with --long."""
    if backend == "inductor" and not request.config.getoption("--long"):
        pytest.skip("inductor: with --long")
    torch.manual_seed(0)
    module, inputs, targets = MODELS[name]()
    torch._dynamo.reset()
    results = []
    for f in (module, torch.compile(module, backend=backend, fullgraph=True)):
        loss = f(inputs, targets)
        results.append([loss, *torch.autograd.grad(loss, list(module.parameters()))])
    assert torch._dynamo.utils.counters["graph_break"] == {}
    for eager, compiled in zip(*results):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)
