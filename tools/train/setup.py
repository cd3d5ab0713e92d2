"""The way from a config to a run that is ready to train; `--check` goes the same way without writing.

All checks run before `open_folder`, which is the first to write into the run folder.
"""

import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from configs.load import Loaded
from data.labels import healthy_index
from data.loading.seeds import INIT, seed_of
from data.loading.split import describe
from models.build import build_model
from models.swin_transformer import SwinTransformer
from tools.base.errors import ResourceError, UsageError
from tools.base.files import write_bytes
from tools.base.log import create_logger
from tools.checkpoint import store
from tools.evaluate.rule import DecisionRule
from tools.runtime.distributed import Ranks, on_first_rank, share_weights
from tools.runtime.precision import choose_precision
from tools.runtime.signals import children_end
from tools.train.data import RunData, count_table, load_data
from tools.train.loop import Progress
from tools.train.output import RunFolder, record_start
from tools.train.parts import checkpoint_bytes, load_start_weights, make_plan, make_step_context, make_train_state
from tools.train.resume import (
    RUN_FILES,
    Start,
    check_agreement,
    check_room,
    check_unchanged,
    find_start,
    sole_run,
)
from tools.train.run import Plan, Run, TrainState, fitted_state
from tools.train.schedules import scale_lr

Report = Callable[[str, str, Sequence[str]], None]  # (part of the setup, what was found, notes)


@dataclass
class PreparedRun:
    """The parts of a run, before its folder is opened.

    Attributes:
        origin: where the weights came from.
        notes: lines to log first.
        end: why no training is left; empty if some is.
    """

    data: RunData
    plan: Plan
    state: TrainState
    start: Start
    progress: Progress
    origin: str
    notes: list[str]
    end: str


def launch(
    loaded: Loaded, argv: list[str], ranks: Ranks, device: torch.device, *, overwrite: bool, allowed: list[str]
) -> int:
    """Starts or resumes the run that the config describes, and returns the exit code.

    Args:
        overwrite: start again although the folder holds a run.
        allowed: config keys that may differ from those of the run that is resumed.

    Raises:
        UserError: of the matching class, before any file is touched, for everything that cannot work.
    """
    check_apart(loaded)
    with sole_run(loaded.run_folder, ranks), children_end():
        prepared = prepare_run(loaded, ranks, device, overwrite=overwrite, allowed=allowed)
        if prepared.end:
            print(prepared.end)
            return 0
        logger = open_folder(loaded, argv, ranks, prepared.start)
        log_start(logger, loaded, prepared, ranks, device)
        build_run(loaded, argv, prepared, ranks, device, logger).fit()
    return 0


def prepare_run(
    loaded: Loaded,
    ranks: Ranks,
    device: torch.device,
    *,
    overwrite: bool,
    allowed: list[str],
    report: Report = lambda _part, _found, _notes: None,
    download: bool = True,
) -> PreparedRun:
    """Builds data, plan and model, and loads the state to resume from.

    Does not touch the run folder; may write the pixel cache and download weights.

    Args:
        report: called with the result of each part of the setup.
        download: see `tools.train.parts.load_start_weights`.
    """
    config, folder = loaded.config, loaded.run_folder
    precision, notice = choose_precision(config.AMP.OPT_LEVEL, config.AMP.BACKEND, config.AMP.DTYPE, device)
    data = load_data(config, ranks)
    notes = [*data.train.notes, *data.val.notes]
    report("data set", f"{describe(data.train)}; {describe(data.val)}", notes)
    plan = make_plan(config, len(data.train_loader), ranks)
    model = build_training_model(config)
    origin = load_start_weights(model, config, download=download)
    report("weights", origin, ())
    state = make_train_state(model, config, precision, device)
    share_weights(model)
    start = find_start(loaded, overwrite)
    check_agreement(ranks, config, data, start)
    progress = Progress(micro_batch=config.DATA.BATCH_SIZE)
    if start.path:
        check_unchanged(start, config, data, plan, allowed)
        state.load_state_dict(start.stored, str(start.path))
        progress = Progress.from_state_dict(start.stored, config.DATA.BATCH_SIZE)
        origin = f"weights of {start.path}"
    end = nothing_left(start, progress, plan)
    if not end:
        with on_first_rank(ranks):
            check_room(folder, *checkpoint_bytes(state))
    return PreparedRun(data, plan, state, start, progress, origin, [*filter(None, (notice, *notes))], end)


def build_training_model(config) -> torch.nn.Module:
    """Sets torch's determinism flags; builds the model with seeded random weights."""
    torch.use_deterministic_algorithms(config.TRAIN.DETERMINISTIC)
    torch.backends.cudnn.benchmark = not config.TRAIN.DETERMINISTIC
    torch.manual_seed(seed_of(config.SEED, INIT))
    return build_model(
        config.MODEL,
        config.DATA.IMG_SIZE,
        config.MODEL.NUM_CLASSES,
        use_checkpoint=config.TRAIN.USE_CHECKPOINT,
        test_size=config.TEST.IMG_SIZE,
        selective_checkpoint=config.TRAIN.SELECTIVE_CHECKPOINT,
    )


def check_apart(loaded: Loaded) -> None:
    """Raises UsageError when one of the run folder and the photos lies inside the other."""
    config = loaded.config
    photos, target = Path(config.DATA.DATA_PATH).resolve(), loaded.run_folder.resolve()
    if target.is_relative_to(photos) or photos.is_relative_to(target):
        both = f"--output {config.OUTPUT} and --data-path {config.DATA.DATA_PATH}"
        raise UsageError(f"{both}: one lies inside the other; choose another --output")


def nothing_left(start: Start, progress: Progress, plan: Plan) -> str:
    """Why there is nothing left to train; the empty string when there is something."""
    if progress.step < plan.last_step or progress.validated < plan.last_step // plan.updates_per_epoch:
        return ""
    if plan.last_step == plan.total_steps:
        return f"the run is finished ({progress.step} steps, {start.path}): nothing left to do"
    return f"{start.path} has reached TRAIN.MAX_STEPS ({progress.step} steps): nothing left to do"


def open_folder(loaded: Loaded, argv: list[str], ranks: Ranks, start: Start) -> logging.Logger:
    """Prepares the run folder; returns the logger that writes into it.

    A resumed run keeps its files, and damaged checkpoints are renamed. Otherwise the files of an older run are deleted.
    """
    folder = loaded.run_folder
    if not ranks.first:
        return create_logger(rank=ranks.rank)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        store.sweep(folder)
        for path in start.faults:
            path.rename(path.with_name(path.name + store.BROKEN))
        if not start.in_place:
            for path in (*(folder / name for name in RUN_FILES), *(folder / store.SNAPSHOTS).glob("epoch_*.pth")):
                path.unlink(missing_ok=True)
        write_bytes(folder / "config.yaml", loaded.config.dump().encode())
        record_start(folder, argv)
        return create_logger(folder / "log.txt")
    except OSError as error:
        raise ResourceError(f"run folder {folder} cannot be written: {error.strerror}") from None


def log_start(logger: logging.Logger, loaded: Loaded, run: PreparedRun, ranks: Ranks, device: torch.device) -> None:
    """Logs first what a reader wants to know: photos, model, precision, learning rate, and where it resumes."""
    config, model, images = loaded.config, run.state.module, run.plan.images_per_update
    logger.debug(f"{model}\n{loaded.describe()}")
    for line in (*run.notes, describe(run.data.train), describe(run.data.val), *count_table(run.data, config)):
        logger.info(line)
    flops = f", {model.flops() / 1e9:.2f} G multiply-adds per image" if isinstance(model, SwinTransformer) else ""
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    logger.info(f"{config.MODEL.NAME}: {num_parameters / 1e6:.2f} M parameters{flops}")
    logger.info(run.origin)
    logger.info(
        f"{run.state.precision} on {device}, {ranks.world_size} rank(s); {images} images per update, "
        f"{run.plan.updates_per_epoch} updates per epoch"
    )
    base_lr = config.TRAIN.BASE_LR
    logger.info(f"peak learning rate {scale_lr(base_lr, images):.4g} = TRAIN.BASE_LR {base_lr:g} x {images} / 512")
    if ranks.world_size > 1 and any("batchnorm" in type(m).__name__.lower() for m in model.modules()):
        logger.info("the model has batch norm, whose statistics depend on how a batch is divided among ranks")
    for path, fault in run.start.faults.items():
        logger.warning(f"{fault}; it is kept as {path.name}{store.BROKEN}")
    if run.progress.micro_batch < config.DATA.BATCH_SIZE:
        logger.info(f"micro-batch: {run.progress.micro_batch} of a batch's {config.DATA.BATCH_SIZE} images at once")
    if run.start.path:
        logger.info(f"resuming {run.start.path} at step {run.progress.step} of {run.plan.total_steps}")


def build_run(
    loaded: Loaded,
    argv: list[str],
    prepared: PreparedRun,
    ranks: Ranks,
    device: torch.device,
    logger: logging.Logger,
) -> Run:
    """The run in its opened folder."""
    config, data, plan, start = loaded.config, prepared.data, prepared.plan, prepared.start
    targets, classes = config.DATA.TARGETS, data.train.classes
    combinations = sorted({photo.classes for photo in data.train.photos})
    rule = DecisionRule.unfitted(targets, config.TEST.DECIDE_BY, combinations, len(classes), healthy_index(classes))
    meta = {
        "config": config.dump(),
        "classes": list(classes),
        "combinations": [list(labels) for labels in combinations],
        "preprocess": data.preprocess.to_dict(),
        "targets": targets,
        "data_digest": data.digests(),
        "images_per_update": plan.images_per_update,
    }
    if start.path:
        fitted = {key: start.stored[key] for key in store.FITTED_KEYS}
    else:
        fitted = fitted_state(rule, *(np.zeros((0, len(classes)), kind) for kind in (np.float32, bool)))
    return Run(
        plan=plan,
        data=data,
        state=prepared.state,
        context=make_step_context(config, prepared.state, plan, data, ranks, device),
        progress=prepared.progress,
        output=RunFolder(loaded.run_folder, resume_command(argv, ranks), meta, ranks),
        rule=rule,
        fitted=fitted,
        logger=logger,
    )


def resume_command(argv: list[str], ranks: Ranks) -> str:
    """The command line that resumes this run, with the program that the user has called."""
    alone, called = ranks.world_size == 1, Path(sys.argv[0])
    torchrun = f"torchrun --nproc_per_node={ranks.world_size}"
    if called.name == "plantswin":
        program = "plantswin train" if alone else f"{torchrun} --no-python plantswin train"
    else:
        script = shlex.quote(str(called)) if called.name == "main.py" else "main.py"
        if called.parts[-2:] == ("tools", "__main__.py"):
            script = "-m tools train"
        program = f"{'python' if alone else torchrun} {script}"
    return f"{program} {shlex.join(word for word in argv if word != '--overwrite')}"
