"""The text is the program: what is written in model.py, and the loops, give all that the fast forms give."""

import ast
import copy
import importlib.util
import inspect
import io
import pickle
import subprocess
import sys
import textwrap
import tokenize
from pathlib import Path

import distill
import evaluate
import sample
import train
from conftest import ROOT, TINY, log, losses
from kernels import use_kernels
from model import MIXERS, Config, LanguageModel

import pytest
import torch
from torch import nn

SHAPE = dict(vocab_size=50, n_layer=2, d_model=16, n_head=2, d_mlp=24, context=40)
LAYOUTS = {name: dict(mixer=name) for name in MIXERS}  # every mixer, in the blocks that its paper has
LAYOUTS |= {
    "attention": dict(mixer="attention", position="rope"),
    "mlstm": dict(mixer="mlstm", mlp="none", norm="layernorm_nobias", expand=2),
    "slstm": dict(mixer="slstm", mlp="geglu", norm="layernorm_nobias"),
    "mamba": dict(mixer="mamba", mlp="none", expand=2, d_state=8),
    "gpt2": dict(mixer="attention", position="learned", norm="layernorm", mlp="gelu", tie_embeddings=True),
    "minrnn's language model": dict(mixer="mingru", conv=4, expand=2, tie_embeddings=True),
    "a hybrid": dict(mixer="hgrn2 hgrn2 attention", n_layer=3),
}
BOUND = {torch.float64: 1e-9, torch.float32: 1e-4}
by_layout = pytest.mark.parametrize("layout", LAYOUTS)
by_dtype = pytest.mark.parametrize("dtype", BOUND, ids=str)


class Student(nn.Module):
    """A mixer as a student writes it, of PyTorch's own layers: a moving average at learned speeds."""

    no_decay = ("speed",)

    def __init__(self, config, layer):
        super().__init__()
        self.speed = nn.Parameter(torch.zeros(2, config.d_model))
        self.value = nn.Linear(config.d_model, config.d_model)
        self.output = nn.Linear(config.d_model, config.d_model)

    def forward(self, x, state=None):
        h, hs = torch.zeros_like(x[:, 0]) if state is None else state, []
        keep = self.speed.sum(0).sigmoid()
        for value in self.value(x).unbind(1):
            h = keep * h + (1 - keep) * value
            hs.append(h)
        return self.output(torch.stack(hs, dim=1)), h


@pytest.fixture
def student(monkeypatch):
    monkeypatch.setitem(MIXERS, "student", Student)


def build(dtype=torch.float64, **layout):
    """A model all of whose parameters count: none is 0 or 1, as many are at the start."""
    torch.manual_seed(0)
    model = LanguageModel(Config(**SHAPE | layout)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def batch(T=40):
    """Tokens and targets (2, T), some without a target."""
    tokens, targets = torch.randint(50, (2, 2, T), generator=torch.Generator().manual_seed(1))
    targets[0, :5] = -100
    return tokens, targets


def losses_and_gradients(objective, form, inputs):
    """All losses of an objective, then the gradients of all parameters that learn."""
    use_kernels(form, objective)
    found = objective(*inputs)
    weights = [p for p in objective.parameters() if p.requires_grad]
    return [*(x.detach() for x in found.values()), *torch.autograd.grad(found["loss"], weights)]


def assert_near(ones, others, bound):
    """Each tensor is within `bound` of the other, relative to its largest number; some are 0 but for rounding."""
    for i, (x, y) in enumerate(zip(ones, others, strict=True)):
        assert x.dtype == y.dtype and x.shape == y.shape, f"number {i}"
        assert (x - y).abs().max() <= bound * max(y.abs().max(), 1e-4), f"number {i}"


def assert_plain_is_fast(objective, dtype, inputs=None):
    plain, fast = (losses_and_gradients(objective, form, inputs or batch()) for form in ("loop", "auto"))
    assert_near(fast, plain, BOUND[dtype])


# ----------------------------------------------------------------------------------------------------
# Whole models


@by_dtype
@by_layout
def test_the_plain_model_is_the_fast_model(layout, dtype):
    """The training loss and the gradients of all parameters."""
    assert_plain_is_fast(train.NextToken(build(dtype, **LAYOUTS[layout])), dtype)


@by_dtype
@by_layout
def test_either_form_reads_on_from_the_states_of_the_other(layout, dtype):
    """A text in four parts, the form changing from part to part: logits and last states are those of the loops."""
    model, (tokens, _) = build(dtype, **LAYOUTS[layout]).eval(), batch()
    found = []
    for forms in (["loop"] * 4, ["auto", "loop", "auto", "loop"], ["loop", "auto", "auto", "auto"]):
        logits, states = [], None
        with torch.no_grad():
            for part, form in zip(tokens.tensor_split([7, 8, 30], dim=1), forms):
                use_kernels(form, model)
                y, states = model(part, states)
                logits.append(y)
        found.append([torch.cat(logits, dim=1), *tensors(states)])
    for other in found[1:]:
        assert_near(other, found[0], BOUND[dtype])


def tensors(states):
    """All numbers of a model's states."""
    if isinstance(states, torch.Tensor):
        return [torch.view_as_real(states) if states.is_complex() else states]
    return [x for state in states if not isinstance(state, int) for x in tensors(state)]


@by_layout
def test_under_autocast_both_forms_are_as_near_to_float64(layout):
    """In bfloat16 products are rounded, and rounded otherwise: neither form loses more by it."""
    objective, inputs = train.NextToken(build(torch.float64, **LAYOUTS[layout])), batch()
    exact = losses_and_gradients(objective, "loop", inputs)
    objective.float()
    errors = {}
    for form in ("loop", "auto"):
        with torch.autocast("cpu", torch.bfloat16):
            loss, *gradients = losses_and_gradients(objective, form, inputs)
        assert loss.dtype == torch.float32 and abs(loss - exact[0]) < 0.02
        distances = [(x - y).norm() for x, y in zip(gradients, exact[1:])]
        errors[form] = torch.stack(distances).norm() / torch.stack([y.norm() for y in exact[1:]]).norm()
    assert errors["auto"] < 1.5 * errors["loop"] < 0.15


@by_dtype
@pytest.mark.parametrize("sum_positions", [False, True])
@pytest.mark.parametrize("mean_of", ["logits", "probabilities"])
@pytest.mark.parametrize("count", [1, 2])
def test_plain_distillation_is_fast_distillation(count, mean_of, sum_positions, dtype):
    """From one teacher and from two of other kinds and widths: all three losses, and the student's gradients."""
    settings = dict(temperature=2.0, alpha=0.3, mean_of=mean_of, sum_positions=sum_positions)
    s = distill.Settings(**SHAPE, teacher="x", **settings)
    teachers = [build(dtype, mixer="attention", d_model=24), build(dtype, mixer="mingru", n_layer=1)]
    teachers = [teacher.eval().requires_grad_(False) for teacher in teachers[:count]]
    assert_plain_is_fast(distill.Distillation(build(dtype, mixer="hgrn2"), teachers, s), dtype)


@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
@by_layout
def test_plain_scores_are_those_of_the_tree(layout, dtype, bound):
    """Texts that begin alike or not, of many lengths, of which all or only the last tokens are scored."""
    model, random = build(dtype, **LAYOUTS[layout]).eval(), torch.Generator().manual_seed(2)
    words = torch.randint(50, (40, 30), generator=random).tolist()
    texts = [(row[:length], 1) for row, length in zip(words, range(2, 32))]
    texts += [(words[0][:12] + row[: 2 + i], 5 + i) for i, row in enumerate(words[30:])]
    texts += texts[3:5] + [([7], 1)]  # some twice; and one of which nothing is asked
    scores = []
    for form in ("loop", "auto"):
        use_kernels(form, model)
        scores.append(evaluate.score_texts(model, texts))
    assert scores[1] == pytest.approx(scores[0], rel=bound, abs=bound) and scores[0][-1] == 0


# ----------------------------------------------------------------------------------------------------
# The switch


@by_layout
def test_the_switch_changes_classes_and_nothing_else(layout):
    """Parameters stay the same tensors under the same names; "loop" brings every class back."""
    objective = train.NextToken(build(**LAYOUTS[layout]))
    classes, weights = [type(part) for part in objective.modules()], dict(objective.named_parameters())
    keys = objective.state_dict().keys()
    for form in ("auto", "torch", "triton", "loop", "auto", "loop"):
        use_kernels(form, objective)
        changed = [type(part) is not plain for part, plain in zip(objective.modules(), classes)]
        assert any(changed) == changed[0] == (form != "loop")
        assert objective.state_dict().keys() == keys
        now = dict(objective.named_parameters())
        assert all(now[name] is weight for name, weight in weights.items())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_model_with_fast_forms_can_be_copied_and_pickled(copied):
    """As other people's tools do with whole modules: an average of weights, a process of its own."""
    model = build(mixer="hgrn2")
    use_kernels("auto", model)
    same, tokens = copied(model), torch.randint(50, (2, 9))
    assert [type(part) for part in same.modules()] == [type(part) for part in model.modules()]
    assert same(tokens)[0].equal(model(tokens)[0])
    assert same.embed.weight is not model.embed.weight


def test_every_fast_method_takes_the_place_of_a_plain_one():
    """
    And of one that has not changed since the fast one was written. After a change, once the fast one follows it,
    write the new digest into fast/switch.py: until then the plain one runs.
    """
    from fast.switch import FAST, digest_of

    for name, fast in FAST.items():
        module, _, cls = name.partition(".")
        cls = getattr(sys.modules[module], cls)
        assert fast.name in vars(cls) and digest_of(cls, fast) == fast.digest, (
            f"{name}: {digest_of(cls, fast)}"
        )


def test_a_change_of_the_text_takes_effect(tmp_path, monkeypatch):
    """HGRN2 without the query's activation, another log_forget_gate, capped logits: what is written runs."""
    objective = train.NextToken(build(torch.float64, mixer="hgrn2"))
    whole = losses_and_gradients(objective, "auto", batch())[0]
    for name, old, new in (
        ("HGRN2", "F.silu(self.query(x))", "self.query(x)"),
        ("HGRN2", "- torch.log1p(-floor))", "- torch.log1p(-floor) + 1)"),
        ("NextToken", "return self.head(x), states", "return self.head(x).tanh(), states"),
    ):
        text = (ROOT / "model.py").read_text(encoding="utf-8")
        assert text.count(old) == 1
        (tmp_path / "model.py").write_text(text.replace(old, new), encoding="utf-8")
        spec = importlib.util.spec_from_file_location("changed.model", tmp_path / "model.py")
        changed = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "changed.model", changed)
        spec.loader.exec_module(changed)
        torch.manual_seed(0)
        other = changed.NextToken(changed.LanguageModel(Config(**SHAPE, mixer="hgrn2")).double())
        other.load_state_dict(objective.state_dict())
        with pytest.warns(UserWarning, match=f"model.{name} has been changed"):
            use_kernels("auto", other)
        fast = other(*batch())["loss"]
        use_kernels("loop", other)
        assert (fast - other(*batch())["loss"]).abs() < 1e-9 and (fast - whole).abs() > 1e-6


@by_dtype
def test_a_students_own_mixer_is_the_same_in_both_forms(student, dtype):
    assert_plain_is_fast(train.NextToken(build(dtype, mixer="student hgrn2")), dtype)


def test_a_students_own_mixer_trains_and_its_matrices_decay(student, workplace, tiny):
    """They are nn.Linear, which needs no registration anywhere; what it spares by no_decay is spared."""
    s = tiny(mixer="student", run="mine")
    model = train.main(s)
    assert losses("mine")[-1] < losses("mine")[0] - 1
    decayed, spared = (group["params"] for group in train.make_optimizer(model, s).param_groups)
    mixer = model.layers[0].mixer
    assert {id(mixer.value.weight), id(mixer.output.weight)} <= {id(p) for p in decayed}
    assert {id(mixer.speed), id(mixer.value.bias)} <= {id(p) for p in spared}


# ----------------------------------------------------------------------------------------------------
# Scripts


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """They take longer than such a run; test_train.py has one."""
    monkeypatch.setattr("tools.figures.learning_curve", lambda folder: "")


@pytest.mark.parametrize("mixer", ["hgrn2", "mingru", "attention"])
def test_training_in_loops_is_training(workplace, tiny, mixer):
    """In float64 twenty losses are within 1e-9, and the loss on the validation text."""
    for form in ("loop", "auto"):
        train.main(tiny(mixer=mixer, run=form, kernels=form, dtype="float64", max_steps=20))
    for name in ("loss", "val_loss"):
        plain, fast = ([x[name] for x in log(run) if name in x] for run in ("loop", "auto"))
        assert plain == pytest.approx(fast, abs=1e-9)
    assert len(losses("loop")) == 20


def test_in_float32_training_in_loops_stays_near(workplace, tiny, capsys):
    """Training amplifies rounding: from 1e-6 at the first step to 1e-3 at the thirtieth. Samples are the same."""
    for form in ("loop", "auto"):
        train.main(tiny(run=form, kernels=form))
    plain, fast = losses("loop"), losses("auto")
    assert plain[0] == pytest.approx(fast[0], abs=1e-6) and len(plain) == 30
    assert plain == pytest.approx(fast, abs=1e-3)
    texts = []
    for form in ("loop", "auto"):
        capsys.readouterr()
        s = sample.Settings(run="out/auto", prompt="The cat", tokens=60, seed=3, device="cpu", kernels=form)
        sample.main(s)
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and texts[0].startswith("The cat")


# ----------------------------------------------------------------------------------------------------
# How much there is to read


def code_lines(code):
    """How many lines of a function are neither blank, comment nor docstring."""
    source = textwrap.dedent(inspect.getsource(code))
    first = ast.parse(source).body[0].body[0]
    doc = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = range(first.lineno, first.end_lineno + 1) if doc else ()
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in layout and token.string:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - set(docstring))


def functions_run(f, *inputs):
    """The code of every function of this repository that runs in a call."""
    seen = set()

    def watch(frame, event, _):
        code = frame.f_code
        ours = Path(code.co_filename).parent in (ROOT, ROOT / "fast", ROOT / "support")
        if event == "call" and ours and not code.co_name.startswith("<"):
            seen.add(code)

    sys.setprofile(watch)
    try:
        f(*inputs)
    finally:
        sys.setprofile(None)
    return seen


@pytest.mark.parametrize("mixer, most", dict(hgrn2=70, mingru=60, minlstm=60, attention=60).items())
def test_the_way_of_a_token_is_short(mixer, most):
    """From token ids to the loss, as it is written: so many lines of code, in two files."""
    objective = train.NextToken(build(torch.float32, **LAYOUTS[mixer]))
    use_kernels("loop", objective)
    seen = functions_run(objective, *batch())
    assert {Path(code.co_filename).name for code in seen} == {"model.py", "kernels.py"}
    lines = {code.co_qualname: code_lines(code) for code in seen}
    assert sum(lines.values()) <= most, lines


A_STEP = """
import sys
from pathlib import Path

import torch
import train
from kernels import use_kernels
from model import LanguageModel

s = train.Settings(**TINY)
for form in ("loop", "auto"):
    objective = train.NextToken(LanguageModel(s))
    use_kernels(form, objective)
    optimizer = train.make_optimizer(objective.model, s)
    objective(*torch.randint(300, (2, 2, 16)))["loss"].backward()
    optimizer.step()
    files = [Path(getattr(module, "__file__", None) or "/") for module in list(sys.modules.values())]
    print(*sorted({str(file.relative_to(ROOT)) for file in files if file.is_relative_to(ROOT)} - {"."}))
"""


def test_a_training_step_loads_few_files():
    """... of this repository; with "loop" nothing of fast/."""
    code = A_STEP.replace("TINY", repr(TINY)).replace("ROOT", repr(str(ROOT)))
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    for line, most, fast in zip(ended.stdout.splitlines(), (13, 21), (False, True), strict=True):
        loaded = [file for file in line.split() if not file.startswith(".venv")]
        assert len(loaded) <= most, loaded
        assert any(file.startswith("fast/") for file in loaded) == fast
