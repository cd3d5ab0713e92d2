"""Processes that this program starts: its own commands, and how they end with it."""

import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Makes the kernel send this process signal `number` when its parent ends, however it ends."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def start_script(
    script: str, argv: list[str], environment: dict[str, str], errors: IO[bytes]
) -> subprocess.Popen[bytes]:
    """Starts main.py or test.py in a session of its own, so that Ctrl-C reaches it only through this process.

    When this process ends, however it ends, the script gets SIGTERM. Its stdout is dropped; its stderr is `errors`.

    Args:
        environment: variables added to ours.
    """
    # not with preexec_fn: a signal that arrives while Python forks for it would be lost
    starter = [sys.executable, "-P", __file__, str(os.getpid())]
    return subprocess.Popen(
        [*starter, str(ROOT / script), *argv],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=errors,
        start_new_session=True,
    )


def wait_for_any(processes: Iterable[subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    """Waits until one of the processes has ended, and returns it with its `returncode`."""
    handles = {os.pidfd_open(process.pid): process for process in processes}
    try:
        ready, _, _ = select.select(list(handles), [], [])
    finally:
        for handle in handles:
            os.close(handle)
    handles[ready[0]].wait()
    return handles[ready[0]]


if __name__ == "__main__":  # of `start_script`: becomes the script, unless its parent is gone already
    parent, *words = sys.argv[1:]
    die_with_parent(signal.SIGTERM)
    if os.getppid() == int(parent):
        os.execv(sys.executable, [sys.executable, *words])
