"""The moving average of a model's weights."""

import copy

import torch
from torch import nn


class ModelEma:
    """Keeps the exponential moving average of a model's weights and batch norm statistics in `module`, in eval mode.

    Equals timm's ModelEmaV3 with warm-up, but collects the tensors of both models once, not in every update.

    Args:
        decay: share of the old average, reached after a warm-up: at step s it is at most 1 - s^(-2/3).
    """

    def __init__(self, model: nn.Module, decay: float):
        self.module, self.decay = copy.deepcopy(model).eval(), decay
        pairs = list(zip(self.module.state_dict().values(), model.state_dict().values(), strict=True))
        self._floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._others = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the current weights of the model. `step` counts from 1."""
        decay = min(1 - step ** (-2 / 3), self.decay)
        averages, values = zip(*self._floats, strict=True)
        torch._foreach_lerp_(averages, values, weight=1 - decay)
        for average, value in self._others:
            average.copy_(value)
