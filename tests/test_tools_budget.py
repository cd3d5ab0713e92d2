"""Batches that fit, by hand."""

import pytest

from tools.budget import cut_batch, largest_batch
from tools.errors import ResourceError


@pytest.mark.parametrize(
    ("image", "fixed", "budget", "images"),
    [(10, 100, 1100, 96), (10, 100, 190, 8), (10, 100, 180, 8), (10, 100, 179, 7), (10, 100, 110, 1), (0.5, 0, 9, 16)],
)
def test_as_many_images_as_fit_in_eights(image, fixed, budget, images):
    assert largest_batch(image, fixed, budget) == images
    assert fixed + images * image <= budget


def test_not_even_one_image_is_a_resource_error():
    with pytest.raises(ResourceError, match="one image does not fit"):
        largest_batch(10, 100, 109)


@pytest.mark.parametrize(
    ("effective", "largest", "multiple", "cut"),
    [
        (128, 200, 1, (128, 1)),
        (128, 100, 1, (64, 2)),
        (96, 50, 1, (48, 2)),
        (100, 30, 1, (25, 4)),  # no divisor is a multiple of 8
        (100, 30, 2, (20, 5)),  # pairs
        (40, 20, 1, (20, 2)),  # 8 would be less than half of it
        (72, 12, 1, (8, 9)),  # 12 fits too, and 8 is the better one
        (7, 6, 1, (1, 7)),
    ],
)
def test_the_update_keeps_its_size(effective, largest, multiple, cut):
    assert cut_batch(effective, largest, multiple) == cut
    assert cut[0] * cut[1] == effective


def test_pairs_that_do_not_divide_the_update_are_refused():
    with pytest.raises(ResourceError, match="multiples of 2"):
        cut_batch(7, 6, 2)
