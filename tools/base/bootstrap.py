"""The bootstrap over images: resampled counts, and 95 % intervals (Efron and Tibshirani, 1993)."""

from collections.abc import Iterator

import numpy as np

RESAMPLES = 1000
BLOCK = 2**19  # counts in memory at a time (4 MiB), or those of MIN_DRAWS draws if these are more
MIN_DRAWS = 64  # work that is repeated for every block would otherwise grow with the square of the images
PERCENTILES = (2.5, 97.5)
ROUNDING = 1e-9  # values that differ by less are equal


def interval(
    values: np.ndarray, figure: float | None = None, num_images: int = 0, span: tuple[float, float] = (0.0, 1.0)
) -> list[float] | None:
    """`[low, high]`, the central 95 % of the `values` that are not NaN, or None when all are NaN.

    Draws from few images need two corrections, which are made where `figure`, the value of the images themselves, is
    given. Images that are all alike have no spread: the interval then holds every mean that is possible when at least a
    share of 0.025^(1 / num_images) of all images is like them (Clopper and Pearson, 1934) and the others have any value
    in `span`. A mean over classes is biased, because a draw lacks a third of the images, and with them rare classes:
    an interval that does not hold the figure is moved by the mean difference between draws and figure.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    low, high = np.percentile(known, PERCENTILES)
    if figure is not None and high - low < ROUNDING:
        alike = (PERCENTILES[0] / 100) ** (1 / num_images)
        low, high = (alike * low + (1 - alike) * end for end in span)
    elif figure is not None and not low - ROUNDING <= figure <= high + ROUNDING:
        low, high = (np.array([low, high]) + figure - known.mean()).clip(*span)
    return [float(low), float(high)]


def resample(num_images: int, seed: int = 0, times: int = RESAMPLES) -> Iterator[np.ndarray]:
    """Yields blocks of `[times, num_images]`: how often each image is among `num_images` draws with replacement."""
    rng, rows = np.random.default_rng(seed), max(MIN_DRAWS, BLOCK // num_images)
    equal = np.full(num_images, 1 / num_images)
    for start in range(0, times, rows):
        yield rng.multinomial(num_images, equal, size=min(rows, times - start)).astype(np.float64)
