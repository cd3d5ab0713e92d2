"""The logits of all images of a split, and the speed of forward passes."""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial, reduce

import numpy as np
import torch
from torch import Tensor, nn

from tools.base.errors import NumericsError
from tools.runtime.distributed import gather_objects
from tools.runtime.memory import peak_memory, trim

View = Callable[[Tensor], Tensor]  # of images [B, 3, S, S]


def _turn(images: Tensor, quarters: int, mirrored: bool = False) -> Tensor:
    """The images, mirrored or not, after quarter turns."""
    return torch.rot90(images.flip(3) if mirrored else images, quarters, (2, 3))


# Test-time augmentation averages over views of a leaf, which has no upright.
VIEWS: dict[str, list[View]] = {
    "none": [lambda x: x],
    "flips": [lambda x: x, lambda x: x.flip(3), lambda x: x.flip(2), lambda x: x.flip(2, 3)],
    "turns": [partial(_turn, quarters=k) for k in range(4)],
    "all": [partial(_turn, quarters=k, mirrored=mirrored) for mirrored in (False, True) for k in range(4)],
}


def average_views(model: nn.Module, images: Tensor, views: Sequence[View], precision) -> Tensor:
    """Logits `[B, num_classes]` float32 of images `[B, 3, S, S]`, averaged over the views."""
    with precision.autocast():
        return reduce(torch.add, (model(view(images)).float() for view in views)) / len(views)


def check_finite(logits: np.ndarray, names: Sequence[object]) -> None:
    """Raises NumericsError with the name of the first photo whose logits, a row of `[n, C]`, are not finite."""
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(bad):
        raise NumericsError(f"the model's output for {names[bad[0]]} is not finite; its weights are unfit for use")


@torch.no_grad()
def predict(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    precision,
    num_classes: int,
    views: Sequence[View] = VIEWS["none"],
    micro_batch: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """(logits, truth) of all images, `[n, num_classes]` each, in the data set's order and equal on every rank.

    Rank r computes the images r, r + world_size, ...; nothing is padded, so nothing is counted twice.

    Args:
        views: functions of `VIEWS`; the logits are their mean.
        micro_batch: images per forward pass, where a whole batch might not fit; 0 takes the whole batch.
    """
    model.eval()
    trim()  # the first of `batches` may fork a loader's processes
    logits, truth = [np.zeros((0, num_classes), np.float32)], [np.zeros((0, num_classes), bool)]
    for images, targets in batches:
        for part in images.to(device, non_blocking=True).split(micro_batch or len(images)):
            logits.append(average_views(model, part, views, precision).cpu().numpy())
        truth.append(targets.numpy().astype(bool))
    parts = gather_objects((np.concatenate(logits), np.concatenate(truth)))
    num_images = sum(len(rows) for rows, _ in parts)
    all_logits, all_truth = np.zeros((num_images, num_classes), np.float32), np.zeros((num_images, num_classes), bool)
    for rank, part in enumerate(parts):
        all_logits[rank :: len(parts)], all_truth[rank :: len(parts)] = part
    return all_logits, all_truth


@torch.no_grad()
def measure_throughput(model: nn.Module, images: Tensor, precision) -> dict:
    """Speed of 30 forward passes in eval mode: images/s, median and 95th percentile of seconds per batch, peak bytes.

    The warm-up ends after 50 passes or 20 seconds.
    """
    model.eval()

    def forward() -> float:
        started = time.perf_counter()
        with precision.autocast():
            model(images)
        if images.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    begun = time.perf_counter()
    for _ in range(50):
        forward()
        if time.perf_counter() - begun > 20:
            break
    seconds = np.array([forward() for _ in range(30)])
    return {
        "images_per_second": len(images) / float(seconds.mean()),
        "p50_seconds": float(np.percentile(seconds, 50)),
        "p95_seconds": float(np.percentile(seconds, 95)),
        "peak_bytes": peak_memory(images.device),
    }
