"""predictions.csv: a table of predictions, one row per photo, as we write it and as other programs may.

images,truth,p_scab,...,p_complex,decision,confidence
80a0.jpg,rust,0.01,...,0.02,rust,0.93
"""

import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.labels import COURSE, IMAGE_COLUMNS, clean_name, join_labels, split_labels
from tools.base.errors import DataError, listing, nearest
from tools.base.files import read_regular
from tools.base.tables import find_repeated, format_csv, read_csv
from tools.evaluate.rule import Answers

MAX_BYTES = 256_000_000
_NO_LABELS = ("truth", "decision", "labels", "confidence", "unsure", "error", "model")  # columns that are not labels


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

    def answers(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(probability, decision, truth), the arguments of `tools.evaluate.metrics`; all must be there."""
        assert self.probability is not None
        assert self.truth is not None
        return self.probability, self.decision, self.truth


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image; `str` gives its labels and the confidence in them, `scab, rust (58.3%)`.

    Attributes:
        labels: names of the labels that were decided, at least one.
        confidence: the probability that exactly these labels are right.
        probabilities: for each label, the probability that the photo has it, whatever its other labels.
    """

    labels: tuple[str, ...]
    confidence: float
    probabilities: dict[str, float]

    def __str__(self) -> str:
        return f"{', '.join(self.labels)} ({100 * self.confidence:.1f}%)"

    def in_words(self) -> str:
        """`scab, rust: likely (71.2%)`; very likely from 90 %, likely from 66 % (the IPCC's terms), else unsure."""
        likely = "likely" if self.confidence >= 0.66 else "unsure"
        words = "very likely" if self.confidence >= 0.9 else likely
        return f"{', '.join(self.labels)}: {words} ({100 * self.confidence:.1f}%)"


def predictions_of(answers: Answers, labels: Sequence[str]) -> list[Prediction]:
    """One `Prediction` per image, in order."""
    rows = zip(answers.probability.tolist(), answers.decision, answers.confidence.tolist(), strict=True)
    return [
        Prediction(tuple(names(labels, decision)), confidence, dict(zip(labels, probability, strict=True)))
        for probability, decision, confidence in rows
    ]


def answer_columns(labels: Sequence[str]) -> list[str]:
    """The names of the columns that `answer_fields` fills."""
    return [*(f"p_{label}" for label in labels), "decision", "confidence"]


def answer_fields(prediction: Prediction) -> list[str]:
    """A prediction in a row of a CSV: the probability of each label, the decided labels, the confidence."""
    shares = [f"{p:.6f}" for p in prediction.probabilities.values()]
    return [*shares, join_labels(prediction.labels, [*prediction.probabilities]), f"{prediction.confidence:.6f}"]


def to_csv(images: Sequence[str], labels: Sequence[str], answers: Answers, truth: np.ndarray) -> bytes:
    """The file of test.py; `truth` is `[n, C]` bool."""
    rows: list[list[str]] = [["images", "truth", *answer_columns(labels)]]
    for image, true, prediction in zip(images, truth, predictions_of(answers, labels), strict=True):
        rows.append([image, join_labels(names(labels, true), labels), *answer_fields(prediction)])
    return format_csv(rows)


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
    probability, truth = (None if part is None else part[rows] for part in (table.probability, table.truth))
    return PredictionTable(list(images), table.labels, probability, table.decision[rows], truth)


def fit_to(known: PredictionTable, name: str, table: PredictionTable) -> PredictionTable:
    """The table of the run `name`, its rows and labels in the order of `known`, with the true labels of that.

    Raises:
        DataError: for other photos or labels, or no probabilities.
    """
    if differing := sorted({*table.labels} ^ {*known.labels}):
        raise DataError(f"{name} and the others differ in the labels {listing(differing)}; leave it out")
    if table.probability is None:
        raise DataError(f"{name} holds no probabilities; score it alone with python -m tools score")
    if len(table.images) != len(known.images):
        raise DataError(f"{name} has {len(table.images)} photos, the others have {len(known.images)}")
    table = aligned(table, known.images, name)
    order = [table.labels.index(label) for label in known.labels]
    assert table.probability is not None
    return replace(known, probability=table.probability[:, order], decision=table.decision[:, order])


def names(labels: Sequence[str], row: np.ndarray) -> list[str]:
    """The labels of a bool row."""
    return [label for label, given in zip(labels, row, strict=True) if given]


def read_predictions(path: Path, expected: Collection[str] = ()) -> PredictionTable:
    """The table in a predictions.csv, ours or another program's.

    The first column names the photo. A column `decision` or `labels` holds label names, see `split_labels`; or there is
    one column per label, called `<label>`, `label_<label>` or `p_<label>`, with 0 and 1 or with probabilities. With
    probabilities alone, each label of 0.5 or more is decided; if there is none, the most probable one.

    Args:
        expected: labels that photos may have; needed for a file that has no column per label.

    Raises:
        DataError: for a file that cannot be read, and for any other content, naming the row.
    """
    header, lines = read_csv(read_regular(path, "predictions", MAX_BYTES), path)
    numbered = list(lines) if header and header[0].casefold() in IMAGE_COLUMNS else []
    if not numbered:
        raise DataError(f"{path}: wanted a first column 'images' and at least one row under it")
    numbers, rows = zip(*numbered, strict=True)
    columns: dict[str, Sequence[str]] = dict(zip(header, zip(*rows, strict=True), strict=True))
    images = [name.strip() for name in columns[header[0]]]
    if repeated := find_repeated(images):
        raise DataError(f"{path}: {repeated} is there twice")
    prefix = _prefix_of(header, expected)
    try:
        labels = _labels_of(header, prefix, expected)
    except DataError as error:
        raise DataError(f"{path}, header: {error}") from None
    if len(labels) == 1:
        raise DataError(f"{path} has the one label {labels[0]!r}, and figures need two; add a column for each label")
    probability = _read_probabilities(columns, prefix, labels, path, numbers)
    decided = columns.get("decision", columns.get("labels"))
    binary = probability is None or bool(np.isin(probability, (0, 1)).all())
    if decided is not None:
        decision = _read_names(decided, labels, path, numbers)
    elif probability is None:
        raise DataError(f"{path}: neither a column 'labels' or 'decision', nor one for each of {', '.join(labels)}")
    else:
        decision = np.asarray(probability >= 0.5)
        if not binary:  # a file of probabilities decides at least one label per photo
            top = probability == probability.max(axis=1, keepdims=True)
            decision |= top & ~decision.any(axis=1, keepdims=True)
    truth = _read_names(columns["truth"], labels, path, numbers) if "truth" in columns else None
    return PredictionTable(images, tuple(labels), None if binary else probability, decision, truth)


def _prefix_of(header: Sequence[str], expected: Collection[str]) -> str:
    """What the names of the columns per label begin with; nothing, where all expected labels have a column."""
    if expected and set(expected) <= set(header) - set(_NO_LABELS):
        return ""
    return next((prefix for prefix in ("p_", "label_") if any(name.startswith(prefix) for name in header)), "")


def _labels_of(header: Sequence[str], prefix: str, expected: Collection[str]) -> list[str]:
    """The labels of a table: those that have a column, then those that are expected, the course's in its own order."""
    columns = [clean_name(name.removeprefix(prefix)) for name in header if prefix and name.startswith(prefix)]
    if not prefix and set(expected) & set(header):  # a column per label, under its plain name
        columns = [name for name in header[1:] if name not in _NO_LABELS]
    found = [*columns, *sorted(set(expected) - set(columns))]
    whole = set(found) == set(COURSE.names) or (not columns and set(found) <= set(COURSE.names))
    return list(COURSE.names) if whole else found


def _read_probabilities(
    columns: dict[str, Sequence[str]], prefix: str, labels: Sequence[str], path: Path, numbers: Sequence[int]
) -> np.ndarray | None:
    """`[n, C]` of the columns per label, or None when there are none; `numbers` are the rows' lines in the file."""
    starts = (prefix, "p_", "label_", "")
    found = [next((start + label for start in starts if start + label in columns), "") for label in labels]
    if not any(found):
        return None
    if not all(found):
        raise DataError(f"{path}: no column for the label {labels[found.index('')]!r}")
    values = np.zeros((len(numbers), len(labels)))
    for c, column in enumerate(found):
        for row, text in enumerate(columns[column]):
            try:
                values[row, c] = float(text)
            except ValueError:
                values[row, c] = np.nan
            if not 0 <= values[row, c] <= 1:
                where = f"{path}, row {numbers[row]}, column {column}"
                raise DataError(f"{where}: {text!r} is not a number between 0 and 1")
    return values


def _read_names(column: Sequence[str], labels: Sequence[str], path: Path, numbers: Sequence[int]) -> np.ndarray:
    """`[n, C]` bool from names, see `split_labels`."""
    index = {label: c for c, label in enumerate(labels)}
    given = np.zeros((len(column), len(labels)), bool)
    for row, text in enumerate(column):
        for name in split_labels(unicodedata.normalize("NFC", text), labels):
            if name not in index:
                raise DataError(f"{path}, row {numbers[row]}: unknown label {name!r}{nearest(name, labels)}")
            given[row, index[name]] = True
    return given
