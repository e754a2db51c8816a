"""On a GPU: a token's work as a CUDA graph, kernels for single steps, loss slices. A CPU shows all but the GPU."""

from types import SimpleNamespace

import kernels
import sample
from fast import generation, losses, operators
from model import MIXERS, Config, LanguageModel, use_kernels

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GROWING = ("attention", "hyena")


class Recording(TorchDispatchMode):
    """Does what a CUDA graph does: a step's operations again, on the same memory, without its Python."""

    def __init__(self, step):
        super().__init__()
        self.calls = []
        step()  # twice to warm up, as generation.record
        step()
        with self:
            step()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result

    def launch(self):
        for function, args, kwargs, result in self.calls:
            for old, new in zip(tree_leaves(result), tree_leaves(function(*args, **kwargs))):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def recorded(monkeypatch):
    """A list of the recordings that generation makes in place of CUDA graphs."""
    made = []

    def record(step):
        made.append(Recording(step))
        return made[-1].launch

    monkeypatch.setattr(generation, "record", record)
    return made


def tokens_of(model, **settings):
    settings = dict(tokens=25, temperature=0.7, seed=3) | settings
    return list(sample.generate(model, [1, 2, 3], sample.Settings(**settings)))


def make(mixer, **settings):
    config = dict(vocab_size=50, n_layer=2, d_model=16, n_head=2, d_mlp=24, context=64, conv=3)
    model = LanguageModel(Config(mixer=mixer, **config | settings)).eval()
    model.head.weight.data *= 5  # opinions, but not one alone
    return model


@pytest.mark.parametrize("form", ["auto", "loop"])
@pytest.mark.parametrize("mixer", [mixer for mixer in MIXERS if mixer not in GROWING])
def test_a_graph_of_a_recurrent_models_step_gives_the_same_tokens(mixer, form, recorded, capsys):
    """To the bit: drawn at random, each text with a graph of its own."""
    model = make(mixer)
    use_kernels(form, model)
    for seed in (3, 4):
        tokens = tokens_of(model, seed=seed)
        assert tokens_of(model, seed=seed, cuda_graph=True) == tokens and len(set(tokens)) > 3
    assert len(recorded) == 2 and all(recording.calls for recording in recorded)
    assert capsys.readouterr().err == ""


def test_a_graph_reads_without_its_model(recorded):
    """... and goes on from its own states."""
    model = make("hgrn2")
    with torch.inference_mode():
        _, states = model.features(torch.tensor([[1, 2, 3]]))
        graph, token = generation.StepGraph(model, states), torch.tensor([[4]])
        model.features = None
        features = [graph(token, None)[0].clone() for _ in range(2)]
    assert not torch.equal(*features)  # the states moved on


@pytest.mark.parametrize(
    "settings, why",
    [(dict(mixer="attention"), "size"), (dict(mixer="hyena"), "size"), (dict(mixer="hgrn2 attention"), "size"),
     (dict(mixer="hgrn2", position="learned"), "not a tensor")],
    ids=str,
)  # fmt: skip
def test_a_model_whose_states_grow_or_are_numbers_generates_without(settings, why, recorded, capsys):
    model = make(**settings)
    assert tokens_of(model, cuda_graph=True) == tokens_of(model)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("no CUDA graph of this model (") and why in line and not recorded


def test_a_step_that_cannot_be_recorded_generates_without(monkeypatch, capsys):
    def fail(step):
        step()
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(generation, "record", fail)
    model = make("mingru")
    assert tokens_of(model, cuda_graph=True) == tokens_of(model)
    (line,) = capsys.readouterr().err.splitlines()
    assert "not permitted when stream is capturing): it generates without" in line


def test_without_a_gpu_a_graph_is_refused(workplace, script):
    result = script("sample.py", "out/tiny", "--cuda_graph")
    assert result.returncode == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line == "cuda_graph = True: needs an NVIDIA GPU, not cpu; leave out --cuda_graph"


# ---------------------------------------------------------------------------------------------------
# single steps and loss slices


@pytest.mark.parametrize("mixer", ["hgrn2", "mamba"])
def test_single_steps_are_loops_only_where_triton_does_not_run(mixer, monkeypatch):
    """Elsewhere a loop's many launches take longer than Triton's one or two. Both are the same step."""
    pytest.importorskip("triton")
    called = []

    def noted(f):
        return lambda *inputs: called.append(f.__name__) or f(*inputs)

    loops = operators.gated_linear_attention_loop, operators.selective_scan_loop
    for loop in loops:
        monkeypatch.setattr(operators, loop.__name__, noted(loop))
    model = make(mixer, n_layer=1, d_model=16, d_state=4)
    use_kernels("auto", model)
    logits = []
    for interpreted in (False, True):
        monkeypatch.setattr(kernels, "INTERPRETED", interpreted)
        with torch.inference_mode():
            x, states = model.features(torch.tensor([[1]]))
            y, _ = model.features(torch.tensor([[2]]), states)
        logits.append(torch.cat([x, y]))
        assert bool(called) != interpreted
        called.clear()
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)


def test_a_slice_of_the_loss_is_larger_on_a_gpu_but_never_below_a_cpus():
    cpu, gpu = (SimpleNamespace(device=torch.device(name)) for name in ("cpu", "cuda"))
    for V in (65, 1024, 16_000, 65_536):
        assert losses.rows_of_slice(cpu, V) == losses.SLICE
        rows = losses.rows_of_slice(gpu, V)
        assert rows >= losses.SLICE and rows * V <= losses.SLICE_ON_GPU < (rows + 1) * V
    assert losses.rows_of_slice(gpu, 10**6) == losses.SLICE
