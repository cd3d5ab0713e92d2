"""The sizes and views of default maps, for models that take every size, one, or a rebuilt one."""

import pytest

from data.loading.transforms import Preprocess
from tools.base.errors import UsageError
from tools.evaluate.inference import VIEWS
from tools.explain.scales import BUDGET, affordable, choose_scales


def sizes_and_views(build, size):
    preprocess = Preprocess(size, "squash", "bicubic", (0.5,) * 3, (0.5,) * 3)
    scales = choose_scales(build, preprocess, VIEWS["all"])
    assert sum(len(scale.views) * scale.preprocess.size**2 for scale in scales) <= max(BUDGET, size**2)
    return [(scale.model, scale.preprocess.size, len(scale.views)) for scale in scales]


@pytest.mark.parametrize(
    ("size", "larger", "views"),
    [(64, 96, 8), (128, 192, 8), (224, 320, 4), (256, 384, 4), (384, 384, 4), (512, 512, 2)],
)
def test_a_model_of_any_size_sees_photos_finer(size, larger, views):
    assert sizes_and_views(lambda _: "net", size) == [("net", larger, views)]


@pytest.mark.parametrize(("size", "views"), [(96, 8), (192, 2), (224, 2)])
def test_a_model_that_is_rebuilt_sees_both_sizes(size, views):
    def build(pixels):
        if pixels % size:
            raise UsageError("not this size")
        return f"swin {pixels}"

    assert sizes_and_views(build, size) == [(f"swin {size}", size, views), (f"swin {2 * size}", 2 * size, views)]


@pytest.mark.parametrize(("size", "views"), [(96, 8), (224, 8), (384, 4), (1024, 1)])
def test_a_model_of_one_size_keeps_it(size, views):
    def build(pixels):
        if pixels != size:
            raise UsageError("not this size")
        return "vit"

    assert sizes_and_views(build, size) == [("vit", size, views)]


def test_views_are_a_power_of_two():
    views = VIEWS["all"]
    assert [len(affordable(views, [size])) for size in (64, 270, 384, 500, 600, 4096)] == [8, 8, 4, 2, 1, 1]
    assert list(affordable(views, [384])) == views[:4]
