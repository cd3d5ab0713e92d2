"""main.py --check for real: what it says of a good run, every kind of refusal, and that it leaves no trace."""

import os
import re
import shutil
from importlib import metadata

import pytest
import torch

import main
from data.build import check_shared_memory
from tools.base.errors import ResourceError
from tools.base.files import locked
from tools.runtime import environment
from tools.train import parts, preflight
from tools.train.loop import Progress
from tools.train.preflight import _seconds_per_step, forecast
from tools.train.run import Plan


@pytest.fixture
def argv(tiny, dataset, tmp_path):
    """The command line of a tiny run under tmp_path/out."""
    return [str(a) for a in ("--cfg", tiny, "--data-path", dataset, "--output", tmp_path / "out")]


def tree(*roots):
    """Every file and folder below, with what a write or a touch would change."""
    paths = [path for root in roots for path in (root, *root.rglob("*"))]
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_ctime_ns, path.lstat().st_size) for path in paths}


def said(capsys):
    """Part -> its "ok" line."""
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(("ok   ", "note ")) for line in lines), lines
    return dict(line[5:].split(": ", 1) for line in lines if line.startswith("ok"))


def test_a_good_run_is_examined_in_order_and_nothing_is_touched(argv, dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path, dataset)
    assert main.main([*argv, "--check"]) == 0
    assert tree(tmp_path, dataset) == before
    parts = said(capsys)
    assert list(parts) == ["environment", "config", "data set", "weights", "run folder", "trial", "forecast"]
    assert f"torch {metadata.version('torch')}, " in parts["environment"]
    assert "1 by --data-path, " in parts["config"]
    assert "train: 42 photos, " in parts["data set"]
    assert "val: 13 photos, " in parts["data set"]
    assert parts["weights"] == "fresh weights"
    assert parts["run folder"].endswith("a run would start 10 updates")
    assert re.search(r"2 update\(s\) of 8 images: \d+\.\d\d s, then \d+\.\d\d s; loss \d", parts["trial"])
    assert "per epoch of 5 updates" in parts["forecast"]


def test_the_forecast_of_checkpoints_is_their_size(argv, trained, capsys):
    """Against the files that such a run has left. What is not weights or moments takes some 40 kB of this tiny one."""
    assert main.main([*argv, "--check", "--opts", "DATA.TARGETS", "multi"]) == 0
    sizes = re.search(r"last.pth (\S+) MiB, best.pth (\S+) MiB", said(capsys)["forecast"]).groups()
    for size, name in zip(sizes, ("last.pth", "best.pth"), strict=True):
        assert float(size) == pytest.approx((trained / name).stat().st_size / 2**20, abs=0.15)


def test_a_run_that_would_be_resumed_is_tried_where_it_stands(argv, tmp_path, refused, capsys):
    opts = ["--opts", "DATA.NUM_WORKERS", "1", "TRAIN.MAX_STEPS"]
    assert main.main([*argv, *opts, "3"]) == 0
    folder = tmp_path / "out" / "tiny" / "default"
    whole = (folder / "last.pth").read_bytes()
    shutil.copyfile(folder / "last.pth", folder / "previous.pth")
    (folder / "last.pth").write_bytes(whole[: len(whole) // 2])
    before = tree(tmp_path)
    capsys.readouterr()
    assert main.main([*argv, "--check"]) == 0
    lines = capsys.readouterr().out
    assert f"a run would resume {folder / 'previous.pth'} at step 3 of 10" in lines
    assert f"note run folder: {folder / 'last.pth'} is " in lines
    assert "for the 7 updates to go" in lines
    assert main.main([*argv, "--check", *opts, "3"]) == 0
    assert "nothing left to do" in said(capsys)["run folder"]
    refused(main.main, [*argv, "--check", "--batch-size", "16"], 2, "DATA.BATCH_SIZE 8 -> 16")
    refused(main.main, [*argv, "--check", "--opts", "TRAIN.AUTO_RESUME", "false"], 2, "holds a run")
    assert main.main([*argv, "--check", "--overwrite", "--batch-size", "16"]) == 0
    assert "start 4 updates and replace the run that is there" in said(capsys)["run folder"]
    assert tree(tmp_path) == before


def test_the_first_error_ends_it_and_leaves_no_trace(argv, refused, trained, tmp_path, monkeypatch):
    (tmp_path / "bad.pth").write_bytes((trained / "best.pth").read_bytes()[:-1000])
    before = tree(tmp_path)
    check = [*argv, "--check"]
    refused(main.main, [*check, "--data-path", tmp_path / "nowhere"], 3, "nowhere/train", "process_dataset.py")
    refused(main.main, [*check, "--pretrained", tmp_path / "bad.pth"], 4, "bad.pth")
    refused(main.main, [*check, "--batch-size", "64"], 2, "do not fill one batch")
    refused(main.main, [*check, "--output", argv[3]], 2, "inside the other")
    refused(main.main, [*check, "--eval"], 2, "--check", "not allowed with")
    lr = ["--opts", "TRAIN.BASE_LR", "1e6", "TRAIN.WARMUP_EPOCHS", "0", "TRAIN.CLIP_GRAD", "0", "TRAIN.MIN_LR", "1"]
    refused(main.main, [*check, *lr, "AUG.MIXUP", "0"], 6, "not finite", "TRAIN.BASE_LR")
    full = type("usage", (), {"free": 2**10})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    refused(main.main, check, 5, f"no space at {tmp_path}: the checkpoints", "--output")
    refused(main.main, [*check, "--opts", "DATA.NUM_WORKERS", "2"], 5, "/dev/shm", "DATA.NUM_WORKERS")
    assert tree(tmp_path) == before


def test_who_has_the_run_folder_is_told_and_its_lock_is_left_alone(argv, refused, tmp_path):
    folder = tmp_path / "out" / "tiny" / "default"
    with locked(folder):
        before = tree(tmp_path)
        refused(main.main, [*argv, "--check"], 7, f"in use by process {os.getpid()} on ", "--tag")
        assert tree(tmp_path) == before


def test_memory_that_a_batch_does_not_fit_into_is_noted(argv, monkeypatch, capsys):
    """A stand-in for the GPU: a model that refuses more than three images."""
    build = preflight.prepare_run

    def small(*args, **kwargs):
        loaded, run = build(*args, **kwargs)
        run.state.module.register_forward_pre_hook(refuse)
        return loaded, run

    def refuse(_module, inputs):
        if len(inputs[0]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(preflight, "prepare_run", small)
    monkeypatch.setattr(preflight, "predict", lambda *_: None)
    assert main.main([*argv, "--check"]) == 0
    assert "note trial: only 2 of a batch's 8 images fit into memory at once" in capsys.readouterr().out


def test_weights_of_the_hub_are_named_and_not_fetched(argv, monkeypatch, capsys):
    monkeypatch.setattr(parts, "find_pretrained", lambda *_: "tiny")
    assert main.main([*argv, "--check", "--pretrained", "auto"]) == 0
    assert said(capsys)["weights"].startswith("a run would take tiny from timm's hub")


def test_the_forecast_by_hand():
    """Two epochs of 5 updates are left but for 3 updates: 7 x 10 s and two validations of 30 s; an epoch is 80 s."""
    plan = Plan(epochs=2, num_batches=5, accumulation_steps=1, images_per_update=8)
    line = forecast(plan, Progress(8, step=3), 10.0, 30.0, (3 * 2**20, 2**19))
    assert line == (
        "about 0:01:20 per epoch of 5 updates, validation included, and 0:02:10 for the 7 updates to go; "
        "last.pth 3.0 MiB, best.pth 0.5 MiB"
    )


@pytest.mark.parametrize(
    ("seconds", "waited", "load", "workers", "pace"),
    [
        (3.0, 1.0, 1.0, 0, 3.0),  # alone: one thing after the other
        (3.0, 1.0, 1.0, 2, 2.0),  # computing takes longest
        (3.0, 1.0, 8.0, 2, 4.0),  # two processes bring a batch every 4 s
    ],
)
def test_loader_processes_work_beside_the_update(seconds, waited, load, workers, pace):
    assert _seconds_per_step(seconds, waited, load, workers) == pace


def test_two_opencvs_and_missing_packages_are_reported_before_torch_is_needed(argv, refused, monkeypatch):
    installed = {name: metadata.version(name) for name in (*environment.PACKAGES, "opencv-python-headless")}

    def version(name):
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)
    assert environment.check_packages().endswith(f"timm {installed['timm']}")
    installed["opencv-python"] = "4.11.0"
    refused(main.main, [*argv, "--check"], 5, "opencv-python and opencv-python-headless", "pip uninstall")
    del installed["timm"]
    refused(main.main, [*argv, "--check"], 5, "timm not installed; run pip install -r")


def test_shared_memory_holds_every_batch_that_waits():
    """Two processes with two batches each of 100 bytes."""
    check_shared_memory(2, 100, free=400)
    with pytest.raises(ResourceError, match="2 loader processes"):
        check_shared_memory(2, 100, free=399)
