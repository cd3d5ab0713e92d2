"""The logits of all images of a split, and the speed of forward passes."""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial, reduce

import numpy as np
import torch
from torch import Tensor, nn

from tools.base.errors import NumericsError
from tools.runtime.distributed import gather_objects
from tools.runtime.memory import trim

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

    The results stay on the device to the end, so that it never waits for this process.

    Args:
        batches: on `device`, as `data.build.batches_of` gives them.
        views: functions of `VIEWS`; the logits are their mean.
        micro_batch: images per forward pass, where a whole batch might not fit; 0 takes the whole batch.
    """
    model.eval()
    trim()  # the first of `batches` may fork a loader's processes
    logits, truth = ([torch.zeros(0, num_classes, device=device)] for _ in range(2))
    for images, targets in batches:
        parts = images.split(micro_batch or len(images))
        logits += [average_views(model, part, views, precision) for part in parts]
        truth.append(targets)
    own_logits, own_truth = (torch.cat(rows).cpu().numpy() for rows in (logits, truth))
    ranks = gather_objects((own_logits, own_truth.astype(bool)))
    num_images = sum(len(rows) for rows, _ in ranks)
    all_logits, all_truth = np.zeros((num_images, num_classes), np.float32), np.zeros((num_images, num_classes), bool)
    for rank, part in enumerate(ranks):
        all_logits[rank :: len(ranks)], all_truth[rank :: len(ranks)] = part
    return all_logits, all_truth


@torch.no_grad()
def measure_throughput(model: nn.Module, images: Tensor, precision) -> dict:
    """Speed of forward passes in eval mode: images per second, and the median and 95th percentile of a pass in seconds.

    The passes of the latency wait for each other. On a GPU, the passes of the throughput are queued, as in inference
    on many images. 30 passes each; the warm-up ends after 50 passes or 20 seconds.
    """
    model.eval()

    def run(num_passes: int) -> float:
        started = time.perf_counter()
        with precision.autocast():
            for _ in range(num_passes):
                model(images)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        return time.perf_counter() - started

    begun = time.perf_counter()
    for _ in range(50):
        run(1)
        if time.perf_counter() - begun > 20:
            break
    latencies = np.array([run(1) for _ in range(30)])
    seconds = run(30) if images.is_cuda else float(latencies.sum())  # a CPU has no queue
    return {
        "images_per_second": 30 * len(images) / seconds,
        "p50_seconds": float(np.percentile(latencies, 50)),
        "p95_seconds": float(np.percentile(latencies, 95)),
    }
