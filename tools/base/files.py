"""Files: reading those of others safely, writing our own whole or not at all, and locks."""

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from tools.base.errors import BusyError, DataError, ResourceError, UsageError


def read_regular(path: Path, what: str, max_bytes: int) -> bytes:
    """The bytes of a regular file of at most `max_bytes`; errors begin with `what`, e.g. "box file".

    Raises:
        DataError: for any other path. Reading a FIFO would block forever; reading a device would never end.
    """
    try:
        # O_NONBLOCK: opening a FIFO returns at once, and the check below refuses it
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise DataError(f"{what} {path} is not a file")
            raw = b"" if info.st_size > max_bytes else file.read(max_bytes + 1)  # files in /proc report 0 bytes
            if max(info.st_size, len(raw)) > max_bytes:
                raise DataError(f"{what} {path} is larger than {max_bytes:,} bytes")
            return raw
    except FileNotFoundError:
        raise DataError(f"{what} {path} does not exist") from None
    except IsADirectoryError:
        raise DataError(f"{what} {path} is not a file") from None
    except OSError as error:
        raise DataError(f"{what} {path} cannot be read: {error.strerror}") from None


def leads_out(entry: os.DirEntry[str], root: Path) -> bool:
    """Whether a folder entry is a link to a place outside `root`."""
    return entry.is_symlink() and not Path(os.path.realpath(entry)).is_relative_to(os.path.realpath(root))


def write_bytes(path: Path, content: bytes, make_folder: bool = True) -> None:
    """Writes a file whole or not at all. Raises ResourceError if writing fails.

    Args:
        make_folder: make the folder of `path` when it is missing; False makes that an error.
    """
    hidden = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        hidden.write_bytes(content)
        hidden.replace(path)
    except OSError as error:
        raise _refused(error, path) from None
    finally:
        with contextlib.suppress(OSError):  # its folder is gone or belongs to another user: nothing is left to remove
            hidden.unlink(missing_ok=True)


def check_output_file(flag: str, target: str | None, inputs: Iterable[str | Path] = ()) -> None:
    """Raises UsageError when the file `target`, the value of `flag`, is one of the inputs, or its folder is missing."""
    if target in (None, "-"):
        return
    path = Path(target)
    if not path.parent.is_dir():
        raise UsageError(f"{flag} {target}: the folder {path.parent} does not exist; make it first")
    if path.exists() and any(os.path.exists(each) and os.path.samefile(path, each) for each in inputs):
        raise UsageError(f"{flag} {target} is one of the inputs; choose another name")


def check_output_folder(flag: str, folder: Path, photos: str) -> None:
    """Checks that results can be written into `folder`, which may not exist yet; leaves no trace.

    Raises:
        UsageError: when it lies in the folder `photos`: the results would be read as photos later.
        ResourceError: when it cannot be written.
    """
    if folder.resolve().is_relative_to(Path(photos).resolve()):
        raise UsageError(f"{flag} {folder} lies among the photos of {photos}; choose another place")
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise ResourceError(
            f"{folder} cannot be written: {error.strerror}; choose another folder with {flag}"
        ) from None


def open_own(path: Path) -> IO[bytes]:
    """Opens a file of ours for reading and writing, and makes it when it is missing.

    Raises:
        ResourceError: for a link, whose target may belong to another user, and for anything but a regular file.
    """
    try:
        # O_NONBLOCK: opening a FIFO returns at once, and the check below refuses it
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        what = "it is a link" if error.errno == errno.ELOOP else error.strerror
        raise ResourceError(f"{path} cannot be written: {what}; remove it, or choose another name") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ResourceError(f"{path} cannot be written: it is not a regular file; remove it, or choose another name")
    return os.fdopen(descriptor, "r+b")


@contextlib.contextmanager
def locked(target: Path, wait: bool = False) -> Iterator[None]:
    """Holds the lock of `target` inside the block. The kernel releases it however the process ends.

    Args:
        wait: wait until another process releases it, however long that takes.

    Raises:
        BusyError: naming the process that has it, unless `wait` is set.
        ResourceError: when the lock file cannot be made.
    """
    path = _lock_file(target)
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _lock(path, target, wait)
    except OSError as error:
        raise _refused(error, error.filename or path) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it is gone, or the folder has become read-only
            path.unlink()  # before the lock is released, while the file is still ours
        fcntl.flock(file, fcntl.LOCK_UN)  # closing alone would leave the lock to processes that were forked meanwhile
        file.close()
        for folder in made:
            with contextlib.suppress(OSError):  # not empty: it holds `target` now
                folder.rmdir()


def holder(target: Path) -> str:
    """The process that has the lock of `target`, as `process N on HOST since TIME`, or the empty string."""
    try:
        descriptor = os.open(_lock_file(target), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, errors="backslashreplace") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read(200) or "a process that has just started"
    except OSError:  # no lock file, so no process has the lock
        pass
    return ""


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Path]:
    """An empty hidden folder beside `target`, removed on exit. Needs the lock of `target`.

    First it removes what killed processes left; as this process has the lock, no other writer can be alive.
    """
    folder = target.parent / f".{target.name}.tmp-{os.getpid()}"
    try:
        _sweep(target)
        folder.mkdir()
        yield folder
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _refused(error, error.filename2 or error.filename or target) from None  # a copy's target, then its source
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, target: Path) -> None:
    """Renames `folder` to `target`, in one step where the system can. An older `target` is removed afterwards."""
    if not target.exists():
        folder.rename(target)
    elif not _exchange(folder, target):
        old = target.parent / f".{target.name}.old-{os.getpid()}"
        target.rename(old)
        folder.rename(target)
        shutil.rmtree(old)


def _refused(error: OSError, path: Path | str) -> ResourceError:
    return ResourceError(f"{path} cannot be written: {error.strerror or error}")


def _lock_file(target: Path) -> Path:
    return target.parent / f".{target.name}.lock"


def _lock(path: Path, target: Path, wait: bool) -> IO[bytes]:
    """Locks the file at `path`, writes the name of this process into it, and returns it open."""
    while True:
        file = open_own(path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.close()
            raise BusyError(f"{target} is in use by {holder(target)}; wait for it, or choose another name") from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                file.truncate(0)
                now = datetime.now(UTC).isoformat(" ", "seconds")
                file.write(f"process {os.getpid()} on {os.uname().nodename} since {now}".encode())
                file.flush()
                return file
        file.close()  # its last owner removed the file after this process had opened it


def _sweep(target: Path) -> None:
    """Removes what killed writers left, and restores a folder that one of them had moved aside and not replaced."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(tmp|old)-\d+")
    for path in target.parent.iterdir():
        kind = pattern.fullmatch(path.name)
        if kind and kind[1] == "old" and not target.exists():
            path.rename(target)
        elif kind:
            shutil.rmtree(path, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Swaps two names in one step; False where the kernel or the file system cannot."""
    at_fdcwd, rename_exchange = -100, 2  # linux/fcntl.h, linux/fs.h
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "renameat2"):
        return False
    return bool(libc.renameat2(at_fdcwd, os.fsencode(a), at_fdcwd, os.fsencode(b), rename_exchange) == 0)
