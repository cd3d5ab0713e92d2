"""Everything drawn with matplotlib, as PNG bytes on the Agg canvas: no display is ever needed."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve

from tools.evaluate.metrics import ECE_BINS

_INK, _ACCENT, _SECOND, _THIRD = "#33413a", "#2f7d4f", "#c8682b", "#7a6fb0"


_CLASSES = (_ACCENT, _SECOND, _THIRD, "#3b82b5", "#b0417a", "#8a7a2f")  # in turn


def draw_curves(rows: list[dict[str, str]]) -> bytes:
    """From the rows of metrics.csv: losses, validation scores, learning rate over the epochs."""
    epochs = [int(row["epoch"]) for row in rows]
    figure, (left, middle, right) = _figure(12, 3.6, 3)
    for key, colour, label in (("train_loss", _INK, "training"), ("val_loss", _SECOND, "validation")):
        left.plot(epochs, [float(row[key]) for row in rows], color=colour, label=label, marker=".")
    left.set_title("loss")
    for key, colour, label in (
        ("accuracy", _INK, "copies right"),
        ("hit1", _SECOND, "hit@1"),
        ("exact", _THIRD, "exact match"),
        ("macro_f1", _ACCENT, "macro-F1"),
    ):
        middle.plot(epochs, [100 * float(row[key]) for row in rows], color=colour, label=label, marker=".")
    middle.set_title("validation, %")
    right.plot(epochs, [float(row["lr"]) for row in rows], color=_INK, marker=".", label="last update of the epoch")
    right.set_title("learning rate")
    for axes in (left, middle, right):
        axes.set_xlabel("epoch")
        axes.legend(frameon=False, fontsize=8)
    return to_png(figure)


def draw_confusion(matrix: np.ndarray, labels: Sequence[str], title: str, rows: str, columns: str) -> bytes:
    """A table of counts `[C, C]`, shaded by the share of its row."""
    side = 2.4 + 0.75 * len(labels)
    figure, axes = _figure(side + 0.6, side)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Greens", vmin=0, vmax=1)
    for row, column in np.ndindex(matrix.shape):
        colour = "white" if shares[row, column] > 0.6 else _INK
        axes.text(column, row, matrix[row, column], ha="center", va="center", color=colour, fontsize=10)
    axes.set_xticks(range(len(labels)), labels, rotation=35, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set(title=title, xlabel=columns, ylabel=rows)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return to_png(figure)


def draw_precision_recall(probability: np.ndarray, truth: np.ndarray, labels: Sequence[str], ap: Sequence) -> bytes:
    """Precision over recall for every class with photos; `ap` (None for the others) goes into the legend."""
    figure, axes = _figure(6.4, 5)
    for index, (label, value) in enumerate(zip(labels, ap, strict=True)):
        if value is not None:
            precision, recall, _ = precision_recall_curve(truth[:, index], probability[:, index])
            colour = _CLASSES[index % len(_CLASSES)]
            axes.step(recall, precision, where="post", color=colour, label=f"{label}  {value:.3f}")
    axes.set(title="precision over recall (average precision)", xlabel="recall", ylabel="precision", ylim=(0, 1.02))
    axes.legend(frameon=False, fontsize=9, loc="lower left")
    return to_png(figure)


def draw_reliability(before: np.ndarray, after: np.ndarray, truth: np.ndarray, errors: tuple[float, float]) -> bytes:
    """How often labels are true over how probable they were called, uncalibrated and calibrated; `[n, C]` each.

    Under it, how many photo-label pairs each bin holds. `errors`: the calibration errors of both, for the legend.
    """
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    edges = np.linspace(0, 1, ECE_BINS + 1)
    upper.plot([0, 1], [0, 1], color="#b8c4bd", linestyle="--")
    for values, error, colour, name in ((before, errors[0], _SECOND, "raw"), (after, errors[1], _ACCENT, "calibrated")):
        bins = np.minimum((values.ravel() * ECE_BINS).astype(int), ECE_BINS - 1)
        size = np.bincount(bins, minlength=ECE_BINS)
        filled = size > 0
        mean, share = (np.bincount(bins, v.ravel(), ECE_BINS)[filled] / size[filled] for v in (values, truth))
        upper.plot(mean, share, color=colour, marker="o", label=f"{name}, ECE {error:.4f}")
        lower.stairs(size, edges, color=colour)
    upper.set(title="reliability over all photo-label pairs", ylabel="share that is true", xlim=(0, 1), ylim=(0, 1))
    lower.set(xlabel="probability", ylabel="pairs", yscale="log")
    upper.legend(frameon=False)
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    return to_png(figure)


def draw_cam_scores(scores: Sequence) -> bytes:
    """From `tools.explain.score.Score`s: pointing game and energy with their intervals, and what chance would give."""
    names = [f"{score.checkpoint}  {score.recipe.method}\n{score.recipe.where}" for score in scores]
    figure, (left, right) = _figure(12, 1.4 + 0.5 * len(scores), 2)
    places = np.arange(len(scores))[::-1]
    chance = [score.figures["chance"][0] for score in scores]
    for axes, name, title in ((left, "pointing", "peak in a box"), (right, "energy", "share of the map in boxes")):
        values, low, high = np.array([score.figures[name] for score in scores]).T
        axes.barh(places, values, xerr=(values - low, high - values), color=_ACCENT, ecolor=_INK, height=0.6)
        axes.scatter(
            chance,
            places,
            marker="|",
            s=160,
            color=_SECOND,
            zorder=3,
            label="chance: the boxes' share of the area",
        )
        axes.set(title=title, xlim=(0, 1.02), ylim=(-0.8, len(scores) - 0.2))
    left.set_yticks(places, names, fontsize=8)
    right.set_yticks(places, [])
    figure.legend(*right.get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside lower right")
    return to_png(figure)


def _figure(width: float, height: float, columns: int = 1):
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns)
    for one in np.ravel(axes):
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def to_png(figure: Figure) -> bytes:
    """The figure as PNG bytes."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
