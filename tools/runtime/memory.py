"""Keeping freed memory in the process, or returning it to the operating system."""

import ctypes
import gc
import resource
import sys

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
_LARGEST = 2**31 - 1  # mallopt takes an int


def keep_freed_memory() -> bool:
    """Makes glibc keep freed blocks for the next step instead of returning them to the kernel. True if it does.

    Otherwise every step on a CPU has page faults for all its activations. Other C libraries do not have the
    setting. Under a limit of the address space (`ulimit -v`), kept memory would be missing elsewhere.
    """
    if not sys.platform.startswith("linux") or resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST) and mallopt(_M_TRIM_THRESHOLD, _LARGEST))


def release_freed_memory() -> None:
    """Returns freed memory to the GPU and the operating system: a smaller micro-batch needs blocks of other sizes.

    Reference cycles are collected first, because the exception and the activations in its frames may be one.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim()


def trim() -> None:
    """Returns freed memory to the operating system (glibc only).

    Useful before a fork: child processes share kept pages, so each page is copied when this process writes to it
    again, while the children hold the old one. A fresh page costs a seventh of a copied one.
    """
    if sys.platform.startswith("linux") and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def peak_memory(device: torch.device) -> dict[str, int]:
    """The most bytes in use so far.

    On a GPU: `allocated` to tensors, and `reserved` by torch, which keeps freed blocks. On a CPU: `main` memory of this
    process, without its loader processes.
    """
    if device.type == "cuda":
        allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        return {"allocated": allocated, "reserved": reserved}
    return {"main": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def describe_memory(peak: dict[str, int], unit: str = " MiB") -> str:
    """What `peak_memory` found: `812 MiB` on a CPU, `3405 MiB (3800 MiB reserved)` on a GPU."""
    used, *others = (f"{num_bytes / 2**20:.0f}{unit}" for num_bytes in peak.values())
    return f"{used} ({others[0]} reserved)" if others else used
