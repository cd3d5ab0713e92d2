"""Stratified cuts: every stratum within one item of its share, groups whole, the same for the same seed."""

import random
from collections import Counter

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from data.prepare.stratify import connect, stratify

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


def test_connected_items_are_those_that_union_find_joins():
    for seed in range(20):
        rng = random.Random(seed)
        keys = [[rng.choice("abcdefghijklmnopqrst") for _ in range(rng.choice([0, 1, 1, 2]))] for _ in range(25)]
        joined = [{i} for i in range(len(keys))]
        for one in range(len(keys)):
            for other in range(one):
                if set(keys[one]) & set(keys[other]) and joined[one] is not joined[other]:
                    joined[one] |= joined[other]
                    for item in joined[other]:
                        joined[item] = joined[one]
        wanted = sorted(sorted(group) for group in {id(group): group for group in joined}.values())
        assert connect(keys) == wanted
    assert connect([]) == []


def test_no_part_is_empty_while_there_are_groups_for_it():
    strata = [(label,) for label in "abcdef"]  # every label once: each of them goes to the largest share
    assert set(stratify(singles(6), strata, [0.8, 0.1, 0.1], 0)) == {0, 1, 2}


def draw_groups(rng, kind):
    """Photos of trees or orchards, each with its own mix of label sets: (label sets, number of the group)."""
    sets = [(0,), (1,), (2,), (3,), (4,), (0, 1), (1, 2)]
    common = rng.dirichlet(np.ones(len(sets)))
    sizes = {"few": rng.integers(3, 40, 12), "many": rng.integers(1, 12, 120), "skewed": 1 + rng.zipf(1.5, 40) % 200}
    mixes = [rng.dirichlet(4 * common + 1e-3) for _ in sizes[kind]]
    strata = [sets[i] for size, mix in zip(sizes[kind], mixes, strict=True) for i in rng.choice(len(sets), size, p=mix)]
    return strata, np.repeat(np.arange(len(mixes)), sizes[kind])


def worst_share(strata, parts, shares):
    """The largest difference between a label's share of a part and the wanted one."""
    has = np.array([[label in held for label in range(5)] for held in strata], float)
    has = has[:, has.sum(axis=0) >= len(shares)]
    return max(np.abs(has[np.array(parts) == p].sum(0) / has.sum(0) - share).max() for p, share in enumerate(shares))


@pytest.mark.parametrize("kind", ["few", "many", "skewed"])
@pytest.mark.parametrize("shares", [[0.2] * 5, [0.8, 0.1, 0.1]])
@pytest.mark.filterwarnings("ignore:The least populated class")
def test_groups_are_spread_as_evenly_as_by_scikit_learn(kind, shares):
    """On each draw the worst label share is at most 5 points worse, and on average it is better."""
    excess = []
    for seed in range(12):
        strata, group_of = draw_groups(np.random.default_rng(seed), kind)
        groups = connect([[group] for group in group_of])
        parts = stratify(groups, strata, shares, seed, refine=True)
        assert all(len({parts[item] for item in group}) == 1 for group in groups)
        folds = StratifiedGroupKFold(5 if len(shares) == 5 else 10, shuffle=True, random_state=seed)
        theirs = np.empty(len(strata), int)
        for fold, (_, held_out) in enumerate(folds.split(strata, [str(held) for held in strata], group_of)):
            theirs[held_out] = fold if len(shares) == 5 else max(0, fold - 7)
        excess.append(worst_share(strata, parts, shares) - worst_share(strata, theirs, shares))
    assert max(excess) <= 0.05
    assert np.mean(excess) < 0
