"""The program's own commands as a user starts them: a process each, with the seconds and the memory it took."""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tools.base.errors import ResourceError

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Cost:
    """What a command took: seconds on the clock, and the peak `memory` in bytes of the largest of its processes."""

    seconds: float
    memory: int


def run(*words: object) -> Cost:
    """Runs Python with `words`, e.g. `"main.py", "--help"`, in the root of the repository, and drops what it prints.

    Linux counts a process's peak from the one that started it on. For peaks this is to be called in a small one.

    Raises:
        ResourceError: when it fails, with the last line of its stderr.
    """
    with tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *map(str, words)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines() or ["nothing"]
            raise ResourceError(f"python {words[0]} ended with {process.returncode} and said: {said[-1]}")
    return Cost(seconds, usage.ru_maxrss * 1024)


def prepare_sample(folder: Path, train: int, val: int, test: int) -> Path:
    """Draws leaves and prepares them under `folder`; the data set's folder."""
    run("-m", "tools", "sample", "--dst", folder / "raw", "--counts", train, val, test)
    run("process_dataset.py", "--src", folder / "raw", "--dst", folder / "dataset", "--allow-leak")
    return folder / "dataset"


def train_briefly(folder: Path, dataset: Path, cfg: str) -> Path:
    """One epoch of a config's model from fresh weights, output under `folder`; its checkpoint."""
    words = ["MODEL.PRETRAINED", "none", "TRAIN.EPOCHS", "1", "TRAIN.WARMUP_EPOCHS", "0"]
    run("main.py", "--cfg", cfg, "--data-path", dataset, "--output", folder / "output", "--opts", *words)
    return next((folder / "output").glob("*/*/best.pth"))
