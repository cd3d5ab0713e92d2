"""Cutting items into parts of equal composition, with some items kept together."""

from collections.abc import Hashable, Sequence

import numpy as np


def stratify(
    groups: Sequence[Sequence[int]], strata: Sequence[Hashable], shares: Sequence[float], seed: int
) -> list[int]:
    """The part, from 0, of every item: each stratum is cut by `shares` as evenly as whole groups allow.

    Greedy, as in iterative stratification (Sechidis et al. 2011, section 3): large groups first, otherwise in an
    order drawn from `seed`, each to the part that still needs its strata most; among equals, to the part that needs
    most items overall. Where every group is a single item, no stratum is off its share by a whole item.

    Args:
        groups: indices of the items that must stay together; every item is in exactly one group.
        strata: what to spread evenly, such as the label combination, for every item.
        shares: of the parts; positive, with the sum 1.
    """
    number_of = {stratum: number for number, stratum in enumerate(dict.fromkeys(strata))}
    kinds = np.array([number_of[stratum] for stratum in strata], dtype=np.int64)
    need = np.outer(shares, np.bincount(kinds))  # [parts, strata], in items
    overall = need.sum(axis=1)
    parts = [0] * len(strata)
    order = np.random.default_rng(seed).permutation(len(groups))
    for group in sorted((list(groups[i]) for i in order), key=len, reverse=True):  # stable: the drawn order stays
        wanted = need[:, kinds[group]].sum(axis=1)
        # rounded, so that rounding errors of the subtractions do not decide between equals
        part = max(range(len(shares)), key=lambda p: (round(wanted[p], 9), round(overall[p], 9)))
        np.subtract.at(need[part], kinds[group], 1)
        overall[part] -= len(group)
        for item in group:
            parts[item] = part
    return parts
