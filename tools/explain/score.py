"""How good heat maps are: each recipe's maps against lesion boxes, and against the model's response to lost pixels.

One pass over the photos measures all recipes; only the figures of each photo are kept.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tools.explain.cam import CamRecipe, compute_heat_maps
from tools.explain.faithfulness import measure_faithfulness, shuffle_weights
from tools.explain.pointing import FIGURES, build_box_mask, correlate, measure_pointing, summarise


@dataclass(frozen=True)
class BoxedLabel:
    """One label of one photo that has boxes.

    Attributes:
        photo: any name that identifies the photo.
        image: `[3, S, S]`, normalised.
        index: class of the label.
        boxes: (left, top, right, bottom) in pixels of the image.
        thorough: whether insertion, deletion, ROAD and the sanity check, which take seconds, are measured too.
    """

    photo: str
    image: Tensor
    index: int
    boxes: list[tuple[float, float, float, float]]
    thorough: bool = False


@dataclass(frozen=True)
class CamScore:
    """The figures of one recipe (`tools.explain.pointing.summarise`) over a number of photos and labels."""

    recipe: CamRecipe
    num_photos: int
    num_labels: int
    figures: dict[str, tuple[float, float, float]]


def score_recipes(
    model: nn.Module,
    batches: Iterable[Sequence[BoxedLabel]],
    recipes: Sequence[CamRecipe],
    probability: Callable[[np.ndarray], np.ndarray],
    views: Sequence[Callable[[Tensor], Tensor]] = (lambda x: x,),
) -> list[CamScore]:
    """The scores of every recipe, in their order.

    Args:
        batches: the labels, a batch at a time.
        probability: logits `[n, C]` -> probabilities `[n, C]`.
        views: see `tools.explain.cam.compute_heat_maps`.
    """
    shuffled = shuffle_weights(model)
    values, photos = [], []
    for labels in batches:
        photos += [label.photo for label in labels]
        values.append(_measure(model, shuffled, labels, recipes, probability, views))
    table, owner = np.concatenate(values), np.array(photos)  # [labels, recipes, figures], [labels]
    return [
        CamScore(recipe, len(set(photos)), len(photos), summarise(table[:, number], owner))
        for number, recipe in enumerate(recipes)
    ]


def _measure(
    model: nn.Module,
    shuffled: nn.Module,
    labels: Sequence[BoxedLabel],
    recipes: Sequence[CamRecipe],
    probability: Callable[[np.ndarray], np.ndarray],
    views: Sequence[Callable[[Tensor], Tensor]],
) -> np.ndarray:
    """The figures of a batch, `[labels, recipes, len(FIGURES)]`; NaN for what only thorough labels get."""
    device = next(model.parameters()).device
    images, classes = torch.stack([label.image for label in labels]).to(device), [label.index for label in labels]
    heat_maps = compute_heat_maps(model, images, recipes, classes, views)
    table = np.full((len(labels), len(recipes), len(FIGURES)), np.nan)
    for row, label in enumerate(labels):
        maps = [batch[row] for batch in heat_maps.maps]
        for number, (heat, cell) in enumerate(zip(maps, heat_maps.cells_px, strict=True)):
            table[row, number, :3] = measure_pointing(heat, build_box_mask(label.boxes, images.shape[-1], cell / 2))
        if label.thorough:
            others = compute_heat_maps(shuffled, images[row : row + 1], recipes, [label.index], views).maps
            for number, (heat, other) in enumerate(zip(maps, others, strict=True)):
                table[row, number, 3:6] = measure_faithfulness(model, images[row], heat, label.index, probability)
                table[row, number, 6] = correlate(heat, other[0])
    return table
