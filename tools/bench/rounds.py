"""The method of every ruler: all ways in turn, round after round, so that other work on the machine meets them alike.

A round times every way once, in the opposite order of the round before. A ratio is taken within a round, peer by
ours, so that above 1 ours is faster; shown are its median and its lowest and highest round. The machine's own fp32
matrix multiply is timed beside them, in the same rounds, or a slow hour would pass for a slow program.
"""

import dataclasses
import datetime
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

PEAK = "matrix multiply of the machine"
PEAK_SIDE = 1024  # of the square fp32 matrices: 2.1 G floating point operations a product
Seconds = dict[str, list[float]]  # way -> seconds of every round


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a ruler's table.

    Attributes:
        seconds: median over the rounds; None for what is not timed.
        ratio: the peer's time by this one, or whatever `note` says; None for the peer itself.
        low, high: lowest and highest round of the ratio, or of the seconds where there is no ratio.
        note: in words.
        bar: the ratio that is wanted, at least.
    """

    name: str
    seconds: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""
    bar: float | None = None


def interleave(ways: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> Seconds:
    """Calls every way once a round and returns its seconds; the first `warm_up` rounds do not count."""
    taken: Seconds = {name: [] for name in ways}
    for number in range(warm_up + rounds):
        names = list(ways) if number % 2 == 0 else list(reversed(ways))
        for name in names:
            seconds = _timed(ways[name])
            if number >= warm_up:
                taken[name].append(seconds)
    return taken


def alternate(ways: Mapping[str, tuple], rounds: int, warm_up: int = 1) -> Seconds:
    """The same with a process for every way, so that what a process does to itself (its allocator) stays its own.

    Args:
        ways: name -> (maker, argument, ...): a function of a module, and what its process calls it with for the
            callable that is timed. While one process works, the others wait.
    """
    context = multiprocessing.get_context("spawn")
    processes = {name: _Process(context, maker, arguments) for name, (maker, *arguments) in ways.items()}
    try:
        asked = {name: process.ask for name, process in processes.items()}
        taken: Seconds = {name: [] for name in ways}
        for number in range(warm_up + rounds):
            names = list(ways) if number % 2 == 0 else list(reversed(ways))
            for name in names:
                seconds = asked[name]()
                if number >= warm_up:
                    taken[name].append(seconds)
        return taken
    finally:
        for process in processes.values():
            process.end()


def matrix_multiply(threads: int) -> Callable[[], object]:
    """A way that multiplies two fp32 matrices: what the machine can do at that moment."""
    import torch

    torch.set_num_threads(threads)
    left, right = (torch.randn(PEAK_SIDE, PEAK_SIDE) for _ in range(2))
    return lambda: [left @ right for _ in range(8)]


def compare(taken: Seconds, peer: str, bars: Mapping[str, float] | None = None, notes: Mapping | None = None) -> list:
    """A row for every way, in the order given, against `peer`; the machine's multiply gets its rate instead."""
    rows = []
    for name, seconds in taken.items():
        note = (notes or {}).get(name, "")
        if name == PEAK:
            rate = 8 * 2 * PEAK_SIDE**3 / statistics.median(seconds) / 1e9
            rows.append(alone(name, seconds, note or f"{rate:.0f} G floating point operations a second"))
        elif name == peer:
            rows.append(alone(name, seconds, note))
        else:
            ratios = [theirs / ours for theirs, ours in zip(taken[peer], seconds, strict=True)]
            bar = (bars or {}).get(name)
            middle = statistics.median(ratios)
            rows.append(Row(name, statistics.median(seconds), middle, min(ratios), max(ratios), note, bar))
    return rows


def alone(name: str, seconds: Sequence[float], note: str = "") -> Row:
    """A row of a way that is compared with nothing."""
    return Row(name, statistics.median(seconds), None, min(seconds), max(seconds), note)


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| what | time | ratio | lowest to highest | bar | note |", "|---|---|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(_cells(row))} |" for row in rows)])


def record(ruler: str, argv: Sequence[str], rows: Sequence[Row]) -> dict:
    """What the JSON file holds: the rows, and where, when and how they were measured."""
    import torch

    return {
        "ruler": ruler,
        "command": f"python -m tools bench {' '.join(argv)}",
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "machine": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "load": os.getloadavg()[0],
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "rows": [dataclasses.asdict(row) for row in rows],
    }


class _Process:
    """A process that makes a way and times it whenever it is asked."""

    def __init__(self, context, maker: Callable, arguments: Sequence):
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, maker, arguments), daemon=True)
        self.process.start()
        other.close()

    def ask(self) -> float:
        self.connection.send("time")
        return self.connection.recv()

    def end(self) -> None:
        self.connection.close()
        self.process.join()


def _serve(connection, maker: Callable, arguments: Sequence) -> None:
    way = maker(*arguments)
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        connection.send(_timed(way))


def _timed(way: Callable[[], object]) -> float:
    started = time.perf_counter()
    way()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _cells(row: Row) -> Iterator[str]:
    yield row.name
    yield "" if row.seconds is None else _duration(row.seconds)
    yield "" if row.ratio is None else f"{row.ratio:.3f}"
    if row.low is None or row.high is None:
        yield ""
    elif row.ratio is None:
        yield f"{_duration(row.low)} to {_duration(row.high)}"
    else:
        yield f"{row.low:.3f} to {row.high:.3f}"
    yield "" if row.bar is None else f"{row.bar:.2f} {'met' if (row.ratio or 0) >= row.bar else 'MISSED'}"
    yield row.note


def _duration(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _processor() -> str:
    """The processor's name where Linux tells it."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
