"""The log of a run: short lines on the console, full ones in a file, and a progress bar on a terminal."""

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn, TypeVar

from termcolor import colored
from tqdm import tqdm

from tools.base.errors import ResourceError

T = TypeVar("T")
_FILE_FORMAT = "[%(asctime)s %(name)s] (%(filename)s %(lineno)d): %(levelname)s %(message)s"


class _ConsoleHandler(logging.Handler):
    """Writes `13:05:12 message`, with the level before the message for WARNING and above.

    It writes through tqdm, so that a line does not break the bar under it.

    When the reader of a pipe has exited (`| head`), the run continues without a console.
    """

    def emit(self, record: logging.LogRecord) -> None:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = colored(f"{record.levelname} ", "yellow") if record.levelno >= logging.WARNING else ""
        try:
            say(f"{colored(clock, 'green')} {level}{record.getMessage()}")
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _FileHandler(logging.FileHandler):
    """Appends to a file. A full disk ends the run; logging's default is to print a traceback per line and continue."""

    def handleError(self, _record: logging.LogRecord) -> NoReturn:
        raise ResourceError(f"{self.baseFilename} cannot be written: {sys.exc_info()[1]}") from None


def create_logger(file: Path | None = None, rank: int = 0) -> logging.Logger:
    """The logger `plantswin` with new handlers: the console, and `file` when given (appended to).

    The console has one short line per event, the file also date, source line and level. Ranks above 0 log warnings
    only. Colours are left out where stdout is not a terminal (termcolor also obeys NO_COLOR).
    """
    logger = logging.getLogger("plantswin")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    logger.propagate = False
    logger.addHandler(_ConsoleHandler())
    if file is not None:
        log = _FileHandler(file, encoding="utf-8", errors="backslashreplace")
        log.setFormatter(logging.Formatter(_FILE_FORMAT, "%Y-%m-%d %H:%M:%S"))
        logger.addHandler(log)
    return logger


def progress(items: Iterable[T], description: str, total: int | None = None, unit: str = "it") -> Iterator[T]:
    """`items`, with a bar on stderr where that is a terminal; nothing is drawn into a file or a pipe.

    The bar shows how many of `total` there were, the `unit`s per second, and the time that is left.
    """
    yield from tqdm(items, description, total, leave=False, disable=not sys.stderr.isatty(), unit=f" {unit}")


def say(line: str) -> None:
    """Prints a line on stdout without breaking a bar that is being drawn."""
    tqdm.write(line, file=sys.stdout)
