"""The models to compare, of one size, and what they compute on."""

from typing import Any

import timm
import torch
from torch import Tensor

import models.swin_transformer
from tools.runtime.distributed import Ranks, choose_device

# Swin-T, and one whose steps take milliseconds, for trying the benchmarks.
SIZES: dict[str, dict] = {
    "swin_t": {"img_size": 224, "embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "window_size": 7},
    "toy": {"img_size": 64, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4},
}
CONVNET = "tf_efficientnet_lite0"
NUM_CLASSES = 6
DEVICE = choose_device(Ranks())


def build_model(kind: str, size: str, drop_path_rate: float = 0.2, **options) -> Any:
    """A Swin of one of `SIZES`, "ours" or "timm", or timm's `CONVNET`; on the device, with fresh weights.

    `options` go to the model's constructor.
    """
    options |= {"num_classes": NUM_CLASSES, "drop_path_rate": drop_path_rate}
    if kind == CONVNET:
        return timm.create_model(CONVNET, **options).to(DEVICE)
    library = models if kind == "ours" else timm.models
    return library.swin_transformer.SwinTransformer(**SIZES[size], **options).to(DEVICE)


def random_batch(size: str, batch_size: int) -> tuple[Tensor, Tensor]:
    """(images, targets) on the device."""
    side = SIZES[size]["img_size"]
    return torch.randn(batch_size, 3, side, side, device=DEVICE), torch.rand(batch_size, NUM_CLASSES, device=DEVICE)


def config_words(size: str) -> list[str]:
    """The config of our Swin of that size, with multi-hot targets, as words for `--opts`."""
    shape = dict(SIZES[size])
    words = ["DATA.TARGETS", "multi", "DATA.IMG_SIZE", shape.pop("img_size")]
    for name, value in shape.items():
        words += [f"MODEL.SWIN.{name.upper()}", list(value) if isinstance(value, tuple) else value]
    return [str(word) for word in words]
