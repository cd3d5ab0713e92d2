"""Lesion boxes: where on a photo a label can be seen.

images,label,x_center,y_center,width,height        relative to the upright photo, one row a box
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from data.labels import CODE_OF
from tools.base.errors import DataError, nearest
from tools.base.files import read_regular

BOX_HEADER = ("images", "label", "x_center", "y_center", "width", "height")
MAX_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class Box:
    """One lesion of `label`; edges relative to the photo, in [0, 1]."""

    label: str
    left: float
    top: float
    right: float
    bottom: float


def on_input(
    boxes: list[Box], photo: tuple[int, int], window: tuple[float, float, float, float], side: int
) -> list[tuple[float, float, float, float]]:
    """(left, top, right, bottom) of the boxes in pixels of the model's input, less those that lie outside it.

    Args:
        photo: (width, height) of the photo.
        window: (left, top, right, bottom) of what the input shows of it, in its pixels.
        side: of the input.
    """
    (width, height), (left, top, right, bottom) = photo, window
    across, down = side / (right - left), side / (bottom - top)
    placed = [
        ((b.left * width - left) * across, (b.top * height - top) * down,
         (b.right * width - left) * across, (b.bottom * height - top) * down)
        for b in boxes
    ]  # fmt: skip
    return [b for b in placed if b[0] < side and b[1] < side and b[2] > 0 and b[3] > 0]


def read_boxes(path: Path) -> dict[str, list[Box]]:
    """The boxes of every photo, by its file name.

    Raises:
        DataError: naming the row, for whatever is no such file, or a box that does not lie on the photo.
    """
    try:
        text = read_regular(path, "box file", MAX_BYTES).decode("utf-8-sig")
        header, *rows = list(csv.reader(io.StringIO(text, newline=""), strict=True)) or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a CSV: {error}") from None
    if tuple(column.strip() for column in header) != BOX_HEADER or not rows:
        raise DataError(f"{path}: wanted the columns {','.join(BOX_HEADER)} and at least one row under them")
    boxes: dict[str, list[Box]] = {}
    for number, row in enumerate(rows, 2):
        if row:
            boxes.setdefault(row[0].strip(), []).append(_parse(row, f"{path}, row {number}"))
    return boxes


def _parse(row: list[str], where: str) -> Box:
    if len(row) != len(BOX_HEADER):
        raise DataError(f"{where}: {len(row)} fields where the header has {len(BOX_HEADER)}")
    label = row[1].strip()
    if label not in CODE_OF:
        raise DataError(f"{where}, column label: unknown label {label!r}{nearest(label, CODE_OF)}")
    try:
        x, y, width, height = (float(text) for text in row[2:])
    except ValueError:
        raise DataError(f"{where}: {','.join(row[2:])} are not four numbers") from None
    if not (0 <= x <= 1 and 0 <= y <= 1 and 0 < width <= 1 and 0 < height <= 1):
        raise DataError(f"{where}: {','.join(row[2:])} is no box on a photo; centre and size are shares from 0 to 1")
    left, right = max(0.0, x - width / 2), min(1.0, x + width / 2)
    top, bottom = max(0.0, y - height / 2), min(1.0, y + height / 2)
    return Box(label, left, top, right, bottom)
