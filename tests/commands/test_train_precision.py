"""main.py in every precision: close to fp32, stopped and resumed to the same bits, and never resumed in another one."""

import csv

import pytest
import torch

import main
from tools.checkpoint import store
from tools.checkpoint.store import read

ONE_EPOCH = ("TRAIN.EPOCHS", "1", "TRAIN.WARMUP_EPOCHS", "0")


def last(folder):
    return read(folder / "last.pth")


def train_loss(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return float(next(csv.DictReader(file))["train_loss"])


def rewrite(path, **changes):
    """Writes the checkpoint at `path` again with some entries changed, or removed where they are None."""
    content = {key: value for key, value in (read(path) | changes).items() if value is not None}
    path.unlink()
    store.write(path, content)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_mixed_precision_trains_and_stays_close_to_fp32(train, dtype):
    _, plain = train("plain", *ONE_EPOCH, "AMP.OPT_LEVEL", "O0")
    code, mixed = train(dtype, *ONE_EPOCH, "AMP.DTYPE", dtype, flags=["--amp-opt-level", "O1"])
    assert code == 0
    assert f"{dtype} autocast" in (mixed / "log.txt").read_text()
    assert train_loss(mixed) != train_loss(plain)
    assert train_loss(mixed) == pytest.approx(train_loss(plain), abs=0.03)
    assert bool(last(mixed)["scaler"]) == (dtype == "fp16")


def test_on_a_cpu_amp_not_asked_for_is_fp32_with_one_notice(trained):
    log = (trained / "log.txt").read_text()
    assert log.count("no GPU: training in fp32") == 1


def test_apex_is_said_to_be_missing(refused, tiny, dataset):
    arguments = ["--cfg", tiny, "--data-path", dataset, "--amp-opt-level", "O1", "--opts", "AMP.BACKEND", "apex"]
    refused(main.main, arguments, 2, "amp not installed", "25.05")


def test_a_run_is_not_resumed_in_another_precision(train, capsys):
    """On a card without bf16, AMP.DTYPE auto means fp16: the config is the same, and the result is not."""
    opts = ["TRAIN.MAX_STEPS", "2"]
    _, folder = train("moved", *opts)
    assert last(folder)["precision"] == "fp32"
    rewrite(folder / "last.pth", precision="bf16 autocast")
    capsys.readouterr()
    assert train("moved")[0] == 4
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "was trained in bf16 autocast, and AMP.OPT_LEVEL and AMP.DTYPE mean fp32 on this machine" in line
    assert train("moved", flags=["--allow-change", "AMP.OPT_LEVEL"])[0] == 0


def test_a_checkpoint_that_does_not_name_its_precision_is_resumed(train):
    """As one of an earlier version."""
    _, whole = train("whole")
    _, folder = train("old", "TRAIN.MAX_STEPS", "2")
    rewrite(folder / "last.pth", precision=None)
    assert train("old")[0] == 0
    assert all(torch.equal(last(folder)["model"][name], weight) for name, weight in last(whole)["model"].items())
