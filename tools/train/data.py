"""The photos of a run: its splits or fold, its loaders, and the table of their labels."""

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from configs.checks import check_training
from configs.load import Loaded
from data.build import (
    balancing_weights,
    build_eval_loader,
    build_fold,
    build_preprocess,
    build_split,
    build_train_loader,
)
from data.labels import LabelSet, is_balanced_copy
from data.loading.dataset import LeafDataset
from data.loading.samplers import Shard, TrainBatches
from data.loading.soft_labels import SoftLabels
from data.loading.split import Split, samples_of
from data.loading.transforms import Preprocess
from models.build import normalization
from tools.base.errors import DataError, listing
from tools.base.tables import format_table
from tools.evaluate.predictions import aligned, read_predictions
from tools.runtime.distributed import Ranks
from tools.runtime.signals import init_worker
from tools.train.losses import class_weights

MOST_ROWS = 24  # labels in the log's table


@dataclass(frozen=True)
class RunData:
    """Both splits, how photos are scored, and the loaders of this rank."""

    train: Split
    val: Split
    preprocess: Preprocess
    train_loader: DataLoader
    val_loader: DataLoader
    soft_labels: SoftLabels | None = None

    def digests(self) -> list[str]:
        """Of the training photos, of the validation photos and, if there are any, of the soft labels."""
        return [part.digest() for part in (self.train, self.val, self.soft_labels) if part is not None]

    def photos(self, step: int, steps_per_epoch: int, accumulation_steps: int) -> list[str]:
        """Paths of this rank's training photos of a step, in order."""
        batches, dataset = copy.copy(self.train_loader.batch_sampler), self.train_loader.dataset
        assert isinstance(batches, TrainBatches)
        assert isinstance(dataset, LeafDataset)
        batches.epoch, done = divmod(step, steps_per_epoch)
        batches.first = done * accumulation_steps
        draws = itertools.chain.from_iterable(itertools.islice(batches, accumulation_steps))
        return [self.train.source.locate(dataset.samples[draw.index].file) for draw in draws]


def load_data(config, splits: tuple[Split, Split], ranks: Ranks) -> RunData:
    """Builds the loaders of the training and the validation photos, for a config from `scan_splits`."""
    data, (train, val) = config.DATA, splits
    preprocess = build_preprocess(data, config.TEST, *normalization(config.MODEL))
    both: dict[str, Any] = {"shard": Shard(ranks.rank, ranks.world_size), "worker_init": init_worker}
    balanced = config.TRAIN.BALANCE == "sampler"
    soft_labels = read_soft_labels(config, train)
    draws: dict[str, Any] = {"seed": config.SEED, "balanced": balanced, "soft_labels": soft_labels}
    train_loader = build_train_loader(data, config.AUG, train, preprocess, **draws, **both)
    val_loader = build_eval_loader(data, val, preprocess, **both)
    return RunData(train, val, preprocess, train_loader, val_loader, soft_labels)


def read_soft_labels(config, train: Split) -> SoftLabels | None:
    """The soft labels of the training photos; for "single" targets, the probabilities of a photo are made to sum to 1.

    Raises:
        DataError: for a file without the probabilities of every label of every photo.
    """
    if not config.TRAIN.SOFT_LABELS:
        return None
    path, labels = Path(config.TRAIN.SOFT_LABELS), train.labels.names
    table = read_predictions(path, labels)
    if differing := sorted({*table.labels} ^ {*labels}):
        raise DataError(f"{path} and the training photos differ in the labels {listing(differing)}")
    names = [photo.name for photo in train.photos if not is_balanced_copy(photo.name)]
    probability = aligned(table, names, path).probability
    if probability is None:
        raise DataError(f"{path} holds no probabilities; make it with python test.py --split held-out")
    rows = probability[:, [table.labels.index(label) for label in labels]]
    if config.DATA.TARGETS == "single":
        rows = rows / rows.sum(axis=1, keepdims=True).clip(min=1e-9)
    return SoftLabels(dict(zip(names, rows.astype(np.float32), strict=True)), config.TRAIN.SOFT_WEIGHT)


def scan_splits(loaded: Loaded) -> tuple[Loaded, tuple[Split, Split]]:
    """The resolved config, its training photos, balanced copies included, and its validation photos.

    Raises:
        DataError: for photos that do not fit the config.
        UsageError: for values that conflict now that they are resolved.
    """
    train = build_split(loaded.config.DATA, "train", balanced_copies=True)
    loaded = loaded.resolve(train)
    check_training(loaded.config)
    if loaded.config.DATA.NUM_FOLDS:
        return loaded, _divide(loaded.config, train)
    return loaded, (train, validation_split(loaded.config, train.labels))


def validation_split(config, labels: LabelSet) -> Split:
    """The validation photos of this config; the training photos are scanned for folds only."""
    if config.DATA.NUM_FOLDS:
        return _divide(config, build_split(config.DATA, "train", balanced_copies=True))[1]
    return build_split(config.DATA, "val", labels)


def _divide(config, train: Split) -> tuple[Split, Split]:
    """The training and the validation photos of the fold of this config."""
    return build_fold(train, config.DATA.DATA_PATH, config.DATA.NUM_FOLDS, config.DATA.FOLD, config.SEED)


def count_table(data: RunData, config) -> list[str]:
    """Lines with the label copies per label, and the effect of TRAIN.BALANCE: draws per epoch, or a weight.

    Of more than `MOST_ROWS` labels, the rarest have a line.
    """
    columns: dict[str, Sequence] = {"train": data.train.counts, "val": data.val.counts}
    if config.TRAIN.BALANCE == "weights":
        columns["weight"] = [f"{weight:.2f}" for weight in class_weights(data.train.counts).tolist()]
    if config.TRAIN.BALANCE == "sampler":
        samples = samples_of(data.train, config.DATA.TARGETS)
        weights = balancing_weights(samples)
        drawn = [0.0] * len(data.train.labels.names)
        for weight, sample in zip(weights, samples, strict=True):
            for c in sample.classes:
                drawn[c] += weight
        columns["drawn"] = [f"{len(samples) * share / sum(weights):.0f}" for share in drawn]
    rows = list(zip(data.train.labels.names, *columns.values(), strict=True))
    if (rest := len(rows) - MOST_ROWS) > 0:
        rarest = sorted(rows, key=lambda row: row[1])[:MOST_ROWS]
        rows = [*rarest, (f"{rest} more labels", *(["..."] * len(columns)))]
    return format_table([("label", *columns), *rows])
