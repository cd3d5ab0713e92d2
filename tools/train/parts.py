"""The parts of a training run, made from its config: plan, rate, model, optimizer, loss. A part of tools/launch.py.

May import every shelf; only tools/launch.py and tools/doctor.py import it. Nothing is written here.
"""

import logging

import torch
from timm.utils import ModelEmaV3
from torch import nn

from data.build import build_mixer
from models.build import compiled, head_name, layer_index, no_weight_decay
from models.pretrained import Hub, find_pretrained
from models.swin_transformer import SwinTransformer
from models.weights import load_pretrained
from tools.base.errors import ResourceError, UsageError
from tools.checkpoint import store
from tools.runtime.distributed import Ranks, gather_objects, raise_together
from tools.runtime.precision import trainable
from tools.train.budget import largest_batch, peak_an_image
from tools.train.data import Data, photos_of_updates
from tools.train.draws import batch_draws
from tools.train.losses import build_criterion, class_weights
from tools.train.optim import build_optimizer, freeze, parameter_groups, set_train_mode
from tools.train.run import Plan, TrainState
from tools.train.schedules import build_schedule, scale_lr
from tools.train.step import StepContext


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
    return load_pretrained(model, store.read(source), str(source), head_name(model))


def make_train_state(model: nn.Module, config, precision, device: torch.device) -> TrainState:
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
    return TrainState(model, optimizer, precision, ema)


def checkpoint_bytes(train_state: TrainState) -> tuple[int, int]:
    """Bytes of a last.pth and of a best.pth."""
    weights = sum(t.numel() * t.element_size() for t in train_state.module.state_dict().values())
    moments = sum(2 * p.numel() * p.element_size() for p in trainable(train_state.optimizer))
    return weights * (2 if train_state.ema is not None else 1) + moments, weights


def make_step_context(
    config, train_state: TrainState, plan: Plan, data: Data, ranks: Ranks, device: torch.device
) -> StepContext:
    """What every update of the run needs."""
    return StepContext(
        model=training_forward(config, train_state, device) if config.TRAIN.COMPILE else train_state.module,
        criterion=make_criterion(config, data, device),
        optimizer=train_state.optimizer,
        precision=train_state.precision,
        device=device,
        draw=batch_draws(
            build_mixer(config.AUG),
            train_state.module,
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


def training_forward(config, train_state: TrainState, device: torch.device) -> nn.Module:
    """The train_state's module compiled by torch, or as it is with a word in the log where torch cannot compile it.

    It shares the module's parameters; the module itself is what is saved, averaged and validated.
    """
    model, side = train_state.module, config.DATA.IMG_SIZE
    set_train_mode(model)
    inputs = example_inputs(model, config.DATA.BATCH_SIZE, side, device)
    forward, note = compiled(model, inputs, train_state.precision.autocast)
    logger = logging.getLogger("plantswin")
    logger.warning(note) if note else logger.info("TRAIN.COMPILE: the forward pass of training is compiled")
    return forward


def example_inputs(model: nn.Module, images: int, side: int, device: torch.device) -> list[torch.Tensor]:
    """What a training forward pass over so many images is given."""
    inputs = [torch.zeros(images, 3, side, side, device=device)]
    return [*inputs, model.draw_drop_path(images)] if isinstance(model, SwinTransformer) else inputs


def fitting_images(config, train_state: TrainState, ranks: Ranks, device: torch.device) -> int:
    """Images of a batch that fit into memory at a time, measured by forward and backward passes that leave no trace.

    Raises:
        ResourceError: on every rank, when on one of them not even one image fits.
    """
    model, precision = train_state.module, train_state.precision
    set_train_mode(model)
    buffers = [buffer.clone() for buffer in model.buffers()]

    def step(images: int) -> None:
        with precision.autocast():
            logits = model(*example_inputs(model, images, config.DATA.IMG_SIZE, device))
        logits.float().sum().backward()

    image = peak_an_image(step, device)
    train_state.optimizer.zero_grad(set_to_none=True)
    for buffer, before in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(before)
    whole, inference = checkpoint_bytes(train_state)
    gradients = sum(p.numel() * p.element_size() for p in trainable(train_state.optimizer))
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
