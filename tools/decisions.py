"""From logits to calibrated probabilities and labels: one rule, fitted on validation photos and kept in the checkpoint.

Nothing here may see the photos that are scored. Where the validation photos themselves are scored, `cross_fitted` fits
the rule on one half and applies it to the other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy.optimize import minimize_scalar

PRIOR = 30  # photos with the label that a fitted value weighs as much as: with few it stays near its neutral value
STRENGTH = 0.1  # of a powerset's fit, the inverse of its L2 penalty; 0.03 to 1 do as well (docs/results.md)
GRID = np.round(np.arange(0.05, 0.951, 0.01), 2)  # thresholds that are tried


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


def fit(rule: DecisionRule, logits: np.ndarray, truth: np.ndarray) -> DecisionRule:
    """The rule with everything chosen on these photos: `[n, C]` logits, `[n, C]` bool truth."""
    rule = replace(rule, temperatures=_temperatures(logits, truth, rule.targets))
    probability = rule.probabilities(logits)
    powerset = _powerset(probability, truth) if rule.how == "powerset" and rule.targets == "multi" else None
    return replace(rule, thresholds=_thresholds(probability, truth), powerset=powerset)


def cross_fitted(
    rule: DecisionRule, logits: np.ndarray, truth: np.ndarray, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(probabilities, decisions, confidences) of photos that the rule is also chosen on: each half by the other's."""
    half = _halves(truth, seed)
    probability, decision, confidence = np.zeros(truth.shape), np.zeros(truth.shape, bool), np.zeros(len(truth))
    for part in (half, ~half):
        fitted = fit(rule, logits[~part], truth[~part])
        probability[part] = fitted.probabilities(logits[part])
        decision[part] = fitted.decide(probability[part])
        confidence[part] = fitted.confidence(probability[part], decision[part])
    return probability, decision, confidence


def abstention(confidence: np.ndarray, right: np.ndarray, risk: float) -> float:
    """The confidence from which on answers are given, so that at most `risk` of them are wrong on these photos.

    Infinity when not even the most confident answers are that good.
    """
    order = np.argsort(-confidence, kind="stable")
    wrong = np.cumsum(~right[order])
    answered = np.arange(1, len(order) + 1)
    ends = np.append(np.diff(confidence[order]) < 0, True)  # equal confidences are answered together or not at all
    good = np.flatnonzero(ends & (wrong <= risk * answered))
    return float(confidence[order][good[-1]]) if len(good) else float("inf")


def _one_kind(decision: np.ndarray, top: np.ndarray, healthy: int) -> np.ndarray:
    """Where `healthy` stands beside diseases: healthy alone if it is the most probable, else only the diseases."""
    both = decision[:, healthy] & (decision.sum(axis=1) > 1)
    alone = both & top[:, healthy]
    decision = np.where(alone[:, None], top, decision)
    decision[both & ~alone, healthy] = False
    return decision


def _temperatures(logits: np.ndarray, truth: np.ndarray, targets: str) -> np.ndarray:
    """`[C]`: where the log-likelihood of the truth is highest, drawn towards 1 where few photos have the label."""
    temperatures = np.ones(truth.shape[1])
    if targets == "single":
        rows, classes = np.nonzero(truth)  # a photo of two labels is two samples, as in training
        return temperatures * _best_temperature(partial(_cross_entropy, logits[rows], classes), len(rows))
    for c, photos in enumerate(truth.sum(axis=0)):
        if 0 < photos < len(truth):
            temperatures[c] = _best_temperature(partial(_log_loss, logits[:, c], truth[:, c]), photos)
    return temperatures


def _cross_entropy(logits: np.ndarray, classes: np.ndarray, temperature: float) -> float:
    rows = np.arange(len(classes))
    return float(-np.log(_softmax(logits / temperature)[rows, classes].clip(1e-12)).mean()) if len(rows) else 0.0


def _log_loss(logits: np.ndarray, truth: np.ndarray, temperature: float) -> float:
    return float(np.logaddexp(0, np.where(truth, -1, 1) * logits.astype(np.float64) / temperature).mean())


def _best_temperature(loss: Callable[[float], float], photos: int) -> float:
    best = minimize_scalar(lambda log_t: loss(np.exp(log_t)), bounds=(-2, 2), method="bounded").x
    return float(np.exp(best * photos / (photos + PRIOR)))


def _thresholds(probability: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """`[C]`: where F1 is highest (nearest to 0.5 among equals), drawn towards 0.5 where few photos have the label."""
    thresholds = np.full(truth.shape[1], 0.5)
    for c in np.flatnonzero(truth.any(axis=0)):
        given = probability[:, c] >= GRID[:, None]  # [T, n]
        f1 = 2 * (given & truth[:, c]).sum(axis=1) / (given.sum(axis=1) + truth[:, c].sum())
        best = GRID[np.flatnonzero(f1 == f1.max())]
        photos = truth[:, c].sum()
        thresholds[c] += (best[np.abs(best - 0.5).argmin()] - 0.5) * photos / (photos + PRIOR)
    return thresholds


def _powerset(probability: np.ndarray, truth: np.ndarray) -> Powerset | None:
    """None where the photos do not have two label sets to tell apart."""
    sets, numbers = np.unique(truth, axis=0, return_inverse=True)
    if len(sets) < 2:
        return None
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=STRENGTH, max_iter=5000).fit(_logit(probability), numbers.ravel())
    weight, bias = model.coef_, model.intercept_
    if len(sets) == 2:  # scikit-learn then keeps only what speaks for the second
        weight, bias = np.concatenate([0 * weight, weight]), np.append(0, bias)
    return Powerset(sets, weight, bias)


def _halves(truth: np.ndarray, seed: int) -> np.ndarray:
    """`[n]` bool: one of two halves in which every label set is shared out evenly."""
    _, sets = np.unique(truth, axis=0, return_inverse=True)
    order = np.lexsort((np.random.default_rng(seed).random(len(truth)), sets.ravel()))
    half = np.zeros(len(truth), bool)
    half[order[::2]] = True
    return half


def _logit(probability: np.ndarray) -> np.ndarray:
    p = probability.clip(1e-6, 1 - 1e-6)
    return np.log(p / (1 - p))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * logits))  # without overflow


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)
