"""Warnings about a prepared data set, from its manifest: what makes scores on it uncertain, and what would help."""

import math
from collections.abc import Sequence

from data.labels import SPLITS
from data.prepare.stratify import is_uneven
from tools.base.errors import listing

_Z = 1.96  # standard normal quantile of a 95 % interval
_MOST = 10  # names that a warning lists


def half_width(num_photos: int) -> float:
    """Half the width of the widest 95 % Wilson interval of a recall on `num_photos`, which is that of a recall of 0.5.

    Source: Wilson (1927), Probable inference, the law of succession, and statistical inference.
    """
    return _Z / (2 * math.sqrt(num_photos + _Z**2))


def num_photos_for(width: float) -> int:
    """The smallest number of photos with a `half_width` of at most `width`."""
    return math.ceil((_Z / (2 * width)) ** 2 - _Z**2)


FEW, ENOUGH = num_photos_for(0.2), num_photos_for(0.1)  # photos of a label: fewer than FEW are warned about


def find_warnings(manifest: dict) -> list[str]:
    """At most one line for each kind of weakness."""
    return [*_find_leaks(manifest["groups"]), *_find_uneven(manifest), *_find_absent(manifest), *_find_few(manifest)]


def _find_leaks(groups: dict) -> list[str]:
    leaks = [f"{name} ({', '.join(images)})" for name, images in groups.items() if len(images) > 1]
    if not leaks:
        return []
    return [
        f"{len(leaks)} of {len(groups)} groups are in several splits, which makes scores too good: "
        f"{listing(leaks, most=_MOST)}; move each into one split, or divide all photos with --split"
    ]


def _find_uneven(manifest: dict) -> list[str]:
    """Splits that --split could not make as large as asked for."""
    rows = {name: split["rows"] for name, split in manifest["splits"].items()}
    wanted = dict(zip(SPLITS, manifest["settings"].get("split") or [], strict=False))
    got = {name: rows.get(name, 0) / sum(rows.values()) for name in wanted}
    uneven = [f"{n} {100 * got[n]:.0f} instead of {100 * s:.0f} %" for n, s in wanted.items() if is_uneven(got[n], s)]
    if not uneven:
        return []
    sizes = {name: sum(map(len, images.values())) for name, images in manifest["groups"].items()}
    why = "duplicates stay together, or there are too few photos; change --split"
    if sizes:
        largest = max(sizes, key=lambda name: sizes[name])
        percent = f"{100 * sizes[largest] / sum(sizes.values()):.0f} %"
        why = f"groups stay together, the largest, {largest}, with {percent}; give smaller groups, or change --split"
    return [f"share of all photos in {', '.join(uneven)}: {why}"]


def _find_absent(manifest: dict) -> list[str]:
    if not (absent := _list_labels(manifest, SPLITS, range(1))):
        return []
    return [
        f"labels without photos, not learned in train, not scored in val or test: {absent}; add photos, merge or "
        "drop labels with --labels, or take only the labels that have photos with --label-set found"
    ]


def _find_few(manifest: dict) -> list[str]:
    """Labels whose recall is uncertain; for train, even if folds validate on every training photo."""
    copies = "" if manifest["settings"]["balance"] else ", or train on copies of them with --balance"
    ways_out = {("train",): copies, ("val", "test"): ", or validate on all of train with main.py --folds 5"}
    return [
        f"labels with fewer than {FEW} photos, whose recall can be uncertain by more than ±20 points (95 % interval): "
        f"{few}; photograph more ({ENOUGH} for ±10 points), merge labels with --labels{way_out}"
        for splits, way_out in ways_out.items()
        if (few := _list_labels(manifest, splits, range(1, FEW)))
    ]


def _list_labels(manifest: dict, splits: Sequence[str], counts: range) -> str:
    """`split: label 5, label 9; ...`: the labels with one of these `counts` of photos, the fewest first."""
    lists = []
    for split in (name for name in splits if name in manifest["splits"]):
        found = manifest["splits"][split]["labels"].items()
        labels = sorted((count, label) for label, count in found if count in counts)
        if labels:
            lists.append(f"{split}: {listing([f'{label} {count}' for count, label in labels], most=_MOST)}")
    return "; ".join(lists)
