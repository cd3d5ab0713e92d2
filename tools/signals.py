"""Signals that ask a run to end: noted, answered between two updates."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tools.distributed import sum_across_ranks


class StopRequest:
    """Whether some rank was asked to end, and by which signal."""

    def __init__(self):
        self.signal_number = 0

    def agreed(self, device: torch.device) -> int:
        """The signal's number when any rank got one, the same on every rank; 0 when none did."""
        flags = torch.zeros(65, device=device)
        flags[self.signal_number] = 1
        flags = sum_across_ranks(flags)
        return int(flags[1:].argmax()) + 1 if flags[1:].any() else 0


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Inside, SIGINT, SIGTERM and SIGHUP are noted; a second SIGINT interrupts at once."""
    request = StopRequest()

    def note(number, _frame):
        if request.signal_number == signal.SIGINT == number:
            raise KeyboardInterrupt
        request.signal_number = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
