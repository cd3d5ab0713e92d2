"""From a config to a run that is ready to train. May import every shelf; only entry points import it.

Everything that can be refused is refused before the first file is written, which is what `open_folder` does.
"""

import logging
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import nn

from configs.load import Loaded
from data.build import (
    batches_of,
    build_mixer,
    resume_batches,
)
from data.datasets import describe
from data.labels import healthy_index
from data.seeds import INIT, seed_of
from models.build import Hub, build_model, compiled, find_pretrained, head_name, layer_index, no_weight_decay
from models.swin_transformer import SwinTransformer
from models.weights import count_parameters, load_pretrained, load_strictly
from tools import checkpoint
from tools.amp import choose_precision
from tools.assemble import batch_draws
from tools.budget import largest_batch, peak_an_image
from tools.decisions import DecisionRule
from tools.distributed import Ranks, gather_objects, on_first_rank, raise_together, share_weights
from tools.engine import Progress
from tools.errors import ResourceError, UsageError
from tools.files import write_bytes
from tools.logger import create_logger
from tools.losses import build_criterion, class_weights
from tools.optim import build_optimizer, freeze, parameter_groups, set_train_mode, trainable
from tools.resume import (
    RUN_FILES,
    Start,
    check_agreement,
    check_room,
    check_unchanged,
    sole_run,
    starting_point,
)
from tools.run import Learner, Plan, Run, fitted_state, record_start
from tools.run_data import Data, count_table, load_data, photos_of_updates
from tools.schedules import build_schedule, scale_lr
from tools.signals import children_end
from tools.update import Learning

StartWeights = Callable[[nn.Module, object], str]
SELECT = {"single": "accuracy", "multi": "macro_f1"}  # what TRAIN.SELECT auto means


@dataclass
class Prepared:
    """A run of a config, ready to train but for its folder. `notes`: what its log should say first."""

    data: Data
    plan: Plan
    learner: Learner
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
        run = prepare(config, load_data(config, ranks, device), ranks, device)
        plan, learner = run.plan, run.learner
        progress = take_up(start, run, config, ranks, device, allowed)
        if end := nothing_left(start, progress, plan):
            print(end)
            return 0
        with on_first_rank(ranks):
            check_room(folder, *checkpoint_bytes(learner))
        logger = open_folder(folder, loaded, argv, ranks, start)
        for line in run.notes:
            logger.info(line)
        origin = f"weights of {start.path}" if start.path else run.origin
        log_start(logger, loaded, run.data, learner, plan, ranks, device, origin)
        for path, fault in start.faults.items():
            logger.warning(f"{fault}; it is kept as {path.name}{checkpoint.BROKEN}")
        if progress.micro_batch < config.DATA.BATCH_SIZE:
            logger.info(f"{progress.micro_batch} images of a batch's {config.DATA.BATCH_SIZE} at a time, which fit")
        if start.path:
            logger.info(f"resuming {start.path} at step {progress.step} of {plan.total_steps}")
        fitted = {key: start.stored[key] for key in checkpoint.FITTED_KEYS} if start.path else {}
        command = how_to_go_on(argv, ranks)
        make_run(config, folder, command, logger, ranks, device, plan, learner, progress, fitted, run.data).fit()
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
        config.TRAIN.LEAN,
    )
    origin = (weights or start_weights)(model, config)
    learner = make_learner(model, config, precision, device)
    share_weights(model)
    return Prepared(data, plan, learner, origin, [*filter(None, (notice, *data.train.notes, *data.val.notes))])


def take_up(start: Start, run: Prepared, config, ranks: Ranks, device: torch.device, allowed: list[str]) -> Progress:
    """Puts the state of the checkpoint, if there is one, into the run's learner; where the run then stands.

    Raises:
        UserError: when ranks differ, or the checkpoint is of another config, other photos or another optimizer.
    """
    check_agreement(ranks, config, run.data, start)
    if not start.path:
        fitting = fitting_images(config, run.learner, ranks, device) if config.TRAIN.FIT_MEMORY else None
        return Progress(micro_batch=fitting or config.DATA.BATCH_SIZE)
    check_unchanged(start, config, run.data, run.plan, allowed)
    stored = start.stored
    run.learner.restore(stored, load_strictly, str(start.path))
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


def checkpoint_bytes(learner: Learner) -> tuple[int, int]:
    """Bytes of a last.pth and of a best.pth."""
    weights = sum(t.numel() * t.element_size() for t in learner.module.state_dict().values())
    moments = sum(2 * p.numel() * p.element_size() for p in trainable(learner.optimizer))
    return weights * (2 if learner.ema is not None else 1) + moments, weights


def check_apart(config, folder: Path) -> None:
    """Raises UsageError when the run folder and the photos lie within each other."""
    photos, target = Path(config.DATA.DATA_PATH).resolve(), folder.resolve()
    if target.is_relative_to(photos) or photos.is_relative_to(target):
        raise UsageError(f"--output {config.OUTPUT} and --data-path {config.DATA.DATA_PATH} lie within each other")


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
        save_minutes=train.SAVE_EVERY_MINUTES,
        stop_after=train.MAX_STEPS,
        grace_seconds=train.GRACE_SECONDS,
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


def start_weights(model: nn.Module, config) -> str:
    """Puts the pretrained weights of the config into the model, and says where they came from."""
    source = find_pretrained(config.MODEL.PRETRAINED, config.MODEL.NAME)
    if source is None:
        return "fresh weights"
    if isinstance(source, Hub):
        return load_pretrained(model, source.state_dict(), f"timm's hub, {source.name}", head_name(model))
    return load_pretrained(model, checkpoint.read(source), str(source), head_name(model))


def make_learner(model: nn.Module, config, precision, device: torch.device) -> Learner:
    """Model, optimizer, precision and moving average."""
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
    ema = ModelEmaV3(model, decay=train.EMA_DECAY, use_warmup=True, warmup_power=2 / 3) if train.EMA_DECAY else None
    return Learner(model, optimizer, precision, ema)


def open_folder(folder: Path, loaded: Loaded, argv: list[str], ranks: Ranks, start: Start):
    """Makes the run folder, or tidies that of a run that goes on; returns the logger that writes into it."""
    if not ranks.first:
        return create_logger(rank=ranks.rank)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.sweep(folder)
        for path in start.faults:
            path.rename(path.with_name(path.name + checkpoint.BROKEN))
        if not start.goes_on:
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
    command: str,
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
        command=command,
        logger=logger,
        ranks=ranks,
        plan=plan,
        schedule=make_schedule(config.TRAIN, plan),
        learner=learner,
        learning=make_learning(config, learner, plan, data, ranks, device),
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
        select=SELECT[targets] if config.TRAIN.SELECT == "auto" else config.TRAIN.SELECT,
        train_batches=partial(resume_batches, data.train_loader, device=device),
        val_batches=partial(batches_of, data.val_loader, device),
        print_freq=config.PRINT_FREQ,
        snapshots=config.TRAIN.SNAPSHOTS,
    )


def make_learning(config, learner: Learner, plan: Plan, data: Data, ranks: Ranks, device: torch.device) -> Learning:
    """What every update of the run needs."""
    return Learning(
        model=training_forward(config, learner, device) if config.TRAIN.COMPILE else learner.module,
        criterion=make_criterion(config, data, device),
        optimizer=learner.optimizer,
        precision=learner.precision,
        device=device,
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
        photos=photos_of_updates(data, plan.updates, plan.accumulation),
        clip_grad=config.TRAIN.CLIP_GRAD,
        ranks=ranks,
    )


def training_forward(config, learner: Learner, device: torch.device) -> nn.Module:
    """The learner's module compiled by torch, or as it is with a word in the log where torch cannot compile it.

    It shares the module's parameters; the module itself is what is saved, averaged and validated.
    """
    model, side = learner.module, config.DATA.IMG_SIZE
    set_train_mode(model)
    inputs = example_inputs(model, config.DATA.BATCH_SIZE, side, device)
    forward, note = compiled(model, inputs, learner.precision.autocast)
    logger = logging.getLogger("plantswin")
    logger.warning(note) if note else logger.info("TRAIN.COMPILE: the forward pass of training is compiled")
    return forward


def example_inputs(model: nn.Module, images: int, side: int, device: torch.device) -> list[torch.Tensor]:
    """What a training forward pass over so many images is given."""
    inputs = [torch.zeros(images, 3, side, side, device=device)]
    return [*inputs, model.draw_drop_path(images)] if isinstance(model, SwinTransformer) else inputs


def fitting_images(config, learner: Learner, ranks: Ranks, device: torch.device) -> int:
    """Images of a batch that fit into memory at a time, measured by forward and backward passes that leave no trace.

    Raises:
        ResourceError: on every rank, when on one of them not even one image fits.
    """
    model, precision = learner.module, learner.precision
    set_train_mode(model)
    buffers = [buffer.clone() for buffer in model.buffers()]

    def step(images: int) -> None:
        with precision.autocast():
            logits = model(*example_inputs(model, images, config.DATA.IMG_SIZE, device))
        logits.float().sum().backward()

    image = peak_an_image(step, device)
    learner.optimizer.zero_grad(set_to_none=True)
    for buffer, before in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(before)
    whole, inference = checkpoint_bytes(learner)
    gradients = sum(p.numel() * p.element_size() for p in trainable(learner.optimizer))
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else config.TRAIN.MEMORY_GB * 2**30
    held = inference if device.type == "cuda" else 0  # the weights are on the GPU already, and so not of what is free
    fitting, error = 0, None
    try:
        fitting = largest_batch(image, whole + gradients - held, free)
    except ResourceError as raised:
        error = raised
    raise_together(error, ranks)
    return min(config.DATA.BATCH_SIZE, *gather_objects(fitting))


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
