"""Fits a decision rule on validation photos: temperatures, thresholds, and the powerset regression."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax

from tools.evaluate.rule import Answers, DecisionRule, Powerset, logit

PRIOR = 30  # weight of the neutral value (1 or 0.5), in photos: with few photos of a label, a fit stays near it
MAX_SETS = 100  # with more label sets, most have too few photos for a powerset, and its fit takes minutes
STRENGTH = 0.1  # of a powerset's fit, the inverse of its L2 penalty; 0.03 to 1 do as well (docs/results.md)
GRID = np.round(np.arange(0.05, 0.951, 0.01), 2)  # thresholds that are tried


def calibrate(rule: DecisionRule, logits: np.ndarray, truth: np.ndarray) -> DecisionRule:
    """The rule with temperatures and thresholds fitted on these photos: `[n, C]` logits, `[n, C]` bool truth."""
    rule = replace(rule, temperatures=_temperatures(logits, truth, rule.targets))
    return replace(rule, thresholds=_thresholds(rule.probabilities(logits), truth))


def fit(rule: DecisionRule, logits: np.ndarray, truth: np.ndarray) -> DecisionRule:
    """`calibrate`, and the powerset regression if the rule decides by it."""
    rule = calibrate(rule, logits, truth)
    with_powerset = rule.decide_by == "powerset" and rule.targets == "multi"
    return replace(rule, powerset=_powerset(rule.probabilities(logits), truth) if with_powerset else None)


def cross_fitted(rule: DecisionRule, logits: np.ndarray, truth: np.ndarray) -> Answers:
    """Answers for photos that the rule is also fitted on; each half is answered by a rule fitted on the other half."""
    half = _halves(truth)
    answers = Answers(np.zeros(truth.shape), np.zeros(truth.shape, bool), np.zeros(len(truth)))
    for part in (half, ~half):
        found = fit(rule, logits[~part], truth[~part]).answer(logits[part])
        answers.probability[part] = found.probability
        answers.decision[part] = found.decision
        answers.confidence[part] = found.confidence
    return answers


def abstention(confidence: np.ndarray, right: np.ndarray, risk: float) -> float:
    """The lowest confidence to answer at, so that at most a share `risk` of the answers to these photos is wrong.

    Args:
        confidence: `[n]`.
        right: `[n]` bool, whether each answer is right.

    Returns:
        Infinity when not even the most confident answers are that good.
    """
    order = np.argsort(-confidence, kind="stable")
    num_wrong = np.cumsum(~right[order])
    num_answered = np.arange(1, len(order) + 1)
    ends = np.append(np.diff(confidence[order]) < 0, True)  # equal confidences are answered together or not at all
    good = np.flatnonzero(ends & (num_wrong <= risk * num_answered))
    return float(confidence[order][good[-1]]) if len(good) else float("inf")


def _temperatures(logits: np.ndarray, truth: np.ndarray, targets: str) -> np.ndarray:
    """`[C]`: where the log-likelihood of the truth is highest, shrunk towards 1 where few photos have the label."""
    temperatures = np.ones(truth.shape[1])
    if targets == "single":
        rows, classes = np.nonzero(truth)  # a photo of two labels is two samples, as in training
        return temperatures * _best_temperature(partial(_cross_entropy, logits[rows], classes), len(rows))
    for c, num_photos in enumerate(truth.sum(axis=0)):
        if 0 < num_photos < len(truth):
            temperatures[c] = _best_temperature(partial(_log_loss, logits[:, c], truth[:, c]), num_photos)
    return temperatures


def _cross_entropy(logits: np.ndarray, classes: np.ndarray, temperature: float) -> float:
    if not len(logits):
        return 0.0
    likelihood = softmax(logits / temperature, axis=1)[np.arange(len(classes)), classes]
    return float(-np.log(likelihood.clip(1e-12)).mean())


def _log_loss(logits: np.ndarray, truth: np.ndarray, temperature: float) -> float:
    return float(np.logaddexp(0, np.where(truth, -1, 1) * logits.astype(np.float64) / temperature).mean())


def _best_temperature(loss: Callable[[float], float], num_photos: int) -> float:
    best = minimize_scalar(lambda log_t: loss(np.exp(log_t)), bounds=(-2, 2), method="bounded").x
    return float(np.exp(best * num_photos / (num_photos + PRIOR)))


def _thresholds(probability: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """`[C]`: where F1 is highest (nearest to 0.5 among equals), shrunk towards 0.5 where few photos have the label."""
    thresholds = np.full(truth.shape[1], 0.5)
    for c in np.flatnonzero(truth.any(axis=0)):
        given = probability[:, c] >= GRID[:, None]  # [number of thresholds, n]
        f1 = 2 * (given & truth[:, c]).sum(axis=1) / (given.sum(axis=1) + truth[:, c].sum())
        best = GRID[np.flatnonzero(f1 == f1.max())]
        num_photos = truth[:, c].sum()
        thresholds[c] += (best[np.abs(best - 0.5).argmin()] - 0.5) * num_photos / (num_photos + PRIOR)
    return thresholds


def _powerset(probability: np.ndarray, truth: np.ndarray) -> Powerset | None:
    """The regression fitted on these photos, or None when they have fewer than 2 or more than `MAX_SETS` label sets."""
    sets, numbers = np.unique(truth, axis=0, return_inverse=True)
    if not 2 <= len(sets) <= MAX_SETS:
        return None
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings(action="ignore"):  # scikit-learn warns where most sets have a single photo
        model = LogisticRegression(C=STRENGTH, max_iter=5000).fit(logit(probability), numbers.ravel())
    weight, bias = model.coef_, model.intercept_
    if len(sets) == 2:  # scikit-learn then keeps one row, for the second set
        weight, bias = np.concatenate([0 * weight, weight]), np.append(0, bias)
    return Powerset(sets, weight, bias)


def _halves(truth: np.ndarray) -> np.ndarray:
    """`[n]` bool: True for one half of the photos; every label set is divided evenly."""
    _, sets = np.unique(truth, axis=0, return_inverse=True)
    order = np.lexsort((np.random.default_rng(0).random(len(truth)), sets.ravel()))
    half = np.zeros(len(truth), bool)
    half[order[::2]] = True
    return half
