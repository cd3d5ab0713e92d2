"""Transforms: scoring against torchvision's steps, training against timm's, and the fault of posterize."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp, auto_augment_transform, rand_augment_transform
from torchvision.transforms import functional as TF

from data.build import augmentation_arguments, build_preprocess
from data.loading.batches import Normalize, collate
from data.loading.seeds import seed_of, seeded
from data.loading.shears import quicken
from data.loading.transforms import Preprocess, TrainTransform, keep_one_bit, ops_of, quarter_turn, resize

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
PIXELS = np.asarray(PHOTO)
RESIZES = ("squash", "crop", "letterbox")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("resize", RESIZES)
def test_scoring_is_resize_crop_normalize_by_hand(resize):
    got = Preprocess(224, resize, "bicubic", MEAN, STD).transform()(PHOTO)
    bicubic = TF.InterpolationMode.BICUBIC
    square = {
        "crop": lambda: TF.center_crop(TF.resize(PHOTO, 256, bicubic), 224),
        "squash": lambda: TF.resize(PHOTO, [224, 224], bicubic),
        "letterbox": lambda: TF.pad(TF.resize(PHOTO, [168, 224], bicubic), [0, 28], (124, 116, 104)),
    }[resize]()
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1) / 255
    expected = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


def test_preprocess_survives_a_checkpoint():
    preprocess = Preprocess(224, "letterbox", "bilinear", MEAN, STD)
    assert Preprocess.from_dict(preprocess.to_dict()) == preprocess


def settings(**changes):
    from configs.load import load

    config = load(None).config
    arguments = augmentation_arguments(config.DATA, config.AUG, build_preprocess(config.DATA, config.TEST, MEAN, STD))
    return arguments | changes


def test_training_repeats_for_a_seed_and_varies_between_seeds():
    transform = TrainTransform(settings())

    def draw(seed):
        with seeded(seed):
            return transform(PIXELS).pixels

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert (draw(1).shape, draw(1).dtype) == ((3, 224, 224), torch.uint8)


OFF = {"auto_augment": None, "color_jitter": None, "re_prob": 0, "hflip": 0, "vflip": 0}


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("resize", ["squash", "letterbox"])
@pytest.mark.parametrize("photo", [PIXELS, np.rot90(PIXELS), PIXELS[:, :150]], ids=["4:3", "3:4", "1:2"])
def test_with_everything_off_training_sees_what_scoring_sees(resize, interpolation, photo):
    plain = settings(scale=[1, 1], ratio=[1, 1], interpolation=interpolation, **OFF)
    got = TrainTransform(plain, resize=resize)(photo).pixels.int()
    assert (got - Preprocess(224, resize, interpolation, MEAN, STD).view(photo).pixels.int()).abs().max() <= 2


def test_squares_are_squashed_and_letterboxed_alike():
    """And training draws what timm draws on the photo, whatever DATA.RESIZE says."""
    square = np.ascontiguousarray(PIXELS[:, :300])
    squash, letterbox = (Preprocess(224, resize, "bicubic", MEAN, STD).view(square) for resize in RESIZES[::2])
    assert torch.equal(squash.pixels, letterbox.pixels)
    for seed in range(6):
        views = []
        for name in RESIZES:
            with seeded(seed):
                views.append(TrainTransform(settings(), quarter_turns=True, resize=name)(square).pixels)
        assert torch.equal(views[0], views[1])
        assert torch.equal(views[0], views[2])


def draw_places(height, width, resize, seed, **changes):
    """A training view of a photo whose colours are places.

    (rows of the photo, its columns, where the view shows the photo and not padding), [96, 96] each.
    """
    photo = np.zeros((height, width, 3), np.uint8)
    photo[..., 0], photo[..., 1] = np.linspace(50, 250, height)[:, None], np.linspace(50, 250, width)
    arguments = settings(interpolation="bilinear", mean=(0, 0, 0), input_size=96, **OFF | changes)
    with seeded(seed):
        down, across, _ = (TrainTransform(arguments, resize=resize)(photo).pixels.numpy() - 50.0) / 200
    return down * height, across * width, down >= 0


@pytest.mark.parametrize("shape", [(480, 640), (640, 480)], ids=str)
@pytest.mark.parametrize("resize", RESIZES)
def test_crops_distort_a_photo_as_scoring_does(resize, shape):
    for seed in range(8):
        rows, columns, photo = draw_places(*shape, resize, seed, scale=[0.3, 0.3], ratio=[1, 1])
        (down, _), (across, _) = (
            np.polyfit(np.flatnonzero(photo[line]), places[line][photo[line]], 1)  # pixels of the photo per pixel
            for places, line in ((rows, np.s_[:, 48]), (columns, np.s_[48]))
        )
        assert across / down == pytest.approx(shape[1] / shape[0] if resize == "squash" else 1, rel=0.03), seed


@pytest.mark.parametrize("shape", [(480, 640), (640, 360), (40, 400)], ids=str)
def test_no_crop_has_a_larger_share_of_padding_than_the_letterboxed_photo(shape):
    """Crops at the corners of the padded square would show nothing else."""
    shares = [1 - draw_places(*shape, "letterbox", seed)[2].mean() for seed in range(40)]
    assert max(shares) <= 1 - min(shape) / max(shape) + 0.01
    assert min(shares) < max(shares) - 0.1, "crops differ"


@pytest.mark.parametrize("shape", [(1, 300), (3, 600), (900, 1), (1, 1), (1, 2), (3, 2)], ids=str)
@pytest.mark.parametrize("resize", RESIZES)
def test_a_strip_is_cropped_too_and_a_photo_of_a_few_pixels(resize, shape):
    """timm rounds the sides of a crop, and less than half a pixel to none."""
    for seed in range(8):
        assert draw_places(*shape, resize, seed, scale=[0.02, 1])[2].any()
    if resize != "crop":
        preprocess = Preprocess(32, resize, "bicubic", MEAN, STD)
        assert preprocess.view(np.zeros((*shape, 3), np.uint8)).pixels.shape == (3, 32, 32)


def test_lanczos_resizes_and_the_policy_rotates_bicubically():
    """Pillow can resize with Lanczos, but not rotate or shear."""
    lanczos, bicubic = (TrainTransform(settings(interpolation=mode, re_prob=0)) for mode in ("lanczos", "bicubic"))
    noise = np.random.default_rng(1).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    for seed in range(40):
        views = []
        for transform in (lanczos, bicubic):
            with seeded(seed):
                views.append(np.asarray(transform.policy(Image.fromarray(noise))))
        assert np.array_equal(*views)


def test_a_view_normalised_on_the_device_is_what_transform_gives():
    preprocess = Preprocess(224, "crop", "bicubic", MEAN, STD)
    images, targets = Normalize(MEAN, STD)(collate([(preprocess.view(PIXELS), torch.ones(6))] * 2), "cpu")
    assert torch.equal(images, preprocess.transform()(PHOTO).expand(2, -1, -1, -1))
    assert torch.equal(targets, torch.ones(2, 6))


def timms(**changes):
    """The transform of timm, torchvision and Pillow with the same settings, to normalised float32 [3, S, S]."""
    transform = create_transform(is_training=True, **settings(**changes))
    keep_one_bit(ops_of(transform))
    quicken(ops_of(transform))  # they have their own test, in test_shears.py
    return transform


def both(photo, seed, **changes):
    """The photo augmented by us and by timm with the same draws, [3, S, S] each."""
    ours, theirs = TrainTransform(settings(**changes)), timms(**changes)
    with seeded(seed):
        images, _ = Normalize(MEAN, STD)(collate([(ours(np.asarray(photo)), torch.zeros(6))]), "cpu")
    with seeded(seed):
        return images[0], theirs(photo)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crops_and_flips_are_timms_within_two_of_255(interpolation):
    rows = torch.tensor(STD).view(3, 1, 1) * 255
    for seed in range(12):
        photo = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (256, 256, 3), dtype=np.uint8))
        ours, theirs = both(photo, seed, **OFF | {"hflip": 0.5, "vflip": 0.5, "interpolation": interpolation})
        assert ((ours - theirs) * rows).abs().max() < 2.01, seed


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"auto_augment": None, "color_jitter": 0.4, "re_prob": 1.0},
        {"auto_augment": "original", "re_prob": 1.0, "re_mode": "rand", "re_count": 3},
        {"auto_augment": None, "color_jitter": None, "re_prob": 1.0, "re_mode": "const"},
    ],
    ids=lambda changes: " ".join(f"{k}={v}" for k, v in changes.items()),
)
def test_policies_jitter_and_erasing_are_timms_bit_for_bit(changes):
    """On an image that no crop resizes, the steps after the crop get equal pixels, and must give equal pixels."""
    photo, whole = PHOTO.resize((96, 96)), {"input_size": 96, "scale": [1, 1], "ratio": [1, 1]}
    for seed in range(25):
        ours, theirs = both(photo, seed, **whole, **changes)
        assert torch.equal(ours, theirs), seed


def test_resizing_is_pillows_within_two_of_255():
    """Noise is the hardest image: with the axes in the wrong order the difference is 20."""
    rng = np.random.default_rng(0)
    for _ in range(150):
        height, width = (int(side) for side in rng.integers(30, 220, 2))
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        wanted = np.asarray(Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC), int)
        got = resize(torch.from_numpy(pixels), (96, 96), TF.InterpolationMode.BICUBIC)
        assert np.abs(got.permute(1, 2, 0).numpy() - wanted).max() <= 2, (height, width)


def test_quarter_turns_are_the_four_rotations_equally_often():
    square = np.asarray(PHOTO.resize((8, 8)))
    seen = {}
    with seeded(0):
        for _ in range(400):
            key = np.ascontiguousarray(quarter_turn(square)).tobytes()
            seen[key] = seen.get(key, 0) + 1
    assert set(seen) == {np.ascontiguousarray(np.rot90(square, k)).tobytes() for k in range(4)}
    assert min(seen.values()) > 70


@pytest.mark.parametrize(
    "policy", [rand_augment_transform("rand-m9-mstd0.5-inc1", {}), auto_augment_transform("original", {})]
)
def test_posterize_never_asks_for_zero_bits(policy):
    """Found on real photos: level 10 of PosterizeIncreasing is 0 bits, which Pillow 13 refuses."""
    keep_one_bit(ops_of(policy))
    ops = policy.ops if hasattr(policy, "ops") else [op for sub in policy.policy for op in sub]
    posterize = [op for op in ops if op.name.startswith("Posterize")]
    assert posterize
    for op in posterize:
        assert all(op.level_fn(level, op.hparams)[0] >= 1 for level in range(11))
    op = AugmentOp("PosterizeIncreasing", prob=1.0, magnitude=10, hparams={})
    with pytest.raises(ValueError, match="bits"):
        op(PHOTO)
    keep_one_bit([op])
    assert op(PHOTO).size == PHOTO.size


def test_seeds_depend_on_every_number_and_generators_are_restored():
    assert len({seed_of(*n) for n in ((0, 1, 2), (0, 2, 1), (1, 1, 2), (0, 1), (0, 1, 2, 0, 1))}) == 5
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    with seeded(3):
        torch.rand(5), np.random.rand(5)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


def test_seeded_is_numpys_own_stream_and_may_be_nested():
    wanted = np.random.RandomState(7).rand(4)
    with seeded(7):
        first = np.random.rand(2)
        with seeded(8):
            assert np.array_equal(np.random.rand(2), np.random.RandomState(8).rand(2))
        assert np.array_equal([*first, *np.random.rand(2)], wanted)
