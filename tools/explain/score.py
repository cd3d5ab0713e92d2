"""Whether heat maps are true: each recipe's maps against lesion boxes, and against what the model says when pixels go.

One pass over the photos measures all recipes; nothing of a photo is kept but its figures.
"""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tools.explain.cam import Recipe, explain
from tools.explain.faithfulness import faithfulness, with_shuffled_weights
from tools.explain.pointing import FIGURES, box_mask, correlation, pointing_and_energy, summarise


@dataclass(frozen=True)
class Case:
    """One label of one photo that has boxes.

    Attributes:
        photo: which photo it is of, by any name that is its own.
        image: `[3, S, S]`, normalised.
        index: class of the label.
        boxes: (left, top, right, bottom) in pixels of the image.
        thorough: whether insertion, deletion, ROAD and the sanity check are measured on it, which take seconds.
    """

    photo: str
    image: Tensor
    index: int
    boxes: list[tuple[float, float, float, float]]
    thorough: bool = False


@dataclass(frozen=True)
class Score:
    """What was measured of one recipe on one checkpoint: `tools.explain.pointing.summarise`, and over how much."""

    checkpoint: str
    recipe: Recipe
    photos: int
    cases: int
    figures: dict[str, tuple[float, float, float] | None]


def score_recipes(
    model: nn.Module,
    batches: Iterable[Sequence[Case]],
    recipes: Sequence[Recipe],
    probability: Callable[[np.ndarray], np.ndarray],
    checkpoint: str,
    views: Sequence[Callable[[Tensor], Tensor]] = (lambda x: x,),
) -> list[Score]:
    """Scores every recipe.

    Args:
        batches: the cases, a batch at a time.
        probability: logits `[n, C]` -> probabilities `[n, C]`.
        checkpoint: what the model is called in the table.
        views: see `tools.explain.cam.explain`.
    """
    stranger = with_shuffled_weights(model)
    values, photos = [], []
    for cases in batches:
        photos += [case.photo for case in cases]
        values.append(_measure(model, stranger, cases, recipes, probability, views))
    table, owner = np.concatenate(values), np.array(photos)  # [cases, recipes, figures], [cases]
    return [
        Score(checkpoint, recipe, len(set(photos)), len(photos), summarise(table[:, number], owner))
        for number, recipe in enumerate(recipes)
    ]


def _measure(
    model: nn.Module,
    stranger: nn.Module,
    cases: Sequence[Case],
    recipes: Sequence[Recipe],
    probability: Callable[[np.ndarray], np.ndarray],
    views: Sequence[Callable[[Tensor], Tensor]],
) -> np.ndarray:
    """Figures of a batch, `[cases, recipes, len(FIGURES)]`; NaN for what only thorough cases have."""
    device = next(model.parameters()).device
    images, classes = torch.stack([case.image for case in cases]).to(device), [case.index for case in cases]
    explained = explain(model, images, recipes, classes, views)
    table = np.full((len(cases), len(recipes), len(FIGURES)), np.nan)
    for row, case in enumerate(cases):
        maps = [batch[row] for batch in explained.maps]
        for number, (heat, cell) in enumerate(zip(maps, explained.cells, strict=True)):
            table[row, number, :3] = pointing_and_energy(heat, box_mask(case.boxes, images.shape[-1], cell / 2))
        if case.thorough:
            others = explain(stranger, images[row : row + 1], recipes, [case.index], views).maps
            for number, (heat, other) in enumerate(zip(maps, others, strict=True)):
                table[row, number, 3:6] = faithfulness(model, images[row], heat, case.index, probability)
                table[row, number, 6] = correlation(heat, other[0])
    return table


def to_csv(scores: Sequence[Score]) -> bytes:
    """A row a score: each figure with the ends of its 95 % interval, empty where it was not measured."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    columns = [column for name in FIGURES for column in (name, f"{name}_low", f"{name}_high")]
    writer.writerow(["checkpoint", "method", "layer", "photos", "cases", *columns])
    for score in scores:
        cells = [
            text
            for name in FIGURES
            for text in ("" if score.figures[name] is None else f"{v:.4f}" for v in score.figures[name] or (0, 0, 0))
        ]
        start = [score.checkpoint, score.recipe.method, score.recipe.where, score.photos, score.cases]
        writer.writerow([*start, *cells])
    return buffer.getvalue().encode()


def lines(scores: Sequence[Score]) -> list[str]:
    """The table for a terminal: what was measured, and under it a line a score."""
    measured = [name for name in FIGURES if scores[0].figures[name] is not None]
    names = [f"{score.checkpoint}  {score.recipe.method} {score.recipe.where}" for score in scores]
    width = max(map(len, names))
    table = [f"{'':<{width}}" + "".join(f"  {name:<17}" for name in measured)]
    for name, score in zip(names, scores, strict=True):
        cells = ("  {:.2f} [{:.2f}, {:.2f}]".format(*score.figures[figure]) for figure in measured)
        table.append(f"{name:<{width}}" + "".join(f"{cell:<19}" for cell in cells))
    return [line.rstrip() for line in table]
