"""Benchmark: time and peak memory of prepare, a training epoch and scoring, as the number of photos grows."""

import multiprocessing
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tools.base.errors import UsageError
from tools.bench.commands import ONE_EPOCH, run
from tools.bench.rounds import Row, make_row

COMMANDS = ("process_dataset.py", "main.py, one epoch", "test.py")
NUM_VAL = 32
BAR = 0.9  # time per photo, and memory, with the fewest photos by those with more


def measure(args) -> list[Row]:
    """Two rows per command and size: time per photo and peak memory, both against the first size."""
    if min(args.sizes) < NUM_VAL or sorted(set(args.sizes)) != args.sizes:
        raise UsageError(f"--sizes must be {NUM_VAL} or more each, and grow")
    rows: list[Row] = []
    first: dict[str, tuple[float, int]] = {}
    for size in args.sizes:
        rounds = [run_commands(args.cfg, size) for _ in range(args.rounds)]
        for command, costs in zip(COMMANDS, zip(*rounds, strict=True), strict=True):
            seconds, peaks = zip(*costs, strict=True)
            per_photo, peak = statistics.median(seconds) / size, max(peaks)
            bar = BAR if command in first else None
            first_per_photo, first_peak = first.setdefault(command, (per_photo, peak))
            speedups = [first_per_photo / (each / size) for each in seconds] if bar else []
            savings = [first_peak / peak] if bar else []
            name = f"{command}, {size} photos"
            rows.append(make_row(name, seconds, speedups, f"{1 / per_photo:.1f} photos per second", bar))
            rows.append(make_row(f"{name}: peak memory", (), savings, f"{peak / 2**20:.0f} MiB", bar))
    return rows


def run_commands(cfg: str, num_photos: int) -> list[tuple[float, int]]:
    """(seconds, peak bytes) of each of `COMMANDS`, one after the other, on so many drawn training photos.

    Each is started from a new, small process, because Linux counts the memory of the parent into a child's peak.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
        raw, dataset, output = (Path(name) / part for part in ("raw", "dataset", "output"))
        run("-m", "tools", "sample", "--dst", raw, "--counts", num_photos, NUM_VAL, 1)
        commands = (
            ["process_dataset.py", "--src", raw, "--dst", dataset, "--no-duplicates"],
            ["main.py", "--cfg", cfg, "--data-path", dataset, "--output", output, *ONE_EPOCH],
            ["test.py", "--data-path", dataset, "--output", output, "--split", "train"],
        )
        return [pool.submit(run, *words).result() for words in commands]
