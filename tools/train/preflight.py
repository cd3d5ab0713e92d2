"""`main.py --check`: the setup of a run as a dry run, two steps, one batch of validation, and a forecast.

It writes nothing. It raises the errors that a run would raise.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import islice

import torch

from configs.keys import get_defaults
from configs.load import Loaded, differences, flatten
from data.build import batches_of, num_workers, resume_batches
from tools.base.log import create_logger
from tools.checkpoint import store
from tools.evaluate.inference import predict
from tools.runtime.distributed import Ranks
from tools.runtime.environment import check_packages
from tools.runtime.memory import describe_memory, peak_memory
from tools.runtime.precision import choose_precision
from tools.train.loop import Progress, train_one_epoch
from tools.train.output import CHECKPOINTS
from tools.train.parts import checkpoint_bytes, compile_forward
from tools.train.resume import check_unused
from tools.train.run import Plan, Run
from tools.train.setup import prepare_run
from tools.train.step import StepResult

STEPS = 2  # number of trial steps: the first warms up, the last is timed


def preflight(loaded: Loaded, ranks: Ranks, device: torch.device, *, overwrite: bool, allowed: list[str]) -> int:
    """Follows `tools.train.setup.launch` up to the first two steps, prints what it finds, and returns 0."""
    create_logger(rank=ranks.rank)  # step.py logs it when memory runs out

    def report(part: str, found: str, notes: Sequence[str] = ()) -> None:
        if ranks.first:
            for kind, line in (("ok", found), *(("note", note) for note in notes)):
                print(f"{kind:<4} {part}: {line}", flush=True)

    report("environment", *_environment(loaded.config, ranks, device))
    report("config", _settings(loaded))
    check_unused(loaded, ranks)
    loaded, run = prepare_run(
        loaded, ranks, device, overwrite=overwrite, allowed=allowed, report=report, download=False
    )
    if end := run.nothing_left():
        report("run folder", end)
        return 0
    report("run folder", *_outlook(run))
    run.context = compile_forward(loaded.config, run.context, run.progress.micro_batch)
    results, step_seconds, validation_seconds = try_out(run)
    report("trial", *_experience(run, results))
    sizes = checkpoint_bytes(run.state)
    report("forecast", forecast(run.plan, run.progress, step_seconds, validation_seconds, sizes))
    return 0


def try_out(run: Run) -> tuple[list[StepResult], float, float]:
    """Trains the next steps of the run with its own loader, and validates one batch; changes the weights.

    Returns the results of the steps, and the expected seconds of a step and of a whole validation.

    Raises:
        UserError: what ends a run, see `tools.train.loop.train_one_epoch`.
    """
    plan, progress, context, data = run.plan, replace(run.progress), run.context, run.data
    epoch, done = divmod(progress.step, plan.steps_per_epoch)
    batches = resume_batches(data.train_loader, epoch, done * plan.accumulation_steps)
    steps = train_one_epoch(context, batches, progress, plan.num_batches, plan.accumulation_steps)
    results = list(islice(steps, STEPS))
    workers = data.train_loader.num_workers
    load_seconds = results[0].waited * min(plan.accumulation_steps, max(workers, 1))  # by this many at once
    step_seconds = _seconds_per_step(results[-1].seconds, results[-1].waited, load_seconds, workers)
    started = time.perf_counter()
    one = list(islice(batches_of(data.val_loader, context.device), 1))  # none where there are fewer photos than ranks
    waited = time.perf_counter() - started
    predict(run.state.inference_model(), one, context.device, context.precision, len(data.train.labels.names))
    seconds = time.perf_counter() - started
    batch_seconds = _seconds_per_step(seconds, waited, waited, data.val_loader.num_workers)
    return results, step_seconds, batch_seconds * len(data.val_loader)


def forecast(
    plan: Plan, progress: Progress, step_seconds: float, validation_seconds: float, checkpoint_sizes: tuple[int, int]
) -> str:
    """How long an epoch and the rest of the run will take, and how large the checkpoints will be.

    Args:
        validation_seconds: time to validate on all validation photos.
        checkpoint_sizes: bytes of last.pth and of best.pth.
    """
    steps = plan.last_step - progress.step
    validations = plan.last_step // plan.steps_per_epoch - progress.validated
    epoch, rest = (
        timedelta(seconds=round(num_steps * step_seconds + num_validations * validation_seconds))
        for num_steps, num_validations in ((plan.steps_per_epoch, 1), (steps, validations))
    )
    last, best = (f"{size / 2**20:.1f} MiB" for size in checkpoint_sizes)
    return (
        f"about {epoch} per epoch of {plan.steps_per_epoch} updates, validation included, and {rest} "
        f"for the {steps} updates to go; last.pth {last}, best.pth {best}"
    )


def _environment(config, ranks: Ranks, device: torch.device) -> tuple[str, list[str]]:
    """Versions, device and precision, and the precision's notice. Raises ResourceError for what cannot work."""
    packages, name = check_packages(), str(device)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    amp = config.AMP
    precision, notice = choose_precision(amp.OPT_LEVEL, amp.BACKEND, amp.DTYPE, device, ranks.world_size)
    workers = num_workers(config.DATA.NUM_WORKERS, ranks.world_size)
    how = f"{precision} on {name}, {ranks.world_size} rank(s) with {workers} loader process(es) each"
    return f"{packages}; {how}", [notice] if notice else []


def _settings(loaded: Loaded) -> str:
    """How many values differ from the defaults, and where they come from."""
    changed = [line.split()[0] for line in differences(loaded.config, get_defaults())]
    origins = Counter(loaded.sources[key] for key in changed)
    listed = ", ".join(f"{count} by {source}" for source, count in origins.items())
    return f"{len(changed)} of {len(flatten(loaded.config))} values are not the defaults{listed and ': ' + listed}"


def _outlook(run: Run) -> tuple[str, list[str]]:
    """What a run would do in its folder, and what is wrong with the checkpoints that it would skip."""
    folder, start, total = run.output.path, run.start, run.plan.total_steps
    would = f"resume {start.path} at step {run.progress.step} of {total}"
    if start.path is None:
        replaces = any((folder / name).exists() for name in CHECKPOINTS)
        would = f"start {total} updates{' and replace the run that is there' if replaces else ''}"
    faults = [f"{fault}; it would be kept as {path.name}{store.BROKEN}" for path, fault in start.faults.items()]
    return f"{folder} has room for the checkpoints, and a run would {would}", faults


def _experience(run: Run, results: list[StepResult]) -> tuple[str, list[str]]:
    """Time, loss and memory of the trial steps, and whether memory ran out."""
    device, last = run.context.device, results[-1]
    seconds = ", then ".join(f"{result.seconds:.2f} s" for result in results)
    where = "of main memory, loader processes not counted"
    if device.type == "cuda":
        where = f"of {torch.cuda.get_device_properties(device).total_memory / 2**20:.0f} MiB on the GPU"
    line = (
        f"{len(results)} update(s) of {results[0].images} images: {seconds}; "
        f"loss {last.loss:.3f}; peak {describe_memory(peak_memory(device))} {where}"
    )
    if last.micro_batch == run.context.batch_size:
        return line, []
    return line, [f"only {last.micro_batch} of a batch's {run.context.batch_size} images fit into memory at once"]


def _seconds_per_step(seconds: float, waited: float, load_seconds: float, workers: int) -> float:
    """Seconds per step in a long run, while each loader process prepares another batch in parallel.

    Args:
        seconds: time of a measured step; `waited` is the part spent waiting for its batches.
        load_seconds: what one process takes to load the batches of a step.
    """
    return max(seconds - waited, load_seconds / workers) if workers else seconds
