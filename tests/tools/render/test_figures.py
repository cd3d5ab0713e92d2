"""Figures, measured on their canvas: ticks are whole epochs, and no legend or number covers another part."""

from itertools import combinations

import numpy as np
import pytest

from tools.render import figures

LABELS = ["scab", "rust"]
RNG = np.random.default_rng(0)
TRUTH = np.arange(400).reshape(200, 2) % 3 == 0
PROBABILITY = np.clip(0.5 * TRUTH + 0.5 * RNG.random((200, 2)), 0, 1)


@pytest.fixture(autouse=True)
def keep_figures(monkeypatch):
    """The functions return the drawn matplotlib figure instead of its PNG."""

    png = figures.to_png

    def draw(figure):
        png(figure)
        return figure

    monkeypatch.setattr(figures, "to_png", draw)


@pytest.mark.parametrize("num_epochs", [1, 2, 3, 30])
def test_curves_have_whole_epochs_every_point_and_legends_outside(num_epochs):
    keys = ("train_loss", "val_loss", "accuracy", "hit1", "exact", "macro_f1", "lr")
    rows = [{"epoch": str(n + 1)} | dict.fromkeys(keys, f"{1 / (n + 2)}") for n in range(num_epochs)]
    for axes in figures.draw_curves(rows).axes:
        assert all(tick == round(tick) for tick in axes.get_xticks())
        assert all(list(line.get_xdata()) == list(range(1, num_epochs + 1)) for line in axes.lines)
        assert not (axes.get_legend() and axes.get_legend().get_window_extent().overlaps(axes.bbox))


def test_the_legend_of_precision_over_recall_covers_no_curve():
    figure = figures.draw_precision_recall(PROBABILITY, TRUTH, LABELS, [0.5, None])
    (legend,), (axes,) = figure.legends, figure.axes
    assert not legend.get_window_extent().overlaps(axes.bbox)
    assert [text.get_text() for text in legend.get_texts()] == ["0.500  scab"]


@pytest.mark.parametrize("num_labels", [17, 120, 500])
def test_a_large_confusion_matrix_shows_the_labels_that_are_confused_most(num_labels):
    """Three pairs are confused often, all others once: every count is in the table, the frequent pairs in own cells."""
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 2, (num_labels, num_labels)) + np.diag(rng.integers(5, 9, num_labels))
    pairs = {(16, 3): 50, (7, 16): 40, (num_labels - 1, 0): 30}
    for pair, count in pairs.items():
        matrix[pair] = count
    labels = [f"label {c}" for c in range(num_labels)]
    table = figures.draw_confusion(matrix, labels, "t", "true", "given").axes[0]
    names = [tick.get_text() for tick in table.get_yticklabels()]
    assert len(names) == figures.MOST_LABELS
    assert names[-1] == f"{num_labels - 15} others"
    assert f"15 of {num_labels} labels, those of the most confused pairs" in table.get_title()
    cells = np.array([int(text.get_text()) for text in table.texts]).reshape(16, 16)
    assert cells.sum() == matrix.sum()
    shown = [int(name.split()[1]) for name in names[:-1]]
    assert (cells[:-1, :-1] == matrix[np.ix_(shown, shown)]).all()
    assert (cells.sum(axis=1)[:-1] == matrix[shown].sum(axis=1)).all()
    assert all(row in shown and column in shown for row, column in pairs)


def test_the_most_frequent_of_many_labels_have_a_curve():
    truth = np.arange(20)[:, None] < np.arange(1, 31) % 20  # label c has (c + 1) % 20 photos, label 19 none
    ap = [None if not column.any() else 0.5 for column in truth.T]
    figure = figures.draw_precision_recall(truth * 0.5, truth, [f"l{c}" for c in range(30)], ap)
    shown = [text.get_text().split()[1] for text in figure.legends[0].get_texts()]
    assert shown == [f"l{c}" for c in (*range(8, 19), 29)]  # 9 to 19 photos, and 10
    assert len({(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}) == len(shown) == 12
    assert "12 most frequent labels of 30" in figure.axes[0].get_title()


HOSTILE = ["<b>bold</b>", 'say "no"', "a|b", "x" * 80, "_hidden", "$x^{", "$a$", "שלום", "苹果", "\\frac{"]


@pytest.mark.filterwarnings("error")
def test_names_of_any_kind_stay_as_they_are_and_inside_the_figure():
    matrix, truth = np.eye(len(HOSTILE), dtype=int), np.eye(len(HOSTILE), dtype=bool)
    drawn = [
        figures.draw_confusion(matrix, HOSTILE, "t", "true", "given"),
        figures.draw_precision_recall(truth * 0.9, truth, HOSTILE, [1.0] * len(HOSTILE)),
    ]
    texts = [tick.get_text() for tick in drawn[0].axes[0].get_yticklabels()]
    legend = drawn[1].legends[0].get_texts()
    assert [text.get_text().removeprefix("1.000  ") for text in legend] == texts
    assert [text.replace(r"\$", "$") for text in texts if "…" not in text] == [n for n in HOSTILE if len(n) < 80]
    assert "x" * 14 + "…" + "x" * 14 in texts
    for figure in drawn:
        parts = [*figure.axes[0].get_yticklabels(), *figure.axes[0].get_xticklabels(), *figure.legends]
        boxes = [part.get_window_extent() for part in parts]
        assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 for box in boxes)


@pytest.mark.parametrize(("num_photos", "power"), [(2, 1), (20, 1.5), (20, 2.5), (300, 4)])
def test_the_numbers_of_the_reliability_axes_are_apart(num_photos, power):
    """Counts of about one decade are the hard case: matplotlib labels the minor ticks of their axis too."""
    probability = np.linspace(0, 1, 2 * num_photos).reshape(-1, 2) ** power
    figure = figures.draw_reliability(probability, probability, probability > 0.5, (0.1, 0.2))
    boxes = []
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = axis.get_view_interval()
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if low <= tick.get_loc() <= high and tick.label1.get_visible() and tick.label1.get_text():
                boxes.append(tick.label1.get_window_extent())
    assert len(boxes) > 10
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_the_confusion_matrix_says_what_its_colour_means():
    figure = figures.draw_confusion(np.array([[3, 1], [0, 0]]), LABELS, "t", "true", "given")
    table, bar = figure.axes
    assert bar.get_ylabel() == "colour: share of the row"
    assert table.images[0].get_array().tolist() == [[0.75, 0.25], [0, 0]]
    assert [text.get_text() for text in table.texts] == ["3", "1", "0", "0"]


def test_labels_are_drawn_letter_by_letter():
    """Dollars enclose no formula, and a name that begins with _ is in the legend."""
    labels = ["$x$ and $y$", "_low"]
    figure = figures.draw_precision_recall(PROBABILITY, TRUTH, labels, [0.5, 0.25])
    texts = figure.legends[0].get_texts()
    assert [text.get_text().replace("\\$", "$").strip() for text in texts] == ["0.500  $x$ and $y$", "0.250  _low"]
    ticks = figures.draw_confusion(np.eye(2, dtype=int), labels, "", "", "").axes[0].get_xticklabels()
    for text in [*texts, *ticks]:
        assert not text._preprocess_math(text.get_text())[1]


def test_a_study_shows_every_run_every_interval_and_the_verdicts():
    names, runs = ["a", "b" * 60, "$c$"], [np.array([80.0, 82.0]), np.array([70.0]), np.array([81.0, 81.5, 83.0])]
    kinds = ["baseline", "worse", "cannot tell"]
    figure = figures.draw_study(names, runs, [(-11.0, -13.0, -9.0), (0.8, -1.0, 2.6)], kinds, "exact match")
    left, right = figure.axes
    shown = [points.get_offsets() for points in left.collections]
    assert [offsets[:, 0].tolist() for offsets in shown[::2]] == [values.tolist() for values in runs]
    assert [offsets[0, 0] for offsets in shown[1::2]] == [values.mean() for values in runs]
    assert [list(line.get_xdata()) for line in right.lines[:2]] == [[-13.0, -9.0], [-1.0, 2.6]]
    assert right.get_ylim() == left.get_ylim()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == kinds[1:]
    assert not any(legend.get_window_extent().overlaps(axes.bbox) for axes in figure.axes)
