"""Writes the drawn leaves as a data set in one of the raw forms."""

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np

from data.boxes import BOX_HEADER
from data.labels import SPLITS
from data.sample.forms import LABEL_FILES, SamplePhoto
from data.sample.leaves import SIZE, draw_leaf
from data.sample.sets import SETS, SampleSet
from tools.base.tables import format_csv


def plan_sample(
    seed: int = 0,
    counts: Mapping[str, int] | None = None,
    set_name: str = "apple",
    raw: str = "csv",
    pool: bool = False,
) -> list[SamplePhoto]:
    """The photos that `write_sample` writes for the same arguments."""
    kind, photos = SETS[set_name], []
    for number, split in enumerate(SPLITS):
        drawn = _draw_labels(kind, split, (counts or kind.counts)[split], np.random.default_rng((seed, number)))
        for index, labels in enumerate(drawn):
            parents = labels if raw == "tree" else ("train_images" if pool else "images",)
            file = f"{seed:04x}{number:02x}{index:06x}.jpg"
            paths = tuple(str(Path("" if pool else split, parent, file)) for parent in parents)
            photos.append(SamplePhoto(split, labels, (seed, number, index), paths))
    return photos


def write_sample(
    dst: Path,
    seed: int = 0,
    counts: Mapping[str, int] | None = None,
    set_name: str = "apple",
    raw: str = "csv",
    pool: bool = False,
) -> list[SamplePhoto]:
    """Draws photos and writes them with their labels, and all boxes to `lesion_boxes.csv` (relative coordinates).

    Args:
        counts: split -> number of photos, for train, val and test; by default those of the set.
        set_name: a key of `data.sample.sets.SETS`.
        raw: a key of LABEL_FILES: the photos of a split lie in `{split}/images`, their labels in
            `{split}/{split}_label.csv`. Or "tree": a photo lies in `{split}/{label}` for each of its labels.
        pool: without folders for the splits; the photos lie in `train_images`, their labels in `train.csv`.
    """
    kind, photos = SETS[set_name], plan_sample(seed, counts, set_name, raw, pool)
    boxes = []
    for photo in photos:
        leaf = draw_leaf(photo.labels, photo.seed, kind.lesions)
        _, encoded = cv2.imencode(".jpg", leaf.pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
        for path in photo.paths:
            (dst / path).parent.mkdir(parents=True, exist_ok=True)
            (dst / path).write_bytes(encoded.tobytes())  # cv2.imwrite does not report a full disk
        for label, x0, y0, x1, y1 in leaf.boxes:
            relative = ((x0 + x1) / 2 / SIZE, (y0 + y1) / 2 / SIZE, (x1 - x0) / SIZE, (y1 - y0) / SIZE)
            boxes.append((photo.name, label, *(f"{number:.6f}" for number in relative)))
    if raw != "tree":
        for split, group in groupby(photos, lambda photo: photo.split if not pool else ""):
            file = f"{split}/{split}_label.csv" if split else "train.csv"
            (dst / file).write_bytes(LABEL_FILES[raw](kind, list(group)))
    (dst / "lesion_boxes.csv").write_bytes(format_csv([BOX_HEADER, *boxes]))
    return photos


def _draw_labels(kind: SampleSet, split: str, count: int, rng: np.random.Generator) -> list[tuple[str, ...]]:
    """The labels of `count` photos in shuffled order, as close to the shares as whole numbers allow."""
    rare = [(label,) for label, numbers in kind.rare.items() for _ in range(numbers[split])][:count]
    combinations, cumulative = list(kind.shares), np.cumsum(list(kind.shares.values()))
    places = (np.arange(count - len(rare)) + 0.5) / (count - len(rare)) * cumulative[-1]
    drawn = rare + [combinations[i] for i in np.searchsorted(cumulative, places)]
    return [drawn[i] for i in rng.permutation(count)]
