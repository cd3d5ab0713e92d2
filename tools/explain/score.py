"""How good heat maps are: each recipe's maps against lesion boxes, and against the model's response to removed pixels.

One pass over the photos measures all recipes; only the figures of each label are kept.
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
        class_index: of the label.
        boxes: (left, top, right, bottom) in pixels of the image.
        thorough: whether insertion, deletion, ROAD and the sanity check, which take seconds, are measured too.
        shown: rows and columns of the image that show the photo; the rest is padding, which the figures leave out.
    """

    photo: str
    image: Tensor
    class_index: int
    boxes: list[tuple[float, float, float, float]]
    thorough: bool = False
    shown: tuple[slice, slice] = (slice(None), slice(None))


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
    to_probabilities: Callable[[np.ndarray], np.ndarray],
    views: Sequence[Callable[[Tensor], Tensor]] = (lambda x: x,),
) -> list[CamScore]:
    """The scores of every recipe, in their order.

    Args:
        batches: the labels, a batch at a time.
        to_probabilities: logits `[n, C]` -> probabilities `[n, C]`.
        views: see `tools.explain.cam.compute_heat_maps`.
    """
    shuffled, device = shuffle_weights(model), next(model.parameters()).device
    rows, photos = [], []
    for labels in batches:
        images = torch.stack([label.image for label in labels]).to(device)
        heat_maps = compute_heat_maps(model, images, recipes, [label.class_index for label in labels], views)
        for number, label in enumerate(labels):
            maps = [of_recipe[number] for of_recipe in heat_maps.maps]
            row = np.full((len(recipes), len(FIGURES)), np.nan)
            for cells, heat, cell in zip(row, maps, heat_maps.cells_px, strict=True):
                mask = build_box_mask(label.boxes, images.shape[-1], cell / 2)
                cells[:3] = measure_pointing(heat[label.shown], mask[label.shown])
            if label.thorough:
                shuffled_maps = compute_heat_maps(shuffled, images[[number]], recipes, [label.class_index], views).maps
                for cells, heat, other in zip(row, maps, shuffled_maps, strict=True):
                    cells[3:6] = measure_faithfulness(model, images[number], heat, label.class_index, to_probabilities)
                    cells[6] = correlate(heat[label.shown], other[0][label.shown])
            rows.append(row)
            photos.append(label.photo)
    table = np.stack(rows)  # [labels, recipes, figures]
    return [
        CamScore(recipe, len(set(photos)), len(photos), summarise(table[:, number], np.array(photos)))
        for number, recipe in enumerate(recipes)
    ]
