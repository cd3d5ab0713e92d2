"""Ranks and the operations that all ranks do together. Plain `python` makes no process group."""

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tools.base.errors import ResourceError, UsageError, UserError


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


ALONE = Ranks()
BUCKET_BYTES = 2**25  # of gradients that are summed over ranks at once


def ranks_from_environment(environ=os.environ) -> Ranks:
    """Reads RANK, WORLD_SIZE and LOCAL_RANK, which torchrun sets.

    Raises:
        UsageError: when only some are set, or they make no sense.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    given = {name: environ[name] for name in names if name in environ}
    if not given:
        return Ranks()
    missing = [name for name in names if name not in given]
    if missing:
        raise UsageError(f"{', '.join(given)} set in the environment, and not {missing[0]}; start with torchrun")
    if not all(re.fullmatch("[0-9]{1,6}", text) for text in given.values()):
        raise UsageError(f"the environment has {given}; these must be whole numbers, start with torchrun")
    rank, world_size, local_rank = (int(given[name]) for name in names)
    if not rank < world_size:
        raise UsageError(f"the environment has {given}: a rank must lie in 0..WORLD_SIZE-1")
    return Ranks(rank, world_size, local_rank)


@contextmanager
def process_group(ranks: Ranks, backend: str, device: torch.device, timeout_seconds: int) -> Iterator[None]:
    """A process group inside the block; none for a single plain process.

    Raises:
        UsageError: for an environment that names no place to meet.
        ResourceError: for a place or a backend that cannot be had.
    """
    if ranks.world_size == 1 and "RANK" not in os.environ:
        yield
        return
    if backend == "auto":
        backend = "nccl" if device.type == "cuda" else "gloo"
    if backend == "nccl" and device.type != "cuda":
        raise ResourceError("DIST.BACKEND nccl needs a GPU; use gloo or auto")
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


def choose_device(ranks: Ranks) -> torch.device:
    """This rank's GPU, or the CPU where there is none. Raises ResourceError for more ranks than GPUs."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if ranks.local_rank >= torch.cuda.device_count():
        raise ResourceError(
            f"rank {ranks.rank} wants GPU {ranks.local_rank}, and this machine shows "
            f"{torch.cuda.device_count()}; lower --nproc_per_node"
        )
    device = torch.device("cuda", ranks.local_rank)
    torch.cuda.set_device(device)
    return device


def sum_across_ranks(values: Tensor) -> Tensor:
    """Elementwise sum over all ranks, in place. Add sums and counts, then divide once."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def worst_of_ranks(value: int, device: torch.device) -> int:
    """The largest value of any rank."""
    if not dist.is_initialized():
        return value
    largest = torch.tensor(value, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Replaces every gradient by its sum over all ranks; a missing one counts as zero.

    Not DistributedDataParallel: it reduces inside the backward pass, where a rank that ran out of memory could no
    longer tell the others. The price is that the reduction does not overlap with the backward pass.
    """
    if not dist.is_initialized():
        return
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    ends = itertools.accumulate(gradient.nbytes for gradient in gradients)
    placed = zip(gradients, ends, strict=True)
    for _, pairs in itertools.groupby(placed, lambda pair: (pair[0].dtype, pair[1] // BUCKET_BYTES)):
        bucket = [gradient for gradient, _ in pairs]
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


def share_weights(*models: nn.Module) -> None:
    """Copies parameters and buffers (such as batch norm's statistics) of the first rank to every rank."""
    if dist.is_initialized():
        for model in models:
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor.data, 0)


def raise_together(error: UserError | None, ranks: Ranks) -> None:
    """Raises on every rank when any rank has an `error`: the error itself there, a line that points to it elsewhere."""
    codes = gather_objects(error.exit_code if error else 0)
    if error:
        raise error
    failed = next((rank for rank, code in enumerate(codes) if code), None)
    if failed is not None:
        other = UserError(f"rank {ranks.rank} stops because rank {failed} failed; its own line says why")
        other.exit_code = codes[failed]
        raise other


@contextmanager
def on_first_rank(ranks: Ranks) -> Iterator[None]:
    """Around a block in which only the first rank works: an error there ends all ranks with the same exit code."""
    error = None
    try:
        yield
    except UserError as raised:
        error = raised
    raise_together(error, ranks)


def gather_objects(value: object) -> list:
    """Every rank's value, in order of rank, on every rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
