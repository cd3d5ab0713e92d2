"""A split's samples as tensors."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.loading.cache import Encoded
from data.loading.samplers import Draw
from data.loading.seeds import AUGMENT, seed_of, seeded
from data.loading.soft_labels import SoftLabels
from data.loading.split import Photo, Split
from data.loading.transforms import View
from tools.base.errors import UserError


class LeafDataset(Dataset):
    """Samples as `(view, target [num_classes])`; targets are of 0 and 1, or mixed with soft labels.

    Indexed by a `Draw`, it seeds the augmentation by epoch and position, so that every process gives the same pixels;
    a plain index does not seed the transform. An unreadable photo is returned as its `DataError`, which `collate`
    passes on, because an exception that torch re-raises from a worker loses its one-line message.

    Args:
        transform: image, uint8 [H, W, 3] -> `data.loading.transforms.View`.
        finish: `(batch, device)` -> the model's input on the device, from a batch of such views.
        photos: file -> its pixels; None decodes the file from the split's source.
        soft_labels: mixed into the targets; None for the labels as they are.
    """

    def __init__(
        self,
        split: Split,
        samples: list[Photo],
        transform: Callable,
        finish: Callable,
        seed: int = 0,
        photos: Callable[[str], np.ndarray] | None = None,
        soft_labels: SoftLabels | None = None,
    ):
        self.samples, self.transform, self.finish, self.seed = samples, transform, finish, seed
        self.photos, self.soft_labels = photos or Encoded(split.source), soft_labels
        self.num_classes = len(split.labels.names)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int | Draw) -> tuple[View, Tensor] | UserError:
        draw, number = (index, index[2]) if isinstance(index, Draw) else (None, index)
        photo = self.samples[number]
        try:
            image = self.photos(photo.file)
        except UserError as error:
            return error
        target = torch.zeros(self.num_classes)
        target[list(photo.classes)] = 1
        if self.soft_labels is not None:
            target = self.soft_labels.mix(photo.name, target)
        if draw is None:
            return self.transform(image), target
        with seeded(seed_of(self.seed, AUGMENT, draw.epoch, draw.position)):
            return self.transform(image), target
