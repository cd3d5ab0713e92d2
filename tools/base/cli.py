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

# flag -> (config key, type, help). A flag that was not given changes nothing; `bool` flags take no value.
CONFIG_FLAGS: dict[str, tuple[str, type, str]] = {
    "--batch-size": ("DATA.BATCH_SIZE", int, "images of a batch on each rank; auto: in pieces that fit into memory"),
    "--data-path": ("DATA.DATA_PATH", str, "the folder that process_dataset.py wrote"),
    "--folds": (
        "DATA.NUM_FOLDS",
        int,
        "cut the training photos into N parts, twins kept together, and validate on one",
    ),
    "--fold": ("DATA.FOLD", int, "the part to validate on, from 0"),
    "--zip": ("DATA.ZIP_MODE", bool, "read <data-path>/<split>.zip instead of the folders"),
    "--follow-links": ("DATA.FOLLOW_LINKS", bool, "take photos and class folders that are links out of their split"),
    "--cache-mode": ("DATA.CACHE_MODE", str, "keep photos: no, full (decoded, on disk) or part (files, in memory)"),
    "--pretrained": ("MODEL.PRETRAINED", str, "weights to start from: FILE, auto or none"),
    "--resume": ("MODEL.RESUME", str, "checkpoint to continue from (with --eval: to score)"),
    "--accumulation-steps": ("TRAIN.ACCUMULATION_STEPS", int, "batches added up to one update"),
    "--use-checkpoint": ("TRAIN.USE_CHECKPOINT", bool, "recompute activations in backward to save memory"),
    "--amp-opt-level": ("AMP.OPT_LEVEL", str, "O0 = fp32, O1 or O2 = mixed precision, auto = O1 on a GPU"),
    "--tta": ("TEST.TTA", str, "views averaged: flips (4), turns (4), all (8) or none"),
    "--decide": ("TEST.DECIDE_BY", str, "labels by threshold, argmax, combination or powerset"),
    "--output": ("OUTPUT", str, "where run folders go"),
    "--tag": ("TAG", str, "name of this run: <output>/<MODEL.NAME>/<tag>"),
}


AUTO = "auto"


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


def number_or_auto(text: str) -> int | str:
    """Type of a flag that takes a whole number, or `auto`."""
    return text if text == AUTO else _plain_number(int, _PLAIN[int], text)


number_or_auto.__name__ = "int"  # what argparse calls it when it refuses a text


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


def add_config_flags(parser: Parser, flags: Sequence[str] = tuple(CONFIG_FLAGS)) -> None:
    """Adds flags of `CONFIG_FLAGS` to `parser`, and both spellings of local_rank, which launchers pass."""
    for flag in flags:
        key, kind, text = CONFIG_FLAGS[flag]
        how = {"action": "store_true"} if kind is bool else {"type": kind, "metavar": "N" if kind is int else "VALUE"}
        if flag == "--batch-size":
            how["type"] = number_or_auto
        parser.add_argument(flag, default=None, dest=key, help=f"{text} ({key})", **how)
    parser.add_argument("--local_rank", "--local-rank", metavar="N", help="accepted and not needed: torchrun sets it")


def overrides(args: argparse.Namespace) -> list[tuple[str, object, str]]:
    """(key, value, source) of every config flag that was given, in the form `configs.load.load` takes."""
    given = []
    for flag, (key, _, _) in CONFIG_FLAGS.items():
        value = getattr(args, key, None)
        if value == AUTO and flag == "--batch-size":  # the batch stays the config's; its pieces are what is chosen
            given.append(("TRAIN.FIT_MEMORY", True, f"{flag} {AUTO}"))
        elif value is not None:
            given.append((key, value, flag))
    return given


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
