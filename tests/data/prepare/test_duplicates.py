"""Duplicates made on purpose are found; photos that only resemble each other are not."""

import io

import numpy as np
import pytest
from conftest import SHARED
from PIL import Image, ImageEnhance

from data.images import decode, read_image
from data.prepare.duplicates import Fingerprint, find_duplicates, fingerprint
from data.sample.leaves import draw_leaf
from data.sample.sets import APPLE


def leaf(number: int) -> Image.Image:
    return Image.fromarray(draw_leaf(list(APPLE.shares)[number % len(APPLE.shares)], (77, number)).pixels)


def saved_again(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return decode(buffer.getvalue(), "x")


DUPLICATES = {
    "the same": lambda image: image.copy(),
    "saved as a worse JPEG": lambda image: saved_again(image, 40),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "cropped by a little": lambda image: image.crop((2, 2, 158, 158)),
    "half the size": lambda image: image.resize((80, 80)),
}


@pytest.mark.parametrize("how", DUPLICATES)
def test_a_duplicate_is_found_among_many_leaves(how):
    leaves = [leaf(number) for number in range(24)]
    prints = [fingerprint(image) for image in (*leaves, DUPLICATES[how](leaves[5]))]
    assert find_duplicates(prints) == [[5, 24]]
    assert (prints[5].pixels == prints[24].pixels) == (how == "the same")


def test_duplicates_of_duplicates_are_one_group():
    image = leaf(1)
    photos = [image, leaf(2), saved_again(image, 50), leaf(3), image, leaf(2)]
    assert find_duplicates([fingerprint(photo) for photo in photos]) == [[0, 2, 4], [1, 5]]


def test_flat_photos_are_duplicates_only_when_they_are_equal():
    shades = [Image.new("RGB", (40, 40), (v, v, v)) for v in (0, 0, 90, 200, 255)]
    assert find_duplicates([fingerprint(image) for image in shades]) == [[0, 1]]
    assert find_duplicates([]) == []


def test_equal_bytes_of_another_shape_are_another_photo():
    pixels = np.arange(300, dtype=np.uint8)
    tall, wide = (Image.fromarray(pixels.reshape(shape)) for shape in ((20, 5, 3), (5, 20, 3)))
    assert fingerprint(tall).pixels != fingerprint(wide).pixels


def groups_by_definition(prints):
    """Every pair compared at once, and groups grown neighbour by neighbour."""
    bits = np.array([[p.cosine >> n & 1 for n in range(64)] for p in prints], dtype=np.float32)
    distance = bits @ (1 - bits.T) + (1 - bits) @ bits.T
    with np.errstate(invalid="ignore"):  # the correlation with a flat thumbnail
        alike = np.corrcoef([p.gray for p in prints]) >= 0.9
    linked = (distance <= 10) & alike
    linked |= np.equal.outer(*[np.unique([p.pixels for p in prints], return_inverse=True)[1]] * 2)
    left, groups = set(range(len(prints))), []
    while left:
        group, border = set(), {min(left)}
        while border:
            group |= border
            border = set(np.flatnonzero(linked[list(border)].any(axis=0)).tolist()) - group
        left -= group
        groups.append(sorted(group))
    return [group for group in groups if len(group) > 1]


@pytest.mark.parametrize(("bases", "flips"), [(2000, 16), (3, 9)])
def test_tiles_find_what_the_whole_table_holds(bases, flips):
    """4,550 prints, so that there are tiles off the diagonal; with 3 base hashes, a third of the pairs is close."""
    rng = np.random.default_rng(bases)
    num = 4500
    motifs = rng.integers(0, 256, (1500, 1024))
    noise = rng.normal(0, 1, (num, 1024)) * rng.uniform(0, 60, (num, 1))  # correlations between 0.6 and 1
    motif = rng.integers(0, len(motifs), num)
    grays = (motifs[motif] + noise).clip(0, 255).astype(np.uint8)
    grays[::50] = rng.integers(0, 256, (num // 50, 1))  # flat
    shared = [int(h) for h in rng.integers(0, 2**63, bases)]
    hashes = [shared[m % bases] ^ (1 << int(n)) - 1 for m, n in zip(motif, rng.integers(0, flips, num), strict=True)]
    prints = [Fingerprint(i.to_bytes(2), h, g) for i, (h, g) in enumerate(zip(hashes, grays, strict=True))]
    prints += prints[::90]  # equal pixels, far apart
    wanted = groups_by_definition(prints)
    assert len(wanted) > 500
    assert max(map(len, wanted)) > 3
    assert find_duplicates(prints) == wanted


@pytest.mark.skipif(not SHARED.is_dir(), reason="the course's photos are not on this machine (PLANT_DATASET)")
def test_the_real_pairs_and_a_hundred_others():
    """tests/commands/test_prepare_audit.py looks for false pairs among all 3,600."""
    pairs = [
        ("85897ea7f064b26a", "ec83c7c04a1e9db9"),
        ("a3bb604d8a55995d", "e7ecc583d571d202"),
        ("ab91d1a9d4b49a6c", "abb0d5a9d4b4985c"),
    ]
    images = SHARED / "train" / "images"
    names = [f"{name}.jpg" for pair in pairs for name in pair]
    names += [path.name for path in sorted(images.iterdir())[:100] if path.name not in names]
    assert find_duplicates([fingerprint(read_image(images / name)) for name in names]) == [[0, 1], [2, 3], [4, 5]]
