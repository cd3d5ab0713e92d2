"""From an RGB photo to a normalised tensor: timm's augmentation for training, one fixed recipe for everything else."""

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor


@dataclass(frozen=True)
class Preprocess:
    """How a photo is made the model's input. Stored in every checkpoint, so that nothing is scored with another.

    Attributes:
        size: side of the square input, pixels.
        crop: resize to 256/224 of `size` and cut the middle; False squashes the whole photo.
        interpolation: bilinear, bicubic or lanczos.
        mean, std: of RGB in [0, 1].
    """

    size: int
    crop: bool
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def from_dict(cls, stored: dict) -> "Preprocess":
        """The inverse of `to_dict`."""
        return cls(**{**stored, "mean": tuple(stored["mean"]), "std": tuple(stored["std"])})

    def to_dict(self) -> dict:
        """Plain values, for a checkpoint."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @property
    def _short_side(self) -> int:
        """Of the resized photo, before its middle is cut out."""
        return int(256 / 224 * self.size)

    def geometry(self) -> Callable[[Image.Image], Image.Image]:
        """The part that moves pixels: photo -> square photo of `size`, still RGB."""
        mode = InterpolationMode(self.interpolation)
        if self.crop:
            return Compose([Resize(self._short_side, mode), CenterCrop(self.size)])
        return Resize((self.size, self.size), mode)

    def window(self, width: int, height: int) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of what `geometry` keeps of a photo of this size, in the photo's pixels.

        Between that window and the input the way is linear, on each axis by itself.
        """
        if not self.crop:
            return 0.0, 0.0, float(width), float(height)
        short = self._short_side
        edges = []
        for side in (width, height):
            resized = int(short * side / min(width, height))  # as torchvision rounds, here and in the next line
            first = round((resized - self.size) / 2)
            edges.append((first * side / resized, (first + self.size) * side / resized))
        (left, right), (top, bottom) = edges
        return left, top, right, bottom

    def transform(self) -> Callable[[Image.Image], torch.Tensor]:
        """Photo -> `[3, size, size]`, normalised."""
        return Compose([self.geometry(), ToTensor(), Normalize(self.mean, self.std)])


class QuarterTurns:
    """Turns a photo by 0, 90, 180 or 270 degrees, each as likely."""

    def __call__(self, image: Image.Image) -> Image.Image:
        turns = random.randrange(4)
        return image.transpose(Image.Transpose(Image.Transpose.ROTATE_90 + turns - 1)) if turns else image


def train_transform(
    *,
    size: int,
    interpolation: str,
    mean,
    std,
    scale,
    ratio,
    hflip: float,
    vflip: float,
    quarter_turns: bool,
    color_jitter: float,
    auto_augment: str,
    reprob: float,
    remode: str,
    recount: int,
) -> Callable[[Image.Image], torch.Tensor]:
    """timm's training transform (random resized crop, flips, a policy or colour jitter, random erasing)."""
    transform = create_transform(
        size,
        is_training=True,
        interpolation=interpolation,
        mean=tuple(mean),
        std=tuple(std),
        scale=tuple(scale),
        ratio=tuple(ratio),
        hflip=hflip,
        vflip=vflip,
        color_jitter=color_jitter or None,
        auto_augment=auto_augment or None,
        re_prob=reprob,
        re_mode=remode,
        re_count=recount,
    )
    keep_one_bit(transform)
    return Compose([QuarterTurns(), *transform.transforms]) if quarter_turns else transform


def keep_one_bit(transform: object) -> None:
    """Lets timm's posterize keep at least one bit: at level 10 it asks Pillow for 0, which Pillow 13 refuses."""
    if isinstance(transform, AugmentOp):
        if transform.name.startswith("Posterize"):
            level_to_bits = transform.level_fn
            transform.level_fn = lambda level, hparams: (max(1, level_to_bits(level, hparams)[0]),)
        return
    for name in ("transforms", "ops", "policy"):
        for part in getattr(transform, name, ()):
            for op in part if isinstance(part, list | tuple) else [part]:
                keep_one_bit(op)
