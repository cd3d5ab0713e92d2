"""Free-response scoring: which lesions the peaks of heat maps find, and at how many false peaks (FROC).

After Bunch et al. (SPIE 127, 1977) and the LUNA16 challenge (arXiv 1612.08012, section 3): a detector marks any number
of places, and its recall is read at fixed numbers of false marks per image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from tools.explain.pointing import correlate

RATES = (0.5, 1.0, 2.0, 4.0, 8.0)  # false peaks per map at which recall is given


class Response(NamedTuple):
    """What the peaks of one map come to.

    Attributes:
        boxes: `[num_boxes]`, the height of the highest peak in each box; -inf where there is none.
        false: `[num_false]`, the heights of the peaks outside all boxes.
        peaks: `[num_peaks]`, the heights of all peaks.
    """

    boxes: np.ndarray
    false: np.ndarray
    peaks: np.ndarray


def judge(peaks: np.ndarray, boxes: Sequence[tuple[float, float, float, float]], grow: float) -> Response:
    """Compares the peaks of a map, from `find_peaks`, with boxes that are each grown by `grow` on every side.

    A peak in several boxes finds all of them. Several peaks in a box find it once, and none of them is false.

    Args:
        boxes: (left, top, right, bottom) in pixels of the map.
    """
    height, x, y = peaks.T[:, :, None]
    left, top, right, bottom = np.array(boxes, float).reshape(-1, 4).T
    inside = (x >= left - grow) & (x <= right + grow) & (y >= top - grow) & (y <= bottom + grow)  # [peaks, boxes]
    highest = np.where(inside, height, -np.inf).max(axis=0, initial=-np.inf)
    return Response(highest, peaks[~inside.any(axis=1), 0], peaks[:, 0])


def recall(responses: Sequence[Response], weights: np.ndarray) -> np.ndarray:
    """`[R, len(RATES)]`: the share of boxes that are found at each of RATES, for each of R ways to weight the maps.

    For each rate, only peaks above a threshold count. All maps have the same threshold: the lowest one that leaves at
    most this many false peaks per map.

    Args:
        weights: `[R, maps]`, how often each map counts.
    """
    boxes, of_box = _flatten([response.boxes for response in responses])
    false, of_false = _flatten([response.false for response in responses])
    order = np.argsort(-false, kind="stable")
    rates = weights[:, of_false[order]].cumsum(axis=1) / weights.sum(axis=1, keepdims=True)  # down to each false peak
    limits, counts = np.append(false[order], -np.inf), weights[:, of_box]
    found = np.empty((len(weights), len(RATES)))
    for column, rate in enumerate(RATES):
        first_too_many = (rates <= rate + 1e-9).sum(axis=1)
        above = boxes > limits[first_too_many, None]
        found[:, column] = (counts * above).sum(axis=1) / counts.sum(axis=1)
    return found


def compare_counts(counted: np.ndarray, boxes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`[R, 2]`: Spearman's correlation of two numbers of lesions per map, and their mean absolute difference.

    Args:
        counted: `[maps]`, lesions that a map shows.
        boxes: `[maps]`, boxes of the label.
        weights: as in `recall`; whole numbers.
    """
    figures = np.empty((len(weights), 2))
    for row, times in zip(figures, weights.astype(int), strict=True):
        one, other = np.repeat(counted, times), np.repeat(boxes, times)
        row[:] = correlate(rankdata(one), rankdata(other)), np.abs(one - other).mean()
    return figures


def _flatten(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The values of all maps, and the map that each is from."""
    return np.concatenate([*parts, []]), np.repeat(np.arange(len(parts)), [len(part) for part in parts])
