"""Cutting items into parts of equal composition, with some items kept together."""

from collections.abc import Collection, Hashable, Iterable, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def connect(keys: Sequence[Iterable[Hashable]]) -> list[list[int]]:
    """The items in groups: two items with a common key are in one group. Indices ascend, in groups and between them.

    Args:
        keys: of every item, any number of them.
    """
    node_of: dict[Hashable, int] = {}
    pairs = [(i, node_of.setdefault(key, len(keys) + len(node_of))) for i, held in enumerate(keys) for key in held]
    items, nodes = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    component_of = find_components(items, nodes, len(keys) + len(node_of))
    groups: dict[int, list[int]] = {}
    for item, component in enumerate(component_of[: len(keys)].tolist()):
        groups.setdefault(component, []).append(item)
    return list(groups.values())


def find_components(one: np.ndarray, other: np.ndarray, size: int) -> np.ndarray:
    """The number of the connected component of each of `size` nodes, with an edge from `one[k]` to `other[k]`."""
    graph = coo_array((np.ones(len(one)), (one, other)), shape=(size, size))
    return connected_components(graph, directed=False)[1]


def stratify(
    groups: Sequence[Sequence[int]],
    strata: Sequence[Collection[Hashable]],
    shares: Sequence[float],
    seed: int,
    refine: bool = False,
) -> list[int]:
    """The part, from 0, of every item: each stratum is cut by `shares` as evenly as whole groups allow.

    Greedy, as in iterative stratification (Sechidis et al. 2011, section 3): large groups first, otherwise in an
    order drawn from `seed`, each to the part that still needs its strata most; among equals, to the part that needs
    most items overall. Where every group is a single item, no stratum is off its share by a whole item. A part is
    empty only if there are fewer groups than parts.

    Args:
        groups: indices of the items that must stay together; every item is in exactly one group.
        strata: what to spread evenly, the label combination, for every item.
        shares: of the parts; positive, with the sum 1.
        refine: then move groups as long as that evens out the labels. This matters for large groups, for which the
            greedy cut is worse than scikit-learn's StratifiedGroupKFold.
    """
    number_of = {stratum: number for number, stratum in enumerate(dict.fromkeys(strata))}
    kinds = np.array([number_of[stratum] for stratum in strata], dtype=np.int64)
    need = np.outer(shares, np.bincount(kinds))  # [parts, strata], in items
    overall = need.sum(axis=1)
    parts = [0] * len(strata)
    order = np.random.default_rng(seed).permutation(len(groups))
    empty = set(range(len(shares)))
    large_first = sorted((list(groups[i]) for i in order), key=len, reverse=True)  # stable: the drawn order stays
    for number, group in enumerate(large_first):
        wanted = need[:, kinds[group]].sum(axis=1)
        choice = sorted(empty) if len(empty) >= len(groups) - number else range(len(shares))
        # rounded, so that rounding errors of the subtractions do not decide between equals
        part = max(choice, key=lambda p: (round(wanted[p], 9), round(overall[p], 9)))
        empty.discard(part)
        np.subtract.at(need[part], kinds[group], 1)
        overall[part] -= len(group)
        for item in group:
            parts[item] = part
    return _move_groups(groups, strata, shares, parts) if refine else parts


def is_uneven(share: float, wanted: float) -> bool:
    """Whether a part is less than half, or more than one and a half times, as large as wanted."""
    return not wanted / 2 <= share <= 1.5 * wanted


def _move_groups(
    groups: Sequence[Sequence[int]],
    strata: Sequence[Collection[Hashable]],
    shares: Sequence[float],
    parts: Sequence[int],
) -> list[int]:
    """The parts after moving, as long as it helps, the group whose move helps most; no part becomes empty.

    It helps if it lowers the sum, over parts and labels, of the squared difference between the part's share of the
    label's items and its share in `shares`. The share of all items counts like that of a label.
    """
    labels = dict.fromkeys(label for stratum in strata for label in stratum)
    column_of = {label: column for column, label in enumerate(labels)}
    held = np.zeros((len(groups), len(labels) + 1))  # share of each label, and of all items, that each group holds
    for row, group in enumerate(groups):
        np.add.at(held[row], [column_of[label] for item in group for label in strata[item]], 1)
        held[row, -1] = len(group)
    held /= held.sum(axis=0)
    part = np.array([parts[group[0]] for group in groups])
    excess = np.stack([held[part == p].sum(axis=0) - share for p, share in enumerate(shares)])
    rows, squares = np.arange(len(groups)), (held**2).sum(axis=1)
    while True:
        overlap = held @ excess.T  # [groups, parts]
        change = (overlap - overlap[rows, part][:, None] + squares[:, None]).round(9)  # half the change of the sum
        change[rows, part] = 0
        change[np.bincount(part, minlength=len(shares))[part] == 1] = 0  # alone in its part
        row, target = np.unravel_index(change.argmin(), change.shape)
        if change[row, target] >= 0:
            break
        excess[part[row]] -= held[row]
        excess[target] += held[row]
        part[row] = target
    moved = {item: number for number, group in zip(part.tolist(), groups, strict=True) for item in group}
    return [moved[item] for item in range(len(strata))]
