"""From a config to the parts of a run: plan, schedule, model and optimizer, criterion. Nothing is written here."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from data.build import build_mixer
from data.loading.batches import Normalize
from data.loading.seeds import INIT, seed_of
from models.build import build_model, compiled, head_names, layer_index, no_weight_decay
from models.pretrained import download_weights, find_pretrained
from models.swin_transformer import SwinTransformer
from models.weights import load_pretrained
from tools.base.errors import UsageError, is_out_of_memory
from tools.checkpoint import store
from tools.runtime.distributed import Ranks, share_weights
from tools.runtime.memory import release_freed_memory
from tools.runtime.precision import DTYPES, Precision, trainable
from tools.train.data import RunData
from tools.train.draws import batch_draws
from tools.train.ema import ModelEma
from tools.train.losses import build_criterion, class_weights
from tools.train.optim import build_optimizer, freeze, parameter_groups, set_train_mode
from tools.train.run import Plan, TrainState
from tools.train.schedules import build_schedule, scale_lr
from tools.train.step import StepContext

SELECT_BY = {"single": "accuracy", "multi": "macro_f1"}  # the meaning of TRAIN.SELECT_BY auto


def make_plan(config, num_batches: int, ranks: Ranks) -> Plan:
    """How the run is divided into epochs and steps. Raises UsageError when there is not one step per epoch."""
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
    plan = Plan(
        epochs=train.EPOCHS,
        num_batches=num_batches,
        accumulation_steps=train.ACCUMULATION_STEPS,
        images_per_update=config.DATA.BATCH_SIZE * ranks.world_size * train.ACCUMULATION_STEPS,
        save_freq=config.SAVE_FREQ,
        save_every_steps=train.SAVE_EVERY_STEPS,
        save_every_minutes=train.SAVE_EVERY_MINUTES,
        max_steps=train.MAX_STEPS,
        print_freq=config.PRINT_FREQ,
        select_by=SELECT_BY[config.DATA.TARGETS] if train.SELECT_BY == "auto" else train.SELECT_BY,
        snapshot_epochs=tuple(train.SNAPSHOT_EPOCHS),
        profile_updates=train.PROFILE,
    )
    if plan.profile_updates >= plan.steps_per_epoch:
        raise UsageError(
            f"TRAIN.PROFILE {train.PROFILE}: an epoch has {plan.steps_per_epoch} updates, and the first of them warms "
            "up; lower --profile"
        )
    return plan


def make_schedule(train, plan: Plan) -> Callable[[int], float]:
    """step -> learning rate, scaled to the images per update."""
    return build_schedule(
        train.LR_SCHEDULER.NAME,
        base_lr=scale_lr(train.BASE_LR, plan.images_per_update),
        warmup_lr=scale_lr(train.WARMUP_LR, plan.images_per_update),
        min_lr=scale_lr(train.MIN_LR, plan.images_per_update),
        warmup_steps=round(train.WARMUP_EPOCHS * plan.steps_per_epoch),
        total_steps=plan.total_steps,
        decay_steps=max(1, round(train.LR_SCHEDULER.DECAY_EPOCHS * plan.steps_per_epoch)),
        decay_rate=train.LR_SCHEDULER.DECAY_RATE,
    )


def make_train_state(config, precision: Precision, device: torch.device, *, download: bool) -> tuple[TrainState, str]:
    """Model, optimizer, precision and moving average, equal on all ranks, and where the weights came from.

    Sets torch's determinism flags.

    Args:
        download: see `tools.train.setup.prepare_run`.
    """
    torch.use_deterministic_algorithms(config.TRAIN.DETERMINISTIC)
    torch.backends.cudnn.benchmark = not config.TRAIN.DETERMINISTIC
    torch.manual_seed(seed_of(config.SEED, INIT))
    model = build_model(
        config.MODEL,
        config.DATA.IMG_SIZE,
        config.MODEL.NUM_CLASSES,
        use_checkpoint=config.TRAIN.USE_CHECKPOINT,
        test_size=config.TEST.IMG_SIZE,
        selective_checkpoint=config.TRAIN.SELECTIVE_CHECKPOINT,
    )
    origin = _load_start_weights(model, config, download)
    model = model.to(device)
    share_weights(model)
    freeze(model, config.TRAIN.FREEZE)
    model, optimizer = precision.prepare(model, _make_optimizer(model, config.TRAIN))
    decay = config.TRAIN.EMA_DECAY
    return TrainState(model, optimizer, precision, ModelEma(model, decay) if decay else None), origin


def _load_start_weights(model: nn.Module, config, download: bool) -> str:
    """Loads the pretrained weights of the config into the model, and returns where they came from."""
    source = find_pretrained(config.MODEL.PRETRAINED, config.MODEL.NAME)
    if source is None:
        return "fresh weights"
    if isinstance(source, Path):
        return load_pretrained(model, store.read(source), str(source), head_names(model))
    if not download:
        return f"a run would take {source} from timm's hub; tried here with fresh weights"
    return load_pretrained(model, download_weights(source), f"timm's hub, {source}", head_names(model))


def _make_optimizer(model: nn.Module, train) -> torch.optim.Optimizer:
    groups = parameter_groups(
        model,
        weight_decay=train.WEIGHT_DECAY,
        no_decay=no_weight_decay(model),
        heads=head_names(model),
        head_scale=train.HEAD_LR / train.BASE_LR if train.HEAD_LR else 1.0,
        layer_decay=train.LAYER_DECAY,
        layer_index=layer_index(model) if train.LAYER_DECAY != 1 else None,
    )
    settings = train.OPTIMIZER
    return build_optimizer(
        groups, settings.NAME, lr=train.BASE_LR, eps=settings.EPS, betas=settings.BETAS, momentum=settings.MOMENTUM
    )


def checkpoint_bytes(state: TrainState) -> tuple[int, int]:
    """Sizes of last.pth and of best.pth in bytes."""
    weights = sum(t.numel() * t.element_size() for t in state.module.state_dict().values())
    moments = sum(2 * p.numel() * p.element_size() for p in trainable(state.optimizer))
    return weights * (2 if state.ema is not None else 1) + moments, weights


def make_step_context(
    config, state: TrainState, plan: Plan, data: RunData, ranks: Ranks, device: torch.device
) -> StepContext:
    """What all steps of the run share."""
    return StepContext(
        model=state.module,
        criterion=_make_criterion(config, data, device),
        optimizer=state.optimizer,
        precision=state.precision,
        device=device,
        draw=batch_draws(
            build_mixer(config.AUG),
            state.module,
            img_size=config.DATA.IMG_SIZE,
            batch_size=config.DATA.BATCH_SIZE,
            accumulation_steps=plan.accumulation_steps,
            rank=ranks.rank,
            world_size=ranks.world_size,
            seed=config.SEED,
        ),
        schedule=make_schedule(config.TRAIN, plan),
        batch_size=config.DATA.BATCH_SIZE,
        photos=lambda step: data.photos(step, plan.steps_per_epoch, plan.accumulation_steps),
        to_device=Normalize(data.preprocess.mean, data.preprocess.std),
        clip_grad=config.TRAIN.CLIP_GRAD,
        ranks=ranks,
        reduce_dtype=DTYPES.get(config.DIST.REDUCE_DTYPE),
    )


def compile_forward(config, context: StepContext, micro_batch: int) -> StepContext:
    """With TRAIN.COMPILE, the context with its model compiled by torch, or a line in the log where torch cannot.

    The compiled model shares the parameters of the model itself, which is what is saved, averaged and validated.

    Args:
        micro_batch: images for the trial; fewer where memory runs out, as in training.
    """
    if not config.TRAIN.COMPILE:
        return context
    model, side = context.model, config.DATA.IMG_SIZE
    set_train_mode(model)
    inputs: list = [torch.zeros(micro_batch, 3, side, side, device=context.device)]
    if isinstance(model, SwinTransformer):
        inputs.append(model.draw_drop_path(micro_batch))
    try:
        forward, note = compiled(model, inputs, context.precision.autocast)
    except Exception as error:
        if not is_out_of_memory(error) or micro_batch == 1:
            raise
        forward = None
    if forward is None:  # outside of `except`, whose traceback holds the tensors of the trial
        release_freed_memory()
        return compile_forward(config, context, (micro_batch + 1) // 2)
    logger = logging.getLogger("plantswin")
    logger.warning(note) if note else logger.info("TRAIN.COMPILE: the forward pass of training is compiled")
    return replace(context, model=forward)


def _make_criterion(config, data: RunData, device: torch.device):
    """The training criterion, with class weights from the label copies of the training photos if asked for."""
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
