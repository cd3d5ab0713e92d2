"""The errors a user may see, each with its exit code. The one file that every shelf may import."""

import difflib
import errno
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path


class UserError(Exception):
    """Something the user can put right. An entry point prints `error: <message>` on one line and exits with the code.

    The message says what, where and why, and after a semicolon what to do.
    """

    exit_code = 1


class UsageError(UserError):
    """The command line or the config."""

    exit_code = 2


class DataError(UserError):
    """Photos, labels, folders."""

    exit_code = 3


class CheckpointError(UserError):
    """Checkpoints and pretrained weights."""

    exit_code = 4


class ResourceError(UserError):
    """Disk, memory, device, permission."""

    exit_code = 5


class NumericsError(UserError):
    """NaN or infinity where a number is needed."""

    exit_code = 6


class BusyError(UserError):
    """Somebody else is writing there."""

    exit_code = 7


class PeerLostError(UserError):
    """Another rank ended or is silent."""

    exit_code = 8


class Interrupted(UserError):
    """A signal ended the run after it had saved its state. `exit_code` is 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number


def nearest(name: str, choices: Iterable[str]) -> str:
    """`; did you mean X?` for the choice most like `name`, or the empty string when none is close."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def listing(names: Sequence[str], separator: str = ", ", most: int = 5) -> str:
    """The first names and, when there are more, an ellipsis."""
    return separator.join([*names[:most], *(["..."] if len(names) > most else [])])


_NO_MEMORY = ("allocate memory", "bad alloc", "could not create a primitive")  # torch on a CPU, C++, oneDNN


_PEERS = ("DistBackendError", "DistNetworkError", "DistStoreError")  # of torch.distributed


def as_user_error(error: Exception) -> UserError:
    """The one-line error for any exception: what ran out or was refused, or else that it is our own mistake."""
    if isinstance(error, UserError):
        return error
    kind, text = type(error).__name__, (str(error).splitlines() or [""])[0]
    if is_out_of_memory(error):
        return ResourceError(f"out of memory: {text or kind}; lower --batch-size, DATA.IMG_SIZE or DATA.NUM_WORKERS")
    if isinstance(error, OSError):
        return _refused_by_the_system(error)
    if text.startswith(("DataLoader worker", "DataLoader timed out")):
        return ResourceError(f"{text}; was it out of memory? Lower DATA.NUM_WORKERS or --batch-size and run it again")
    if text.startswith("Expected more than 1 value per channel"):
        return UsageError(f"batch norm cannot train: {text}; raise --batch-size or DATA.IMG_SIZE")
    if kind in _PEERS or "gloo/transport" in text:
        return PeerLostError(f"another rank is gone: {text}; look for its own error, then run the same command again")
    place = traceback.extract_tb(error.__traceback__)[-1]
    return UserError(
        f"this is a bug of PlantSwin: {kind} at {Path(place.filename).name}:{place.lineno}: {text}; "
        "run it again with --debug and report what it prints"
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether the GPU's or the main memory ran out."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY))
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    )


def _refused_by_the_system(error: OSError) -> UserError:
    where = f"{error.filename}: " if error.filename is not None else ""
    if error.errno == errno.ENAMETOOLONG:
        return UsageError(f"{where}the name is longer than this file system takes; give a shorter one")
    return ResourceError(f"{where}the system refused: {error.strerror or error}; mend that and run it again")
