"""Runs the program's own commands as a user does, each in a process of its own."""

import subprocess
import sys
import time
from pathlib import Path

from tools.base.errors import ResourceError

ROOT = Path(__file__).resolve().parents[2]


def run(*words: object) -> float:
    """Runs Python with `words`, e.g. `"main.py", "--help"`, in the repository's root, and returns its seconds.

    Raises:
        ResourceError: when it fails, with the last line of its stderr.
    """
    command, started = [sys.executable, *map(str, words)], time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, errors="replace")
    seconds = time.perf_counter() - started
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise ResourceError(f"python {words[0]} ended with {done.returncode} and printed: {last}")
    return seconds


def prepare_sample(folder: Path, *counts: int) -> Path:
    """Draws `counts` photos for train, val and test, and prepares them under `folder`; returns the data folder."""
    run("-m", "tools", "sample", "--dst", folder / "raw", "--counts", *counts)
    run("process_dataset.py", "--src", folder / "raw", "--dst", folder / "dataset", "--allow-leak")
    return folder / "dataset"
