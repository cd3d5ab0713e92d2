"""How good heat maps are: each recipe's maps against lesion boxes, and against the model's response to removed pixels.

One pass over the photos measures all recipes; only the figures of each label, and its peaks, are kept.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tools.base.bootstrap import interval
from tools.base.tables import format_table
from tools.explain.cam import CamRecipe
from tools.explain.faithfulness import measure_faithfulness, shuffle_weights
from tools.explain.free_response import RATES, Response, compare_counts, judge, recall
from tools.explain.peaks import RINGED, find_peaks
from tools.explain.pointing import (
    FIGURES,
    build_box_mask,
    correlate,
    draw_photos,
    measure_pointing,
    summarise_means,
)
from tools.explain.scales import Scale, see

NAMES = (*(f"recall_{rate:g}" for rate in RATES), "count_rho", "count_error", *FIGURES)  # of a CamScore
SHOWN = ("recall_0.5", "recall_2", "recall_8", *NAMES[len(RATES) :])  # in a terminal


@dataclass(frozen=True)
class BoxedLabel:
    """One label of one photo that has boxes.

    Attributes:
        photo: any name that identifies the photo.
        images: `[3, S, S]`, normalised, one per scale; the last is the largest.
        class_index: of the label.
        boxes: (left, top, right, bottom) in pixels of the last image.
        thorough: whether insertion, deletion, ROAD and the sanity check, which take seconds, are measured too.
        shown: rows and columns of the last image that show the photo; the rest is padding, which the figures leave out.
    """

    photo: str
    images: tuple[Tensor, ...]
    class_index: int
    boxes: list[tuple[float, float, float, float]]
    thorough: bool = False
    shown: tuple[slice, slice] = (slice(None), slice(None))


@dataclass(frozen=True)
class Measured:
    """What the maps of one recipe came to, label by label.

    Attributes:
        values: `[labels, len(FIGURES)]`, NaN where a figure was not measured.
        responses: the peaks of each map against the boxes of its label.
        photos: of each label.
    """

    recipe: CamRecipe
    values: np.ndarray
    responses: list[Response]
    photos: list[str]

    def __add__(self, other: "Measured") -> "Measured":
        values = np.concatenate([self.values, other.values])
        return Measured(self.recipe, values, self.responses + other.responses, self.photos + other.photos)


@dataclass(frozen=True)
class CamScore:
    """The figures of one recipe over a number of photos and labels, as (value, low, high) with 95 % intervals.

    They are `recall_<rate>` for RATES, `count_rho` and `count_error` (peaks from RINGED and boxes: Spearman's
    correlation and mean absolute difference), and those of FIGURES that were measured.
    """

    recipe: CamRecipe
    num_photos: int
    num_labels: int
    figures: dict[str, tuple[float, float, float]]


def measure_recipes(
    scales: Sequence[Scale],
    batches: Iterable[Sequence[BoxedLabel]],
    recipes: Sequence[CamRecipe],
    to_probabilities: Callable[[np.ndarray], np.ndarray],
) -> list[Measured]:
    """What the maps of every recipe come to, from one pass over the labels.

    Args:
        batches: the labels, a batch at a time.
        to_probabilities: logits `[n, C]` -> probabilities `[n, C]`.
    """
    shuffled: list[Scale] = []
    device = next(scales[-1].model.parameters()).device
    rows: list[np.ndarray] = []
    responses: list[list[Response]] = [[] for _ in recipes]
    photos = []
    for labels in batches:
        images = [torch.stack(of_scale) for of_scale in zip(*(label.images for label in labels), strict=True)]
        heat_maps = see(scales, images, recipes, [label.class_index for label in labels])
        for number, label in enumerate(labels):
            maps = [of_recipe[number] for of_recipe in heat_maps.maps]
            row = np.full((len(recipes), len(FIGURES)), np.nan)
            for of_recipe, cells, heat, cell in zip(responses, row, maps, heat_maps.cells_px, strict=True):
                mask = build_box_mask(label.boxes, images[-1].shape[-1], cell / 2)
                cells[:3] = measure_pointing(heat[label.shown], mask[label.shown])
                of_recipe.append(judge(find_peaks(heat, cell, label.shown), label.boxes, cell / 2))
            if label.thorough:
                shuffled = shuffled or [scale._replace(model=shuffle_weights(scale.model)) for scale in scales]
                one = [of_scale[[number]] for of_scale in images]
                shuffled_maps = see(shuffled, one, recipes, [label.class_index]).maps
                image, model = images[-1][number].to(device), scales[-1].model
                for cells, heat, other in zip(row, maps, shuffled_maps, strict=True):
                    cells[3:6] = measure_faithfulness(model, image, heat, label.class_index, to_probabilities)
                    cells[6] = correlate(heat[label.shown], other[0][label.shown])
            rows.append(row)
            photos.append(label.photo)
    table = np.array(rows).reshape(-1, len(recipes), len(FIGURES))
    return [Measured(recipe, table[:, n], responses[n], photos) for n, recipe in enumerate(recipes)]


def summarise(measured: Measured) -> CamScore:
    """The figures, whose intervals come from a bootstrap over photos."""
    draws, responses = draw_photos(measured.photos), measured.responses
    counted = np.array([(response.peaks >= RINGED).sum() for response in responses])
    boxes = np.array([len(response.boxes) for response in responses])
    weights = np.concatenate([np.ones((1, len(responses))), draws])  # first the labels themselves
    columns = np.concatenate([recall(responses, weights), compare_counts(counted, boxes, weights)], axis=1).T
    figures = {
        name: (float(column[0]), *(interval(column[1:]) or (np.nan, np.nan)))
        for name, column in zip(NAMES, columns, strict=False)
    }
    figures |= summarise_means(measured.values, draws)
    return CamScore(measured.recipe, len(set(measured.photos)), len(responses), figures)


def list_score_rows(scores: Sequence[tuple[str, CamScore]]) -> list[list]:
    """The rows of cam_scores.csv: figures with their 95 % intervals, empty where they were not measured.

    Args:
        scores: (name of the checkpoint, its score) for every checkpoint and recipe.
    """
    columns = [column for name in NAMES for column in (name, f"{name}_low", f"{name}_high")]
    rows: list[list] = [["checkpoint", "method", "layer", "photos", "cases", *columns]]
    for checkpoint, score in scores:
        row = [checkpoint, score.recipe.method, score.recipe.layer, score.num_photos, score.num_labels]
        for name in NAMES:
            row += [f"{value:.4f}" for value in score.figures[name]] if name in score.figures else [""] * 3
        rows.append(row)
    return rows


def format_scores(scores: Sequence[tuple[str, CamScore]]) -> list[str]:
    """The lines for a terminal: a header of what was measured, then one line per score."""
    shown = [name for name in SHOWN if name in scores[0][1].figures]
    rows = [["", *shown]]
    for checkpoint, score in scores:
        cells = ("{:.2f} [{:.2f}, {:.2f}]".format(*score.figures[name]) for name in shown)
        rows.append([f"{checkpoint}  {score.recipe.method} {score.recipe.layer}", *cells])
    return format_table(rows, "<")
