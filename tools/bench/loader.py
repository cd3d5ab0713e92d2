"""Benchmark: prepared photos to augmented batches of 224 pixels, against torchvision's ImageFolder."""

import itertools
import shutil
import tempfile
import zipfile
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from timm.data import create_transform
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from configs.load import load
from data.build import augmentation_arguments, build_preprocess, build_train_loader, resume_batches
from data.loading.split import scan_split
from data.loading.transforms import keep_one_bit, ops_of
from tools.base.errors import UsageError
from tools.bench.commands import prepare_sample
from tools.bench.rounds import Row, compare, interleave
from tools.runtime.memory import keep_freed_memory

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH_SIZE = 32
PEER = "torchvision ImageFolder, timm's transform"
MODES = {
    "--cache-mode no": ["DATA.CACHE_MODE", "no"],
    "--cache-mode part": ["DATA.CACHE_MODE", "part"],
    "--cache-mode full": ["DATA.CACHE_MODE", "full"],
    "--zip": ["DATA.ZIP_MODE", "True"],
}
BARS = {"--cache-mode no, one core": 1.3, "--cache-mode full, one core": 1.8}
TIMM_NAMES = {"size": "input_size", "reprob": "re_prob", "remode": "re_mode", "recount": "re_count"}


def measure(args) -> list[Row]:
    """For each number of workers, rows of an epoch by the peer and by each of our modes."""
    keep_freed_memory()  # as main.py does; the peer, in the same process, profits too
    torch.set_num_threads(1)
    num_photos = max(args.photos // BATCH_SIZE * BATCH_SIZE, min(BATCH_SIZE, args.photos))
    rows = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        copy_photos(root, args)
        for workers in args.workers:
            where = f"{workers} workers" if workers else "one core"
            epochs = {f"{PEER}, {where}": make_peer_epoch(root, workers, args.photos)}
            for mode, opts in MODES.items():
                epochs[f"{mode}, {where}"] = make_epoch(root, workers, args.photos, opts)
            rows += compare(interleave(epochs, args.rounds), BARS, num_photos=num_photos)
    return rows


def copy_photos(root: Path, args) -> None:
    """Copies photos, given or drawn, to `root`/train/CODE/ID.jpg, and packs them into `root`/train.zip as well."""
    dataset = Path(args.data_path or prepare_sample(root / "drawn", args.photos, 1, 1))
    found = sorted(dataset.glob("train/*/*.jpg"))
    if len(found) < args.photos:
        raise UsageError(f"--data-path {args.data_path} holds {len(found)} training photos; lower --photos")
    with zipfile.ZipFile(root / "train.zip", "w") as archive:
        for path in found[:: len(found) // args.photos][: args.photos]:
            (root / "train" / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, root / "train" / path.parent.name / path.name)
            archive.write(path, f"{path.parent.name}/{path.name}")


def make_peer_epoch(root: Path, workers: int, num_photos: int) -> Callable[[], object]:
    """An epoch as the course project loads it: the same policy and parameters, Pillow and float32 throughout."""
    config, preprocess = load_config(workers, num_photos)
    arguments = augmentation_arguments(config.DATA, config.AUG, preprocess)
    del arguments["quarter_turns"]  # which timm does not know; they are off
    arguments = {TIMM_NAMES.get(name, name): value for name, value in arguments.items()}
    transform = create_transform(is_training=True, **arguments)
    keep_one_bit(ops_of(transform))  # without it some photos end the epoch
    loader = DataLoader(
        ImageFolder(str(root / "train"), transform),
        config.DATA.BATCH_SIZE,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return lambda: deque(loader, maxlen=0)


def make_epoch(root: Path, workers: int, num_photos: int, opts: list[str]) -> Callable[[], object]:
    """An epoch of ours; every call is the next one, with other draws."""
    config, preprocess = load_config(workers, num_photos, opts)
    split = scan_split(root, "train", config.DATA.ZIP_MODE, follow=config.DATA.FOLLOW_LINKS)
    loader = build_train_loader(config.DATA, config.AUG, split, preprocess, seed=0)
    epochs = itertools.count()
    return lambda: deque(resume_batches(loader, next(epochs), 0), maxlen=0)


def load_config(workers: int, num_photos: int, opts: Sequence[str] = ()) -> tuple:
    """The default config with these workers, and its preprocessing."""
    batch_size = str(min(BATCH_SIZE, num_photos))
    config = load(None, ["DATA.NUM_WORKERS", str(workers), "DATA.BATCH_SIZE", batch_size, *opts]).config
    return config, build_preprocess(config.DATA, config.TEST, MEAN, STD)
