"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899), drawn for the whole global batch of an update.

Rows 2j and 2j+1 are mixed with each other. The order of samples is random, so this is as random as any pairing, and no
pair is separated when the batch is cut into ranks and micro-batches of even size.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Mix:
    """How each row of a batch is mixed with its partner."""

    weight: Tensor  # [B] float32, the share of the row's own target
    boxes: Tensor  # [B, 4] int64, the rectangle y0, y1, x0, x1 that comes from the partner (CutMix)
    cut: Tensor  # [B] bool, CutMix rather than Mixup

    def rows(self, start: int, stop: int) -> "Mix":
        """The part for rows start..stop."""
        return Mix(self.weight[start:stop], self.boxes[start:stop], self.cut[start:stop])


@dataclass(frozen=True)
class Mixer:
    """Draws a `Mix`; the settings have timm's names and meaning."""

    mixup: float = 0.8  # alpha of Mixup's Beta distribution; 0 for none
    cutmix: float = 1.0  # alpha of CutMix's; 0 for none
    minmax: tuple[float, float] | None = None  # least and greatest side / the image's, instead of CutMix's alpha
    prob: float = 1.0  # probability that a row is mixed at all
    switch_prob: float = 0.5  # probability of CutMix where both are on
    mode: str = "batch"  # the rows that share one draw: "batch" (all), "pair" (two) or "elem" (one)

    @property
    def active(self) -> bool:
        """Whether rows are ever mixed."""
        return self.prob > 0 and (self.mixup > 0 or self.cutmix > 0 or self.minmax is not None)

    def draw(self, rows: int, height: int, width: int, seed: int) -> Mix:
        """The mixing of `rows` images (an even number) of height x width pixels."""
        rng = np.random.default_rng(seed)
        repeat = {"batch": rows, "pair": 2, "elem": 1}[self.mode]
        drawn = [self._draw_one(rng, height, width) for _ in range(rows // repeat)]
        weight, boxes, cut = (np.repeat([d[i] for d in drawn], repeat, axis=0) for i in range(3))
        return Mix(torch.tensor(weight, dtype=torch.float32), torch.tensor(boxes), torch.tensor(cut))

    def _draw_one(self, rng: np.random.Generator, height: int, width: int) -> tuple[float, list[int], bool]:
        if rng.random() >= self.prob:
            return 1.0, [0, 0, 0, 0], False
        has_cut = self.cutmix > 0 or self.minmax is not None
        if not has_cut or (self.mixup > 0 and rng.random() >= self.switch_prob):
            return float(rng.beta(self.mixup, self.mixup)), [0, 0, 0, 0], False
        if self.minmax is not None:
            sides = [int(rng.uniform(*self.minmax) * side) for side in (height, width)]
            y, x = (int(rng.integers(0, side - cut + 1)) for side, cut in zip((height, width), sides, strict=True))
            box = [y, y + sides[0], x, x + sides[1]]
        else:
            share = (1 - rng.beta(self.cutmix, self.cutmix)) ** 0.5
            y, x = int(rng.integers(height)), int(rng.integers(width))
            half_h, half_w = int(height * share) // 2, int(width * share) // 2
            box = [max(0, y - half_h), min(height, y + half_h), max(0, x - half_w), min(width, x + half_w)]
        area = (box[1] - box[0]) * (box[3] - box[2])
        return 1 - area / (height * width), box, True  # from the clipped rectangle's area


def apply_mix(images: Tensor, targets: Tensor, mix: Mix) -> tuple[Tensor, Tensor]:
    """Neighbouring rows of `images` `[B, C, H, W]` and of float `targets` `[B, num_classes]`, mixed."""
    partners, other = _swap(images), _swap(targets)
    weight = mix.weight.to(images.device, non_blocking=True).to(targets.dtype)[:, None]
    mixed_targets = targets * weight + other * (1 - weight)
    pixel_weight = torch.where(mix.cut, 1.0, mix.weight).to(images.device, non_blocking=True)
    pixel_weight = pixel_weight.to(images.dtype).view(-1, 1, 1, 1)
    mixed = images * pixel_weight + partners * (1 - pixel_weight)
    for row, (y0, y1, x0, x1) in enumerate(mix.boxes.tolist()):
        mixed[row, :, y0:y1, x0:x1] = partners[row, :, y0:y1, x0:x1]
    return mixed, mixed_targets


def _swap(x: Tensor) -> Tensor:
    """The rows 2j and 2j+1 exchanged."""
    return x.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
