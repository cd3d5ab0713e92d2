"""Everything drawn with matplotlib, as PNG bytes on the Agg canvas: no display is ever needed."""

import io
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from sklearn.metrics import precision_recall_curve

from tools.evaluate.metrics import ECE_BINS

_INK, _ACCENT, _SECOND, _THIRD = "#33413a", "#2f7d4f", "#c8682b", "#7a6fb0"
_CLASSES = (_ACCENT, _SECOND, _THIRD, "#3b82b5", "#b0417a", "#8a7a2f")  # in turn
# what a study knows of an arm -> its colour
_KINDS = {"baseline": _INK, "better": _ACCENT, "worse": _SECOND, "equal": "#3b82b5", "cannot tell": "#9aa59f"}
MOST_LABELS = 16  # rows of a confusion matrix
MOST_CURVES = 2 * len(_CLASSES)


def draw_curves(rows: list[dict[str, str]]) -> bytes:
    """From the rows of metrics.csv: losses, validation scores and the learning rate at the end of each epoch."""
    epochs = [int(row["epoch"]) for row in rows]
    figure, axes = _create_figure(12, 4, ncols=3)
    panels: tuple[tuple[str, int, dict[str, tuple[str, str | None]]], ...] = (
        ("loss", 1, {"train_loss": (_INK, "training"), "val_loss": (_SECOND, "validation")}),
        ("validation, %", 100, {"accuracy": (_INK, "label copies right"), "hit1": (_SECOND, "hit@1"),
                                "exact": (_THIRD, "exact match"), "macro_f1": (_ACCENT, "macro-F1")}),
        ("learning rate", 1, {"lr": (_INK, None)}),
    )  # fmt: skip
    marker = "." if len(rows) < 3 else ""  # a line of one or two points is hard to see
    for panel, (title, factor, curves) in zip(axes, panels, strict=True):
        for key, (colour, label) in curves.items():
            panel.plot(epochs, [factor * float(row[key]) for row in rows], color=colour, label=label, marker=marker)
        panel.set(title=title, xlabel="epoch")
        panel.ticklabel_format(axis="y", scilimits=(-3, 4), useOffset=False)
        panel.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
        if len(curves) > 1:
            panel.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    return to_png(figure)


def draw_confusion(matrix: np.ndarray, labels: Sequence[str], title: str, rows: str, columns: str) -> bytes:
    """A table of counts `[C, C]`; the colour of a cell is its share of the row.

    Of more than `MOST_LABELS` labels, those of the most confused pairs have a row; one row adds up the others.
    """
    if len(labels) > MOST_LABELS:
        pairs = np.argsort(np.diag(np.diag(matrix)) - matrix, axis=None, kind="stable")
        confused = dict.fromkeys(np.stack(np.unravel_index(pairs, matrix.shape), axis=1).ravel().tolist())
        shown = sorted(list(confused)[: MOST_LABELS - 1])
        place = np.full(len(labels), len(shown))
        place[shown] = range(len(shown))
        groups = np.eye(MOST_LABELS, dtype=int)[place]  # [C, MOST_LABELS], label -> row
        title += f"\n{len(shown)} of {len(labels)} labels, those of the most confused pairs"
        labels = [*(labels[c] for c in shown), f"{len(labels) - len(shown)} others"]
        matrix = groups.T @ matrix @ groups
    side = 2.4 + 0.6 * len(labels)
    figure, axes = _create_figure(side + 1.4, side)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Greens", vmin=0, vmax=1)
    bar = figure.colorbar(image, format=PercentFormatter(1), shrink=0.75, pad=0.02)
    bar.set_label("colour: share of the row")
    bar.outline.set_visible(False)
    for row, column in np.ndindex(matrix.shape):
        colour = "white" if shares[row, column] > 0.6 else _INK
        axes.text(column, row, matrix[row, column], ha="center", va="center", color=colour, fontsize=10)
    names = [_shorten(label) for label in labels]
    axes.set_xticks(range(len(labels)), names, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(labels)), names)
    axes.set(title=title, xlabel=columns, ylabel=rows)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return to_png(figure)


def draw_precision_recall(probability: np.ndarray, truth: np.ndarray, labels: Sequence[str], ap: Sequence) -> bytes:
    """Precision over recall for every class with photos; `ap` (None for the others) is in the legend.

    Of more than `MOST_CURVES` classes, those with the most photos are drawn.
    """
    figure, axes = _create_figure(7.4, 6)
    known = [c for c, value in enumerate(ap) if value is not None]
    shown = sorted(sorted(known, key=lambda c: -truth[:, c].sum())[:MOST_CURVES])
    for place, c in enumerate(shown):
        precision, recall, _ = precision_recall_curve(truth[:, c], probability[:, c])
        colour, style = _CLASSES[place % len(_CLASSES)], "-:"[place // len(_CLASSES)]
        axes.step(recall, precision, style, where="post", color=colour, label=f"{ap[c]:.3f}  {_shorten(labels[c])}")
    title = "precision over recall"
    if len(shown) < len(known):
        title += f"\nthe {len(shown)} most frequent labels of {len(labels)}"
    axes.set(title=title, xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    figure.legend(frameon=False, fontsize=9, title="average precision", loc="outside right center")
    return to_png(figure)


def draw_reliability(before: np.ndarray, after: np.ndarray, truth: np.ndarray, errors: tuple[float, float]) -> bytes:
    """The share of true labels over the predicted probability, uncalibrated and calibrated; `[n, C]` each.

    The lower panel counts the photo-label pairs per bin. `errors`: the calibration errors of both, for the legend.
    """
    figure, (upper, lower) = _create_figure(7.4, 6, nrows=2, height_ratios=(3, 1), sharex=True)
    edges = np.linspace(0, 1, ECE_BINS + 1)
    upper.plot([0, 1], [0, 1], color="#b8c4bd", linestyle="--")
    for values, error, colour, name in ((before, errors[0], _SECOND, "raw"), (after, errors[1], _ACCENT, "calibrated")):
        bins = np.minimum((values.ravel() * ECE_BINS).astype(int), ECE_BINS - 1)
        size = np.bincount(bins, minlength=ECE_BINS)
        filled = size > 0
        mean, share = (np.bincount(bins, v.ravel(), ECE_BINS)[filled] / size[filled] for v in (values, truth))
        upper.plot(mean, share, color=colour, marker="o", clip_on=False, label=f"{name}, ECE {error:.4f}")
        lower.stairs(size, edges, color=colour)
    upper.set(title="reliability over all photo-label pairs", ylabel="share that is true", xlim=(0, 1), ylim=(0, 1))
    lower.set(xlabel="probability", ylabel="pairs per bin", yscale="log", ylim=(0.7, None))
    lower.tick_params(which="minor", left=False, labelleft=False)
    upper.legend(frameon=False)
    return to_png(figure)


def draw_cam_scores(names: Sequence[str], figures: Sequence[Mapping[str, tuple[float, float, float]]]) -> bytes:
    """Recall and pointing game with their intervals, one bar per name, and what chance would give for the latter.

    Args:
        figures: per name, figure -> (value, low, high), of which recall_2, pointing and chance are drawn.
    """
    figure, (left, right) = _create_figure(12, 1.4 + 0.5 * len(names), ncols=2)
    places = np.arange(len(names))[::-1]
    titles = {"recall_2": "boxes found at 2 false peaks per map", "pointing": "highest peak in a box"}
    for axes, (name, title) in zip((left, right), titles.items(), strict=True):
        values, low, high = np.array([entry[name] for entry in figures]).T
        axes.barh(places, values, xerr=(values - low, high - values), color=_ACCENT, ecolor=_INK, height=0.6)
        axes.set(title=title, xlim=(0, 1.02), ylim=(-0.8, len(names) - 0.2))
    chance = [entry["chance"][0] for entry in figures]
    marks = right.scatter(chance, places, marker="|", s=160, color=_SECOND, zorder=3)
    left.set_yticks(places, names, fontsize=8)
    right.set_yticks(places, [])
    label = "chance: the boxes' share of the area"
    figure.legend([marks], [label], frameon=False, fontsize=8, loc="outside lower right")
    return to_png(figure)


def draw_study(
    names: Sequence[str],
    runs: Sequence[np.ndarray],
    differences: Sequence[tuple[float, float, float]],
    kinds: Sequence[str],
    title: str,
) -> bytes:
    """Arms of a study: on the left each run and the mean, on the right the difference to the first with its interval.

    Args:
        runs: a figure of the runs of each arm, in percent.
        differences: (points, low, high) of every arm but the first.
        kinds: what is known of each arm, a key of `_KINDS`.
    """
    figure, (left, right) = _create_figure(8, 1.5 + 0.5 * len(names), ncols=2, sharey=True)
    places = np.arange(len(names))[::-1]
    for place, values, kind in zip(places, runs, kinds, strict=True):
        left.scatter(values, np.full(len(values), place), s=36, color=_KINDS[kind], alpha=0.6, linewidths=0)
        left.scatter(values.mean(), place, marker="|", s=320, linewidths=3, color=_KINDS[kind])
    for place, (points, low, high), kind in zip(places[1:], differences, kinds[1:], strict=True):
        right.plot([low, high], [place, place], color=_KINDS[kind], linewidth=3, solid_capstyle="butt")
        right.scatter(points, place, s=60, color=_KINDS[kind], zorder=3)
    right.axvline(0, color="#b8c4bd", linestyle="--", zorder=0)
    left.set_yticks(places, [_shorten(name) for name in names])
    left.set(ylim=(-0.6, len(names) - 0.4))
    left.set_title(f"{title}, %", fontsize=13)
    right.set_title(f"points against {_shorten(names[0])}", fontsize=13)
    right.tick_params(left=False)
    for axes in (left, right):
        axes.tick_params(labelsize=12)
    shown = [kind for kind in _KINDS if kind in kinds[1:]]
    marks = [right.scatter([], [], s=60, color=_KINDS[kind]) for kind in shown]
    figure.legend(marks, shown, frameon=False, fontsize=12, ncols=len(shown), loc="outside lower right")
    return to_png(figure)


def _shorten(name: str, most: int = 28) -> str:
    """The name with its middle left out if it is long; a dollar sign would start a formula of matplotlib."""
    half = most // 2
    return (name if len(name) <= most else f"{name[:half]}\u2026{name[-half:]}").replace("$", r"\$")


def _create_figure(width: float, height: float, **options):
    """A figure and its axes; `options` are those of matplotlib's `Figure.subplots`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(**options)
    for one in np.ravel(axes):
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def to_png(figure: Figure) -> bytes:
    """The figure as PNG bytes."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # of letters that the font lacks, which become boxes
        FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
