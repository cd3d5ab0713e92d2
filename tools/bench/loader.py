"""Benchmark: prepared photos to augmented batches of 224 pixels, against torchvision's ImageFolder."""

import itertools
from collections import deque
from collections.abc import Callable
from pathlib import Path

import torch
from timm.data import create_transform
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from configs.load import load
from data.build import augmentation_arguments, build_preprocess, build_train_loader, resume_batches
from data.loading.batches import Normalize
from data.loading.split import scan_split
from data.loading.transforms import keep_one_bit, ops_of
from tools.base.errors import UsageError
from tools.bench.commands import prepare_sample
from tools.bench.rounds import Row, compare, interleave
from tools.runtime.memory import keep_freed_memory

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH_SIZE = 32
PEER = "torchvision ImageFolder, timm's transform"
MODES = {f"--cache-mode {mode}": ["DATA.CACHE_MODE", mode] for mode in ("no", "full")}


def measure(args) -> list[Row]:
    """For each number of workers, rows of an epoch by the peer and by each of our modes."""
    keep_freed_memory()  # as main.py does; the peer, in the same process, profits too
    torch.set_num_threads(1)
    dataset = Path(args.data_path or prepare_sample(args.folder, args.photos, 1, 1))
    num_photos = len(list(dataset.glob("train/*/*.jpg")))
    if not num_photos:
        raise UsageError(f"--data-path {args.data_path} holds no train/CLASS/ID.jpg")
    batch_size, rows = min(BATCH_SIZE, num_photos), []
    for workers in args.workers:
        opts = ["DATA.NUM_WORKERS", str(workers), "DATA.BATCH_SIZE", str(batch_size)]
        epochs = {PEER: make_peer_epoch(dataset, opts)}
        epochs |= {mode: make_epoch(dataset, [*opts, *setting]) for mode, setting in MODES.items()}
        where = f"{workers} workers" if workers else "one core"
        taken = interleave({f"{name}, {where}": epoch for name, epoch in epochs.items()}, args.rounds)
        rows += compare(taken, num_photos=num_photos // batch_size * batch_size)
    return rows


def make_peer_epoch(root: Path, opts: list[str]) -> Callable[[], object]:
    """An epoch as the course project loads it: our augmentation settings, with Pillow and float32 throughout."""
    config, preprocess = load_config(opts)
    transform = create_transform(**augmentation_arguments(config.DATA, config.AUG, preprocess), is_training=True)
    keep_one_bit(ops_of(transform))  # without it, some photos raise an error
    folder, workers = ImageFolder(str(root / "train"), transform), config.DATA.NUM_WORKERS
    options = {"num_workers": workers, "persistent_workers": workers > 0}
    loader = DataLoader(folder, config.DATA.BATCH_SIZE, shuffle=True, drop_last=True, **options)
    return lambda: deque(loader, maxlen=0)


def make_epoch(root: Path, opts: list[str]) -> Callable[[], object]:
    """Our epoch; every call runs the next one, with other random draws."""
    config, preprocess = load_config(opts)
    split = scan_split(root, "train", config.DATA.ZIP_MODE, follow=config.DATA.FOLLOW_LINKS)
    loader = build_train_loader(config.DATA, config.AUG, split, preprocess, seed=0)
    finish, epochs = Normalize(preprocess.mean, preprocess.std), itertools.count()
    return lambda: deque((finish(batch, "cpu") for batch in resume_batches(loader, next(epochs), 0)), maxlen=0)


def load_config(opts: list[str]) -> tuple:
    """The default config with `opts`, and its preprocessing."""
    config = load(None, opts).config
    return config, build_preprocess(config.DATA, config.TEST, MEAN, STD)
