"""The learning rate as a pure function of the step; nothing to save, nothing to restore."""

import math
from collections.abc import Callable

REFERENCE_BATCH = 512  # images per update that BASE_LR, WARMUP_LR and MIN_LR are given for


def scale_lr(lr: float, images_per_update: int) -> float:
    """Linear scaling (Goyal et al., arXiv 1706.02677, section 2.1): `lr` per 512 images per update."""
    return lr * images_per_update / REFERENCE_BATCH


def build_schedule(
    name: str,
    *,
    base_lr: float,
    warmup_lr: float,
    min_lr: float,
    warmup_steps: int,
    total_steps: int,
    decay_steps: int = 1,
    decay_rate: float = 0.1,
) -> Callable[[int], float]:
    """step -> learning rate, from step 0 on.

    A linear warm-up from `warmup_lr` replaces the first steps. The schedules are a cosine to `min_lr` (arXiv
    1608.03983, equation 5), a line from the end of the warm-up to a hundredth of `base_lr` (as in the course project),
    and a factor `decay_rate` every `decay_steps`.
    """

    def cosine(step: int) -> float:
        return min_lr + 0.5 * (base_lr - min_lr) * (1 + math.cos(math.pi * min(step / total_steps, 1)))

    def linear(step: int) -> float:
        lowest, span = 0.01 * base_lr, max(1, total_steps - warmup_steps)
        return base_lr - (base_lr - lowest) * min(max(0, step - warmup_steps) / span, 1)

    def stairs(step: int) -> float:
        return base_lr * decay_rate ** (step // decay_steps)

    schedules = {"cosine": cosine, "linear": linear, "step": stairs}

    def schedule(step: int) -> float:
        if step < warmup_steps:
            return warmup_lr + (base_lr - warmup_lr) * step / warmup_steps
        return schedules[name](step)

    return schedule
