"""`main.py --check`: the setup of a run as a dry run, two updates, one batch of validation, and a forecast.

It writes nothing. What cannot work is raised as a run would raise it.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import islice
from pathlib import Path

import torch

from configs.keys import get_defaults
from configs.load import Loaded, differences, flatten
from data.build import num_workers
from tools.base.errors import BusyError
from tools.base.files import holder
from tools.base.log import create_logger
from tools.checkpoint import store
from tools.evaluate.inference import predict
from tools.runtime.distributed import Ranks, on_first_rank
from tools.runtime.environment import check_architecture, check_packages
from tools.runtime.memory import peak_memory
from tools.runtime.precision import choose_precision
from tools.train.loop import Progress, train_one_epoch
from tools.train.parts import checkpoint_bytes, make_step_context
from tools.train.resume import CHECKPOINTS, Start, check_folder
from tools.train.run import Plan
from tools.train.setup import PreparedRun, check_apart, prepare_run
from tools.train.step import StepResult

UPDATES = 2  # tried: the first warms up, the last is what an update takes


@dataclass(frozen=True)
class Trial:
    """What the trial updates did, and the expected seconds of an update and of a whole validation.

    Attributes:
        micro_batch: images that fit into memory at once, at most a batch.
    """

    updates: list[StepResult]
    micro_batch: int
    update_seconds: float
    validation_seconds: float


def preflight(loaded: Loaded, ranks: Ranks, device: torch.device, *, overwrite: bool, allowed: list[str]) -> int:
    """Goes the way of `tools.train.setup.launch` up to the first two updates, prints what it finds, and returns 0."""
    config, folder = loaded.config, loaded.run_folder
    create_logger(rank=ranks.rank)  # the log reports it when memory runs out

    def report(part: str, found: str, notes: Sequence[str] = ()) -> None:
        if ranks.first:
            for kind, line in (("ok", found), *(("note", note) for note in notes)):
                print(f"{kind:<4} {part}: {line}", flush=True)

    report("environment", *_environment(config, ranks, device))
    check_apart(loaded)
    report("config", _settings(loaded))
    _check_unused(folder, ranks)
    run = prepare_run(loaded, ranks, device, overwrite=overwrite, allowed=allowed, report=report, download=False)
    if run.end:
        report("run folder", run.end)
        return 0
    report("run folder", *_outlook(folder, run.start, run.progress, run.plan))
    trial = try_out(config, run, ranks, device)
    report("trial", *_experience(trial, config.DATA.BATCH_SIZE, device))
    report("forecast", forecast(run.plan, run.progress, trial, checkpoint_bytes(run.state)))
    return 0


def try_out(config, run: PreparedRun, ranks: Ranks, device: torch.device) -> Trial:
    """The next updates of the run for real, with its loader, and one batch of validation; changes the weights.

    Raises:
        UserError: what ends a run, see `tools.train.loop.train_one_epoch`.
    """
    plan, progress, loader = run.plan, replace(run.progress), run.data.train_loader
    epoch, done = divmod(progress.step, plan.updates_per_epoch)
    waits: list[float] = []
    batches = _timed(run.data.train_batches(epoch, done * plan.accumulation_steps), waits)
    context = make_step_context(config, run.state, plan, run.data, ranks, device)
    updates = train_one_epoch(context, batches, progress, plan.num_batches, plan.accumulation_steps)
    tried = list(islice(updates, UPDATES))
    waited = sum(waits[len(waits) // len(tried) * (len(tried) - 1) :])
    load_seconds = waits[0] * plan.accumulation_steps
    update_seconds = _seconds_per_step(tried[-1].seconds, waited, load_seconds, loader.num_workers)
    waits = []
    started = time.perf_counter()
    one = islice(_timed(run.data.val_batches(), waits), 1)
    predict(run.state.inference_model(), one, device, run.state.precision, config.MODEL.NUM_CLASSES)
    seconds, loader = time.perf_counter() - started, run.data.val_loader
    seconds = _seconds_per_step(seconds, sum(waits), sum(waits), loader.num_workers)
    return Trial(tried, progress.micro_batch, update_seconds, seconds * len(loader))


def forecast(plan: Plan, progress: Progress, trial: Trial, checkpoint_sizes: tuple[int, int]) -> str:
    """How long an epoch and the rest of the run will take, and how large the checkpoints will be.

    Args:
        checkpoint_sizes: bytes of last.pth and of best.pth.
    """
    updates = plan.last_step - progress.step
    validations = plan.last_step // plan.updates_per_epoch - progress.validated
    epoch = plan.updates_per_epoch * trial.update_seconds + trial.validation_seconds
    rest = updates * trial.update_seconds + validations * trial.validation_seconds
    last, best = (f"{size / 2**20:.1f} MB" for size in checkpoint_sizes)
    return (
        f"about {_clock(epoch)} per epoch of {plan.updates_per_epoch} updates, validation included, and {_clock(rest)} "
        f"for the {updates} updates to go; last.pth {last}, best.pth {best}"
    )


def _environment(config, ranks: Ranks, device: torch.device) -> tuple[str, list[str]]:
    """Versions, device and precision, and the precision's notice. Raises ResourceError for what cannot work."""
    packages, name = check_packages(), str(device)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        check_architecture(name, torch.cuda.get_device_capability(device), torch.cuda.get_arch_list())
    precision, notice = choose_precision(config.AMP.OPT_LEVEL, config.AMP.BACKEND, config.AMP.DTYPE, device)
    workers = num_workers(config.DATA.NUM_WORKERS, ranks.world_size)
    how = f"{precision} on {name}, {ranks.world_size} rank(s) with {workers} loader process(es) each"
    return f"{packages}; {how}", [notice] if notice else []


def _settings(loaded: Loaded) -> str:
    """How many values are not the defaults, and where those come from."""
    changed = [line.split()[0] for line in differences(loaded.config, get_defaults())]
    origins = Counter(loaded.sources[key] for key in changed)
    listed = ", ".join(f"{count} by {source}" for source, count in origins.items())
    return f"{len(changed)} of {len(flatten(loaded.config))} values are not the defaults{listed and ': ' + listed}"


def _check_unused(folder: Path, ranks: Ranks) -> None:
    """Raises on every rank when a run cannot write into `folder`, or another uses it. The lock is not taken."""
    with on_first_rank(ranks):
        if ranks.first:
            check_folder(folder)
            if who := holder(folder):
                raise BusyError(f"{folder} is in use by {who}; wait for it, or name another run with --tag")


def _outlook(folder: Path, start: Start, progress: Progress, plan: Plan) -> tuple[str, list[str]]:
    """What a run would do in its folder, and what is wrong with the checkpoints it would pass over."""
    would = f"resume {start.path} at step {progress.step} of {plan.total_steps}"
    if start.path is None:
        replaces = any((folder / name).exists() for name in CHECKPOINTS)
        would = f"start {plan.total_steps} updates{' and replace the run that is there' if replaces else ''}"
    faults = [f"{fault}; it would be kept as {path.name}{store.BROKEN}" for path, fault in start.faults.items()]
    return f"{folder} has room for the checkpoints, and a run would {would}", faults


def _experience(trial: Trial, batch_size: int, device: torch.device) -> tuple[str, list[str]]:
    """What the trial updates were like, and whether memory ran out."""
    seconds = ", then ".join(f"{update.seconds:.2f} s" for update in trial.updates)
    where = "of main memory, loader processes not counted"
    if device.type == "cuda":
        where = f"of {torch.cuda.get_device_properties(device).total_memory / 2**20:.0f} on the GPU"
    line = (
        f"{len(trial.updates)} update(s) of {trial.updates[0].images} images: {seconds}; "
        f"loss {trial.updates[-1].loss:.3f}; peak {peak_memory(device) / 2**20:.0f} MB {where}"
    )
    if trial.micro_batch == batch_size:
        return line, []
    return line, [f"only {trial.micro_batch} of a batch's {batch_size} images fit into memory at once"]


def _timed(batches: Iterable, waits: list[float]) -> Iterator:
    """The batches; the seconds that each was waited for are added to `waits`."""
    batches, end = iter(batches), object()
    while True:
        started = time.perf_counter()
        batch = next(batches, end)
        if batch is end:
            return
        waits.append(time.perf_counter() - started)
        yield batch


def _seconds_per_step(seconds: float, waited: float, load_seconds: float, workers: int) -> float:
    """Seconds per step in the long run, where loader processes work beside it, each on a batch of its own.

    Args:
        seconds: of a measured step, `waited` of them for its batches.
        load_seconds: what one process takes to load the batches of a step.
    """
    return max(seconds - waited, load_seconds / workers) if workers else seconds


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
