"""What a difference between arms of a study is worth, from runs with several seeds that are scored on the same photos.

A figure differs between two arms by chance for two reasons: other photos, and other seeds. The photos' part comes from
the bootstrap, on the same draws for both arms. Two or three seeds cannot be resampled: the variance of a bootstrap over
them is too small by the factor (R - 1) / R, and it knows no tails. So the seeds' part is a variance component (Searle,
Casella and McCulloch, Variance Components, 1992), measured on all arms together, with a t-quantile.

Letters in shape comments: R runs of an arm (seeds, or seeds and folds), B bootstrap draws.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

LEVEL = 0.05
MOST_SEEDS = 100  # that a verdict recommends
_MOST_DF = 1e6


class Spread(NamedTuple):
    """How a figure varies between the runs of an arm, on the same photos; variances."""

    total: float  # of a run's figure
    photos: float  # the part of it that other photos would average out: runs differ in single photos by chance
    df: int  # degrees of freedom of `total`; 0 when no arm has two runs


class Comparison(NamedTuple):
    """An arm against the baseline, in the unit of the figures.

    Attributes:
        low, high: the central 95 %; with one run per arm, of the photos' part alone.
        p: two-sided, before and after Holm's correction; None with one run per arm.
        more: runs per arm that would have to be added for this difference to be found; None for more than `MOST_SEEDS`.
    """

    difference: float
    low: float
    high: float
    p: float | None
    p_holm: float | None
    more: int | None


def compare_with_first(
    values: Sequence[np.ndarray], draws: Sequence[np.ndarray], smallest: float = 1e-9
) -> list[Comparison]:
    """Each arm but the first against the first.

    Args:
        values: one `[R]` per arm, the figure of each of its runs.
        draws: one `[R, B]` per arm, the same figure on bootstrap draws of the photos, which are the same for all runs.
        smallest: standard error that a difference has at least, e.g. that of one photo.
    """
    spread = estimate_spread(values, draws)
    found = []
    for runs, drawn in zip(values[1:], draws[1:], strict=True):
        difference = float(runs.mean() - values[0].mean())
        photos = max(float((drawn.mean(axis=0) - draws[0].mean(axis=0)).var()), smallest**2)
        share = 1 / len(runs) + 1 / len(values[0])
        pure = max(photos - share * spread.photos, 0.0)  # what no number of seeds averages out
        error, df = _error(pure, share, spread)
        half = _quantile(LEVEL, df) * error
        p = 2 * float(stdtr(df, -abs(difference) / error)) if spread.df else None
        most = max(len(runs), len(values[0]))
        more = _runs_needed(abs(difference), pure, spread, len(values), most) if spread.df else None
        found.append(Comparison(difference, difference - half, difference + half, p, None, more))
    adjusted = iter(holm([each.p for each in found if each.p is not None]))
    return [each if each.p is None else each._replace(p_holm=next(adjusted)) for each in found]


def estimate_spread(values: Sequence[np.ndarray], draws: Sequence[np.ndarray]) -> Spread:
    """The spread between runs, pooled over all arms; `values` and `draws` as in `compare_with_first`."""
    df = sum(len(runs) - 1 for runs in values)
    if not df:
        return Spread(0.0, 0.0, 0)
    total = sum(float(((runs - runs.mean()) ** 2).sum()) for runs in values) / df
    photos = sum(float((drawn - drawn.mean(axis=0)).var(axis=1).sum()) for drawn in draws) / df
    return Spread(total, photos, df)


def holm(values: Sequence[float]) -> list[float]:
    """p-values after Holm's correction (1979): k of them are all right with 95 % when those up to 0.05 are believed."""
    order = np.argsort(values)
    factors = np.arange(len(values), 0, -1)
    adjusted = np.minimum(1, np.maximum.accumulate(np.asarray(values, float)[order] * factors))
    return [float(adjusted[place]) for place in np.argsort(order)]


def _error(pure: float, share: float, spread: Spread) -> tuple[float, float]:
    """(standard error of a difference, its degrees of freedom).

    Args:
        pure: the variance of the difference over photos, between runs without any chance of their own.
        share: the sum of 1 / R over both arms.
    """
    variance = pure + share * max(spread.total, spread.photos)
    uncertain = share * spread.total
    # Satterthwaite (1946) squares the ratio; with two arms of two seeds, that calls up to 5.4 % of equal arms different
    df = spread.df * variance / uncertain if uncertain else _MOST_DF
    return variance**0.5, min(df, _MOST_DF)


def _quantile(level: float, df: float) -> float:
    """The t-quantile that is exceeded on both sides together with probability `level`."""
    return float(stdtrit(df, 1 - level / 2))


def _runs_needed(difference: float, pure: float, spread: Spread, num_arms: int, num_runs: int) -> int | None:
    """How many runs per arm, added to `num_runs`, make the half width smaller than the difference.

    All comparisons of the study are allowed for, so that Holm's correction is passed as well.
    """
    for count in range(num_runs + 1, num_runs + 1 + MOST_SEEDS):
        later = spread._replace(df=num_arms * (count - 1))
        error, df = _error(pure, 2 / count, later)
        if _quantile(LEVEL / (num_arms - 1), df) * error < difference:
            return count - num_runs
    return None
