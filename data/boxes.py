"""Lesion boxes: where on a photo a label can be seen.

images,label,x_center,y_center,width,height        relative to the upright photo, one row per box
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.labels import clean_name
from tools.base.errors import DataError, nearest
from tools.base.files import read_regular
from tools.base.tables import read_csv

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
    boxes: list[Box],
    photo: tuple[int, int],
    window: tuple[float, float, float, float],
    shown: tuple[slice, slice],
) -> list[tuple[float, float, float, float]]:
    """The boxes that overlap the window, as (left, top, right, bottom) in pixels of the model's input.

    Args:
        photo: (width, height) of the photo.
        window: (left, top, right, bottom) of the part that the input shows, in pixels of the photo.
        shown: rows and columns of the input that show it.
    """
    (width, height), (left, top, right, bottom), (rows, columns) = photo, window, shown
    across, down = (columns.stop - columns.start) / (right - left), (rows.stop - rows.start) / (bottom - top)
    return [
        (columns.start + (b.left * width - left) * across, rows.start + (b.top * height - top) * down,
         columns.start + (b.right * width - left) * across, rows.start + (b.bottom * height - top) * down)
        for b in boxes
        if b.left * width < right and b.top * height < bottom and b.right * width > left and b.bottom * height > top
    ]  # fmt: skip


def read_boxes(path: Path, labels: Sequence[str]) -> dict[str, list[Box]]:
    """The boxes of every photo, by its file name. Raises DataError for other columns, an invalid box or label."""
    header, rows = read_csv(read_regular(path, "box file", MAX_BYTES), path)
    boxes: dict[str, list[Box]] = {}
    if tuple(header) == BOX_HEADER:
        for line, (image, *box) in rows:
            boxes.setdefault(image.strip(), []).append(_parse(*box, labels=labels, where=f"{path}, row {line}"))
    if not boxes:
        raise DataError(f"{path}: wanted the columns {','.join(BOX_HEADER)} and at least one row under them")
    return boxes


def _parse(label: str, *numbers: str, labels: Sequence[str], where: str) -> Box:
    label = clean_name(label)
    if label not in labels:
        raise DataError(f"{where}, column label: unknown label {label!r}{nearest(label, labels)}")
    try:
        x, y, width, height = map(float, numbers)
    except ValueError:
        raise DataError(f"{where}: {','.join(numbers)} are not four numbers") from None
    if not (0 <= x <= 1 and 0 <= y <= 1 and 0 < width <= 1 and 0 < height <= 1):
        raise DataError(f"{where}: {','.join(numbers)} is not a box on a photo; center and size are shares from 0 to 1")
    left, right = max(0.0, x - width / 2), min(1.0, x + width / 2)
    top, bottom = max(0.0, y - height / 2), min(1.0, y + height / 2)
    return Box(label, left, top, right, bottom)
