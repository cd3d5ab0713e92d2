"""Differences between arms, against other formulas, and how often simulated studies are judged rightly."""

import numpy as np
import pytest
from scipy import stats

from tools.bench.study import bootstrap_shares, simulate
from tools.study.report import judge
from tools.study.statistics import Comparison, compare_with_first, holm

NUM_PHOTOS, STUDIES = 600, 200
WEIGHTS = bootstrap_shares(NUM_PHOTOS)
SIZES = [(2, 2), (6, 2), (2, 3), (4, 3), (3, 5)]  # arms, seeds


def run_studies(gap: float, num_arms: int, num_seeds: int, seed_deviation: float) -> np.ndarray:
    """`simulate` with photos like real ones: 75 % are nearly always right, 8 % nearly never, the others sometimes."""
    sometimes = np.random.default_rng(0).uniform(0.35, 0.95, NUM_PHOTOS * 17 // 100)
    chance = np.concatenate([np.full(NUM_PHOTOS * 3 // 4, 0.995), np.full(NUM_PHOTOS * 8 // 100, 0.02), sometimes])
    return simulate(chance, gap, seed_deviation, num_arms, num_seeds, STUDIES)


@pytest.mark.parametrize("seed_deviation", [0.0, 0.4])
@pytest.mark.parametrize(("num_arms", "num_seeds"), SIZES)
def test_equal_arms_are_called_different_in_at_most_5_percent_of_studies(num_arms, num_seeds, seed_deviation):
    p = run_studies(0, num_arms, num_seeds, seed_deviation)[..., 0]
    assert (p.min(axis=1) <= 0.05).mean() <= 0.05


def test_equal_arms_stay_equal_when_seeds_matter_more_than_photos():
    """The rate is near 5 % then, so the number of 1,000 studies has an allowance of two standard errors."""
    called = [(run_studies(0, *size, seed_deviation=1.5)[..., 0].min(axis=1) <= 0.05).mean() for size in SIZES]
    assert np.mean(called) <= 0.05 + 2 * (0.05 * 0.95 / (STUDIES * len(SIZES))) ** 0.5


@pytest.mark.parametrize(("num_arms", "num_seeds"), [(2, 3), (4, 3), (6, 5)])
def test_a_gap_of_three_points_is_found_in_80_percent_of_studies(num_arms, num_seeds):
    found = run_studies(3, num_arms, num_seeds, seed_deviation=0.3)[:, 0]
    assert ((found[:, 0] <= 0.05) & (found[:, 1] < 0)).mean() >= 0.8


def test_without_an_influence_of_the_photos_it_is_the_t_test():
    rng = np.random.default_rng(1)
    values = [rng.normal(0, 1, 4), rng.normal(1, 1, 3)]
    (found,) = compare_with_first(values, [np.repeat(runs[:, None], 9, axis=1) for runs in values])
    expected = stats.ttest_ind(values[1], values[0])
    low, high = expected.confidence_interval()
    assert found[:4] == pytest.approx((values[1].mean() - values[0].mean(), low, high, expected.pvalue))


def test_without_an_influence_of_the_seeds_it_is_the_paired_test_of_photos():
    right = np.random.default_rng(2).random((2, 1, NUM_PHOTOS)) < 0.8
    right = np.repeat(right, 2, axis=1).astype(float)  # two seeds, equal runs
    (found,) = compare_with_first(list(right.mean(axis=2)), list(right @ WEIGHTS.T))
    error = (right[1, 0] - right[0, 0]).std() / NUM_PHOTOS**0.5
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.06)
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(found.difference) / error), abs=0.03)


def test_one_seed_per_arm_is_never_a_verdict():
    right = np.stack([np.ones((1, NUM_PHOTOS)), np.zeros((1, NUM_PHOTOS))])
    (found,) = compare_with_first(list(right.mean(axis=2)), list(right @ WEIGHTS.T))
    assert (found.p, found.p_holm, found.more) == (None, None, None)
    assert judge("b", found).sentence.startswith("b: cannot tell from one seed per arm: ")


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == pytest.approx([1, 1])
    assert holm([]) == []


@pytest.mark.parametrize("difference", [1.0, 2.0, 3.0])
def test_as_many_seeds_as_the_verdict_names_make_the_interval_narrower_than_the_difference(difference):
    values = [np.array([-1.0, 1.0]), np.array([-1.0, 1.0]) + difference]  # the variance of a seed is 2
    (found,) = compare_with_first(values, [np.repeat(runs[:, None], 9, axis=1) for runs in values])
    half = {n: stats.t.ppf(0.975, 2 * (n - 1)) * (2 * 2 / n) ** 0.5 for n in range(3, 200)}
    assert found.more == next(n for n in half if half[n] < difference) - 2


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Comparison(-2.1, -3.4, -0.9, 0.001, 0.004, 1), "batch 8 is worse: -2.1 [-3.4, -0.9]"),
        (Comparison(2.1, 0.9, 3.4, 0.01, 0.05, 1), "batch 8 is better: +2.1 [+0.9, +3.4]"),
        (Comparison(0.1, -0.7, 0.9, 0.8, 1.0, None), "batch 8 is equal within 1 point: +0.1 [-0.7, +0.9]"),
        (Comparison(1.0, -0.7, 2.7, 0.2, 0.6, 4), "batch 8: cannot tell: +1.0 [-0.7, +2.7]; 4 more seeds would"),
        (Comparison(1.0, -0.1, 2.1, 0.06, 0.06, 1), "batch 8: cannot tell: +1.0 [-0.1, +2.1]; 1 more seed would"),
        (
            Comparison(0.1, -1.7, 1.9, 0.9, 1.0, None),
            "batch 8: cannot tell: +0.1 [-1.7, +1.9]; even 100 more seeds would not",
        ),
    ],
)
def test_verdicts(found, expected):
    assert judge("batch 8", found).sentence == expected
