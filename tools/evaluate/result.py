"""The evaluation of a rule on one split: its answers, the figures with their intervals, and their rows for tables."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tools.evaluate.calibration import abstention, cross_fitted
from tools.evaluate.metrics import OVERALL, PER_CLASS, by_combination, calibration_error, confusion, intervals, score
from tools.evaluate.rule import Answers, DecisionRule


@dataclass(frozen=True)
class EvalResult(Answers):
    """A rule's answers for n photos, and how good they are.

    Attributes:
        targets: "single" or "multi".
        raw: `[n, C]`, the probabilities before calibration.
        truth: `[n, C]` bool.
        scores, bounds: what `tools.evaluate.metrics.score` and `intervals` return.
        cross_fitted: whether each half was answered by a rule fitted on the other half.
    """

    targets: str
    raw: np.ndarray
    truth: np.ndarray
    scores: dict
    bounds: dict
    cross_fitted: bool

    @property
    def right(self) -> np.ndarray:
        """`[n]` bool: whether the decision equals the truth."""
        return (self.decision == self.truth).all(axis=1)

    def confusion(self) -> np.ndarray:
        """`tools.evaluate.metrics.confusion` of these decisions."""
        return confusion(self.probability, self.decision, self.truth, self.targets)

    def calibration(self) -> dict:
        """Calibration error before and after calibration, overall and per class."""
        errors: dict = {}
        for key, values in (("before", self.raw), ("after", self.probability)):
            errors[key] = float(calibration_error(values, self.truth)[0])
            errors[f"{key}_per_class"] = [
                float(calibration_error(values[:, [c]], self.truth[:, [c]])[0]) for c in range(values.shape[1])
            ]
        return errors

    def abstaining(self, risk: float, cut: float) -> dict:
        """Coverage and error when only photos of confidence `cut` or more are answered; `cut` was chosen for `risk`."""
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
    """The evaluation of a fitted rule on `[n, C]` logits against `[n, C]` bool truth.

    Args:
        tuned_here: the rule was fitted on these same photos, so it must be cross-fitted here.
    """
    answers = cross_fitted(rule, logits, truth) if tuned_here else rule.answer(logits)
    scores, bounds = figures_of(answers.probability, answers.decision, truth)
    return EvalResult(
        **vars(answers),
        targets=rule.targets,
        raw=rule.unfit().probabilities(logits),
        truth=truth,
        scores=scores,
        bounds=bounds,
        cross_fitted=tuned_here,
    )


def figures_of(probability: np.ndarray, decision: np.ndarray, truth: np.ndarray) -> tuple[dict, dict]:
    """(scores, bounds) of an `EvalResult`."""
    return score(probability, decision, truth), intervals(probability, decision, truth)


def confidence_cut(rule: DecisionRule, validation: tuple[np.ndarray, np.ndarray], risk: float) -> float:
    """The lowest confidence to answer at, so that at most a share `risk` of the answers was wrong in validation."""
    logits, truth = validation
    answers = cross_fitted(rule, logits, truth)
    return abstention(answers.confidence, (answers.decision == truth).all(axis=1), risk)


def overall_rows(scores: dict, limits: dict, keys: Iterable[str] = OVERALL) -> list[tuple[str, str, str, str]]:
    """(name, value, 95 % interval, remark) per overall figure, in percent."""
    remarks = {
        "accuracy": f"at most {100 * scores['ceiling']:.2f}: a photo with two labels is two copies",
        "hamming": f"predicting nothing at all scores {100 * scores['hamming_of_nothing']:.2f}",
    }
    return [(OVERALL[key].title, percent(scores[key]), bounds(limits[key]), remarks.get(key, "")) for key in keys]


def overall_lines(scores: dict, limits: dict, keys: Iterable[str] = OVERALL) -> list[str]:
    """`overall_rows` as printed lines."""
    rows = overall_rows(scores, limits, keys)
    return [f"  {name:<24} {value:>6} {interval:<14} {remark}".rstrip() for name, value, interval, remark in rows]


def class_rows(scores: dict, limits: dict, labels: Sequence[str], keys: Iterable[str] = PER_CLASS) -> list[tuple]:
    """(label, number of photos, then each of `keys` with its interval) per class, in percent."""
    return [
        (label, entry["n"], *(f"{percent(entry[key])} {bounds(limit[key])}".strip() for key in keys))
        for label, entry, limit in zip(labels, scores["per_class"], limits["per_class"], strict=True)
    ]


def percent(share: float | None) -> str:
    """`87.33`, or a dash for an unknown value."""
    return "-" if share is None else f"{100 * share:.2f}"


def bounds(interval: Sequence[float] | None) -> str:
    """`[84.7, 89.8]`, or the empty string for an unknown interval."""
    return "" if interval is None else "[{:.1f}, {:.1f}]".format(*(100 * v for v in interval))


def signed(points: float, limits: Sequence[float], digits: int = 2) -> str:
    """A difference in points with its interval, `+1.33 [+0.17, +2.50]`."""
    low, high = limits
    return f"{points:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
