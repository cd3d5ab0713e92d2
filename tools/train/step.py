"""One step: the gradients of its batches, computed in micro-batches that fit into memory, and the optimizer's step.

The optimizer steps only if every rank succeeded. Until then, a failed attempt changes nothing, so it can be repeated
with a smaller micro-batch.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from tools.base.errors import NumericsError, ResourceError, as_user_error, is_out_of_memory, listing
from tools.runtime.distributed import (
    ALONE,
    Bucket,
    Ranks,
    largest_of_ranks,
    pack_gradients,
    raise_together,
    sum_across_ranks,
    sum_buckets,
    together,
)
from tools.runtime.memory import release_freed_memory
from tools.runtime.precision import Precision, trainable
from tools.train.draws import Draws
from tools.train.optim import set_learning_rate

Batch = tuple[Tensor, ...]  # images and targets of B images in main memory, then anything else that `to_device` needs
_DONE, _OUT_OF_MEMORY, _ERROR = range(3)  # attempt outcomes, in order of severity


def move(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """The images and targets of a batch on the device, unchanged."""
    images, targets, *_ = (part.to(device, non_blocking=True) for part in batch)
    return images, targets


@dataclass(frozen=True)
class StepContext:
    """What all steps of a run share.

    Attributes:
        draw: (step, batch of the step) -> its randomness.
        schedule: step -> learning rate.
        batch_size: images per batch on this rank, the largest micro-batch.
        photos: step -> paths of this rank's photos of the step in order, for messages.
        to_device: (batch, device) -> images [B, 3, S, S] and targets [B, num_classes] there.
        clip_grad: largest gradient norm; 0 for no clipping.
        reduce_dtype: dtype in which gradients are summed over ranks; None keeps their own.
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
    to_device: Callable[[Any, torch.device], tuple[Tensor, Tensor]] = move
    clip_grad: float = 0.0
    ranks: Ranks = ALONE
    reduce_dtype: torch.dtype | None = None

    @cached_property
    def statistics(self) -> "Statistics":
        """The buffers that a forward pass changes."""
        return Statistics(self.model)


class Statistics:
    """Saves and restores the statistics of batch norm: the buffers in a state_dict. All other buffers are constants."""

    def __init__(self, model: nn.Module):
        state = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
        self._buffers = [buffer for buffer in model.buffers() if id(buffer) in state]
        self._saved = [buffer.clone() for buffer in self._buffers]

    def save(self) -> None:
        """Copies the buffers."""
        if self._buffers:
            torch._foreach_copy_(self._saved, self._buffers)

    def restore(self) -> None:
        """Sets the buffers to the saved values."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._saved)


@dataclass(frozen=True)
class StepResult:
    """What a step did.

    Attributes:
        loss_sum: the loss summed over the `images` of the step, on all ranks.
        grad_norm: before clipping; not finite when the scaler of fp16 skipped the step.
        micro_batch: images that fitted into memory at once.
        seconds: time of the step; `waited` is the part spent waiting for its batches.
    """

    loss_sum: float
    images: int
    grad_norm: float
    micro_batch: int
    lr: float
    seconds: float
    waited: float

    @property
    def loss(self) -> float:
        """Mean loss per image."""
        return self.loss_sum / self.images

    @property
    def skipped(self) -> bool:
        """Whether the weights were left as they are, because fp16 gradients overflowed."""
        return not math.isfinite(self.grad_norm)


@dataclass(frozen=True)
class _Attempt:
    """What a rank has computed: loss x images and number of images per micro-batch, and copies of its gradients."""

    losses: Tensor
    sizes: list[int]
    buckets: list[Bucket]


def train_step(
    context: StepContext, batches: Iterator[Batch], num_batches: int, step: int, micro_batch: int
) -> StepResult:
    """Takes `num_batches` batches, computes their gradients and lets the optimizer step, on all ranks or on none.

    Running out of memory halves `micro_batch` on all ranks and repeats the attempt: the same images and the same
    step, divided differently.

    Raises:
        NumericsError: for a loss or gradient that is not finite; the weights are not changed.
        ResourceError: when not even one image fits, or a loader process died or hangs.
        UserError: the error of this rank's loader; on the other ranks, one that names the failed rank.
    """
    started, waited, lr = time.perf_counter(), 0.0, context.schedule(step)
    set_learning_rate(context.optimizer, lr)
    parameters = trainable(context.optimizer)
    taken: list[Batch] = []
    context.statistics.save()
    while True:
        found, error, asked = None, None, time.perf_counter()
        try:
            taken += islice(batches, num_batches - len(taken))
            waited += time.perf_counter() - asked
            found, outcome = _accumulate(context, taken, step, micro_batch), _DONE
        except Exception as raised:
            outcome, error = _classify(raised, context, step, loaded=len(taken) == num_batches)
        outcome, *used = largest_of_ranks([outcome, *(int(p.grad is not None) for p in parameters)])
        if outcome == _DONE and found:
            break
        context.optimizer.zero_grad(set_to_none=True)
        context.statistics.restore()
        raise_together(error, context.ranks)
        release_freed_memory()
        micro_batch = _halve(micro_batch, step, context.ranks)
    with together(context.ranks):  # the ranks vote while their GPUs sum
        loss = _sum_gradients(found, parameters, used)
    with together(context.ranks):
        loss_sum, grad_norm = _apply_gradients(context, found, loss, step)
    images = context.ranks.world_size * sum(found.sizes)
    return StepResult(loss_sum, images, grad_norm, micro_batch, lr, time.perf_counter() - started, waited)


def _accumulate(context: StepContext, batches: Sequence[Batch], step: int, micro_batch: int) -> _Attempt:
    """Adds this rank's share of the gradients of the mean loss over all images of the step."""
    num_images = context.ranks.world_size * sum(len(targets) for _, targets, *_ in batches)
    losses, sizes = [], []
    for number, batch in enumerate(batches):
        drawn = context.draw(step, number)
        torch.manual_seed(drawn.seed)
        images, targets = drawn.mix(*context.to_device(batch, context.device))
        for start in range(0, len(images), micro_batch):
            rows = slice(start, start + micro_batch)
            masks = () if drawn.keep is None else (drawn.keep[..., rows],)
            with context.precision.autocast():
                loss = context.criterion(context.model(images[rows], *masks), targets[rows])
            sizes.append(len(targets[rows]))
            context.precision.backward(loss * (sizes[-1] / num_images), context.optimizer)
            losses.append(loss.detach().double() * sizes[-1])
    buckets = pack_gradients(trainable(context.optimizer), context.reduce_dtype)
    return _Attempt(torch.stack(losses), sizes, buckets)


def _sum_gradients(found: _Attempt, parameters: Sequence[Tensor], used: Sequence[int]) -> Tensor:
    """Sums gradients and loss over ranks; returns the loss, a scalar on the device."""
    sum_buckets(found.buckets)
    for parameter, is_used in zip(parameters, used, strict=True):
        if not is_used:  # on no rank: the optimizer skips it, as with a single rank
            parameter.grad = None
    return sum_across_ranks(found.losses.sum())


def _apply_gradients(context: StepContext, found: _Attempt, loss: Tensor, step: int) -> tuple[float, float]:
    """Checks, clips and applies the summed gradients; returns the summed loss and the gradient norm.

    The host waits for the device once, for these two numbers.
    """
    optimizer, precision = context.optimizer, context.precision
    norm = precision.norm(optimizer)
    loss_sum, grad_norm = torch.stack([loss, norm.double()]).tolist()
    overflow = not math.isfinite(grad_norm)
    if not math.isfinite(loss_sum) or (overflow and not precision.may_skip):
        _raise_not_finite(context, found, step, in_loss=not math.isfinite(loss_sum))
        return loss_sum, grad_norm  # another rank raises
    if 0 < context.clip_grad < grad_norm and not overflow:  # no pass over the gradients when no clipping is needed
        precision.clip(optimizer, context.clip_grad, norm)
    precision.step(optimizer)
    optimizer.zero_grad(set_to_none=True)
    return loss_sum, grad_norm


def _classify(raised: Exception, context: StepContext, step: int, loaded: bool) -> tuple[int, Exception | None]:
    """Maps an exception to an outcome and the error to raise. `loaded`: all batches of the step were loaded."""
    if loaded and is_out_of_memory(raised):
        return _OUT_OF_MEMORY, None
    error = as_user_error(raised)
    if isinstance(error, ResourceError) and error is not raised:  # a loader process died or hung, at an unknown photo
        error = ResourceError(f"{error}; it was reading {listing(context.photos(step))} or a later photo")
        return _ERROR, error
    return _ERROR, raised


def _raise_not_finite(context: StepContext, found: _Attempt, step: int, in_loss: bool) -> None:
    """Names this rank's photos behind a non-finite loss or gradient. Returns if it is on other ranks only."""
    names = list(context.photos(step))
    if in_loss:
        bad = torch.repeat_interleave(~found.losses.cpu().isfinite(), torch.tensor(found.sizes)).tolist()
        if not any(bad):
            return
        names = [name for name, wrong in zip(names, bad, strict=False) if wrong]
    raise NumericsError(
        f"the {'loss' if in_loss else 'gradient'} of step {step} "
        f"(learning rate {context.optimizer.param_groups[0]['lr']:.3g}) is not finite, "
        f"photos {listing(names)}; the weights were not changed; lower TRAIN.BASE_LR, or train with --amp-opt-level O0"
    )


def _halve(micro_batch: int, step: int, ranks: Ranks) -> int:
    """Half of the micro-batch, with a warning. Raises ResourceError when it cannot be halved."""
    if micro_batch == 1:
        raise ResourceError(
            f"out of memory at step {step} with one image at a time; lower DATA.IMG_SIZE, use a smaller model, "
            "or add --use-checkpoint"
        )
    micro_batch = (micro_batch + 1) // 2
    if ranks.first:
        logging.getLogger("plantswin").warning(
            f"out of memory at step {step}: micro-batch halved to {micro_batch} images; the update stays the same"
        )
    return micro_batch
