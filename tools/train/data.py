"""The photos of a run: its splits or fold, its loaders, and what is counted of them. A part of tools/launch.py.

May import every shelf; only tools/launch.py and entry points import it.
"""

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import DataLoader

from data.build import (
    balancing_weights,
    build_eval_loader,
    build_preprocess,
    build_split,
    build_train_loader,
    num_workers,
)
from data.labels import label_name
from data.loading.folds import fold_of
from data.loading.samplers import Shard
from data.loading.split import Split, samples_of
from data.loading.transforms import Preprocess
from data.manifest import read_manifest, twin_groups
from models.build import normalization
from tools.base.errors import DataError
from tools.runtime.distributed import Ranks
from tools.runtime.signals import start_worker
from tools.train.losses import class_weights


@dataclass(frozen=True)
class Data:
    """Both splits, how photos are scored, and the loaders of this rank."""

    train: Split
    val: Split
    preprocess: Preprocess
    train_loader: DataLoader
    val_loader: DataLoader

    def digests(self) -> list[str]:
        """What tells these photos and labels from others."""
        return [self.train.digest(), self.val.digest()]


def load_data(config, ranks: Ranks) -> Data:
    """Lists both splits and builds the loaders. Raises DataError for classes that do not match the config."""
    data = config.DATA
    train, val = scan_splits(config)
    if len(train.classes) != config.MODEL.NUM_CLASSES:
        raise DataError(
            f"class mismatch: {train.where} has {len(train.classes)} class folders ({', '.join(train.classes[:8])}), "
            f"MODEL.NUM_CLASSES is {config.MODEL.NUM_CLASSES}; add --opts MODEL.NUM_CLASSES {len(train.classes)}, "
            "or mend the folders"
        )
    preprocess = build_preprocess(data, config.TEST, *normalization(config.MODEL))
    shard = Shard(ranks.rank, ranks.world_size)
    train_loader = build_train_loader(
        data,
        config.AUG,
        train,
        preprocess,
        seed=config.SEED,
        shard=shard,
        balanced=config.TRAIN.BALANCE == "sampler",
        worker_init=start_worker,
    )
    workers = num_workers(data.NUM_WORKERS, ranks.world_size)
    val_loader = build_eval_loader(
        val,
        preprocess,
        batch_size=data.BATCH_SIZE,
        workers=workers,
        shard=shard,
        worker_init=start_worker,
    )
    return Data(train, val, preprocess, train_loader, val_loader)


def scan_splits(config) -> tuple[Split, Split]:
    """The photos that a run of this config trains on, made copies included, and those that it is validated on."""
    data = config.DATA
    train = build_split(data, "train", made=True)
    if not data.NUM_FOLDS:
        return train, validation_split(config, train.classes)
    manifest = read_manifest(Path(data.DATA_PATH))
    twins = twin_groups(manifest, "train") if manifest else []
    return fold_of(train, twins, data.NUM_FOLDS, data.FOLD, config.SEED)


def validation_split(config, classes: tuple[str, ...]) -> Split:
    """The photos that a run of this config is validated on; the training photos are looked at for folds only."""
    return scan_splits(config)[1] if config.DATA.NUM_FOLDS else build_split(config.DATA, "val", classes)


def photos_of_updates(data: Data, updates: int, accumulation: int) -> Callable[[int], list[str]]:
    """step -> where this rank's photos of that update lie, in order. `updates`: of an epoch."""
    dataset, batches = data.train_loader.dataset, copy.copy(data.train_loader.batch_sampler)

    def photos(step: int) -> list[str]:
        batches.epoch, update = divmod(step, updates)
        batches.first = update * accumulation
        taken = itertools.islice(batches, accumulation)
        return [data.train.source.locate(dataset.samples[draw.index].file) for batch in taken for draw in batch]

    return photos


def count_table(data: Data, config) -> list[str]:
    """Lines with the copies of every label, and what TRAIN.BALANCE makes of them: draws an epoch, or a weight."""
    columns = {"train": data.train.counts, "val": data.val.counts}
    if config.TRAIN.BALANCE == "weights":
        columns["weight"] = [f"{weight:.2f}" for weight in class_weights(data.train.counts).tolist()]
    if config.TRAIN.BALANCE == "sampler":
        samples = samples_of(data.train, config.DATA.TARGETS)
        weights = balancing_weights(samples)
        pairs = list(zip(weights, samples, strict=True))
        drawn = [sum(w for w, sample in pairs if c in sample.classes) for c in range(len(data.train.classes))]
        columns["drawn"] = [f"{len(samples) * share / sum(weights):.0f}" for share in drawn]
    rows = [("label", *columns), *zip(map(label_name, data.train.classes), *columns.values(), strict=True)]
    return [f"{row[0]:<20}" + "".join(f"{cell:>8}" for cell in row[1:]) for row in rows]
