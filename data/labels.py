"""The six labels, their one-hot codes, and the CSV files that give a photo its labels."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tools.base.errors import DataError, nearest
from tools.base.files import read_regular
from tools.base.tables import format_csv, read_csv

# Folder code -> label name. Sorted codes are the class order: scab 0, rust 1, ... complex 5, the reverse of the
# columns of the one-hot CSV.
NAME_OF = {
    "000001": "scab",
    "000010": "rust",
    "000100": "powdery_mildew",
    "001000": "healthy",
    "010000": "frog_eye_leaf_spot",
    "100000": "complex",
}
CODE_OF = {name: code for code, name in NAME_OF.items()}
SPLITS = ("train", "val", "test")
IMAGE_COLUMNS = ("images", "image", "image_id", "file")  # names of the first column of a table
_YES, _NO = ("1", "1.0", "yes", "true"), ("0", "0.0", "no", "false")  # in a one-hot column, in any case
ONE_HOT_HEADER = ("images", *(f"label_{name}" for name in sorted(CODE_OF)))
MAX_BYTES = 256_000_000
BALANCE_KINDS = ("flip", "bright", "turn")  # of the copies that process_dataset.py --balance makes
_BALANCED_NAME = re.compile(rf"\A(.+)\.made-(?:{'|'.join(BALANCE_KINDS)})(\.[^.]+)\Z", re.DOTALL)


def label_name(code: str) -> str:
    """The label of a class folder; a folder that is not one of the six codes is its own label."""
    return NAME_OF.get(code, code)


def class_name_fault(name: str) -> str:
    """Why this is not a valid class name (it becomes part of file names and CSV fields), or the empty string."""
    if not name or name.startswith(".") or not name.isprintable():
        return "is empty, hidden, or holds characters that cannot be printed"
    if forbidden := sorted(set(name) & set('/\\<>:"|?*')):
        return f"holds {' '.join(forbidden)}"
    return "is longer than 100 bytes" if len(name.encode(errors="replace")) > 100 else ""


def healthy_index(classes: Sequence[str]) -> int | None:
    """The index of the class "healthy", which excludes every disease, or None without such a class."""
    return next((index for index, code in enumerate(classes) if label_name(code) == "healthy"), None)


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One photo and its labels, in the order of the file; `line` counts the header as 1."""

    image: str
    labels: tuple[str, ...]
    line: int


@dataclass(frozen=True)
class LabelFile:
    """The rows of a label CSV, how many repeated rows were left out, and the SHA-256 of its bytes."""

    rows: list[LabelRow]
    repeats: int
    sha256: str


def read_labels(path: Path) -> LabelFile:
    """Reads `images,labels` (names separated by spaces) or the one-hot columns `images,label_<name>,...` (0 or 1).

    Excel's ways of writing both are read too: see `tools.base.tables.read_csv`; and 1.0, yes, no, true, false.

    Raises:
        DataError: for any other content, such as an unknown label, a value that is not 0 or 1, a
            photo name with a folder in it, or one photo with two different label sets; errors in a row name the row.
    """
    raw = read_regular(path, "label file", MAX_BYTES)
    rows: dict[str, LabelRow] = {}
    num_rows = 0
    for row in _parse(raw, path):
        num_rows += 1
        before = rows.setdefault(row.image, row)
        if set(before.labels) != set(row.labels):
            raise DataError(
                f"{path}: {row.image} has the labels {' '.join(before.labels)!r} in row {before.line} "
                f"and {' '.join(row.labels)!r} in row {row.line}"
            )
    if not rows:
        raise DataError(f"{path} has no rows")
    return LabelFile(list(rows.values()), num_rows - len(rows), hashlib.sha256(raw).hexdigest())


def write_one_hot(path: Path, rows: list[LabelRow]) -> None:
    """Writes the course's one-hot CSV: its header, then 0 and 1 for each row, in order."""
    names = [column.removeprefix("label_") for column in ONE_HOT_HEADER[1:]]
    one_hot = ([row.image, *(int(name in row.labels) for name in names)] for row in rows)
    path.write_bytes(format_csv([ONE_HOT_HEADER, *one_hot]))


def balanced_copy_name(name: str, kind: str) -> str:
    """The name of the balanced copy of the photo `name` that `kind` (one of BALANCE_KINDS) makes."""
    stem, suffix = os.path.splitext(name)
    return f"{stem}.made-{kind}{suffix}"


def is_balanced_copy(name: str) -> bool:
    """Whether `name` is that of a balanced copy, which is trained on and never scored."""
    return origin_name(name) != name


def origin_name(name: str) -> str:
    """The name of the photo that a balanced copy was made from; any other name is its own origin."""
    return _BALANCED_NAME.sub(r"\1\2", name)


def _parse(raw: bytes, path: Path) -> Iterator[LabelRow]:
    """The rows of a label CSV, each checked independently."""
    columns, rows = read_csv(raw, path)
    if not columns:
        raise DataError(f"label file {path} is empty")
    if columns[0] not in IMAGE_COLUMNS:
        raise DataError(f"{path}: the first column is {columns[0]!r}, not 'images'")
    names = columns[1:]
    if names != ["labels"] and set(names) not in (set(ONE_HOT_HEADER[1:]), set(CODE_OF)):
        raise DataError(
            f"{path}: the columns are {', '.join(columns)}; wanted images,labels or {','.join(ONE_HOT_HEADER)}"
        )
    for line, (image, *values) in rows:
        where = f"{path}, row {line}"
        image = _image_name(image.strip(), where)
        given = values[0] if names == ["labels"] else _names_of_ones(names, values, where)
        labels = _split_names(given)
        for name in labels:
            if name not in CODE_OF:
                mixed = re.search("[,;|/+]", given)
                hint = "; separate labels with spaces" if mixed else nearest(name.lower(), CODE_OF)
                raise DataError(f"{where}, column labels: unknown label {name!r}{hint}")
        if not labels:
            raise DataError(f"{where}: {image} has no label")
        yield LabelRow(image, labels, line)


def _names_of_ones(columns: list[str], values: list[str], where: str) -> str:
    """The labels of the columns that hold 1, separated by spaces."""
    given = []
    for column, value in zip(columns, values, strict=True):
        if value.strip().lower() not in _YES + _NO:
            raise DataError(f"{where}, column {column}: {value!r} is not 0 or 1 (nor yes or no)")
        if value.strip().lower() in _YES:
            given.append(column.removeprefix("label_"))
    return " ".join(given)


@cache
def _split_names(text: str) -> tuple[str, ...]:
    """The names in a field, each once. Cached, so that rows with the same labels share one tuple."""
    return tuple(dict.fromkeys(text.split()))


def _image_name(name: str, where: str) -> str:
    if not name or name in (".", "..") or "/" in name or "\\" in name:
        raise DataError(f"{where}: image {name!r} is outside image root; give a plain file name")
    if is_balanced_copy(name):
        raise DataError(f"{where}: image {name!r} is named like a copy made by --balance; rename the photo")
    if len(name.encode()) > 255:
        raise DataError(f"{where}: image name of {len(name.encode())} bytes is longer than a file name can be")
    return name
