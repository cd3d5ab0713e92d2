"""Builds splits, transforms and loaders from the DATA, AUG and TEST nodes."""

import os
import re
import resource
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from data.labels import LabelSet
from data.loading.batches import Batch, Normalize, collate
from data.loading.cache import Encoded, Pixels, shared_pixels
from data.loading.dataset import LeafDataset
from data.loading.folds import fold_of
from data.loading.mixup import Mixer
from data.loading.samplers import WHOLE, Shard, TrainBatches, eval_batches
from data.loading.soft_labels import SoftLabels
from data.loading.split import Photo, Split, samples_of, scan_split
from data.loading.transforms import Preprocess, TrainTransform
from data.manifest import duplicate_groups, photo_groups, read_manifest
from tools.base.errors import ResourceError, UsageError, UserError

SHARED_MEMORY = Path("/dev/shm")  # where loader processes leave their batches
AHEAD = 2  # batches that each loader process prefetches; torch's default
TIMEOUT_SECONDS = 300  # longest wait for one batch; after it, the file system counts as hung


def build_split(data, name: str, labels: LabelSet | None = None, balanced_copies: bool = False) -> Split:
    """The split `name` of a DATA node; the other arguments are those of `data.loading.split.scan_split`."""
    return scan_split(data.DATA_PATH, name, data.ZIP_MODE, labels, balanced_copies, data.FOLLOW_LINKS)


def build_fold(train: Split, data_path: str, num_folds: int, fold: int, seed: int) -> tuple[Split, Split]:
    """The training and the validation photos of one fold of `train`, which has its balanced copies.

    The arguments are those of `data.loading.folds.fold_of`; what stays together is in the manifest under `data_path`.
    """
    manifest = read_manifest(Path(data_path))
    duplicates = duplicate_groups(manifest, "train") if manifest else []
    groups = photo_groups(manifest, "train") if manifest else []
    return fold_of(train, duplicates, groups, num_folds, fold, seed)


def build_train_loader(
    data,
    aug,
    split: Split,
    preprocess: Preprocess,
    *,
    seed: int,
    shard: Shard = WHOLE,
    balanced: bool = False,
    soft_labels: SoftLabels | None = None,
    worker_init: Callable[[int], None] | None = None,
) -> DataLoader:
    """Loader of augmented images, to be read with `resume_batches`; its batch sampler is a `TrainBatches`.

    Args:
        seed: of the order of samples and their augmentation.
        shard: the part of each global batch that this process takes.
        balanced: draw samples so that every class occurs about equally often.
        soft_labels: mixed into the targets.
        worker_init: called at the start of every loader process with its number.
    """
    samples = samples_of(split, data.TARGETS)
    transform = TrainTransform(augmentation_arguments(data, aug, preprocess), aug.QUARTER_TURNS, preprocess.resize)
    finish = Normalize(preprocess.mean, preprocess.std)
    photos = _photos(data.CACHE_MODE, split, samples, shard)
    dataset = LeafDataset(split, samples, transform, finish, seed, photos, soft_labels)
    weights = balancing_weights(samples) if balanced else None
    batches = TrainBatches(len(samples), data.BATCH_SIZE, shard, seed, weights)
    workers = num_workers(data.NUM_WORKERS, shard.world_size)
    _check_workers(workers, data.BATCH_SIZE * 3 * data.IMG_SIZE**2, shard.world_size)
    return _loader(dataset, batches, workers, data.PIN_MEMORY, worker_init)


def build_eval_loader(
    data,
    split: Split,
    preprocess: Preprocess,
    *,
    shard: Shard = WHOLE,
    worker_init: Callable[[int], None] | None = None,
) -> DataLoader:
    """Loader of every photo of `split` once over all ranks, to be read with `batches_of`."""
    dataset = LeafDataset(split, split.photos, preprocess.view, Normalize(preprocess.mean, preprocess.std))
    batches = eval_batches(len(split.photos), data.BATCH_SIZE, shard)
    workers = min(num_workers(data.NUM_WORKERS, shard.world_size), len(batches))
    _check_workers(workers, data.BATCH_SIZE * 3 * preprocess.size**2, shard.world_size)
    return _loader(dataset, batches, workers, data.PIN_MEMORY, worker_init)


def balancing_weights(samples: Sequence[Photo]) -> list[float]:
    """Relative frequency with which each sample is drawn: the inverse count of its rarest class."""
    counts = Counter(c for sample in samples for c in sample.classes)
    return [1 / min(counts[c] for c in sample.classes) for sample in samples]


def augmentation_arguments(data, aug, preprocess: Preprocess) -> dict:
    """Keyword arguments of `timm.data.create_transform`. Mean and standard deviation are those of scoring."""
    return {
        "input_size": data.IMG_SIZE,
        "interpolation": data.INTERPOLATION,
        "mean": preprocess.mean,
        "std": preprocess.std,
        "scale": tuple(aug.SCALE),
        "ratio": tuple(aug.RATIO),
        "hflip": aug.HFLIP,
        "vflip": aug.VFLIP,
        "color_jitter": aug.COLOR_JITTER or None,
        "auto_augment": aug.AUTO_AUGMENT or None,
        "re_prob": aug.REPROB,
        "re_mode": aug.REMODE,
        "re_count": aug.RECOUNT,
    }


def build_mixer(aug) -> Mixer:
    """The Mixup and CutMix of an AUG node."""
    return Mixer(
        mixup=aug.MIXUP,
        cutmix=aug.CUTMIX,
        minmax=tuple(aug.CUTMIX_MINMAX) if aug.CUTMIX_MINMAX is not None else None,
        prob=aug.MIXUP_PROB,
        switch_prob=aug.MIXUP_SWITCH_PROB,
        mode=aug.MIXUP_MODE,
    )


def build_preprocess(data, test, mean, std) -> Preprocess:
    """The preprocessing for scoring; `mean` and `std` are the model's, used unless the config sets its own."""
    return Preprocess(
        size=test.IMG_SIZE or data.IMG_SIZE,
        resize=data.RESIZE,
        interpolation=data.INTERPOLATION,
        mean=tuple(data.MEAN or mean),
        std=tuple(data.STD or std),
    )


def num_workers(setting: int, world_size: int = 1) -> int:
    """Loader processes of this rank: the setting, or for -1 this rank's share of the cores, at most 8."""
    return setting if setting >= 0 else max(1, min(8, len(os.sched_getaffinity(0)) // _ranks_here(world_size)))


def _ranks_here(world_size: int) -> int:
    """How many ranks run on this machine."""
    local = os.environ.get("LOCAL_WORLD_SIZE", str(world_size))
    if not re.fullmatch("[1-9][0-9]{0,5}", local):
        raise UsageError(
            f"the environment has LOCAL_WORLD_SIZE={local}, which must be a whole number; start with torchrun"
        )
    return int(local)


def raw_batches(loader: DataLoader) -> Iterator[Batch]:
    """The loader's batches in main memory. The error of an unreadable photo is raised here."""
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def batches_of(loader: DataLoader, device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
    """The loader's `(images [B, 3, S, S] normalised, targets [B, num_classes])` on `device`.

    Pixels are copied as bytes and normalised there.
    """
    assert isinstance(loader.dataset, LeafDataset)
    return (loader.dataset.finish(batch, device) for batch in raw_batches(loader))


def resume_batches(loader: DataLoader, epoch: int, first: int) -> Iterator[Batch]:
    """The raw batches of a training epoch from number `first` on; skipped photos are not read."""
    assert isinstance(loader.batch_sampler, TrainBatches)
    loader.batch_sampler.epoch, loader.batch_sampler.first = epoch, first
    return raw_batches(loader)


def _check_workers(workers: int, batch_bytes: int, world_size: int) -> None:
    """Raises ResourceError when this machine lacks the open files or the shared memory that loader processes need."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if workers > 0 and allowed < (needed := 32 + 8 * workers):  # 4 per worker, in training and in validation
        raise ResourceError(
            f"DATA.NUM_WORKERS {workers} needs about {needed} open files, and ulimit -n allows {allowed}; lower "
            "it, or raise the limit"
        )
    if workers > 0 and SHARED_MEMORY.exists():
        check_shared_memory(_ranks_here(world_size) * workers, batch_bytes, shutil.disk_usage(SHARED_MEMORY).free)


def check_shared_memory(workers: int, batch_bytes: int, free: int) -> None:
    """Raises ResourceError when the batches that loader processes pass on do not fit into `free` bytes of /dev/shm.

    Args:
        workers: loader processes on this machine.
        batch_bytes: of a batch's pixels.
    """
    need = workers * AHEAD * batch_bytes
    if need > free:
        raise ResourceError(
            f"no space at {SHARED_MEMORY}: {workers} loader processes need {need / 2**20:.1f} MiB, and "
            f"{free / 2**20:.1f} MiB are free; lower DATA.NUM_WORKERS (0 needs none) or --batch-size, or raise a "
            "container's --shm-size"
        )


def _loader(dataset: LeafDataset, batches, workers: int, pin: bool, worker_init) -> DataLoader:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin and torch.cuda.is_available(),
        persistent_workers=workers > 0,
        worker_init_fn=worker_init,
        timeout=TIMEOUT_SECONDS if workers else 0,
    )


def _photos(mode: str, split: Split, samples: list[Photo], shard: Shard) -> Encoded | Pixels:
    """Builds the reader that DATA.CACHE_MODE selects. Appends the cache's notes to `split.notes`."""
    files = sorted({photo.file for photo in samples})
    if mode != "full":
        return Encoded(split.source, files[shard.rank :: shard.world_size] if mode == "part" else ())
    pixels, notes = shared_pixels(split.source, files)
    split.notes.extend(notes)
    return pixels
