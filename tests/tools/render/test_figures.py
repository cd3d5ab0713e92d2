"""Figures, measured on their canvas: ticks are whole epochs, and no legend or number covers another part."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from tools.render import figures

LABELS = ["scab", "rust"]
RNG = np.random.default_rng(0)
TRUTH = np.arange(400).reshape(200, 2) % 3 == 0
PROBABILITY = np.clip(0.5 * TRUTH + 0.5 * RNG.random((200, 2)), 0, 1)


@pytest.fixture(autouse=True)
def keep_figures(monkeypatch):
    """The functions return the drawn matplotlib figure instead of its PNG."""

    def draw(figure):
        FigureCanvasAgg(figure).draw()
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
    assert [text.get_text() for text in legend.get_texts()] == ["scab  0.500"]


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
