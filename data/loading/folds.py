"""K folds of a training split, in which twins, and made copies and their originals, stay together."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from data.labels import is_made
from data.loading.split import Photo, Split
from data.prepare.stratify import stratify
from tools.base.errors import UsageError


def fold_of(split: Split, twins: Sequence[Collection[str]], folds: int, fold: int, seed: int) -> tuple[Split, Split]:
    """The training and the validation part of fold number `fold` (from 0) of `folds`, stratified over label sets.

    Args:
        split: training photos, made copies included; these never get into the validation part.
        twins: names of photos that show the same (`data.manifest.twin_groups`).

    Raises:
        UsageError: when there are not photos enough for so many folds.
    """
    leader = {name: min(group) for group in twins for name in group}
    together: dict[str, list[int]] = {}
    for index, photo in enumerate(split.photos):
        together.setdefault(leader.get(photo.origin, photo.origin), []).append(index)
    if len(together) < folds:
        raise UsageError(f"DATA.NUM_FOLDS {folds}: {split.where} has only {len(together)} photos that are no twins")
    strata = [photo.classes for photo in split.photos]
    part = stratify(list(together.values()), strata, [1 / folds] * folds, seed)
    inside = [photo for photo, number in zip(split.photos, part, strict=True) if number == fold]
    outside = [photo for photo, number in zip(split.photos, part, strict=True) if number != fold]
    name = f"fold {fold} of {folds}"
    return (
        replace(split, where=f"{split.where} without {name}", photos=outside),
        replace(split, where=f"{split.where}, {name}", photos=_taken(inside), notes=[]),
    )


def _taken(photos: list[Photo]) -> list[Photo]:
    """Without made copies."""
    return [photo for photo in photos if not is_made(photo.name)]
