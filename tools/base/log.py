"""The log of a run: coloured lines on the console, plain ones in a file, and a progress bar where someone watches."""

import logging
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from termcolor import colored
from tqdm import tqdm

from tools.base.errors import ResourceError

_FORMAT = "[%(asctime)s %(name)s] (%(filename)s %(lineno)d): %(levelname)s %(message)s"


class _Console(logging.Handler):
    """Writes through tqdm, so that a line does not break the bar under it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


class _File(logging.FileHandler):
    """Appends to a file. A full disk ends the run; logging's own answer is a traceback a line, and to go on."""

    def handleError(self, _record: logging.LogRecord) -> None:
        raise ResourceError(f"{self.baseFilename} cannot be written: {sys.exc_info()[1]}") from None


def create_logger(file: Path | None = None, rank: int = 0) -> logging.Logger:
    """The logger `plantswin`, its handlers set anew: console on rank 0, and `file` when given (appended to).

    Colours are left out where stdout is no terminal (termcolor also obeys NO_COLOR).
    """
    logger = logging.getLogger("plantswin")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    logger.propagate = False
    console = _Console()
    prefix = colored("[%(asctime)s %(name)s]", "green") + colored("(%(filename)s %(lineno)d)", "yellow")
    console.setFormatter(logging.Formatter(prefix + ": %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger.addHandler(console)
    if file is not None:
        log = _File(file, encoding="utf-8", errors="backslashreplace")
        log.setFormatter(logging.Formatter(_FORMAT, "%Y-%m-%d %H:%M:%S"))
        logger.addHandler(log)
    return logger


def progress(items: Iterable, description: str, total: int | None = None) -> Iterator:
    """`items`, with a bar on stderr while that is a terminal and nothing at all in a log or a pipe."""
    return tqdm(items, desc=description, total=total, disable=not sys.stderr.isatty(), leave=False)


def say(line: str) -> None:
    """Prints a line on stdout without breaking a bar that is being drawn."""
    tqdm.write(line, file=sys.stdout)
