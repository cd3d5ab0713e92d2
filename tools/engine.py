"""The loops: one epoch of training, one pass of evaluation, one measurement of speed. Plain functions, no state.

Words: a batch is what the loader gives a rank; an update (or step) is one optimizer step and takes `accumulation`
batches; the last update of an epoch may have fewer.
"""

import resource
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from tools.distributed import gather_objects, sum_across_ranks
from tools.errors import NumericsError
from tools.optim import set_learning_rate, set_train_mode, trainable

# Views of a leaf, which has no upright, that test-time augmentation averages over; images are [B, 3, S, S].
_TURNS = [lambda x: x, *(partial(torch.rot90, k=k, dims=(2, 3)) for k in (1, 2, 3))]
VIEWS: dict[str, list[Callable[[Tensor], Tensor]]] = {
    "none": [lambda x: x],
    "flips": [lambda x: x, lambda x: x.flip(3), lambda x: x.flip(2), lambda x: x.flip(2, 3)],
    "turns": _TURNS,
    "all": [*_TURNS, *(lambda x, turn=turn: turn(x.flip(3)) for turn in _TURNS)],
}
MAX_SKIPS = 20  # fp16 updates skipped in a row before it is a fault and no search for the right scale


@dataclass(frozen=True)
class Draws:
    """The randomness of one batch, drawn for its whole global batch beforehand, this rank's rows of it.

    Attributes:
        mix: (images, targets) -> the same, mixed.
        keep: stochastic depth `[blocks, 2, B]` for models that take it; None for the others.
        seed: of whatever the model still draws by itself (dropout, timm's stochastic depth).
    """

    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    keep: Tensor | None
    seed: int


@dataclass
class Progress:
    """How far a run is: saved in every checkpoint, restored on resume.

    Attributes:
        step: updates done, skipped ones included.
        skipped: updates that fp16 overflow skipped.
        sums: of this epoch so far: loss x images, images, gradient norm, updates.
        best: best validation score so far; -1 before the first.
    """

    step: int = 0
    skipped: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0] * 4)
    best: float = -1.0

    def state(self) -> dict:
        """What a checkpoint keeps besides the step, which stands in its header."""
        return {"best": self.best, "sums": self.sums, "skipped": self.skipped}

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
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    criterion: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    precision,
    progress: Progress,
    *,
    num_batches: int,
    accumulation: int,
    schedule: Callable[[int], float],
    draw: Callable[[int, int], Draws],
    device: torch.device,
    clip_grad: float = 0.0,
) -> Iterator[Update]:
    """Trains from where `progress` stands in its epoch to the epoch's end, yielding after every update.

    Args:
        batches: what is left of this rank's batches of the epoch.
        num_batches: batches of the whole epoch.
        schedule: step -> learning rate.
        draw: (step, batch of the update) -> its randomness.

    Raises:
        NumericsError: at a non-finite loss or gradient, before it reaches the weights.
    """
    set_train_mode(model)
    batches = iter(batches)
    updates = -(-num_batches // accumulation)
    in_a_row = 0
    for update in range(progress.step % updates, updates):
        started = time.perf_counter()
        size = min(accumulation, num_batches - update * accumulation)
        lr = schedule(progress.step)
        set_learning_rate(optimizer, lr)
        totals = torch.zeros(2, dtype=torch.float64, device=device)  # loss x images, images
        for micro in range(size):
            images, targets = (x.to(device, non_blocking=True) for x in next(batches))
            drawn = draw(progress.step, micro)
            torch.manual_seed(drawn.seed)
            images, targets = drawn.mix(images, targets)
            last = micro + 1 == size
            with nullcontext() if last else _no_sync(model):
                with precision.autocast():
                    logits = model(images) if drawn.keep is None else model(images, drawn.keep)
                    loss = criterion(logits, targets)
                precision.backward(loss / size, optimizer)
            totals += torch.stack([loss.detach().double() * len(images), totals.new_tensor(len(images))])
        sum_across_ranks(totals)
        norm = precision.update(optimizer, trainable(optimizer), clip_grad)
        optimizer.zero_grad(set_to_none=True)
        loss_sum, images_seen, grad_norm = *totals.tolist(), float(norm)
        finite = np.isfinite(grad_norm)
        if not np.isfinite(loss_sum) or not (finite or precision.may_skip):
            what = "loss" if not np.isfinite(loss_sum) else "gradient"
            raise NumericsError(
                f"the {what} of step {progress.step} (learning rate {lr:.3g}) is not finite; the weights "
                "were not touched: lower TRAIN.BASE_LR, or train with --amp-opt-level O0"
            )
        in_a_row = 0 if finite else in_a_row + 1
        if in_a_row > MAX_SKIPS:
            raise NumericsError(
                f"fp16 gradients overflowed {in_a_row} times in a row up to step {progress.step}; "
                "train with AMP.DTYPE bf16 or --amp-opt-level O0"
            )
        progress.step += 1
        progress.skipped += not finite
        seen = (loss_sum, images_seen, grad_norm if finite else 0.0, float(finite))
        progress.sums = [a + b for a, b in zip(progress.sums, seen, strict=True)]
        yield Update(loss_sum / images_seen, grad_norm, lr, int(images_seen), time.perf_counter() - started)


@torch.no_grad()
def predict(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    precision,
    num_classes: int,
    views: Sequence[Callable[[Tensor], Tensor]] = VIEWS["none"],
) -> tuple[np.ndarray, np.ndarray]:
    """Logits and truth of all photos, `[n, num_classes]` each, in the data set's order and equal on every rank.

    Every rank brings the photos r, r + world_size, ...; nothing is padded, so nothing is counted twice.

    Args:
        views: functions of `VIEWS`; the logits are their mean.
    """
    model.eval()
    logits, truth = [np.zeros((0, num_classes), np.float32)], [np.zeros((0, num_classes), bool)]
    for images, targets in batches:
        images = images.to(device, non_blocking=True)
        with precision.autocast():
            seen = sum(model(view(images)).float() for view in views) / len(views)
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


def _no_sync(model: nn.Module):
    """Leaves DDP's gradient exchange to the last batch of an update."""
    return model.no_sync() if hasattr(model, "no_sync") else nullcontext()
