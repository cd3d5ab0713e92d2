"""Shears and translations against those of timm and Pillow: the same image within one gray level."""

import numpy as np
import pytest
from PIL import Image
from timm.data import auto_augment
from timm.data.auto_augment import AugmentOp, rand_augment_transform

from data.loading.shears import quicken
from data.loading.transforms import ops_of

NAMES = ("ShearX", "ShearY", "TranslateX", "TranslateY", "TranslateXRel", "TranslateYRel")
FUNCTIONS = (
    auto_augment.shear_x,
    auto_augment.shear_y,
    auto_augment.translate_x_abs,
    auto_augment.translate_y_abs,
    auto_augment.translate_x_rel,
    auto_augment.translate_y_rel,
)
HPARAMS = {"interpolation": Image.Resampling.BICUBIC, "img_mean": (124, 116, 104), "translate_const": 30}


@pytest.mark.parametrize(("name", "theirs"), list(zip(NAMES, FUNCTIONS, strict=True)), ids=NAMES)
def test_pixels_are_timms_within_one_of_255(name, theirs):
    rng = np.random.default_rng(0)
    op = AugmentOp(name, prob=1.0, hparams=HPARAMS)
    settings = op.kwargs
    quicken([op])
    assert op.aug_fn is not theirs
    for trial in range(40):
        height, width = (int(side) for side in rng.integers(20, 90, 2))
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        pixels[: height // 3] = rng.integers(0, 256, 3)  # noise is the hardest, and flat areas must stay flat
        photo = Image.fromarray(pixels)
        amount = float(rng.uniform(-0.6, 0.6)) * (width if name in ("TranslateX", "TranslateY") else 1)
        amount = round(amount) if trial % 4 == 0 else amount
        got = np.asarray(op.aug_fn(photo, amount, **op.kwargs), int)
        wanted = np.asarray(theirs(photo, amount, **settings), int)
        assert np.abs(got - wanted).max() <= 1, (trial, amount)
        assert (got != wanted).mean() < 0.01, (trial, amount)


@pytest.mark.parametrize("interpolation", [Image.Resampling.BILINEAR, None])
def test_other_resampling_is_left_to_timm(interpolation):
    hparams = {**HPARAMS, "interpolation": interpolation} if interpolation is not None else {}
    ops = list(ops_of(rand_augment_transform("rand-m9-mstd0.5-inc1", hparams)))
    before = [op.aug_fn for op in ops]
    quicken(ops)
    assert [op.aug_fn for op in ops] == before
