"""main.py in every precision: close to fp32, stopped and resumed to the same bits, and never resumed in another one."""

import csv

import pytest
import torch
from apex_stand_in import install

import main
from tools.checkpoint import store
from tools.checkpoint.store import read
from tools.runtime.precision import ApexPrecision
from tools.train import setup

ONE_EPOCH = ("TRAIN.EPOCHS", "1", "TRAIN.WARMUP_EPOCHS", "0")


@pytest.fixture
def apex(monkeypatch):
    """Makes main.py train with apex's stand-in at a level: on the CPU, past the check that there is a GPU."""

    def use(level):
        install(monkeypatch)
        monkeypatch.setattr(setup, "choose_precision", lambda *_: (ApexPrecision(level), ""))

    return use


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
    assert log.count("on a CPU: training in fp32") == 1


def test_apex_is_said_to_be_missing(refused, tiny, dataset):
    arguments = ["--cfg", tiny, "--data-path", dataset, "--amp-opt-level", "O1", "--opts", "AMP.BACKEND", "apex"]
    refused(main.main, arguments, 2, "amp not installed", "25.05")


@pytest.mark.parametrize("level", ["O1", "O2"])
def test_apex_moves_the_weights_as_fp32_does(train, trained, apex, level):
    """With sgd, whose step is proportional to the gradient; accumulation and checkpointing use apex's hooks most.

    O2 begins with weights rounded to fp16, so the learning rate is large.
    """
    opts = [*ONE_EPOCH, "TRAIN.OPTIMIZER.NAME", "sgd", "TRAIN.ACCUMULATION_STEPS", "2", "TRAIN.USE_CHECKPOINT", "True"]
    opts += ["TRAIN.BASE_LR", "10", "TRAIN.CLIP_GRAD", "0.5"]
    flags = ["--pretrained", trained / "best.pth"]
    _, plain = train("plain", *opts, "AMP.OPT_LEVEL", "O0", flags=flags)
    apex(level)
    code, mixed = train(level, *opts, flags=flags)
    assert code == 0
    assert f"apex {level}" in (mixed / "log.txt").read_text()
    assert (last(mixed)["skipped"], last(mixed)["precision"]) == (0, f"apex {level}")
    start, wanted, found = read(trained / "best.pth")["model"], last(plain)["model"], last(mixed)["model"]
    if level == "O2":  # the model's weights are fp16
        names = [name for group in last(mixed)["optimizer"]["param_groups"] for name in group["names"]]
        found = dict(zip(names, last(mixed)["scaler"]["masters"], strict=True))
    moved = torch.cat([(wanted[name] - start[name]).flatten() for name in found])
    apart = torch.cat([(wanted[name] - found[name]).flatten() for name in found])
    assert 0 < apart.norm() < 0.01 * moved.norm()


@pytest.mark.parametrize("level", ["O1", "O2"])
def test_apex_stopped_and_resumed_is_never_stopped(train, apex, level):
    """The moments of AdamW that fp16 rounds to zero, and the part of the weights that fp16 does not hold, come back."""
    apex(level)
    _, whole = train("whole")
    apex(level)
    train("cut", "TRAIN.MAX_STEPS", "3")
    apex(level)
    assert train("cut")[0] == 0
    for key in ("model", "optimizer", "scaler"):
        found, wanted = (dict(store.named_tensors(last(folder)[key])) for folder in (whole, whole.parent / "cut"))
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in found), key
    assert (len(last(whole)["scaler"]["masters"]) > 0) == (level == "O2")
    assert last(whole)["scaler"]["loss_scaler0"] == last(whole.parent / "cut")["scaler"]["loss_scaler0"]


def test_apex_o2_has_no_moving_average(refused, tiny, dataset):
    arguments = ["--cfg", tiny, "--data-path", dataset, "--amp-opt-level", "O2"]
    arguments += ["--opts", "AMP.BACKEND", "apex", "TRAIN.EMA_DECAY", "0.9"]
    refused(main.main, arguments, 2, "TRAIN.EMA_DECAY 0.9 cannot average the fp16 weights", "AMP.BACKEND native")


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
