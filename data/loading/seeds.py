"""Random numbers that depend only on where they are used."""

import functools
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

# The purpose of a seed: the first number after the run's own seed, so that no two purposes share a stream.
ORDER, AUGMENT, MIX, DROP_PATH, FORWARD, INIT = range(6)


def seed_of(*numbers: int) -> int:
    """One 63-bit seed from several whole numbers; similar numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds `random`, numpy and torch (CPU) inside the context, and restores their states afterwards."""
    # numpy's stubs lack get_bit_generator and set_bit_generator
    states = random.getstate(), np.random.get_bit_generator(), torch.get_rng_state()  # type: ignore[attr-defined]
    nested = states[1] is _numpy_generator()
    np.random.set_bit_generator(np.random.MT19937(0) if nested else _numpy_generator())  # type: ignore[attr-defined]
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_bit_generator(states[1])  # type: ignore[attr-defined]
        torch.set_rng_state(states[2])


@functools.cache
def _numpy_generator() -> np.random.MT19937:
    """Replaces numpy's generator inside `seeded`: saving and restoring numpy's own state takes 25 times as long."""
    return np.random.MT19937(0)
