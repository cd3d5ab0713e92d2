"""The six labels, their one-hot codes, and the CSV files that give a photo its labels."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
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
_BALANCED_NAME = re.compile(rf"(?P<stem>.+)\.made-({'|'.join(BALANCE_KINDS)})(?P<suffix>\.[^.]+)", re.DOTALL)


def label_name(code: str) -> str:
    """The label of a class folder; a folder that is not one of the six codes is its own label."""
    return NAME_OF.get(code, code)


def class_name_fault(name: str) -> str:
    """Why a class cannot have this name, which becomes part of file names and CSV fields, or the empty string."""
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
    """One photo and its labels, in the order of the file. `line` is 1 for the header."""

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
    repeats = 0
    for row in _parse(raw, path):
        before = rows.setdefault(row.image, row)
        if before is row:
            continue
        if set(before.labels) != set(row.labels):
            raise DataError(
                f"{path}: {row.image} has the labels {' '.join(before.labels)!r} in row {before.line} "
                f"and {' '.join(row.labels)!r} in row {row.line}"
            )
        repeats += 1
    if not rows:
        raise DataError(f"{path} has no rows")
    return LabelFile(list(rows.values()), repeats, hashlib.sha256(raw).hexdigest())


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
    return _BALANCED_NAME.fullmatch(name) is not None


def origin_name(name: str) -> str:
    """The name of the photo that a balanced copy was made from; any other name is its own origin."""
    match = _BALANCED_NAME.fullmatch(name)
    return match["stem"] + match["suffix"] if match else name


def _parse(raw: bytes, path: Path) -> Iterator[LabelRow]:
    """The rows of a label CSV, each checked independently."""
    columns, rows = read_csv(raw, path)
    if not columns:
        raise DataError(f"label file {path} is empty")
    if columns[0] not in IMAGE_COLUMNS:
        raise DataError(f"{path}: the first column is {columns[0]!r}, not 'images'")
    names = columns[1:]
    if names == ["labels"]:
        labels_of: Callable[[list[str], list[str], str], tuple[str, ...]] = _named_labels
    elif set(names) in (set(ONE_HOT_HEADER[1:]), set(CODE_OF)):
        labels_of = _one_hot_labels
    else:
        raise DataError(
            f"{path}: the columns are {', '.join(columns)}; wanted images,labels or {','.join(ONE_HOT_HEADER)}"
        )
    for line, (image, *values) in rows:
        where = f"{path}, row {line}"
        image = _image_name(image.strip(), where)
        labels = labels_of(names, values, where)
        if not labels:
            raise DataError(f"{where}: {image} has no label")
        yield LabelRow(image, labels, line)


def _named_labels(_columns: list[str], values: list[str], where: str) -> tuple[str, ...]:
    """The labels that the column `labels` names."""
    labels = _split_names(values[0])
    for name in labels:
        if name not in CODE_OF:
            hint = nearest(name.lower(), CODE_OF)
            if re.search("[,;|/+]", values[0]):
                hint = "; separate labels with spaces"
            raise DataError(f"{where}, column labels: unknown label {name!r}{hint}")
    return labels


def _one_hot_labels(columns: list[str], values: list[str], where: str) -> tuple[str, ...]:
    """The labels of the columns that hold 1."""
    given = []
    for column, value in zip(columns, values, strict=True):
        if value.strip().lower() not in _YES + _NO:
            raise DataError(f"{where}, column {column}: {value!r} is not 0 or 1 (nor yes or no)")
        if value.strip().lower() in _YES:
            given.append(column.removeprefix("label_"))
    return _split_names(" ".join(given))


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
