"""Photos and their heat maps: which photos, which of their classes, and the maps as arrays."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, count, zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from data.boxes import Box, on_input
from data.images import decode, read_image
from data.loading.split import Photo, Split, find_photos
from data.loading.transforms import Preprocess
from tools.base.threads import batches, in_threads
from tools.explain.cam import CamRecipe
from tools.explain.scales import Scale, see
from tools.explain.score import BoxedLabel

Boxed = tuple[Split, Photo, int, list[Box]]  # a photo, one of its classes, and the boxes of that class


class PhotoSource(NamedTuple):
    """A photo that is to be explained, not yet read.

    Attributes:
        name: where it is, for messages.
        stem: prefix of the names of its figures.
        read: decodes it, as an upright RGB image.
        truth: classes of its true labels; empty where they are not known.
    """

    name: str
    stem: str
    read: Callable[[], Image]
    truth: tuple[int, ...] = ()


class Explanation(NamedTuple):
    """One class of one photo, with one column per model and recipe; the recipes of the first model come first.

    Attributes:
        probabilities: of the class, one per column.
        maps: `[S, S]` in [0, 1], one per column.
        cells: side of a cell of each map in its pixels.
    """

    class_index: int
    probabilities: list[float]
    maps: list[np.ndarray]
    cells: list[float]


def list_named_photos(names: Sequence[str]) -> list[PhotoSource]:
    """The photos of the files, folders and patterns that a user gives."""
    paths, _ = find_photos(names)
    return number_repeated(PhotoSource(str(path), path.stem, partial(read_image, path)) for path in paths)


def list_split_photos(splits: Sequence[Split], examples: int = 0, several_first: bool = False) -> list[PhotoSource]:
    """The photos of splits: all, or `examples` of them, taking every label in turn.

    Args:
        several_first: take the examples with the most labels.
    """
    found = [(split, photo) for split in splits for photo in split.photos]
    if examples:
        by_class = [[one for one in found if c in one[1].classes] for c in range(len(splits[0].labels.names))]
        in_turn = [one for turn in zip_longest(*by_class) for one in turn if one]
        found = list({(split.where, photo.file): (split, photo) for split, photo in in_turn}.values())
        if several_first:
            found.sort(key=lambda one: -len(one[1].classes))
        found = found[:examples]
    return number_repeated(describe_photo(split, photo) for split, photo in found)


def describe_photo(split: Split, photo: Photo, prefix: str = "") -> PhotoSource:
    """A photo of a split, read when it is needed; the names of its figures begin with `prefix`."""
    where, stem = split.source.locate(photo.file), prefix + Path(photo.name).stem
    return PhotoSource(where, stem, lambda: decode(split.source.read(photo.file), where), photo.classes)


def number_repeated(sources: Iterable[PhotoSource]) -> list[PhotoSource]:
    """The sources with repeated stems numbered, so that no photo's pictures replace another's."""
    by_stem: dict[str, PhotoSource] = {}
    for source in sources:
        stems = chain([source.stem], (f"{source.stem}_{number}" for number in count(2)))
        stem = next(stem for stem in stems if stem not in by_stem)
        by_stem[stem] = source._replace(stem=stem)
    return list(by_stem.values())


def load_batches(
    sources: Iterable[PhotoSource], transforms: Sequence[Callable[[Image], Tensor]], size: int, threads: int
) -> Iterator[tuple[Sequence[PhotoSource], Sequence[Image], list[Tensor]]]:
    """(sources, upright RGB images, inputs `[B, 3, S, S]` by each of `transforms`), for `size` photos at a time.

    `threads` read the next batch while the caller uses one.
    """

    def load(source: PhotoSource) -> tuple[PhotoSource, Image, list[Tensor]]:
        image = source.read()
        return source, image, [transform(image) for transform in transforms]

    for batch in batches(in_threads(load, sources, threads, size), size):
        loaded, images, inputs = zip(*batch, strict=True)
        yield loaded, images, [torch.stack(tensors) for tensors in zip(*inputs, strict=True)]


def explain_batch(
    images: Sequence[Tensor],
    models: Sequence[Sequence[Scale]],
    recipes: Sequence[CamRecipe],
    wanted: Sequence[Sequence[int]],
    probabilities: Sequence[np.ndarray],
) -> list[list[Explanation]]:
    """The explanations of each image, one per class; one pass per model, scale and view serves all recipes.

    Args:
        images: `[B, 3, S, S]`, normalised, per scale.
        models: the scales of each.
        wanted: classes to explain, one list per image.
        probabilities: `[B, num_classes]` per model, from its answers.
    """
    owners = [image for image, classes in enumerate(wanted) for _ in classes]
    classes = [index for group in wanted for index in group]
    images = [of_scale[owners] for of_scale in images]
    columns = []
    for scales, probability in zip(models, probabilities, strict=True):
        seen = see(scales, images, recipes, classes)
        columns += [(probability, maps, cell) for maps, cell in zip(seen.maps, seen.cells_px, strict=True)]
    explained: list[list[Explanation]] = [[] for _ in wanted]
    for row, (owner, index) in enumerate(zip(owners, classes, strict=True)):
        shares = [float(probability[owner, index]) for probability, _, _ in columns]
        maps, cells = [maps[row] for _, maps, _ in columns], [cell for _, _, cell in columns]
        explained[owner].append(Explanation(index, shares, maps, cells))
    return explained


def list_boxed_labels(splits: Sequence[Split], labels: Sequence[str], boxes: Mapping[str, list[Box]]) -> list[Boxed]:
    """Every label of every photo that has boxes."""
    return [
        (split, photo, index, of_label)
        for split in splits
        for photo in split.photos
        for index, label in enumerate(labels)
        if (of_label := [box for box in boxes.get(photo.name, []) if box.label == label])
    ]


def load_boxed_labels(scales: Sequence[Preprocess], found: Sequence[Boxed], thorough: int) -> Iterator[BoxedLabel]:
    """The labels with their photos, read one at a time; `thorough` of them, evenly spread, get every measurement.

    Args:
        scales: how photos become images; boxes are placed on the last one.
    """
    transforms, preprocess = [scale.transform() for scale in scales], scales[-1]
    for number, (split, photo, index, boxes) in enumerate(found):
        image = decode(split.source.read(photo.file), split.source.locate(photo.file))
        shown = preprocess.shown(*image.size)
        placed = on_input(boxes, image.size, preprocess.window(*image.size), shown)
        closely = (number + 1) * thorough // len(found) > number * thorough // len(found)
        if placed:
            images = tuple(transform(image) for transform in transforms)
            yield BoxedLabel(f"{split.where}/{photo.name}", images, index, placed, closely, shown)
