"""The randomness of a step, drawn for its whole global batch beforehand."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from data.loading.mixup import Mixer, apply_mix
from data.loading.seeds import DROP_PATH, FORWARD, MIX, seed_of
from models.swin_transformer import SwinTransformer


@dataclass(frozen=True)
class Draws:
    """The randomness of one batch: this rank's rows of what was drawn for the whole global batch.

    Attributes:
        mix: (images, targets) -> the same, mixed.
        keep: stochastic depth `[blocks, 2, B]` for models that take it; None for the others.
        seed: for what the model itself draws (dropout, timm's stochastic depth).
    """

    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    keep: Tensor | None
    seed: int


def batch_draws(
    mixer: Mixer,
    model: nn.Module,
    *,
    img_size: int,
    batch_size: int,
    accumulation_steps: int,
    rank: int,
    world_size: int,
    seed: int,
) -> Callable[[int, int], Draws]:
    """(step, batch of the step) -> its randomness on this rank.

    Everything is drawn from (seed, step) alone for the whole global batch of the step, and each rank and batch uses its
    own rows. So the draws depend neither on how a global batch is divided nor on earlier draws.
    """
    per_batch = batch_size * world_size

    @lru_cache(maxsize=1)
    def draw_step(step: int):
        rows = per_batch * accumulation_steps
        mix = mixer.draw(rows, img_size, img_size, seed_of(seed, MIX, step)) if mixer.active else None
        generator = torch.Generator().manual_seed(seed_of(seed, DROP_PATH, step))
        keep = model.draw_drop_path(rows, generator) if isinstance(model, SwinTransformer) else None
        return mix, keep

    def draw(step: int, micro: int) -> Draws:
        mix, keep = draw_step(step)
        start = micro * per_batch + rank * batch_size
        stop = start + batch_size
        return Draws(
            mix=partial(apply_mix, mix=mix.rows(start, stop)) if mix else lambda images, targets: (images, targets),
            keep=None if keep is None else keep[..., start:stop],
            seed=seed_of(seed, FORWARD, step, micro, rank),
        )

    return draw
