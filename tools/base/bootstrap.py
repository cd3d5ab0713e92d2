"""The bootstrap over images: resampled counts, and 95 % intervals (Efron and Tibshirani, 1993)."""

from collections.abc import Iterator

import numpy as np

RESAMPLES = 1000
BLOCK = 2**19  # counts in memory at a time (4 MiB), or those of MIN_DRAWS draws if these are more
MIN_DRAWS = 64  # work that is repeated for every block would otherwise grow with the square of the images
PERCENTILES = (2.5, 97.5)


def interval(values: np.ndarray) -> list[float] | None:
    """`[low, high]`, the central 95 % of the `values` that are not NaN, or None when all are NaN."""
    known = values[~np.isnan(values)]
    return [float(v) for v in np.percentile(known, PERCENTILES)] if len(known) else None


def resample(num_images: int, seed: int = 0, times: int = RESAMPLES) -> Iterator[np.ndarray]:
    """Yields blocks of `[times, num_images]`: how often each image is among `num_images` draws with replacement."""
    rng, rows = np.random.default_rng(seed), max(MIN_DRAWS, BLOCK // num_images)
    equal = np.full(num_images, 1 / num_images)
    for start in range(0, times, rows):
        yield rng.multinomial(num_images, equal, size=min(rows, times - start)).astype(np.float64)
