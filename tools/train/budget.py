"""What an image takes of memory in training, and how many fit."""

import weakref
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tools.base.errors import ResourceError

MULTIPLE = 8  # of images, that matrix units are filled with


TRIED = (4, 8)  # images of the steps whose peaks are compared; with fewer, gradients of weights are the larger part


def kept_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass of `forward()`.

    Every storage counts once, whole, however many views of it are kept; those of parameters and buffers do not count.
    """
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept = {}  # identity of a storage -> the storage itself, held so that nobody else gets it

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for identity, storage in kept.items() if identity not in own)


def peak_bytes(step: Callable[[], object], device: torch.device) -> int:
    """The most that `step()` holds at a time beyond what was there before.

    A GPU's allocator counts by itself. On a CPU the results of all operations are followed until they are freed, which
    leaves out what an operation holds inside itself.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with _Followed() as followed:
        step()
    return followed.peak


def peak_an_image(step: Callable[[int], object], device: torch.device) -> float:
    """By how many bytes one more image raises the peak of `step(images)`, a forward and a backward pass."""
    step(1)  # leaves the gradients' memory, which later steps find there
    low, high = (peak_bytes(partial(step, images), device) for images in TRIED)
    return (high - low) / (TRIED[1] - TRIED[0])


class _Followed(TorchDispatchMode):
    """Inside, `peak` is the most bytes of new storages that were alive at a time."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak, self._known = 0, 0, weakref.WeakSet()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        results = operation(*args, **(kwargs or {}))
        given = {t.untyped_storage() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(results):
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is not None and storage not in self._known and storage not in given:
                self._known.add(storage)
                self._count(storage.nbytes())
                weakref.finalize(storage, self._count, -storage.nbytes())
        return results

    def _count(self, size: int) -> None:
        self.alive += size
        self.peak = max(self.peak, self.alive)


def largest_batch(image_bytes: float, fixed_bytes: float, budget_bytes: float) -> int:
    """Images whose activations fit beside what does not depend on their number; a multiple of 8 from 8 on.

    Args:
        image_bytes: activations of one image.
        fixed_bytes: weights, gradients, the optimizer's state, the moving average.

    Raises:
        ResourceError: when not even one image fits.
    """
    fitting = int((budget_bytes - fixed_bytes) // image_bytes)
    if fitting < 1:
        raise ResourceError(
            f"one image does not fit into {budget_bytes / 2**30:.2f} GiB: weights and optimizer take "
            f"{fixed_bytes / 2**30:.2f}, an image {image_bytes / 2**30:.3f}; use a smaller model, a larger budget, or "
            "--use-checkpoint"
        )
    return fitting // MULTIPLE * MULTIPLE or fitting
