"""Warnings about a data set: the width of Wilson's interval, and what is said of leaks, sizes and few photos."""

import pytest
from scipy.stats import binomtest

from data.prepare.advice import ENOUGH, FEW, find_warnings, half_width, num_photos_for


def manifest(labels, groups=None, **settings):
    """The part of a manifest that is read: `labels` are the counts per split."""
    splits = {name: {"rows": sum(counts.values()), "labels": counts} for name, counts in labels.items()}
    return {"splits": splits, "groups": groups or {}, "settings": {"balance": False, "split": None, **settings}}


def widest(num_photos):
    """Half of the widest Wilson interval over all recalls that `num_photos` can give, by scipy."""
    intervals = [binomtest(hits, num_photos).proportion_ci(0.95, "wilson") for hits in range(num_photos + 1)]
    return max((high - low) / 2 for low, high in intervals)


@pytest.mark.parametrize("count", [2, 20, 92, 400])
def test_the_width_is_that_of_scipy(count):
    assert half_width(count) == pytest.approx(widest(count), abs=1e-5)


def test_the_limits_are_the_first_with_20_and_10_points():
    assert (FEW, ENOUGH) == (num_photos_for(0.2), num_photos_for(0.1)) == (21, 93)
    assert half_width(FEW) <= 0.2 < half_width(FEW - 1)
    assert half_width(ENOUGH) <= 0.1 < half_width(ENOUGH - 1)


def test_a_good_data_set_has_no_warning():
    groups = {"tree 1": {"train": ["a"] * 150}, "tree 2": {"val": ["b"] * 50}}
    counts = {"train": {"a": 70, "b": 80}, "val": {"a": 25, "b": 25}}
    assert find_warnings(manifest(counts, groups, split=[0.75, 0.25, 0])) == []


def test_few_and_absent_labels_are_listed_the_fewest_first_with_what_helps():
    counts = {"train": {"scab": 20, "rust": 5, "spot": 90}, "val": {"scab": 21, "rust": 0, "spot": 3}}
    absent, train, val = find_warnings(manifest(counts))
    assert "labels without photos" in absent
    assert "val: rust" in absent
    assert "--labels" in absent
    assert "fewer than 21 photos" in train
    assert "train: rust 5, scab 20; photograph more (93 for ±10 points)" in train
    assert "--balance" in train
    assert "val: spot 3; " in val
    assert "--folds" in val
    assert "--balance" not in "".join(find_warnings(manifest(counts, balance=True)))


def test_500_labels_are_one_line_each():
    counts = {name: {f"label {i:03}": i % 3 for i in range(500)} for name in ("train", "val", "test")}
    lines = find_warnings(manifest(counts))
    assert len(lines) == 3
    assert max(map(len, lines)) < 800


def test_groups_in_several_splits_are_a_leak():
    groups = {f"tree {i}": {"train": ["a.jpg"], **({"val": ["b.jpg"]} if i == 2 else {})} for i in range(4)}
    (line,) = find_warnings(manifest({"train": {"a": 99}, "val": {"a": 99}}, groups))
    assert "1 of 4 groups are in several splits" in line
    assert "tree 2 (train, val)" in line
    assert "--split" in line


def test_one_group_with_most_photos_makes_the_splits_uneven():
    groups = {"north": {"train": ["a"] * 80}, "south": {"val": ["b"] * 10}, "west": {"test": ["c"] * 10}}
    counts = {"train": {"a": 800}, "val": {"a": 100}, "test": {"a": 100}}
    assert find_warnings(manifest(counts, groups, split=[0.8, 0.1, 0.1])) == []
    (line,) = find_warnings(manifest(counts, groups, split=[0.5, 0.25, 0.25]))
    assert "train 80 instead of 50 %, val 10 instead of 25 %, test 10 instead of 25 %" in line
    assert "the largest, north, with 80 %; give smaller groups, or change --split" in line
