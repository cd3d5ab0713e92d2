"""predictions.csv: a table of predictions, one row per photo, as we write it and as other programs may.

images,truth,p_scab,...,p_complex,decision,confidence
80a0.jpg,rust,0.01,...,0.02,rust,0.93
"""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tools.base.errors import DataError, nearest
from tools.evaluate.rule import Answers

MAX_BYTES = 256_000_000
IMAGE_COLUMNS = ("images", "image", "image_id", "file")


@dataclass(frozen=True)
class PredictionTable:
    """The predictions for n photos.

    Attributes:
        labels: names of the C classes.
        probability: `[n, C]`, or None when the file has decisions only.
        decision: `[n, C]` bool; a row may be empty in files of other programs.
        truth: `[n, C]` bool, or None.
    """

    images: list[str]
    labels: tuple[str, ...]
    probability: np.ndarray | None
    decision: np.ndarray
    truth: np.ndarray | None = None


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image; `str` gives its labels with their probabilities.

    Attributes:
        labels: names of the labels that were decided, at least one.
        confidence: the probability that exactly these labels are right.
        probabilities: of each label.
    """

    labels: tuple[str, ...]
    confidence: float
    probabilities: dict[str, float]

    def __str__(self) -> str:
        return ", ".join(f"{label} {100 * self.probabilities[label]:.0f}%" for label in self.labels)


def predictions_of(answers: Answers, labels: Sequence[str]) -> list[Prediction]:
    """One `Prediction` per image, in order."""
    return [
        Prediction(
            labels=tuple(label for label, given in zip(labels, decision, strict=True) if given),
            confidence=float(confidence),
            probabilities=dict(zip(labels, probability.tolist(), strict=True)),
        )
        for probability, decision, confidence in zip(
            answers.probability, answers.decision, answers.confidence, strict=True
        )
    ]


def to_csv(
    images: Sequence[str],
    labels: Sequence[str],
    answers: Answers,
    truth: np.ndarray | None = None,
    unsure: np.ndarray | None = None,
) -> bytes:
    """The file, UTF-8 with LF.

    Args:
        truth: `[n, C]` bool, adds a column of the true labels.
        unsure: `[n]` bool, adds a last column of 0 and 1.
    """
    columns = [("images", images)]
    if truth is not None:
        columns.append(("truth", [names(labels, row) for row in truth]))
    for label, shares in zip(labels, answers.probability.T, strict=True):
        columns.append((f"p_{label}", [f"{p:.6f}" for p in shares]))
    columns.append(("decision", [names(labels, row) for row in answers.decision]))
    columns.append(("confidence", [f"{value:.6f}" for value in answers.confidence]))
    if unsure is not None:
        columns.append(("unsure", unsure.astype(int)))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([name for name, _ in columns])
    writer.writerows(zip(*(column for _, column in columns), strict=True))
    return buffer.getvalue().encode(errors="surrogateescape")  # a file name keeps its bytes


def aligned(table: PredictionTable, images: Sequence[str], where: object) -> PredictionTable:
    """The rows of `images`, in that order.

    Raises:
        DataError: naming the first of `images` that has no row; `where` names the file.
    """
    place = {image: row for row, image in enumerate(table.images)}
    missing = [image for image in images if image not in place]
    if missing:
        raise DataError(f"{where} has no row for {missing[0]} ({len(missing)} photos without one)")
    rows = [place[image] for image in images]
    parts = (table.probability, table.decision, table.truth)
    return PredictionTable(list(images), table.labels, *(None if part is None else part[rows] for part in parts))


def names(labels: Sequence[str], row: np.ndarray) -> str:
    """The labels of a bool row, separated by spaces."""
    return " ".join(label for label, given in zip(labels, row, strict=True) if given)


def read_predictions(raw: bytes, path: Path, labels: Sequence[str]) -> PredictionTable:
    """Reads the bytes of a file (`path` in errors) of ours, or of anybody who names the photo in the first column.

    Understood are a column `decision` or `labels` with label names separated by spaces, and a column a label (called
    `<label>`, `label_<label>` or `p_<label>`) that holds 0 and 1, or probabilities; then, without a decision column,
    everything from 0.5 on is decided, and the most probable label where nothing is.

    Raises:
        DataError: naming the row, for whatever is not that.
    """
    try:
        text = raw.decode("utf-8-sig")
        header, *rows = list(csv.reader(io.StringIO(text, newline=""), strict=True)) or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a CSV: {error}") from None
    header = [column.strip() for column in header]
    if not header or header[0] not in IMAGE_COLUMNS or not rows:
        raise DataError(f"{path}: wanted a first column 'images' and at least one row under it")
    if twice := _repeated(header):
        raise DataError(f"{path}: the header has {twice!r} twice")
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise DataError(f"{path}, row {number}: {len(row)} fields where the header has {len(header)}")
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    images = [name.strip() for name in columns[header[0]]]
    if twice := _repeated(images):
        raise DataError(f"{path}: {twice} is there twice")
    shares = _shares(columns, labels, path)
    spelt = next((columns[key] for key in ("decision", "labels") if key in columns), None)
    if shares is None and spelt is None:
        raise DataError(f"{path}: neither a column 'labels' or 'decision', nor one for each of {', '.join(labels)}")
    binary = shares is None or bool(np.isin(shares, (0, 1)).all())
    if spelt is not None:
        decision = _spelt(spelt, labels, path)
    else:
        decision = shares >= 0.5
        if not binary:  # a file of probabilities says something of every photo
            decision |= (shares == shares.max(axis=1, keepdims=True)) & ~decision.any(axis=1, keepdims=True)
    truth = _spelt(columns["truth"], labels, path) if "truth" in columns else None
    return PredictionTable(images, tuple(labels), None if binary else shares, decision, truth)


def _repeated(names: Sequence[str]) -> str:
    """The first name that comes more than once; the empty string when none does."""
    return next((name for name, count in Counter(names).items() if count > 1), "")


def _shares(columns: dict[str, Sequence[str]], labels: Sequence[str], path: Path) -> np.ndarray | None:
    """`[n, C]` of the columns a label, or None when there are none."""
    found = [next((f + label for f in ("p_", "label_", "") if f + label in columns), None) for label in labels]
    if not any(found):
        return None
    if not all(found):
        raise DataError(f"{path}: no column for the label {labels[found.index(None)]!r}")
    values = np.zeros((len(columns[found[0]]), len(labels)))
    for c, column in enumerate(found):
        for row, text in enumerate(columns[column]):
            try:
                values[row, c] = float(text)
            except ValueError:
                values[row, c] = np.nan
            if not 0 <= values[row, c] <= 1:
                raise DataError(f"{path}, row {row + 2}, column {column}: {text!r} is no number between 0 and 1")
    return values


def _spelt(column: Sequence[str], labels: Sequence[str], path: Path) -> np.ndarray:
    """`[n, C]` bool from names separated by spaces."""
    index = {label: c for c, label in enumerate(labels)}
    given = np.zeros((len(column), len(labels)), bool)
    for row, text in enumerate(column):
        for name in text.split():
            if name not in index:
                raise DataError(f"{path}, row {row + 2}: unknown label {name!r}{nearest(name, labels)}")
            given[row, index[name]] = True
    return given
