"""Writes a run's checkpoints, metrics.csv, curves.png, status.json and run.json. Only the first rank writes."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tools.base.errors import ResourceError
from tools.base.files import write_bytes
from tools.checkpoint import store
from tools.render.figures import draw_curves
from tools.runtime.distributed import Ranks, on_first_rank
from tools.train.history import HISTORY, add_row

STATUS = "status.json"


class RunFolder:
    """Writes the files of one run: checkpoints, metrics.csv, curves.png and status.json.

    The methods that write checkpoints are called by all ranks: a failure on the first rank ends every rank.

    Args:
        command: the command line that resumes the run.
        meta: what every checkpoint holds besides weights and progress (config, classes, preprocess, ...).
    """

    def __init__(self, path: Path, command: str, meta: dict, ranks: Ranks):
        self.path, self.command, self.meta, self.ranks = path, command, meta, ranks
        self._identity = path.stat() if ranks.first else None
        self._status: dict = {}

    def save_last(self, content: dict) -> None:
        """Writes last.pth; the file of that name becomes previous.pth."""
        with self._writing() as folder:
            if folder:
                content = {"format": store.FORMAT, **self.meta, **content}
                store.save(folder / store.LAST, content, folder / store.PREVIOUS)

    def add_epoch(self, row: dict, content: dict, *, is_best: bool, snapshot: bool) -> None:
        """Writes the results of a validated epoch: its row of metrics.csv, the curves, best.pth and its snapshot.

        Args:
            row: for `tools.train.history.add_row`.
            content: the inference weights, their scores and the fitted rule.
        """
        with self._writing() as folder:
            if folder:
                paths = [folder / store.BEST] if is_best else []
                if snapshot:
                    paths.append(folder / store.SNAPSHOTS / f"epoch_{row['epoch']:03d}.pth")
                for path in paths:
                    path.parent.mkdir(exist_ok=True)
                    store.save(path, {"format": store.FORMAT, **self.meta, **content})
                rows = add_row(folder / HISTORY, row)
                write_bytes(folder / "curves.png", draw_curves(rows), make_folder=False)

    def write_status(self, state: str, **values: object) -> None:
        """Updates status.json, which `python -m tools status` reads."""
        if self.ranks.first:
            now = {"state": state, "at": datetime.now(UTC).isoformat(), "command": self.command}
            self._status |= now | values
            with self._owned() as folder:
                write_bytes(folder / STATUS, (json.dumps(self._status) + "\n").encode(), make_folder=False)

    @contextmanager
    def _writing(self) -> Iterator[Path | None]:
        """The folder on the first rank, None on the others; an error on the first rank ends all ranks."""
        with on_first_rank(self.ranks):
            if not self.ranks.first:
                yield None
                return
            with self._owned() as folder:
                yield folder

    @contextmanager
    def _owned(self) -> Iterator[Path]:
        """The folder, checked to be the one that the run began in, before and again when a write fails.

        Another folder of its name would receive a partial run, or belong to another process.
        """
        self._check()
        try:
            yield self.path
        except (ResourceError, OSError):
            self._check()
            raise

    def _check(self) -> None:
        try:
            same = self._identity is not None and os.path.samestat(self.path.stat(), self._identity)
        except OSError:
            same = False
        if not same:
            raise ResourceError(f"{self.path} was removed or replaced during the run; put it back, or start again")


def record_start(folder: Path, argv: Sequence[str]) -> None:
    """Writes run.json: start time and command line. `newest_run` reads this time; file times are ignored."""
    record = {"started": datetime.now(UTC).isoformat(), "argv": list(argv)}
    write_bytes(folder / store.RUN, (json.dumps(record) + "\n").encode())
