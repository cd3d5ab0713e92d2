"""The errors a user may see, each with its exit code. Every file may import this one."""

import difflib
import errno
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path


class UserError(Exception):
    """Something the user can fix. A command prints `error: MESSAGE` on one line and exits with `exit_code`.

    The message says what, where and why, and after a semicolon what to do.
    """

    exit_code = 1


class UsageError(UserError):
    """Invalid command line or config."""

    exit_code = 2


class DataError(UserError):
    """Invalid photos, labels or folders."""

    exit_code = 3


class CheckpointError(UserError):
    """Invalid checkpoint or pretrained weights."""

    exit_code = 4


class ResourceError(UserError):
    """Missing disk space, memory, device or permission."""

    exit_code = 5


class NumericsError(UserError):
    """NaN or infinity where a number is needed."""

    exit_code = 6


class BusyError(UserError):
    """Another process is writing there."""

    exit_code = 7


class PeerLostError(UserError):
    """Another rank ended or does not respond."""

    exit_code = 8


class Interrupted(KeyboardInterrupt):
    """A signal ended the command. `exit_code` is 128 + the number of the signal.

    Like Ctrl-C not an Exception: libraries suppress those around imports that may fail.
    """

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number


def nearest(name: str, choices: Iterable[str], cutoff: float = 0.5) -> str:
    """`; did you mean X?` for the choice most like `name`, or the empty string when none is close.

    Args:
        cutoff: smallest similarity (difflib's ratio, 0 to 1) of a choice that is suggested.
    """
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]}?" if close else ""


def listing(names: Sequence[str], separator: str = ", ", most: int = 5) -> str:
    """The first `most` names, and an ellipsis when there are more."""
    return separator.join([*names[:most], *(["..."] if len(names) > most else [])])


_OURS = ("configs", "models", "data", "tools", "main", "test", "visual", "process_dataset")
_NO_MEMORY = (  # in lower case
    *("allocate memory", "bad alloc", "could not create a primitive"),  # torch on a CPU, C++, oneDNN
    *("out of memory", "out_of_memory", "alloc_failed", "allocation_failed", "unable to find an engine"),  # of CUDA
)
_PEERS = ("DistBackendError", "DistNetworkError", "DistStoreError")  # of torch.distributed


def as_user_error(error: Exception) -> UserError:
    """The one-line error for any exception: what is missing, ran out or was refused, or else that it is our bug."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.split(".")[0] not in _OURS:
        return ResourceError(
            f"the Python package {error.name} is not installed in {sys.prefix}; run pip install -r requirements.txt "
            "there, or make test, which sets up .venv"
        )
    kind, text = type(error).__name__, (str(error).splitlines() or [""])[0]
    if is_out_of_memory(error):
        return ResourceError(f"out of memory: {text or kind}; lower --batch-size, DATA.IMG_SIZE or DATA.NUM_WORKERS")
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else ""
        if error.errno == errno.ENAMETOOLONG:
            return UsageError(f"{where}the name is longer than this file system takes; give a shorter one")
        return ResourceError(f"{where}the system refused: {error.strerror or error}; fix that and run it again")
    if text.startswith(("DataLoader worker", "DataLoader timed out")):
        return ResourceError(f"{text}; was it out of memory? Lower DATA.NUM_WORKERS or --batch-size and run it again")
    if text.startswith("Expected more than 1 value per channel"):
        return UsageError(f"batch norm cannot train: {text}; raise --batch-size or DATA.IMG_SIZE")
    if "unhandled cuda error" in text:
        return ResourceError(f"the GPUs cannot exchange gradients: {text}; NCCL_DEBUG=INFO shows why")
    if kind in _PEERS or "gloo/transport" in text:
        return PeerLostError(f"another rank is gone: {text}; look for its own error, then run the same command again")
    place = traceback.extract_tb(error.__traceback__)[-1]
    return UserError(
        f"this is a bug of PlantSwin: {kind} at {Path(place.filename).name}:{place.lineno}: {text}; "
        "run it again with --debug and report what it prints"
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether the memory of the GPU or the main memory ran out."""
    text = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY))
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    )
