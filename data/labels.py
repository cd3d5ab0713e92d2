"""The six labels, their one-hot codes, and the CSV files that give a photo its labels."""

import csv
import hashlib
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tools.base.errors import DataError, nearest
from tools.base.files import read_regular

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
ONE_HOT_HEADER = ("images", *(f"label_{name}" for name in sorted(CODE_OF)))
MAX_BYTES = 256_000_000
MADE = ("flip", "bright", "turn")  # the kinds of copies that process_dataset.py --balance makes
_MADE_NAME = re.compile(rf"(?P<stem>.+)\.made-({'|'.join(MADE)})(?P<suffix>\.[^.]+)", re.DOTALL)


def label_name(code: str) -> str:
    """The label of a class folder; a folder that is not one of the six codes is its own label."""
    return NAME_OF.get(code, code)


def healthy_index(classes: Sequence[str]) -> int | None:
    """The class that no disease can stand beside, or None when there is none of that name."""
    return next((index for index, code in enumerate(classes) if label_name(code) == "healthy"), None)


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One photo and its labels, in the order of the file. `line` is 1 for the header."""

    image: str
    labels: tuple[str, ...]
    line: int


@dataclass(frozen=True)
class LabelFile:
    """The rows of a label CSV, how many exact repeats were left out, and the SHA-256 of its bytes."""

    rows: list[LabelRow]
    repeats: int
    sha256: str


def read_labels(path: Path) -> LabelFile:
    """Reads `images,labels` (names separated by spaces) or the one-hot columns `images,label_<name>,...` (0 or 1).

    Raises:
        DataError: naming the row, for anything that is not exactly that: another separator, unknown labels, values
            that are not 0 or 1, names that leave the image folder, one photo with two different label sets.
    """
    raw = read_regular(path, "label file", MAX_BYTES)
    _check_utf8(raw, path)
    # decoded line by line: a StringIO would hold four bytes a character
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8-sig", newline=""), strict=True)
    rows: dict[str, LabelRow] = {}
    repeats = 0
    try:
        parse = _parser_for(next(reader, []), path)
        for fields in reader:
            if not fields:
                continue
            row = parse(fields, reader.line_num)
            before = rows.setdefault(row.image, row)
            if before is not row:
                if set(before.labels) != set(row.labels):
                    raise DataError(
                        f"{path}: {row.image} has the labels {' '.join(before.labels)!r} in row "
                        f"{before.line} and {' '.join(row.labels)!r} in row {row.line}"
                    )
                repeats += 1
    except csv.Error as error:
        raise DataError(f"{path}, row {reader.line_num}: {error}") from None
    if not rows:
        raise DataError(f"{path} has no rows")
    return LabelFile(list(rows.values()), repeats, hashlib.sha256(raw).hexdigest())


def write_one_hot(path: Path, rows: list[LabelRow]) -> None:
    """Writes the course's one-hot CSV: its header, the rows in their order, 0/1, LF."""
    names = [column.removeprefix("label_") for column in ONE_HOT_HEADER[1:]]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(ONE_HOT_HEADER)
        writer.writerows([row.image, *(int(name in row.labels) for name in names)] for row in rows)


def made_name(name: str, kind: str) -> str:
    """What the copy of the photo `name` that was made by `kind` (one of MADE) is called."""
    stem, suffix = os.path.splitext(name)
    return f"{stem}.made-{kind}{suffix}"


def is_made(name: str) -> bool:
    """Whether `name` is that of a made copy, which may be trained on and never scored."""
    return _MADE_NAME.fullmatch(name) is not None


def origin_name(name: str) -> str:
    """The photo that a made copy was made of; any other name is its own origin."""
    match = _MADE_NAME.fullmatch(name)
    return match["stem"] + match["suffix"] if match else name


def _check_utf8(raw: bytes, path: Path) -> None:
    try:
        raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, row {line}: not UTF-8 at byte {error.start}") from None


@cache
def _split_names(text: str) -> tuple[str, ...]:
    """The names in a field, each once. Cached, so that rows with the same labels share one tuple."""
    return tuple(dict.fromkeys(text.split()))


def _parser_for(header: list[str], path: Path):
    """The function (fields, line) -> LabelRow that fits the header."""
    if not header:
        raise DataError(f"label file {path} is empty")
    columns = [column.strip() for column in header]
    if len(columns) == 1:
        for separator in (";", "\t", "|"):
            if separator in columns[0]:
                raise DataError(f"{path}: found a {separator!r} separated header; separate with commas")
    twice = {column for column in columns if columns.count(column) > 1}
    if twice:
        raise DataError(f"{path}: the header has {sorted(twice)[0]!r} twice")
    if columns[0] not in ("images", "image"):
        raise DataError(f"{path}: the first column is {columns[0]!r}, not 'images'")

    def checked(fields: list[str], line: int) -> str:
        if len(fields) != len(columns):
            raise DataError(f"{path}, row {line}: {len(fields)} fields where the header has {len(columns)}")
        if any("\0" in field for field in fields):
            raise DataError(f"{path}, row {line}: holds a NUL character")
        return _image_name(fields[0].strip(), f"{path}, row {line}")

    if columns[1:] == ["labels"]:

        def parse(fields: list[str], line: int) -> LabelRow:
            image, labels = checked(fields, line), _split_names(fields[1])
            for name in labels:
                if name not in CODE_OF:
                    raise DataError(
                        f"{path}, row {line}, column labels: unknown label {name!r}{nearest(name, CODE_OF)}"
                    )
            if not labels:
                raise DataError(f"{path}, row {line}: {image} has no label")
            return LabelRow(image, labels, line)

        return parse
    if set(columns) != set(ONE_HOT_HEADER) and set(columns[1:]) != set(CODE_OF):
        raise DataError(
            f"{path}: the columns are {', '.join(columns)}; wanted images,labels or {','.join(ONE_HOT_HEADER)}"
        )
    names = [column.removeprefix("label_") for column in columns[1:]]

    def parse_one_hot(fields: list[str], line: int) -> LabelRow:
        image = checked(fields, line)
        for column, value in zip(columns[1:], fields[1:], strict=True):
            if value.strip() not in ("0", "1"):
                raise DataError(f"{path}, row {line}, column {column}: {value!r} is not 0 or 1")
        labels = _split_names(" ".join(n for n, value in zip(names, fields[1:], strict=True) if value.strip() == "1"))
        if not labels:
            raise DataError(f"{path}, row {line}: {image} has no label")
        return LabelRow(image, labels, line)

    return parse_one_hot


def _image_name(name: str, where: str) -> str:
    if not name or name in (".", "..") or "/" in name or "\\" in name:
        raise DataError(f"{where}: image {name!r} is outside image root; give a plain file name")
    if is_made(name):
        raise DataError(f"{where}: image {name!r} is named like a copy that --balance makes; rename the photo")
    if len(name.encode()) > 255:
        raise DataError(f"{where}: image name of {len(name.encode())} bytes is longer than a file name can be")
    return name
