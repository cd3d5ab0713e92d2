"""Makes the runs of a study: what is left of each, its commands as processes, and how they are stopped."""

import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from subprocess import TimeoutExpired

from configs.keys import KEYS
from configs.load import differences, flatten, from_text
from tools.base.errors import DataError, Interrupted, UsageError, UserError
from tools.base.files import holder, locked, read_regular
from tools.base.processes import start_script, wait_for_any
from tools.study.plan import PlannedRun, Study, to_words

# Keys that may differ from those of a finished run. Of those that may change on resume, two change its scores.
_HARMLESS = {name for name, key in KEYS.items() if key.may_change} - {"MODEL.PRETRAINED", "TEST.TTA"}
_SCORING = (  # keys that test.py does not take from the checkpoint
    *("DATA.DATA_PATH", "DATA.ZIP_MODE", "DATA.FOLLOW_LINKS", "DATA.NUM_WORKERS", "DATA.BATCH_SIZE"),
    *("DEVICE", "AMP.OPT_LEVEL", "AMP.DTYPE"),
)
_PATIENCE = 2  # seconds between two SIGTERM to a run


def scores_of(run: PlannedRun, split: str) -> Path:
    """Where test.py writes the results of a run."""
    return run.folder / split


def is_scored(run: PlannedRun, split: str) -> bool:
    """Whether a run is finished and scored: metrics.json is the last file that test.py writes."""
    return (scores_of(run, split) / "metrics.json").exists()


def check_unchanged(study: Study) -> None:
    """Raises UsageError when a run that was started had other settings than the study gives it now."""
    changed = {str(run.folder): lines for run in study.runs if (lines := _changes(run))}
    if changed:
        folder, lines = next(iter(changed.items()))
        raise UsageError(
            f"{folder} was made with other settings: {', '.join(lines)} ({len(changed)} such runs); "
            "remove their folders to make them again, or give the study file another name"
        )


def _changes(run: PlannedRun) -> list[str]:
    """`KEY old -> new` for each setting of a run that differs from those it was started with."""
    record = run.folder / "config.yaml"
    if not record.exists():
        return []
    config, text = run.loaded.config, read_regular(record, "config", 1_000_000).decode(errors="replace")
    from_photos = {("DATA.TARGETS", "auto"), ("MODEL.NUM_CLASSES", 0)}  # a run records what the photos decided
    ignored = _HARMLESS | {key for key, value in from_photos if flatten(config)[key] == value}
    return differences(config, from_text(text, str(record)), ignored)


def commands_left(run: PlannedRun, split: str) -> list[tuple[str, list[str]]]:
    """(script, arguments) of what a run still needs, in order."""
    if is_scored(run, split):
        return []
    best, values = run.folder / "best.pth", flatten(run.loaded.config)
    opts = to_words({key: values[key] for key in _SCORING})
    to = str(scores_of(run, split))
    scoring = ("test.py", ["--resume", str(best), "--split", split, "--to", to, "--opts", *opts])
    return [scoring] if _is_trained(run) else [("main.py", run.argv), scoring]


def _is_trained(run: PlannedRun) -> bool:
    try:
        status = json.loads(read_regular(run.folder / "status.json", "status", 1_000_000))
        return bool(status["state"] == "finished") and (run.folder / "best.pth").exists()
    except (DataError, ValueError, KeyError, TypeError):
        return False  # main.py finds out


def choose_devices(num_gpus: int) -> list[dict[str, str]]:
    """The environment of each run that is under way at a time; with 0 GPUs one run, in ours."""
    if not num_gpus:
        return [{}]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible is not None else [str(number) for number in range(num_gpus)]
    if num_gpus > len(names):
        raise UsageError(f"--gpus {num_gpus}: CUDA_VISIBLE_DEVICES names {len(names)}, {visible!r}; lower --gpus")
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names[:num_gpus]]


class _Job:
    """A run under way: the process of one of its commands, and the commands that follow."""

    def __init__(self, run: PlannedRun, split: str, environment: dict[str, str]):
        self.run, self.environment = run, environment
        self.commands = commands_left(run, split)
        self.start()

    def start(self) -> None:
        """Starts the next command."""
        script, argv = self.commands.pop(0)
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the job)
        self.process = start_script(script, argv, self.environment, self.errors)

    def check(self) -> None:
        """Raises UserError with the last line of stderr, and the exit code of the process, if it has failed."""
        code = self.process.returncode
        if not code:
            return
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        reason = lines[-1].removeprefix("error: ") if lines else f"ended with {code}"
        if code < 0:
            reason = f"killed by {signal.Signals(-code).name}"
        error = UserError(f"{name_of(self.run)}, in {self.run.folder}: {reason}; then the same command goes on")
        error.exit_code = code if code > 0 else 128 - code
        raise error


def make_runs(study: Study, num_gpus: int) -> None:
    """Makes and scores the runs that are missing, and prints a line for each.

    Raises:
        BusyError: when another process makes this study.
        Interrupted: after SIGINT, SIGTERM or SIGHUP, once the runs under way have saved and ended.
        UserError: when a run fails; the others are stopped as by a signal.
    """
    devices = choose_devices(num_gpus)
    with locked(study.folder):
        waiting = [run for run in study.runs if not is_scored(run, study.split)]
        progress = _Progress(len(study.runs), len(waiting))
        jobs: list[_Job] = []
        with _stopped_together(jobs):
            while waiting or jobs:
                while waiting and devices:
                    run = waiting.pop(0)
                    _wait_until_free(run)
                    print(f"{name_of(run)}: {run.folder}", flush=True)
                    jobs.append(_Job(run, study.split, devices.pop(0)))
                ended = wait_for_any(job.process for job in jobs)
                job = next(job for job in jobs if job.process is ended)
                job.check()
                if job.commands:
                    job.start()
                    continue
                jobs.remove(job)
                devices.append(job.environment)
                progress.report(job.run)


class _Progress:
    """Counts finished runs and estimates the time left from those of this session."""

    def __init__(self, total: int, left: int):
        self.total, self.left, self.done, self.begun = total, left, 0, time.monotonic()

    def report(self, run: PlannedRun) -> None:
        """Prints that a run is finished."""
        self.done, self.left = self.done + 1, self.left - 1
        seconds = (time.monotonic() - self.begun) / self.done * self.left
        left = f", about {timedelta(seconds=int(seconds))} to go" if self.left else ""
        print(f"{name_of(run)}: done; {self.total - self.left} of {self.total} runs{left}", flush=True)


def name_of(run: PlannedRun) -> str:
    """The run in words."""
    return f"{run.arm}, {run.repeat}"


def _wait_until_free(run: PlannedRun) -> None:
    """Waits for a process that a killed study has left behind; it has got SIGTERM, and saves."""
    if who := holder(run.folder):
        print(f"{name_of(run)}: waiting for {who}, which uses {run.folder}", flush=True)
        with locked(run.folder, wait=True):
            pass


@contextmanager
def _stopped_together(jobs: list[_Job]) -> Iterator[None]:
    """After an error or a signal inside the block, the runs under way get SIGTERM and are waited for."""
    try:
        yield
    except (KeyboardInterrupt, UserError) as error:
        while alive := [job.process for job in jobs if job.process.poll() is None]:
            for process in alive:  # again and again: a bare `except` in a library may swallow what a signal raises
                process.terminate()
            with suppress(TimeoutExpired):
                alive[0].wait(_PATIENCE)
        if isinstance(error, Interrupted):
            raise Interrupted(f"{error}; the same command goes on", error.exit_code - 128) from None
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted("ended by SIGINT; the same command goes on", signal.SIGINT) from None
        raise
