"""`main.py --check`: goes the way of a training run as far as two updates, says what it finds, and writes nothing.

May import every shelf; only main.py imports it.
"""

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import islice
from pathlib import Path

import torch

from configs.defaults import get_defaults
from configs.load import Loaded, differences, flatten
from data.build import batches_of, num_workers, resume_batches
from data.loading.split import describe
from models.pretrained import Hub, find_pretrained
from tools.base.errors import BusyError
from tools.base.files import holder
from tools.base.log import create_logger
from tools.checkpoint import store
from tools.evaluate.inference import predict
from tools.runtime.distributed import Ranks, on_first_rank
from tools.runtime.environment import check_architecture, check_packages, check_shared_memory
from tools.runtime.memory import peak_memory
from tools.runtime.precision import choose_precision
from tools.train.data import load_data
from tools.train.loop import Progress, Update, train_one_epoch
from tools.train.parts import checkpoint_bytes, make_schedule, make_step_context, start_weights
from tools.train.resume import CHECKPOINTS, Start, check_folder, check_room, starting_point
from tools.train.run import Plan
from tools.train.setup import Prepared, check_apart, nothing_left, prepare, take_up

UPDATES = 2  # tried: the first warms up, the last is what an update takes


AHEAD = 2  # batches that a loader process prepares, torch's own default


SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Trial:
    """What the trial updates did, and the seconds that an update and a whole validation of the run will take.

    Attributes:
        micro_batch: images that fit into memory at a time, at most a batch.
    """

    updates: list[Update]
    micro_batch: int
    update_seconds: float
    validation_seconds: float


def examine(loaded: Loaded, ranks: Ranks, device: torch.device, *, overwrite: bool, allowed: list[str]) -> int:
    """Everything that `tools.train.setup.launch` would do with the same arguments, and how long it would take.

    Returns:
        0; the first thing that cannot work is raised as `launch` raises it.
    """
    config, folder = loaded.config, loaded.run_folder
    create_logger(rank=ranks.rank)  # hears of it when memory runs out
    _say(ranks, "environment", *_environment(config, ranks, device))
    check_apart(config, folder)
    _say(ranks, "config", _settings(loaded))
    data = load_data(config, ranks)
    _say(ranks, "data set", f"{describe(data.train)}; {describe(data.val)}", (*data.train.notes, *data.val.notes))
    run = prepare(config, data, ranks, device, weights=_weights_at_hand)
    _say(ranks, "weights", run.origin)
    _look_for_others(folder, ranks)
    start = starting_point(loaded, overwrite)
    progress = take_up(start, run, config, ranks, device, allowed)
    if end := nothing_left(start, progress, run.plan):
        _say(ranks, "run folder", end)
        return 0
    room = checkpoint_bytes(run.train_state)
    with on_first_rank(ranks):
        check_room(folder, *room)
    _say(ranks, "run folder", *_outlook(folder, start, progress, run.plan))
    trial = try_out(config, run, progress, ranks, device)
    _say(ranks, "trial", *_experience(trial, config.DATA.BATCH_SIZE, device))
    _say(ranks, "forecast", forecast(run.plan, progress, trial, room))
    return 0


def try_out(config, run: Prepared, progress: Progress, ranks: Ranks, device: torch.device) -> Trial:
    """The next updates of the run for real, with its loader, and one batch of validation; moves the weights.

    Raises:
        UserError: whatever ends a run, see `tools.train.loop.train_one_epoch`.
    """
    plan, loader, progress = run.plan, run.data.train_loader, replace(progress)
    epoch, done = divmod(progress.step, plan.updates)
    waits: list[float] = []
    updates = train_one_epoch(
        make_step_context(config, run.train_state, plan, run.data, ranks, device),
        _timed(resume_batches(loader, epoch, done * plan.accumulation), waits),
        progress,
        num_batches=plan.num_batches,
        accumulation=plan.accumulation,
        schedule=make_schedule(config.TRAIN, plan),
    )
    tried = list(islice(updates, UPDATES))
    waited = sum(waits[len(waits) // len(tried) * (len(tried) - 1) :])
    update_seconds = _pace(tried[-1].seconds, waited, waits[0] * plan.accumulation, loader.num_workers)
    loader, waits = run.data.val_loader, []
    started = time.perf_counter()
    one = islice(_timed(batches_of(loader), waits), 1)
    predict(run.train_state.inference_model(), one, device, run.train_state.precision, config.MODEL.NUM_CLASSES)
    seconds = _pace(time.perf_counter() - started, sum(waits), sum(waits), loader.num_workers)
    return Trial(tried, progress.micro_batch, update_seconds, seconds * len(loader))


def forecast(plan: Plan, progress: Progress, trial: Trial, room: tuple[int, int]) -> str:
    """How long an epoch and what is left of the run will take, and what the checkpoints will weigh.

    Args:
        room: bytes of a last.pth and of a best.pth.
    """
    updates = plan.last_step - progress.step
    validations = plan.last_step // plan.updates - progress.validated
    epoch = plan.updates * trial.update_seconds + trial.validation_seconds
    rest = updates * trial.update_seconds + validations * trial.validation_seconds
    whole, inference = (f"{size / 2**20:.1f} MB" for size in room)
    return (
        f"about {_clock(epoch)} an epoch of {plan.updates} updates, validation included, and {_clock(rest)} for the "
        f"{updates} updates to go; last.pth {whole}, best.pth {inference}"
    )


def _say(ranks: Ranks, part: str, found: str, notes: Sequence[str] = ()) -> None:
    """A line on what was found in order, and one on each thing worth knowing."""
    if ranks.first:
        for kind, line in (("ok", found), *(("note", note) for note in notes)):
            print(f"{kind:<4} {part}: {line}", flush=True)


def _environment(config, ranks: Ranks, device: torch.device) -> tuple[str, list[str]]:
    """Versions, device and precision, and the precision's notice. Raises ResourceError for what cannot work."""
    packages, name = check_packages(), str(device)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        check_architecture(name, torch.cuda.get_device_capability(device), torch.cuda.get_arch_list())
    precision, notice = choose_precision(config.AMP.OPT_LEVEL, config.AMP.BACKEND, config.AMP.DTYPE, device)
    workers = num_workers(config.DATA.NUM_WORKERS, ranks.world_size)
    if workers and SHARED_MEMORY.exists():
        local = os.environ.get("LOCAL_WORLD_SIZE", "")
        here = int(local) if local.isdecimal() else ranks.world_size
        side = max(config.DATA.IMG_SIZE, config.TEST.IMG_SIZE)
        batch_bytes = config.DATA.BATCH_SIZE * 3 * side**2 * torch.float32.itemsize
        check_shared_memory(here * workers, AHEAD, batch_bytes, shutil.disk_usage(SHARED_MEMORY).free)
    ran = f"{precision} on {name}, {ranks.world_size} rank(s) with {workers} loader process(es) each"
    return f"{packages}; {ran}", [notice] if notice else []


def _settings(loaded: Loaded) -> str:
    """How many values are not the defaults, and where those come from."""
    changed = [line.split()[0] for line in differences(loaded.config, get_defaults())]
    origins = Counter(loaded.sources[key] for key in changed)
    listed = ", ".join(f"{count} by {source}" for source, count in origins.items())
    return f"{len(changed)} of {len(flatten(loaded.config))} values are not the defaults{listed and ': ' + listed}"


def _weights_at_hand(model: torch.nn.Module, config) -> str:
    """Puts pretrained weights into the model, unless they would be fetched: that writes into the hub's cache."""
    source = find_pretrained(config.MODEL.PRETRAINED, config.MODEL.NAME)
    if isinstance(source, Hub):
        return f"a run would take {source.name} from timm's hub; tried here with fresh weights"
    return start_weights(model, config)


def _look_for_others(folder: Path, ranks: Ranks) -> None:
    """Raises on every rank when a run cannot write into `folder`, or another has it. The lock is not touched."""
    with on_first_rank(ranks):
        if ranks.first:
            check_folder(folder)
            if who := holder(folder):
                raise BusyError(f"{folder} is in use by {who}; wait for it, or name another run with --tag")


def _outlook(folder: Path, start: Start, progress: Progress, plan: Plan) -> tuple[str, list[str]]:
    """What a run would do in its folder, and what is wrong with the checkpoints it would pass over."""
    would = f"resume {start.path} at step {progress.step} of {plan.total_steps}"
    if start.path is None:
        lost = any((folder / name).exists() for name in CHECKPOINTS)
        would = f"start {plan.total_steps} updates{' anew, losing the run that is there' if lost else ''}"
    faults = [f"{fault}; it would be kept as {path.name}{store.BROKEN}" for path, fault in start.faults.items()]
    return f"{folder} has room for the checkpoints, and a run would {would}", faults


def _experience(trial: Trial, batch_size: int, device: torch.device) -> tuple[str, list[str]]:
    """What the trial updates were like, and whether memory ran out on the way."""
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
    return line, [f"only {trial.micro_batch} of a batch's {batch_size} images fit into memory at a time"]


def _timed(batches: Iterable, waits: list[float]) -> Iterator:
    """The batches; the seconds each was waited for are added to `waits`."""
    batches, end = iter(batches), object()
    while True:
        started = time.perf_counter()
        batch = next(batches, end)
        if batch is end:
            return
        waits.append(time.perf_counter() - started)
        yield batch


def _pace(seconds: float, waited: float, load: float, workers: int) -> float:
    """Seconds a step in the long run: loader processes work beside it, each on a batch of its own.

    Args:
        seconds: of a step, of which it `waited` so many for its batches.
        load: seconds that one process takes to load the batches of a step.
    """
    return max(seconds - waited, load / workers) if workers else seconds


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
