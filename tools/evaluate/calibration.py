"""Fits a decision rule on validation photos: temperatures, thresholds, and the powerset regression."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from scipy.optimize import minimize_scalar

from tools.evaluate.rule import DecisionRule, Powerset, _logit, _softmax

PRIOR = 30  # photos with the label that a fitted value weighs as much as: with few it stays near its neutral value


STRENGTH = 0.1  # of a powerset's fit, the inverse of its L2 penalty; 0.03 to 1 do as well (docs/results.md)


GRID = np.round(np.arange(0.05, 0.951, 0.01), 2)  # thresholds that are tried


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
