"""The reported figures, from probabilities, decisions and true labels: pure functions on numpy arrays.

A photo with k labels is k files, one per class folder: its label copies. The course project's accuracy counts copies;
a copy is right when the most probable class is its folder's. At most one of a photo's copies can be right, so the best
possible score is below 100 %. The other figures count photos.

Letters in shape comments: n photos, C classes, R weightings. Every figure is a function of how often each photo counts:
weights of 1 give the figure itself, and R draws with replacement give its bootstrap interval by the same formula.
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tools.base.bootstrap import ROUNDING, interval, resample
from tools.base.errors import NumericsError

ECE_BINS = 10


class Counts:
    """The counts behind all metrics, under R weightings; `weights` `[R, n]` says how often each photo counts."""

    def __init__(self, probability: np.ndarray, decision: np.ndarray, truth: np.ndarray, weights: np.ndarray):
        self.weights = weights
        self.same = decision == truth  # [n, C]
        self.f1_per_photo = _share(2 * (decision & truth).sum(axis=1), decision.sum(axis=1) + truth.sum(axis=1), 0)
        first, second = np.argsort(-probability, axis=1, kind="stable")[:, :2].T
        self.hit, self.near = (truth[np.arange(len(truth)), place].astype(float) for place in (first, second))  # [n]
        top = np.eye(truth.shape[1], dtype=bool)[first]
        self.copies, self.right = weights @ truth, weights @ (truth & top)  # [R, C], like the next ones
        self.given, self.both = weights @ decision, weights @ (decision & truth)
        known = np.where(self.copies > 0, 1.0, np.nan)  # means over classes leave out a class without photos
        self.precision = known * _share(self.both, self.given, 0)
        self.recall = _share(self.both, self.copies)
        self.f1 = known * _share(2 * self.both, self.given + self.copies)
        ranked = [_ranking(probability[:, c], truth[:, c], weights) for c in range(truth.shape[1])]
        self.ap, self.auc = (np.stack(columns, axis=1) for columns in zip(*ranked, strict=True))
        self.all_copies = self.copies.sum(axis=1)  # [R]
        self.ece, self.ece_noise = (calibration_error(probability, truth, each) for each in (weights, weights - 1))

    def mean(self, values: np.ndarray) -> np.ndarray:
        """The weighted means `[R]` of `[n]` values of photos."""
        return _share(self.weights @ values, self.weights.sum(axis=1))


class Metric(NamedTuple):
    """A metric's printed name, its formula, and whether it ranks, i.e. needs probabilities and not only decisions.

    To add a metric, add a row to `OVERALL` or `PER_CLASS`. The formula gives `[R]`, or `[R, C]` per class.
    """

    title: str
    formula: Callable[[Counts], np.ndarray]
    ranks: bool = False


OVERALL = {  # in the printed order, the most important first
    "exact": Metric("exact match", lambda c: c.mean(c.same.all(axis=1))),
    "hit1": Metric("hit@1", lambda c: c.mean(c.hit), ranks=True),
    "accuracy": Metric("copies accuracy", lambda c: _share(c.right.sum(axis=1), c.all_copies), ranks=True),
    "macro_f1": Metric("macro-F1", lambda c: _mean_of_known(c.f1)),
    "micro_f1": Metric("micro-F1", lambda c: _share(2 * c.both.sum(axis=1), c.given.sum(axis=1) + c.all_copies, 0)),
    "samples_f1": Metric("samples-F1", lambda c: c.mean(c.f1_per_photo)),
    "macro_precision": Metric("macro precision", lambda c: _mean_of_known(c.precision)),
    "macro_recall": Metric("macro recall", lambda c: _mean_of_known(c.recall)),
    "mean_ap": Metric("mean average precision", lambda c: _mean_of_known(c.ap), ranks=True),
    "mean_auc": Metric("mean ROC AUC", lambda c: _mean_of_known(c.auc), ranks=True),
    "hamming": Metric("Hamming accuracy", lambda c: c.mean(c.same.mean(axis=1))),
    "top2": Metric("copies in the top two", lambda c: _share(c.weights @ (c.hit + c.near), c.all_copies), ranks=True),
    "ece": Metric("calibration error (ECE)", lambda c: c.ece, ranks=True),
}
PER_CLASS = {
    "accuracy": Metric("label copies right", lambda c: _share(c.right, c.copies), ranks=True),
    "precision": Metric("precision", lambda c: c.precision),
    "recall": Metric("recall", lambda c: c.recall),
    "f1": Metric("F1", lambda c: c.f1),
    "ap": Metric("average precision", lambda c: c.ap, ranks=True),
    "auc": Metric("ROC AUC", lambda c: c.auc, ranks=True),
}


def score(probability: np.ndarray, decision: np.ndarray, truth: np.ndarray) -> dict:
    """All figures of a set of photos.

    Args:
        probability: `[n, C]`, in [0, 1].
        decision: `[n, C]` bool, the labels that each photo is given.
        truth: `[n, C]` bool, at least one label per photo.

    Returns:
        Shares in [0, 1], one for each name in `OVERALL`: `accuracy` (right copies / copies), `top2` (copies whose class
        is among the two most probable), `hit1` (photos whose top class is a true label), `exact` (photos whose decision
        equals the truth), `hamming` (right photo-label pairs), F1 averaged over classes, pairs and photos, and so on;
        `ceiling` (the best accuracy possible) and `hamming_of_nothing` (Hamming when no label is ever given); counts
        `photos` and `copies`; and `per_class`, a list with `n`, `right` and the names of `PER_CLASS`, None where a
        class has no photos (or, for `auc`, no others). Means over classes leave out a class without photos.

    Raises:
        NumericsError: for NaN or infinity, whose argmax is meaningless.
        ValueError: for shapes that do not match.
    """
    if probability.shape != truth.shape or not len(truth):
        raise ValueError(f"probabilities {probability.shape} and truth {truth.shape} must be equal and not empty")
    bad = np.flatnonzero(~np.isfinite(probability).all(axis=1))
    if len(bad):
        raise NumericsError(
            f"the model's output for photo {bad[0] + 1} of {len(probability)} is not finite; nothing was scored"
        )
    counts = Counts(probability, decision, truth, np.ones((1, len(truth))))
    per_class = {key: metric.formula(counts)[0] for key, metric in PER_CLASS.items()}
    copies, right = counts.copies[0], counts.right[0]
    return {
        "photos": len(truth),
        "copies": int(copies.sum()),
        "ceiling": float(len(truth) / copies.sum()),
        "hamming_of_nothing": float(1 - truth.mean()),
        **{key: _plain(metric.formula(counts)[0]) for key, metric in OVERALL.items()},
        "per_class": [
            {"n": int(copies[c]), "right": int(right[c])} | {key: _plain(of[c]) for key, of in per_class.items()}
            for c in range(truth.shape[1])
        ],
    }


def intervals(probability: np.ndarray, decision: np.ndarray, truth: np.ndarray) -> dict:
    """95 % intervals by bootstrap over photos: the names of `OVERALL`, and `per_class`, each `[low, high]` or None.

    The calibration error is a sum of absolute values, so sampling noise makes it larger: once in the photos, and again
    in each draw. Percentiles of the draws would lie above the true value. The lower bound is therefore the measured
    error minus the 97.5 % quantile of the error that noise alone causes (triangle inequality).
    """
    figures = measure_draws(probability, decision, truth)
    point = measure(Counts(probability, decision, truth, np.ones((1, len(truth)))))
    bounds = {key: interval(figures[key], point[key][0], len(truth)) for key in OVERALL}
    error, chance = float(calibration_error(probability, truth)[0]), np.quantile(figures["ece_noise"], 0.975)
    low, high = max(0.0, error - float(chance)), max(error, float(np.quantile(figures["ece"], 0.975)))
    if high - low > ROUNDING:  # else the photos are all alike
        bounds["ece"] = [low, high]
    per_class = [
        {key: interval(figures[f"class_{key}"][:, c], point[f"class_{key}"][0, c], num_photos) for key in PER_CLASS}
        for c, num_photos in enumerate(truth.sum(axis=0).tolist())
    ]
    return {**bounds, "per_class": per_class}


def measure_draws(probability: np.ndarray, decision: np.ndarray, truth: np.ndarray) -> dict:
    """`measure` for the `RESAMPLES` bootstrap draws, which are the same for the same number of photos."""
    parts = [measure(Counts(probability, decision, truth, weights)) for weights in resample(len(truth))]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def measure(counts: Counts) -> dict[str, np.ndarray]:
    """Every metric under each weighting: `[R]`, and `[R, C]` for names that begin with `class_`."""
    return {
        **{key: metric.formula(counts) for key, metric in OVERALL.items()},
        **{f"class_{key}": metric.formula(counts) for key, metric in PER_CLASS.items()},
        "ece_noise": counts.ece_noise,
    }


def calibration_error(probability: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Expected calibration error `[R]`: class-wise, then averaged (Kull et al., arXiv 1910.12656, section 2).

    Over `ECE_BINS` equal bins: |mean probability - share of photos that have the label|, weighted by the bin's size.

    Args:
        weights: `[R, n]`, how often each photo counts. With 1 subtracted, the result is the noise of a draw alone.
    """
    weights = np.ones((1, len(truth))) if weights is None else weights
    bins = np.minimum((probability * ECE_BINS).astype(int), ECE_BINS - 1)  # [n, C]
    gap = probability - truth
    error = np.zeros(len(weights))
    for b in range(ECE_BINS):
        error += np.abs(weights @ (gap * (bins == b))).sum(axis=1)  # |sum of (p - y)| = size x |mean p - share|
    return error / truth.size


def confusion(probability: np.ndarray, decision: np.ndarray, truth: np.ndarray, targets: str) -> np.ndarray:
    """The confusion matrix, `[C, C]` counts; rows are the truth.

    "single": label copies by true and most probable class. "multi": on the diagonal, photos whose label was found; off
    it, photos where the row's label was missed and the column's label was wrongly given.
    """
    if targets == "single":
        rows, classes = np.nonzero(truth)
        matrix = np.zeros((truth.shape[1],) * 2, int)
        np.add.at(matrix, (classes, probability.argmax(axis=1)[rows]), 1)
        return matrix
    missed, wrong = (truth & ~decision).astype(int), (decision & ~truth).astype(int)
    return missed.T @ wrong + np.diag((truth & decision).sum(axis=0))


def by_combination(decision: np.ndarray, truth: np.ndarray) -> list[tuple[tuple[int, ...], int, int]]:
    """(true label set, number of photos, number decided exactly right), the most frequent set first."""
    sets = [tuple(np.flatnonzero(row).tolist()) for row in truth]
    exact = (decision == truth).all(axis=1)
    photos, right = Counter(sets), Counter(s for s, good in zip(sets, exact, strict=True) if good)
    return [(labels, photos[labels], right[labels]) for labels in sorted(photos, key=lambda s: (-photos[s], s))]


def _ranking(probability: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(average precision, area under the ROC curve) of one class, each `[R]`; equal probabilities share one rank.

    NaN where no photo has the label (or, for the area, all have it).
    """
    order = np.argsort(-probability, kind="stable")
    starts = np.flatnonzero(np.diff(probability[order], prepend=np.inf))  # of each group of equal probabilities
    held = np.logical_or.reduceat(truth[order], starts)  # groups with a photo that has the label
    kept = held | np.append(True, held[:-1])  # groups without one that follow each other are counted together
    drawn = weights[:, order]
    every, positive = (np.add.reduceat(part, starts[kept], axis=1) for part in (drawn, drawn * truth[order]))
    found, seen = positive.cumsum(axis=1), every.cumsum(axis=1)  # down to each probability
    precision = np.zeros((len(weights), len(starts)))  # of all groups: the rounding of the sum depends on their number
    precision[:, kept] = positive * _share(found, seen, 0)
    ap = _share(precision.sum(axis=1), found[:, -1])
    # a pair (with the label, without it) is right when the first is more probable, half right when they tie
    pairs = ((every - positive) * (found - positive / 2)).sum(axis=1)
    return ap, _share(pairs, found[:, -1] * (seen - found)[:, -1])


def _share(part: np.ndarray, whole: np.ndarray, empty: float = np.nan) -> np.ndarray:
    """part / whole, or `empty` where the whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(part), float(empty)), where=whole > 0)


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis, ignoring NaN; NaN where all values are."""
    known = ~np.isnan(values)
    return _share(np.where(known, values, 0).sum(axis=-1), known.sum(axis=-1))


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
