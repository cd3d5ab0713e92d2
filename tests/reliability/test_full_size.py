"""The shipped configs as they are, at full size, through the commands of the README, with a stop in between.

Each command is a process of its own, in a folder that has only photos and a weight file. The photos are real ones
where PLANT_DATASET has some, else drawn; the weights are random, in the layout of Microsoft's files, with all names and
buffers taken from timm's Swin. What each command took is printed: seconds, and the largest resident size of a process.
"""

import contextlib
import csv
import re
import shutil
import subprocess
import sys
import time
from collections import Counter, OrderedDict
from pathlib import Path

import pytest
import timm
import torch
from conftest import ROOT, SHARED
from runs import digest
from yacs.config import CfgNode

from data.sample.write import write_sample


def call(folder: Path, script: str, *arguments: object, code: int = 0) -> str:
    """The output of a command that works in `folder` and must exit with `code`."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    started, peak = time.monotonic(), 0
    with (folder / "output.txt").open("w+") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            high_water = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
            peak = int(high_water[1]) if high_water else peak
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
        output.seek(0)
        text = output.read()
    print(f"{script} {' '.join(map(str, arguments))}: {time.monotonic() - started:.0f} s, {peak / 1024:.0f} MB")
    assert process.returncode == code, text
    return text


def choose(split: str, skip: int, quota: int) -> list[tuple[str, str]]:
    """Rows (photo, labels) of a real split with every label `quota` times, after as many for the first `skip` such."""
    with (SHARED / split / f"{split}_label.csv").open(newline="") as file:
        rows = [(row["images"], row["labels"]) for row in csv.DictReader(file)]
    for _ in range(skip + 1):
        chosen, counts = [], Counter()
        for image, labels in rows:
            if all(counts[label] < quota for label in labels.split()):
                chosen.append((image, labels))
                counts.update(labels.split())
        rows = [row for row in rows if row not in chosen]
    return chosen


def write_real(folder: Path, quotas: dict[str, int]) -> None:
    """A data set in the course's raw layout; the test photos are validation photos too, but others."""
    for split, (source, skip) in {"train": ("train", 0), "val": ("val", 0), "test": ("val", 1)}.items():
        (folder / split / "images").mkdir(parents=True)
        rows = choose(source, skip, quotas[split])
        for image, _ in rows:
            shutil.copyfile(SHARED / source / "images" / image, folder / split / "images" / image)
        with (folder / split / f"{split}_label.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("images", "labels"), *rows])


@pytest.fixture(scope="module")
def prepared(times, tmp_path_factory):
    """(label copies per label) -> a folder with `dataset` in it, as process_dataset.py makes it."""
    times(0, 1)
    made = {}

    def prepare(quota: int) -> Path:
        if quota not in made:
            made[quota] = folder = tmp_path_factory.mktemp(f"photos{quota}")
            quotas = {"train": quota, "val": max(2, quota // 2), "test": max(2, quota // 2)}
            if SHARED.is_dir():
                write_real(folder / "plant_dataset", quotas)
            else:
                write_sample(folder / "plant_dataset", 0, {name: 6 * number for name, number in quotas.items()})
            call(folder, "process_dataset.py", "--src", "plant_dataset", "--dst", "dataset")
        return made[quota]

    return prepare


@pytest.fixture
def home(prepared, tmp_path):
    """(label copies per label) -> a folder of this test's own with the photos, and nothing else."""

    def make(quota: int) -> Path:
        (tmp_path / "dataset").symlink_to(prepared(quota) / "dataset")
        return tmp_path

    return make


def microsoft(name: str, num_classes: int) -> dict:
    """A Swin's random weights as Microsoft's code saves them: with constants, and patches merged at a stage's end."""
    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=num_classes)

    def rename(key: str) -> str:
        parts = key.replace("head.fc.", "head.").split(".")
        if parts[2:3] == ["downsample"]:
            parts[1] = str(int(parts[1]) - 1)
        return ".".join(parts)

    tensors = {**model.state_dict(), **dict(model.named_buffers())}
    assert any(key.endswith("relative_position_index") for key in tensors)
    return OrderedDict((rename(key), value) for key, value in tensors.items())


CASES = {  # config -> label copies per label, flags, updates per epoch
    "swin_tiny_patch4_window7_224": (12, [], 2),
    "swin_tiny_patch4_window7_224_multi": (12, [], 2),
    "swin_small_patch4_window7_224": (2, ["--batch-size", 2], 6),
    "swin_base_patch4_window7_224": (2, ["--batch-size", 2], 6),
    "swin_base_patch4_window12_384": (2, ["--batch-size", 2], 6),
}


@pytest.mark.parametrize("name", CASES)
def test_a_shipped_config_at_full_size(name, home):
    quota, flags, updates = CASES[name]
    folder, model, tag = home(quota), name.removesuffix("_multi"), "multi" if name.endswith("_multi") else "default"
    torch.save({"model": microsoft(model, 1000)}, folder / f"{model}.pth")
    train = ["main.py", "--cfg", ROOT / "configs" / f"{name}.yaml", *flags]
    stop = ["--opts", "TRAIN.MAX_STEPS"]
    whole = ""
    if not flags:  # the run that is never stopped; before the other, which test.py takes as the newest
        call(folder, *train, "--output", "whole", *stop, updates + 1)
        whole = digest(folder / "whole" / model / tag)
    said = call(folder, *train, *stop, 1)
    assert "Microsoft's layout" in said
    assert "head of 1000 classes: replaced by a new one of 6" in said
    assert f"{updates} updates per epoch" in said
    said = call(folder, *train, *stop, updates + 1)
    assert f"at step 1 of {updates * (100 if tag == 'multi' else 300)}" in said
    assert f"stopped at step {updates + 1} of" in said
    run = folder / "output" / model / tag
    assert whole in ("", digest(run))
    said = call(folder, "test.py")
    assert "Overall Accuracy: " in said
    assert (run / "test" / "report.html").stat().st_size > 10_000
    call(folder, "visual.py", "--examples", 2)
    photo = next((folder / "dataset" / "test" / "000010").iterdir())
    call(folder, "visual.py", "--image", photo, "--classic")
    assert len(list((run / "heatmaps").glob(f"{photo.stem}_*_cam.png"))) == 1


def test_a_checkpoint_of_the_course_project_at_full_size(home):
    """Its six classes stay; with the yacs node, the optimizer, the scheduler and apex's scaler beside the weights."""
    folder, name = home(12), "swin_tiny_patch4_window7_224"
    weights = microsoft(name, 6)
    moments = {
        number: {"step": 7, "exp_avg": torch.zeros_like(value), "exp_avg_sq": torch.ones_like(value)}
        for number, value in enumerate(weights.values())
    }
    content = {
        "model": weights,
        "optimizer": {"state": moments, "param_groups": [{"lr": 3.1e-5, "params": list(moments)}]},
        "lr_scheduler": {"t_initial": 30300, "base_values": [3.1e-5, 3.1e-5]},
        "max_accuracy": 88.49,
        "epoch": 299,
        "config": CfgNode({"BASE": [""], "MODEL": CfgNode({"NAME": name}), "AMP_OPT_LEVEL": "O1"}),
        "amp": {"loss_scaler0": {"loss_scale": 65536.0, "unskipped": 12}},
    }
    torch.save(content, folder / "ckpt_epoch_299.pth")
    train = ["main.py", "--cfg", ROOT / "configs" / f"{name}.yaml", "--pretrained", "ckpt_epoch_299.pth"]
    said = call(folder, *train, "--opts", "TRAIN.MAX_STEPS", 2)
    assert "ckpt_epoch_299.pth, Microsoft's layout, 173 tensors; none changed" in said
    assert "stopped at step 2 of 600" in said
    assert "Overall Accuracy: " in call(folder, "test.py")
    said = call(folder, "test.py", "--resume", "ckpt_epoch_299.pth", code=4)
    assert said.count("\n") == 1
    assert "--pretrained" in said
