"""CSV files, read strictly and written in one way, and text tables for a terminal."""

import codecs
import csv
import io
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unicodedata import combining, east_asian_width

from tools.base.errors import DataError


def read_csv(raw: bytes, path: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The header of a CSV file, and its rows as (line in the file, fields), read one at a time.

    The file is UTF-8, or UTF-16 with a byte order mark, and separated by commas, or as Excel may write it, by `;` or
    tabs. Names in the header are stripped and in Unicode's form NFC; an empty file has an empty header. Empty lines are
    skipped.

    Args:
        raw: the bytes of the file at `path`, which only the errors name.

    Raises:
        DataError: naming the row, for another encoding or separator, wrong quotes, a NUL character, a column name
            that occurs twice, and a row with fewer or more fields than the header. Errors in a row are raised when
            that row is reached.
    """
    encoding = "utf-16" if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, row {line}: not UTF-8 at byte {error.start}; in Excel, save it as `CSV UTF-8`"
        ) from None
    # decoded line by line: a StringIO would hold four bytes per character
    text = io.TextIOWrapper(io.BytesIO(raw), encoding=encoding, newline="")
    first_line = text.readline()
    text.seek(0)
    separator = min((sign for sign in ",;\t" if sign in first_line), key=first_line.index, default=",")
    rows = _read_rows(csv.reader(text, delimiter=separator, strict=True), path)
    _, first = next(rows, (0, []))
    header = [unicodedata.normalize("NFC", name.strip()) for name in first]
    if len(header) == 1 and "|" in header[0]:
        raise DataError(f"{path}: found a '|' separated header; separate with commas")
    if repeated := find_repeated(header):
        raise DataError(f"{path}: the header has {repeated!r} twice")
    return header, rows


def find_repeated(names: Iterable[str]) -> str | None:
    """The first of `names` that occurs more than once, or None."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def format_csv(rows: Iterable[Sequence[object]]) -> bytes:
    """The CSV file of `rows`, of which the first is the header: UTF-8 (see `to_utf8`), commas, LF line ends."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode(errors="backslashreplace")


def to_utf8(name: str) -> str:
    """The name with bytes of another encoding, which UTF-8 cannot hold, escaped as in Python."""
    return name.encode(errors="backslashreplace").decode()


def format_table(rows: Sequence[Sequence[object]], align: str = "<>") -> list[str]:
    """The lines of a table for a terminal: columns two spaces apart, each as wide as its widest cell.

    Args:
        rows: cells, shown as text; all rows have the same length.
        align: "<" (left) or ">" (right) per column; the last one applies to all further columns.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    sides = align.ljust(len(widths), align[-1])
    return [
        "  ".join(
            f"{cell:{side}{width + len(cell) - _width(cell)}}"
            for cell, side, width in zip(row, sides, widths, strict=False)
        ).rstrip()
        for row in cells
    ]


def _width(text: str) -> int:
    """Columns of a terminal that the text takes: two per East Asian wide character, none per combining mark."""
    return sum(0 if combining(sign) else 1 + (east_asian_width(sign) in "WF") for sign in text)


def _read_rows(lines: Any, path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line in the file, fields) of every row that is not empty, all as long as the first."""
    num_columns = 0
    try:
        for fields in lines:
            if not fields:
                continue
            where = f"{path}, row {lines.line_num}"
            num_columns = num_columns or len(fields)
            if len(fields) != num_columns:
                raise DataError(f"{where}: {len(fields)} fields where the header has {num_columns}")
            if any("\0" in field for field in fields):
                raise DataError(f"{where}: holds a NUL character")
            yield lines.line_num, fields
    except csv.Error as error:
        raise DataError(f"{path}, row {lines.line_num}: {error}") from None
