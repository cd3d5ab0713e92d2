"""Benchmark: CPU minutes to a val hit@1, from the same photos and ImageNet weights, with one thread.

The candidates are `configs/tf_efficientnet_lite0.yaml`, timm's usual fine-tuning built from timm's parts (its train.py
is not on PyPI), and fastai's `fine_tune`. Every training is a process of its own that adds a row to a CSV file after
each epoch; its CPU time is read when a row appears. All are scored with one view: a photo is right when its most
probable label is one of its labels.
"""

import csv
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import ImageDataset, create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import nn

from tools.base.errors import ResourceError, UsageError
from tools.bench.commands import ROOT
from tools.bench.peers import CONVNET
from tools.bench.rounds import Row, make_row

OURS, LEVELS, COLUMN = "PlantSwin", (0.85, 0.90, 0.92), "hit1"
EPOCHS_PER_MINUTE = {OURS: 13 / 17, "timm": 5 / 19, "fastai": 6 / 24}  # of one core, with 3,000 photos
SIDE, BATCH_SIZE = 224, 32  # of the peers
CONFIG: Any = timm.get_pretrained_cfg(CONVNET)
Curve = list[tuple[float, float]]  # (CPU seconds, hit@1) at the end of every epoch


def measure(args) -> list[Row]:
    """CPU seconds to every level in each round; a ratio is the recipe's time divided by ours in that round."""
    if not args.data_path or not args.weights:
        raise UsageError(f"give --data-path (prepared photos) and --weights (of {CONVNET})")
    curves: dict[str, list[Curve]] = {name: [] for name in args.recipe}
    for number in range(args.rounds):
        for name in args.recipe:
            curves[name].append(follow(name, args, args.folder / f"{name}{number}", seed=number))
    rows = []
    for name, own in curves.items():
        ends = ", ".join(f"{100 * curve[-1][1]:.1f} after {curve[-1][0] / 60:.1f} min" for curve in own)
        rows.append(make_row(name, [curve[-1][0] for curve in own], note=f"ends at hit@1 {ends}"))
        for level in LEVELS:
            taken, ours = ([first(curve, level) for curve in found] for found in (own, curves.get(OURS, own)))
            ratios = [a / b for a, b in zip(taken, ours, strict=True) if a and b] if name != OURS else []
            note = f"{len(taken) - taken.count(None)} of {len(taken)} reach it"
            rows.append(make_row(f"{name}, to {level:.0%}", [t for t in taken if t], ratios, note))
    return rows


def first(curve: Curve, level: float) -> float | None:
    """CPU seconds at the first epoch whose hit@1 reaches `level`."""
    return next((seconds for seconds, hit1 in curve if hit1 >= level), None)


def follow(name: str, args, folder: Path, seed: int) -> Curve:
    """Trains by the recipe `name` for about `args.minutes` in a process of one thread."""
    epochs = max(1, round(EPOCHS_PER_MINUTE[name] * args.minutes))
    words: list[object] = [args.data_path, args.weights, epochs, seed, table := folder / "metrics.csv"]
    command = ["-m", "tools.bench.recipes", name, *words]
    if name == OURS:
        table = folder / CONVNET / "default" / "metrics.csv"
        command = ["main.py", "--cfg", f"configs/{CONVNET}.yaml", "--pretrained", args.weights, "--device", "cpu"]
        command += ["--data-path", args.data_path, "--output", folder, "--opts", "SEED", seed, "DATA.NUM_WORKERS", 0]
        command += ["TRAIN.EPOCHS", epochs, "TRAIN.WARMUP_EPOCHS", min(1.5, epochs / 2)]
    folder.mkdir()
    curve: Curve = []
    argv = ["env", "OMP_NUM_THREADS=1", sys.executable, *map(str, command)]
    with (folder / "log").open("wb") as log, subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log) as process:
        ended, before = False, children_seconds()
        while not ended:
            seconds = cpu_seconds(process.pid)
            ended = process.poll() is not None
            seconds = children_seconds() - before if ended else seconds
            found = [float(row[COLUMN]) for row in csv.DictReader(table.open())] if table.exists() else []
            curve += [(seconds, hit1) for hit1 in found[len(curve) :]]
            time.sleep(0.5)
    if process.returncode or not curve:
        last = ((folder / "log").read_text(errors="replace").strip().splitlines() or ["nothing"])[-1]
        raise ResourceError(f"the training of {name} ended with {process.returncode} and printed: {last}")
    return curve


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, in user and in kernel mode (proc(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children_seconds() -> float:
    """CPU time of the processes that have ended and been waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def train_with_timm(model: nn.Module, data: Path, epochs: int, report: Callable[[nn.Module], None]) -> None:
    """As timm's train.py: RandAugment with milder crops, AdamW, cosine with warm-up, moving average of the weights."""
    augment = {"scale": (0.4, 1.0), "vflip": 0.5, "auto_augment": "rand-m9-mstd0.5-inc1"}
    loader = make_loader(data / "train", is_training=True, **augment)
    ema, criterion = ModelEmaV3(model, decay=0.998), nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = create_optimizer_v2(model, "adamw", lr=2e-3, weight_decay=0.05)
    updates = len(loader)
    schedule = CosineLRScheduler(
        optimizer, epochs * updates, lr_min=1e-5, warmup_t=updates, warmup_lr_init=1e-5, t_in_epochs=False
    )
    for epoch in range(epochs):
        model.train()
        for step, (images, targets) in enumerate(loader, epoch * updates):
            schedule.step_update(step)
            optimizer.zero_grad()
            criterion(model(images), targets).backward()
            optimizer.step()
            ema.update(model)
        report(ema.module)


def train_with_fastai(model: nn.Module, data: Path, epochs: int, report: Callable[[nn.Module], None]) -> None:
    """`fine_tune` with one rate for body and head. By default the body's is a hundredth, and it learns little."""
    from fastai.vision import all as fastai

    class Report(fastai.Callback):
        def after_epoch(self) -> None:
            report(self.learn.model)

    batch = [
        *fastai.aug_transforms(size=SIDE, min_scale=0.4, flip_vert=True),
        fastai.Normalize.from_stats(CONFIG.mean, CONFIG.std),
    ]
    squash = fastai.Resize(SIDE, method="squish")
    options = {"train": "train", "valid": "val", "bs": BATCH_SIZE, "num_workers": 0}
    loaders = fastai.ImageDataLoaders.from_folder(data, item_tfms=squash, batch_tfms=batch, **options)
    fastai.Learner(loaders, model, splitter=body_and_head, cbs=Report(), path=data).fine_tune(epochs, 3e-3, lr_mult=1)


def body_and_head(model: Any) -> list[list[nn.Parameter]]:
    """The parameters before the classifier, and its own."""
    head = list(model.get_classifier().parameters())
    return [[p for p in model.parameters() if all(p is not own for own in head)], head]


def make_loader(folder: Path, **options: Any) -> Any:
    """timm's loader of a split's class folders; a photo with several labels is a sample in each of its folders."""
    size = {"input_size": SIDE, "batch_size": BATCH_SIZE, "use_prefetcher": False, "num_workers": 0}
    options |= size | {"mean": CONFIG.mean, "std": CONFIG.std, "interpolation": "bicubic", "crop_pct": 1.0}
    return create_loader(ImageDataset(str(folder)), **options)


def measure_hit1(model: nn.Module, data: Path) -> float:
    """The share of val photos whose most probable label is one of theirs."""
    loader = make_loader(data / "val")
    with torch.no_grad():
        decided = torch.cat([model.eval()(images).argmax(dim=1) for images, _ in loader]).tolist()
    right: dict[str, bool] = {}
    for number, chosen in enumerate(decided):  # of the photos' copies
        name, target = Path(loader.dataset.filename(number)).name, loader.dataset.reader[number][1]
        right[name] = right.get(name, False) or chosen == target
    return sum(right.values()) / len(right)


def main(name: str, data: str, weights: str, epochs: str, seed: str, table: str) -> None:
    """Trains by a peer's recipe, and writes hit@1 after each epoch into the CSV file `table`."""
    torch.manual_seed(int(seed))
    num_classes = sum(folder.is_dir() for folder in Path(data, "train").iterdir())
    model = timm.create_model(
        CONVNET, pretrained=True, pretrained_cfg_overlay={"file": weights}, num_classes=num_classes
    )

    def report(trained: nn.Module) -> None:
        with Path(table).open("a") as file:
            file.write(f"{'' if file.tell() else COLUMN + chr(10)}{measure_hit1(trained, Path(data))}\n")

    {"timm": train_with_timm, "fastai": train_with_fastai}[name](model, Path(data), int(epochs), report)


if __name__ == "__main__":
    main(*sys.argv[1:])
