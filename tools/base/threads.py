"""Work on many items in threads, with results in order and a bound on how many are under way."""

import contextlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Progress = Callable[[Iterable[Any], int], Iterable[Any]]  # (items, how many) -> the same items, under a progress bar


def in_parallel(
    work: Callable[[Item], Result], items: Sequence[Item], progress: Progress = lambda items, _total: items
) -> list[Result]:
    """`work(item)` for all items, in order. Threads are enough: decoding and hashing release Python's lock."""
    threads = len(os.sched_getaffinity(0))
    with contextlib.closing(in_threads(work, items, threads, ahead=4 * threads)) as results:
        return list(progress(results, len(items)))


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` consecutive items (the last may be shorter), read only when they are needed."""
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int
) -> Generator[Result, None, None]:
    """`work(item)` for every item, in order; the threads compute up to `ahead` results in advance."""
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or a signal, no thread may still be writing
