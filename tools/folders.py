"""Writing a folder of results: one writer at a time, and the folder gets its name only when it is whole.

with locked(target), staging(target) as folder:
    ...                       # write into folder
    publish(folder, target)   # one step; without it nothing stays
"""

import contextlib
import ctypes
import fcntl
import os
import re
import shutil
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from tools.errors import BusyError, ResourceError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """Inside, nobody else has the lock of `target`. The kernel releases it when the process ends, however it ends.

    Raises:
        BusyError: when another process has it; it is named.
        ResourceError: when its file cannot be made.
    """
    path = _lock_file(target)
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(path, target)
    except OSError as error:
        raise ResourceError(f"{error.filename or path} cannot be written: {error.strerror}") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # gone, or we may write there no more
            path.unlink()  # while it is still ours
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing alone would leave it to processes forked meanwhile
        os.close(descriptor)
        for folder in made:
            with contextlib.suppress(OSError):  # not empty: it has become the home of `target`
                folder.rmdir()


def holder(target: Path) -> str:
    """Who has the lock of `target`, as `process N on HOST since TIME`; the empty string when nobody has."""
    try:
        with _lock_file(target).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read(200) or "a process that has only just begun"
    except OSError:  # there is no such file, so nobody can have it
        pass
    return ""


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Path]:
    """An empty hidden folder beside `target`, removed on the way out. Needs the lock of `target`.

    What a killed process left is cleared away first: with the lock in hand, no writer of it can be alive.
    """
    try:
        _sweep(target)
        folder = target.parent / f".{target.name}.tmp-{os.getpid()}"
        folder.mkdir()
    except OSError as error:
        raise ResourceError(f"{error.filename or target} cannot be written: {error.strerror}") from None
    try:
        yield folder
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ResourceError(f"{error.filename or target} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, target: Path) -> None:
    """Gives `folder` the name `target`. An older `target` keeps the name until then and is removed afterwards."""
    if not target.exists():
        folder.rename(target)
    elif not _exchange(folder, target):
        old = target.parent / f".{target.name}.old-{os.getpid()}"
        target.rename(old)
        folder.rename(target)
        shutil.rmtree(old)


def _lock_file(target: Path) -> Path:
    return target.parent / f".{target.name}.lock"


def _lock(path: Path, target: Path) -> int:
    """Descriptor of the locked file, in which now stands who we are."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise BusyError(f"{target} is in use by {holder(target)}; wait for it, or choose another name") from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                os.ftruncate(descriptor, 0)
                now = datetime.now(UTC).isoformat(" ", "seconds")
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {now}".encode())
                return descriptor
        os.close(descriptor)  # its last owner removed the file after we had opened it


def _sweep(target: Path) -> None:
    """Removes what killed writers left, and restores what one of them had moved aside and not yet replaced."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(tmp|old)-\d+")
    for path in target.parent.iterdir():
        kind = pattern.fullmatch(path.name)
        if kind and kind[1] == "old" and not target.exists():
            path.rename(target)
        elif kind:
            shutil.rmtree(path, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Swaps two names in one step; False where kernel or file system cannot."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "renameat2"):
        return False
    return libc.renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0
