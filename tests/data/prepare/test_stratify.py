"""Stratified cuts: every stratum within one item of its share, groups whole, the same for the same seed."""

import random
from collections import Counter

import pytest

from data.prepare.stratify import stratify

SIZES = {"scab": 400, "rust": 97, "scab rust": 13, "complex": 5, "mildew complex": 1}
STRATA = [name for name, count in SIZES.items() for _ in range(count)]


def singles(count):
    return [[i] for i in range(count)]


@pytest.mark.parametrize("shares", [[0.8, 0.1, 0.1], [0.5, 0.5], [0.2] * 5, [1.0]])
def test_every_stratum_is_within_one_item_of_its_share(shares):
    parts = stratify(singles(len(STRATA)), STRATA, shares, seed=3)
    counts = Counter(zip(STRATA, parts, strict=True))
    for name, size in SIZES.items():
        for part, share in enumerate(shares):
            assert abs(counts[name, part] - share * size) < 1
    for part, share in enumerate(shares):
        assert abs(parts.count(part) - share * len(STRATA)) < len(SIZES)


def test_groups_stay_together_and_what_is_left_evens_them_out():
    rng = random.Random(0)
    items = list(range(len(STRATA)))
    rng.shuffle(items)
    groups = [items[i : i + 3] for i in range(0, 90, 3)] + [[i] for i in items[90:]]
    parts = stratify(groups, STRATA, [0.25] * 4, seed=0)
    for group in groups:
        assert len({parts[i] for i in group}) == 1
    counts = Counter(zip(STRATA, parts, strict=True))
    for part in range(4):
        assert abs(counts["scab", part] - 100) <= 1
        assert abs(counts["rust", part] - 97 / 4) <= 2


def test_the_seed_decides_and_nothing_else():
    cut = [stratify(singles(len(STRATA)), STRATA, [0.8, 0.2], seed) for seed in (1, 1, 2)]
    assert cut[0] == cut[1] != cut[2]
    assert stratify([], [], [0.8, 0.2], 0) == []
