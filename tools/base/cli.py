"""The command line: a strict parser, the flags that set config keys, and the frame around every `main(argv) -> int`."""

import argparse
import contextlib
import functools
import io
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from tools import __version__
from tools.base.errors import Interrupted, UsageError, as_user_error, nearest

VERSION = f"plantswin {__version__}"
HELD_OUT = "held-out"  # a value of --split: training photos, each for the model of a fold that did not train on it
_MAX_LINE = 2000  # characters of an error; what the user gave may be of any length
# How a number is written. Python itself would also take 1_0, " 4 " and the digits of other scripts.
_PLAIN = {int: r"[-+]?[0-9]{1,18}", float: r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,4})?"}


def _plain_number(kind: type, text: str) -> Any:
    if not re.fullmatch(_PLAIN[kind], text):
        raise ValueError(text)
    return kind(text)


def share(text: str) -> float:
    """Type of a flag that takes a number of 0 or more and less than 1."""
    value: float = _plain_number(float, text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 0 or more and less than 1, e.g. 0.05")
    return value


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes no abbreviations and answers a mistake with one line and the nearest flag.

    Args:
        hint: unknown flag -> what to write instead, or the empty string; called when no flag is similar.
    """

    def __init__(self, hint: Callable[[str], str] = lambda _flag: "", **kwargs: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)
        self.hint = hint
        for kind in _PLAIN:
            self.register("type", kind, functools.partial(_plain_number, kind))
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")
        self.add_argument("--version", action="version", version=VERSION, help="show the version and exit")

    def parse_args(self, args: Sequence[str], namespace: None = None) -> argparse.Namespace:  # type: ignore[override]
        """The values of `args`. Raises UsageError for a flag that does not exist."""
        for argument in args:  # first, because argparse would only report that a misspelt flag is missing
            flag = argument.split("=")[0]
            if flag.startswith("--") and flag not in self._option_string_actions:
                hint = nearest(flag, self._option_string_actions, cutoff=0.7) or self.hint(flag)
                raise UsageError(f"unrecognized argument {argument!r}{hint}")
        known, unknown = self.parse_known_args(args, namespace)
        if unknown:
            raise UsageError(f"unrecognized argument {unknown[0]!r}")
        return known

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def printable(text: str) -> str:
    """The text with every character that is unprintable or moves the cursor escaped as in Python."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def command(body: Callable[[list[str]], int]) -> Callable[[list[str] | None], int]:
    """Turns `body(argv) -> int` into an entry point: every error becomes one line on stderr and an exit code."""

    @functools.wraps(body)
    def main(argv: list[str] | None = None) -> int:
        argv = sys.argv[1:] if argv is None else list(argv)
        _make_streams_accept_all()
        try:
            with _terminations_raised():
                code = body(argv)
                sys.stdout.flush()  # now, so that a full disk is reported as an error
                return code
        except Interrupted as ended:
            return _report(ended, ended.exit_code, "--debug" in argv)
        except KeyboardInterrupt:
            return _report("interrupted", 130, False)
        except BrokenPipeError:  # `... | head` closed our stdout; this is not an error
            return 141
        except SystemExit as exit:  # from argparse, after --help
            return int(exit.code or 0)
        except Exception as raised:
            error = as_user_error(raised)
            return _report(error, error.exit_code, "--debug" in argv)
        finally:
            _drop_unwritable_output()

    return main


def _make_streams_accept_all() -> None:
    """Makes stdout and stderr accept file names in any encoding, and drop the output when they are closed (`>&-`)."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", errors="replace"))  # noqa: SIM115 (it stays open)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_unwritable_output() -> None:
    """Discards what stdout could not write; otherwise the interpreter tries again at exit and prints an error."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _terminations_raised() -> Iterator[None]:
    """Inside the block, SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that no half-written file stays."""

    def leave(signal_number: int, _frame: object) -> NoReturn:
        raise Interrupted(f"ended by {signal.Signals(signal_number).name}", signal_number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(message: object, exit_code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    line = " ".join(str(message).split("\n"))
    line = re.sub(r"(\S{150})\S{200,}(\S{150})", r"\1...\2", line)  # a name of thousands of letters
    if len(line) > _MAX_LINE:
        line = f"{line[: _MAX_LINE // 2]} ... {line[-_MAX_LINE // 2 :]}"
    with contextlib.suppress(OSError):  # stderr may lie on the full disk that is reported
        print(f"error: {printable(line)}", file=sys.stderr)
    return exit_code
