"""Pictures say what logs, gates and scores say, and nothing in them lies over anything else."""

import json
import math
import os
import shlex
import shutil
from pathlib import Path

import train
from corpora import toyland
from model import MIXERS, Config, LanguageModel, load
from support.files import replacing
from tools import figures, figures_bench, figures_gates, figures_style

import matplotlib
import pytest
import torch
from matplotlib.figure import Figure

# as long as BLiMP's longest names; a task of fewer has names as long as EWoK's longest
BLIMP = [f"coordinate_structure_constraint_complex_left_br_{i:02}" for i in range(67)]


def record(epoch, **scores):
    """An evaluation: a task's score, or a list of its paradigms' scores."""
    pairs = {}
    for task, values in scores.items():
        values = values if isinstance(values, list) else [values]
        names = BLIMP if len(values) == 67 else [f"quantitative-properties{i}" for i in range(len(values))]
        pairs[task] = {"score": sum(values) / len(values), "subtasks": dict(zip(names, values))}
    return {"step": 100 * epoch, "epoch": float(epoch), "val_loss": 5.0 - epoch / 10, "pairs": pairs}


@pytest.fixture
def drawn(monkeypatch):
    """drawn(log, terms) -> the figure, laid out."""

    def call(log, terms={}, title="a run"):
        monkeypatch.setattr(figures, "keep", lambda figure, path: figure)
        figure = figures.draw(log, terms, "curve.svg", title)
        figure.canvas.draw()
        return figure

    yield call
    figures.plt.close("all")


def axis_of(figure, title):
    (axis,) = (axis for axis in figure.axes if title in axis.get_title() + axis.get_title("right"))
    return axis


def test_the_best_macro_score_is_marked_and_chance_is_dotted(drawn):
    """By hand: macro scores 50, 65, 62.5 and 65; the first of equals is the best, as for best.pt."""
    log = [record(0, a=50, b=50), record(1, a=70, b=60), record(2, a=75, b=50), record(3, a=65, b=65)]
    (axis,) = (axis for axis in drawn(log).axes if axis.get_title() == figures.CORRECT)
    lines = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert lines["best: 65.0 at step 100"] == [[100, 65]]
    assert lines["macro average: 65.0"] == [[0, 50], [100, 65], [200, 62.5], [300, 65]]
    assert lines["a: 65.0"] == [[0, 50], [100, 70], [200, 75], [300, 65]]
    assert [y for _, y in lines["chance"]] == [50, 50]


def test_no_chance_is_drawn_where_it_is_not_50(drawn):
    log = [record(0, toyland_bear=15), record(1, toyland_bear=99)]
    (axis,) = (axis for axis in drawn(log).axes if axis.get_title() == figures.CORRECT)
    assert "chance" not in [line.get_label() for line in axis.lines]


def test_losses_fill_their_panel_from_the_first_evaluation_in_training_on(drawn):
    """By hand: 7 of the untrained model, out of view, then 2.2 and 2.0, and 1 % above and below."""
    log = [record(epoch, a=50) | {"val_loss": loss} for epoch, loss in enumerate((7.0, 2.2, 2.0))]
    axis = axis_of(drawn(log), "a run: loss")
    assert axis.get_ylim() == pytest.approx((1.98, 2.222)) and axis.get_yscale() == "linear"
    assert axis.get_xlabel() == "step (100 are one pass over the text)"


def test_a_row_is_a_paradigm_and_what_was_learned_first_is_on_top(drawn):
    axis = axis_of(drawn([record(0, a=[50, 50, 50]), record(1, a=[60, 90, 75])]), "a: right")
    assert axis.images[0].get_array().tolist() == [[50, 90], [50, 75], [50, 60]]
    assert [text.get_text()[-3:] for text in axis.get_yticklabels()] == ["es1", "es2", "es0"]


def test_many_paradigms_whose_phenomena_are_known_are_a_row_a_phenomenon(drawn):
    """Means by hand."""
    log = [record(epoch, blimp_fast=[float(i + epoch) for i in range(67)]) for epoch in (0, 1)]
    terms = {uid: "early" if i < 10 else "late" for i, uid in enumerate(BLIMP)}
    axis = axis_of(drawn(log, terms), "blimp_fast")
    assert axis.images[0].get_array().tolist() == [[38.0, 39.0], [4.5, 5.5]]


@pytest.mark.parametrize("evaluations", [6, 50])
def test_nothing_lies_over_anything_else(drawn, evaluations):
    """Panels with their labels and legends, and the 67 labels of a heat map among themselves."""
    scores = dict(blimp_fast=[60.0] * 67, supplement_fast=[50.0] * 5, ewok_fast=[55.0] * 11)
    figure = drawn([record(epoch, **scores) for epoch in range(evaluations)])
    boxes = [axis.get_tightbbox() for axis in figure.axes]
    assert len(boxes) == 5
    for i, one in enumerate(boxes):
        assert one.x0 >= 0 and one.y0 >= 0 and one.x1 <= figure.bbox.x1 and one.y1 <= figure.bbox.y1
        assert not any(one.overlaps(other) for other in boxes[:i])
    labels = [text.get_window_extent() for text in axis_of(figure, "blimp_fast: ").get_yticklabels()]
    assert len(labels) == 67 and not any(one.overlaps(other) for one, other in zip(labels, labels[1:]))


def test_a_run_without_pairs_or_of_no_step_has_a_picture(drawn):
    for log in ([], [{"step": 0, "epoch": 0.0, "val_loss": 5.0}]):
        assert len(drawn(log).axes) == 1


def pictures_with(name):
    """Every picture, of a run, task, paradigm, phenomenon and model with this name: {file: draw it}."""
    log = [record(step, **{name: 50, "b": 50}) | {"macro": 50} for step in (0, 1)]
    for x in log:
        x["pairs"][name]["subtasks"] = {name: 50, "b": 40}
    subtasks = {uid: {"score": 60, "interval": 3.0, "term": name} for uid in (name, "b")}
    found = {task: {"score": 60, "subtasks": subtasks} for task in (name, "b")}
    rows = [{"name": name, "benchmarks": {name: 50, "b": 4}, "paper": paper} for paper in (True, False)]
    run = {"learning_rate": 1.0, "evaluations": log, "best": log[1]}
    row = {"state": 1234, "best": run | {"macro": 50.0, "interval": 1.0}, "runs": [run]}
    compared = {"comparison": name, "tasks": [name], "rows": {name: row, "b": row}}
    compared["differences"] = {"b": {name: {"mean": 1.0, "interval": 2.0}}}
    compared["settings"] = {"against": name}
    scores = {model: {name: 50.0, "b": 60.0} for model in (name, "b")}
    return {
        "curve.svg": lambda path: figures.draw(log, {}, path, name),
        "benchmarks.svg": lambda path: figures.draw_benchmarks(found, {name: name, "b": "b"}, path, name),
        "leaderboard.svg": lambda path: figures.draw_leaderboard(rows, [name, "b"], path),
        "comparison.svg": lambda path: figures.draw_comparison(compared, path),
        "phenomena.svg": lambda path: figures.draw_phenomena(scores, path, name, {}),
    }


NAMES = {  # a name -> as it is drawn; matplotlib takes the first for a formula, and hides it in a legend
    "_$x^{$": "_$x^{$",
    "莎士比亚\n\ud800": "莎士比亚\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}",
    "very_" * 60: "very_",
}


@pytest.mark.filterwarnings("ignore:Glyph .* missing")
@pytest.mark.parametrize("name, drawn_as", NAMES.items(), ids=["formula", "Chinese", "long"])
def test_names_are_drawn_as_they_are(tmp_path, monkeypatch, name, drawn_as):
    """In every picture, within it; letters that our font lacks are text of the .svg, for the viewer's fonts."""
    seen = []
    for file, draw in pictures_with(name).items():
        with monkeypatch.context() as patch:
            patch.setattr(figures, "keep", lambda figure, path: seen.append(figure) or path)
            draw(None)
        figure = seen[-1]
        figure.canvas.draw()
        texts = [x for x in figure.findobj(matplotlib.text.Text) if x.get_text().startswith(drawn_as)]
        assert len(texts) >= 2, file
        for box in [text.get_window_extent() for text in texts]:
            assert box.x0 > -1 and box.y0 > -1 and box.x1 < figure.bbox.x1 + 1 and box.y1 < figure.bbox.y1 + 1
        if file == "curve.svg":  # a legend, too
            assert any(text.get_text().endswith(": 50.0") for text in texts)
        if drawn_as.startswith("莎"):
            assert "莎士比亚" in Path(figures_style.keep(figure, tmp_path / file)).read_text(encoding="utf-8")


def test_paradigms_that_differ_in_a_blank_are_two(drawn):
    """They were averaged: 50 and 90 drawn as a row of 70."""
    log = [record(step, a=0) for step in (0, 1)]
    for x in log:
        x["pairs"]["a"]["subtasks"] = {"a_b": 50, "a b": 90}
    assert axis_of(drawn(log), "a: right").images[0].get_array().tolist() == [[90, 90], [50, 50]]


def test_a_leaderboard_leaves_out_what_one_row_alone_was_scored_on(monkeypatch):
    monkeypatch.setattr(figures, "keep", lambda figure, path: figure)
    rows = [{"name": "ours", "parameters": 1828992, "benchmarks": {"blimp": 60, "supplement": 50, "bear": 5}}]
    rows += [{"name": name, "paper": True, "benchmarks": {"supplement": 70}} for name in "ab"]
    rows[1]["parameters"] = 366846976
    rows[2]["benchmarks"]["bear"] = 9
    figure = figures.draw_leaderboard(rows, ["blimp", "supplement", "bear"], None)
    assert [axis.get_title() for axis in figure.axes] == ["supplement", "bear"]
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["a (paper, 367M)", "b (paper)", "ours (1.83M)"]
    rows[1]["benchmarks"]["blimp"] = 20
    figure = figures.draw_leaderboard(rows, ["supplement", "blimp"], None)
    for low, high in (axis.get_xlim() for axis in figure.axes):  # one scale, with room for all scores
        assert low < 20 and high > 70
    figure = figures.draw_leaderboard(rows[:1], ["blimp", "supplement"], None)
    assert [axis.get_title() for axis in figure.axes] == ["blimp", "supplement"]
    figures.plt.close("all")


def test_benchmarks_scored_after_training_are_bars_with_their_intervals(tmp_path, monkeypatch):
    """By hand: two of 67 paradigms that share a phenomenon, 3 and 4 points wide, are (60 + 80) / 2 ± 5 / 2."""
    subtasks = {
        "a": {"score": 60, "interval": 3.0, "term": "t"},
        "b": {"score": 80, "interval": 4.0, "term": "t"},
    }
    subtasks |= {f"p{i}": {"score": 50, "interval": 1.0, "term": "u"} for i in range(65)}
    found = {"blimp": {"score": 50.6, "subtasks": subtasks}, "seen": {"score": 50, "subtasks": {}}}
    results = {"training": [record(0, seen=50)], "benchmarks": found}
    path = tmp_path / "out.json"
    path.write_text(json.dumps(results))
    assert [x.name for x in figures.draw_results(path)] == ["out.svg", "out_benchmarks.svg"]
    monkeypatch.setattr(figures, "keep", lambda figure, path: figure)
    terms = {name: subtask["term"] for name, subtask in subtasks.items()}
    (axis,) = figures.draw_benchmarks({"blimp": found["blimp"]}, terms, None, "out").axes
    assert [bar.get_width() for bar in axis.patches] == [50, 70]
    (spread,) = (x for x in axis.collections)
    assert [segment[:, 0].tolist() for segment in spread.get_segments()][1] == [67.5, 72.5]
    figures.plt.close("all")


# ----------------------------------------------------------------------------------------------------
# Inside a run


def model_of(mixer, n_layer=2):
    torch.manual_seed(0)
    config = dict(n_layer=n_layer, d_model=16, n_head=2, d_mlp=24, vocab_size=50)
    return LanguageModel(Config(mixer=mixer, **config)).eval()


GATED = [name for name, mixer in MIXERS.items() if issubclass(mixer, figures_gates.GATED)]
TOKENS = torch.arange(20).unsqueeze(0)


@torch.no_grad()
@pytest.mark.parametrize("name", GATED)
def test_after_a_half_life_half_of_what_a_mixer_held_is_left(name):
    """A state is 1 apart from another before a text: after T tokens of it, 2^(-T / half-life)."""
    model = model_of(name)
    mixer, seen = model.layers[1].mixer, []
    hook = mixer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    log_f = figures_gates.forget_gates(model, {2: mixer}, TOKENS)[2]
    hook.remove()
    x, _, *floor = seen[0]
    state = mixer(x, None, *floor)[1]
    one, zero = (held(mixer(x, holding(value, state), *floor)[1]) for value in (1.0, 0.0))
    left = (one - zero).reshape(log_f.shape[1], -1)[:, 0]
    lives = figures_gates.half_life(log_f.mean(0))
    torch.testing.assert_close(2 ** (-20 / lives), left.double(), rtol=1e-4, atol=1e-6)


def holding(value, state):
    """A state like this that holds one number everywhere; a convolution's inputs and m of (inputs, h, m) are 0."""
    if isinstance(state, torch.Tensor):
        return torch.full_like(state, value)
    past, h, *m = state
    return torch.zeros_like(past), torch.full_like(h, value), *map(torch.zeros_like, m)


def held(state):
    """What a state holds; mLSTM keeps it e^m too small."""
    _, h, *m = (None, state) if isinstance(state, torch.Tensor) else state
    return h * m[0][:, :, None, None].exp() if m else h


def with_gates(name, **biases):
    """A model whose gates are sigmoid(bias) whatever it reads: layers without weights, HGRN2's without biases."""
    model = model_of(name)
    with torch.no_grad():
        for block in model.layers:
            for gate, bias in biases.items():
                getattr(block.mixer, gate).weight.zero_()
                if name != "hgrn2":
                    getattr(block.mixer, gate).bias.fill_(bias)
    mixers = figures_gates.gated_mixers(model)
    gates = figures_gates.forget_gates(model, mixers, TOKENS).values()
    return [figures_gates.half_life(log_f.mean(0)) for log_f in gates]


def test_half_lives_of_known_gates_by_hand():
    """
    HGRN2: sigmoid(0) = 1/2 above floors of 0 and 1/2 is 1/2 and 3/4. minGRU: f = 1 - 3/4. minLSTM, where f = 1/2
    and i = 1/4: f / (f + i) = 2/3. A half-life is log 1/2 to the base of f: of 1/2 it is 1, of 1/4 it is 1/2.
    """
    first, second = with_gates("hgrn2", forget=0)
    assert first.tolist() == pytest.approx([1] * 16) and second.tolist() == pytest.approx([2.40942] * 16)
    for lives in with_gates("mingru", update=math.log(3)):
        assert lives.tolist() == pytest.approx([0.5] * 16)
    for lives in with_gates("minlstm", forget=0, input=-math.log(3)):
        assert lives.tolist() == pytest.approx([1.70951] * 16)


@pytest.mark.parametrize("bias", [-1e4, 1e4])
@pytest.mark.parametrize("name, gates", [("mingru", ["update"]), ("minlstm", ["forget", "input"])])
def test_saturated_gates_have_finite_half_lives(name, gates, bias):
    for lives in with_gates(name, **dict(zip(gates, (bias, -bias)))):
        assert lives.isfinite().all() and (lives > 0).all()


@pytest.fixture
def inside(workplace, monkeypatch):
    """inside("memory", text="...") -> what would be drawn of a run, laid out; floors are each channel's own."""
    shutil.copytree("out/tiny", "out/$x^{$")
    model, tokenizer, trained = load("out/$x^{$")
    model.floors.table.data.normal_()
    monkeypatch.setattr(figures_gates, "load", lambda run, kernels="auto": (model, tokenizer, trained))
    monkeypatch.setattr(figures_gates, "keep", lambda figure, path: figure)

    def call(what, **settings):
        figure = figures_gates.PICTURES[what](figures_gates.Settings(**settings))
        figure.canvas.draw()
        return figure, model

    yield call
    figures.plt.close("all")


TEXT = "The cat $sees$ the dog."


def gates_of_the_text(model):
    """Every layer's log f (T, N) as it reads TEXT, and the tokens of it."""
    _, tokenizer, _ = load("out/tiny")
    tokens = [tokenizer.token_to_id("<s>"), *tokenizer.encode(TEXT, add_special_tokens=False).ids]
    mixers = figures_gates.gated_mixers(model)
    return figures_gates.forget_gates(model, mixers, torch.tensor([tokens])), tokens


def test_memory_draws_half_lives_sorted_in_each_head_above_the_models_own_floors(inside):
    """Each floor under its channel; the first layer has none. Both as the equation has them."""
    figure, model = inside("memory", text=TEXT)
    assert figure.axes[0].get_title().startswith("$x^{$: how long")
    drawn = [(patch.get_label(), torch.tensor(patch.get_data().values)) for patch in figure.axes[0].patches]
    lives, floors = ([x for label, x in drawn if word in label] for word in ("channel", "floor"))
    assert len(lives) == 4 and len(floors) == 2
    own = -math.log(2) / model.floors.table.detach().double().softmax(0)[1].log()
    gates, _ = gates_of_the_text(model)
    half_lives = figures_gates.half_life(gates[2].mean(0))
    heads = (half_lives.chunk(2), own.chunk(2))
    for life, floor, of_channels, of_floors in zip(lives[2:], floors, *heads):
        order = of_channels.argsort()
        torch.testing.assert_close(life, of_channels[order])
        torch.testing.assert_close(floor, of_floors[order], rtol=1e-5, atol=0)
        assert (life > floor).all()
    medians = json.loads(Path("out/$x^{$/memory.json").read_text())["medians"]
    assert medians["2"] == pytest.approx(half_lives.median().item(), abs=0.006)


def test_gates_draw_a_column_a_token_and_a_row_a_channel(inside):
    """1 - f of the text; the last layer is on top, in each head what forgets least. A $ starts no formula."""
    figure, model = inside("gates", text=TEXT)
    assert figure.get_suptitle().startswith("$x^{$: how much")
    gates, tokens = gates_of_the_text(model)
    labels = figure.axes[1].get_xticklabels()
    words = [label.get_text() for label in labels]
    assert words[0] == "<s>" and "".join(words[1:]) == "Thecat␣$sees$thedog." and len(words) == len(tokens)
    assert not any(label.get_parse_math() for label in labels)
    assert [axis.get_ylabel() for axis in figure.axes[:2]] == ["layer 2", "layer 1"]
    for axis, n in zip(figure.axes, (2, 1)):
        kept = 1 - torch.tensor(axis.images[0].get_array())  # (N, T)
        assert axis.images[0].get_interpolation() == "none"
        torch.testing.assert_close(kept.sort(0).values, gates[n].exp().T.sort(0).values)
        for head in kept.log().mean(1).chunk(2):
            assert (head.diff() <= 1e-6).all()


def test_of_many_channels_some_are_drawn_as_they_are():
    """In 2 heads of 100: every fourth as sorted, so the slowest too, and no mean of neighbours."""
    log_f = -torch.rand(5, 200)
    drawn = figures_gates.draw_forgotten(Figure().subplots(), log_f, n_head=2).get_array()
    assert drawn.shape == (50, 5)
    channels = [tuple(channel) for channel in (1 - log_f.T.exp()).tolist()]
    assert all(tuple(row) in channels for row in drawn.tolist())
    assert tuple(drawn[0]) == min(channels[:100], key=lambda x: -sum(math.log(1 - y) for y in x))


def test_no_two_lines_of_a_picture_look_alike():
    """Of up to 84 models; the first seven differ in colour."""
    styles = figures_style.line_styles(range(84))
    assert len({tuple(style.values()) for style in styles.values()}) == 84
    assert len({styles[n]["color"] for n in range(7)}) == 7


@pytest.mark.parametrize("what", ["memory", "gates"])
def test_a_picture_of_a_large_model_is_a_small_file(workplace, monkeypatch, what):
    """Of 12 x 512 channels at 46 tokens, whose gates are noise; in every third layer there are none."""
    config = Config(
        mixer="hgrn2 mingru attention", n_layer=18, d_model=512, n_head=8, d_mlp=1, vocab_size=300
    )
    model, (_, tokenizer, trained) = LanguageModel(config).eval(), load("out/tiny")
    for n, mixer in figures_gates.gated_mixers(model).items():
        gate = mixer.update if n % 3 == 2 else mixer.forget
        gate.weight.data.normal_(std=1)
    monkeypatch.setattr(figures_gates, "load", lambda run, kernels="auto": (model, tokenizer, trained))
    text = "The cat sees the dog. " * 5
    path = figures_gates.PICTURES[what](figures_gates.Settings(text=text, picture=f"{what}.svg"))
    assert str(path) == f"{what}.svg" and 10_000 < Path(path).stat().st_size < 200_000


WRONG = """
memory out/none                              -> out/none: there is no such run; did you mean out/gone?
memory out/tiny out/tiny                     -> one at a time, please
memory out/tiny --picture=m.pdf              -> picture = 'm.pdf': name a file that ends in .svg or .png
memory out/gone                              -> there is no data/gone here; say what to read, --text=
gates out/tiny --text                        -> --text has no value
gates out/tiny --text="LONG"                 -> tokens, and a picture has room for 48: shorten it
gates out/gpt                                -> Attention has no forget gates to draw; there are those
phenomena                                    -> phenomena of what?
phenomena out/none                           -> out/none: not a result file of evaluate.py, compare.py or
phenomena out/tiny                           -> out/tiny: not scored yet; first: python evaluate.py out/tiny
phenomena text.txt                           -> text.txt: not a result file of evaluate.py, compare.py or
phenomena list.json                          -> list.json: not a result file of evaluate.py, compare.py or
list.json                                    -> list.json: not a result file of evaluate.py, compare.py or
cut.json                                     -> cut.json: not a result file of evaluate.py, compare.py or
half.json                                    -> half.json: not a result file of evaluate.py, compare.py or
empty.json                                   -> empty.json: there is nothing in it to draw
words.json                                   -> words.json: not a result file of evaluate.py, compare.py or
phenomena words.json                         -> words.json: not a result file of evaluate.py, compare.py or
phenomena huge.json                          -> huge.json: not a result file of evaluate.py, compare.py or
lost                                         -> lost/log.jsonl: not a result file of evaluate.py, compare.py or
phenomena one.json other.json                -> toyland: one, other have no paradigm in common
"""


@pytest.fixture
def with_results(workplace, tiny):
    """A workplace with result files, and runs without gates and without a corpus."""
    train.main(tiny(run="gpt", mixer="attention", max_steps=1))
    shutil.copytree("data/tiny", "data/gone")
    train.main(tiny(run="gone", corpus="gone", max_steps=1))
    shutil.rmtree("data/gone")
    Path("list.json").write_text("[]")
    Path("cut.json").write_text('{"benchmarks": {"toyland": {"sub')
    Path("half.json").write_text('{"comparison": "two", "tasks": []}')
    Path("empty.json").write_text("{}")
    Path("words.json").write_text(json.dumps(results_of({"a": "high"})))
    Path("huge.json").write_text(json.dumps(results_of({"a": 10**400})))
    Path("lost").mkdir()
    Path("lost/log.jsonl").write_text('{"step": 1}\n{"step": 2, "ep')
    write_scores()


def write_scores():
    for name, scores in {"one": {"a": 80, "b": 55}, "other": {"c": 70}, "third": {"b": 45, "a": 50}}.items():
        Path(f"{name}.json").write_text(json.dumps(results_of(scores)))


def results_of(scores, terms={}):
    subtasks = {name: {"score": score, "term": terms.get(name)} for name, score in scores.items()}
    return {"benchmarks": {"toyland": {"subtasks": subtasks}, "bear": {"chance": 5, "subtasks": subtasks}}}


def test_a_wrong_word_is_one_line(with_results, refusal):
    for line in WRONG.strip().splitlines():
        command, _, expected = line.partition(" -> ")
        args = shlex.split(command.replace("LONG", "The cat sees the dog. " * 20))
        said = refusal(figures.main, args)
        assert expected.strip() in said and said.count("\n") == 1, line


def test_two_processes_may_draw_one_picture(tmp_path, monkeypatch):
    """One's was renamed while the other still wrote it: half a picture, then an error."""
    with replacing(tmp_path / "x.svg") as one:
        one.write("half of a picture, ")
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 1)
            with replacing(tmp_path / "x.svg") as other:
                other.write("another's")
        assert (tmp_path / "x.svg").read_text() == "another's"
        one.write("and the rest")
    assert (tmp_path / "x.svg").read_text() == "half of a picture, and the rest"
    assert len(list(tmp_path.iterdir())) == 1


def test_compiled_steps_have_panels_of_their_own(tmp_path, monkeypatch):
    """On a GPU a model is measured both ways; the second was drawn in place of the first."""
    panels = []
    monkeypatch.setattr(figures_bench, "keep", lambda figure, path: panels.extend(figure.axes))
    row = {"model": "HGRN2", "B": 8, "T": 256}
    rows = [row | {"compiled": compiled, "tokens_per_second": 10 + compiled} for compiled in (True, False)]
    list(figures_bench.draw_benches({"train_float32": {"rows": rows}}, tmp_path / "bench.json"))
    found = {axis.get_title(): axis.lines[0].get_ydata().tolist() for axis in panels}
    title = "training in float32: tokens per second"
    assert found == {f"{title}, compiled": [11], title: [10]}


# ----------------------------------------------------------------------------------------------------
# Who fails where


def test_phenomena_of_twelve_models_are_a_small_file(workplace):
    scores = dict.fromkeys(toyland.PARADIGMS, 100)
    path = figures.draw_phenomena({f"model {i}": scores for i in range(12)}, "phenomena.svg", "toyland", {})
    assert 10_000 < Path(path).stat().st_size < 200_000


@pytest.fixture
def heat(tmp_path, monkeypatch):
    """heat("one.json", ...) -> of the one picture: names of its rows and columns, and its numbers."""
    monkeypatch.setattr(figures, "keep", lambda figure, path: figure)
    monkeypatch.chdir(tmp_path)
    write_scores()

    def call(*names):
        (figure,) = figures.compare_phenomena([Path(name) for name in names])
        (axis,) = figure.axes
        labels = [[x.get_text() for x in y()] for y in (axis.get_yticklabels, axis.get_xticklabels)]
        return *labels, axis.images[0].get_array().tolist()

    yield call
    figures.plt.close("all")


def test_phenomena_has_the_best_model_on_top_and_the_easiest_phenomenon_first(heat):
    """Of minimal pairs alone: a benchmark with another chance than 50 is left out."""
    assert heat("third.json", "one.json") == (["one  67.5", "third  47.5"], ["a", "b"], [[80, 55], [50, 45]])


def test_models_of_a_comparison_are_rows_with_the_means_over_seeds_at_their_best_rates(heat):
    """By hand: (60 + 80) / 2 = 70. A model that only diverged has no row."""

    def run(rate, score):
        return {"learning_rate": rate, "best": {"pairs": {"toyland": {"subtasks": {"a": score}}}}}

    rows = {
        "HGRN2": {"best": {"learning_rate": 1e-2}, "runs": [run(1e-2, 60), run(1e-2, 80), run(1e-3, 99)]},
        "minGRU": {"best": {"learning_rate": 1e-3}, "runs": [run(1e-3, 90)]},
        "LSTM": {"best": None, "runs": [{"learning_rate": 1e-3, "best": None}]},
    }
    Path("compare.json").write_text(json.dumps({"comparison": "two", "rows": rows}))
    assert heat("compare.json") == (["minGRU  90.0", "HGRN2  70.0"], ["a"], [[90], [70]])


def test_a_tilde_is_the_home(heat, monkeypatch):
    """As a notebook or Windows hands it over; in a settings file and in a flag no shell replaces it."""
    monkeypatch.setenv("HOME", str(Path.cwd()))
    monkeypatch.setenv("USERPROFILE", str(Path.cwd()))
    monkeypatch.setattr(figures, "keep", figures_style.keep)
    figures.main(["phenomena", "~/one.json"])
    assert Path("one_toyland.svg").exists() and not Path("~").exists()


def test_two_models_called_alike_are_two_rows(heat):
    Path("old").mkdir()
    Path("old/one.json").write_text(json.dumps(results_of({"a": 20, "b": 30})))
    assert heat("one.json", "old/one.json")[0] == ["one  67.5", "old/one.json: one  25.0"]


def test_the_picture_of_a_file_of_ones_own_is_beside_the_results(heat, monkeypatch):
    own = results_of({"a": 20})["benchmarks"]["toyland"]
    Path("own.json").write_text(json.dumps({"benchmarks": {"my/own.jsonl": own}}))
    monkeypatch.setattr(figures, "keep", figures_style.keep)
    (path,) = figures.compare_phenomena([Path("own.json")])
    assert path == Path("own_my_own_jsonl.svg") and path.exists()


def test_many_paradigms_are_a_column_a_phenomenon_but_the_mean_is_theirs(heat):
    """By hand: 30 paradigms at 100 and 2 at 20 are phenomena of 100 and 20, and a mean of 3040 / 32 = 95."""
    scores = {f"p{i}": 100 if i < 30 else 20 for i in range(32)}
    terms = {name: "early" if score == 100 else "late" for name, score in scores.items()}
    Path("many.json").write_text(json.dumps(results_of(scores, terms)))
    assert heat("many.json") == (["many  95.0"], ["early", "late"], [[100, 20]])


def test_numbers_of_a_picture_replace_no_other_file(workplace):
    Path("out/tiny/notes.json").write_text("{}")
    figures.main(["memory", "out/tiny", "--text=The cat.", "--picture=out/tiny/notes.svg"])
    assert Path("out/tiny/notes.json").read_text() == "{}"
    assert "medians" in json.loads(Path("out/tiny/memory.json").read_text())
