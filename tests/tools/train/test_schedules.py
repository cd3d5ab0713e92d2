"""Learning rates at known steps: timm's schedulers as oracle, and numbers on paper."""

import pytest
import torch
from timm.scheduler import CosineLRScheduler, StepLRScheduler

from tools.train.schedules import build_schedule, scale_lr

SETTINGS = {"base_lr": 1e-3, "warmup_lr": 1e-6, "min_lr": 1e-5, "warmup_steps": 20, "total_steps": 100}


def rates_of(kind, **options):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1e-3)
    scheduler = kind(optimizer, warmup_t=20, warmup_lr_init=1e-6, t_in_epochs=False, **options)
    rates = []
    for step in range(100):
        scheduler.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_cosine_is_timms():
    ours = build_schedule("cosine", **SETTINGS)
    expected = rates_of(CosineLRScheduler, t_initial=100, lr_min=1e-5, cycle_limit=1)
    assert [ours(step) for step in range(100)] == pytest.approx(expected)


def test_step_is_timms():
    ours = build_schedule("step", **SETTINGS, decay_steps=30, decay_rate=0.1)
    expected = rates_of(StepLRScheduler, decay_t=30, decay_rate=0.1, warmup_prefix=False)
    assert [ours(step) for step in range(100)] == pytest.approx(expected)


def test_linear_on_paper():
    """From 1e-3 at step 20 to a hundredth of it at step 100: halfway is 1e-3 * (1 + 0.01) / 2."""
    ours = build_schedule("linear", **SETTINGS)
    assert [ours(step) for step in (0, 10, 20, 60, 100)] == pytest.approx([1e-6, 5.005e-4, 1e-3, 5.05e-4, 1e-5])


def test_linear_scaling_of_the_seeds_batches():
    """The effective rates of seed.md: 3.1e-5 at batch 32, 1.3e-4 at 128, from 5e-4."""
    assert [scale_lr(5e-4, batch) for batch in (8, 16, 32, 64, 128)] == pytest.approx(
        [7.8125e-6, 1.5625e-5, 3.125e-5, 6.25e-5, 1.25e-4]
    )


def test_no_warm_up_starts_at_the_top():
    assert build_schedule("cosine", **{**SETTINGS, "warmup_steps": 0})(0) == 1e-3
