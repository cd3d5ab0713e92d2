"""From photos to figures of heat maps: what is drawn, how it is called, what is said of it."""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn

from tools.cam import Recipe, explain
from tools.files import write_picture
from tools.tiles import Tile, draw_grid, overlay, overlay_window

MAX_ACROSS = 7  # tiles in a line of a figure


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


def batches(items: Iterable, size: int) -> Iterator[list]:
    """The items, `size` at a time; read only when they are asked for."""
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def in_threads(work: Callable, items: Iterable, threads: int, ahead: int) -> Iterator:
    """`work(item)` for every item, in order; up to `ahead` of them are under way while the caller does other things."""
    waiting: deque = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


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
        views: see `tools.cam.explain`.
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


@dataclass(frozen=True)
class Album:
    """Where figures go and how they are drawn.

    Attributes:
        labels: names of the classes.
        full_size: draw over the photo as it is, and not over the model's input.
    """

    folder: Path
    labels: Sequence[str]
    full_size: bool = False

    def write_pair(self, leaf: Leaf, row: Row, column: Column) -> Path:
        """The heat map, the photo, and both with a title; the path of the first."""
        label = self.labels[row.index]
        path = self.folder / f"{leaf.stem}_{label}_cam.png"
        write_picture(path, self._heated(leaf, row.heat[0]))
        write_picture(self.folder / f"{leaf.stem}_original.png", self._plain(leaf))
        self.write_figure(leaf, [row], [column], f"{leaf.stem}_{label}_pair.png")
        return path

    def write_figure(self, leaf: Leaf, rows: Sequence[Row], columns: Sequence[Column], name: str) -> Path:
        """A row a class: the photo, then its map in every column. Where predictions are known, each row says whose."""
        grid = []
        for row in rows:
            label = self.labels[row.index]
            roles = [word for word, group in (("true", leaf.truth), ("predicted", leaf.given)) if row.index in group]
            tiles = [Tile(self._plain(leaf), f"{' and '.join(roles)}: {label}" if leaf.given else "original")]
            for column, probability, heat in zip(columns, row.probability, row.heat, strict=True):
                empty = "" if heat.any() else "\nnothing speaks for it"
                caption = f"{column.title}\n{label} {100 * probability:.1f}%{empty}"
                tiles.append(Tile(self._heated(leaf, heat), caption))
            lines = math.ceil(len(tiles) / MAX_ACROSS)
            grid += batches(tiles, math.ceil(len(tiles) / lines))
        write_picture(self.folder / name, draw_grid(self._title(leaf), grid))
        return self.folder / name

    def _title(self, leaf: Leaf) -> str:
        truth = ", ".join(self.labels[index] for index in leaf.truth)
        return Path(leaf.name).name + (f"\ntrue: {truth}" if truth else "")

    def _plain(self, leaf: Leaf) -> np.ndarray:
        return leaf.photo if self.full_size else leaf.seen

    def _heated(self, leaf: Leaf, heat: np.ndarray) -> np.ndarray:
        return overlay_window(leaf.photo, heat, leaf.window) if self.full_size else overlay(leaf.seen, heat)


def warnings(leaf: Leaf, rows: Sequence[Row], columns: Sequence[Column], labels: Sequence[str]) -> Iterator[str]:
    """A line for every map that is zero everywhere."""
    for row in rows:
        for column, heat in zip(columns, row.heat, strict=True):
            if not heat.any():
                where, label = column.recipe.where, labels[row.index]
                yield f"warning: {leaf.name}: nothing at {where} speaks for {label}; the map is zero everywhere"
