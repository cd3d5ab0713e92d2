"""From a config to a run that is ready to train. May import every shelf, as assemble.py may; only main.py imports it.

Everything that can be refused is refused before the first file is written, which is what `open_folder` does.
"""

import os
from functools import partial
from pathlib import Path

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import nn

from configs.load import Loaded, differences
from data.build import (
    batches_of,
    build_mixer,
    resume_batches,
)
from data.datasets import describe
from data.labels import healthy_index
from data.seeds import INIT, seed_of
from models.build import Hub, build_model, find_pretrained, head_name, layer_index, no_weight_decay
from models.weights import count_parameters, load_pretrained, load_strictly
from tools import checkpoint
from tools.amp import choose_precision
from tools.assemble import batch_draws, stored_config
from tools.decisions import DecisionRule
from tools.distributed import Ranks
from tools.engine import Progress
from tools.errors import CheckpointError, ResourceError, UsageError
from tools.files import write_bytes
from tools.history import HISTORY, read_history
from tools.logger import create_logger
from tools.losses import build_criterion, class_weights
from tools.optim import build_optimizer, freeze, parameter_groups
from tools.run import Learner, Plan, Run, fitted_state, record_start
from tools.run_data import Data, count_table, load_data
from tools.schedules import build_schedule, scale_lr
from tools.schema import RESUME

# What may differ between a run and its continuation without changing a bit of the result.
HARMLESS = (
    *(
        "OUTPUT",
        "TAG",
        "SAVE_FREQ",
        "PRINT_FREQ",
        "MODEL.RESUME",
        "MODEL.PRETRAINED",
        "DIST.BACKEND",
        "DIST.TIMEOUT_SECONDS",
    ),
    *("DATA.DATA_PATH", "DATA.ZIP_MODE", "DATA.CACHE_MODE", "DATA.PIN_MEMORY", "DATA.NUM_WORKERS"),
    *("TRAIN.AUTO_RESUME", "TRAIN.MAX_STEPS", "TRAIN.SAVE_EVERY_STEPS", "TRAIN.SNAPSHOTS", "TEST.TTA"),
)
RUN_FILES = (checkpoint.LAST, checkpoint.BEST, checkpoint.RUN, HISTORY, "curves.png", "log.txt", "config.yaml")
SELECT = {"single": "accuracy", "multi": "macro_f1"}  # what TRAIN.SELECT auto means


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
    config = loaded.config
    precision, notice = choose_precision(config.AMP.OPT_LEVEL, config.AMP.BACKEND, config.AMP.DTYPE, device)
    data = load_data(config, ranks, device)
    plan = make_plan(config, len(data.train_loader.batch_sampler), ranks)
    folder, resume = starting_point(loaded, overwrite)
    stored = checkpoint.read_own(resume, RESUME) if resume else None
    if stored:
        check_unchanged(stored, config, data, plan, allowed, resume)
        if stored["step"] >= plan.last_step:
            end = "the end of a finished run" if plan.last_step == plan.total_steps else "where TRAIN.MAX_STEPS ends"
            print(f"{resume} is {end} ({stored['step']} steps): nothing left to do")
            return 0
    goes_on = resume == folder / checkpoint.LAST
    if goes_on:
        read_history(folder / HISTORY)  # or its new rows would be refused after an epoch

    torch.use_deterministic_algorithms(config.TRAIN.DETERMINISTIC)
    torch.backends.cudnn.benchmark = not config.TRAIN.DETERMINISTIC
    torch.manual_seed(seed_of(config.SEED, INIT))
    model = build_model(
        config.MODEL,
        config.DATA.IMG_SIZE,
        config.MODEL.NUM_CLASSES,
        config.TRAIN.USE_CHECKPOINT,
        config.TEST.IMG_SIZE,
        config.TRAIN.LEAN,
    )
    origin = f"weights of {resume}" if stored else start_weights(model, config)
    learner = make_learner(model, config, precision, ranks, device)
    progress = Progress()
    if stored:
        learner.restore(stored, load_strictly, str(resume))
        progress = Progress(stored["step"], stored["skipped"], list(stored["sums"]), stored["best"])
    fitted = {key: stored[key] for key in checkpoint.FITTED_KEYS} if stored else {}

    logger = open_folder(folder, loaded, argv, ranks, keep=goes_on)
    for line in filter(None, (notice, *data.train.notes, *data.val.notes)):
        logger.info(line)
    log_start(logger, loaded, data, learner, plan, ranks, device, origin)
    if stored:
        logger.info(f"resuming {resume} at step {progress.step} of {plan.total_steps}")
    make_run(config, folder, logger, ranks, device, plan, learner, progress, fitted, data).fit()
    return 0


def log_start(
    logger, loaded: Loaded, data: Data, learner: Learner, plan: Plan, ranks: Ranks, device, origin: str
) -> None:
    """What a reader of the log wants to know first: photos, model, precision, and the rate that is really used."""
    config, model, images = loaded.config, learner.module, plan.images_per_update
    base_lr = config.TRAIN.BASE_LR
    logger.debug(f"{model}\n{loaded.describe()}")
    for line in (describe(data.train), describe(data.val), *count_table(data, config)):
        logger.info(line)
    flops = f", {model.flops() / 1e9:.2f} G multiply-adds an image" if hasattr(model, "flops") else ""
    logger.info(f"{config.MODEL.NAME}: {count_parameters(model) / 1e6:.2f} M parameters{flops}; {origin}")
    rate = f"{scale_lr(base_lr, images):.4g} = TRAIN.BASE_LR {base_lr:g} x {images} / 512"
    logger.info(
        f"{learner.precision} on {device}, {ranks.world_size} rank(s); {images} images an update, "
        f"{plan.updates} updates an epoch; peak learning rate {rate}"
    )
    if ranks.world_size > 1 and any("batchnorm" in type(m).__name__.lower() for m in model.modules()):
        logger.info("the model has batch norm, whose statistics depend on how a batch is cut into ranks")


def make_plan(config, num_batches: int, ranks: Ranks) -> Plan:
    """How the epochs are cut into updates. Raises UsageError when there is not one."""
    train = config.TRAIN
    if num_batches == 0:
        raise UsageError(
            f"the training photos do not fill one batch of DATA.BATCH_SIZE {config.DATA.BATCH_SIZE} on "
            f"{ranks.world_size} rank(s); lower --batch-size"
        )
    if num_batches < train.ACCUMULATION_STEPS:
        raise UsageError(
            f"TRAIN.ACCUMULATION_STEPS {train.ACCUMULATION_STEPS} is more than the {num_batches} batches of an epoch; "
            "lower --accumulation-steps"
        )
    return Plan(
        epochs=train.EPOCHS,
        num_batches=num_batches,
        accumulation=train.ACCUMULATION_STEPS,
        images_per_update=config.DATA.BATCH_SIZE * ranks.world_size * train.ACCUMULATION_STEPS,
        save_freq=config.SAVE_FREQ,
        save_every=train.SAVE_EVERY_STEPS,
        stop_after=train.MAX_STEPS,
    )


def make_schedule(train, plan: Plan):
    """step -> learning rate, scaled to the plan's images an update."""
    return build_schedule(
        train.LR_SCHEDULER.NAME,
        base_lr=scale_lr(train.BASE_LR, plan.images_per_update),
        warmup_lr=scale_lr(train.WARMUP_LR, plan.images_per_update),
        min_lr=scale_lr(train.MIN_LR, plan.images_per_update),
        warmup_steps=round(train.WARMUP_EPOCHS * plan.updates),
        total_steps=plan.total_steps,
        decay_steps=max(1, round(train.LR_SCHEDULER.DECAY_EPOCHS * plan.updates)),
        decay_rate=train.LR_SCHEDULER.DECAY_RATE,
    )


def starting_point(loaded: Loaded, overwrite: bool) -> tuple[Path, Path | None]:
    """(run folder, checkpoint to go on from or None). Raises UsageError for a run that may not be touched."""
    config, folder = loaded.config, loaded.run_folder
    photos, target = Path(config.DATA.DATA_PATH).resolve(), folder.resolve()
    if target.is_relative_to(photos) or photos.is_relative_to(target):
        raise UsageError(f"--output {config.OUTPUT} and --data-path {config.DATA.DATA_PATH} lie within each other")
    check_folder(folder)
    last, best = folder / checkpoint.LAST, folder / checkpoint.BEST
    if config.MODEL.RESUME:
        asked = Path(config.MODEL.RESUME)
        resume = last if last.exists() and asked.exists() and asked.samefile(last) else asked
    else:
        resume = last if config.TRAIN.AUTO_RESUME and last.exists() and not overwrite else None
    if (last.exists() or best.exists()) and resume != last and not overwrite:
        raise UsageError(f"{folder} holds a run; name another with --tag, or lose it with --overwrite")
    return folder, resume


def check_folder(folder: Path) -> None:
    """Raises when a run cannot write its files into `folder`, because something else stands where they would be.

    A link is refused too, wherever it leads: what is written through it would be somebody else's.
    """
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not there.is_dir():
        raise UsageError(f"run folder {folder}: {there} is not a folder; choose another --output")
    for name in RUN_FILES:
        path = folder / name
        if path.is_symlink() or (path.exists() and not path.is_file()):
            kind = CheckpointError if path.suffix == ".pth" else ResourceError
            raise kind(
                f"{path} is {'a link' if path.is_symlink() else 'not a file'}; move it away, or name another run"
            )


def check_unchanged(stored: dict, config, data: Data, plan: Plan, allowed: list[str], path: Path) -> None:
    """Raises when a checkpoint was made with another config, other photos or another batch than this run would use."""
    remedy = "start another run with --tag NAME, or lose this one with --overwrite"
    changed = differences(config, stored_config(stored, path), (*HARMLESS, *allowed))
    if changed:
        keys = " ".join(line.split()[0] for line in changed)
        raise UsageError(
            f"{path} was made with another config: {', '.join(changed)}; {remedy}, "
            f"or allow it with --allow-change {keys}"
        )
    if stored["classes"] != list(data.train.classes):
        raise CheckpointError(f"{path} has the classes {stored['classes']}, the data has {list(data.train.classes)}")
    if stored["data_digest"] != data.digests():
        raise CheckpointError(f"{path} was made with other photos or labels; {remedy}")
    if stored["images_per_update"] != plan.images_per_update:
        raise CheckpointError(
            f"{path} was made with {stored['images_per_update']} images an update, and this would be "
            f"{plan.images_per_update}; use as many ranks x batch size as before"
        )


def start_weights(model: nn.Module, config) -> str:
    """Puts the pretrained weights of the config into the model, and says where they came from."""
    source = find_pretrained(config.MODEL.PRETRAINED, config.MODEL.NAME)
    if source is None:
        return "fresh weights"
    if isinstance(source, Hub):
        return load_pretrained(model, source.state_dict(), f"timm's hub, {source.name}", head_name(model))
    return load_pretrained(model, checkpoint.read(source), str(source), head_name(model))


def make_learner(model: nn.Module, config, precision, ranks: Ranks, device: torch.device) -> Learner:
    """Model, optimizer, precision and moving average, wrapped for the ranks there are."""
    train = config.TRAIN
    model = model.to(device)
    freeze(model, train.FREEZE)
    groups = parameter_groups(
        model,
        weight_decay=train.WEIGHT_DECAY,
        no_decay=no_weight_decay(model),
        head=head_name(model),
        head_scale=train.HEAD_LR / train.BASE_LR if train.HEAD_LR else 1.0,
        layer_decay=train.LAYER_DECAY,
        layer_index=layer_index(model) if train.LAYER_DECAY != 1 else None,
    )
    settings = train.OPTIMIZER
    optimizer = build_optimizer(
        groups, settings.NAME, lr=train.BASE_LR, eps=settings.EPS, betas=settings.BETAS, momentum=settings.MOMENTUM
    )
    model, optimizer = precision.prepare(model, optimizer)
    forward = model
    if ranks.world_size > 1:
        forward = nn.parallel.DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    ema = ModelEmaV3(model, decay=train.EMA_DECAY, use_warmup=True, warmup_power=2 / 3) if train.EMA_DECAY else None
    return Learner(model, forward, optimizer, precision, ema)


def open_folder(folder: Path, loaded: Loaded, argv: list[str], ranks: Ranks, keep: bool):
    """Makes the run folder (emptied of an older run unless `keep`) and returns the logger that writes into it."""
    if not ranks.first:
        return create_logger(rank=ranks.rank)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not keep:
            for path in (*(folder / name for name in RUN_FILES), *(folder / checkpoint.SNAPSHOTS).glob("epoch_*.pth")):
                path.unlink(missing_ok=True)
        write_bytes(folder / "config.yaml", loaded.config.dump().encode())
        record_start(folder, argv)
        return create_logger(folder / "log.txt")
    except OSError as error:
        raise ResourceError(f"run folder {folder} cannot be written: {error.strerror}") from None


def make_run(
    config,
    folder: Path,
    logger,
    ranks: Ranks,
    device: torch.device,
    plan: Plan,
    learner: Learner,
    progress: Progress,
    fitted: dict,
    data: Data,
) -> Run:
    """Everything put together. `fitted`: what a resumed checkpoint says of decisions; empty for a new run."""
    targets, classes = config.DATA.TARGETS, data.train.classes
    combinations = sorted({photo.classes for photo in data.train.photos})
    rule = DecisionRule.unfitted(targets, config.TEST.DECIDE, combinations, len(classes), healthy_index(classes))
    return Run(
        folder=folder,
        logger=logger,
        ranks=ranks,
        device=device,
        plan=plan,
        schedule=make_schedule(config.TRAIN, plan),
        learner=learner,
        progress=progress,
        meta={
            "config": config.dump(),
            "classes": list(classes),
            "combinations": [list(labels) for labels in combinations],
            "preprocess": data.preprocess.to_dict(),
            "targets": targets,
            "data_digest": data.digests(),
            "micro_batch": config.DATA.BATCH_SIZE,
            "images_per_update": plan.images_per_update,
        },
        rule=rule,
        fitted=fitted or fitted_state(rule, *(np.zeros((0, len(classes)), kind) for kind in (np.float32, bool))),
        num_classes=len(classes),
        select=SELECT[targets] if config.TRAIN.SELECT == "auto" else config.TRAIN.SELECT,
        train_criterion=make_criterion(config, data, device),
        train_batches=partial(resume_batches, data.train_loader),
        val_batches=partial(batches_of, data.val_loader),
        draw=batch_draws(
            build_mixer(config.AUG),
            learner.module,
            img_size=config.DATA.IMG_SIZE,
            batch_size=config.DATA.BATCH_SIZE,
            accumulation=plan.accumulation,
            rank=ranks.rank,
            world_size=ranks.world_size,
            seed=config.SEED,
        ),
        clip_grad=config.TRAIN.CLIP_GRAD,
        print_freq=config.PRINT_FREQ,
        snapshots=config.TRAIN.SNAPSHOTS,
    )


def make_criterion(config, data: Data, device: torch.device):
    """The training criterion of the config, with class weights from the counts of the training copies if asked for."""
    loss, weighted = config.TRAIN.LOSS, config.TRAIN.BALANCE == "weights"
    return build_criterion(
        loss.NAME,
        config.DATA.TARGETS,
        smoothing=config.MODEL.LABEL_SMOOTHING,
        weights=class_weights(data.train.counts).to(device) if weighted else None,
        gamma=loss.GAMMA,
        gamma_neg=loss.GAMMA_NEG,
        gamma_pos=loss.GAMMA_POS,
        clip=loss.CLIP,
    )
