"""Bytes that a Swin-T keeps for its backward pass, beside timm's; and the counters, checked by hand."""

import pytest
import torch
from torch import nn

from tools.bench import memory


def swin_t_bytes(kind, mode):
    model = memory.make_model(kind, mode, "swin_t")
    return memory.kept_per_image(model, lambda num_images: memory.compute_loss(model, "swin_t", "bf16", num_images))


def test_swin_t_in_training_keeps_what_is_promised():
    """bf16 autocast; the counts are in bytes and the same on every machine."""
    timms, timms_checkpointed = swin_t_bytes("timm", "plain"), swin_t_bytes("timm", "checkpoint")
    assert swin_t_bytes("ours", "selective") <= 0.75 * timms
    assert swin_t_bytes("ours", "checkpoint") <= timms_checkpointed
    assert swin_t_bytes("ours", "plain") <= 1.01 * timms
    assert timms == pytest.approx(59.1 * 2**20, rel=0.1), "another timm keeps something else: look at the bars"


def test_kept_tensors_are_counted_once_and_weights_not_at_all():
    """By hand: Linear keeps its input, ReLU its result, which the second Linear's input is; 4 bytes each."""
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    images = torch.randn(2, 5)
    assert memory.kept_bytes(model, lambda: model(images)) == 4 * 2 * (5 + 7)
    assert memory.kept_bytes(model, lambda: model(images).square().sum()) == 4 * 2 * (5 + 7 + 3)


def test_the_peak_counts_the_tensors_that_are_alive_together(monkeypatch):
    """By hand: two of three buffers live together; views and results in place are nothing new."""
    monkeypatch.setattr(memory.peers, "DEVICE", torch.device("cpu"))

    def step():
        first = torch.zeros(1000)
        first.view(10, 100).add_(1)
        second = first + 1
        del first
        return second + 1

    assert memory.peak_bytes(step) == 4 * 2000
    assert memory.peak_bytes(lambda: None) == 0


@pytest.mark.parametrize("mode", ["plain", "selective"])
def test_the_peak_of_a_step_grows_by_what_is_kept(mode):
    """Two independent counters: tensors that autograd saves, storages that are alive."""
    model = memory.make_model("ours", mode, "toy")

    def forward(num_images):
        return memory.compute_loss(model, "toy", "fp32", num_images)

    assert 1 <= memory.peak_per_image(forward) / memory.kept_per_image(model, forward) < 1.2


def test_the_benchmark(run_benchmark):
    rows = run_benchmark("memory", "--size", "toy")
    assert [row["name"] for row in rows] == [f"{d}, {m}" for d in ("fp32", "bf16") for m in memory.MODES]
    assert all(row["ratio"] >= 0.99 for row in rows)
    assert [row["ratio"] >= 1 / 0.75 for row in rows][4], "bf16, selective"
