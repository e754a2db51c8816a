"""
The tests of exercises.md: test_exercise[03] checks exercise 3 in my.py, or is skipped if it is not there yet.

The other tests check these tests and the text. The answers in answers.py are green and only fill the holes of the
given code; the given code alone and answers with a usual mistake are red.
"""

import importlib.util
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import kernels
from corpora import toyland
from model import HGRN2, MIXERS, Config, MinGRU, MinLSTM
from tools import ngram

import pytest
import test_model
import torch
import torch.nn.functional as F
from test_kernels import values_and_gradients
from torch.overrides import TorchFunctionMode

ROOT = Path(__file__).parents[1]
MY = Path(os.environ.get("MY", ROOT / "my.py"))
TEXT = (ROOT / "exercises.md").read_text(encoding="utf-8")
FRAME, *BEGINNINGS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
BEGINNINGS = {f"{number:02}": code for number, code in enumerate(BEGINNINGS, 1)}
SHAPE = Config(**test_model.SHAPE)


@pytest.fixture(autouse=True)
def no_traces():
    """Remove from MIXERS what a student's file has added to it."""
    torch.manual_seed(0)
    with patch.dict(MIXERS):
        yield


def same(what, ours, exact):
    assert isinstance(ours, torch.Tensor), f"{what}: should be a tensor, not {ours!r}"
    torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-5, msg=lambda text: f"{what}: {text}")


def same_scan(ours):
    """Assert that the values and the gradients are those of the loop."""
    inputs = torch.rand(2, 7, 5), torch.randn(2, 7, 5), torch.randn(2, 5)
    same("h", ours(*inputs), kernels.linear_scan_loop(*inputs))
    results = [values_and_gradients(f, inputs, torch.float64) for f in (ours, kernels.linear_scan_loop)]
    for what, x, y in zip(("h in float64", "da", "db", "dh0"), *results, strict=True):
        same(what, x, y)


def same_in_parts(mixer, x):
    whole, _ = mixer(x)
    for cut in (1, 7, 19):
        head, state = mixer(x[:, :cut])
        same(f"{x.shape[1]} tokens, read as {cut} and the rest", mixer(x[:, cut:], state)[0], whole[:, cut:])


# ----------------------------------------------------------------------------------------------------
# The checks, in the order of the exercises


def check_scan(my):
    """By hand: 0.5 * 2 + 1 = 2, then 0.5 * 2 + 3 = 4, then 0.5 * 4 + 0 = 2."""
    a, b, h0 = torch.full((1, 3, 1), 0.5), torch.tensor([[[1.0], [3.0], [0.0]]]), torch.tensor([[2.0]])
    same("h of a = 1/2, b = 1, 3, 0, h0 = 2", my.linear_scan(a, b, h0), torch.tensor([[[2.0], [4.0], [2.0]]]))
    same_scan(my.linear_scan)


def check_three_gates(my):
    mixer, x, h0 = MinGRU(SHAPE, layer=0), torch.randn(2, 9, 32), torch.rand(2, 32)
    torch.nn.init.zeros_(mixer.update.weight)
    for z, logit in ((0, -1e4), (1, 1e4), (0.5, 0.0), (0.2, -math.log(4))):
        torch.nn.init.constant_(mixer.update.bias, logit)
        c = kernels.g(mixer.candidate(x))
        same(f"h after gates of {z}", my.predict(z, c, h0), mixer(x, h0)[1])
    for z in (0.01, 0.5, 0.9):
        left = (1 - z) ** my.half_life(z)
        assert left == pytest.approx(0.5), f"with z = {z}, {left} is left after half_life({z}) steps"


def check_retnet(my):
    """Retention is attention with a decay in place of the softmax: A_ij = q_i . k_j f^(i - j), for j <= i."""
    mixer, x = my.RetNet(SHAPE, layer=1), torch.randn(2, 20, 32)
    q, k, v = F.silu(mixer.query(x)) * 8**-0.5, mixer.forget(x), mixer.input(x)
    q, k, v = (z.unflatten(-1, (4, 8)).transpose(1, 2) for z in (q, k, v))  # (B, H, T, 8)
    f = torch.tensor([31 / 32, 63 / 64, 127 / 128, 255 / 256]).view(4, 1, 1)
    A = q @ k.mT * (f ** (torch.arange(20)[:, None] - torch.arange(20))).tril()
    o = (A @ v).transpose(1, 2).flatten(2)
    same("y", mixer(x)[0], mixer.output(mixer.norm(o)))
    same_in_parts(mixer, x)


def check_no_floors(my):
    x, tokens = torch.randn(2, 20, 32), torch.randint(50, (1, 20))
    mixer, lowest = my.Floorless(SHAPE, layer=1), HGRN2(SHAPE, layer=1)
    lowest.load_state_dict(mixer.state_dict())
    for floor in (0.0, torch.full((32,), 0.5)):
        same("y, beside that of HGRN2 with floor 0", mixer(x, None, floor)[0], lowest(x)[0])
    MIXERS["mine"] = my.Floorless
    assert len(my.half_lives(test_model.build(mixer="mine"), tokens)) == 3
    model, gates = test_model.build(mixer="hgrn2"), []
    for block in model.layers:
        for weight in (block.mixer_norm.weight, block.mixer.forget.weight):
            torch.nn.init.normal_(weight, std=0.5)
    ours = my.half_lives(model, tokens)
    assert len(ours) == 3, f"half_lives gives {len(ours)} numbers for 3 layers"
    for block in model.layers:
        block.mixer.forget.register_forward_hook(lambda layer, inputs, z: gates.append(z.sigmoid()))
    model(tokens)
    for half_life, floor, gate in zip(ours, (0, 1 / 3, 2 / 3), gates):
        exact = (-math.log(2) / (floor + (1 - floor) * gate).log()).median()
        same(f"half-life in the layer with floor {floor:.2f}", torch.as_tensor(half_life), exact)


def check_documents(my):
    """Row 0 begins in the middle of a document, row 1 with the first token of one."""
    z, c, h0 = torch.rand(2, 9, 5), torch.randn(2, 9, 5), torch.randn(2, 5)
    reset = torch.zeros(2, 9, dtype=torch.bool)
    h = my.mingru_with_reset(z.clone(), c.clone(), h0.clone(), reset.clone())
    same("h without a reset", h, kernels.linear_scan_loop(1 - z, z * c, h0))
    reset[0, [3, 4]] = True
    reset[1, [0, 6]] = True
    h = my.mingru_with_reset(z.clone(), c.clone(), h0.clone(), reset.clone())
    rest = (0, 0, 3, h0[:1])  # of the document that began before row 0
    whole = [(0, 3, 4, None), (0, 4, 9, None), (1, 0, 6, None), (1, 6, 9, None)]
    for row, begin, end, past in (rest, *whole):
        document = slice(row, row + 1), slice(begin, end)
        alone = kernels.linear_scan_loop(1 - z[document], (z * c)[document], past)
        same(f"h of row {row}, {begin} <= t < {end}, beside this document alone", h[document], alone)


def check_ngram(my):
    """On toyland's words. Some words and contexts of the held-out text do not occur in the training text."""
    words = [word for story in toyland.stories(words=3000) for word in ("<s>", *story.split())]
    vocabulary = sorted(set(words))
    tokens = torch.tensor([vocabulary.index(word) for word in words])
    V, train, held_out = len(vocabulary), tokens[:2000], tokens[2000:]
    for d in (0.75, 0.4):
        p = my.bigram(train.clone(), V, d)
        assert isinstance(p, torch.Tensor), f"p should be a tensor, not {p!r}"
        assert p.shape == (V, V), f"p should have the shape {(V, V)}, not {tuple(p.shape)}"
        same(f"sum of p(w | h) over w, for every h, with d = {d}", p.sum(dim=1), torch.ones(V, dtype=p.dtype))
        model = ngram.NGram(ngram.count(train.numpy(), 2, V), d, V)
        (log_p,) = model.score_texts([(held_out.tolist(), 1)])
        loss = -p[held_out[:-1], held_out[1:]].double().log().mean()
        exact = torch.tensor(-log_p / (len(held_out) - 1), dtype=torch.float64)
        same(f"loss on a held-out text, beside tools/ngram.py's, with d = {d}", loss, exact)


def check_own_mixer(my):
    MIXERS["mine"] = my.Mine
    mixer, x = my.Mine(SHAPE, layer=0), torch.randn(2, 20, 32)
    y, other = (mixer(torch.cat([past, x[:, 12:]], dim=1))[0][:, 12] for past in (x[:, :12], -x[:, :12]))
    assert not torch.equal(y, other), "a token's y is the same whatever came before it"
    same_in_parts(mixer, x)
    test_model.test_reading_in_parts_changes_nothing(test_model.build(mixer="mine"))
    test_model.test_the_future_does_not_leak(test_model.build(mixer="mine"))
    test_model.test_gradients_reach_every_parameter(test_model.build(mixer="mine"))
    test_model.test_every_mixer_learns_a_sentence_by_heart(test_model.build(mixer="mine"))


def check_bug(my):
    mixer, original, x = my.BuggyMinLSTM(SHAPE, layer=0), MinLSTM(SHAPE, layer=0), torch.randn(2, 20, 32)
    mixer.load_state_dict(original.state_dict())
    same("y of a whole text, beside model.MinLSTM's", mixer(x)[0], original(x)[0])
    same_in_parts(mixer, x)


def check_distillation(my):
    teacher = torch.randn(5, 9)
    for temperature in (1, 2, 5):
        student = torch.randn(5, 9, requires_grad=True)
        soft = (teacher / temperature).softmax(dim=-1)
        exact = temperature**2 * F.cross_entropy(student / temperature, soft)
        loss, gradient = my.distillation_loss(student, teacher, temperature)
        same(f"loss at temperature {temperature}", loss, exact.detach())
        same(f"gradient at temperature {temperature}", gradient, *torch.autograd.grad(exact, student))


def check_gradients(my):
    same_scan(my.Scan.apply)


def check_kernel(my):
    """What lies behind h must stay as it was: a lane without a channel writes nothing."""
    for B, T, D in ((1, 1, 1), (2, 7, 5), (3, 4, 16)):
        a, b, h0 = torch.rand(B, T, D), torch.randn(B, T, D), torch.randn(B, D)
        memory = torch.full((B * T * D + 8,), -7.0)
        my.scan_kernel[(B, -(-D // 4))](a, b, h0, memory, T, D, 4)
        same(f"h of {B} x {T} x {D}", memory[:-8].view(B, T, D), kernels.linear_scan_loop(a, b, h0))
        same("what lies behind h", memory[-8:], torch.full((8,), -7.0))


class Counter(TorchFunctionMode):
    calls = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        return function(*args, **kwargs or {})


def check_chunks(my):
    def inputs(T):
        q, k, log_f = torch.randn(3, T, 8)
        return q, k, torch.randn(T, 6), F.logsigmoid(log_f + 2), torch.randn(8, 6)

    *rows, S = [x.double() for x in inputs(64)]
    o, last = kernels.gated_linear_attention_loop(*(x[None, :, None] for x in rows), S[None, None])
    for C in (1, 16, 64):
        for what, x, y in zip("oS", my.chunked_attention(*rows, S, C), (o[0, :, 0], last[0, 0]), strict=True):
            same(f"{what} by chunks of {C}", x, y)
    calls = []
    for C in (16, 32):
        with Counter() as counter:
            my.chunked_attention(*inputs(2 * C), C)
        calls.append(counter.calls)
    assert calls[0] == calls[1], f"{calls[0]} operations for chunks of 16, {calls[1]} for chunks of 32"


CHECKS = [check_scan, check_three_gates, check_retnet, check_no_floors, check_documents, check_ngram]
CHECKS += [check_own_mixer, check_bug, check_distillation, check_gradients, check_kernel, check_chunks]
NAMES = [check.__name__.removeprefix("check_") for check in CHECKS]
CHECKS = dict(zip(BEGINNINGS, CHECKS, strict=True))


def load(path):
    """Import a student's file, with Triton's interpreter for its kernels."""
    specification = importlib.util.spec_from_file_location("my", path)
    my = importlib.util.module_from_spec(specification)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TRITON_INTERPRET", "1")
        specification.loader.exec_module(my)
    return my


def ask(number, path):
    """Check an exercise in the file at `path`; skip it if what it asks for is not there yet."""
    if "triton" in BEGINNINGS[number] and not kernels.triton:
        pytest.skip(f"exercise {number}: Triton is not installed; it is available on Linux")
    my = load(path) if path.exists() else None
    for name in re.findall(r"^(?:class|def) (\w+)", BEGINNINGS[number], re.MULTILINE):
        if not hasattr(my, name):
            pytest.skip(f"exercise {number}: write {name} into {path.name}; exercises.md has its beginning")
    CHECKS[number](my)


@pytest.mark.parametrize("number", CHECKS)
def test_exercise(number):
    """The test that turns green for a right answer."""
    ask(number, MY)


# ----------------------------------------------------------------------------------------------------
# Tests of the checks above: green for the answer, red for everything else

ANSWERS = re.split(r"^# -+\n# ", (ROOT / "tests/answers.py").read_text(encoding="utf-8"), flags=re.M)
ANSWERS = {answer[:2]: FRAME.replace("# your answers", "# " + answer) for answer in ANSWERS[1:]}
BUG = "values[:, 0] if past else None"
NEAR_MISSES = [  # usual mistakes: the exercise, what to replace in its answer, and by what
    ("01", "h, hs = h0", "h, hs = 0 * h0"),
    ("01", "append(h)", "append(h.detach() if t == 3 else h)"),
    ("02", "T - 1, -1, -1", "T"),
    ("02", "** T * h0", "* h0"),
    ("02", "-math.log(2) / math.log(1 - z)", "1 / z"),
    ("03", "torch.arange(self.n_head, device=x.device)", "torch.zeros(self.n_head)"),
    ("03", "gated_linear_attention(q, k,", "gated_linear_attention(q, None,"),
    ("04", "forward(x, state)", "forward(x, state, floor)"),
    ("04", "floors.get(layer, 0.0)", "0.0"),
    ("04", "block(x, None, floor)", "block(x)"),
    ("04", "block.mixer_norm(x)", "x"),
    ("04", "x, _ =", "_ ="),
    ("05", "keep =", "z = z.masked_fill(reset[..., None], 1)\n    keep ="),
    ("05", "keep =", "z[reset] = 1\n    keep ="),
    ("05", "z * c", "(z * c).masked_fill(reset[..., None], 0)"),
    ("05", "reset[..., None]", "reset.roll(1, dims=1)[..., None]"),
    ("05", "reset[..., None]", "reset.any(dim=0)[:, None]"),
    ("05", "z * c, h0", "z * c, 0 * h0"),
    ("06", "(c > 0).sum(dim=0)", "c.sum(dim=0)"),
    ("06", "(c > 0).sum(dim=0)", "(c > 0).sum(dim=1)"),
    ("06", "/ vocab_size", "/ (preceding > 0).sum() * (preceding > 0)"),
    ("06", "d * followers * lower", "d * lower"),
    ("06", "d * followers * lower", "d * followers / vocab_size"),
    ("06", "(c - d).clamp(min=0) + d * followers * lower", "(1 - d) * c + d * total * lower"),
    ("06", "p, lower)", "p, 1 / vocab_size)"),
    ("06", "torch.where(total > 0, p, lower)", "p"),
    ("07", "self.output(h)", "self.output(x) + 0 * h"),
    ("07", "self.value(x), state", "self.value(x), None"),
    ("07", "self.output(h)", "self.output(h - h.mean(dim=1, keepdim=True))"),
    ("08", "h0 = state", f"h0 = {BUG}"),
    ("08", "h0 = state", "h0 = None"),
    ("09", "-(temperature**2) *", "-"),
    ("09", "temperature * (", "temperature**2 * ("),
    ("09", "log_p.exp() - r", "log_p.exp() - F.one_hot(r.argmax(-1), 9)"),
    ("10", "a_next.flip", "a.flip"),
    ("10", "h0[:, None], h[:, :-1]", "h"),
    ("11", "state, mask=inside", "state"),
    ("11", "(sequence * T + t)", "t"),
    ("12", ".tril()", ".tril(-1)"),
    ("12", "(D[-1] * k / D)", "(k / D)"),
    ("12", "A @ v", "sum(A[:, j, None] * v[j] for j in range(len(v)))"),
]


@pytest.fixture
def asked(tmp_path):
    """asked("03", code) asks for exercise 3 of a file with this code."""
    path = tmp_path / "my.py"
    return lambda number, code: path.write_text(code, encoding="utf-8") and ask(number, path)


@pytest.mark.parametrize("number", CHECKS, ids=NAMES)
def test_the_answer_is_green_and_the_given_lines_alone_are_red(number, asked):
    given, answer = BEGINNINGS[number].replace(BUG, "state").splitlines(), iter(ANSWERS[number].splitlines())
    assert [x for x in given if not x.strip().startswith("...") and x not in answer] == []
    asked(number, ANSWERS[number])
    compile(BEGINNINGS[number], "exercises.md", "exec")
    with pytest.raises(Exception):
        asked(number, FRAME.replace("# your answers", BEGINNINGS[number]))


@pytest.mark.parametrize("number, right, wrong", NEAR_MISSES, ids=[NAMES[int(x[0]) - 1] for x in NEAR_MISSES])
def test_a_near_miss_is_red(number, right, wrong, asked):
    assert right in ANSWERS[number]
    with pytest.raises(AssertionError):
        asked(number, ANSWERS[number].replace(right, wrong))


def test_an_exercise_not_begun_is_skipped_by_name(tmp_path, asked):
    for begin in (lambda: ask("03", tmp_path / "none.py"), lambda: asked("03", ANSWERS["01"])):
        with pytest.raises(pytest.skip.Exception, match="exercise 03: write RetNet into"):
            begin()


def test_scripts_started_through_my_py_know_its_mixers(tmp_path):
    """--mixer=retnet is accepted; what train.py refuses is the other setting."""
    (tmp_path / "my.py").write_text(ANSWERS["03"].replace("dict()", "dict(retnet=RetNet)"), encoding="utf-8")
    command = [sys.executable, tmp_path / "my.py", "train.py", "--mixer=retnet", "--warmup=-1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.startswith("warmup = -1"), ended.stderr


def test_exercises_are_twelve_in_order_and_short():
    headings = re.findall(r"^## (\d+)\. .+ \(\d+ minutes\)$", TEXT, re.MULTILINE)
    assert headings == [str(number) for number in range(1, 13)] and len(CHECKS) == 12
    assert len(TEXT.splitlines()) < 340
