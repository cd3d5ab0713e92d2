"""Everything drawn with matplotlib, on the Agg canvas: no display is ever needed."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_INK, _ACCENT, _SECOND = "#33413a", "#2f7d4f", "#c8682b"


def draw_curves(rows: list[dict[str, str]], path: Path) -> None:
    """curves.png from the rows of metrics.csv: losses, validation scores, learning rate over the epochs."""
    epochs = [int(row["epoch"]) for row in rows]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for key, colour, label in (("train_loss", _INK, "training"), ("val_loss", _SECOND, "validation")):
        left.plot(epochs, [float(row[key]) for row in rows], color=colour, label=label, marker=".")
    left.set_title("loss")
    for key, colour, label in (
        ("accuracy", _INK, "copies right"),
        ("hit1", _SECOND, "hit@1"),
        ("exact", "#7a6fb0", "exact match"),
        ("macro_f1", _ACCENT, "macro-F1"),
    ):
        middle.plot(epochs, [100 * float(row[key]) for row in rows], color=colour, label=label, marker=".")
    middle.set_title("validation, %")
    right.plot(epochs, [float(row["lr"]) for row in rows], color=_INK, marker=".", label="last update of the epoch")
    right.set_title("learning rate")
    for axes in (left, middle, right):
        axes.set_xlabel("epoch")
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    FigureCanvasAgg(figure).print_png(path)
