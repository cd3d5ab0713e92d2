"""Random numbers that depend on where they are used and on nothing else."""

import functools
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

# What a seed is for: the first number after the run's own, so that no two uses share a stream.
ORDER, AUGMENT, MIX, DROP_PATH, FORWARD, INIT = range(6)


def seed_of(*numbers: int) -> int:
    """One 63-bit seed from several whole numbers; near numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, `random`, numpy and torch (CPU) follow from `seed`; afterwards they are as they were."""
    states = random.getstate(), np.random.get_bit_generator(), torch.get_rng_state()
    nested = states[1] is _numpy_generator()
    np.random.set_bit_generator(np.random.MT19937(0) if nested else _numpy_generator())
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_bit_generator(states[1])
        torch.set_rng_state(states[2])


@functools.cache
def _numpy_generator() -> np.random.MT19937:
    """The generator in numpy's place inside `seeded`: copying numpy's own state out and in takes 25 times as long."""
    return np.random.MT19937(0)
