"""The CSV and JSON files of `predict`: one row per photo, appended one by one, and continued after a stop.

A file names the model of every row, so that predictions of two models are never mixed.
"""

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from data.labels import split_labels
from tools.base.errors import DataError, ResourceError, UsageError
from tools.base.files import locked, open_own, read_regular
from tools.base.tables import format_csv, read_csv, to_utf8
from tools.evaluate.predictions import MAX_BYTES, Prediction, answer_columns, answer_fields


@dataclass(frozen=True)
class Row:
    """The result for one photo.

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
        """One row, without the separator between rows."""
        answer = [""] * (len(self.labels) + 3)
        if row.prediction:
            answer = [*answer_fields(row.prediction), str(int(row.unsure))]
        return format_csv([[row.image, *answer, row.error, self.model]])

    def decode(self, raw: bytes, path: Path) -> tuple[list[Row], int]:
        """The rows of a file, and where the last complete one ends. Raises DataError for a file of another kind."""
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
        """See `CsvFormat`."""
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
        """See `CsvFormat`."""
        rows, stop = [], len(self.start)
        if not raw.startswith(self.start):
            raise DataError(f"{path} is not a JSON array of one line per photo")
        for line in raw[stop:].removesuffix(self.end).split(self.between):
            try:
                entry, found = json.loads(line), None
                if "error" not in entry:
                    shares = {label: float(entry["probabilities"][label]) for label in self.labels}
                    found = Prediction(tuple(entry["labels"]), float(entry["confidence"]), shares)
                rows.append(Row(entry["image"], found, entry.get("unsure", False), entry.get("error", "")))
            except (ValueError, TypeError, KeyError, AttributeError):
                break  # the line that was being written
            if entry["model"] != self.model:
                raise DataError(f"{path}: {entry['image']} is of another model or other settings")
            stop += len(line) + (len(self.between) if len(rows) > 1 else 0)
        return rows, stop


class PredictionFile(contextlib.ExitStack):
    """A file that rows are appended to, locked while this context lasts; `-` stands for stdout.

    A file that does not exist yet is made for its first row.

    Attributes:
        path: its name.
        known: the rows that were in it, by photo.

    Args:
        overwrite: start a new file, whatever the old one holds.

    Raises:
        UsageError: when it holds something else, or rows of another model.
        ResourceError: for a link, for anything but a regular file, and when it cannot be written.
        BusyError: when another process writes it.
    """

    def __init__(self, path: str, form: CsvFormat | JsonFormat, overwrite: bool):
        super().__init__()
        self.path, self.form, self.known = path, form, dict[str, Row]()
        self._file: IO[bytes] | None = None
        self._empty = True
        if path != "-" and os.path.lexists(path):
            self._open(overwrite)

    def write(self, row: Row) -> None:
        """Appends a row, unless the file has one of its photo. Raises ResourceError if writing fails."""
        if to_utf8(row.image) not in self.known:
            if self._file is None:
                self._open(overwrite=True)
            self._append((b"" if self._empty else self.form.between) + self.form.encode(row))
            self._empty = False

    def _open(self, overwrite: bool) -> None:
        """Opens the file, reads what it holds, and goes to the end of its last whole row."""
        stop = 0
        if self.path == "-":
            self._file = sys.stdout.buffer
        else:
            path = Path(self.path)
            self.enter_context(locked(path))
            self._file = self.enter_context(open_own(path))
            if not overwrite and (raw := read_regular(path, "file", MAX_BYTES)):
                try:
                    rows, stop = self.form.decode(raw, path)
                except DataError as error:
                    self.close()
                    raise UsageError(f"{error}; choose another name, or add --overwrite") from None
                self.known, self._empty = {row.image: row for row in rows}, not rows
            os.ftruncate(self._file.fileno(), stop)
            self._file.seek(stop)
        if not stop:
            self._append(self.form.start)
        self.callback(self._append, self.form.end)

    def _append(self, content: bytes) -> None:
        assert self._file is not None
        try:
            self._file.write(content)
            self._file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise ResourceError(f"{self.path} cannot be written: {error.strerror}") from None
