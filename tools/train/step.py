"""One update: the gradients of a global batch, computed in micro-batches that fit into memory.

It is applied if every rank succeeded.
Until the optimizer steps, a failed attempt changes nothing, so it can be repeated with a smaller micro-batch.
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
from tools.runtime.precision import Precision, trainable
from tools.train.draws import Draws

Batch = tuple[Tensor, Tensor]  # images [B, 3, S, S] and targets [B, num_classes]
_DONE, _OUT_OF_MEMORY, _ERROR = range(3)  # attempt outcomes, in order of severity


@dataclass(frozen=True)
class StepContext:
    """What all updates of a run share.

    Attributes:
        draw: (step, batch of the update) -> its randomness.
        schedule: step -> learning rate.
        batch_size: images per batch on this rank, the largest micro-batch.
        photos: step -> paths of this rank's photos of the update in order, for messages.
        clip_grad: largest gradient norm; 0 for no clipping.
    """

    model: nn.Module
    criterion: Callable[[Tensor, Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    precision: Precision
    device: torch.device
    draw: Callable[[int, int], Draws]
    schedule: Callable[[int], float]
    batch_size: int
    photos: Callable[[int], Sequence[str]] = lambda _step: ()
    clip_grad: float = 0.0
    ranks: Ranks = ALONE


@dataclass(frozen=True)
class UpdateResult:
    """The result of an update, which fp16 may have skipped.

    The loss is summed over the global batch; with it the images in that batch, the gradient norm, the micro-batch used.
    """

    loss_sum: float
    images: int
    grad_norm: float
    micro_batch: int


def apply_update(
    context: StepContext, batches: Iterator[Batch], size: int, step: int, micro_batch: int
) -> UpdateResult:
    """Takes `size` batches, computes their gradients and lets the optimizer step, on all ranks or on none.

    Running out of memory halves `micro_batch` on all ranks and repeats the attempt: the same images and the same
    update, divided differently. A returned gradient norm that is not finite means that the scaler of fp16 skipped the
    step.

    Raises:
        NumericsError: for a loss or gradient that is not finite; the weights are not changed.
        ResourceError: when not even one image fits, or a loader process died or hangs.
        UserError: what this rank's loader raised; on the other ranks, that this rank failed.
    """
    taken: list[Batch] = []
    buffers = [buffer.clone() for buffer in context.model.buffers()]
    losses = torch.empty(0)
    while True:
        error = None
        try:
            taken += islice(batches, size - len(taken))
            losses = _accumulate(context, taken, step, micro_batch)
            outcome = _DONE
        except Exception as raised:
            outcome, error = _classify(raised, context, step)
        outcome = worst_of_ranks(outcome, context.device)
        if outcome == _DONE:
            return _apply(context, losses, taken, step, micro_batch)
        context.optimizer.zero_grad(set_to_none=True)
        for buffer, before in zip(context.model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        if outcome == _ERROR:
            raise_together(error, context.ranks)
        release_freed_memory()
        micro_batch = _halve(micro_batch, step)
        if context.ranks.first:
            logging.getLogger("plantswin").warning(
                f"out of memory at step {step}: micro-batch halved to {micro_batch} images; the update stays the same"
            )


def _accumulate(context: StepContext, batches: Sequence, step: int, micro_batch: int) -> Tensor:
    """Adds this rank's gradients of the mean loss over the global batch; returns each micro-batch's loss x images."""
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


def _apply(context: StepContext, losses: Tensor, batches: Sequence, step: int, micro_batch: int) -> UpdateResult:
    """Sums the gradients over ranks, checks, clips and applies them.

    Without other ranks, it synchronises with the device only once.
    """
    optimizer, precision = context.optimizer, context.precision
    sum_gradients(trainable(optimizer))
    loss = sum_across_ranks(losses.sum())
    norm = precision.norm(optimizer)
    loss_sum, grad_norm = torch.stack([loss, norm.double()]).tolist()
    finite = torch.tensor([loss_sum, grad_norm]).isfinite().tolist()
    if not finite[0] or not (finite[1] or precision.may_skip):
        raise_together(_not_finite(context, losses, batches, step, micro_batch), context.ranks)
    if 0 < context.clip_grad < grad_norm and finite[1]:  # skip the pass over the gradients when no clipping is needed
        precision.clip(optimizer, context.clip_grad, norm)
    precision.step(optimizer)
    optimizer.zero_grad(set_to_none=True)
    images = context.ranks.world_size * sum(len(targets) for _, targets in batches)
    return UpdateResult(loss_sum, images, grad_norm, micro_batch)


def _classify(raised: Exception, context: StepContext, step: int) -> tuple[int, UserError | None]:
    """Maps an exception to an outcome and a user error. Bugs are re-raised unchanged."""
    if is_out_of_memory(raised):
        return _OUT_OF_MEMORY, None
    error = as_user_error(raised)
    if isinstance(raised, UserError):
        return _ERROR, error
    if isinstance(error, ResourceError):  # a loader process died or hung: it cannot say at which photo
        return _ERROR, ResourceError(f"{error}; it was reading {listing(context.photos(step))} or a later photo")
    raise raised


def _not_finite(
    context: StepContext, losses: Tensor, batches: Sequence, step: int, micro_batch: int
) -> UserError | None:
    """The error that names this rank's photos behind a non-finite loss or gradient.

    None when only another rank's loss was not finite.
    """
    sizes = [len(t[start : start + micro_batch]) for _, t in batches for start in range(0, len(t), micro_batch)]
    bad = torch.repeat_interleave(~losses.cpu().isfinite(), torch.tensor(sizes)).tolist()
    what = "loss" if any(bad) else "gradient"
    names = list(context.photos(step))
    named = [name for name, wrong in zip(names, bad, strict=False) if wrong] if any(bad) else names
    total = sum_across_ranks(torch.tensor(float(any(bad)), device=losses.device))
    if total and not any(bad):
        return None  # it was another rank's loss
    return NumericsError(
        f"the {what} of step {step} (learning rate {context.optimizer.param_groups[0]['lr']:.3g}) is not finite, "
        f"photos {listing(named)}; the weights were not changed; lower TRAIN.BASE_LR, or train with --amp-opt-level O0"
    )


def _halve(micro_batch: int, step: int) -> int:
    """Half of the micro-batch. Raises ResourceError when it cannot be halved."""
    if micro_batch == 1:
        raise ResourceError(
            f"out of memory at step {step} with one image at a time; lower DATA.IMG_SIZE, use a smaller model, "
            "or add --use-checkpoint"
        )
    return (micro_batch + 1) // 2
