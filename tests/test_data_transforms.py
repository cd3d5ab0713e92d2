"""Transforms: scoring against torchvision's own steps, training's fixed points, and the posterize trap."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import AugmentOp, auto_augment_transform, rand_augment_transform
from torchvision.transforms import functional as TF

from data.build import augmentation_arguments, build_preprocess
from data.seeds import seed_of, seeded
from data.transforms import Preprocess, QuarterTurns, keep_one_bit, train_transform

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("crop", [True, False])
def test_scoring_is_resize_crop_normalize_by_hand(crop):
    got = Preprocess(224, crop, "bicubic", MEAN, STD).transform()(PHOTO)
    bicubic = TF.InterpolationMode.BICUBIC
    square = TF.center_crop(TF.resize(PHOTO, 256, bicubic), 224) if crop else TF.resize(PHOTO, [224, 224], bicubic)
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1) / 255
    expected = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


def test_it_survives_the_checkpoint():
    preprocess = Preprocess(224, True, "bilinear", MEAN, STD)
    assert Preprocess.from_dict(preprocess.to_dict()) == preprocess


def settings(**changes):
    from configs.load import load

    config = load(None).config
    arguments = augmentation_arguments(config.DATA, config.AUG, build_preprocess(config.DATA, config.TEST, MEAN, STD))
    return arguments | changes


def test_training_repeats_for_a_seed_and_varies_between_seeds():
    transform = train_transform(**settings())

    def draw(seed):
        with seeded(seed):
            return transform(PHOTO)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert draw(1).shape == (3, 224, 224)


def test_with_everything_off_training_sees_what_scoring_sees():
    plain = settings(scale=[1, 1], ratio=[4 / 3, 4 / 3], hflip=0, vflip=0, auto_augment="", color_jitter=0, reprob=0)
    got = train_transform(**plain)(PHOTO)
    torch.testing.assert_close(got, Preprocess(224, False, "bicubic", MEAN, STD).transform()(PHOTO))


def test_quarter_turns_are_the_four_rotations_equally_often():
    turns, seen = QuarterTurns(), {}
    with seeded(0):
        for _ in range(400):
            key = np.asarray(turns(PHOTO.resize((8, 8)))).tobytes()
            seen[key] = seen.get(key, 0) + 1
    square = np.asarray(PHOTO.resize((8, 8)))
    assert set(seen) == {np.ascontiguousarray(np.rot90(square, k)).tobytes() for k in range(4)}
    assert min(seen.values()) > 70


@pytest.mark.parametrize(
    "policy", [rand_augment_transform("rand-m9-mstd0.5-inc1", {}), auto_augment_transform("original", {})]
)
def test_posterize_never_asks_for_zero_bits(policy):
    """Found on real photos: level 10 of PosterizeIncreasing is 0 bits, which Pillow 13 refuses."""
    keep_one_bit(policy)
    ops = policy.ops if hasattr(policy, "ops") else [op for sub in policy.policy for op in sub]
    posterize = [op for op in ops if op.name.startswith("Posterize")]
    assert posterize
    for op in posterize:
        assert all(op.level_fn(level, op.hparams)[0] >= 1 for level in range(11))
    op = AugmentOp("PosterizeIncreasing", prob=1.0, magnitude=10, hparams={})
    with pytest.raises(ValueError, match="bits"):
        op(PHOTO)
    keep_one_bit(op)
    assert op(PHOTO).size == PHOTO.size


def test_seeds_depend_on_every_number_and_give_the_generators_back():
    assert len({seed_of(*n) for n in ((0, 1, 2), (0, 2, 1), (1, 1, 2), (0, 1), (0, 1, 2, 0, 1))}) == 5
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    with seeded(3):
        torch.rand(5), np.random.rand(5)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
