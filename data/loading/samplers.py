"""The order of samples: a pure function of seed, epoch and position."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from data.loading.seeds import ORDER, seed_of
from tools.base.threads import batches


class Draw(NamedTuple):
    """One training sample: its place in the epoch's order, and its index in the data set."""

    epoch: int
    position: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nothing uses here


class Shard(NamedTuple):
    """The part of the samples that this process takes: that of `rank` (from 0) of `world_size` ranks."""

    rank: int = 0
    world_size: int = 1


WHOLE = Shard()  # all samples: there is only one process


@dataclass
class TrainBatches:
    """Batch sampler of one rank. Set `epoch` and `first` before iterating.

    The order of an epoch is a permutation seeded by (seed, epoch), or as many weighted draws with replacement. A global
    batch is the next `batch_size * world_size` positions, of which rank r takes the r-th block of `batch_size`. The
    last partial global batch is dropped. Each `Draw` holds all that a worker needs, so workers can be persistent.
    """

    length: int
    batch_size: int
    shard: Shard
    seed: int
    weights: Sequence[float] | None = None  # relative frequency of each sample; None takes every sample once
    epoch: int = 0
    first: int = 0  # batches to skip, when a run is resumed inside an epoch

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self.length // (self.batch_size * self.shard.world_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, ORDER, self.epoch))
        if self.weights is None:
            order = torch.randperm(self.length, generator=generator).tolist()
        else:
            weights = torch.tensor(self.weights, dtype=torch.float64)
            order = torch.multinomial(weights, self.length, replacement=True, generator=generator).tolist()
        for batch in range(self.first, len(self)):
            start = (batch * self.shard.world_size + self.shard.rank) * self.batch_size
            yield [Draw(self.epoch, p, order[p]) for p in range(start, start + self.batch_size)]


def eval_batches(length: int, batch_size: int, shard: Shard) -> list[list[int]]:
    """Batches of this rank that take every sample exactly once: rank r has the indices r, r + world_size, ..."""
    return list(batches(range(shard.rank, length, shard.world_size), batch_size))
