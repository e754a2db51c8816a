"""documents = "apart": nothing crosses the beginning of a document, in any mixer and any form of it."""

import json

import kernels
import train
from model import DOCUMENT_START, Config, LanguageModel
from support.parallel import recompute_blocks

import pytest
import torch
from test_model import SHAPE

KINDS = {
    "hgrn2": {},
    "mingru": {"conv": 4},
    "minlstm": {"conv": 3},
    "attention": {},
    "llama": {"mixer": "attention", "position": "rope"},
    "gpt2": {"mixer": "attention", "position": "learned"},
    "lstm": {},
    "gru": {},
    "aaren": {},
    "mlstm": {"mlp": "none", "expand": 2},
    "slstm": {"mlp": "geglu"},
    "mamba": {"mlp": "none", "expand": 2},
    "hgrn2 attention mlstm": {},
}
RECURRENCES = ("hgrn2", "mingru", "minlstm", "aaren", "mlstm", "mamba")  # that Triton computes
STARTS = ((0, 17, 18, 30), (7, 39))  # of documents, in two rows of 40 tokens


def build(kind, form):
    torch.manual_seed(0)
    shape = SHAPE | {"n_layer": 1, "d_model": 8, "n_head": 1, "d_state": 4} if form == "triton" else SHAPE
    model = LanguageModel(Config(**shape | {"mixer": kind, "documents": "apart"} | KINDS[kind]))
    # zeros and ones, as some are at first, would hide what they multiply
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    kernels.use_kernels(form, model)
    return model


FORMS = [(kind, form) for kind in KINDS for form in ("loop", "torch")]
FORMS += [(kind, "triton") for kind in RECURRENCES]


@pytest.fixture(params=FORMS, ids="-".join)
def model(request, monkeypatch):
    kind, form = request.param
    if form == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
        monkeypatch.setattr(kernels, "INTERPRETED", True)
        monkeypatch.setattr(kernels, "scan_tile", lambda kind, backward=False: (4, 4, 8, 1))
    return build(kind, form)


@pytest.fixture
def tokens():
    """Two rows of documents."""
    tokens = torch.randint(2, SHAPE["vocab_size"], (2, 40), generator=torch.Generator().manual_seed(1))
    for row, starts in zip(tokens, STARTS):
        row[list(starts)] = DOCUMENT_START
    return tokens


def documents(tokens):
    """The documents of both rows, each (1, length), in order; the second row begins within one."""
    cuts = [[0, *(start for start in starts if start), 40] for starts in STARTS]
    return [row[None, a:b] for row, cut in zip(tokens, cuts) for a, b in zip(cut, cut[1:])]


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_a_document_in_a_row_is_what_it_is_alone(model, tokens):
    """Logits and gradients; without `reset` there is a difference."""
    logits, _ = model(tokens, reset=model.document_starts(tokens))
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    (logits * weights).sum().backward()
    together = gradients(model)
    model.zero_grad()
    alone = torch.cat([model(document)[0] for document in documents(tokens)], dim=1).view_as(logits)
    (alone * weights).sum().backward()
    torch.testing.assert_close(logits, alone, rtol=0, atol=1e-5 * float(alone.detach().abs().max()))
    largest = max(float(gradient.abs().max()) for gradient in together.values())
    for name, gradient in gradients(model).items():
        atol = 2e-5 * max(float(gradient.abs().max()), 1e-2 * largest)  # a key's bias has none but rounding
        torch.testing.assert_close(together[name], gradient, rtol=1e-4, atol=atol)
    assert (model(tokens)[0] - alone).abs().max() > 1e-3


def test_a_row_in_parts_is_the_row(model, tokens):
    """... wherever it is cut, also just before and after a beginning."""
    reset = model.document_starts(tokens)
    with torch.no_grad():
        whole, _ = model(tokens, reset=reset)
        cuts_of_rows = [17], [18, 19], [1, 7, 8, 29, 31, 39], range(1, 40)
        for cuts in cuts_of_rows[: 2 if kernels.INTERPRETED else 4]:
            states, parts = None, []
            for a, b in zip([0, *cuts], [*cuts, 40]):
                logits, states = model(tokens[:, a:b], states, reset[:, a:b])
                parts.append(logits)
            torch.testing.assert_close(
                torch.cat(parts, dim=1), whole, rtol=0, atol=1e-5 * float(whole.abs().max())
            )
        _, states = model(tokens, reset=reset)
        goes_on = model(tokens[:, 2:4], states)[0]  # the last documents, without a word of `reset`
        for row, last in enumerate([documents(tokens)[3], documents(tokens)[-1]]):
            alone = model(torch.cat([last, tokens[row : row + 1, 2:4]], dim=1))[0][0, -2:]
            torch.testing.assert_close(
                goes_on[row], alone, rtol=0, atol=1e-5 * float(alone.detach().abs().max())
            )


@pytest.mark.parametrize("bias", [-80.0, -90.0, -110.0])
@pytest.mark.parametrize("form", ["loop", "torch"])
def test_a_step_of_mamba_that_rounds_to_nothing_can_be_cleared(tokens, form, bias):
    model = build("mamba", form)
    for layer in model.layers:
        layer.mixer.step.bias.data[0] = bias
    logits, _ = model(tokens, reset=model.document_starts(tokens))
    logits.sum().backward()
    assert logits.isfinite().all() and all(x.isfinite().all() for x in gradients(model).values())


@pytest.mark.parametrize("mixer", ["s4d", "hyena", "hgrn2 s4d"])
def test_who_cannot_forget_says_so(mixer, refusal):
    said = refusal(Config(mixer=mixer, documents="apart").check)
    why = "cannot forget what came before; its forward has no argument `reset`"
    assert said == f"documents = 'apart': mixer {mixer.split()[-1]!r} {why}\n"


def test_training_and_validation_keep_documents_apart(workplace, tiny):
    """The loss of a run, step by step, is another one than with documents joined, in both forms the same."""
    losses = {}
    for documents_are, form in (("joined", "auto"), ("apart", "auto"), ("apart", "loop")):
        s = tiny(
            documents=documents_are, kernels=form, dtype="float64", fresh=True, max_steps=4, eval_every=2
        )
        train.main(s)
        lines = [json.loads(line) for line in open("out/tiny/log.jsonl")]
        losses[documents_are, form] = [line.get("loss", line.get("val_loss")) for line in lines]
    joined, apart, loop = losses.values()
    assert apart == pytest.approx(loop, abs=1e-9)
    assert max(abs(a - b) for a, b in zip(joined, apart)) > 1e-4
    assert abs(joined[0] - apart[0]) > 1e-4  # validation before the first step, of the same weights


def test_recomputed_blocks_keep_them_apart(tokens):
    model, kept = build("hgrn2", "auto"), []
    for _ in range(2):
        model.zero_grad()
        model(tokens, reset=model.document_starts(tokens))[0].square().sum().backward()
        kept.append(gradients(model)["embed.weight"])
        recompute_blocks(train.NextToken(model))
    torch.testing.assert_close(*kept)


def test_a_corpus_without_documents_is_refused(workplace, tiny, refusal):
    """... one of single characters, say, whose tokenizer has no <s>."""
    path = workplace / "data/tiny/tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"<s>"', '"<start>"'), encoding="utf-8")
    said = refusal(train.main, tiny(documents="apart"))
    what = "data/tiny is not cut into documents; set documents = 'joined'"
    assert said.splitlines()[-1] == f"documents = 'apart': {what}"
