"""Work on many items in threads: in order, with a bound on what is under way."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

Progress = Callable[[Iterable, int], Iterable]  # (items, how many) -> the same items


def in_parallel(work: Callable, items: Sequence, progress: Progress) -> list:
    """`work(item)` for all items, in their order. Threads do: decoding and hashing let go of Python's lock."""
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        return list(progress(pool.map(work, items), len(items)))
    finally:
        pool.shutdown(cancel_futures=True)  # nobody writes any more once an error or a signal leaves here


def batches(items: Iterable, size: int) -> Iterator[list]:
    """The items, `size` at a time; read only when they are asked for."""
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def in_threads(work: Callable, items: Iterable, threads: int, ahead: int) -> Iterator:
    """`work(item)` for every item, in order; up to `ahead` of them are under way while the caller does other things."""
    waiting: deque = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
