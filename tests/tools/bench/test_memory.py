"""What a Swin-T keeps for its backward pass, in bytes, beside timm's; and that the counters count."""

import json

import pytest
import torch
from torch import nn

from tools.bench import memory
from tools.commands.bench import main
from tools.train.budget import kept_bytes, peak_an_image, peak_bytes

CPU = torch.device("cpu")


def swin_t(kind, mode, dtype="bf16"):
    return memory.bytes_an_image(memory.make_model(kind, mode, "swin_t"), "swin_t", dtype)


def test_swin_t_in_training_keeps_what_is_promised():
    """bf16 autocast; the counts are in bytes and the same on every machine."""
    timms, timms_checkpointed = swin_t("timm", "plain"), swin_t("timm", "checkpoint")
    assert swin_t("ours", "selective") <= 0.75 * timms
    assert swin_t("ours", "checkpoint") <= timms_checkpointed
    assert swin_t("ours", "plain") <= 1.01 * timms
    assert timms == pytest.approx(59.1 * 2**20, rel=0.1), "another timm keeps something else: look at the bars"


def test_kept_tensors_are_counted_once_and_weights_not_at_all():
    """By hand: Linear keeps its input, ReLU its result, which the second Linear's input is; 4 bytes each."""
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    images = torch.randn(2, 5)
    assert kept_bytes(model, lambda: model(images)) == 4 * 2 * (5 + 7)
    assert kept_bytes(model, lambda: model(images).square().sum()) == 4 * 2 * (5 + 7 + 3)


def test_the_peak_is_that_of_what_lives_at_a_time():
    """By hand: two of three buffers live together; views and results in place are nothing new."""

    def step():
        first = torch.zeros(1000)
        first.view(10, 100).add_(1)
        second = first + 1
        del first
        return second + 1

    assert peak_bytes(step, CPU) == 4 * 2000
    assert peak_bytes(lambda: None, CPU) == 0


@pytest.mark.parametrize("mode", ["plain", "selective"])
def test_the_peak_of_a_step_grows_by_what_is_kept(mode):
    """Two counters that know nothing of each other: tensors that autograd saves, storages that are alive."""
    model = memory.make_model("ours", mode, "toy")
    grown = peak_an_image(lambda images: memory.loss_of(model, "toy", "fp32", images).backward(), CPU)
    assert 1 <= grown / memory.bytes_an_image(model, "toy", "fp32") < 1.2


def test_the_ruler(tmp_path):
    assert main(["memory", "--size", "toy", "--peak-batch", "0", "--json", str(tmp_path / "rows.json")]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["name"] for row in rows] == [f"{d}, {m}" for d in ("fp32", "bf16") for m in memory.MODES]
    assert [row["bar"] for row in rows] == [None, None, None, None, 1 / 0.75, 1.0]
    assert all(row["ratio"] >= (row["bar"] or 0.99) for row in rows)
