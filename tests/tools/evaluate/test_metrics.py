"""Figures against hand counts and scikit-learn; intervals against figures of photos that are really resampled."""

import tracemalloc

import numpy as np
import pytest
import sklearn.metrics as sk
from scipy.stats import binomtest

from tools.base.bootstrap import interval, resample
from tools.base.errors import NumericsError
from tools.evaluate.metrics import (
    ECE_BINS,
    OVERALL,
    PER_CLASS,
    Counts,
    Metric,
    by_combination,
    calibration_error,
    confusion,
    intervals,
    measure,
    measure_draws,
    score,
)
from tools.evaluate.result import overall_lines

# Four photos, three classes; photo 1 has two labels.
TRUTH = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 0]], bool)
PROBABILITY = np.array([[0.9, 0.3, 0.3], [0.3, 0.95, 0.7], [0.7, 0.1, 0.05], [0.3, 0.1, 0.05]])
DECISION = np.array([[1, 0, 0], [0, 1, 1], [1, 0, 0], [1, 0, 0]], bool)


def draw(n, seed=0):
    """`n` photos of six classes, at least one label each; some probabilities tie."""
    rng = np.random.default_rng(seed)
    probability, truth = rng.random((n, 6)).round(2), rng.random((n, 6)) < 0.3
    truth[np.arange(n), rng.integers(6, size=n)] = True
    decision = probability >= 0.6
    decision[np.arange(n), probability.argmax(1)] = True
    return probability, decision, truth


def test_by_hand():
    """Top classes: 0 right, 1 right (of the copies 0 and 1, only 1), 0 wrong, 0 wrong."""
    got = score(PROBABILITY, DECISION, TRUTH)
    assert (got["photos"], got["copies"]) == (4, 5)
    assert got["accuracy"] == 2 / 5
    assert got["ceiling"] == 4 / 5
    assert got["hit1"] == 2 / 4
    assert got["exact"] == 1 / 4
    assert got["top2"] == 3 / 5  # copy (1,1), copy (0,0), and copy (3,1), which comes second
    assert got["hamming"] == pytest.approx(6 / 12)
    assert got["hamming_of_nothing"] == pytest.approx(7 / 12)
    assert [(c["right"], c["n"]) for c in got["per_class"]] == [(1, 2), (1, 2), (0, 1)]
    assert [c["precision"] for c in got["per_class"]] == [1 / 3, 1, 0]
    assert [c["recall"] for c in got["per_class"]] == [1 / 2, 1 / 2, 0]


@pytest.mark.parametrize("n", range(1, 41))
def test_every_overall_figure_is_scikit_learns(n):
    probability, decision, truth = draw(n, seed=n)
    got = score(probability, decision, truth)
    rows, classes = np.nonzero(truth)
    present = [c for c in range(6) if truth[:, c].any()]
    mixed = [c for c in present if not truth[:, c].all()]
    wanted = {
        "accuracy": sk.accuracy_score(classes, probability.argmax(1)[rows]),
        "hit1": np.mean([truth[i, p.argmax()] for i, p in enumerate(probability)]),
        "exact": sk.accuracy_score(truth, decision),
        "hamming": 1 - sk.hamming_loss(truth, decision),
        "mean_ap": np.mean([sk.average_precision_score(truth[:, c], probability[:, c]) for c in present]),
        "macro_precision": sk.precision_score(truth, decision, average="macro", labels=present, zero_division=0),
        "macro_recall": sk.recall_score(truth, decision, average="macro", labels=present, zero_division=0),
        "macro_f1": sk.f1_score(truth, decision, average="macro", labels=present, zero_division=0),
        "micro_f1": sk.f1_score(truth, decision, average="micro", zero_division=0),
        "samples_f1": sk.f1_score(truth, decision, average="samples", zero_division=0),
    }
    for key, value in wanted.items():
        assert got[key] == pytest.approx(value), key
    if mixed:
        area = np.mean([sk.roc_auc_score(truth[:, c], probability[:, c]) for c in mixed])
        assert got["mean_auc"] == pytest.approx(area)
    else:
        assert got["mean_auc"] is None
    for c, entry in enumerate(got["per_class"]):
        if c in present:
            assert entry["f1"] == pytest.approx(sk.f1_score(truth[:, c], decision[:, c], zero_division=0))
        for key in ("accuracy", "precision", "recall", "f1", "ap"):
            assert (entry[key] is None) == (c not in present)
        assert (entry["auc"] is None) == (c not in mixed)


def test_calibration_error_bin_by_bin():
    rng = np.random.default_rng(0)
    probability, truth = rng.random((200, 6)), rng.random((200, 6)) < 0.3
    total = 0.0
    for c in range(6):
        for b in range(ECE_BINS):
            inside = (probability[:, c] >= b / ECE_BINS) & (probability[:, c] < (b + 1) / ECE_BINS)
            if inside.any():
                total += inside.mean() * abs(probability[inside, c].mean() - truth[inside, c].mean()) / 6
    assert calibration_error(probability, truth)[0] == pytest.approx(total)


def test_a_weighting_gives_the_figure_of_the_resampled_photos():
    probability, decision, truth = draw(30)
    (weights,) = resample(30, seed=3, times=5)
    assert (weights.sum(axis=1) == 30).all()
    figures = measure(Counts(probability, decision, truth, weights))
    for row in range(5):
        drawn = np.repeat(np.arange(30), weights[row].astype(int))
        again = score(probability[drawn], decision[drawn], truth[drawn])
        for key in OVERALL:
            assert figures[key][row] == pytest.approx(again[key]), key


def test_draws_in_blocks_equal_draws_in_one_piece(monkeypatch):
    (whole,) = resample(30, seed=3, times=50)
    bounds = intervals(*draw(30))
    monkeypatch.setattr("tools.base.bootstrap.BLOCK", 30 * 7)
    assert [len(block) for block in resample(30, times=150)] == [64, 64, 22]
    monkeypatch.setattr("tools.base.bootstrap.MIN_DRAWS", 1)
    blocks = list(resample(30, seed=3, times=50))
    assert [len(block) for block in blocks] == [7] * 7 + [1]
    assert np.array_equal(np.concatenate(blocks), whole)
    in_blocks = intervals(*draw(30))
    assert all(in_blocks[key] == pytest.approx(bounds[key]) for key in OVERALL)


def test_memory_of_intervals_does_not_grow_with_the_photos():
    """A matrix of all draws of 12,000 photos would take 92 MiB."""
    passes = draw(12_000)
    tracemalloc.start()
    try:
        intervals(*passes)
        assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    finally:
        tracemalloc.stop()


def test_intervals_hold_the_figure_and_narrow_with_the_root_of_the_photos():
    few, many = (intervals(*draw(n)) for n in (100, 1600))
    point = score(*draw(1600))
    for key in ("exact", "hit1", "macro_f1", "micro_f1", "mean_ap"):
        assert many[key][0] < point[key] < many[key][1]
    widths = [limits["hit1"][1] - limits["hit1"][0] for limits in (few, many)]
    assert 3 < widths[0] / widths[1] < 5.3  # 4 = sqrt(1600 / 100)
    p = point["hit1"]
    assert widths[1] == pytest.approx(2 * 1.96 * (p * (1 - p) / 1600) ** 0.5, rel=0.15)  # the normal approximation
    assert intervals(*draw(100)) == few
    assert interval(np.array([np.nan, np.nan])) is None


@pytest.mark.parametrize("num_photos", [1, 2, 5, 60])
def test_few_photos_that_are_all_alike_have_a_wide_interval(num_photos):
    """The bootstrap alone would give [1, 1] and [0, 0]: against the exact interval of a share, and the sign test."""
    truth = np.tile([[True, False, False]], (num_photos, 1))
    right, wrong = truth, truth[:, [1, 0, 2]]
    for decision, successes in ((right, num_photos), (wrong, 0)):
        bounds = intervals(decision * 0.9, decision, truth)
        exact = binomtest(successes, num_photos).proportion_ci(method="exact")
        for limits in (bounds["exact"], bounds["hit1"], bounds["per_class"][0]["recall"]):
            assert limits == pytest.approx([exact.low, exact.high])
        assert bounds["ece"][1] - bounds["ece"][0] > exact.high - exact.low - 1e-9
        assert bounds["per_class"][1] == dict.fromkeys(PER_CLASS)  # no photo has the label
    low, high = interval(np.ones(1000), 1.0, num_photos, span=(-1, 1))  # of a difference: right by one run only
    assert high == 1
    assert (low > 0) == (binomtest(num_photos, num_photos).pvalue < 0.05)
    assert interval(np.zeros(1000)) == [0, 0]


def test_intervals_hold_the_figures_of_many_labels_with_few_photos():
    """200 labels with one to three photos; a draw lacks some of them, so the draws' macro figures lie too high."""
    rng = np.random.default_rng(0)
    truth = np.repeat(np.eye(200, dtype=bool), rng.integers(1, 4, 200), axis=0)
    probability = (0.3 * truth + 0.7 * rng.random(truth.shape)).round(3)
    passes = probability, probability >= 0.6, truth
    scores, bounds, draws = score(*passes), intervals(*passes), measure_draws(*passes)
    for key in OVERALL:
        assert bounds[key][0] <= scores[key] <= bounds[key][1], key
    for key in ("macro_f1", "macro_precision"):
        low, high = np.percentile(draws[key], (2.5, 97.5))
        assert low > scores[key], "the draws alone would do"
        middle = draws[key].mean()
        assert bounds[key] == pytest.approx([scores[key] - (middle - low), scores[key] + (high - middle)])
    for entry, limits in zip(scores["per_class"], bounds["per_class"], strict=True):
        for key in PER_CLASS:
            assert limits[key][0] - 1e-9 <= entry[key] <= limits[key][1] + 1e-9, key


def test_perfect_answers_are_perfect_whatever_classes_there_are():
    truth = np.tile([[True, False, False, False, False, False]], (20, 1))
    got = score(np.where(truth, 0.9, 0.1), truth, truth)
    assert [got[key] for key in ("macro_f1", "macro_precision", "macro_recall", "mean_ap", "exact")] == [1.0] * 5


@pytest.mark.parametrize("slope", [1.0, 0.4])
def test_the_interval_of_the_calibration_error_covers_the_true_one(slope):
    """40 simulated sets of 200 photos: calibrated ones, whose true error is 0, and over-confident ones."""
    rng = np.random.default_rng(0)

    def draw_set(n):
        probability = rng.random((n, 6)) ** 3
        truth = rng.random((n, 6)) < 0.5 + slope * (probability - 0.5)
        return probability, truth

    true_error = 0.0 if slope == 1 else calibration_error(*draw_set(400_000))[0]
    covered = 0
    for _ in range(40):
        probability, truth = draw_set(200)
        error = calibration_error(probability, truth)[0]
        low, high = intervals(probability, probability >= 0.5, truth)["ece"]
        assert low <= error <= high
        covered += low <= true_error <= high
    assert covered >= 37


def test_confusion_and_combinations_by_hand():
    assert confusion(PROBABILITY, DECISION, TRUTH, "single").tolist() == [[1, 1, 0], [1, 1, 0], [1, 0, 0]]
    # photo 1 misses 0 and is given 2; photo 2 misses 2, given 0; photo 3 misses 1, given 0
    assert confusion(PROBABILITY, DECISION, TRUTH, "multi").tolist() == [[1, 0, 1], [1, 1, 0], [1, 0, 0]]
    assert by_combination(DECISION, TRUTH) == [((0,), 1, 1), ((0, 1), 1, 0), ((1,), 1, 0), ((2,), 1, 0)]


def test_a_metric_is_one_row(monkeypatch):
    """It is computed, has an interval, and is printed."""
    monkeypatch.setitem(OVERALL, "any", Metric("any label", lambda c: c.mean(DECISION.any(axis=1))))
    scores, bounds = score(PROBABILITY, DECISION, TRUTH), intervals(PROBABILITY, DECISION, TRUTH)
    assert overall_lines(scores, bounds)[-1].split() == ["any", "label", "100.00", "[39.8,", "100.0]"]


def test_no_division_by_zero_and_no_score_of_nan():
    got = score(PROBABILITY[:1], DECISION[:1], TRUTH[:1])
    assert got["per_class"][1]["accuracy"] is None
    assert got["per_class"][0]["auc"] is None
    bad = PROBABILITY.copy()
    bad[2, 1] = np.nan
    with pytest.raises(NumericsError, match="photo 3 of 4"):
        score(bad, DECISION, TRUTH)
    with pytest.raises(ValueError, match="not empty"):
        score(PROBABILITY[:0], DECISION[:0], TRUTH[:0])
