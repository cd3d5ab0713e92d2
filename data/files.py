"""Reading a file that somebody else made."""

import os
import stat
from pathlib import Path

from tools.errors import DataError


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
