"""`make gpu-check` without a card: every row of its table, at toy size; and what only a card would show, by hand."""

import warnings
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from tools.bench import gpu, memory
from tools.bench.machine import describe_machine, find_driver
from tools.bench.memory import find_largest, fits
from tools.bench.model import Setup

# Parts of the table -> the rows that each has where it is measured.
PARTS = {
    "training step, fp16": ["timm", "ours"],
    "training step, fp32, tf_efficientnet_lite0": ["channels_last False", "channels_last True"],
    "training step, fp32, ours": ["channels_last False", "channels_last True"],
    "training step, apex": [],
    "loader, fp32": ["the training step", "--cache-mode no", "--cache-mode full"],
    "host synchronisations": [],
    "largest batch in 8 GiB, fp32, plain": [],
    "largest batch in 8 GiB, fp32, selective": [],
    "largest batch in 8 GiB, fp32, checkpoint": [],
    "out of memory": None,
    "deterministic resume, 1 rank(s)": None,
    "deterministic resume, 2 rank(s)": None,
    "training step, fp16, compiled": ["timm", "ours"],
}  # fmt: skip
TOY = ["gpu", "--size", "toy", "--dtype", "fp16", "--batch", "4", "--compile", "eager"]


def test_every_row_appears_and_only_a_card_is_missing(run_benchmark, times):
    """Runs of main.py that are stopped, resumed and short of memory for real; `eager` compiles nothing, but traces."""
    ranks = ["1", "2"][: times(1, 2)]
    rows = {row["name"]: row for row in run_benchmark(*TOY, "--photos", "128", "--ranks", *ranks, "--minutes", "60")}
    expected = []
    for part, kinds in PARTS.items():
        if part != "deterministic resume, 2 rank(s)" or "2" in ranks:
            expected += [f"{part}: {kind}" for kind in kinds] if kinds else [part]
    assert list(rows) == expected
    for name, row in rows.items():
        if PARTS.get(name) == []:
            assert row["note"] == "not measured: no GPU", name
        else:
            assert row["seconds"] > 0, (name, row["note"])
    assert rows["out of memory"]["note"].startswith("batch 64 in 1 GiB: 1 update with micro-batch ")
    assert int(rows["out of memory"]["note"].split()[-1]) < 64
    same, _, total, _ = rows["deterministic resume, 1 rank(s)"]["note"].split(maxsplit=3)
    assert same == total


def test_parts_that_would_begin_too_late_are_left_out(run_benchmark):
    rows = run_benchmark(*TOY, "--photos", "8", "--minutes", "0")
    assert [row["name"] for row in rows] == list(PARTS)
    assert {row["note"] for row in rows} == {
        "not measured: no GPU",
        "not measured: 0 minutes were over; raise --minutes",
    }


def test_a_part_that_fails_is_a_row_and_the_others_go_on(run_benchmark, monkeypatch):
    def fail(_name):
        raise RuntimeError("CUDA error: no kernel image\nmore of it")

    def succeed(name):
        return [gpu.make_row(name, [1.0])]

    monkeypatch.setattr(gpu, "list_parts", lambda _args: [("a", "", fail), ("b", "", succeed)])
    failed, done = run_benchmark("gpu", "--photos", "8", code=1)
    assert failed["note"] == "FAILED: RuntimeError: CUDA error: no kernel image"
    assert done["seconds"] == 1


@pytest.mark.parametrize("largest", [0, 7, 8, 9, 63, 64, 65, 128, 1000])
def test_the_largest_batch_is_found(largest):
    asked = []

    def holds(number):
        asked.append(number)
        return number <= largest

    assert find_largest(holds) == largest // 8 * 8
    assert all(number % 8 == 0 for number in asked)
    assert len(asked) == len(set(asked)) <= 15


def test_a_batch_that_no_memory_holds_does_not_fit():
    """49 TB of images. An error of another kind is not taken for it."""
    assert fits(Setup("ours", "toy", 2))
    assert not fits(Setup("ours", "toy", 10**9))
    with pytest.raises(TypeError, match="no_such_option"):
        fits(Setup("ours", "toy", 2, memory=("no_such_option",)))


def test_the_search_is_limited_and_the_limit_is_lifted(monkeypatch):
    limits = []
    monkeypatch.setattr(gpu, "limit_memory", limits.append)
    monkeypatch.setattr(gpu, "fits", lambda setup: setup.batch_size <= 100)
    (row,) = gpu.measure_largest(Namespace(budget=8.0), Setup("ours", "toy", 0), "plain")
    assert (row["note"], limits) == ("96 images", [8 * 2**30, float("inf")])


def test_a_limit_is_a_share_of_the_card(monkeypatch):
    """A third of 24 GiB; more than the card has is all of it."""
    shares = []
    monkeypatch.setattr(memory.peers, "DEVICE", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: Namespace(total_memory=24 * 2**30))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    for num_bytes in (8 * 2**30, 80 * 2**30, float("inf")):
        memory.limit_memory(num_bytes)
    assert shares == [1 / 3, 1.0, 1.0]


@pytest.mark.filterwarnings("ignore")
def test_synchronisations_are_counted_per_update(monkeypatch):
    """torch warns at each one in this mode; other warnings do not count."""
    modes = []

    def run_loop():
        for _ in range(2 * gpu.NUM_UPDATES if modes else 5):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(gpu, "make_loop", lambda *_: (None, run_loop))
    (row,) = gpu.count_synchronisations(Namespace(size="toy", batch=2), "syncs")
    assert (row["note"], modes) == ("2 per update", ["warn", "default"])


@pytest.mark.parametrize(
    ("resumed", "note"),
    [
        ({"a": 1.0, "b": 2.0}, "2 of 2 tensors of last.pth are bit-identical"),
        ({"a": 1.0, "b": 2.0000002}, "FAILED: 1 of 2 tensors of last.pth are bit-identical"),
        ({"a": 1.0}, "FAILED: 1 of 2 tensors of last.pth are bit-identical"),
        ({"a": 1.0, "b": 2.0, "c": 3.0}, "FAILED: 2 of 2 tensors of last.pth are bit-identical"),
    ],
)
def test_another_result_of_a_resumed_run_is_seen(monkeypatch, resumed, note):
    def train(_args, folder, *_opts, launcher):
        values = resumed if folder.startswith("stopped") else {"a": 1.0, "b": 2.0}
        assert launcher[-1] == "main.py"
        return 1.0, {name: torch.tensor(value) for name, value in values.items()}

    monkeypatch.setattr(gpu, "train", train)
    assert gpu.measure_resume(Namespace(batch=4), 2, "resume")[0]["note"] == note


def test_the_machine_is_named(tmp_path, monkeypatch):
    machine = describe_machine()
    assert f"model name\t: {machine['processor']}\n" in Path("/proc/cpuinfo").read_text()
    assert 0.2 < machine["subnormal cost"] < 500
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_driver() is None
    tool.write_text("#!/bin/sh\necho 580.65.06\necho 580.65.06\n")
    tool.chmod(0o755)
    assert find_driver() == "580.65.06"
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert find_driver() is None


def test_make_calls_it():
    assert "gpu-check: $(VENV)/.installed" in (ROOT / "Makefile").read_text()
