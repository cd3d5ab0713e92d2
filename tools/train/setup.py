"""From a config to a run that is ready to train. May import every shelf; only entry points import it.

Everything that can be refused is refused before the first file is written, which is what `open_folder` does.
"""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from configs.load import Loaded
from data.build import batches_of, resume_batches
from data.labels import healthy_index
from data.loading.seeds import INIT, seed_of
from data.loading.split import describe
from models.build import build_model
from models.weights import count_parameters, load_strictly
from tools.base.errors import ResourceError, UsageError
from tools.base.files import write_bytes
from tools.base.log import create_logger
from tools.checkpoint import store
from tools.evaluate.rule import DecisionRule
from tools.runtime.distributed import Ranks, on_first_rank, share_weights
from tools.runtime.precision import choose_precision
from tools.runtime.signals import children_end
from tools.train.data import Data, count_table, load_data
from tools.train.loop import Progress
from tools.train.parts import (
    checkpoint_bytes,
    fitting_images,
    make_plan,
    make_schedule,
    make_step_context,
    make_train_state,
    start_weights,
)
from tools.train.resume import RUN_FILES, Start, check_agreement, check_room, check_unchanged, sole_run, starting_point
from tools.train.run import Plan, Run, TrainState, fitted_state, record_start
from tools.train.schedules import scale_lr

StartWeights = Callable[[nn.Module, object], str]


SELECT = {"single": "accuracy", "multi": "macro_f1"}  # what TRAIN.SELECT_BY auto means


@dataclass
class Prepared:
    """A run of a config, ready to train but for its folder. `notes`: what its log should say first."""

    data: Data
    plan: Plan
    train_state: TrainState
    origin: str
    notes: list[str]


def launch(
    loaded: Loaded, argv: list[str], ranks: Ranks, device: torch.device, *, overwrite: bool, allowed: list[str]
) -> int:
    """Trains the config's run from wherever its folder says it stands, and returns the exit code.

    Args:
        overwrite: start anew although the folder holds a run.
        allowed: config keys that may differ from those of the run that is continued.

    Raises:
        UserError: of the kind that fits, before any file is touched, for whatever cannot work.
    """
    config, folder = loaded.config, loaded.run_folder
    check_apart(config, folder)
    with sole_run(folder, ranks), children_end():
        start = starting_point(loaded, overwrite)
        run = prepare(config, load_data(config, ranks), ranks, device)
        plan, train_state = run.plan, run.train_state
        progress = take_up(start, run, config, ranks, device, allowed)
        if end := nothing_left(start, progress, plan):
            print(end)
            return 0
        with on_first_rank(ranks):
            check_room(folder, *checkpoint_bytes(train_state))
        logger = open_folder(folder, loaded, argv, ranks, start)
        for line in run.notes:
            logger.info(line)
        origin = f"weights of {start.path}" if start.path else run.origin
        log_start(logger, loaded, run.data, train_state, plan, ranks, device, origin)
        for path, fault in start.faults.items():
            logger.warning(f"{fault}; it is kept as {path.name}{store.BROKEN}")
        if progress.micro_batch < config.DATA.BATCH_SIZE:
            logger.info(f"{progress.micro_batch} images of a batch's {config.DATA.BATCH_SIZE} at a time, which fit")
        if start.path:
            logger.info(f"resuming {start.path} at step {progress.step} of {plan.total_steps}")
        fitted = {key: start.stored[key] for key in store.FITTED_KEYS} if start.path else {}
        command = how_to_go_on(argv, ranks)
        make_run(config, folder, command, logger, ranks, device, plan, train_state, progress, fitted, run.data).fit()
    return 0


def prepare(config, data: Data, ranks: Ranks, device: torch.device, weights: StartWeights | None = None) -> Prepared:
    """Plan, model and optimizer of the config. Raises UserError for whatever cannot work; writes nothing.

    Args:
        weights: what puts pretrained weights into the model and says where they came from; `start_weights` by default.
    """
    precision, notice = choose_precision(config.AMP.OPT_LEVEL, config.AMP.BACKEND, config.AMP.DTYPE, device)
    plan = make_plan(config, len(data.train_loader.batch_sampler), ranks)
    torch.use_deterministic_algorithms(config.TRAIN.DETERMINISTIC)
    torch.backends.cudnn.benchmark = not config.TRAIN.DETERMINISTIC
    torch.manual_seed(seed_of(config.SEED, INIT))
    model = build_model(
        config.MODEL,
        config.DATA.IMG_SIZE,
        config.MODEL.NUM_CLASSES,
        config.TRAIN.USE_CHECKPOINT,
        config.TEST.IMG_SIZE,
        config.TRAIN.SELECTIVE_CHECKPOINT,
    )
    origin = (weights or start_weights)(model, config)
    train_state = make_train_state(model, config, precision, device)
    share_weights(model)
    return Prepared(data, plan, train_state, origin, [*filter(None, (notice, *data.train.notes, *data.val.notes))])


def take_up(start: Start, run: Prepared, config, ranks: Ranks, device: torch.device, allowed: list[str]) -> Progress:
    """Puts the state of the checkpoint, if there is one, into the run's train_state; where the run then stands.

    Raises:
        UserError: when ranks differ, or the checkpoint is of another config, other photos or another optimizer.
    """
    check_agreement(ranks, config, run.data, start)
    if not start.path:
        fitting = fitting_images(config, run.train_state, ranks, device) if config.TRAIN.FIT_MEMORY else None
        return Progress(micro_batch=fitting or config.DATA.BATCH_SIZE)
    check_unchanged(start, config, run.data, run.plan, allowed)
    stored = start.stored
    run.train_state.restore(stored, load_strictly, str(start.path))
    return Progress(
        micro_batch=min(stored["micro_batch"], config.DATA.BATCH_SIZE),
        **{key: stored[key] for key in ("step", "skipped", "validated", "best")},
        sums=list(stored["sums"]),
    )


def nothing_left(start: Start, progress: Progress, plan: Plan) -> str:
    """A line that says why there is nothing to train any more; the empty string when there is something."""
    if progress.step < plan.last_step or progress.validated < plan.last_step // plan.updates:
        return ""
    end = "the end of a finished run" if plan.last_step == plan.total_steps else "where TRAIN.MAX_STEPS ends"
    return f"{start.path} is {end} ({progress.step} steps): nothing left to do"


def how_to_go_on(argv: list[str], ranks: Ranks) -> str:
    """The command line that continues this run."""
    start = f"torchrun --nproc_per_node={ranks.world_size}" if ranks.world_size > 1 else "python"
    return f"{start} main.py {shlex.join(word for word in argv if word != '--overwrite')}"


def check_apart(config, folder: Path) -> None:
    """Raises UsageError when the run folder and the photos lie within each other."""
    photos, target = Path(config.DATA.DATA_PATH).resolve(), folder.resolve()
    if target.is_relative_to(photos) or photos.is_relative_to(target):
        raise UsageError(f"--output {config.OUTPUT} and --data-path {config.DATA.DATA_PATH} lie within each other")


def log_start(
    logger, loaded: Loaded, data: Data, train_state: TrainState, plan: Plan, ranks: Ranks, device, origin: str
) -> None:
    """What a reader of the log wants to know first: photos, model, precision, and the rate that is really used."""
    config, model, images = loaded.config, train_state.module, plan.images_per_update
    base_lr = config.TRAIN.BASE_LR
    logger.debug(f"{model}\n{loaded.describe()}")
    for line in (describe(data.train), describe(data.val), *count_table(data, config)):
        logger.info(line)
    flops = f", {model.flops() / 1e9:.2f} G multiply-adds an image" if hasattr(model, "flops") else ""
    logger.info(f"{config.MODEL.NAME}: {count_parameters(model) / 1e6:.2f} M parameters{flops}; {origin}")
    rate = f"{scale_lr(base_lr, images):.4g} = TRAIN.BASE_LR {base_lr:g} x {images} / 512"
    logger.info(
        f"{train_state.precision} on {device}, {ranks.world_size} rank(s); {images} images an update, "
        f"{plan.updates} updates an epoch; peak learning rate {rate}"
    )
    if ranks.world_size > 1 and any("batchnorm" in type(m).__name__.lower() for m in model.modules()):
        logger.info("the model has batch norm, whose statistics depend on how a batch is cut into ranks")


def open_folder(folder: Path, loaded: Loaded, argv: list[str], ranks: Ranks, start: Start):
    """Makes the run folder, or tidies that of a run that goes on; returns the logger that writes into it."""
    if not ranks.first:
        return create_logger(rank=ranks.rank)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        store.sweep(folder)
        for path in start.faults:
            path.rename(path.with_name(path.name + store.BROKEN))
        if not start.goes_on:
            for path in (*(folder / name for name in RUN_FILES), *(folder / store.SNAPSHOTS).glob("epoch_*.pth")):
                path.unlink(missing_ok=True)
        write_bytes(folder / "config.yaml", loaded.config.dump().encode())
        record_start(folder, argv)
        return create_logger(folder / "log.txt")
    except OSError as error:
        raise ResourceError(f"run folder {folder} cannot be written: {error.strerror}") from None


def make_run(
    config,
    folder: Path,
    command: str,
    logger,
    ranks: Ranks,
    device: torch.device,
    plan: Plan,
    train_state: TrainState,
    progress: Progress,
    fitted: dict,
    data: Data,
) -> Run:
    """Everything put together. `fitted`: what a resumed checkpoint says of decisions; empty for a new run."""
    targets, classes = config.DATA.TARGETS, data.train.classes
    combinations = sorted({photo.classes for photo in data.train.photos})
    rule = DecisionRule.unfitted(targets, config.TEST.DECIDE_BY, combinations, len(classes), healthy_index(classes))
    return Run(
        folder=folder,
        command=command,
        logger=logger,
        ranks=ranks,
        plan=plan,
        schedule=make_schedule(config.TRAIN, plan),
        train_state=train_state,
        context=make_step_context(config, train_state, plan, data, ranks, device),
        progress=progress,
        meta={
            "config": config.dump(),
            "classes": list(classes),
            "combinations": [list(labels) for labels in combinations],
            "preprocess": data.preprocess.to_dict(),
            "targets": targets,
            "data_digest": data.digests(),
            "images_per_update": plan.images_per_update,
        },
        rule=rule,
        fitted=fitted or fitted_state(rule, *(np.zeros((0, len(classes)), kind) for kind in (np.float32, bool))),
        num_classes=len(classes),
        select=SELECT[targets] if config.TRAIN.SELECT_BY == "auto" else config.TRAIN.SELECT_BY,
        train_batches=partial(resume_batches, data.train_loader, device=device),
        val_batches=partial(batches_of, data.val_loader, device),
        print_freq=config.PRINT_FREQ,
        snapshots=config.TRAIN.SNAPSHOT_EPOCHS,
    )
