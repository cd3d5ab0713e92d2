"""Offline copies of the photos of rare labels: brighter, mirrored, turned, as the course project's notebook made them.

Every copy is named after its origin by `data.labels.made_name`, so that nobody takes it for a photo.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import product

from PIL import Image, ImageEnhance, ImageOps

from data.labels import MADE

BRIGHTNESS = 1.5


DEGREES = 20


def plan_copies(labels: Sequence[Sequence[str]]) -> list[tuple[int, str]]:
    """(index of the photo, kind of copy) pairs that lift rare labels to the mean count of a label.

    A label has enough when it is on as many photos and copies as the mean label was on photos, or when each of its
    photos has a copy of every kind. Rare labels come first, and every photo gets one copy before any gets two.

    Args:
        labels: of every training photo; a copy has those of its origin and counts for all of them.
    """
    counts = Counter(name for names in labels for name in names)
    mean = counts.total() / max(1, len(counts))
    planned: dict[tuple[int, str], None] = {}
    for label in sorted(counts, key=lambda name: (counts[name], name)):
        photos = [index for index, names in enumerate(labels) if label in names]
        for kind, index in product(MADE, photos):
            if counts[label] >= mean:
                break
            if (index, kind) not in planned:
                planned[index, kind] = None
                counts.update(labels[index])
    return list(planned)


def make_copy(image: Image.Image, kind: str) -> Image.Image:
    """The copy of an RGB image; turning leaves the corners black and the size as it was."""
    if kind == "flip":
        return ImageOps.mirror(image)
    if kind == "bright":
        return ImageEnhance.Brightness(image).enhance(BRIGHTNESS)
    return image.rotate(DEGREES, Image.Resampling.BICUBIC)
