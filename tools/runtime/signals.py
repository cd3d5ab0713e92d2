"""Signals that ask something of a run: noted at once, answered between two updates."""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tools.runtime.distributed import sum_across_ranks

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


_PATIENCE = 5  # seconds for a killed process to be gone


class UpdateDropped(Exception):
    """Raised inside `Requests.droppable` when the time to finish an update is over."""


class Requests:
    """What was asked of this rank: to end (`ending`, the signal's number) or to save (`saving`)."""

    def __init__(self, grace_seconds: float = 0.0):
        self.ending, self.saving = 0, False
        self._grace, self._overdue, self._droppable = grace_seconds, False, False

    def agreed(self, device: torch.device, saving: bool = False) -> tuple[int, bool]:
        """(signal that ends the run or 0, whether to save now): the same on every rank, if any of them was asked.

        Args:
            saving: whether this rank wants to save for another reason.
        """
        wishes = torch.zeros(65)  # 0: save; 1 to 64: the signal
        wishes[0] = self.saving or saving
        wishes[self.ending] += self.ending > 0
        self.saving = False
        wishes = sum_across_ranks(wishes.to(device) if device.type != "cpu" else wishes).tolist()
        return next((number for number in range(1, 65) if wishes[number]), 0), wishes[0] > 0

    @contextmanager
    def droppable(self) -> Iterator[None]:
        """Inside, nothing is done that cannot be done again: `UpdateDropped` may be raised at any line of it."""
        self._droppable = True
        try:
            if self._overdue:
                raise UpdateDropped
            yield
        finally:
            self._droppable = False

    def note(self, number: int, _frame) -> None:
        """The handler of SIGINT, SIGTERM and SIGHUP; a second SIGINT interrupts at once."""
        if self.ending == signal.SIGINT == number:
            raise KeyboardInterrupt
        if not self.ending and self._grace:
            signal.setitimer(signal.ITIMER_REAL, self._grace)
        self.ending = number

    def note_save(self, _number: int, _frame) -> None:
        """The handler of SIGUSR1."""
        self.saving = True

    def note_overdue(self, _number: int, _frame) -> None:
        """The handler of the alarm that `note` has set."""
        self._overdue = True
        if self._droppable:
            self._droppable = False  # or a second alarm would interrupt the tidying up
            raise UpdateDropped


@contextmanager
def requests(grace_seconds: float) -> Iterator[Requests]:
    """Inside, SIGINT, SIGTERM and SIGHUP ask the run to end, and SIGUSR1 asks it to save.

    Args:
        grace_seconds: how long the update under way may still take.
    """
    asked = Requests(grace_seconds)
    handlers = dict.fromkeys(_ENDINGS, asked.note)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup
        del handlers[signal.SIGHUP]
    handlers |= {signal.SIGUSR1: asked.note_save, signal.SIGALRM: asked.note_overdue}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield asked
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def children_end() -> Iterator[None]:
    """The processes that are started inside end with it: also one that hangs, for which Python's own exit waits."""
    earlier = multiprocessing.active_children()
    try:
        yield
    finally:
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's own raises an error when a loader is killed
        for process in multiprocessing.active_children():
            if process not in earlier:
                process.kill()
                process.join(_PATIENCE)
        signal.signal(signal.SIGCHLD, before)


def start_worker(_number: int) -> None:
    """Run first thing by every loader process: it ends with the run, which may be killed at any time, and not before.

    Ctrl-C, systemd and batch systems signal every process of a run, whose last update still needs its loaders.
    """
    for number in _ENDINGS:
        signal.signal(number, signal.SIG_IGN)
    die_with_parent()
    if not multiprocessing.parent_process().is_alive():  # it was killed before we could ask for its death
        os._exit(1)


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Asks the kernel to send this process signal `number` when the one that started it ends, however it ends."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
