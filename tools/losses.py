"""The two criteria. Targets are always `[B, num_classes]` floats in [0, 1]: one-hot, multi-hot, or mixed."""

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Softmax cross-entropy for one class a sample, mean over the batch; targets of a row sum to 1."""
    return F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)


def binary_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Sigmoid cross-entropy for any number of classes a sample, mean over batch and classes."""
    return F.binary_cross_entropy_with_logits(logits.float(), targets * (1 - smoothing) + smoothing / 2)


CRITERIA = {"single": cross_entropy, "multi": binary_cross_entropy}
