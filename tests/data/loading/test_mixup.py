"""Mixing: whole batches and their parts agree; every row by hand; alphas as in timm."""

import numpy as np
import pytest
import torch

from data.loading.mixup import Mixer, apply_mix

IMAGES = torch.rand(8, 3, 10, 12, generator=torch.Generator().manual_seed(0))
TARGETS = torch.eye(8)[:, :6]


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_parts_of_a_batch_are_mixed_as_the_whole(mode):
    mix = Mixer(mode=mode).draw(8, 10, 12, seed=3)
    whole = apply_mix(IMAGES, TARGETS, mix)
    parts = [apply_mix(IMAGES[a:b], TARGETS[a:b], mix.rows(a, b)) for a, b in ((0, 2), (2, 8))]
    for full, cut in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(full, torch.cat(cut))


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("seed", range(6))
def test_every_pixel_and_target_by_hand(mode, seed):
    mix = Mixer(mode=mode).draw(8, 10, 12, seed)
    images, targets = apply_mix(IMAGES, TARGETS, mix)
    for row in range(8):
        partner, weight = row ^ 1, float(mix.weight[row])
        if mix.cut[row]:
            y0, y1, x0, x1 = mix.boxes[row].tolist()
            expected = IMAGES[row].clone()
            expected[:, y0:y1, x0:x1] = IMAGES[partner][:, y0:y1, x0:x1]
            assert weight == pytest.approx(1 - (y1 - y0) * (x1 - x0) / 120)
        else:
            expected = weight * IMAGES[row] + (1 - weight) * IMAGES[partner]
        torch.testing.assert_close(images[row], expected)
        torch.testing.assert_close(targets[row], weight * TARGETS[row] + (1 - weight) * TARGETS[partner])


def test_multi_hot_targets_mix_label_by_label():
    targets = torch.tensor([[1.0, 1, 0], [0, 1, 1]])
    _, mixed = apply_mix(torch.zeros(2, 3, 4, 4), targets, Mixer(cutmix=0, mode="batch").draw(2, 4, 4, 1))
    weight = mixed[0, 0]
    torch.testing.assert_close(mixed[0], torch.stack([weight, torch.tensor(1.0), 1 - weight]))


def test_what_shares_a_draw():
    mixes = {mode: Mixer(cutmix=0, mode=mode).draw(64, 8, 8, 0).weight for mode in ("batch", "pair", "elem")}
    assert len(mixes["batch"].unique()) == 1
    assert torch.equal(mixes["pair"][::2], mixes["pair"][1::2])
    assert len(mixes["pair"].unique()) == 32
    assert len(mixes["elem"].unique()) == 64


def test_the_draws_have_the_distributions_asked_for():
    """Beta(0.8, 0.8) has variance 1 / (4 * 2.6); half of the rows are cut; a tenth is left alone at prob 0.9."""
    mix = Mixer(mixup=0.8, cutmix=1.0, prob=0.9, mode="elem").draw(20000, 64, 64, 0)
    mixup = mix.weight[~mix.cut & (mix.weight < 1)].numpy()
    assert mixup.mean() == pytest.approx(0.5, abs=0.01)
    assert mixup.var() == pytest.approx(1 / (4 * 2.6), abs=0.004)
    assert mix.cut.float().mean() == pytest.approx(0.45, abs=0.01)
    assert ((mix.weight == 1) & ~mix.cut).float().mean() == pytest.approx(0.1, abs=0.01)


def test_minmax_bounds_the_sides():
    boxes = Mixer(mixup=0, minmax=(0.25, 0.5), mode="elem").draw(500, 40, 80, 0).boxes.numpy()
    heights, widths = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
    assert 10 <= heights.min() < heights.max() <= 20
    assert 20 <= widths.min() < widths.max() <= 40
    assert np.all(boxes[:, 1] <= 40)
    assert np.all(boxes[:, 3] <= 80)


def test_equal_seeds_equal_draws_and_off_is_off():
    a, b = (Mixer(mode="elem").draw(8, 8, 8, 5) for _ in range(2))
    assert torch.equal(a.weight, b.weight)
    assert torch.equal(a.boxes, b.boxes)
    assert not Mixer(mixup=0, cutmix=0).active
    assert not Mixer(prob=0).active
    assert Mixer(mixup=0, cutmix=0, minmax=(0.2, 0.3)).active
