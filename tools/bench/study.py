"""Benchmark: how often simulated studies call equal arms different, and find a planted gap.

It draws studies from stored predictions. A photo of a study is one of the stored photos, drawn with replacement, and is
right in a run with the share of the stored runs that have it right.
"""

import glob
from pathlib import Path

import numpy as np

from tools.base.bootstrap import resample
from tools.base.errors import UsageError
from tools.bench.rounds import Row, make_row
from tools.evaluate.predictions import fit_to, read_predictions
from tools.study.statistics import LEVEL, compare_with_first, estimate_spread


def measure(args) -> list[Row]:
    """A row per number of seeds and of arms."""
    paths = sorted(map(Path, glob.glob(args.predictions or "")))
    if len(paths) < 2:
        raise UsageError("--predictions must match two predictions.csv or more, of runs that differ in their seed")
    tables = [read_predictions(path) for path in paths]
    tables = [fit_to(tables[0], str(path), table) for path, table in zip(paths, tables, strict=True)]
    right = np.array([(table.decision == table.truth).all(axis=1) for table in tables], float)  # [R, n]
    spread = estimate_spread([100 * right.mean(axis=1)], [100 * right @ bootstrap_shares(right.shape[1]).T])
    deviation = max(spread.total - spread.photos, 0) ** 0.5
    chance = (right.sum(axis=0) + 0.1) / (len(right) + 0.2)  # no photo is certain
    rows = [make_row(f"{len(paths)} stored runs", note=f"standard deviation of seeds {deviation:.2f} points")]
    for num_seeds in args.seeds:
        for num_arms in args.arms:
            size = (num_arms, num_seeds, args.studies)
            equal = simulate(chance, 0, deviation, *size)[..., 0].min(axis=1) <= LEVEL
            worse = simulate(chance, args.gap, deviation, *size)[:, 0]
            found = (worse[:, 0] <= LEVEL) & (worse[:, 1] < 0)
            note = f"equal arms called different: {100 * equal.mean():.1f} %; found: {100 * found.mean():.1f} %"
            rows.append(make_row(f"{num_arms} arms, {num_seeds} seeds, {args.gap:g} points", note=note))
    return rows


def bootstrap_shares(num_photos: int) -> np.ndarray:
    """`[B, n]`: the share of each photo in each bootstrap draw."""
    return np.concatenate(list(resample(num_photos))) / num_photos


def simulate(
    chance: np.ndarray, gap: float, deviation: float, num_arms: int, num_seeds: int, num_studies: int
) -> np.ndarray:
    """`[num_studies, num_arms - 1, 2]`: per arm but the first its p-value after Holm's correction and its difference.

    Args:
        chance: `[n]`, the probability of each photo to be right.
        gap: points by which the second arm is worse; all others are equal.
        deviation: standard deviation of the seeds, in points. Seed and gap act on photos whose answer is uncertain.
    """
    rng, shares, found = np.random.default_rng(0), bootstrap_shares(len(chance)), []
    for _ in range(num_studies):
        photos = rng.choice(chance, len(chance))
        uncertain = photos * (1 - photos)
        points = rng.normal(0, deviation, (num_arms, num_seeds, 1))
        points[1] -= gap
        right = rng.random((num_arms, num_seeds, len(photos))) < photos + points / 100 * uncertain / uncertain.mean()
        results = compare_with_first(list(100 * right.mean(axis=2)), list(100 * right.astype(float) @ shares.T))
        found.append([(each.p_holm, each.difference) for each in results])
    return np.array(found)
