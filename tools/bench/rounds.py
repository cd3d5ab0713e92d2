"""The method of every benchmark: everything takes turns, so that other work on the machine slows all of it alike.

A round times each once, in the opposite order of the round before. A ratio is taken within a round, the peer's time
by ours, so that above 1 ours is faster.
"""

import contextlib
import dataclasses
import datetime
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch

Seconds = dict[str, list[float]]  # what was timed -> its seconds in every round


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a benchmark's table.

    Attributes:
        seconds: median over the rounds; None for what is not timed.
        ratio: median of the peer's time by this one, or what `note` says; None for the peer itself.
        low, high: lowest and highest round of the ratio, or of the seconds where there is no ratio.
        bar: the ratio we want at least.
    """

    name: str
    seconds: float | None
    ratio: float | None
    low: float | None
    high: float | None
    note: str
    bar: float | None


def make_row(
    name: str, seconds: Sequence[float] = (), ratios: Sequence[float] = (), note: str = "", bar: float | None = None
) -> Row:
    """The row of these rounds."""
    median, ratio = (statistics.median(values) if values else None for values in (seconds, ratios))
    spread = ratios or seconds
    return Row(name, median, ratio, min(spread, default=None), max(spread, default=None), note, bar)


def time_call(function: Callable[[], object]) -> float:
    """Seconds that one call takes; on a GPU until its work is done."""
    started = time.perf_counter()
    function()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def interleave(functions: Mapping[str, Callable[[], object]], num_rounds: int, warm_up: int = 1) -> Seconds:
    """Times every function once per round, in this process; the first `warm_up` rounds do not count."""
    return _take_turns({name: partial(time_call, each) for name, each in functions.items()}, num_rounds, warm_up)


def alternate(makers: Mapping[str, tuple], num_rounds: int, warm_up: int = 1) -> Seconds:
    """Does the same with one process per function, so that each has its own allocator; the others wait meanwhile.

    Args:
        makers: name -> (maker, argument, ...), with which a process makes the function that it times.
    """
    with contextlib.ExitStack() as stack:
        clocks = {}
        for name, maker in makers.items():
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(1, context, _make, maker))
            clocks[name] = lambda pool=pool: pool.submit(_time_made).result()
        return _take_turns(clocks, num_rounds, warm_up)


def _take_turns(clocks: Mapping[str, Callable[[], float]], num_rounds: int, warm_up: int) -> Seconds:
    taken: Seconds = {name: [] for name in clocks}
    for number in range(warm_up + num_rounds):
        for name in clocks if number % 2 == 0 else reversed(list(clocks)):
            seconds = clocks[name]()
            if number >= warm_up:
                taken[name].append(seconds)
    return taken


_made: Callable[[], object]


def _make(maker: Callable, *arguments: object) -> None:
    global _made
    _made = maker(*arguments)


def _time_made() -> float:
    return time_call(_made)


def compare(
    taken: Seconds, bars: Mapping[str, float] | None = None, notes: Mapping | None = None, num_photos: int = 0
) -> list[Row]:
    """One row per name, against the first; with `num_photos` per call, the notes say how many that is per second."""
    peer, rows = next(iter(taken)), []
    for name, seconds in taken.items():
        note = (notes or {}).get(name, "")
        if num_photos:
            rate = f"{num_photos / statistics.median(seconds):.1f} photos per second"
            note = f"{rate}; {note}" if note else rate
        ratios = [theirs / ours for theirs, ours in zip(taken[peer], seconds, strict=True)]
        rows.append(make_row(name, seconds, () if name == peer else ratios, note, (bars or {}).get(name)))
    return rows


def format_markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| what | time | ratio | lowest to highest | bar | note |", "|---|---|---|---|---|---|"]
    for row in rows:
        value = _duration if row.ratio is None else "{:.3f}".format
        time_ = "" if row.seconds is None else _duration(row.seconds)
        ratio = "" if row.ratio is None else value(row.ratio)
        spread = "" if row.low is None or row.high is None else f"{value(row.low)} to {value(row.high)}"
        bar = "" if row.bar is None else f"{row.bar:.2f} {'met' if (row.ratio or 0) >= row.bar else 'MISSED'}"
        lines.append(f"| {' | '.join([row.name, time_, ratio, spread, bar, row.note])} |")
    return "\n".join(lines)


def to_record(benchmark: str, argv: Sequence[str], rows: Sequence[Row]) -> dict:
    """What the JSON file holds: the rows, and where, when and how they were measured."""
    return {
        "benchmark": benchmark,
        "command": f"python -m tools bench {' '.join(argv)}",
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "machine": {
            "processor": _processor_name(),
            "cores": len(os.sched_getaffinity(0)),
            "load": os.getloadavg()[0],
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "rows": [dataclasses.asdict(row) for row in rows],
    }


def _duration(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _processor_name() -> str:
    """The name that Linux gives; elsewhere Python's, which is less exact."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
