"""Heat maps against lesion boxes, and against the model itself: figures as pure functions on numpy arrays.

A figure over many photos is a mean weighted by how often each photo counts, so a bootstrap draw over photos is the same
formula with other weights.
"""

from collections.abc import Sequence

import numpy as np

from tools.base.bootstrap import interval, resample

# Per heat map. `chance` is the share of the photo that the grown boxes cover: the hit rate of a random peak, and the
# energy of a constant map.
FIGURES = ("pointing", "chance", "energy", "insertion", "deletion", "road", "sanity")


def build_box_mask(boxes: Sequence[tuple[float, float, float, float]], side: int, grow: float) -> np.ndarray:
    """`[side, side]` bool: pixels whose centre lies in one of the boxes, each grown by `grow` on every side.

    Args:
        boxes: (left, top, right, bottom) in pixels.
    """
    centres = np.arange(side) + 0.5
    mask = np.zeros((side, side), bool)
    for left, top, right, bottom in boxes:
        rows = (centres >= top - grow) & (centres <= bottom + grow)
        columns = (centres >= left - grow) & (centres <= right + grow)
        mask |= rows[:, None] & columns
    return mask


def measure_pointing(heat: np.ndarray, mask: np.ndarray) -> tuple[float, float, float]:
    """(1 when the peak lies in the mask, the mask's share of the area, its share of the map's sum).

    The pointing game is Zhang et al., arXiv 1608.00507, section 4.2; energy is Wang et al., arXiv 1910.01279, section
    4.3. For a map of zeros, the first and the last value are 0.
    """
    total = float(heat.sum())
    if total <= 0:
        return 0.0, float(mask.mean()), 0.0
    return float(mask.flat[heat.argmax()]), float(mask.mean()), float(heat[mask].sum()) / total


def correlate(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's correlation of two maps; 0 when one of them is flat."""
    if one.std() == 0 or other.std() == 0:
        return 0.0
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def integrate(values: np.ndarray) -> float:
    """Area under a curve of equidistant values over [0, 1], by the trapezoidal rule."""
    return float((values[1:] + values[:-1]).mean() / 2)


def draw_photos(photos: Sequence[str]) -> np.ndarray:
    """`[R, labels]`: how often each label is in every draw of the bootstrap over photos.

    Args:
        photos: the photo of each label; the labels of a photo are drawn together.
    """
    _, photo = np.unique(photos, return_inverse=True)
    return np.concatenate([weights[:, photo] for weights in resample(int(photo.max()) + 1)])


def summarise_means(values: np.ndarray, draws: np.ndarray) -> dict[str, tuple[float, float, float]]:
    """(mean, low, high) of each of FIGURES that was measured: the 95 % interval comes from a bootstrap over photos.

    Args:
        values: `[labels, len(FIGURES)]`, NaN where a figure was not measured.
        draws: from `draw_photos`.
    """
    summary = {}
    for name, column in zip(FIGURES, values.T, strict=True):
        known = ~np.isnan(column)
        if known.any():
            weight = draws[:, known].sum(axis=1)
            total = draws[:, known] @ column[known]
            drawn = np.divide(total, weight, out=np.full(len(draws), np.nan), where=weight > 0)
            low, high = interval(drawn) or (np.nan, np.nan)
            summary[name] = (float(column[known].mean()), low, high)
    return summary
