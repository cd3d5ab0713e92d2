"""The planned copies against a count by hand, and the pixels of the copies."""

from collections import Counter

import numpy as np
from PIL import Image

from data.prepare.balance import make_copy, plan_copies

# scab 6, rust 2, complex 1 (with scab): mean 3
LABELS = [["scab"]] * 5 + [["rust"], ["rust"], ["complex", "scab"]]


def test_rare_labels_reach_the_mean_or_three_copies_per_photo():
    planned = plan_copies(LABELS)
    assert planned == [(7, "flip"), (7, "bright"), (5, "flip")]
    counts = Counter(name for names in (*LABELS, *(LABELS[i] for i, _ in planned)) for name in names)
    assert counts == {"scab": 8, "rust": 3, "complex": 3}


def test_no_photo_has_a_second_copy_before_all_have_one_and_three_is_the_most():
    planned = plan_copies([["scab"]] * 60 + [["rust"]] * 4)
    assert [index for index, _ in planned] == [60, 61, 62, 63] * 3
    assert len(set(planned)) == 12
    assert plan_copies([["scab"], ["rust"]]) == plan_copies([]) == []


def test_copies_are_what_their_names_say():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels)
    assert np.array_equal(make_copy(photo, "flip"), pixels[:, ::-1])
    assert np.abs(np.asarray(make_copy(photo, "bright"), float) - np.minimum(pixels * 1.5, 255)).max() <= 1
    turned = make_copy(photo, "turn")
    assert turned.size == photo.size
    assert np.asarray(turned)[0, 0].tolist() == [0, 0, 0]
    spot = Image.new("RGB", (101, 101))
    spot.paste((255, 255, 255), (86, 46, 95, 55))  # 40 right of the middle
    y, x = np.argwhere(np.asarray(make_copy(spot, "turn"))[..., 0] > 128).mean(0) - 50
    assert abs(np.degrees(np.arctan2(-y, x)) - 20) < 1  # anticlockwise
