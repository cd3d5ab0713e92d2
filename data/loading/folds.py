"""K folds of a training split, in which duplicates stay together, and balanced copies with their originals."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from data.labels import is_balanced_copy, origin_name
from data.loading.split import Split
from data.prepare.stratify import stratify
from tools.base.errors import UsageError


def fold_of(
    split: Split, duplicates: Sequence[Collection[str]], folds: int, fold: int, seed: int
) -> tuple[Split, Split]:
    """The training and the validation part of fold number `fold` (from 0) of `folds`, stratified over label sets.

    Args:
        split: training photos with their balanced copies, which never get into the validation part.
        duplicates: names of duplicate photos, one set per group (`data.manifest.duplicate_groups`).

    Raises:
        UsageError: when there are fewer distinct photos (duplicates counted once) than folds.
    """
    leader = {name: min(group) for group in duplicates for name in group}
    together: dict[str, list[int]] = {}
    for index, photo in enumerate(split.photos):
        origin = origin_name(photo.name)
        together.setdefault(leader.get(origin, origin), []).append(index)
    if len(together) < folds:
        raise UsageError(f"DATA.NUM_FOLDS {folds}: {split.where} has only {len(together)} distinct photos")
    strata = [photo.classes for photo in split.photos]
    part = stratify(list(together.values()), strata, [1 / folds] * folds, seed)
    placed = list(zip(split.photos, part, strict=True))
    train = [photo for photo, number in placed if number != fold]
    val = [photo for photo, number in placed if number == fold and not is_balanced_copy(photo.name)]
    name = f"fold {fold} of {folds}"
    return (
        replace(split, where=f"{split.where} without {name}", photos=train),
        replace(split, where=f"{split.where}, {name}", photos=val, notes=[]),
    )
