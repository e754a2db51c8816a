"""optimizer = "muon": Muon for the matrices of linear layers, AdamW for the rest; it is saved and resumed too."""

import re
from functools import partial

import train
from conftest import bits, losses, saved
from model import LanguageModel

import pytest
import torch
from processes import fork_two, needs_fork


def muons(model, s):
    """{name of a weight: whether it is Muon's}"""
    groups = train.make_optimizer(model, s).param_groups
    owners = {id(p): "momentum" in group for group in groups for p in group["params"]}
    assert len(owners) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    return {name: owners[id(p)] for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    "shape, matrices",
    [
        (dict(mixer="hgrn2"), r"layers.*(query|forget|input|output|gate|up|down)\.weight"),
        (dict(mixer="mingru", conv=4, expand=2), r"layers.*(update|candidate|output|gate|up|down)\.weight"),
        (
            dict(mixer="attention", position="learned", mlp="gelu"),
            r"layers.*(query|key|value|output|up|down)\.weight",
        ),
        (dict(mixer="mamba", mlp="none"), r"layers.*(input|select|step|output)\.weight"),
        (dict(mixer="lstm"), r"layers.*(output|gate|up|down)\.weight"),
        (dict(mixer="mlstm", mlp="none"), r"layers.*(mixer.up|gates|output)\.weight"),
    ],
    ids=str,
)
def test_muon_has_the_matrices_of_linear_layers(tiny, shape, matrices):
    """... not embeddings, head, norms, biases, convolutions, positions, floors, log A or blocks of a matrix."""
    s = tiny(optimizer="muon", **shape)
    for name, is_muons in muons(LanguageModel(s), s).items():
        assert is_muons == bool(re.fullmatch(matrices, name)), name


def test_a_step_is_along_orthogonal_matrices_and_adamws_for_the_rest(tiny):
    """W moves by rate x max(1, rows / columns)^1/2 x some U V^T with the gradient's own directions, and decays."""
    s = tiny(optimizer="muon", muon_times=2.0, learning_rate=0.01, weight_decay=0.5, d_model=16, d_mlp=24)
    torch.manual_seed(0)
    models = [LanguageModel(s) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    tokens = torch.randint(300, (2, 4, 16))
    for model, optimizer in zip(models, ("muon", "adamw")):
        train.NextToken(model)(*tokens)["loss"].backward()
        then = {name: p.detach().clone() for name, p in model.named_parameters()}
        train.make_optimizer(model, tiny(**vars(s) | {"optimizer": optimizer})).step()
    now, adams = (dict(model.named_parameters()) for model in models)
    for name, is_muons in muons(models[0], s).items():
        if not is_muons:
            assert torch.equal(now[name], adams[name]), name
            continue
        rows, columns = now[name].shape
        step = (then[name] * (1 - 0.02 * 0.5) - now[name]) / 0.02 / max(1, rows / columns) ** 0.5
        U, _, V = torch.linalg.svd(now[name].grad, full_matrices=False)
        along = U.mT @ step @ V.mT
        assert along.diagonal().quantile(0.1) > 0.4 and along.diagonal().max() < 1.3, name
        assert (along - along.diagonal().diag()).norm() < 0.15 * along.norm(), name


def test_its_rate_follows_the_schedule(workplace, tiny):
    s = tiny(optimizer="muon", muon_times=3.0, schedule="linear", warmup=0, max_steps=4, run="rate")
    train.main(s)
    for group in saved(run="rate")["optimizer"]["param_groups"]:
        assert group["lr"] == pytest.approx((3 if "momentum" in group else 1) * s.learning_rate / 4)


def test_resuming_changes_no_bit(workplace, tiny):
    s = dict(optimizer="muon", schedule="constant", dropout=0.1, eval_every=3, mixer="hgrn2 mingru")
    train.main(tiny(run="whole", max_steps=6, **s))
    for steps in (3, 6):
        train.main(tiny(run="parts", max_steps=steps, **s))
    assert bits(saved(run="parts")) == bits(saved(run="whole")) and losses("parts") == losses("whole")


@needs_fork
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_are_one_but_for_the_rounding_of_bfloat16(workplace, tiny, parallel):
    s = dict(optimizer="muon", dtype="float64", max_steps=10)
    train.main(tiny(run="one", **s))
    codes, said = fork_two(partial(train.main, tiny(run="two", parallel=parallel, **s)))
    assert codes == [0, 0], said
    assert losses("two")[0] == pytest.approx(losses("one")[0], rel=1e-9)
    assert losses("two") == pytest.approx(losses("one"), rel=2e-3)


def test_float16s_scaler_reaches_both(workplace, tiny):
    train.main(tiny(optimizer="muon", dtype="float16", run="half"))
    assert losses("half")[-1] < losses("half")[0] - 1
