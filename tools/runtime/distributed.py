"""Ranks and collective operations. Without torchrun, there is no process group."""

import itertools
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tools.base.errors import ResourceError, UsageError, UserError, as_user_error
from tools.runtime.environment import check_architecture, check_visible


@dataclass(frozen=True)
class Ranks:
    """The rank of this process among all. `local_rank` is its rank on this machine and selects the GPU."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this rank is the one that writes files and prints."""
        return self.rank == 0


Bucket = tuple[list[Tensor], Tensor]  # parameters, and their gradients in one flat tensor

ALONE = Ranks()
BUCKET_BYTES = 2**25


def ranks_from_environment(environ=os.environ) -> Ranks:
    """Reads RANK, WORLD_SIZE and LOCAL_RANK, which torchrun sets.

    Raises:
        UsageError: when only some are set, or their values are invalid.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    given = {name: environ[name] for name in names if name in environ}
    if not given:
        return Ranks()
    missing = [name for name in names if name not in given]
    if missing:
        raise UsageError(f"{', '.join(given)} set in the environment, but not {missing[0]}; start with torchrun")
    if not all(re.fullmatch("[0-9]{1,6}", text) for text in given.values()):
        raise UsageError(f"the environment has {given}, which must be whole numbers; start with torchrun")
    rank, world_size, local_rank = (int(given[name]) for name in names)
    if not rank < world_size:
        raise UsageError(f"the environment has {given}: a rank must lie in 0..WORLD_SIZE-1")
    return Ranks(rank, world_size, local_rank)


@contextmanager
def process_group(ranks: Ranks, backend: str, device: torch.device, timeout_seconds: int) -> Iterator[None]:
    """A process group inside the block; none for a single plain process.

    Raises:
        UsageError: for an environment without a valid address.
        ResourceError: for an address that cannot be reached, or a backend that is not available.
    """
    if ranks.world_size == 1 and "RANK" not in os.environ:
        yield
        return
    if backend == "nccl" and device.type != "cuda":
        raise ResourceError("DIST.BACKEND nccl needs a GPU; use gloo or auto")
    if device.type == "cuda" and backend != "gloo":
        backend = "cpu:gloo,cuda:nccl"  # tensors on the CPU, which are the votes, do not wait for the GPU
    else:
        backend = "gloo"
    address, port = (os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
    if not address or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
        raise UsageError(
            f"the environment has MASTER_ADDR={address!r} and MASTER_PORT={port!r}, which is not an address; "
            "start with torchrun"
        )
    try:
        timeout = timedelta(seconds=timeout_seconds)
        store = _connect_store(ranks, timeout)
        dist.init_process_group(backend, timeout=timeout, store=store, rank=ranks.rank, world_size=ranks.world_size)
    except (ValueError, RuntimeError) as error:
        raise ResourceError(
            f"the ranks cannot connect at {address}:{port}: {str(error).splitlines()[0]}; use another port or address"
        ) from None
    try:
        yield
    finally:
        dist.destroy_process_group()


def _connect_store(ranks: Ranks, timeout: timedelta) -> dist.Store:
    """The launcher's store. On one machine, every restart gets its own key prefix.

    Without the prefix, torch 2.14 reuses the keys, and restarted ranks wait for the addresses of dead ones.
    """
    store, _, _ = next(dist.rendezvous("env://", ranks.rank, ranks.world_size, timeout=timeout))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":  # not on several machines, where restart counts may differ
        store = dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    return store


def choose_device(ranks: Ranks, wanted: str = "auto") -> torch.device:
    """This rank's GPU, or the CPU where there is none or `wanted` is "cpu".

    Raises:
        ResourceError: for more ranks than GPUs, and for a GPU that this torch cannot use.
    """
    if wanted == "cpu":
        return torch.device("cpu")
    wheel = f"torch {torch.__version__}"
    with warnings.catch_warnings(record=True) as caught:  # torch only warns about a driver that is too old
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        said = " ".join(str(warning.message) for warning in caught).partition("CUDA initialization: ")[2]
        check_visible(wheel, torch.version.cuda, re.split(r"\.\s+(?=[A-Z(])", said)[0])
        return torch.device("cpu")
    if ranks.local_rank >= torch.cuda.device_count():
        raise ResourceError(
            f"rank {ranks.rank} needs GPU {ranks.local_rank}, but only "
            f"{torch.cuda.device_count()} GPU(s) are visible; lower --nproc_per_node"
        )
    device = torch.device("cuda", ranks.local_rank)
    torch.cuda.set_device(device)
    if torch.version.cuda:  # not on AMD GPUs, whose architectures have other names
        name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        check_architecture(name, capability, wheel, torch.cuda.get_arch_list())
    return device


def sum_across_ranks(values: Tensor) -> Tensor:
    """Elementwise sum over all ranks, in place. For a mean, sum values and counts, then divide."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def largest_of_ranks(votes: Sequence[int]) -> list[int]:
    """Elementwise maximum over all ranks. Uses gloo, so it does not wait for pending GPU work."""
    if not dist.is_initialized():
        return list(votes)
    largest = torch.tensor(votes)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.tolist()


def pack_gradients(parameters: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Bucket]:
    """Copies gradients (zeros for missing ones) into buckets for `sum_buckets`; [] without a process group.

    Memory may run out here, so it is done before the ranks agree to sum.

    Args:
        dtype: dtype of the buckets; None keeps that of the gradients.
    """
    if not dist.is_initialized():
        return []
    ends = itertools.accumulate(parameter.nbytes for parameter in parameters)
    placed = zip(parameters, ends, strict=True)
    groups = itertools.groupby(placed, lambda pair: (pair[0].dtype, pair[1] // BUCKET_BYTES))
    buckets = [[parameter for parameter, _ in pairs] for _, pairs in groups]
    return [(bucket, _flat_gradients(bucket, dtype or bucket[0].dtype)) for bucket in buckets]


def _flat_gradients(parameters: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    gradients = (torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)
    return torch.cat([gradient.flatten().to(dtype) for gradient in gradients])


def sum_buckets(buckets: Sequence[Bucket]) -> None:
    """Replaces every gradient by its sum over all ranks.

    Not DistributedDataParallel: it reduces inside the backward pass, where a rank that ran out of memory could no
    longer tell the others. The price is that the reduction does not overlap with the backward pass.
    """
    for parameters, flat in buckets:
        dist.all_reduce(flat)
        gradients = [torch.empty_like(p) if p.grad is None else p.grad for p in parameters]
        parts = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient


def share_weights(*models: nn.Module) -> None:
    """Copies parameters and buffers (such as batch norm's statistics) of the first rank to every rank."""
    if dist.is_initialized():
        for model in models:
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor.data, 0)


def raise_together(error: Exception | None, ranks: Ranks) -> None:
    """If any rank has an `error`, raises on every rank: its own error, or else one that names the failed rank."""
    code = as_user_error(error).exit_code if error else 0
    if not any(largest_of_ranks([code])):
        return
    codes = gather_objects(code)
    if error:
        raise error
    failed = next(rank for rank, code in enumerate(codes) if code)
    other = UserError(f"rank {ranks.rank} stops because rank {failed} failed; see the error of rank {failed}")
    other.exit_code = codes[failed]
    raise other


@contextmanager
def together(ranks: Ranks) -> Iterator[None]:
    """Wraps work that all ranks do: an exception on any rank ends all of them, with the same exit code."""
    error = None
    try:
        yield
    except Exception as raised:
        error = raised
    raise_together(error, ranks)


def gather_objects(value: object) -> list:
    """Every rank's value, in order of rank, on every rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
