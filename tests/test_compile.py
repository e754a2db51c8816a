"""torch.compile takes whole models as they are: in one graph, with the same loss and gradients."""

from functools import partial

from conftest import TINY
from kernels import use_kernels
from model import LanguageModel
from support.parallel import compile_blocks
from train import NextToken, Settings

import pytest
import torch


def language_model(**settings):
    """The training loss of a small one, as train.py compiles it, and tokens and targets."""
    settings = Settings(**TINY | {"n_layer": 1} | settings)
    objective = NextToken(LanguageModel(settings))
    use_kernels("auto", objective)
    return objective, *torch.randint(settings.vocab_size, (2, 3, 40))


MODELS = {
    "HGRN2": lambda: language_model(mixer="hgrn2", n_layer=2),
    "minGRU": lambda: language_model(mixer="mingru"),
    "minLSTM": lambda: language_model(mixer="minlstm", conv=4, dropout=0.0),
    "Llama": lambda: language_model(mixer="attention", position="rope"),
    "Mamba": lambda: language_model(mixer="mamba", mlp="none", expand=2),
    "S4D": lambda: language_model(mixer="s4d"),
    "Hyena": lambda: language_model(mixer="hyena", context=80),
}


def test_texts_of_many_lengths_are_compiled_twice():
    """For the first length, then for all."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = MODELS["minGRU"]()[0].model.eval()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        for T in (9, 12, 33, 40, 41, 57):
            compiled(torch.randint(50, (2, T)))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


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
        loss = f(inputs, targets)["loss"]
        results.append([loss, *torch.autograd.grad(loss, list(module.parameters()))])
    for eager, compiled in zip(*results):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mixer", ["hgrn2", "mingru attention"])
def test_blocks_of_one_kind_are_compiled_once(mixer, monkeypatch):
    """... however many there are, with the gradients of blocks that are not; floors are one more graph."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    s = Settings(**TINY | dict(mixer=mixer, n_layer=6, position="rope"))
    module = NextToken(LanguageModel(s).double())
    use_kernels("auto", module)
    tokens, weights, results = torch.randint(300, (4, 16)), list(module.parameters()), []
    for compiled in (False, True):
        if compiled:
            compile_blocks(module)
        loss = module(tokens, tokens)["loss"]
        results.append([loss, *torch.autograd.grad(loss, weights)])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for T in (3, 5, 8):  # as between steps
            module(tokens[:, :T], tokens[:, :T])
    module(tokens, tokens)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    for eager, compiled in zip(*results):
        torch.testing.assert_close(compiled, eager, rtol=1e-9, atol=1e-12)


def test_a_process_compiles_as_many_kinds_of_blocks_as_a_comparison_has(monkeypatch):
    """torch.compile would give up after eight, with a warning, and run the others uncompiled."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for d_mlp in range(16, 28):
        module = NextToken(LanguageModel(Settings(**TINY | dict(mixer="mingru", n_layer=1, d_mlp=d_mlp))))
        compile_blocks(module)
        module(*torch.randint(300, (2, 2, 16)))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 12
