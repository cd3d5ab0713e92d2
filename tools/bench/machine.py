"""The machine that a benchmark runs on: a figure says nothing about another one."""

import datetime
import os
import platform
import subprocess

import timm
import torch

from tools.bench import peers
from tools.bench.rounds import interleave
from tools.runtime.environment import processor


def describe_machine() -> dict[str, object]:
    """Processor, GPU, versions, and what subnormal numbers cost; None for what is not there."""
    gpu = peers.DEVICE.type == "cuda"
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "threads": torch.get_num_threads(),
        "subnormal cost": round(measure_subnormals(), 2),
        "GPU": f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}" if gpu else None,
        "driver": find_driver() if gpu else None,
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }


def measure_subnormals() -> float:
    """Time of a matrix product with subnormal numbers divided by that of a plain one, the fastest of 31 each.

    The numbers are about exp(-100), as attention weights behind a mask of -100 are.
    """
    plain = torch.rand(256, 256)
    subnormal = plain * torch.tensor(-100.0).exp()
    taken = interleave({"plain": lambda: plain @ plain, "subnormal": lambda: subnormal @ plain}, num_rounds=31)
    return min(taken["subnormal"]) / min(taken["plain"])


def find_driver() -> str | None:
    """The version of NVIDIA's driver, or None where its tool is missing or fails."""
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None
