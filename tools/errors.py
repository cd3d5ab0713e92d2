"""The errors a user may see, each with its exit code. The one file that every shelf may import."""

import difflib
from collections.abc import Iterable, Sequence


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
