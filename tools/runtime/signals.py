"""Signals to a run: recorded at once, acted on between two updates by `tools/train/run.py`.

Outside the training loop, `tools/base/cli.py` lets a signal end the command at once.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tools.base.processes import die_with_parent
from tools.runtime.distributed import largest_of_ranks

_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE = 5  # seconds for a killed process to be gone


class Requests:
    """What signals asked this rank to do: end (`ending`, the signal's number) or save (`saving`)."""

    def __init__(self):
        self.ending, self.saving = 0, False

    def agreed(self, saving: bool = False) -> tuple[int, bool]:
        """(signal that ends the run or 0, whether to save now): the same on every rank, if any of them was asked.

        Args:
            saving: whether this rank wants to save for another reason.
        """
        ending, saves = largest_of_ranks([self.ending, int(self.saving or saving)])
        self.saving = False
        return ending, bool(saves)

    def end(self, number: int, _frame) -> None:
        """The handler of SIGINT, SIGTERM and SIGHUP; a second SIGINT interrupts at once."""
        if self.ending == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.ending = number

    def save(self, _number: int, _frame) -> None:
        """The handler of SIGUSR1."""
        self.saving = True


@contextmanager
def requests() -> Iterator[Requests]:
    """Inside the block, SIGINT, SIGTERM and SIGHUP ask the run to end after its update, and SIGUSR1 asks it to save."""
    asked = Requests()
    handlers: dict[int, Callable] = dict.fromkeys(_ENDINGS, asked.end)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup
        del handlers[signal.SIGHUP]
    handlers[signal.SIGUSR1] = asked.save
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def children_end() -> Iterator[None]:
    """Ends the processes that are started inside, hung ones included; Python's own exit would wait for those."""
    earlier = multiprocessing.active_children()
    try:
        yield
    finally:
        # torch's handler would raise an error when a loader is killed
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for process in multiprocessing.active_children():
            if process not in earlier:
                process.kill()
                process.join(_PATIENCE)
        signal.signal(signal.SIGCHLD, before)


def init_worker(_number: int) -> None:
    """Called first in every loader process, so that it ends with the run and not before.

    Ctrl-C, systemd and batch systems signal every process of a run, but the last update still needs its loaders.
    """
    for number in _ENDINGS:
        signal.signal(number, signal.SIG_IGN)
    die_with_parent()
    parent = multiprocessing.parent_process()
    if parent and not parent.is_alive():  # the run was killed before die_with_parent took effect
        os._exit(1)
