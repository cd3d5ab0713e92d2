"""One update: the gradients of a global batch, in pieces that fit into memory, applied when all ranks agree to it.

Until the optimizer steps, an update leaves no trace: it can be dropped, or tried again in smaller pieces.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from tools.base.errors import NumericsError, ResourceError, UserError, as_user_error, is_out_of_memory, listing
from tools.runtime.distributed import ALONE, Ranks, raise_together, sum_across_ranks, sum_gradients, worst_of_ranks
from tools.runtime.memory import release_freed_memory
from tools.runtime.precision import trainable
from tools.runtime.signals import Requests, UpdateDropped
from tools.train.draws import Draws

_NOTHING, _MEMORY, _DROPPED, _ERROR = range(4)  # what can befall an attempt, the graver the higher


@dataclass(frozen=True)
class StepContext:
    """What an update needs of a run, the same for all of them.

    Attributes:
        draw: (step, batch of the update) -> its randomness.
        photos: step -> this rank's photos of the update in order, for messages.
        clip_grad: largest gradient norm; 0 for no clipping.
    """

    model: nn.Module
    criterion: Callable[[Tensor, Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    precision: object
    device: torch.device
    draw: Callable[[int, int], Draws]
    photos: Callable[[int], Sequence[str]] = lambda _step: ()
    clip_grad: float = 0.0
    ranks: Ranks = ALONE


@dataclass(frozen=True)
class Applied:
    """What came of an update: loss summed over its global batch, images in it, gradient norm, micro-batch in use."""

    loss_sum: float
    images: int
    grad_norm: float
    micro_batch: int


def apply_update(
    context: StepContext, batches: Iterator, size: int, step: int, micro_batch: int, asked: Requests
) -> Applied:
    """Takes `size` batches, computes their gradients and lets the optimizer step, on all ranks or on none.

    Running out of memory halves `micro_batch` on all ranks and tries again: the same images, the same update, other
    pieces. A gradient norm that is not finite may come back for fp16, whose scaler then has skipped the step.

    Raises:
        UpdateDropped: when the time to end the run is over.
        NumericsError: for a loss or gradient that is not finite; the weights are not touched.
        ResourceError: when not even one image fits.
        UserError: what any rank's loader raised.
    """
    taken: list[tuple[Tensor, Tensor]] = []
    buffers = [buffer.clone() for buffer in context.model.buffers()]
    while True:
        fate, error, losses = _NOTHING, None, None
        try:
            with asked.droppable():
                taken += islice(batches, size - len(taken))
                losses = _accumulate(context, taken, step, micro_batch)
        except UpdateDropped:
            fate = _DROPPED
        except Exception as raised:
            fate, error = _judge(raised, context, step)
        fate = worst_of_ranks(fate, context.device)
        if fate == _NOTHING:
            return _apply(context, losses, taken, step, micro_batch)
        context.optimizer.zero_grad(set_to_none=True)
        for buffer, before in zip(context.model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        if fate == _DROPPED:
            raise UpdateDropped
        if fate == _ERROR:
            raise_together(error, context.ranks)
        release_freed_memory()
        micro_batch = _halved(micro_batch, step)
        if context.ranks.first:
            logging.getLogger("plantswin").warning(
                f"out of memory at step {step}: now {micro_batch} images at a time; update and rate stay the same"
            )


def _accumulate(context: StepContext, batches: Sequence, step: int, micro_batch: int) -> Tensor:
    """Adds up the gradients of the mean loss over all ranks' images; returns `[pieces]` losses x images."""
    images_of_update = context.ranks.world_size * sum(len(targets) for _, targets in batches)
    losses = []
    for number, (images, targets) in enumerate(batches):
        drawn = context.draw(step, number)
        images, targets = (x.to(context.device, non_blocking=True) for x in (images, targets))
        torch.manual_seed(drawn.seed)
        images, targets = drawn.mix(images, targets)
        for start in range(0, len(images), micro_batch):
            rows = slice(start, start + micro_batch)
            masks = () if drawn.keep is None else (drawn.keep[..., rows],)
            with context.precision.autocast():
                loss = context.criterion(context.model(images[rows], *masks), targets[rows])
            count = len(targets[rows])
            context.precision.backward(loss * (count / images_of_update), context.optimizer)
            losses.append(loss.detach().double() * count)
    return torch.stack(losses)


def _apply(context: StepContext, losses: Tensor, batches: Sequence, step: int, micro_batch: int) -> Applied:
    """Gradients of all ranks added, checked, clipped, applied. A single rank waits for its device once."""
    optimizer, precision = context.optimizer, context.precision
    sum_gradients(trainable(optimizer))
    loss = sum_across_ranks(losses.sum())
    norm = precision.norm(optimizer)
    loss_sum, grad_norm = torch.stack([loss, norm.double()]).tolist()
    finite = torch.tensor([loss_sum, grad_norm]).isfinite().tolist()
    if not finite[0] or not (finite[1] or precision.may_skip):
        raise_together(_not_finite(context, losses, batches, step, micro_batch), context.ranks)
    if 0 < context.clip_grad < grad_norm and finite[1]:  # most updates need no clipping, so most spare a pass
        precision.clip(optimizer, context.clip_grad, norm)
    precision.step(optimizer)
    optimizer.zero_grad(set_to_none=True)
    images = context.ranks.world_size * sum(len(targets) for _, targets in batches)
    return Applied(loss_sum, images, grad_norm, micro_batch)


def _judge(raised: Exception, context: StepContext, step: int) -> tuple[int, UserError | None]:
    """What an exception means for the attempt. What is our own mistake goes on as it is."""
    if is_out_of_memory(raised):
        return _MEMORY, None
    error = as_user_error(raised)
    if isinstance(raised, UserError):
        return _ERROR, error
    if isinstance(error, ResourceError):  # a loader worker died or hung: it cannot say over which photo
        return _ERROR, ResourceError(f"{error}; it was reading {listing(context.photos(step))} or a later photo")
    raise raised


def _not_finite(
    context: StepContext, losses: Tensor, batches: Sequence, step: int, micro_batch: int
) -> UserError | None:
    """The error that names this rank's photos behind a loss or gradient that is not finite; None if it had none."""
    sizes = [len(t[start : start + micro_batch]) for _, t in batches for start in range(0, len(t), micro_batch)]
    bad = torch.repeat_interleave(~losses.cpu().isfinite(), torch.tensor(sizes)).tolist()
    what = "loss" if any(bad) else "gradient"
    names = list(context.photos(step))
    named = [name for name, wrong in zip(names, bad, strict=False) if wrong] if any(bad) else names
    total = sum_across_ranks(torch.tensor(float(any(bad)), device=losses.device))
    if total and not any(bad):
        return None  # another rank's loss it was
    return NumericsError(
        f"the {what} of step {step} (learning rate {context.optimizer.param_groups[0]['lr']:.3g}) is not finite, "
        f"photos {listing(named)}; the weights were not touched: lower TRAIN.BASE_LR, or train with --amp-opt-level O0"
    )


def _halved(micro_batch: int, step: int) -> int:
    """Half of the micro-batch. Raises ResourceError when it cannot be halved."""
    if micro_batch == 1:
        raise ResourceError(
            f"out of memory at step {step} with one image at a time; lower DATA.IMG_SIZE, take a smaller model, "
            "or add --use-checkpoint"
        )
    return (micro_batch + 1) // 2
