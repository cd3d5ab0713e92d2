"""Writes TensorBoard event files, without the thread of TensorBoard's writer, whose errors are tracebacks."""

import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from tools.base.errors import ResourceError


class EventWriter:
    """Writes scalars into a new file of a folder; TensorBoard reads the files of a folder in the order of their names.

    Args:
        step: updates done. TensorBoard hides the points of later steps in older files.
    """

    def __init__(self, folder: Path, step: int):
        self._path = folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._records = RecordWriter(self._path.open("xb", buffering=0))
        self._write(file_version="brain.Event:2")
        self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Adds a point at `step` to every curve `<group>/<name>`. Raises ResourceError if writing fails."""
        points = [Summary.Value(tag=f"{group}/{name}", simple_value=value) for name, value in values.items()]
        self._write(step=step, summary=Summary(value=points))

    def _write(self, **fields) -> None:
        try:
            self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())
        except OSError as error:
            raise ResourceError(f"{self._path} cannot be written: {error.strerror}") from None
