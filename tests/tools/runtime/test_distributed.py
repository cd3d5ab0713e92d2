"""Real torchrun with gloo: two ranks are one process with the same global batch."""

import csv
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

import main
import test as referee
from tools.base.errors import UsageError
from tools.checkpoint.store import read
from tools.runtime.distributed import Ranks, ranks_from_environment


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
    assert (two / "log.txt").read_text().count("EPOCH 1 training takes") == 1


def test_two_ranks_are_examined_together(tiny, dataset, tmp_path):
    """42 photos are five global batches of 4 on each rank; one rank talks, none writes."""
    arguments = ["--cfg", tiny, "--data-path", dataset, "--output", tmp_path / "out", "--batch-size", "4", "--check"]
    result = torchrun("main.py", *arguments)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.count("ok   run folder: ") == 1
    assert "a run would start 10 updates" in result.stdout
    assert "2 update(s) of 8 images" in result.stdout
    assert not list(tmp_path.iterdir())


GATHER = """
import sys, numpy as np, torch
from data.loading.samplers import Shard, eval_batches
from tools.runtime.precision import NativePrecision
from tools.runtime.distributed import process_group, ranks_from_environment
from tools.evaluate.inference import predict
from tools.evaluate.metrics import score
device, ranks, results = torch.device("cpu"), ranks_from_environment(), {}
with process_group(ranks, "gloo", device, 60):
    for n in range(1, 41):
        rng = np.random.default_rng(n)
        logits, truth = (torch.tensor(rng.random((n, 6)), dtype=torch.float32) for _ in range(2))
        mine = eval_batches(n, 4, Shard(ranks.rank, ranks.world_size))
        batches = [(logits[i][..., None, None], truth[i] > 0.7) for i in mine]
        found, truth = predict(torch.nn.Flatten(), batches, device, NativePrecision("cpu", None), 6)
        counts = [[row["n"], row["right"]] for row in score(found, found > 0.5, truth)["per_class"]]
        results[str(n)] = found, truth, counts
arrays = {f"{n}{k}": v for n, parts in results.items() for k, v in enumerate(parts)}
np.savez(f"{sys.argv[1]}/rank{ranks.rank}.npz", **arrays)
"""


def counted(logits, truth):
    """Copies of every class, and right ones, in the plainest way."""
    top = [max(range(6), key=list(row).__getitem__) for row in logits]
    return [
        [sum(t[c] for t in truth), sum(t[c] and best == c for t, best in zip(truth, top, strict=True))]
        for c in range(6)
    ]


def test_one_to_forty_photos_come_back_whole_and_in_order_on_both_ranks(tmp_path):
    """The logits, and what is counted of them for every class; on one rank as well."""
    (tmp_path / "gather.py").write_text(GATHER)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for folder, launcher in (
        ("one", []),
        ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]),
    ):
        (tmp_path / folder).mkdir()
        command = [sys.executable, *launcher, tmp_path / "gather.py", tmp_path / folder]
        subprocess.run(command, cwd=ROOT, check=True, timeout=300, env=env)
    for name in ("one/rank0", "two/rank0", "two/rank1"):
        found = np.load(tmp_path / f"{name}.npz")
        for n in range(1, 41):
            rng = np.random.default_rng(n)
            logits, truth = rng.random((n, 6)).astype(np.float32), rng.random((n, 6)).astype(np.float32) > 0.7
            assert (found[f"{n}0"] == logits).all()
            assert (found[f"{n}1"] == truth).all()
            assert found[f"{n}2"].tolist() == counted(logits, truth)


def test_the_referee_says_the_same_with_two_ranks(trained, dataset, tmp_path):
    """14 photos, then one: metrics.json and predictions.csv."""
    few = tmp_path / "few" / "test" / "000001"
    few.mkdir(parents=True)
    photo = sorted((dataset / "test" / "000001").iterdir())[0]
    (few / photo.name).write_bytes(photo.read_bytes())
    for data in (dataset, tmp_path / "few"):
        common = ["--resume", trained / "best.pth", "--data-path", data, "--batch-size", "4", "--to"]
        assert referee.main([str(a) for a in (*common, tmp_path / "one")]) == 0
        result = torchrun("test.py", *common, tmp_path / "two")
        assert result.returncode == 0, result.stderr
        one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
        one, two = ({k: v for k, v in flat(m)} for m in (one, two))
        assert one.keys() == two.keys()
        for key, value in one.items():
            assert two[key] == (pytest.approx(value, abs=1e-5) if isinstance(value, float) else value), key
        rows = [(tmp_path / name / "predictions.csv").read_text().splitlines() for name in ("one", "two")]
        assert [row.split(",")[:2] for row in rows[0]] == [row.split(",")[:2] for row in rows[1]]


def flat(value, name=""):
    """(dotted name, plain value) of everything in a JSON document."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from flat(inner, f"{name}.{key}")
    else:
        yield name, value


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
        ("", "29500", 2, "not an address"),
        ("127.0.0.1", "x", 2, "not an address"),
        ("127.0.0.1", "99999", 2, "not an address"),
        ("127.0.0.1", "taken", 5, "cannot connect at 127.0.0.1"),
    ],
)
def test_ranks_that_cannot_meet_say_so(refused, monkeypatch, tiny, dataset, tmp_path, address, port, code, words):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environment = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": address, "MASTER_PORT": port}
        for name, value in environment.items():
            monkeypatch.setenv(name, str(taken.getsockname()[1]) if value == "taken" else value)
        refused(main.main, ["--cfg", tiny, "--data-path", dataset, "--output", tmp_path / "out"], code, words)
