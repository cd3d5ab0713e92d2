"""From views to batches, and from a batch of bytes to the model's input on its device."""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from data.loading.transforms import View
from tools.base.errors import ResourceError, UserError


class Batch(NamedTuple):
    """A batch on its way from a worker to the device, in a quarter of the bytes of normalised images."""

    pixels: Tensor  # uint8 [B, 3, S, S]
    targets: Tensor  # float32 [B, num_classes] in [0, 1]
    boxes: Tensor  # int64 [n, 5]: row, top, left, height and width per patch of random erasing
    noise: Tensor  # float32 [sum of 3 * height * width], the pixels of all patches, concatenated


def collate(items: list[tuple[View, Tensor] | UserError]) -> Batch | UserError:
    """The stacked batch; or the first error in it; or, in a loader process, the error that /dev/shm is full.

    A loader process passes tensors through shared memory. This function moves them there; torch would do it in
    a thread whose errors are lost, and the main process would wait forever.
    """
    for item in items:
        if isinstance(item, UserError):
            return item
    views, targets = zip(*items, strict=True)
    patches = [(row, *patch) for row, view in enumerate(views) for patch in view.patches]
    boxes = [(row, top, left, *pixels.shape[1:]) for row, top, left, pixels in patches]
    batch = Batch(
        torch.stack([view.pixels for view in views]),
        torch.stack(targets),
        torch.tensor(boxes, dtype=torch.int64).reshape(-1, 5),
        torch.cat([torch.empty(0), *(patch[-1].flatten() for patch in patches)]),
    )
    if get_worker_info() is None:
        return batch
    try:
        return Batch(*(part.share_memory_() for part in batch))
    except RuntimeError as error:
        return ResourceError(
            f"a loader process found no room at /dev/shm: {error}; lower DATA.NUM_WORKERS (0 needs none) or "
            "--batch-size, or raise a container's --shm-size"
        )


@dataclass(frozen=True)
class Normalize:
    """`(batch, device)` -> images float32 `[B, 3, S, S]` and targets: (pixels / 255 - mean) / std, then patches."""

    mean: tuple[float, float, float]  # of RGB in [0, 1]
    std: tuple[float, float, float]  # of RGB in [0, 1]

    def __call__(self, batch: Batch, device: torch.device | str) -> tuple[Tensor, Tensor]:
        pixels, targets, noise = (
            part.to(device, non_blocking=True) for part in (batch.pixels, batch.targets, batch.noise)
        )
        mean, std = _constant(self.mean, device), _constant(self.std, device)
        images = pixels.float().div_(255).sub_(mean).div_(std)
        start = 0
        for row, top, left, height, width in batch.boxes.tolist():
            stop = start + 3 * height * width
            images[row, :, top : top + height, left : left + width] = noise[start:stop].view(3, height, width)
            start = stop
        return images, targets


@functools.cache
def _constant(values: tuple[float, float, float], device: torch.device | str) -> Tensor:
    """The values as [3, 1, 1] on the device; cached, because every copy of a few numbers makes a GPU wait."""
    return torch.tensor(values, device=device).view(3, 1, 1)
