"""Writes a run's checkpoints, metrics.csv, curves.png, status.json, run.json and TensorBoard's events.

Only the first rank writes.
"""

import json
import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tools.base.errors import ResourceError, UsageError
from tools.base.files import write_bytes
from tools.base.log import create_logger
from tools.checkpoint import store
from tools.render.figures import draw_curves
from tools.runtime.distributed import Ranks, together
from tools.train.history import HISTORY, add_row

STATUS, CURVES, LOG, CONFIG, TRACE = "status.json", "curves.png", "log.txt", "config.yaml", "trace.json"
EVENTS = "events.out.tfevents.*"  # as TensorBoard calls its files
CHECKPOINTS = (store.LAST, store.PREVIOUS, store.BEST)
RUN_FILES = (*CHECKPOINTS, store.RUN, STATUS, HISTORY, CURVES, LOG, CONFIG, TRACE)


class RunFolder:
    """Writes the files of one run: checkpoints, metrics.csv, curves.png and status.json.

    The methods that write checkpoints are called by all ranks: a failure on the first rank ends every rank.

    Args:
        meta: what every checkpoint holds besides weights and progress (config, classes, preprocess, ...).
        tensorboard: write events for TensorBoard too.

    Raises:
        UsageError: for `tensorboard` where it is not installed.
    """

    def __init__(self, path: Path, meta: dict, ranks: Ranks, tensorboard: bool = False):
        self.path, self.meta, self.ranks = path, {"format": store.FORMAT, **meta}, ranks
        self.command = ""
        self._identity: os.stat_result | None = None
        self._status: dict = {}
        self._event_writer = event_writer() if tensorboard else None
        self._events: Any = None

    def open(
        self, argv: list[str], *, fresh: bool = True, damaged: Iterable[Path] = (), step: int = 0, machine: str = ""
    ) -> None:
        """Prepares the folder, and creates the logger that writes into it.

        Args:
            argv: the arguments of the command line, for run.json and for the hint that says how to resume.
            fresh: delete the files of an older run; otherwise they are continued.
            damaged: checkpoints that get another name.
            step: steps done; see `tools.train.events.EventWriter`.
            machine: what the run is made on, for run.json.
        """
        self.command = resume_command(argv, self.ranks)
        if not self.ranks.first:
            create_logger(rank=self.ranks.rank)
            return
        folder = self.path
        try:
            folder.mkdir(parents=True, exist_ok=True)
            store.sweep(folder)
            for path in damaged:
                path.rename(path.with_name(path.name + store.BROKEN))
            if fresh:
                snapshots, events = (folder / store.SNAPSHOTS).glob("epoch_*.pth"), folder.glob(EVENTS)
                for path in (*(folder / name for name in RUN_FILES), *snapshots, *events):
                    path.unlink(missing_ok=True)
            write_bytes(folder / CONFIG, self.meta["config"].encode())
            # the newest run is the one with the latest start; file times are ignored
            record = {"started": datetime.now(UTC).isoformat(), "argv": argv, "machine": machine}
            write_bytes(folder / store.RUN, _json_line(record))
            create_logger(folder / LOG)
            if self._event_writer:
                self._events = self._event_writer(folder, step)
            self._identity = folder.stat()
        except OSError as error:
            raise ResourceError(f"run folder {folder} cannot be written: {error.strerror}") from None

    def save_last(self, content: dict) -> None:
        """Writes last.pth; the file of that name becomes previous.pth."""
        with together(self.ranks), self._owned():
            if self.ranks.first:
                store.save(self.path / store.LAST, self.meta | content, self.path / store.PREVIOUS)

    def add_epoch(self, row: dict, content: dict, *, is_best: bool, snapshot: bool) -> None:
        """Writes the results of a validated epoch: its metrics.csv row, the curves, and if due best.pth and a snapshot.

        Args:
            row: for `tools.train.history.add_row`.
            content: the inference weights, their scores and the fitted rule.
        """
        with together(self.ranks), self._owned():
            if self.ranks.first:
                if is_best:
                    store.save(self.path / store.BEST, self.meta | content)
                if snapshot:
                    path = self.path / store.SNAPSHOTS / f"epoch_{row['epoch']:03d}.pth"
                    path.parent.mkdir(exist_ok=True)
                    store.save(path, self.meta | content)
                rows = add_row(self.path / HISTORY, row)
                write_bytes(self.path / CURVES, draw_curves(rows), make_folder=False)
                self.add_scalars("epoch", row["step"], {key: row[key] for key in row if key not in ("epoch", "step")})

    def add_scalars(self, group: str, step: int, values: dict[str, float]) -> None:
        """Adds a point at `step` to TensorBoard's curves `<group>/<name>`, if it is to have any."""
        if self._events is not None:
            self._events.add(group, step, values)

    def write_status(self, state: str, **values: object) -> None:
        """Updates status.json, which `python -m tools status` reads."""
        self._status |= {"state": state, "at": datetime.now(UTC).isoformat(), "command": self.command, **values}
        with self._owned():
            if self.ranks.first:
                write_bytes(self.path / STATUS, _json_line(self._status), make_folder=False)

    @contextmanager
    def _owned(self) -> Iterator[None]:
        """Checks that the folder is still the one in which the run began: before the block, and when a write fails.

        A new folder of this name would receive a partial run, or belong to another process.
        """
        self._check()
        try:
            yield
        except (ResourceError, OSError):
            self._check()
            raise

    def _check(self) -> None:
        if self._identity is None:  # not the first rank
            return
        try:
            same = os.path.samestat(self.path.stat(), self._identity)
        except OSError:
            same = False
        if not same:
            raise ResourceError(f"{self.path} was removed or replaced during the run; put it back, or start again")


def event_writer() -> type:
    """The class that writes TensorBoard's events. Raises UsageError where TensorBoard is not installed."""
    try:
        from tools.train.events import EventWriter
    except ImportError:
        raise UsageError(
            "--tensorboard needs the package tensorboard; run pip install tensorboard, or leave the flag out"
        ) from None
    return EventWriter


def _json_line(values: dict) -> bytes:
    return (json.dumps(values) + "\n").encode()


def resume_command(argv: list[str], ranks: Ranks) -> str:
    """The command line that resumes this run, with the program that the user has called."""
    alone, called = ranks.world_size == 1, Path(sys.argv[0])
    torchrun = f"torchrun --nproc_per_node={ranks.world_size}"
    if called.name == "plantswin":
        program = "plantswin train" if alone else f"{torchrun} --no-python plantswin train"
    else:
        script = shlex.quote(str(called)) if called.name == "main.py" else "main.py"
        if called.parts[-2:] == ("tools", "__main__.py"):
            script = "-m tools train"
        program = f"{'python' if alone else torchrun} {script}"
    return f"{program} {shlex.join(word for word in argv if word != '--overwrite')}"
