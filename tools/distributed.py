"""Ranks: who we are, and the few things that all ranks do together. Plain `python` makes no process group."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from tools.errors import ResourceError, UsageError


@dataclass(frozen=True)
class Ranks:
    """This process among the others. `local_rank` counts on this machine and picks the GPU."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this rank writes files and talks."""
        return self.rank == 0


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
    """A process group for as long as it is needed; none for a single plain process.

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
            f"the environment has MASTER_ADDR={address!r} and MASTER_PORT={port!r}, which is no place to meet; "
            "start with torchrun"
        )
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))
    except (ValueError, RuntimeError) as error:
        raise ResourceError(
            f"the ranks cannot meet at {address}:{port}: {str(error).splitlines()[0]}; choose another port or address"
        ) from None
    try:
        yield
    finally:
        dist.destroy_process_group()


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


def gather_objects(value: object) -> list:
    """Every rank's value, in order of rank, on every rank."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def wait_for_all() -> None:
    """Returns when every rank has come here."""
    if dist.is_initialized():
        dist.barrier()
