"""Runs of main.py as processes of their own: started, listened to, killed. Shared by tests/reliability.

A Python start with torch takes seconds, so `warm` forks from a server that has imported everything; `torchrun` is the
real command. Whoever waits here waits for what a process says or for its end, with a deadline against hanging.
"""

import csv
import hashlib
import multiprocessing
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from conftest import ROOT

import main
from data.labels import SPLITS
from data.sample.write import write_sample
from tools.checkpoint import store

PATIENCE = 300  # seconds, for a machine that others use too
UPDATE = re.compile(r"Train: \[(\d+)/\d+\]\[(\d+)/\d+\]")  # the log's epoch and update
RUN = (
    Path("output") / "tiny" / "default"
)  # where a run of the tests' tiny config has its files, from where it was started
_WARM = multiprocessing.get_context("forkserver")
_WARM.set_forkserver_preload(["tools.commands.train", "tools.train.setup", "cv2", "matplotlib.pyplot"])


class Running:
    """A process whose stdout is read line by line while its stderr goes to a file.

    Its stdout comes to an end only when every process that has inherited it is gone: loaders, ranks and all.
    """

    def __init__(self, pid: int, stdout, errors: Path, ended: Callable[[], int]):
        self.pid, self.said, self.patience = pid, [], PATIENCE
        self._stdout, self._errors, self._ended, self._rest = stdout, errors, ended, b""

    @property
    def errors(self) -> list[str]:
        """The lines of its stderr so far."""
        return self._errors.read_text(errors="replace").splitlines()

    def line(self) -> str | None:
        """The next line of its stdout; None after the last."""
        deadline = time.monotonic() + self.patience
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self.signal(signal.SIGKILL)
            assert ready, f"silent for {self.patience} s after {self.said[-3:]}; {self.errors[-5:]}"
            block = os.read(self._stdout.fileno(), 2**16)
            if not block:
                return None
            self._rest += block
        line, self._rest = self._rest.split(b"\n", 1)
        self.said.append(line.decode(errors="replace"))
        return self.said[-1]

    def wait_for(self, pattern: str | re.Pattern, times: int = 1) -> re.Match | None:
        """The match in the `times`-th line from here on that has one; None when the process ends before."""
        while (line := self.line()) is not None:
            if found := re.search(pattern, line):
                times -= 1
                if times == 0:
                    return found
        return None

    def signal(self, number: int) -> None:
        """Sends it a signal."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code, or minus the signal that killed it, when it and all that it started are gone."""
        while self.line() is not None:
            pass
        self._stdout.close()
        return self._ended()

    def kill(self) -> int:
        """SIGKILL, and `wait`."""
        self.signal(signal.SIGKILL)
        return self.wait()


def warm(folder: Path, body: Callable[..., int], *arguments) -> Running:
    """`sys.exit(body(*arguments))` as a process of its own that works in `folder` and has torch imported already."""
    reader, writer = _WARM.Pipe(duplex=False)
    errors = _errors_file(folder)
    process = _WARM.Process(target=_begin, args=(writer, errors, folder, body, arguments))
    process.start()
    writer.close()

    def ended() -> int:
        process.join(PATIENCE)
        return process.exitcode

    return Running(process.pid, reader, errors, ended)


def warm_ranks(folder: Path, *argvs: list[str], body: Callable[..., int] | None = None) -> list[Running]:
    """A rank of main.py for every argv, without a launcher that would end one when another fails."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    count = len(argvs)
    return [warm(folder, _as_rank, rank, count, port, body or main.main, argv) for rank, argv in enumerate(argvs)]


def torchrun(folder: Path, *arguments: object, restarts: int = 0) -> Running:
    """Two ranks of `arguments` under the real torchrun."""
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", f"--max-restarts={restarts}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    errors = _errors_file(folder)
    with errors.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, *start, *map(str, arguments)],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
    return Running(process.pid, process.stdout, errors, lambda: process.wait(PATIENCE))


def children(pid: int) -> list[int]:
    """The processes that this one has started and that still live."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rsplit(")", 1)[1].split()[:2]
        except OSError:  # it has ended meanwhile
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(stat.parent.name))
    return found


def ranks_of(running: Running) -> dict[int, int]:
    """rank -> process of a torchrun."""
    found = {}
    for pid in children(running.pid):
        rank = re.search(rb"(?:^|\0)RANK=(\d+)\0", Path(f"/proc/{pid}/environ").read_bytes())
        if rank:
            found[int(rank[1])] = pid
    return found


class Watched:
    """Processes of which we want to know whether they end; to be made while they live."""

    def __init__(self, pids: list[int]):
        self.handles = [os.pidfd_open(pid) for pid in pids]

    def __len__(self) -> int:
        return len(self.handles)

    def gone(self) -> bool:
        """Waits for the end of all of them; False when one of them just goes on."""
        ended = [bool(select.select([handle], [], [], PATIENCE)[0]) for handle in self.handles]
        for handle in self.handles:
            os.close(handle)
        return all(ended)


def digest(folder: Path) -> str:
    """SHA-256 of all that a run has come to: both checkpoints but for their config's paths, and the history."""
    found = hashlib.sha256()
    for name in (store.LAST, store.BEST):
        content = store.read(folder / name)
        for key, tensor in store.named_tensors(content):
            found.update(key.encode() + tensor.numpy().tobytes())
        plain = ("step", "epoch", "best", "sums", "skipped", "validated", "scaler", "thresholds", "temperatures")
        found.update(repr([content.get(key) for key in (*plain, "scores", "micro_batch")]).encode())
    with (folder / "metrics.csv").open(newline="") as file:
        found.update(repr([{**row, "seconds": 0} for row in csv.DictReader(file)]).encode())
    return found.hexdigest()


def write_drawn(
    set_name: str, raw: str, folder: Path, counts: tuple[int, int, int] | None = None, pool: bool = False
) -> dict[str, tuple[str, ...]]:
    """Draws photos of a label set into `folder` (see `write_sample`); counts are those of train, val and test.

    Returns:
        The labels of each photo, by its file name.
    """
    numbers = dict(zip(SPLITS, counts, strict=True)) if counts else None
    photos = write_sample(folder, 0, numbers, set_name, raw, pool)
    return {photo.name: photo.labels for photo in photos}


def leftovers(folder: Path) -> list[Path]:
    """Half-written files anywhere below."""
    return list(folder.rglob("*.tmp"))


def _errors_file(folder: Path) -> Path:
    path = folder / f"stderr-{len(list(folder.glob('stderr-*')))}"
    path.touch()
    return path


def _as_rank(rank: int, count: int, port: int, body: Callable[..., int], argv: list[str]) -> int:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    return body(argv)


def _begin(stdout, errors: Path, folder: Path, body: Callable[..., int], arguments: tuple) -> None:
    import torch

    os.dup2(stdout.fileno(), 1)
    stdout.close()
    with errors.open("wb") as file:
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115 (they stay open)
    multiprocessing.set_start_method("fork", force=True)  # of loaders, as in a process that was not forked itself
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.exit(body(*arguments))
