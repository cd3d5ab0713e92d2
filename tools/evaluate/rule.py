"""From logits to calibrated probabilities, labels and a confidence: one rule, fitted on validation photos.

The checkpoint stores the rule. A rule must not be fitted on the photos that it scores: for the validation photos
themselves, `tools.evaluate.calibration.cross_fitted` fits it on one half and applies it to the other.

Letters in shape comments: n photos, C classes, K label sets.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import softmax

BLOCK = 2**22  # probabilities of label sets in memory at a time (32 MiB)


@dataclass(frozen=True)
class Answers:
    """A rule's probabilities, decisions and confidences for n photos.

    Attributes:
        probability: `[n, C]` in [0, 1], the probability that a photo has the label, whatever its other labels.
        decision: `[n, C]` bool, the labels that each photo is given.
        confidence: `[n]`, the probability that all labels of a photo are as decided. It follows from the same joint
            distribution as `probability`, and so never exceeds that of a decided label.
    """

    probability: np.ndarray
    decision: np.ndarray
    confidence: np.ndarray


@dataclass(frozen=True)
class DecisionRule:
    """How logits become probabilities and probabilities become labels.

    Attributes:
        targets: "single" (softmax, one label per photo) or "multi" (sigmoid, at least one).
        decide_by: for "multi" only. "threshold": every label that reaches its threshold, or the most probable one when
            none does, because every leaf has a label. "argmax": the most probable label. "combination": the likeliest
            of `combinations`, treating labels as independent. "powerset": the likeliest set by `powerset`, which has
            learned how labels co-occur; the same as "combination" while it is None.
        temperatures: `[C]`, by which logits are divided; all equal for "single" (Guo et al., arXiv 1706.04599).
        thresholds: `[C]`.
        combinations: `[K, C]` bool, the label sets seen in training.
        exclusive: indices of the labels that exclude all others, such as `healthy`.
        powerset: gives probabilities of label sets from those of all labels; None before it is fitted, and where
            validation has one label set only, or too many to learn from.
    """

    targets: str
    decide_by: str
    temperatures: np.ndarray
    thresholds: np.ndarray
    combinations: np.ndarray
    exclusive: tuple[int, ...] = ()
    powerset: "Powerset | None" = None

    @classmethod
    def unfitted(
        cls,
        targets: str,
        decide_by: str,
        combinations: Sequence[Sequence[int]],
        num_classes: int,
        exclusive: Sequence[int] = (),
    ) -> "DecisionRule":
        """A rule with temperatures of 1 and thresholds of 0.5; `combinations` holds class indices."""
        sets = np.zeros((len(combinations), num_classes), bool)
        for row, labels in enumerate(combinations):
            sets[row, list(labels)] = True
        return cls(targets, decide_by, np.ones(num_classes), np.full(num_classes, 0.5), sets, tuple(exclusive))

    def unfit(self) -> "DecisionRule":
        """The same rule before it was fitted."""
        ones, halves = np.ones_like(self.temperatures), np.full_like(self.thresholds, 0.5)
        return replace(self, temperatures=ones, thresholds=halves, powerset=None)

    def answer(self, logits: np.ndarray) -> Answers:
        """Probabilities, decisions and confidences for `[n, C]` logits: the one way from a model's output to labels.

        Labels are treated as independent, unless a powerset is fitted: it gives the probability of every label set, and
        that of a label is then the sum over the sets that contain it.
        """
        num_rows = max(1, BLOCK // max(1, len(self.combinations)))
        starts = range(0, max(1, len(logits)), num_rows)
        blocks = [vars(self._answer(logits[start : start + num_rows])).values() for start in starts]
        return Answers(*map(np.concatenate, zip(*blocks, strict=True)))

    def _answer(self, logits: np.ndarray) -> Answers:
        """`answer` in one piece: `[n, K]` probabilities of label sets are in memory."""
        probability = self.probabilities(logits)
        if self.powerset is not None:
            sets, of_sets = self.powerset.sets, self.powerset.probabilities(probability)  # [K, C], [n, K]
            likeliest = of_sets.argmax(axis=1)
            return Answers((of_sets @ sets).clip(max=1), sets[likeliest], of_sets.max(axis=1))
        decision = self._decide(probability)
        given = np.where(decision, probability, 1 - probability)
        confidence = probability.max(axis=1) if self.targets == "single" else given.prod(axis=1)
        return Answers(probability, decision, confidence)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """`[n, C]`: softmax ("single") or sigmoid ("multi") of the logits, each divided by its temperature."""
        tempered = logits.astype(np.float64) / self.temperatures
        return _sigmoid(tempered) if self.targets == "multi" else softmax(tempered, axis=1)

    def _decide(self, probability: np.ndarray) -> np.ndarray:
        """`[n, C]` bool: the labels each photo is given, at least one, and never an exclusive one with another."""
        top = np.eye(probability.shape[1], dtype=bool)[probability.argmax(axis=1)]
        if self.targets == "single" or self.decide_by == "argmax":
            return top
        if self.decide_by in ("combination", "powerset") and len(self.combinations):
            p = probability.clip(1e-9, 1 - 1e-9)
            likelihood = np.log(p) @ self.combinations.T + np.log1p(-p) @ ~self.combinations.T  # [n, K]
            return self.combinations[likelihood.argmax(axis=1)]
        passed = probability >= self.thresholds
        decision = np.where(passed.any(axis=1, keepdims=True), passed, top)
        exclusive = np.isin(np.arange(len(self.thresholds)), self.exclusive)
        conflict = decision[:, exclusive].any(axis=1) & (decision.sum(axis=1) > 1)
        # an exclusive label stays, alone, if it is the most probable one, or if no others are given; else it is dropped
        best = np.eye(len(exclusive), dtype=bool)[np.where(decision, probability, -1).argmax(axis=1)]
        alone = conflict & ((best & top)[:, exclusive].any(axis=1) | ~decision[:, ~exclusive].any(axis=1))
        decision = np.where(alone[:, None], best, decision)
        decision[conflict & ~alone] &= ~exclusive
        return decision


@dataclass(frozen=True)
class Powerset:
    """A logistic regression from the calibrated probabilities of all labels to label sets (a "label powerset").

    Labels are not independent, and annotators have habits: a photo that looks like `complex` and somewhat like
    another label is called `complex` alone far more often than the product of the two probabilities says.

    Attributes:
        sets: `[K, C]` bool, the label sets of the photos it was fitted on.
        weight: `[K, C]`, of the logits of the probabilities.
        bias: `[K]`.
    """

    sets: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    def probabilities(self, probability: np.ndarray) -> np.ndarray:
        """`[n, C]` probabilities of labels -> `[n, K]` of label sets."""
        return softmax(logit(probability) @ self.weight.T + self.bias, axis=1)


def logit(probability: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)), of probabilities clipped to [1e-6, 1 - 1e-6]."""
    p = probability.clip(1e-6, 1 - 1e-6)
    return np.log(p / (1 - p))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow.

    scipy.special.expit and logit differ from this function and the one above in the last bit; using them would change
    the figures of existing checkpoints.
    """
    return 0.5 * (1 + np.tanh(0.5 * logits))
