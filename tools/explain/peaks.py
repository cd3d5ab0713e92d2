"""Peaks of heat maps: the places that are ringed, counted, and scored against boxes."""

import numpy as np
from skimage.feature import peak_local_max

RINGED = 0.2  # height from which a peak counts as a lesion; docs/heatmaps.md


def find_peaks(
    heat: np.ndarray, distance: float, shown: tuple[slice, slice] = (slice(None), slice(None))
) -> np.ndarray:
    """`[n, 3]`: height, x and y of every peak of a map `[H, W]`, the highest first; x and y are in pixels of the map.

    A peak is a positive place that is the highest within `distance` pixels along both axes.

    Args:
        shown: rows and columns in which peaks are looked for.
    """
    part, (top, left) = heat[shown], (rows_or_columns.start or 0 for rows_or_columns in shown)
    places = peak_local_max(part, min_distance=max(1, round(distance)), threshold_abs=0, exclude_border=False)
    rows, columns = places.T
    return np.stack([part[rows, columns], left + columns + 0.5, top + rows + 0.5], axis=1)


def find_lesions(heat: np.ndarray, distance: float) -> np.ndarray:
    """The peaks of a map that count as lesions, as `find_peaks` gives them."""
    peaks = find_peaks(heat, distance)
    return peaks[peaks[:, 0] >= RINGED]


def count_in_words(count: int, default: bool) -> str:
    """How many lesions a map shows.

    In about four of five photos, there were between half and twice as many as default maps showed (docs/heatmaps.md);
    of other maps, this is not known.

    Args:
        default: whether method, layers, sizes and views are those that are chosen by default.
    """
    if not count:
        return "no lesions found"
    plural = "s" if count > 1 else ""
    return f"{count} lesion{plural}, probably {-(-count // 2)} to {2 * count}" if default else f"{count} place{plural}"
