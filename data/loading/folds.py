"""K folds of a training split, in which duplicates and groups stay together, and balanced copies with originals."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

from data.labels import is_balanced_copy, origin_name
from data.loading.split import Photo, Split
from data.prepare.stratify import connect, is_uneven, stratify
from tools.base.errors import UsageError


def fold_of(
    split: Split,
    duplicates: Sequence[Collection[str]],
    groups: Sequence[Collection[str]],
    folds: int,
    fold: int,
    seed: int,
) -> tuple[Split, Split]:
    """The training and the validation part of fold number `fold` (from 0) of `folds`, stratified over label sets.

    Args:
        split: training photos with their balanced copies, which never get into the validation part.
        duplicates: names of duplicate photos, one set per group (`data.manifest.duplicate_groups`).
        groups: names of the photos of each group of --group (`data.manifest.photo_groups`).

    Raises:
        UsageError: when there are fewer groups, or distinct photos (duplicates counted once), than folds.
    """
    held: dict[str, list[int]] = {}
    for number, names in enumerate((*duplicates, *groups)):
        for name in names:
            held.setdefault(name, []).append(number)
    origins = [origin_name(photo.name) for photo in split.photos]
    together = connect([(origin, *held.get(origin, ())) for origin in origins])
    if len(together) < folds:
        what = "groups of photos that stay together" if groups else "distinct photos"
        raise UsageError(f"DATA.NUM_FOLDS {folds}: {split.where} has only {len(together)} {what}; lower it")
    strata = [photo.classes for photo in split.photos]
    part = stratify(together, strata, [1 / folds] * folds, seed, refine=bool(groups))
    placed = list(zip(split.photos, part, strict=True))
    train = [photo for photo, number in placed if number != fold]
    val = [photo for photo, number in placed if number == fold and not is_balanced_copy(photo.name)]
    name = f"fold {fold} of {folds}"
    return (
        replace(
            split,
            where=f"{split.where} without {name}",
            photos=train,
            notes=split.notes + _notes(placed, folds, bool(groups)),
        ),
        replace(split, where=f"{split.where}, {name}", photos=val, notes=[]),
    )


def _notes(placed: Sequence[tuple[Photo, int]], folds: int, grouped: bool) -> list[str]:
    """A note when some folds are much larger than others."""
    sizes = Counter(number for photo, number in placed if not is_balanced_copy(photo.name))
    if not any(is_uneven(size / sizes.total(), 1 / folds) for size in sizes.values()):
        return []
    way_out = ", or smaller groups, whose photos stay together" if grouped else ""
    return [f"the {folds} folds have {min(sizes.values())} to {max(sizes.values())} photos; use fewer folds{way_out}"]
