"""The photos that heat maps are made of: which ones, what is explained of each, and the maps as arrays."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn

from data.boxes import Box, on_input
from data.images import decode, read_image
from data.loading.split import Photo, Split
from data.loading.transforms import Preprocess
from tools.base.errors import DataError
from tools.base.threads import batches, in_threads
from tools.explain.cam import Recipe, explain
from tools.explain.score import Case

Boxed = tuple[Split, Photo, int, list[Box]]  # a photo, one of its classes, and the boxes of that
# a photo, one of its classes, and the boxes of that


@dataclass(frozen=True)
class Subject:
    """A photo that is to be explained.

    Attributes:
        name: where it lies, for a person.
        stem: what its figures' names begin with.
        read: decodes it, as an upright RGB image.
        truth, given: classes of its true labels and of those the model gave it, empty where they are not known.
    """

    name: str
    stem: str
    read: Callable[[], Image]
    truth: tuple[int, ...] = ()
    given: tuple[int, ...] = ()

    def check(self) -> None:
        """Decodes the photo and drops it. Raises what `read` raises."""
        self.read()


@dataclass(frozen=True)
class Leaf:
    """A subject, read.

    Attributes:
        photo: `[H, W, 3]` uint8 RGB, as it is.
        seen: `[S, S, 3]`, the part that is the model's input.
        window: (left, top, right, bottom) of that part, in pixels of `photo`.
        image: `[3, S, S]`, normalised.
        name, stem, truth, given: see `Subject`.
    """

    name: str
    stem: str
    photo: np.ndarray
    seen: np.ndarray
    window: tuple[float, float, float, float]
    image: Tensor
    truth: tuple[int, ...] = ()
    given: tuple[int, ...] = ()


@dataclass(frozen=True)
class Column:
    """One way of looking at every photo: a model, a recipe, and what the column is called.

    `probabilities` maps logits `[n, C]` to probabilities `[n, C]`.
    """

    title: str
    model: nn.Module
    recipe: Recipe
    probabilities: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Row:
    """One class of one photo through all columns: its probability and its map `[S, S]` in each of them."""

    index: int
    probability: list[float]
    heat: list[np.ndarray]


def distinct(stems: Iterable[str]) -> Iterator[str]:
    """The stems in turn, numbered where one comes again, so that no photo's pictures replace another's."""
    taken = set()
    for stem in stems:
        name, number = stem, 1
        while name in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name)
        yield name


def named_photos(names: Sequence[str]) -> Iterator[Subject]:
    """The files that a user names, wherever they lie."""
    for name, stem in zip(names, distinct(Path(name).stem for name in names), strict=True):
        yield Subject(name, stem, lambda name=name: read_image(Path(name)))


def split_photos(
    splits: Sequence[Split], number_of_classes: int, examples: int = 0, several_first: bool = False
) -> Iterator[Subject]:
    """The photos of splits: all, or `examples` of them, every label in turn.

    Args:
        several_first: of the examples, take those with the most labels.
    """
    found = [(split, photo) for split in splits for photo in split.photos]
    if examples:
        by_class = [[one for one in found if c in one[1].classes] for c in range(number_of_classes)]
        in_turn = [group[i] for i in range(max(map(len, by_class))) for group in by_class if i < len(group)]
        found = list({(split.where, photo.file): (split, photo) for split, photo in in_turn}.values())
        if several_first:
            found.sort(key=lambda one: -len(one[1].classes))
        found = found[:examples]
    stems = distinct(Path(photo.name).stem for _, photo in found)
    yield from (subject_of(split, photo, stem) for (split, photo), stem in zip(found, stems, strict=True))


def leaf_of(subject: Subject, preprocess: Preprocess) -> Leaf:
    """The photo, decoded and made ready for the model."""
    photo = subject.read()
    return Leaf(
        subject.name,
        subject.stem,
        np.asarray(photo),
        np.asarray(preprocess.geometry()(photo)),
        preprocess.window(*photo.size),
        preprocess.transform()(photo),
        subject.truth,
        subject.given,
    )


def rows_of(
    leaves: Sequence[Leaf],
    columns: Sequence[Column],
    wanted: Sequence[Sequence[int]] | None,
    views: Sequence[Callable[[Tensor], Tensor]] = (lambda x: x,),
) -> list[list[Row]]:
    """The rows of every leaf; one pass a model serves all of its columns.

    Args:
        wanted: classes to explain, one list a leaf; None takes the class that the last column's model finds most
            probable.
        views: see `tools.explain.cam.explain`.
    """
    owners = range(len(leaves)) if wanted is None else [i for i, classes in enumerate(wanted) for _ in classes]
    classes = None if wanted is None else [c for group in wanted for c in group]
    images = torch.stack([leaves[owner].image for owner in owners]).to(next(columns[0].model.parameters()).device)
    heat, probability = [None] * len(columns), [None] * len(columns)
    for model in reversed(list(dict.fromkeys(column.model for column in columns))):
        mine = [number for number, column in enumerate(columns) if column.model is model]
        first = columns[mine[0]]
        top = lambda logits, first=first: first.probabilities(logits).argmax(axis=1)  # noqa: E731
        recipes = [columns[number].recipe for number in mine]
        explained = explain(model, images, recipes, top if classes is None else classes, views)
        classes = explained.classes
        likely = first.probabilities(explained.logits)[np.arange(len(classes)), classes]
        for number, maps in zip(mine, explained.maps, strict=True):
            heat[number], probability[number] = maps, likely
    rows: list[list[Row]] = [[] for _ in leaves]
    for place, (owner, index) in enumerate(zip(owners, classes, strict=True)):
        rows[owner].append(Row(index, [float(p[place]) for p in probability], [maps[place] for maps in heat]))
    return rows


def explain_photos(
    subjects: Sequence[Subject],
    preprocess: Preprocess,
    columns: Sequence[Column],
    size: int,
    threads: int,
    *,
    target: int | None = None,
    every_label: bool = False,
    predict: Callable[[Tensor], np.ndarray] | None = None,
    views: Sequence[Callable[[torch.Tensor], torch.Tensor]] = (lambda x: x,),
) -> Iterator[tuple[Leaf, list[Row]]]:
    """Every photo with its rows. The model takes `size` at a time while `threads` read the next ones.

    Args:
        target: the class to explain; None takes the most probable one.
        every_label: explain the true labels and the given ones instead.
        predict: images `[B, 3, S, S]` -> the labels given to them, `[B, C]` bool; None does
            not ask.
        views: see `tools.explain.cam.explain`.
    """
    read = in_threads(partial(leaf_of, preprocess=preprocess), subjects, threads, size)
    for leaves in batches(read, size):
        if predict:
            decision = predict(torch.stack([leaf.image for leaf in leaves]))
            given = [tuple(row.nonzero()[0].tolist()) for row in decision]
            leaves = [replace(leaf, given=labels) for leaf, labels in zip(leaves, given, strict=True)]
        classes = None if target is None else [[target]] * len(leaves)
        if every_label:
            classes = [sorted({*leaf.truth, *leaf.given}) for leaf in leaves]
        yield from zip(leaves, rows_of(leaves, columns, classes, views), strict=True)


def boxed_photos(splits: Sequence[Split], labels: Sequence[str], boxes: Mapping[str, list[Box]]) -> list[Boxed]:
    """Every label of a photo that has boxes.

    Raises:
        DataError: when no photo has any.
    """
    found = []
    for split in splits:
        for photo in split.photos:
            here = boxes.get(photo.name, [])
            for index, label in enumerate(labels):
                if mine := [box for box in here if box.label == label]:
                    found.append((split, photo, index, mine))
    if not found:
        where = ", ".join(split.where for split in splits)
        raise DataError(f"the boxes are of no photo in {where}; name other splits with --split")
    return found


def boxed_cases(preprocess: Preprocess, found: Sequence[Boxed], thorough: int) -> Iterator[Case]:
    """They are read one at a time; `thorough` of them, evenly spread, are to be measured in every way."""
    transform = preprocess.transform()
    for number, (split, photo, index, boxes) in enumerate(found):
        image = decode(split.source.read(photo.file), split.source.locate(photo.file))
        placed = on_input(boxes, image.size, preprocess.window(*image.size), preprocess.size)
        closely = (number + 1) * thorough // len(found) > number * thorough // len(found)
        if placed:
            yield Case(f"{split.where}/{photo.name}", transform(image), index, placed, closely)


def subject_of(split: Split, photo: Photo, stem: str, given: tuple[int, ...] = ()) -> Subject:
    """A photo of a split, to be read when it is needed."""
    where = split.source.locate(photo.file)
    return Subject(where, stem, lambda: decode(split.source.read(photo.file), where), photo.classes, given)
