"""Probabilities of labels that training targets are mixed with."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.labels import origin_name


@dataclass(frozen=True)
class SoftLabels:
    """What earlier models said of the training photos, and how much it counts (distillation, arXiv 1503.02531).

    The models must not have been trained on the photos that they predict, or they repeat the labels, mistakes included.

    Attributes:
        probability: name of a photo -> `[num_classes]` float32, for every training photo but balanced copies, which
            have those of their originals.
        weight: share of the probabilities in a target, from 0 to 1; the rest is the photo's labels.
    """

    probability: dict[str, np.ndarray]
    weight: float

    def mix(self, name: str, target: Tensor) -> Tensor:
        """The `[num_classes]` target of the photo `name`, mixed with its probabilities."""
        return target + self.weight * (torch.from_numpy(self.probability[origin_name(name)]) - target)

    def digest(self) -> str:
        """SHA-256 over the names and the probabilities."""
        digest = hashlib.sha256()
        for name, row in sorted(self.probability.items()):
            digest.update(name.encode(errors="surrogateescape") + b"\n" + row.tobytes())
        return digest.hexdigest()
