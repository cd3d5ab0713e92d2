"""Batches that fit, by hand."""

import pytest

from tools.base.errors import ResourceError
from tools.train.budget import largest_batch


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
