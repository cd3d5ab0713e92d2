"""The raw forms in which a sample states the labels of its photos."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.sample.sets import SampleSet
from tools.base.tables import format_csv


@dataclass(frozen=True)
class SamplePhoto:
    """One photo of a sample: its labels, the seed of its leaf, and its files, relative to the sample's folder."""

    split: str
    labels: tuple[str, ...]
    seed: tuple[int, int, int]
    paths: tuple[str, ...]

    @property
    def name(self) -> str:
        """The file name, the same in every folder."""
        return Path(self.paths[0]).name


def _one_field(kind: SampleSet, photos: list[SamplePhoto]) -> bytes:
    """The course's `images,labels`, with `|` between the names where one holds a space."""
    between = "|" if any(" " in label for label in kind.lesions) else " "
    return format_csv([("images", "labels"), *((photo.name, between.join(photo.labels)) for photo in photos)])


def _columns(kind: SampleSet, photos: list[SamplePhoto]) -> bytes:
    """Kaggle's `image_id,label`, or `image_id,label_1,label_2` where some leaves have two labels."""
    most = max(map(len, kind.shares))
    header = ("image_id", *(f"label_{number}" for number in range(1, most + 1))) if most > 1 else ("image_id", "label")
    return format_csv([header, *((p.name, *p.labels, *[""] * (most - len(p.labels))) for p in photos)])


def _one_hot(yes: str, no: str, separator: str, encoding: str, kind: SampleSet, photos: list[SamplePhoto]) -> bytes:
    """One column per label."""
    rows = ((photo.name, *(yes if label in photo.labels else no for label in kind.lesions)) for photo in photos)
    text = io.StringIO()
    csv.writer(text, delimiter=separator).writerows([("images", *kind.lesions), *rows])
    return text.getvalue().encode(encoding)


# raw form -> the label file of some photos. Excel's two are those of a language with a decimal comma.
LABEL_FILES: dict[str, Callable[[SampleSet, list[SamplePhoto]], bytes]] = {
    "csv": _one_field,
    "columns": _columns,
    "onehot": partial(_one_hot, "1", "0", ",", "utf-8"),
    "excel": partial(_one_hot, "x", "", ";", "utf-8-sig"),
    "excel-utf16": partial(_one_hot, "1.0", "0.0", ";", "utf-16"),
}
RAW_FORMS = (*LABEL_FILES, "tree")
