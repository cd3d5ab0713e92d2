"""The loops: one epoch of training, one pass of evaluation, one measurement of speed. Plain functions, no state.

Words: a batch is what the loader gives a rank; an update (or step) is one optimizer step and takes `accumulation`
batches; the last update of an epoch may have fewer.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tools.base.errors import NumericsError
from tools.runtime.signals import Requests
from tools.train.optim import set_learning_rate, set_train_mode
from tools.train.step import StepContext, apply_update

MAX_SKIPS = 20  # fp16 updates skipped in a row before it is a fault and no search for the right scale


@dataclass
class Progress:
    """How far a run is: saved in every checkpoint, restored on resume.

    Attributes:
        step: updates done, skipped ones included.
        skipped: updates that fp16 overflow skipped.
        sums: of this epoch so far: loss x images, images, gradient norm, updates.
        best: best validation score so far; -1 before the first.
        validated: epochs whose end was validated.
        micro_batch: images that a rank takes through the model at a time; less than a batch after memory ran out.
    """

    micro_batch: int
    step: int = 0
    skipped: int = 0
    validated: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0] * 4)
    best: float = -1.0

    def state(self) -> dict:
        """What a checkpoint keeps besides the step, which stands in its header."""
        names = ("best", "sums", "skipped", "validated", "micro_batch")
        return {name: getattr(self, name) for name in names}

    @property
    def mean_loss(self) -> float:
        """Mean training loss of this epoch so far."""
        return self.sums[0] / max(self.sums[1], 1)

    @property
    def mean_norm(self) -> float:
        """Mean gradient norm of this epoch so far."""
        return self.sums[2] / max(self.sums[3], 1)


@dataclass(frozen=True)
class Update:
    """What one update did: mean `loss` over the global batch, gradient norm, rate, images and seconds it took."""

    loss: float
    grad_norm: float
    lr: float
    images: int
    seconds: float


def train_one_epoch(
    context: StepContext,
    batches: Iterable[tuple[Tensor, Tensor]],
    progress: Progress,
    *,
    num_batches: int,
    accumulation: int,
    schedule: Callable[[int], float],
    asked: Requests | None = None,
) -> Iterator[Update]:
    """Trains from where `progress` stands in its epoch to the epoch's end, yielding after every update.

    Args:
        batches: what is left of this rank's batches of the epoch.
        num_batches: batches of the whole epoch.
        schedule: step -> learning rate.
        asked: what signals ask of the run; None for nothing.

    Raises:
        NumericsError: at a non-finite loss or gradient, before it reaches the weights.
        UpdateDropped, ResourceError, UserError: see `tools.train.step.apply_update`.
    """
    set_train_mode(context.model)
    batches, asked = iter(batches), asked or Requests()
    updates = -(-num_batches // accumulation)
    in_a_row = 0
    for update in range(progress.step % updates, updates):
        started = time.perf_counter()
        size = min(accumulation, num_batches - update * accumulation)
        lr = schedule(progress.step)
        set_learning_rate(context.optimizer, lr)
        applied = apply_update(context, batches, size, progress.step, progress.micro_batch, asked)
        finite = np.isfinite(applied.grad_norm)
        in_a_row = 0 if finite else in_a_row + 1
        if in_a_row > MAX_SKIPS:
            raise NumericsError(
                f"fp16 gradients overflowed {in_a_row} times in a row up to step {progress.step}; "
                "train with AMP.DTYPE bf16 or --amp-opt-level O0"
            )
        progress.micro_batch = applied.micro_batch
        progress.step += 1
        progress.skipped += not finite
        seen = (applied.loss_sum, applied.images, applied.grad_norm if finite else 0.0, float(finite))
        progress.sums = [a + b for a, b in zip(progress.sums, seen, strict=True)]
        loss = applied.loss_sum / applied.images
        yield Update(loss, applied.grad_norm, lr, applied.images, time.perf_counter() - started)


def validation_loss(
    logits: np.ndarray, truth: np.ndarray, targets: str, criterion: Callable[[Tensor, Tensor], Tensor]
) -> float:
    """Mean loss over photos for "multi" targets, over copies for "single"; `[n, num_classes]` logits and bool truth."""
    if targets == "single":  # a photo of two labels is two samples, each with one class
        rows, classes = np.nonzero(truth)
        logits, truth = logits[rows], np.eye(truth.shape[1])[classes]
    return float(criterion(torch.from_numpy(logits), torch.tensor(truth, dtype=torch.float32)))
