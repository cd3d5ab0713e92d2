"""Logits and true labels of photos -> the numbers that are reported. Pure functions on numpy arrays.

A photo with k labels lies in k folders, as k copies. The course project counted copies, each right when the top class
is its folder's: a photo with two labels is then always half wrong, and the best possible score is below 100 %. The
other scores count photos.
"""

import numpy as np
from sklearn.metrics import f1_score

from tools.errors import NumericsError


def probabilities(logits: np.ndarray, targets: str) -> np.ndarray:
    """`[n, C]` logits -> softmax ("single") or sigmoid ("multi") probabilities."""
    logits = logits.astype(np.float64)
    if targets == "multi":
        return 0.5 * (1 + np.tanh(0.5 * logits))  # the sigmoid, without overflow
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def decide(probability: np.ndarray, targets: str, thresholds: np.ndarray | float = 0.5) -> np.ndarray:
    """`[n, C]` bool: which labels a photo is given.

    "single": the most probable one. "multi": all that reach their threshold, and the most probable one when none does,
    because every leaf has a label (healthy is one).
    """
    top = np.eye(probability.shape[1], dtype=bool)[probability.argmax(axis=1)]
    if targets == "single":
        return top
    passed = probability >= thresholds
    return np.where(passed.any(axis=1, keepdims=True), passed, top)


def score(logits: np.ndarray, truth: np.ndarray, targets: str, thresholds: np.ndarray | float = 0.5) -> dict:
    """All scores of a set of photos.

    Args:
        logits: `[n, C]`.
        truth: `[n, C]` bool, at least one label a photo.

    Returns:
        Shares in [0, 1]: `accuracy` (right copies / copies), `ceiling` (the best accuracy possible), `top2` (copies
        whose class is among the two most probable), `hit1` (photos whose top class is a true label), `exact` (photos
        whose decision equals the truth), `macro_f1`; counts `photos`, `copies`; and `per_class`, a list of `right`,
        `copies` and `accuracy` (None for a class without copies), `f1`.

    Raises:
        NumericsError: for NaN or infinity, of which a top class would be an accident.
        ValueError: for shapes that do not match.
    """
    if logits.shape != truth.shape or not len(truth):
        raise ValueError(f"logits {logits.shape} and truth {truth.shape} must be equal and not empty")
    if not np.isfinite(logits).all():
        row = int(np.flatnonzero(~np.isfinite(logits).all(axis=1))[0])
        raise NumericsError(
            f"the model's output for photo {row + 1} of {len(logits)} is not finite; nothing was scored"
        )
    truth = truth.astype(bool)
    order = np.argsort(-logits, axis=1, kind="stable")
    first, second = order[:, 0], order[:, 1]
    decision = decide(probabilities(logits, targets), targets, thresholds)
    rows = np.arange(len(truth))
    classes = np.arange(truth.shape[1])
    right = ((first[:, None] == classes) & truth).sum(axis=0)
    copies = truth.sum(axis=0)
    hit = truth[rows, first]
    f1 = f1_score(truth, decision, average=None, labels=classes, zero_division=0)
    return {
        "photos": len(truth),
        "copies": int(copies.sum()),
        "accuracy": float(right.sum() / copies.sum()),
        "ceiling": float(len(truth) / copies.sum()),
        "top2": float((hit.sum() + truth[rows, second].sum()) / copies.sum()),
        "hit1": float(hit.mean()),
        "exact": float((decision == truth).all(axis=1).mean()),
        "macro_f1": float(f1.mean()),
        "per_class": [
            {"right": int(r), "copies": int(n), "accuracy": float(r / n) if n else None, "f1": float(f)}
            for r, n, f in zip(right, copies, f1, strict=True)
        ],
    }
