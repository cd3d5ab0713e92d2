"""Balanced copies: brighter, mirrored or turned copies of photos with rare labels, as in the course project's notebook.

They are written once, and named by `data.labels.balanced_copy_name`, so that they cannot be mistaken for photos.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import product

from PIL import Image, ImageEnhance, ImageOps

from data.labels import BALANCE_KINDS

BRIGHTNESS = 1.5
DEGREES = 20


def plan_copies(labels: Sequence[Sequence[str]]) -> list[tuple[int, str]]:
    """(index, kind) of every copy to make.

    A label gets copies until it has as many photos as the average label had at the start, or until each of its photos
    has one copy of every kind. Rare labels come first. Within a label, every photo gets one copy before any gets two.

    Args:
        labels: of every training photo. A copy has the labels of its original and counts for all of them.
    """
    photos_of: dict[str, list[int]] = {}
    for index, names in enumerate(labels):
        for name in names:
            photos_of.setdefault(name, []).append(index)
    counts = Counter({name: len(photos) for name, photos in photos_of.items()})
    mean = counts.total() / max(1, len(counts))
    planned: dict[tuple[int, str], None] = {}
    for label in sorted(counts, key=lambda name: (counts[name], name)):
        for kind, index in product(BALANCE_KINDS, photos_of[label]):
            if counts[label] >= mean:
                break
            if (index, kind) not in planned:
                planned[index, kind] = None
                counts.update(labels[index])
    return list(planned)


def make_copy(image: Image.Image, kind: str) -> Image.Image:
    """The copy of an RGB image; turning keeps the size and leaves the corners black."""
    if kind == "flip":
        return ImageOps.mirror(image)
    if kind == "bright":
        return ImageEnhance.Brightness(image).enhance(BRIGHTNESS)
    return image.rotate(DEGREES, Image.Resampling.BICUBIC)
