"""Real torchrun with gloo: two ranks are one process with the same global batch."""

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import main
from tools.checkpoint import read
from tools.distributed import Ranks, ranks_from_environment
from tools.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent


def torchrun(*arguments, ranks=2):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={ranks}",
        *map(str, arguments),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=env)


def history(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("targets", ["multi", "single"])
def test_two_ranks_train_and_score_like_one(tiny, dataset, tmp_path, targets):
    """Mixup, CutMix and stochastic depth are on; 13 validation photos do not divide by two."""
    common = [
        "--cfg",
        tiny,
        "--data-path",
        dataset,
        "--opts",
        "DATA.TARGETS",
        targets,
        "PRINT_FREQ",
        "1",
        "TRAIN.ACCUMULATION_STEPS",
        "2",
    ]
    assert main.main([str(a) for a in (*common, "--output", tmp_path / "one", "--batch-size", "8")]) == 0
    result = torchrun("main.py", *common, "--output", tmp_path / "two", "--batch-size", "4")
    assert result.returncode == 0, result.stderr[-2000:]
    one, two = tmp_path / "one" / "tiny" / "default", tmp_path / "two" / "tiny" / "default"
    for a, b in zip(history(one), history(two), strict=True):
        for key in ("train_loss", "val_loss"):
            assert float(a[key]) == pytest.approx(float(b[key]), abs=1e-4)
        for key in ("step", "lr", "accuracy", "hit1", "exact", "macro_f1"):
            assert float(a[key]) == pytest.approx(float(b[key])), key
    for a, b in zip(read(one / "last.pth")["model"].values(), read(two / "last.pth")["model"].values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-2)
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in two.iterdir()), "one rank writes"
    assert (two / "log.txt").read_text().count("EPOCH 0 training takes") == 1


def test_one_bad_photo_ends_both_ranks(tiny, dataset, tmp_path):
    import shutil

    own = shutil.copytree(dataset, tmp_path / "own", ignore=shutil.ignore_patterns("*.json"))
    victim = next((own / "train" / "000001").iterdir())
    victim.write_bytes(victim.read_bytes()[:500])
    result = torchrun("main.py", "--cfg", tiny, "--data-path", own, "--output", tmp_path / "out", "--batch-size", "4")
    assert result.returncode != 0
    assert f"error: image {own}/train/000001/{victim.name}" in result.stderr


def test_the_environment_is_read_strictly():
    assert ranks_from_environment({}) == Ranks(0, 1, 0)
    assert ranks_from_environment({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}) == Ranks(3, 4, 1)
    for broken in (
        {"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        {"RANK": "0"},
        {"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        {"RANK": "0", "WORLD_SIZE": "1_0", "LOCAL_RANK": "0"},
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "-1"},
        {"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": ""},
    ):
        with pytest.raises(UsageError):
            ranks_from_environment(broken)


@pytest.mark.parametrize(
    ("address", "port", "code", "words"),
    [
        ("", "29500", 2, "no place to meet"),
        ("127.0.0.1", "x", 2, "no place to meet"),
        ("127.0.0.1", "99999", 2, "no place to meet"),
        ("127.0.0.1", "taken", 5, "cannot meet at 127.0.0.1"),
    ],
)
def test_ranks_that_cannot_meet_say_so(refused, monkeypatch, tiny, dataset, tmp_path, address, port, code, words):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environment = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": address, "MASTER_PORT": port}
        for name, value in environment.items():
            monkeypatch.setenv(name, str(taken.getsockname()[1]) if value == "taken" else value)
        refused(main.main, ["--cfg", tiny, "--data-path", dataset, "--output", tmp_path / "out"], code, words)
