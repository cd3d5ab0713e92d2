"""How much freed memory a process keeps, measured by its resident size, each case in its own process; peak memory."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from tools.runtime.memory import describe_memory, peak_memory

COMMON = """
import torch
from tools.runtime.memory import keep_freed_memory, release_freed_memory, trim
from tools.evaluate.inference import predict

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

assert keep_freed_memory()
blocks = [torch.ones(2**20) for _ in range(200)]  # 4 MiB each
del blocks
kept = resident()
"""
PREDICT = """
def model(images):
    after.append(resident())
    return images

after = []
model.eval = lambda: None
batches = [(torch.zeros(1, 2), torch.zeros(1, 2))]
from tools.runtime.precision import NativePrecision
predict(model, batches, torch.device("cpu"), NativePrecision("cpu", None), 2)
after, = after
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
@pytest.mark.parametrize(
    ("work", "returned"),
    [
        ("again = [torch.ones(2**20) for _ in range(100)]; del again; after = resident()", False),
        ("trim(); after = resident()", True),
        ("release_freed_memory(); after = resident()", True),
        (PREDICT, True),
    ],
    ids=["kept", "trim", "release", "predict"],
)
def test_freed_memory_is_kept_until_it_is_returned(work, returned):
    script = f"{COMMON}{work}\nprint(kept, after)"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    kept, after = map(float, result.stdout.split())
    assert kept > 800
    assert (kept - after > 700) == returned


def test_the_log_has_what_is_allocated_and_what_is_reserved(monkeypatch):
    """On a GPU, whose figures are made up here."""
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _device: 3405 * 2**20)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _device: 3800 * 2**20)
    assert describe_memory(peak_memory(torch.device("cuda"))) == "3405 MiB (3800 MiB reserved)"


def test_main_memory_is_the_peak_of_this_process():
    status = Path("/proc/self/status").read_text()
    high_water = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
    assert peak_memory(torch.device("cpu"))["main"] == pytest.approx(1024 * high_water, rel=0.1)
    assert describe_memory({"main": 812 * 2**20}) == "812 MiB"
