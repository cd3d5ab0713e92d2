"""Memory habits of a process that allocates the same large blocks at every step."""

import ctypes
import gc
import resource
import sys

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>


_LARGEST = 2**31 - 1  # mallopt takes an int


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed blocks instead of returning large ones to the kernel. True where it listened.

    Without it every step on a CPU faults its activations in anew. Only glibc has the setting; others stay as they are.
    So does a process with a limit on its address space (`ulimit -v`), where what is kept is missing elsewhere.
    """
    if not sys.platform.startswith("linux") or resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST) and mallopt(_M_TRIM_THRESHOLD, _LARGEST))


def release_freed_memory() -> None:
    """Gives everybody what this process has freed: after memory ran out, the next try needs other blocks.

    The exception and the activations in its frames may hold each other, so cycles are collected first.
    """
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim()


def trim() -> None:
    """Gives the system what this process has freed, where that is glibc's.

    Worth it before processes are forked: they share what is kept, so that every page of it is copied when this process
    writes to it again, and the old one stays with them. Fresh pages cost a seventh of that.
    """
    if sys.platform.startswith("linux") and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def peak_memory(device: torch.device) -> int:
    """Most bytes held so far: of the GPU by torch, or of this process in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
