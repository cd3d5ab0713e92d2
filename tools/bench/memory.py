"""Benchmark: bytes that Swin-T keeps for its backward pass, the peak of a whole step, and the images that fit."""

import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed._tools.mem_tracker import MemTracker

from tools.base.errors import is_out_of_memory
from tools.bench import peers
from tools.bench.model import Setup, make_step
from tools.bench.rounds import Row, make_row
from tools.runtime.memory import release_freed_memory
from tools.runtime.precision import DTYPES, NativePrecision

# mode -> the options of our model
MODES = {"plain": (), "selective": ("selective_checkpoint",), "checkpoint": ("use_checkpoint",)}
BYTES_PER_PARAMETER = 16  # fp32 weight, gradient and AdamW's two moments


def measure(args) -> list[Row]:
    """For fp32 and bf16 autocast, each mode of ours beside timm's same mode (selective: timm's plain)."""
    return [compare_mode(args, mode, dtype) for dtype in ("fp32", "bf16") for mode in MODES]


def compare_mode(args, mode: str, dtype: str) -> Row:
    """The ratio of kept bytes, timm's to ours. The note has the peaks, and the images that fit according to them."""
    kept, notes = {}, []
    for kind in ("timm", "ours"):
        model = make_model(kind, mode, args.size)
        forward = partial(compute_loss, model, args.size, dtype)
        kept[kind], peak = kept_per_image(model, forward), peak_per_image(forward)
        fixed = BYTES_PER_PARAMETER * sum(parameter.numel() for parameter in model.parameters())
        fitting = int((args.budget * 2**30 - fixed) // max(peak, kept[kind])) // 8 * 8
        notes.append(
            f"{kind}: kept {kept[kind] / 2**20:.1f} MiB per image, peak of a step {peak / 2**20:.1f}, "
            f"{fitting} images fit {args.budget:g} GiB"
        )
    return make_row(f"{dtype}, {mode}", (), [kept["timm"] / kept["ours"]], "; ".join(notes))


def make_model(kind: str, mode: str, size: str) -> nn.Module:
    """A model in one of `MODES`, without drop path. timm has no selective mode: its plain one is used instead."""
    model = peers.build_model(kind, size, 0.0, **dict.fromkeys(MODES[mode] if kind == "ours" else (), True))
    if kind == "timm" and mode == "checkpoint":
        model.set_grad_checkpointing(True)
    return model.train()


def compute_loss(model: nn.Module, size: str, dtype: str, num_images: int) -> Tensor:
    """The loss of a random batch."""
    images, targets = peers.random_batch(size, num_images)
    with NativePrecision(peers.DEVICE.type, DTYPES.get(dtype)).autocast():
        return nn.functional.binary_cross_entropy_with_logits(model(images), targets)


def kept_per_image(model: nn.Module, forward: Callable[[int], Tensor]) -> int:
    """Bytes by which one more image raises `kept_bytes` of `forward(num_images)`."""
    return kept_bytes(model, lambda: forward(2)) - kept_bytes(model, lambda: forward(1))


def kept_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass of `forward()`.

    Every storage counts once, whole, however many views of it are kept; those of parameters and buffers do not count.
    """
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept = {}  # address of a storage -> the storage, held so that no other one gets its address

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for address, storage in kept.items() if address not in own)


def peak_per_image(forward: Callable[[int], Tensor]) -> float:
    """Bytes by which one more image raises the peak of a forward and a backward pass of `forward(num_images)`."""
    forward(1).backward()  # allocates the gradients, which later steps reuse
    few, many = 4, 8  # with fewer, gradients of weights are the larger part
    rise = peak_bytes(lambda: forward(many).backward()) - peak_bytes(lambda: forward(few).backward())
    return rise / (many - few)


def peak_bytes(step: Callable[[], object]) -> int:
    """Peak bytes during `step()`: of the GPU's allocator, or on a CPU of the tensors that `MemTracker` counts.

    `MemTracker` does not count what an operation allocates internally. Existing tensors that `step` uses count too.
    """
    if peers.DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    with MemTracker() as tracker:
        step()
    return sum(kinds["Total"] for kinds in tracker.get_tracker_snapshot("peak").values())


def limit_memory(num_bytes: float) -> None:
    """Limits this process to `num_bytes` of GPU memory; without a GPU, its address space may grow by that much."""
    if peers.DEVICE.type == "cuda":
        total = torch.cuda.get_device_properties(peers.DEVICE).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, num_bytes / total))
    else:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + int(num_bytes), resource.getrlimit(resource.RLIMIT_AS)[1]))


def fits(setup: Setup) -> bool:
    """Whether memory suffices for two steps; the second one includes the optimizer's state."""
    try:
        step = make_step(setup)
        step()
        step()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        release_freed_memory()
    return True


def find_largest(holds: Callable[[int], bool]) -> int:
    """The largest multiple of 8 for which `holds`, by doubling and bisection; 0 when it does not hold for 8.

    What holds for a number must hold for every smaller one.
    """
    low, high = 0, 8
    while holds(high):
        low, high = high, 2 * high
    while high - low > 8:
        middle = (low + high) // 16 * 8
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
