"""What the tables of faults share: how a row is written, and files that are none."""

import io
import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))


def encoded(image, kind, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def spoilt(content: bytes, byte: bytes) -> bytes:
    """With 300 other bytes behind the header."""
    return content[:8] + byte * 300 + content[308:]


def faults(names: str, rows: list[tuple]):
    """`pytest.mark.parametrize` for rows that begin with their number in the project's list of faults."""
    return pytest.mark.parametrize(names, [pytest.param(*values, id=number) for number, *values in rows])


def put(path: Path, content: str | bytes | Callable[[Path], object]) -> None:
    """Writes text or bytes, or calls `content(path)`, which makes something of another kind."""
    if callable(content):
        content(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))  # a socket's name has at most 107 bytes


def _locked(path: Path) -> None:
    path.touch()
    path.chmod(0)


def large(size: int) -> Callable[[Path], object]:
    """A file of `size` bytes that take no room."""
    return lambda path: path.touch() or os.truncate(path, size)


# What may stand where a file is wanted; a FIFO must not be waited for, a device not read to its end.
NO_FILES = {
    "nothing": lambda _path: None,
    "folder": Path.mkdir,
    "fifo": os.mkfifo,
    "socket": _socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "loop": lambda path: path.symlink_to(path.name),
    "locked": _locked,
}
