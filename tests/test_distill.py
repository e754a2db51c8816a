"""Distillation: the loss is its formula, the loop is train.py's, and a teacher that does not fit is said."""

import copy
import math
import re
import shlex
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import data
import distill
import train
from conftest import ROOT, TINY, contents, log, losses, same, saved
from fast import losses as fast
from fast.losses import Teaching, linear_distillation
from kernels import use_kernels
from model import MIXERS, LanguageModel, load
from support.files import fingerprint
from support.processes import Stopped
from support.settings import UserError, configure
from tools import figures

import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from processes import fork_two, needs_fork
from test_kernels import values_and_gradients
from test_resume import stop_at  # noqa: F401  (a fixture)
from torch.profiler import profile

TEACHER = dict(mixer="mingru", d_model=24, n_head=3, n_layer=1)


@pytest.fixture(autouse=True)
def seed_and_no_pictures(monkeypatch):
    """Pictures take longer than such a run; test_train.py has one."""
    torch.manual_seed(0)
    monkeypatch.setattr("tools.figures.learning_curve", lambda folder: "")


# ----------------------------------------------------------------------------------------------------
# The loss


def plain(x, weight, targets, teachers, how):
    """With all logits at once, and PyTorch's own cross-entropy and divergence."""
    logits, there = x @ weight.T, targets != -100
    taught = torch.stack([features.to(x.dtype) @ head.to(x.dtype).T for features, head in teachers])
    if how.mean_of == "logits":
        q = (taught.mean(dim=0) / how.temperature).softmax(dim=-1)
    else:
        q = (taught / how.temperature).softmax(dim=-1).mean(dim=0)
    log_p = (logits / how.temperature).log_softmax(dim=-1)
    cross_entropy = F.cross_entropy(logits.flatten(0, -2), targets.flatten())
    kl = F.kl_div(log_p[there], q[there], reduction="batchmean")
    return how.hard * cross_entropy + how.soft * kl, cross_entropy, kl


def problem(*shape, widths=(8, 24), D=16, V=50):
    """x, weight, targets, some of them ignored, and teachers of these widths."""
    targets = torch.randint(V, shape)
    targets[torch.rand(shape) < 0.3] = -100
    teachers = [(torch.randn(*shape, width), torch.randn(V, width) * width**-0.5) for width in widths]
    return torch.randn(*shape, D), torch.randn(V, D) * D**-0.5, targets, teachers


@pytest.mark.parametrize("mean_of", ["logits", "probabilities"])
@pytest.mark.parametrize("widths", [(8,), (8, 24), (24, 8, 16)], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_loss_and_its_gradients_are_the_formulas(alpha, temperature, widths, mean_of, monkeypatch):
    """In ragged slices; 1e-6 of all logits at once in float64, with float32's errors and without."""
    monkeypatch.setattr(fast, "SLICE", 64)
    x, weight, targets, teachers = problem(2, 75, widths=widths)
    rest = targets, teachers, Teaching(1 - alpha, alpha * temperature**2, temperature, mean_of)
    exact = values_and_gradients(lambda x, w: plain(x, w, *rest)[0], [x, weight], torch.float64)
    for dtype in (torch.float64, torch.float32):
        ours = values_and_gradients(lambda x, w: linear_distillation(x, w, *rest)[0], [x, weight], dtype)
        for one, other in zip(ours, exact):
            assert one.dtype == dtype and (one - other).abs().max() < 1e-6 * max(1, other.abs().max())
    parts = [f(x, weight, *rest)[1:] for f in (linear_distillation, plain)]
    torch.testing.assert_close(*parts, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["loop", "auto"])
@pytest.mark.parametrize("mean_of", ["logits", "probabilities"])
def test_the_module_gives_the_formula_of_its_models_logits(mean_of, form):
    """As distill.py has it written out, and as fast/ has it."""
    s = distill.Settings(**TINY, teacher="x", alpha=0.7, temperature=2.0, mean_of=mean_of)
    student, *teachers = (LanguageModel(train.Settings(**TINY | x)) for x in ({}, TEACHER, {}))
    module = distill.Distillation(student, teachers, s)
    use_kernels(form, module)
    tokens, targets = torch.randint(300, (2, 3, 16))
    targets[0, :5] = -100
    with torch.no_grad():
        (x, weight), *taught = [(m.features(tokens)[0], m.head.weight) for m in (student, *teachers)]
        exact = plain(x, weight, targets, taught, Teaching(0.3, 0.7 * 4, 2.0, mean_of))
        found = module(tokens, targets)
    assert list(found) == ["loss", "ce", "kl"]
    torch.testing.assert_close(tuple(found.values()), exact)


def test_what_a_teacher_says_of_padding_does_not_count():
    x, weight, targets, teachers = problem(300, widths=(8,))
    ((features, head),) = teachers
    other = torch.where((targets == -100)[:, None], torch.randn(300, 8), features)
    how = Teaching(0.5, 0.5)
    first, second = (linear_distillation(x, weight, targets, [(y, head)], how) for y in (features, other))
    assert not torch.equal(features, other) and first == second
    assert linear_distillation(x, weight, torch.full((300,), -100), teachers, how) == (0, 0, 0)


def test_a_teacher_of_ones_own_mind_changes_nothing():
    """A student that says what its teacher says has no divergence and no gradient from it."""
    x, weight, targets, _ = problem(300)
    x.requires_grad_()
    how = Teaching(0.0, 1.0, temperature=2.0)
    loss, _, kl = linear_distillation(x, weight, targets, [(x.detach(), weight)], how)
    assert abs(kl) < 1e-6 and torch.autograd.grad(loss, x)[0].abs().max() < 1e-8


def test_a_teacher_that_is_certain_costs_much_but_not_infinity():
    """KL = 0 log 0 + 1 (0 - log p) = 400, and a gradient of p - q = 1, -1."""
    x, weight = torch.tensor([[200.0]], requires_grad=True), torch.tensor([[1.0], [-1.0]])
    for mean_of in ("logits", "probabilities"):
        teachers = [(torch.tensor([[-1e4]]), weight)]
        how = Teaching(0.0, 1.0, mean_of=mean_of)
        loss, _, kl = linear_distillation(x, weight, torch.tensor([0]), teachers, how)
        assert kl == 400 and torch.autograd.grad(loss, x)[0] == 2


def test_under_autocast_products_are_bfloat16_and_the_loss_is_float32():
    """As far from float64 as autocast's own, or nearer."""
    x, weight, targets, teachers = problem(2, 150)
    how = Teaching(0.5, 2.0, temperature=2.0)

    def run(f, dtype=torch.float32, autocast=True):
        inputs = [z.to(dtype).requires_grad_() for z in (x, weight)]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = f(*inputs, targets, teachers, how)[0]
        return loss.detach(), *torch.autograd.grad(loss, inputs)

    exact = run(plain, torch.float64, autocast=False)
    for ours, torchs, y in zip(run(linear_distillation), run(plain), exact):
        assert ours.dtype == torch.float32
        assert (ours - y).norm() <= max(1.2 * (torchs - y).norm(), 2e-3 * y.norm())


def peak(f, *inputs):
    """Bytes that f and its gradient allocate, at most at once."""
    inputs = [z.requires_grad_() for z in inputs]
    with profile(profile_memory=True) as record:
        torch.autograd.grad(f(*inputs)[0], inputs)
    events = [x for x in record.profiler.kineto_results.events() if x.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda x: x.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize("widths", [(8,), (8, 24)], ids=str)
def test_peak_memory_is_below_a_quarter(monkeypatch, widths):
    """As many slices as 16k tokens have, and a vocabulary as large as the tokens are many, an eighth of 16k."""
    monkeypatch.setattr(fast, "SLICE", fast.SLICE // 8)
    x, weight, targets, teachers = problem(2048, widths=widths, V=2048)
    rest = targets, teachers, Teaching(0.5, 2.0, temperature=2.0)
    ours = peak(lambda x, w: linear_distillation(x, w, *rest), x, weight)
    reference = peak(lambda x, w: plain(x, w, *rest), x, weight)
    assert 2048 * 2048 * 4 < reference and ours < reference / 4
    assert ours < 2048 * 2048 * 4  # less than one whole matrix of logits


@pytest.mark.filterwarnings("error:Dynamo detected")
def test_a_student_and_its_teacher_are_one_graph():
    s = distill.Settings(**TINY | dict(teacher="x", temperature=2.0, n_layer=1))
    teacher = LanguageModel(train.Settings(**TINY | TEACHER)).eval().requires_grad_(False)
    module = distill.Distillation(LanguageModel(s), [teacher], s)
    use_kernels("auto", module)
    inputs, weights = torch.randint(300, (2, 3, 40)), list(module.model.parameters())
    torch._dynamo.reset()
    results = []
    for f in (module, torch.compile(module, backend="aot_eager", fullgraph=True)):
        found = f(*inputs)
        results.append([*found.values(), *torch.autograd.grad(found["loss"], weights)])
    for eager, compiled in zip(*results):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["loop", "auto"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_a_teacher_kept_in_bfloat16_says_the_same_to_the_bit(mixer, form):
    sizes = dict(mixer=mixer, d_model=32, n_head=2, d_state=8, conv=4, expand=2 if mixer == "mamba" else 1)
    teacher = LanguageModel(train.Settings(**TINY | sizes)).eval()
    use_kernels(form, teacher)
    kept = distill.frozen(copy.deepcopy(teacher), torch.bfloat16)
    tokens = torch.randint(300, (2, 16))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kept.features(tokens)[0], teacher.features(tokens)[0])
    assert any(p.dtype == torch.bfloat16 for p in kept.parameters())
    assert not any(p.requires_grad for p in kept.parameters())


# ----------------------------------------------------------------------------------------------------
# The loop


@pytest.fixture(scope="module")
def taught(prepared, tmp_path_factory):
    """The prepared folder with a second teacher, out/other, of another kind and width."""
    folder = tmp_path_factory.mktemp("taught") / "folder"
    shutil.copytree(prepared, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("NANORNN_DATA", raising=False)
        train.main(train.Settings(**TINY | TEACHER | dict(run="other")))
    return folder


@pytest.fixture
def school(workplace, taught):
    """A workplace with both."""
    shutil.copytree(taught / "out/other", "out/other")
    return workplace


def student(**settings):
    return distill.Settings(**TINY | dict(run="student", teacher="out/tiny") | settings)


BOTH = dict(teacher="out/tiny,out/other/best.pt", alpha=0.3, temperature=2.0)


def test_the_log_has_both_parts_and_their_sum(school):
    distill.main(student(**BOTH))
    for record in (x for x in log("student") if "loss" in x):
        assert record["loss"] == pytest.approx(0.7 * record["ce"] + 0.3 * 4 * record["kl"], rel=1e-6)
    assert "ce" not in log()[1]
    axis = Figure().subplots()
    figures.draw_losses(axis, log("student"), "a student")
    assert list(axis.lines[0].get_ydata()) == [record["ce"] for record in log("student") if "ce" in record]
    first, *_, last = losses("student")
    assert len(losses("student")) == 30 and last < first - 1


def test_the_log_and_the_bar_say_what_the_formula_does(school, monkeypatch):
    """The first step's numbers, from the models themselves; and validation is cross-entropy alone."""
    shown = []
    log_step = distill.train.Run.log_step
    monkeypatch.setattr(distill.train.Run, "log_step", lambda run: shown.append(log_step(run)) or shown[-1])
    distill.main(student(**BOTH, max_steps=1))
    torch.manual_seed(0)
    models = [LanguageModel(student()), load("out/tiny")[0], load("out/other/best.pt")[0]]
    tokens, targets = data.Blocks("data/tiny/train.bin", 16, 0).rows(0, 16)
    with torch.no_grad():
        (x, weight), *teachers = [(model.features(tokens)[0], model.head.weight) for model in models]
        exact = plain(x, weight, targets, teachers, Teaching(0.7, 0.3 * 4, 2.0))
    (record,) = [x for x in log("student") if "loss" in x]
    assert [record[name] for name in ("loss", "ce", "kl")] == pytest.approx(
        [x.item() for x in exact], rel=1e-5
    )
    assert shown == ["step 1, loss {:.3f}, ce {:.3f}, kl {:.3f}, lr 3.3e-03".format(*exact)]
    values = [x["val_loss"] for x in log("student") if "val_loss" in x]
    distill.main(student(run="plain", alpha=0.0, max_steps=1))
    assert values[0] == [x["val_loss"] for x in log("plain") if "val_loss" in x][0]


def test_without_weight_a_teacher_changes_nothing_to_the_bit(school):
    """alpha = 0 is train.py, from the first weights to the last."""
    distill.main(student(alpha=0.0))
    assert log("student")[1]["kl"] > 0
    for name in ("checkpoint.pt", "best.pt"):
        ours, plain = saved(name, "student")["model"], saved(name)["model"]
        assert ours.keys() == plain.keys() and all(torch.equal(ours[key], plain[key]) for key in plain)


def test_a_student_comes_near_its_teacher(school):
    distill.main(student(alpha=1.0, seed=1, max_steps=60))
    kl = [record["kl"] for record in log("student") if "kl" in record]
    assert kl[-1] < 0.1 * kl[0] and kl[-1] > 0


def test_babyllamas_factor_is_the_length_of_a_sequence(school):
    for run, settings in (("a", dict(sum_positions=True)), ("b", {})):
        distill.main(student(run=run, max_steps=1, **settings))
    a, b = (log(run)[1] for run in "ab")
    assert (a["ce"], a["kl"]) == (b["ce"], b["kl"])
    assert a["loss"] == pytest.approx(0.5 * b["ce"] + 16 * 0.5 * b["kl"], rel=1e-6)


def test_accumulating_changes_nothing(school):
    for accumulate in (1, 4):
        run = dict(run=f"by{accumulate}", accumulate=accumulate)
        distill.main(student(dtype="float64", max_steps=3, **run, **BOTH))
    for name in ("loss", "ce", "kl"):
        one, four = ([x[name] for x in log(run) if name in x] for run in ("by1", "by4"))
        assert four == pytest.approx(one, abs=1e-9) and len(one) == 3


def test_a_student_is_a_run_like_any_other(school):
    """Nothing of its teachers in its folder: they can go, and it loads and says the same."""
    distill.main(student(**BOTH, max_steps=2))
    assert saved(run="student")["model"].keys() == LanguageModel(student()).state_dict().keys()
    before = saved(run="student")["model"]
    for name in ("tiny", "other"):
        shutil.rmtree(f"out/{name}")
    model, tokenizer, settings = load("out/student")
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert (tokenizer.get_vocab_size(), settings.teacher) == (300, BOTH["teacher"])


def test_a_stopped_student_continues_to_the_bit(school, stop_at):  # noqa: F811
    s = student(**BOTH, dropout=0.1, eval_every=4, max_steps=12)
    distill.main(s)
    content = contents("student")
    shutil.rmtree("out/student")
    for step, validating in [(3, False), (8, True), (9, False)]:
        stop_at(step, validating)
        with pytest.raises(Stopped):
            distill.main(s)
        assert saved(run="student")["step"] == step
    stop_at(None)
    distill.main(s)
    same(contents("student"), content)


@needs_fork
def test_two_processes_are_one(school):
    """With two teachers: in float64 twenty losses within 1e-9 of one process."""
    s = student(run="one", dtype="float64", max_steps=20, **BOTH)
    distill.main(s)
    codes, said = fork_two(partial(distill.main, replace(s, run="two")))
    assert codes == [0, 0], said
    for name in ("loss", "ce", "kl", "val_loss"):
        one, two = ([x[name] for x in log(run) if name in x] for run in ("one", "two"))
        assert two == pytest.approx(one, abs=1e-9) and len(one) == (20 if name != "val_loss" else len(two))


# ----------------------------------------------------------------------------------------------------
# What does not go together


def test_it_runs_in_a_thread(school):
    """As in a notebook's server, where Python allows no signal handlers; and a thread may stop at a UserError."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(distill.main, student(max_steps=2)).result()
        with pytest.raises(UserError, match="there is no out/none"):
            pool.submit(distill.main, student(teacher="out/none")).result()
    assert saved(run="student")["step"] == 2


def test_a_diverged_student_is_told_its_own_command(school, refusal, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(train, "learning_rate", lambda *rest: math.inf)
        said = refusal(distill.main, student(max_steps=4))
    python, script, *args = shlex.split(said.rpartition(": ")[2])
    assert script == "distill.py"
    distill.script(args)
    assert saved(run="student_lower")["step"] == 4


@pytest.mark.parametrize("name, now", dict(teacher="out/other", alpha=0.1, temperature=2.0).items())
def test_another_teacher_is_another_run(school, refusal, name, now):
    distill.main(student(max_steps=2))
    before = contents("student")
    said = refusal(distill.main, student(max_steps=3, **{name: now}))
    assert f"{name} {getattr(student(), name)!r} then, {now!r} now" in said and said.count("\n") == 1
    same(contents("student"), before)


def test_a_student_is_not_continued_without_its_teacher(school, refusal):
    distill.main(student(max_steps=2))
    alone = {name: value for name, value in vars(student()).items() if hasattr(train.Settings(), name)}
    said = refusal(train.main, train.Settings(**alone | {"max_steps": 3}))
    assert "teacher 'out/tiny' then, None now" in said and "--run=NAME" in said


def test_a_teacher_by_another_path_is_the_same_teacher(school):
    distill.main(student(max_steps=2))
    distill.main(student(max_steps=3, teacher="out/../out/tiny/"))
    assert saved("checkpoint.pt", "student")["step"] == 3


def test_a_teacher_that_has_learned_on_is_another_teacher(school, refusal):
    """Under the same name, as when its run was made longer between two parts of its student's."""
    distill.main(student(max_steps=2))
    before = contents("student")
    train.main(train.Settings(**TINY | {"max_steps": 31}))
    said = refusal(distill.main, student(max_steps=3))
    assert re.search(r"made with other settings \(teacher_is '\w{16}' then, '\w{16}' now\)", said)
    same(contents("student"), before)


def test_the_teacher_is_the_one_that_was_read(school, monkeypatch):
    """... though its own training saves another at that moment."""

    def load_then_save(*args, **settings):
        loaded = load(*args, **settings)
        shutil.copy("out/tiny/previous.pt", "out/tiny/checkpoint.pt")
        return loaded

    read = fingerprint("out/tiny/checkpoint.pt")
    monkeypatch.setattr(distill, "load", load_then_save)
    distill.main(student(max_steps=1))
    assert fingerprint("out/tiny/checkpoint.pt") != read
    assert saved(run="student")["settings"]["teacher_is"] == read[:16]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_teacher_says_what_it_says_in_the_precision_of_the_student(school, dtype):
    teacher = distill.frozen(load("out/tiny")[0], dtype)
    assert {x.dtype for x in teacher.parameters()} == {dtype}
    assert not any(x.requires_grad for x in teacher.parameters())


def another_tokenizer():
    Path("other.txt").write_text("Quite another text, of other words.\n" * 100)
    data.prepare("another", ["other.txt"], data.Settings(vocab_size=300, val_share=0.1))
    train.main(train.Settings(**TINY | dict(corpus="another", run="stranger", max_steps=1)))


def cut_short():
    file = Path("out/tiny/checkpoint.pt")
    file.write_bytes(file.read_bytes()[:-99])


def teach(run, **settings):
    return lambda: train.main(train.Settings(**TINY | dict(run=run, max_steps=1) | settings))


UNFIT = {  # what is there -> the student's settings, what is said
    "no run": (None, dict(teacher="out/none"), "teacher = 'out/none': there is no out/none; train it first"),
    "no checkpoint": (
        lambda: Path("out/empty").mkdir(),
        dict(teacher="out/empty"),
        "teacher = 'out/empty': there is no out/empty/checkpoint.pt; train it first",
    ),
    "damaged": (cut_short, {}, "teacher = 'out/tiny': out/tiny/checkpoint.pt is damaged (its SHA-256"),
    "no tokenizer": (
        lambda: Path("out/tiny/tokenizer.json").unlink(),
        {},
        "teacher = 'out/tiny': out/tiny/token",
    ),
    "another tokenizer": (
        another_tokenizer,
        dict(teacher="out/tiny,out/stranger"),
        "teacher = 'out/stranger' has another tokenizer than data/tiny: train one with corpus = 'tiny', or",
    ),
    "another vocabulary": (
        teach("large", vocab_size=310),
        dict(teacher="out/large"),
        "teacher = 'out/large' has vocab_size = 310, the student 300: set them equal",
    ),
    "few positions": (
        teach("gpt", mixer="attention", position="learned"),
        dict(teacher="out/gpt", context=32),
        "teacher = 'out/gpt' reads at most 16 tokens: set context = 16 or less",
    ),
    "a short filter": (
        teach("hyena", mixer="hyena"),
        dict(teacher="out/hyena", context=32),
        "teacher = 'out/hyena' reads at most 16 tokens",
    ),
}


@pytest.mark.parametrize("make, settings, words", UNFIT.values(), ids=list(UNFIT))
def test_a_teacher_that_does_not_fit_is_one_line_before_the_first_step(
    school, refusal, make, settings, words
):
    if make:
        make()
    said = refusal(distill.main, student(**settings))
    assert words in said and said.count("\n") == 1 and not Path("out/student").exists()


def test_a_teacher_is_looked_at_before_data_is_made(school, refusal, monkeypatch):
    monkeypatch.setattr(data, "find", lambda *_: pytest.fail("data was looked for"))
    assert "there is no out/none" in refusal(distill.main, student(teacher="out/none"))


def test_a_recurrent_teacher_reads_longer_texts_than_it_was_trained_on(school):
    distill.main(student(context=32, max_steps=1))
    assert len(losses("student")) == 1


MISTAKES = {
    "--alpha=1.1": "alpha = 1.1: must be from 0",
    "--alpha=-0.1": "alpha = -0.1: must be from 0",
    "--temperature=0": "temperature = 0.0: must be a number above 0",
    "--temperature=-1": "temperature = -1.0: must be a number above 0",
    "--temperature=1e999": "temperature = inf: must be a number above 0",
    "--teacher=": "teacher = '': name the run that teaches, like --teacher=out/toy",
    "--teacher=out/a,": "teacher = 'out/a,': name the run that teaches",
    "--mean_of=logit": "mean_of = 'logit': did you mean 'logits'?",
    "--alfa=1": "did you mean 'alpha'?",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_setting_is_one_line_with_the_remedy(mistake, refusal):
    said = refusal(configure, distill.Settings(teacher="out/a"), [mistake])
    assert MISTAKES[mistake] in said and said.count("\n") == 1


def read(*args):
    return configure(distill.Settings(), list(args))


def test_the_settings_in_config_are_those_of_the_papers():
    for name in ("10m", "100m"):
        s, teacher = read(str(ROOT / f"config/distill_{name}.py")), train.Settings()
        assert (s.alpha, s.temperature, s.teacher) == (0.5, 1.0, f"out/hgrn2_{name}/best.pt")
        teacher = configure(teacher, [str(ROOT / f"config/hgrn2_{name}.py")])
        for field in fields(train.Settings):
            assert field.name == "run" or getattr(s, field.name) == getattr(teacher, field.name), field.name
    toy = read(str(ROOT / "config/distill_toy.py"))
    teacher = configure(train.Settings(), [str(ROOT / "config/toy.py")])
    assert toy.teacher == "out/toy" and toy.d_model < teacher.d_model
    assert (toy.corpus, toy.vocab_size) == (teacher.corpus, teacher.vocab_size)


def test_babyllamas_distillation_goes_with_any_model():
    files = [str(ROOT / f"config/{file}.py") for file in ("llama_10m", "distill_babyllama")]
    s = read(*files, "--teacher=out/a,out/b")
    assert (s.mixer, s.n_layer, s.alpha, s.temperature) == ("attention", 22, 0.5, 2.0)
    assert (s.mean_of, s.sum_positions, s.run) == ("logits", False, "distill_babyllama")


def test_a_student_named_as_its_teacher_has_a_folder_of_its_own(school, capsys):
    before = contents()
    distill.script(["tiny.py", f"--teacher={school}/out/tiny/best.pt", "--max_steps=2"])
    assert saved(run="tiny_distilled")["step"] == 2
    assert f"teacher: {school}/out/tiny/best.pt" in capsys.readouterr().out
    same(contents(), before)


@pytest.mark.parametrize("teacher", ["out/tiny", "out/tiny/best.pt", "./out/tiny"])
def test_a_student_of_its_teachers_name_is_kept_apart_by_whatever_path(workplace, teacher):
    assert distill.with_own_run(student(run="tiny", teacher=teacher)).run == "tiny_distilled"


def test_a_teacher_listens_without_dropout_and_its_head_is_whole(school):
    train.main(train.Settings(**TINY | dict(run="drop", dropout=0.5, max_steps=1)))
    ((model, *_),) = distill.find_teachers(student(teacher="out/drop")).values()
    kept = distill.frozen(model, torch.bfloat16)
    assert not any(part.training for part in kept.modules()) and kept.head.weight.dtype == torch.float32
