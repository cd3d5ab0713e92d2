"""The command line: a strict parser, the flags that set config keys, and the frame round every `main(argv) -> int`."""

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
from collections.abc import Callable, Sequence

from tools.base.errors import Interrupted, UsageError, as_user_error, nearest

# What a number looks like. Python itself would also take 1_0, " 4 " and the digits of other scripts.
_PLAIN = {int: r"[-+]?[0-9]{1,18}", float: r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,4})?"}


def _plain_number(kind: type, pattern: str, text: str) -> int | float:
    if not re.fullmatch(pattern, text):
        raise ValueError(text)
    return kind(text)


def share(text: str) -> float:
    """Type of a flag that takes a number of 0 or more and less than 1."""
    value = _plain_number(float, _PLAIN[float], text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 0 or more and less than 1, e.g. 0.05")
    return value


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes no abbreviations and answers a mistake with one line and the nearest flag."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)
        for kind, pattern in _PLAIN.items():
            self.register("type", kind, functools.partial(_plain_number, kind, pattern))
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def parse_args(self, args: Sequence[str] | None = None, namespace=None) -> argparse.Namespace:
        for argument in args or ():  # before argparse complains of what the misspelt flag left out
            flag = argument.split("=")[0]
            if flag.startswith("--") and flag not in self._option_string_actions:
                raise UsageError(f"unrecognized argument {argument!r}{nearest(flag, self._option_string_actions)}")
        known, unknown = self.parse_known_args(args, namespace)
        if unknown:
            raise UsageError(f"unrecognized argument {unknown[0]!r}")
        return known

    def error(self, message: str):
        raise UsageError(message)


def printable(text: str) -> str:
    """The text with whatever could not be printed, or would move the cursor, as Python escapes it."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def command(body: Callable[[list[str]], int]) -> Callable[[list[str] | None], int]:
    """Turns `body(argv) -> int` into an entry point: whatever it raises becomes one line on stderr and an exit code."""

    @functools.wraps(body)
    def main(argv: list[str] | None = None) -> int:
        argv = sys.argv[1:] if argv is None else list(argv)
        _mend_streams()
        try:
            with _terminations_raised():
                code = body(argv)
                sys.stdout.flush()  # a full disk behind it is an error of ours, not of the interpreter's last breath
                return code
        except KeyboardInterrupt:
            return _report("interrupted", 130, False)
        except BrokenPipeError:  # `... | head` closed our stdout: nothing is wrong, and nobody listens
            return 141
        except SystemExit as exit:  # argparse leaves so after --help
            return int(exit.code or 0)
        except Exception as raised:
            error = as_user_error(raised)
            return _report(error, error.exit_code, "--debug" in argv)
        finally:
            _drop_unwritable_output()

    return main


def _mend_streams() -> None:
    """Lets both streams take everything: names of files in any encoding, and output that nobody wants (`>&-`)."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", errors="replace"))  # noqa: SIM115 (it stays open)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_unwritable_output() -> None:
    """Sends what stdout could not write to nowhere, or the interpreter would try once more and complain at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _terminations_raised():
    """Inside, SIGTERM and SIGHUP unwind the stack like Ctrl-C does, so that nothing half-written stays behind."""

    def leave(signal_number, _frame):
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
    with contextlib.suppress(OSError):  # stderr may be as full as the disk that is reported
        print(f"error: {printable(line)}", file=sys.stderr)
    return exit_code
