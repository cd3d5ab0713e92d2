"""Folds: every photo is validated on once, duplicates and balanced copies stay together, label sets spread evenly."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data.loading.folds import fold_of
from data.loading.sources import FolderSource
from data.loading.split import Photo, Split
from tools.base.errors import UsageError

DUPLICATES = [{"a000.jpg", "a001.jpg"}, {"a010.jpg", "a052.jpg", "a119.jpg"}]


def split_of(n=120, made=()):
    rng = np.random.default_rng(0)
    sets = [(0,), (1,), (2,), (0, 1)]
    photos = [Photo(f"a{i:03}.jpg", f"x/a{i:03}.jpg", sets[rng.choice(4, p=[0.5, 0.3, 0.1, 0.1])]) for i in range(n)]
    photos += [Photo(name, f"x/{name}", photos[int(name[1:4])].classes) for name in made]
    return Split("train", FolderSource(Path()), ("a", "b", "c"), photos)


def test_every_photo_is_validated_once_and_never_trained_on_there():
    split = split_of()
    seen = Counter()
    for fold in range(5):
        train, val = fold_of(split, DUPLICATES, [], 5, fold, seed=3)
        names = [{photo.name for photo in part.photos} for part in (train, val)]
        assert not names[0] & names[1]
        assert names[0] | names[1] == {photo.name for photo in split.photos}
        for group in DUPLICATES:
            assert len(group & names[1]) in (0, len(group))
        seen.update(names[1])
    assert set(seen.values()) == {1}


def test_groups_stay_together_with_the_duplicates_and_balanced_copies_that_touch_them():
    split = split_of(made=("a007.made-flip.jpg", "a119.made-turn.jpg"))
    groups = [{f"a{i:03}.jpg" for i in range(start, start + 3)} for start in range(0, 120, 3)]
    seen = Counter()
    for fold in range(5):
        train, val = fold_of(split, DUPLICATES, groups, 5, fold, seed=0)
        names = {photo.name for photo in val.photos}
        for group in (*DUPLICATES, *groups, groups[3] | groups[17] | groups[39]):
            assert len(group & names) in (0, len(group))
        assert ("a007.made-flip.jpg" in {photo.name for photo in train.photos}) == ("a007.jpg" not in names)
        seen.update(names)
    assert set(seen.values()) == {1}
    assert len(seen) == 120


def test_uneven_folds_are_a_note():
    large = [{f"a{i:03}.jpg" for i in range(96)}]
    train, val = fold_of(split_of(), DUPLICATES, large, 5, 0, seed=0)
    assert any("the 5 folds have 5 to 97 photos; use fewer folds, or smaller groups" in note for note in train.notes)
    assert not val.notes
    assert not fold_of(split_of(), DUPLICATES, [], 5, 0, seed=0)[0].notes


def test_label_sets_are_spread_within_a_photo_or_a_group_of_duplicates():
    split = split_of()
    whole = Counter(photo.classes for photo in split.photos)
    for fold in range(5):
        _, val = fold_of(split, DUPLICATES, [], 5, fold, seed=0)
        for labels, count in Counter(photo.classes for photo in val.photos).items():
            assert abs(count - whole[labels] / 5) <= 3


def test_balanced_copies_are_trained_on_with_their_originals_and_never_validated_on():
    made = ("a007.made-flip.jpg", "a052.made-turn.jpg")
    for fold in range(5):
        train, val = fold_of(split_of(made=made), DUPLICATES, [], 5, fold, seed=0)
        names = [{photo.name for photo in part.photos} for part in (train, val)]
        assert not names[1] & set(made)
        assert ("a007.made-flip.jpg" in names[0]) == ("a007.jpg" in names[0])
        assert ("a052.made-turn.jpg" in names[0]) == ("a010.jpg" in names[0])


def test_too_few_photos_are_refused():
    with pytest.raises(UsageError, match="only 3"):
        fold_of(split_of(4), [{"a000.jpg", "a001.jpg"}], [], 4, 0, seed=0)
