"""Bootstrap draws over photos, and the intervals they give."""

from collections.abc import Iterator

import numpy as np

RESAMPLES = 1000


BLOCK = 2**19  # weights of photos in memory at a time, 4 MiB, so that it does not grow with the photos


PERCENTILES = (2.5, 97.5)


def interval(values: np.ndarray) -> list[float] | None:
    """`[low, high]` that hold 95 % of the known `values`, or None when none is known."""
    known = values[~np.isnan(values)]
    return [float(v) for v in np.percentile(known, PERCENTILES)] if len(known) else None


def resample(photos: int, seed: int = 0, times: int = RESAMPLES) -> Iterator[np.ndarray]:
    """`[times, photos]`, some rows at a time: how often each photo is drawn when as many are, with replacement."""
    rng, equal, rows = np.random.default_rng(seed), np.full(photos, 1 / photos), max(1, BLOCK // photos)
    for start in range(0, times, rows):
        yield rng.multinomial(photos, equal, size=min(rows, times - start)).astype(np.float64)
