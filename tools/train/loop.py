"""One epoch of training: a plain loop over updates.

A batch is what the loader gives one rank. A step is one optimizer update and takes `accumulation_steps` batches; the
last update of an epoch may have fewer.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tools.base.errors import NumericsError
from tools.train.optim import set_learning_rate, set_train_mode
from tools.train.step import Batch, StepContext, UpdateResult, apply_update

MAX_SKIPS = 20  # fp16 updates skipped in a row: more than the loss scaler needs to find its scale


@dataclass
class Progress:
    """How far a run is. Saved in last.pth and restored on resume.

    Attributes:
        step: updates done, skipped ones included.
        skipped: updates that fp16 overflow skipped.
        sums: sums of this epoch: loss x images, images, finite gradient norms, and how many.
        best: best validation score so far; -1 before the first.
        validated: number of validated epochs.
        micro_batch: images that a rank passes through the model at once; less than a batch after memory ran out.
    """

    micro_batch: int
    step: int = 0
    skipped: int = 0
    validated: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0] * 4)
    best: float = -1.0

    @classmethod
    def from_state_dict(cls, stored: dict, batch_size: int) -> "Progress":
        """The inverse of `state_dict`, from the content of last.pth; the micro-batch is at most `batch_size`."""
        names = ("step", "skipped", "validated", "best")
        micro_batch = min(stored["micro_batch"], batch_size)
        return cls(micro_batch, sums=list(stored["sums"]), **{name: stored[name] for name in names})

    def state_dict(self) -> dict:
        """The values stored in last.pth; `step` is stored separately."""
        names = ("best", "sums", "skipped", "validated", "micro_batch")
        return {name: getattr(self, name) for name in names}

    def add(self, applied: UpdateResult) -> None:
        """Counts an update. A non-finite gradient norm means that fp16 skipped the update."""
        finite = np.isfinite(applied.grad_norm)
        self.micro_batch = applied.micro_batch
        self.step += 1
        self.skipped += not finite
        seen = (applied.loss_sum, applied.images, applied.grad_norm if finite else 0.0, float(finite))
        self.sums = [a + b for a, b in zip(self.sums, seen, strict=True)]

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
    """One update: mean `loss` over the global batch, gradient norm, learning rate, images, and seconds it took."""

    loss: float
    grad_norm: float
    lr: float
    images: int
    seconds: float


def train_one_epoch(
    context: StepContext,
    batches: Iterable[Batch],
    progress: Progress,
    num_batches: int,
    accumulation_steps: int,
) -> Iterator[Update]:
    """Trains from where `progress` stands to the end of its epoch, yielding after every update.

    At the start of an epoch, a micro-batch that was halved because memory ran out is doubled, up to the batch size.

    Args:
        batches: this rank's remaining batches of the epoch.
        num_batches: batches of the whole epoch.

    Raises:
        NumericsError: at a non-finite loss or gradient, before it reaches the weights.
        ResourceError, UserError: see `tools.train.step.apply_update`.
    """
    set_train_mode(context.model)
    batches, updates_per_epoch, skips_in_a_row = iter(batches), -(-num_batches // accumulation_steps), 0
    for update in range(progress.step % updates_per_epoch, updates_per_epoch):
        started = time.perf_counter()
        if update == 0:
            progress.micro_batch = min(2 * progress.micro_batch, context.batch_size)
        size = min(accumulation_steps, num_batches - update * accumulation_steps)
        lr = context.schedule(progress.step)
        set_learning_rate(context.optimizer, lr)
        applied = apply_update(context, batches, size, progress.step, progress.micro_batch)
        finite = np.isfinite(applied.grad_norm)
        skips_in_a_row = 0 if finite else skips_in_a_row + 1
        if skips_in_a_row > MAX_SKIPS:
            raise NumericsError(
                f"fp16 gradients overflowed {skips_in_a_row} times in a row up to step {progress.step}; "
                "train with AMP.DTYPE bf16 or --amp-opt-level O0"
            )
        progress.add(applied)
        yield Update(
            applied.loss_sum / applied.images, applied.grad_norm, lr, applied.images, time.perf_counter() - started
        )


def validation_loss(
    logits: np.ndarray, truth: np.ndarray, targets: str, criterion: Callable[[Tensor, Tensor], Tensor]
) -> float:
    """Mean loss over photos for "multi" targets, over label copies for "single".

    Args:
        logits, truth: `[n, num_classes]`, float and bool.
    """
    if targets == "single":  # a photo of two labels is two samples, each with one class
        rows, classes = np.nonzero(truth)
        logits, truth = logits[rows], np.eye(truth.shape[1])[classes]
    return float(criterion(torch.from_numpy(logits), torch.tensor(truth, dtype=torch.float32)))
