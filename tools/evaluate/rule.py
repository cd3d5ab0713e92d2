"""From logits to calibrated probabilities and labels: one rule, fitted on validation photos and kept in the checkpoint.

Nothing here may see the photos that are scored. Where the validation photos themselves are scored, `cross_fitted` fits
the rule on one half and applies it to the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class DecisionRule:
    """How logits become probabilities and probabilities become labels.

    Attributes:
        targets: "single" (softmax, one label a photo) or "multi" (sigmoid, at least one).
        how: of "multi": "threshold" (every label that reaches its threshold, or the most probable one when none does,
            because every leaf has a label), "argmax" (the most probable one), "combination" (the likeliest of
            `combinations`, labels taken as independent), "powerset" (the likeliest by `powerset`, which has learned
            how labels go together; the same as "combination" until it is fitted).
        temperatures: `[C]`, logits are divided by them; all equal for "single" (Guo et al., arXiv 1706.04599).
        thresholds: `[C]`.
        combinations: `[K, C]` bool, the label sets seen in training.
        powerset: what tells label sets apart by the logits of all labels together; None before it is fitted.
        healthy: index of the label that excludes all others, or None.
    """

    targets: str
    how: str
    temperatures: np.ndarray
    thresholds: np.ndarray
    combinations: np.ndarray
    healthy: int | None = None
    powerset: "Powerset | None" = None

    @classmethod
    def unfitted(cls, targets: str, how: str, combinations: Sequence[Sequence[int]], num_classes: int, healthy=None):
        """Temperatures of 1 and thresholds of 0.5. `combinations` holds class indices."""
        sets = np.zeros((len(combinations), num_classes), bool)
        for row, labels in enumerate(combinations):
            sets[row, list(labels)] = True
        return cls(targets, how, np.ones(num_classes), np.full(num_classes, 0.5), sets, healthy)

    def unfit(self) -> "DecisionRule":
        """The rule with nothing chosen yet."""
        ones, halves = np.ones_like(self.temperatures), np.full_like(self.thresholds, 0.5)
        return replace(self, temperatures=ones, thresholds=halves, powerset=None)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """`[n, C]` logits -> softmax ("single") or sigmoid ("multi") of the tempered logits."""
        tempered = logits.astype(np.float64) / self.temperatures
        return _sigmoid(tempered) if self.targets == "multi" else _softmax(tempered)

    def decide(self, probability: np.ndarray) -> np.ndarray:
        """`[n, C]` bool: the labels each photo is given, at least one, and never `healthy` beside a disease."""
        top = np.eye(probability.shape[1], dtype=bool)[probability.argmax(axis=1)]
        if self.targets == "single" or self.how == "argmax":
            return top
        if self.how == "powerset" and self.powerset is not None:
            return self.powerset.sets[self.powerset.probabilities(probability).argmax(axis=1)]
        if self.how in ("combination", "powerset") and len(self.combinations):
            p = probability.clip(1e-9, 1 - 1e-9)
            likelihood = np.log(p) @ self.combinations.T + np.log1p(-p) @ ~self.combinations.T  # [n, K]
            return self.combinations[likelihood.argmax(axis=1)]
        passed = probability >= self.thresholds
        decision = np.where(passed.any(axis=1, keepdims=True), passed, top)
        return decision if self.healthy is None else _one_kind(decision, top, self.healthy)

    def confidence(self, probability: np.ndarray, decision: np.ndarray) -> np.ndarray:
        """`[n]`: the probability that all labels are as decided; taken as independent unless a powerset is fitted."""
        if self.targets == "single":
            return probability.max(axis=1)
        if self.how == "powerset" and self.powerset is not None:
            decided = (self.powerset.sets[None] == decision[:, None]).all(axis=2)  # [n, K], at most one of each row
            return (self.powerset.probabilities(probability) * decided).sum(axis=1)
        return np.where(decision, probability, 1 - probability).prod(axis=1)


@dataclass(frozen=True)
class Powerset:
    """A logistic regression from the calibrated probabilities of all labels to label sets (a "label powerset").

    Labels are not independent, and annotators have habits: a photo that looks like `complex` and half like something
    else is called `complex` alone far more often than the product of the two probabilities says.

    Attributes:
        sets: `[K, C]` bool, the label sets of the photos it was fitted on.
        weight: `[K, C]`, of the logits of the probabilities.
        bias: `[K]`.
    """

    sets: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    def probabilities(self, probability: np.ndarray) -> np.ndarray:
        """`[n, C]` probabilities of labels -> `[n, K]` of sets."""
        return _softmax(_logit(probability) @ self.weight.T + self.bias)


def _one_kind(decision: np.ndarray, top: np.ndarray, healthy: int) -> np.ndarray:
    """Where `healthy` stands beside diseases: healthy alone if it is the most probable, else only the diseases."""
    both = decision[:, healthy] & (decision.sum(axis=1) > 1)
    alone = both & top[:, healthy]
    decision = np.where(alone[:, None], top, decision)
    decision[both & ~alone, healthy] = False
    return decision


def _logit(probability: np.ndarray) -> np.ndarray:
    p = probability.clip(1e-6, 1 - 1e-6)
    return np.log(p / (1 - p))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * logits))  # without overflow


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)
