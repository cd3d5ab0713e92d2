"""From a config to a run that is ready to train; `--check` does the same without writing.

All checks run before `RunFolder.open`, which is the first to write into the run folder.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from configs.load import Loaded
from data.loading.split import describe
from models.swin_transformer import SwinTransformer
from tools.checkpoint import store
from tools.evaluate.rule import DecisionRule
from tools.runtime.distributed import Ranks, together
from tools.runtime.environment import processor
from tools.runtime.precision import Precision, choose_precision
from tools.runtime.signals import children_end
from tools.train.data import RunData, count_table, load_data, scan_splits
from tools.train.loop import Progress
from tools.train.output import RunFolder
from tools.train.parts import checkpoint_bytes, compile_forward, make_plan, make_step_context, make_train_state
from tools.train.resume import check_agreement, check_room, check_unchanged, find_start, sole_run
from tools.train.run import Plan, Run, fitted_state, logger
from tools.train.schedules import scale_lr


def launch(
    loaded: Loaded, argv: list[str], ranks: Ranks, device: torch.device, *, overwrite: bool, allowed: list[str]
) -> int:
    """Starts or resumes the run that the config describes, and returns the exit code.

    Args:
        overwrite: start again although the folder holds a run.
        allowed: config keys that may differ from those of the run that is resumed.

    Raises:
        UserError: of the matching class, before any file is touched, for everything that is found not to work.
    """
    with sole_run(loaded, ranks), children_end():
        loaded, run = prepare_run(loaded, ranks, device, overwrite=overwrite, allowed=allowed)
        if end := run.nothing_left():
            print(end)
            return 0
        begun, machine = run.start, describe_device(device)
        run.output.open(argv, fresh=not begun.in_place, damaged=begun.faults, step=run.progress.step, machine=machine)
        log_start(run, loaded.config)
        run.context = compile_forward(loaded.config, run.context, run.progress.micro_batch)
        run.fit()
    return 0


def prepare_run(
    loaded: Loaded,
    ranks: Ranks,
    device: torch.device,
    *,
    overwrite: bool,
    allowed: list[str],
    report: Callable[[str, str, Sequence[str]], None] = lambda _part, _found, _notes: None,
    download: bool = True,
) -> tuple[Loaded, Run]:
    """Builds data, plan and model, and loads the state to resume from; returns the resolved config too.

    Does not touch the run folder; may write the pixel cache and download weights.

    Args:
        report: called with each part of the setup, what was found, and notes.
        download: False keeps fresh weights instead of downloading pretrained ones, which would write into a cache.
    """
    loaded, splits = scan_splits(loaded)
    config, amp = loaded.config, loaded.config.AMP
    precision, notice = choose_precision(amp.OPT_LEVEL, amp.BACKEND, amp.DTYPE, device, ranks.world_size)
    data = load_data(config, splits, ranks)
    notes = [*data.train.notes, *data.val.notes]
    report("data set", f"{describe(data.train)}; {describe(data.val)}; targets {config.DATA.TARGETS}", notes)
    plan = make_plan(config, len(data.train_loader), ranks)
    state, origin = make_train_state(config, precision, device, download=download)
    report("weights", origin, ())
    rule = make_rule(config, data)
    no_logits = np.zeros((0, len(data.train.labels.names)), np.float32)
    meta = checkpoint_meta(config, data, rule, plan, precision)
    run = Run(
        data=data,
        plan=plan,
        state=state,
        context=make_step_context(config, state, plan, data, ranks, device),
        progress=Progress(micro_batch=config.DATA.BATCH_SIZE),
        output=RunFolder(loaded.run_folder, meta, ranks, config.TRAIN.TENSORBOARD),
        rule=rule,
        fitted=fitted_state(rule, no_logits, no_logits.astype(bool)),
        origin=origin,
        notes=[*filter(None, (notice, *notes))],
        start=find_start(loaded, overwrite),
    )
    _resume(run, config, allowed)
    return loaded, run


def _resume(run: Run, config, allowed: list[str]) -> None:
    """Checks that `start` fits the run and that the disk has room, and restores the checkpoint's state."""
    ranks, meta = run.context.ranks, run.output.meta
    check_agreement(ranks, config, meta, run.start)
    if run.start.path:
        check_unchanged(run.start, config, meta, allowed)
        run.restore()
    if not run.nothing_left():
        with together(ranks):
            check_room(run.output.path, *checkpoint_bytes(run.state))


def describe_device(device: torch.device) -> str:
    """The GPU, or the processor with the number of torch's threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} thread(s)"


def make_rule(config, data: RunData) -> DecisionRule:
    """The unfitted rule with the label sets of the training photos."""
    labels, combinations = data.train.labels, sorted({photo.classes for photo in data.train.photos})
    targets, how = config.DATA.TARGETS, config.TEST.DECIDE_BY
    return DecisionRule.unfitted(targets, how, combinations, len(labels.names), labels.exclusive)


def checkpoint_meta(config, data: RunData, rule: DecisionRule, plan: Plan, precision: Precision) -> dict:
    """What every checkpoint of the run holds besides weights and progress."""
    return {
        "config": config.dump(),
        **data.train.labels.to_plain(),
        "combinations": [np.flatnonzero(row).tolist() for row in rule.combinations],
        "preprocess": data.preprocess.to_dict(),
        "targets": rule.targets,
        "data_digest": data.digests(),
        "images_per_update": plan.images_per_update,
        "precision": str(precision),
    }


def log_start(run: Run, config) -> None:
    """Logs what a reader wants to know first: photos, model, precision, learning rate, and where it resumes."""
    model, images, ranks = run.state.module, run.plan.images_per_update, run.context.ranks
    for line in (*run.notes, describe(run.data.train), describe(run.data.val), *count_table(run.data, config)):
        logger.info(line)
    soft, weight = config.TRAIN.SOFT_LABELS, config.TRAIN.SOFT_WEIGHT
    mixed = f", mixed with {weight:g} x the probabilities in {soft}" if soft else ""
    logger.info(f"targets {config.DATA.TARGETS}, {config.MODEL.NUM_CLASSES} classes{mixed}")
    flops = f", {model.flops() / 1e9:.2f} G multiply-adds per image" if isinstance(model, SwinTransformer) else ""
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    logger.info(f"{config.MODEL.NAME}: {num_parameters / 1e6:.2f} M parameters{flops}")
    logger.info(run.origin)
    logger.info(
        f"{run.state.precision} on {run.context.device}, {ranks.world_size} rank(s); {images} images per update, "
        f"{run.plan.steps_per_epoch} updates per epoch"
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
