"""Figures of heat maps, written as pictures: one photo's maps side by side, with titles and captions."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tools.base.threads import batches
from tools.render.grid import Tile, draw_grid
from tools.render.maps import overlay, overlay_window, write_picture

MAX_ACROSS = 7  # tiles in a line of a figure


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

    def write_pair(self, leaf, row, column) -> Path:
        """The heat map, the photo, and both with a title; the path of the first."""
        label = self.labels[row.index]
        path = self.folder / f"{leaf.stem}_{label}_cam.png"
        write_picture(path, self._heated(leaf, row.heat[0]))
        write_picture(self.folder / f"{leaf.stem}_original.png", self._plain(leaf))
        self.write_figure(leaf, [row], [column], f"{leaf.stem}_{label}_pair.png")
        return path

    def write_figure(self, leaf, rows: Sequence, columns: Sequence, name: str) -> Path:
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

    def _title(self, leaf) -> str:
        truth = ", ".join(self.labels[index] for index in leaf.truth)
        return Path(leaf.name).name + (f"\ntrue: {truth}" if truth else "")

    def _plain(self, leaf) -> np.ndarray:
        return leaf.photo if self.full_size else leaf.seen

    def _heated(self, leaf, heat: np.ndarray) -> np.ndarray:
        return overlay_window(leaf.photo, heat, leaf.window) if self.full_size else overlay(leaf.seen, heat)


def warnings(leaf, rows: Sequence, columns: Sequence, labels: Sequence[str]) -> Iterator[str]:
    """A line for every map that is zero everywhere."""
    for row in rows:
        for column, heat in zip(columns, row.heat, strict=True):
            if not heat.any():
                where, label = column.recipe.where, labels[row.index]
                yield f"warning: {leaf.name}: nothing at {where} speaks for {label}; the map is zero everywhere"
