"""The CSV and JSON files of `predict`: one row per photo, written as it goes, and gone on with after a stop.

A file names the model of every row, so that predictions of two models are never mixed.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from tools.base.errors import DataError, ResourceError, UsageError
from tools.base.files import locked, open_own, read_regular
from tools.base.tables import format_csv, read_csv, to_utf8
from tools.evaluate.predictions import MAX_BYTES, Prediction, answer_columns, answer_fields, split_labels


@dataclass(frozen=True)
class Row:
    """What is known of one photo.

    Attributes:
        image: its path, as the user gave it.
        prediction: None for a photo that could not be read.
        unsure: whether the confidence is too low to trust the prediction.
        error: why the photo could not be read, or the empty string.
    """

    image: str
    prediction: Prediction | None
    unsure: bool
    error: str = ""


class Format(Protocol):
    """How rows become bytes, and bytes rows again."""

    between: bytes
    end: bytes

    @property
    def start(self) -> bytes:
        """What the file begins with."""

    def encode(self, row: Row) -> bytes:
        """One row, without what stands between rows."""

    def decode(self, raw: bytes, path: Path) -> tuple[list[Row], int]:
        """The rows of a file, and where the last whole one ends. Raises DataError for a file of another kind."""


@dataclass(frozen=True)
class CsvFormat:
    """`images,p_scab,...,decision,confidence,unsure,error,model`.

    Attributes:
        labels: names of the classes.
        model: identifies checkpoints and settings; every row holds it.
    """

    labels: Sequence[str]
    model: str
    between = end = b""

    @property
    def start(self) -> bytes:
        """The header."""
        return format_csv([["images", *answer_columns(self.labels), "unsure", "error", "model"]])

    def encode(self, row: Row) -> bytes:
        """See `Format`."""
        answer = [""] * (len(self.labels) + 3)
        if row.prediction:
            answer = [*answer_fields(row.prediction), str(int(row.unsure))]
        return format_csv([[row.image, *answer, row.error, self.model]])

    def decode(self, raw: bytes, path: Path) -> tuple[list[Row], int]:
        """See `Format`."""
        whole = raw[: raw.rfind(b"\n") + 1]
        header, lines = read_csv(whole, path)
        if format_csv([header]) != self.start:
            raise DataError(f"{path} has other columns")
        rows = []
        for number, (image, *shares, decision, confidence, unsure, error, model) in lines:
            if model != self.model:
                raise DataError(f"{path}, row {number} is of another model or other settings")
            found = None
            if not error:
                values = dict(zip(self.labels, map(float, shares), strict=True))
                found = Prediction(split_labels(decision, self.labels), float(confidence), values)
            rows.append(Row(image, found, unsure == "1", error))
        return rows, len(whole)


@dataclass(frozen=True)
class JsonFormat:
    """A JSON array with one line per photo; attributes as in `CsvFormat`."""

    labels: Sequence[str]
    model: str
    start, between, end = b"[\n", b",\n", b"\n]\n"

    def encode(self, row: Row) -> bytes:
        """See `Format`."""
        entry: dict = {"image": to_utf8(row.image)}
        if row.prediction:
            entry["labels"] = list(row.prediction.labels)
            entry["probabilities"] = {label: round(p, 6) for label, p in row.prediction.probabilities.items()}
            entry["confidence"] = round(row.prediction.confidence, 6)
            entry["unsure"] = row.unsure
        else:
            entry["error"] = to_utf8(row.error)
        return json.dumps(entry | {"model": self.model}).encode()

    def decode(self, raw: bytes, path: Path) -> tuple[list[Row], int]:
        """See `Format`."""
        rows, stop = [], len(self.start)
        if not raw.startswith(self.start):
            raise DataError(f"{path} is not a JSON array of one line per photo")
        for line in raw[stop:].removesuffix(self.end).split(self.between):
            try:
                entry = json.loads(line)
                found = None if "error" in entry else self._prediction(entry)
                rows.append(Row(entry["image"], found, entry.get("unsure", False), entry.get("error", "")))
            except (ValueError, TypeError, KeyError, AttributeError):
                break  # the line that was being written
            if entry["model"] != self.model:
                raise DataError(f"{path}: {entry['image']} is of another model or other settings")
            stop += len(line) + (len(self.between) if len(rows) > 1 else 0)
        return rows, stop

    def _prediction(self, entry: dict) -> Prediction:
        shares = {label: float(entry["probabilities"][label]) for label in self.labels}
        return Prediction(tuple(entry["labels"]), float(entry["confidence"]), shares)


@dataclass
class PredictionFile:
    """A file that rows are appended to; `known` holds those that were in it. `-` stands for stdout."""

    form: Format
    path: str
    file: IO[bytes]
    known: dict[str, Row] = field(default_factory=dict)
    _empty: bool = True

    def write(self, row: Row) -> None:
        """Appends a row, unless the file has one of its photo. Raises ResourceError when the disk refuses."""
        if to_utf8(row.image) not in self.known:
            self._append((b"" if self._empty else self.form.between) + self.form.encode(row))
            self._empty = False

    def _append(self, content: bytes) -> None:
        try:
            self.file.write(content)
            self.file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise ResourceError(f"{self.path} cannot be written: {error.strerror}") from None


@contextlib.contextmanager
def open_predictions(target: str, form: Format, overwrite: bool) -> Iterator[PredictionFile]:
    """The file `target`, gone on with if it holds rows of the same model, and locked.

    Args:
        overwrite: begin again, whatever it holds.

    Raises:
        UsageError: when it holds something else.
        ResourceError: for a link or another thing that is no regular file, and when it cannot be written.
        BusyError: when another process writes it.
    """
    if target == "-":
        out = PredictionFile(form, target, sys.stdout.buffer)
        out._append(form.start)
        yield out
        out._append(form.end)
        return
    path = Path(target)
    with locked(path), open_own(path) as file:
        out = PredictionFile(form, target, file)
        raw = b"" if overwrite else read_regular(path, "file", MAX_BYTES)
        try:
            rows, stop = form.decode(raw, path) if raw else ([], 0)
        except DataError as error:
            raise UsageError(f"{error}; choose another name, or add --overwrite") from None
        os.ftruncate(file.fileno(), stop)
        file.seek(stop)
        out.known, out._empty = {row.image: row for row in rows}, not rows
        if not stop:
            out._append(form.start)
        try:
            yield out
        finally:
            out._append(form.end)
