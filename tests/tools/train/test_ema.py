"""The moving average, against timm's."""

import torch
from timm.utils import ModelEmaV3
from torch import nn

from tools.train.ema import ModelEma


def test_the_average_is_timms_bit_for_bit():
    """Weights, batch norm's statistics and its counter, through the warm-up and beyond."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))
    ours = ModelEma(model, decay=0.9)
    timms = ModelEmaV3(model, decay=0.9, use_warmup=True, warmup_power=2 / 3)
    for step in range(1, 60):
        with torch.no_grad():
            model[0].weight.add_(torch.randn(4, 5))
        model(torch.randn(8, 5))
        ours.update(step)
        timms.update(model, step=step)
        for found, wanted in zip(ours.module.state_dict().values(), timms.module.state_dict().values(), strict=True):
            assert torch.equal(found, wanted)
    assert not ours.module.training
    assert ours.module[1].num_batches_tracked == 59
