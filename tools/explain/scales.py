"""At which sizes photos are seen for heat maps: finer input gives finer maps, which find more lesions."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor, nn

from data.loading.transforms import Preprocess
from tools.base.errors import UsageError
from tools.explain.cam import CamRecipe, HeatMaps, compute_heat_maps, join_scales

MOST_PIXELS = 384  # side of the larger input, where the model's own is smaller
BUDGET = 4 * MOST_PIXELS**2  # pixels of all passes for a map


class Scale(NamedTuple):
    """One size at which photos are seen.

    Attributes:
        model: takes images of this size.
        views: see `tools.explain.cam.compute_heat_maps`.
    """

    model: nn.Module
    preprocess: Preprocess
    views: Sequence[Callable[[Tensor], Tensor]]


def choose_scales(
    build: Callable[[int], nn.Module], preprocess: Preprocess, views: Sequence[Callable[[Tensor], Tensor]]
) -> list[Scale]:
    """The scales of default maps, for a model that scores by `preprocess`.

    A model that takes images of any size sees them at 1.5 times its own, up to MOST_PIXELS. One that can be built for
    twice its size with the same weights sees both sizes: alone, it knows lesions twice as large less well. Others see
    their own size only. Of `views`, those that are `affordable` are used.

    Args:
        build: pixels -> the model for that size; raises UsageError where there is none.
    """
    size = preprocess.size
    larger, own = max(size, min(MOST_PIXELS, 3 * size // 64 * 32)), build(size)
    built = {size: own}
    with contextlib.suppress(UsageError):
        if build(larger) is own:
            built = {larger: own}
    if built.keys() == {size} and size < larger:
        with contextlib.suppress(UsageError):
            built[2 * size] = build(2 * size)
    seen = affordable(views, list(built))
    return [Scale(model, replace(preprocess, size=side), seen) for side, model in built.items()]


def affordable(
    views: Sequence[Callable[[Tensor], Tensor]], sizes: Sequence[int]
) -> Sequence[Callable[[Tensor], Tensor]]:
    """The first 1, 2, 4, ... of `views`, as many as the BUDGET allows for images of all `sizes`."""
    number = max(1, BUDGET // sum(side**2 for side in sizes))
    return views[: 2 ** (number.bit_length() - 1)]


def see(
    scales: Sequence[Scale], images: Sequence[Tensor], recipes: Sequence[CamRecipe], classes: Sequence[int]
) -> HeatMaps:
    """The heat maps of a batch, joined over the scales; `images` has `[B, 3, S, S]` for each of them."""
    device = next(scales[0].model.parameters()).device
    return join_scales(
        [
            compute_heat_maps(scale.model, of_scale.to(device), recipes, classes, scale.views)
            for scale, of_scale in zip(scales, images, strict=True)
        ]
    )
