"""The order of samples: a pure function of seed, epoch and position."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from data.loading.seeds import ORDER, seed_of


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


class TrainBatches:
    """Batch sampler of one rank.

    The order of an epoch is a permutation seeded by (seed, epoch), or as many weighted draws with replacement. A global
    batch is the next `batch_size * world_size` positions, of which rank r takes the r-th `batch_size`. The last partial
    global batch is dropped. Each `Draw` holds everything that a worker needs, so that workers can be persistent.

    Args:
        weights: relative frequency of each sample; None takes every sample once.

    Set `epoch` and `first` (batches to skip, when resuming inside an epoch) before iterating.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        shard: Shard,
        seed: int,
        weights: Sequence[float] | None = None,
    ):
        self.length, self.batch_size, self.shard, self.seed = length, batch_size, shard, seed
        self.weights = weights
        self.epoch = self.first = 0

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self.length // (self.batch_size * self.shard.world_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, ORDER, self.epoch))
        order = self._order(generator).tolist()
        for batch in range(self.first, len(self)):
            start = (batch * self.shard.world_size + self.shard.rank) * self.batch_size
            yield [Draw(self.epoch, p, order[p]) for p in range(start, start + self.batch_size)]

    def _order(self, generator: torch.Generator) -> Tensor:
        if self.weights is None:
            return torch.randperm(self.length, generator=generator)
        weights = torch.tensor(self.weights, dtype=torch.float64)
        return torch.multinomial(weights, self.length, replacement=True, generator=generator)


class EvalBatches:
    """Batch sampler that takes every sample exactly once: rank r has the indices r, r + world_size, ..."""

    def __init__(self, length: int, batch_size: int, shard: Shard):
        self.indices, self.batch_size = range(shard.rank, length, shard.world_size), batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self.indices), self.batch_size):
            yield list(self.indices[start : start + self.batch_size])
