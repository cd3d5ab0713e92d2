"""Scores against hand counts and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from tools.errors import NumericsError
from tools.losses import binary_cross_entropy, cross_entropy
from tools.metrics import decide, probabilities, score

# Four photos, three classes; photo 1 has two labels.
TRUTH = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 0]], bool)
LOGITS = np.array([[2.0, -1, -1], [-1, 3, 1], [1, -2, -3], [-1, -2, -3]])


def test_by_hand():
    """Tops: 0 right, 1 right (of the copies 0 and 1, only 1), 0 wrong, 0 wrong."""
    got = score(LOGITS, TRUTH, "single")
    assert (got["photos"], got["copies"]) == (4, 5)
    assert got["accuracy"] == 2 / 5
    assert got["ceiling"] == 4 / 5
    assert got["hit1"] == 2 / 4
    assert got["exact"] == 1 / 4
    assert got["top2"] == 3 / 5  # copy (1,1), copy (0,0), and copy (3,1), which comes second
    assert [(c["right"], c["copies"]) for c in got["per_class"]] == [(1, 2), (1, 2), (0, 1)]


def test_multi_decisions_by_hand():
    """Sigmoid 0.5 is logit 0: photo 1 gets classes 1 and 2, photo 3 none, so its most probable one."""
    decision = decide(probabilities(LOGITS, "multi"), "multi")
    assert decision.astype(int).tolist() == [[1, 0, 0], [0, 1, 1], [1, 0, 0], [1, 0, 0]]
    stricter = decide(probabilities(LOGITS, "multi"), "multi", np.array([0.5, 0.5, 0.9]))
    assert stricter[1].astype(int).tolist() == [0, 1, 0]


@pytest.mark.parametrize("targets", ["single", "multi"])
@pytest.mark.parametrize("n", range(1, 41, 3))
def test_against_scikit_learn(targets, n):
    rng = np.random.default_rng(n)
    logits, truth = rng.normal(size=(n, 6)), rng.random((n, 6)) < 0.3
    truth[np.arange(n), rng.integers(6, size=n)] = True
    got = score(logits, truth, targets)
    decision = decide(probabilities(logits, targets), targets)
    assert got["exact"] == pytest.approx(accuracy_score(truth, decision))
    assert got["macro_f1"] == pytest.approx(f1_score(truth, decision, average="macro", zero_division=0))
    rows, classes = np.nonzero(truth)
    assert got["accuracy"] == pytest.approx(accuracy_score(classes, logits.argmax(1)[rows]))


def test_no_division_by_zero_and_no_score_of_nan():
    got = score(LOGITS[:1], TRUTH[:1], "single")
    assert got["per_class"][1]["accuracy"] is None
    bad = LOGITS.copy()
    bad[2, 1] = np.nan
    with pytest.raises(NumericsError, match="photo 3 of 4"):
        score(bad, TRUTH, "single")
    with pytest.raises(ValueError, match="not empty"):
        score(LOGITS[:0], TRUTH[:0], "single")


def test_probabilities_are_the_textbooks():
    assert probabilities(LOGITS, "single") == pytest.approx(np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True))
    assert probabilities(LOGITS, "multi") == pytest.approx(1 / (1 + np.exp(-LOGITS)))
    assert probabilities(np.array([[1000.0, -1000.0]]), "multi").tolist() == [[1, 0]]


def test_criteria_by_formula():
    logits = torch.tensor(LOGITS, dtype=torch.float32)
    one_hot = torch.eye(3)[[0, 1, 2, 1]]
    smooth = one_hot * 0.9 + 0.1 / 3
    expected = -(smooth * torch.log(torch.softmax(logits, 1))).sum(1).mean()
    torch.testing.assert_close(cross_entropy(logits, one_hot, 0.1), expected)
    targets, p = torch.tensor(TRUTH).float() * 0.9 + 0.05, torch.sigmoid(logits)
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
    torch.testing.assert_close(binary_cross_entropy(logits, torch.tensor(TRUTH).float(), 0.1), expected)
