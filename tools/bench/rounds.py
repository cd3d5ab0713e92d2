"""The method of every benchmark: candidates take turns, so that other load on the machine slows all of them alike.

A round times each candidate once, in reverse order of the round before. Ratios are taken within a round: the peer's
time divided by ours, so above 1 ours is faster.
"""

import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

Seconds = dict[str, list[float]]  # what was timed -> its seconds in every round
Row = dict[str, Any]  # one line of a benchmark's table, see `make_row`
FAILED = "FAILED"  # begins the note of a row that shows an error


def make_row(name: str, seconds: Sequence[float] = (), ratios: Sequence[float] = (), note: str = "") -> Row:
    """The arguments, with medians for `seconds` and `ratio`, and with the lowest and highest round of the ratio.

    Args:
        seconds: one per round; none for what is not timed.
        ratios: one per round, the peer's time divided by this one, or what `note` says. The peer itself has none; its
            `low` and `high` are those of the seconds.
    """
    spread = ratios or seconds
    return {
        "name": name,
        "seconds": statistics.median(seconds) if seconds else None,
        "ratio": statistics.median(ratios) if ratios else None,
        "low": min(spread, default=None),
        "high": max(spread, default=None),
        "note": note,
    }


def time_call(function: Callable[[], object]) -> float:
    """Seconds that one call takes; on a GPU until its work is done."""
    started = time.perf_counter()
    function()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def interleave(
    candidates: Mapping[str, Any], num_rounds: int, warm_up: int = 1, clock: Callable = time_call
) -> Seconds:
    """`clock(candidate)`, the seconds of one call, once per round; the first `warm_up` rounds do not count."""
    taken: Seconds = {name: [] for name in candidates}
    for number in range(warm_up + num_rounds):
        for name in candidates if number % 2 == 0 else reversed(list(candidates)):
            seconds = clock(candidates[name])
            if number >= warm_up:
                taken[name].append(seconds)
    return taken


def alternate(makers: Mapping[str, tuple], num_rounds: int, warm_up: int) -> Seconds:
    """Like `interleave`, with one process per function, so that each has its own allocator; only one runs at a time.

    Args:
        makers: name -> (maker, argument, ...): a process calls `maker(argument, ...)` and times the function that it
            returns. Each process has as many torch threads as this one.
    """
    context, threads = multiprocessing.get_context("spawn"), torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        pools = {
            name: stack.enter_context(ProcessPoolExecutor(1, context, _make, (threads, *maker)))
            for name, maker in makers.items()
        }
        return interleave(pools, num_rounds, warm_up, clock=lambda pool: pool.submit(_time_made).result())


_made: Callable[[], object]


def _make(threads: int, maker: Callable, *arguments: object) -> None:
    global _made
    torch.set_num_threads(threads)
    _made = maker(*arguments)


def _time_made() -> float:
    return time_call(_made)


def compare(taken: Seconds, notes: Mapping[str, str] | None = None, num_photos: int = 0) -> list[Row]:
    """One row per name; the first is the peer. With `num_photos` per call, the notes give photos per second."""
    peer, rows = next(iter(taken)), []
    for name, seconds in taken.items():
        rate = f"{num_photos / statistics.median(seconds):.1f} photos per second" if num_photos else ""
        note = "; ".join(filter(None, [rate, (notes or {}).get(name)]))
        ratios = [theirs / ours for theirs, ours in zip(taken[peer], seconds, strict=True)]
        rows.append(make_row(name, seconds, () if name == peer else ratios, note))
    return rows


def format_markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| what | time | ratio | lowest to highest | note |", "|---|---|---|---|---|"]
    for row in rows:
        value = _duration if row["ratio"] is None else "{:.3f}".format
        seconds = "" if row["seconds"] is None else _duration(row["seconds"])
        ratio = "" if row["ratio"] is None else value(row["ratio"])
        spread = "" if row["low"] is None else f"{value(row['low'])} to {value(row['high'])}"
        lines.append(f"| {' | '.join([row['name'], seconds, ratio, spread, row['note']])} |")
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
