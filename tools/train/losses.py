"""The criteria. Targets are always `[B, num_classes]` floats in [0, 1]: one-hot, multi-hot, or mixed.

Every criterion takes `weights`, `[num_classes]` factors on the loss of each class, and returns the mean over the
batch (and over the classes for multi-label losses).
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0, weights: Tensor | None = None) -> Tensor:
    """Softmax cross-entropy for one class per sample; each row of targets sums to 1."""
    return F.cross_entropy(logits.float(), targets, weight=weights, label_smoothing=smoothing)


def binary_cross_entropy(
    logits: Tensor, targets: Tensor, smoothing: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """Sigmoid cross-entropy for any number of classes per sample."""
    targets = targets * (1 - smoothing) + smoothing / 2
    return F.binary_cross_entropy_with_logits(logits.float(), targets, weight=weights)


def asymmetric(
    logits: Tensor,
    targets: Tensor,
    smoothing: float = 0.0,
    weights: Tensor | None = None,
    *,
    gamma_neg: float,
    gamma_pos: float,
    clip: float,
) -> Tensor:
    """Asymmetric loss for any number of classes per sample; a focal loss where both gammas are equal and `clip` is 0.

    Powers are taken in log space: timm's AsymmetricLossMultiLabel gives NaN gradients for a gamma below 1 and a
    probability of 0 or 1.
    """
    targets = targets * (1 - smoothing) + smoothing / 2
    log_present, log_absent = F.logsigmoid(logits.float()), F.logsigmoid(-logits.float())
    present = (gamma_pos * log_absent).exp() * log_present
    if clip:
        shifted = (log_present.exp() - clip).clamp(min=1e-12)
        absent = shifted**gamma_neg * torch.log1p(-shifted)
    else:
        absent = (gamma_neg * log_present).exp() * log_absent
    loss = -(targets * present + (1 - targets) * absent)
    return (loss if weights is None else loss * weights).mean()


CRITERIA = {"single": cross_entropy, "multi": binary_cross_entropy}  # validation reports these for every training loss


def build_criterion(
    name: str,
    targets: str,
    *,
    smoothing: float = 0.0,
    weights: Tensor | None = None,
    gamma: float = 2.0,
    gamma_neg: float = 4.0,
    gamma_pos: float = 0.0,
    clip: float = 0.05,
) -> Callable[[Tensor, Tensor], Tensor]:
    """(logits, targets) -> loss.

    Args:
        name: "auto" (`CRITERIA` of `targets`), "ce", "bce", "focal" (sigmoid cross-entropy x (1 - p_t)^gamma, arXiv
            1708.02002, equation 4) or "asymmetric" (a focal loss that gives less weight to absent labels, and none to
            the easiest of them, arXiv 2009.14119, equation 7).
    """
    if name == "focal":
        gamma_neg, gamma_pos, clip = gamma, gamma, 0.0
    if name in ("focal", "asymmetric"):
        focus = partial(asymmetric, gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip)
        return partial(focus, smoothing=smoothing, weights=weights)
    criterion = {"auto": CRITERIA[targets], "ce": cross_entropy, "bce": binary_cross_entropy}[name]
    return partial(criterion, smoothing=smoothing, weights=weights)


def class_weights(counts: list[int]) -> Tensor:
    """Inverse square roots of the counts, `[num_classes]`, scaled to mean 1: rare classes count more."""
    weights = torch.tensor(counts, dtype=torch.float32).clamp(min=1).rsqrt()
    return weights / weights.mean()
