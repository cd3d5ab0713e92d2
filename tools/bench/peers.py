"""The Swins to compare: ours, timm's and torchvision's, of one size, and what they compute on."""

from typing import Any

import timm.models.swin_transformer
import torch
import torchvision.models
from torch import Tensor

import models.swin_transformer

KINDS = ("timm", "torchvision", "ours")
# Swin-T, and one whose steps take milliseconds, for trying the benchmarks.
SIZES: dict[str, dict] = {
    "swin_t": {"img_size": 224, "embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "window_size": 7},
    "toy": {"img_size": 64, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4},
}
NUM_CLASSES = 6
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build_swin(kind: str, size: str, drop_path_rate: float = 0.2, **options) -> Any:
    """A Swin of one of `KINDS` and `SIZES` on the device, with fresh weights; `options` are our own model's."""
    shape = dict(SIZES[size], num_classes=NUM_CLASSES)
    if kind == "torchvision":
        shape |= {"patch_size": [4, 4], "window_size": [shape["window_size"]] * 2}
        del shape["img_size"]
        model = torchvision.models.SwinTransformer(stochastic_depth_prob=drop_path_rate, **shape)
    else:
        library = models if kind == "ours" else timm.models
        model = library.swin_transformer.SwinTransformer(drop_path_rate=drop_path_rate, **shape, **options)
    return model.to(DEVICE)


def random_batch(size: str, batch_size: int) -> tuple[Tensor, Tensor]:
    """(images, targets) on the device."""
    side = SIZES[size]["img_size"]
    return torch.randn(batch_size, 3, side, side, device=DEVICE), torch.rand(batch_size, NUM_CLASSES, device=DEVICE)
