"""Reading a file that somebody else made."""

import contextlib
import ctypes
import fcntl
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from tools.base.errors import BusyError, DataError, ResourceError, UsageError


def read_regular(path: Path, what: str, max_bytes: int) -> bytes:
    """The bytes of a regular file of at most `max_bytes`; `what` it is begins the error.

    Raises:
        DataError: for anything else. A FIFO would block for ever, a device never end.
    """
    try:
        # O_NONBLOCK: opening a FIFO returns, and its type is refused below
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise DataError(f"{what} {path} is not a file")
            raw = b"" if info.st_size > max_bytes else file.read(max_bytes + 1)  # files of /proc say that they have 0
            if max(info.st_size, len(raw)) > max_bytes:
                raise DataError(f"{what} {path} is larger than {max_bytes:,} bytes")
            return raw
    except FileNotFoundError:
        raise DataError(f"{what} {path} does not exist") from None
    except IsADirectoryError:
        raise DataError(f"{what} {path} is not a file") from None
    except OSError as error:
        raise DataError(f"{what} {path} cannot be read: {error.strerror}") from None


def leads_out(entry: os.DirEntry, root: Path) -> bool:
    """Whether an entry of a folder is a link to something that does not lie under `root`."""
    return entry.is_symlink() and not Path(os.path.realpath(entry)).is_relative_to(os.path.realpath(root))


def write_bytes(path: Path, content: bytes, make_folder: bool = True) -> None:
    """Writes beside `path` and renames. Raises ResourceError when the disk refuses; no half file stays.

    Args:
        make_folder: make the folder of `path` where there is none; False where its absence is an error.
    """
    staging = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        staging.write_bytes(content)
        staging.replace(path)
    except OSError as error:
        raise ResourceError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):  # its folder is gone or not ours: there is nothing left to tidy
            staging.unlink(missing_ok=True)


def check_output(flag: str, target: str | Path | None, inputs: Iterable[str | Path] = (), photos: str = "") -> None:
    """Raises UsageError when the output `target` that `flag` names would harm what is read.

    Args:
        inputs: files, none of which it may be.
        photos: a folder in which it may not lie, because whoever reads it next would take it for a part of the data.
    """
    if target is None:
        return
    if photos and Path(target).resolve().is_relative_to(Path(photos).resolve()):
        raise UsageError(f"{flag} {target} lies among the photos of {photos}; choose another place")
    if os.path.exists(target) and any(os.path.exists(each) and os.path.samefile(target, each) for each in inputs):
        raise UsageError(f"{flag} {target} is what is read; choose another name")


_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


@contextlib.contextmanager
def locked(target: Path, wait: bool = False) -> Iterator[None]:
    """Inside, nobody else has the lock of `target`. The kernel releases it when the process ends, however it ends.

    Args:
        wait: wait until another process releases it, however long that takes.

    Raises:
        BusyError: when another process has it and `wait` is False; that process is named.
        ResourceError: when its file cannot be made.
    """
    path = _lock_file(target)
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(path, target, wait)
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


def _lock(path: Path, target: Path, wait: bool) -> int:
    """Descriptor of the locked file, in which now stands who we are."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
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
