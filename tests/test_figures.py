"""The learning curve says what the log says, and nothing in it lies over anything else."""

import pytest

import figures

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
    """drawn(log, benchmarks) -> the figure, laid out."""

    def call(log, benchmarks={}):
        monkeypatch.setattr(figures, "keep", lambda figure, path: figure)
        figure = figures.draw(log, benchmarks, "curve.svg", "a run")
        figure.canvas.draw()
        return figure

    yield call
    figures.plt.close("all")


def axis_of(figure, title):
    (axis,) = (axis for axis in figure.axes if title in axis.get_title())
    return axis


def test_the_best_macro_score_is_marked_and_chance_is_dotted(drawn):
    """By hand: macro scores 50, 65, 62.5 and 65; the first of equals is the best, as for best.pt."""
    log = [record(0, a=50, b=50), record(1, a=70, b=60), record(2, a=75, b=50), record(3, a=65, b=65)]
    axis = axis_of(drawn(log), "judged rightly")
    lines = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert lines["best, 65.0 at epoch 1"] == [[1, 65]]
    assert lines["macro score, 65.0 last"] == [[0, 50], [1, 65], [2, 62.5], [3, 65]]
    assert lines["a, 65.0 last"] == [[0, 50], [1, 70], [2, 75], [3, 65]]
    assert [y for _, y in lines["chance of a pair"]] == [50, 50]


def test_a_row_is_a_paradigm_and_what_was_learned_first_is_on_top(drawn):
    axis = axis_of(drawn([record(0, a=[50, 50, 50]), record(1, a=[60, 90, 75])]), "a: per cent right")
    assert axis.images[0].get_array().tolist() == [[50, 90], [50, 75], [50, 60]]
    assert [text.get_text()[-3:] for text in axis.get_yticklabels()] == ["es1", "es2", "es0"]


def test_many_paradigms_whose_phenomena_are_known_are_a_row_a_phenomenon(drawn):
    """Means by hand; known from the results of any benchmark with the same paradigms."""
    log = [record(epoch, blimp_fast=[float(i + epoch) for i in range(67)]) for epoch in (0, 1)]
    terms = {
        uid: {"term": "early" if i < 10 else "late", "score": 1, "n": 1, "interval": 1}
        for i, uid in enumerate(BLIMP)
    }
    axis = axis_of(drawn(log, {"blimp": {"score": 1, "subtasks": terms}}), "blimp_fast")
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
