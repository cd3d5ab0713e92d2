"""Everything that is said of one pass over a split: probabilities, decisions, figures with their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tools.evaluate.calibration import abstention, cross_fitted
from tools.evaluate.metrics import PER_CLASS, by_combination, calibration_error, confusion, intervals, score
from tools.evaluate.rule import DecisionRule

DECISION_FIGURES = (
    *("exact", "macro_f1", "micro_f1", "samples_f1", "macro_precision", "macro_recall", "hamming"),
    *("precision", "recall", "f1"),
)  # what can be said without probabilities


# How the overall figures are called in print, in the order of importance.
TITLES = {
    "exact": "exact match",
    "hit1": "hit@1",
    "accuracy": "copies accuracy",
    "macro_f1": "macro-F1",
    "micro_f1": "micro-F1",
    "samples_f1": "samples-F1",
    "macro_precision": "macro precision",
    "macro_recall": "macro recall",
    "mean_ap": "mean average precision",
    "mean_auc": "mean ROC AUC",
    "hamming": "Hamming accuracy",
    "top2": "copies in the top two",
    "ece": "calibration error (ECE)",
}


@dataclass(frozen=True)
class EvalResult:
    """What a rule makes of n photos, and how good that is.

    Attributes:
        raw, probability: `[n, C]`, before and after calibration.
        decision, truth: `[n, C]` bool.
        confidence: `[n]`, the probability that a decision is right.
        scores, bounds: of `tools.evaluate.metrics.score` and `intervals`.
        cross_fitted: whether each half was judged by what the other half says.
    """

    targets: str
    raw: np.ndarray
    probability: np.ndarray
    decision: np.ndarray
    truth: np.ndarray
    confidence: np.ndarray
    scores: dict
    bounds: dict
    cross_fitted: bool

    @property
    def right(self) -> np.ndarray:
        """`[n]` bool: decided exactly so."""
        return (self.decision == self.truth).all(axis=1)

    def confusion(self) -> np.ndarray:
        """`tools.evaluate.metrics.confusion` of these decisions."""
        return confusion(self.probability, self.decision, self.truth, self.targets)

    def calibration(self) -> dict:
        """Calibration error before and after, overall and class by class."""
        pair = {"before": self.raw, "after": self.probability}
        errors = {key: float(calibration_error(values, self.truth)[0]) for key, values in pair.items()}
        for key, values in pair.items():
            errors[f"{key}_per_class"] = [
                float(calibration_error(values[:, [c]], self.truth[:, [c]])[0]) for c in range(values.shape[1])
            ]
        return errors

    def abstaining(self, risk: float, cut: float) -> dict:
        """What comes of answering only photos of at least confidence `cut`, which was chosen for an error of `risk`."""
        answered = self.confidence >= cut
        return {
            "risk": risk,
            "cut": cut if np.isfinite(cut) else None,
            "coverage": float(answered.mean()),
            "error": float((~self.right[answered]).mean()) if answered.any() else None,
        }

    def to_dict(self, labels: Sequence[str]) -> dict:
        """Plain values for metrics.json."""
        return {
            **self.scores,
            "intervals": self.bounds,
            "cross_fitted": self.cross_fitted,
            "calibration": self.calibration(),
            "confusion": self.confusion().tolist(),
            "combinations": [
                {"labels": [labels[c] for c in classes], "photos": photos, "exact": right}
                for classes, photos, right in by_combination(self.decision, self.truth)
            ],
        }


def evaluate(rule: DecisionRule, logits: np.ndarray, truth: np.ndarray, tuned_here: bool = False) -> EvalResult:
    """Applies a fitted rule to `[n, C]` logits and scores it against `[n, C]` bool truth.

    Args:
        tuned_here: these are the photos the rule was fitted on, so it is fitted and applied crosswise.
    """
    if tuned_here:
        probability, decision, confidence = cross_fitted(rule, logits, truth)
    else:
        probability = rule.probabilities(logits)
        decision = rule.decide(probability)
        confidence = rule.confidence(probability, decision)
    return EvalResult(
        targets=rule.targets,
        raw=rule.unfit().probabilities(logits),
        probability=probability,
        decision=decision,
        truth=truth,
        confidence=confidence,
        **figures_of(probability, decision, truth),
        cross_fitted=tuned_here,
    )


def figures_of(probability: np.ndarray, decision: np.ndarray, truth: np.ndarray) -> dict[str, dict]:
    """The `scores` and `bounds` of a `EvalResult`."""
    return {"scores": score(probability, decision, truth), "bounds": intervals(probability, decision, truth)}


def confidence_cut(rule: DecisionRule, validation: tuple[np.ndarray, np.ndarray], risk: float) -> float:
    """The confidence from which on answers are given, so that at most `risk` of them were wrong in validation."""
    logits, truth = validation
    _, decision, confidence = cross_fitted(rule, logits, truth)
    return abstention(confidence, (decision == truth).all(axis=1), risk)


def overall_rows(scores: dict, limits: dict, keys: Sequence[str] = tuple(TITLES)) -> list[tuple[str, str, str, str]]:
    """(name, value, 95 % interval, remark) of overall figures, in per cent."""
    remarks = {
        "accuracy": f"at most {100 * scores['ceiling']:.2f}: a photo with two labels is two copies",
        "hamming": f"predicting nothing at all scores {100 * scores['hamming_of_nothing']:.2f}",
    }
    return [
        (title, percent(scores[key]), bounds(limits[key]), remarks.get(key, ""))
        for key, title in TITLES.items()
        if key in keys
    ]


def class_rows(
    scores: dict, limits: dict, labels: Sequence[str], keys: Sequence[str] = PER_CLASS
) -> list[tuple[object, ...]]:
    """(label, photos, then each of `keys` with its interval) for every class, in per cent."""
    return [
        (label, entry["n"], *(f"{percent(entry[key])} {bounds(limit[key])}".strip() for key in keys))
        for label, entry, limit in zip(labels, scores["per_class"], limits["per_class"], strict=True)
    ]


def percent(share: float | None) -> str:
    """`87.33`, or a dash for what is not known."""
    return "-" if share is None else f"{100 * share:.2f}"


def bounds(interval: Sequence[float] | None) -> str:
    """`[84.7, 89.8]`, or nothing."""
    return "" if interval is None else "[{:.1f}, {:.1f}]".format(*(100 * v for v in interval))
