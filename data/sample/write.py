"""Writes the drawn leaves as a data set in the course's raw layout."""

from pathlib import Path

import cv2
import numpy as np

from data.boxes import BOX_HEADER
from data.labels import SPLITS
from data.sample.leaves import SIZE, draw_leaf
from tools.base.tables import format_csv

COUNTS = {"train": 1200, "val": 160, "test": 240}
# Shares of the label sets; 8 % of the leaves have two labels, one of them frog_eye_leaf_spot, as on real leaves.
SHARES = {
    ("scab",): 0.20,
    ("frog_eye_leaf_spot",): 0.17,
    ("rust",): 0.16,
    ("powdery_mildew",): 0.14,
    ("healthy",): 0.14,
    ("complex",): 0.11,
    ("scab", "frog_eye_leaf_spot"): 0.05,
    ("rust", "frog_eye_leaf_spot"): 0.03,
}


def write_sample(dst: Path, seed: int = 0, counts: dict[str, int] = COUNTS) -> None:
    """Writes the sample in the course's raw layout, and all boxes to `lesion_boxes.csv` (relative coordinates)."""
    boxes = []
    for number, split in enumerate(SPLITS):
        folder = dst / split / "images"
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for index, labels in enumerate(_label_sets(counts[split], np.random.default_rng((seed, number)))):
            leaf = draw_leaf(labels, (seed, number, index))
            name = _photo_name(seed, number, index)
            _, encoded = cv2.imencode(".jpg", leaf.pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
            (folder / name).write_bytes(encoded.tobytes())  # cv2.imwrite does not report a full disk
            rows.append((name, " ".join(labels)))
            for label, x0, y0, x1, y1 in leaf.boxes:
                relative = ((x0 + x1) / 2 / SIZE, (y0 + y1) / 2 / SIZE, (x1 - x0) / SIZE, (y1 - y0) / SIZE)
                boxes.append((name, label, *(f"{number:.6f}" for number in relative)))
        (dst / split / f"{split}_label.csv").write_bytes(format_csv([("images", "labels"), *rows]))
    (dst / "lesion_boxes.csv").write_bytes(format_csv([BOX_HEADER, *boxes]))


def photo_names(seed: int, counts: dict[str, int]) -> set[str]:
    """The paths of a sample's photos, relative to its folder."""
    return {
        f"{split}/images/{_photo_name(seed, number, index)}"
        for number, split in enumerate(SPLITS)
        for index in range(counts[split])
    }


def _photo_name(seed: int, number: int, index: int) -> str:
    return f"{seed:04x}{number:02x}{index:06x}.jpg"


def _label_sets(count: int, rng: np.random.Generator) -> list[tuple[str, ...]]:
    """`count` label sets in shuffled order, as close to SHARES as whole numbers allow."""
    sets, cumulative = list(SHARES), np.cumsum(list(SHARES.values()))
    places = (np.arange(count) + 0.5) / count * cumulative[-1]
    drawn = [sets[i] for i in np.searchsorted(cumulative, places)]
    return [drawn[i] for i in rng.permutation(count)]
