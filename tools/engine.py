"""The loops: one epoch of training, one pass of evaluation, one measurement of speed. Plain functions, no state.

Words: a batch is what the loader gives a rank; an update (or step) is one optimizer step and takes `accumulation`
batches; the last update of an epoch may have fewer.
"""

import resource
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from tools.allocator import trim
from tools.distributed import gather_objects
from tools.errors import NumericsError
from tools.optim import set_learning_rate, set_train_mode
from tools.signals import Requests
from tools.update import Learning, apply_update

# Views of a leaf, which has no upright, that test-time augmentation averages over; images are [B, 3, S, S].
_TURNS = [lambda x: x, *(partial(torch.rot90, k=k, dims=(2, 3)) for k in (1, 2, 3))]
VIEWS: dict[str, list[Callable[[Tensor], Tensor]]] = {
    "none": [lambda x: x],
    "flips": [lambda x: x, lambda x: x.flip(3), lambda x: x.flip(2), lambda x: x.flip(2, 3)],
    "turns": _TURNS,
    "all": [*_TURNS, *(lambda x, turn=turn: turn(x.flip(3)) for turn in _TURNS)],
}
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
    learning: Learning,
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
        UpdateDropped, ResourceError, UserError: see `tools.update.apply_update`.
    """
    set_train_mode(learning.model)
    batches, asked = iter(batches), asked or Requests()
    updates = -(-num_batches // accumulation)
    in_a_row = 0
    for update in range(progress.step % updates, updates):
        started = time.perf_counter()
        size = min(accumulation, num_batches - update * accumulation)
        lr = schedule(progress.step)
        set_learning_rate(learning.optimizer, lr)
        applied = apply_update(learning, batches, size, progress.step, progress.micro_batch, asked)
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


@torch.no_grad()
def predict(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    precision,
    num_classes: int,
    views: Sequence[Callable[[Tensor], Tensor]] = VIEWS["none"],
    micro_batch: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Logits and truth of all photos, `[n, num_classes]` each, in the data set's order and equal on every rank.

    Every rank brings the photos r, r + world_size, ...; nothing is padded, so nothing is counted twice.

    Args:
        views: functions of `VIEWS`; the logits are their mean.
        micro_batch: images taken through the model at a time, where a whole batch might not fit; 0: all of it.
    """
    model.eval()
    trim()  # the first of `batches` may fork a loader's processes
    logits, truth = [np.zeros((0, num_classes), np.float32)], [np.zeros((0, num_classes), bool)]
    for images, targets in batches:
        for part in images.to(device, non_blocking=True).split(micro_batch or len(images)):
            with precision.autocast():
                seen = sum(model(view(part)).float() for view in views) / len(views)
            logits.append(seen.cpu().numpy())
        truth.append(targets.numpy().astype(bool))
    parts = gather_objects((np.concatenate(logits), np.concatenate(truth)))
    whole = tuple(np.zeros((sum(len(p[0]) for p in parts), num_classes), part.dtype) for part in parts[0])
    for rank, part in enumerate(parts):
        for target, rows in zip(whole, part, strict=True):
            target[rank :: len(parts)] = rows
    return whole


def validation_loss(
    logits: np.ndarray, truth: np.ndarray, targets: str, criterion: Callable[[Tensor, Tensor], Tensor]
) -> float:
    """Mean loss over photos for "multi" targets, over copies for "single"; `[n, num_classes]` logits and bool truth."""
    if targets == "single":  # a photo of two labels is two samples, each with one class
        rows, classes = np.nonzero(truth)
        logits, truth = logits[rows], np.eye(truth.shape[1])[classes]
    return float(criterion(torch.from_numpy(logits), torch.tensor(truth, dtype=torch.float32)))


@torch.no_grad()
def measure_throughput(model: nn.Module, images: Tensor, precision, *, timed: int = 30, patience: float = 20.0) -> dict:
    """Speed of forward passes in eval mode: images/s, median and 95th percentile of a batch's seconds, peak bytes.

    Warm-up is 50 passes or `patience` seconds, whichever ends first.
    """
    model.eval()
    device = images.device

    def forward() -> float:
        started = time.perf_counter()
        with precision.autocast():
            model(images)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    begun = time.perf_counter()
    for _ in range(50):
        forward()
        if time.perf_counter() - begun > patience:
            break
    seconds = np.array([forward() for _ in range(timed)])
    return {
        "images_per_second": len(images) * timed / float(seconds.sum()),
        "p50_seconds": float(np.percentile(seconds, 50)),
        "p95_seconds": float(np.percentile(seconds, 95)),
        "peak_bytes": peak_memory(device),
    }


def peak_memory(device: torch.device) -> int:
    """Most bytes held so far: of the GPU by torch, or of this process in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
