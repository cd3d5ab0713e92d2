"""Class activation maps: pytorch-grad-cam's formulas on a pass of our own, whose backward ends at the layer.

Letters in shape comments: B images of S x S pixels, C channels of a layer, h x w its grid.
"""

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytorch_grad_cam
import torch
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from tools.base.errors import NumericsError, UsageError
from tools.explain.layers import find_layer, find_map_layout
from tools.explain.methods import METHODS


@dataclass(frozen=True)
class CamRecipe:
    """How a heat map is made: one of METHODS, and the layer or layers it is taken at.

    Attributes:
        layer: a path as users write it, or several: `blocks[2]+blocks[4]` is the mean of their maps, as in
            pytorch-grad-cam; `blocks[2]*blocks[4]` is the product, high only where all of them are: the resolution
            of the finest map with the evidence of the coarser ones.
    """

    method: str
    layer: str

    def __post_init__(self) -> None:
        if "+" in self.layer and "*" in self.layer:
            raise UsageError(f"--layer {self.layer!r}: join layers either by + (mean) or by * (product)")

    @property
    def paths(self) -> list[str]:
        """The path of every layer."""
        return re.split(r"[+*]", self.layer)


@dataclass(frozen=True)
class HeatMaps:
    """The heat maps of B images.

    Attributes:
        maps: `[B, S, S]` float32 in [0, 1] per recipe; all zero where nothing supports the class.
        cells_px: side of a cell of the finest layer in input pixels, one per recipe.
    """

    maps: list[np.ndarray]
    cells_px: list[float]


def compute_heat_maps(
    model: nn.Module,
    images: Tensor,
    recipes: Sequence[CamRecipe],
    classes: Sequence[int],
    views: Sequence[Callable[[Tensor], Tensor]] = (lambda x: x,),
) -> HeatMaps:
    """Heat maps of a batch by all `recipes`, from one pass per view. The model is left unchanged.

    Args:
        images: `[B, 3, S, S]`, normalised as the model was trained.
        classes: index of the class to explain, one per image.
        views: symmetries of the square (`tools.evaluate.inference.VIEWS`), the identity first. Maps are turned back and
            averaged, so what appears in one orientation only fades.

    Raises:
        UsageError: for a class or a layer that cannot be explained.
        NumericsError: when the model gives NaN or infinity, which would look like an ordinary map.
    """
    first = _compute_one_view(model, views[0](images), recipes, classes)
    if len(views) == 1:
        return first
    maps = first.maps
    for view in views[1:]:
        turned = _compute_one_view(model, view(images), recipes, classes).maps
        maps = [total + turn_back(view, more) for total, more in zip(maps, turned, strict=True)]
    return HeatMaps([scale_cam_image(heat) for heat in maps], first.cells_px)


def turn_back(view: Callable[[Tensor], Tensor], maps: np.ndarray) -> np.ndarray:
    """The maps `[B, S, S]` with a symmetry of the square undone: every pixel is back in its place."""
    side = maps.shape[-1]
    origin = view(torch.arange(side * side).view(1, 1, side, side)).flatten().numpy()
    back = np.empty((len(maps), side * side), maps.dtype)
    back[:, origin] = maps.reshape(len(maps), -1)
    return back.reshape(maps.shape)


def _compute_one_view(
    model: nn.Module, images: Tensor, recipes: Sequence[CamRecipe], classes: Sequence[int]
) -> HeatMaps:
    """`compute_heat_maps` for one view."""
    layers = {path: find_layer(model, path) for recipe in recipes for path in recipe.paths}
    backward = any(METHODS[recipe.method].needs_gradients for recipe in recipes)
    side = images.shape[-1]
    with _frozen(model):
        logits, points = _run(model, layers, images, backward)
        for index in classes:
            if not 0 <= index < logits.shape[1]:
                raise UsageError(f"class index {index} is not among the model's {logits.shape[1]} classes")
        to_maps = {path: find_map_layout(model, point, len(images)) for path, point in points.items()}
        slopes = _gradients(logits, classes, points) if backward else {}
        activations, gradients = (
            {path: to_maps[path](values).detach().float().cpu().numpy() for path, values in of_layers.items()}
            for of_layers in (points, slopes)
        )
        maps = []
        for recipe in recipes:
            layer_maps = []
            for path in recipe.paths:
                weighted = _apply_formula(model, images, recipe.method, classes, activations[path], gradients.get(path))
                layer_maps.append(scale_cam_image(np.maximum(weighted, 0), (side, side)))
            join = np.prod if "*" in recipe.layer else np.mean
            maps.append(scale_cam_image(join(layer_maps, axis=0)))
    if not all(np.isfinite(heat).all() for heat in maps):
        raise NumericsError("the gradients are not finite; no heat map was made")
    cells = [side / max(activations[path].shape[-1] for path in recipe.paths) for recipe in recipes]
    return HeatMaps(maps, cells)


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Inside the block, the model is in eval mode and no parameter requires a gradient; restores both afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter in trainable:
            parameter.requires_grad_(True)


def _run(
    model: nn.Module, layers: Mapping[str, nn.Module], images: Tensor, backward: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and each layer's output by its path.

    The graph begins at the first of the layers, so that a backward pass ends there: nothing before it requires a
    gradient. Most of the cost of pytorch-grad-cam's own pass is before that layer.
    """
    outputs: dict[str, list] = {path: [] for path in layers}

    def keep(path: str, _module, _inputs, output):
        if not isinstance(output, Tensor):
            raise UsageError(f"layer {path} returns more than one tensor; name another with --layer, e.g. a norm")
        point = output if output.requires_grad else output.detach().requires_grad_()
        outputs[path].append(point)
        return point.clone()  # an in-place activation after it must not overwrite what is kept

    handles = [layer.register_forward_hook(partial(keep, path)) for path, layer in layers.items()]
    try:
        with torch.set_grad_enabled(backward):
            logits = model(images)
    finally:
        for handle in handles:
            handle.remove()
    for path, given in outputs.items():
        if len(given) != 1:
            raise UsageError(f"layer {path} runs {len(given)} times per pass; name another with --layer, e.g. a norm")
    if not logits.isfinite().all():
        raise NumericsError("the model's output is not finite; no heat map was made")
    return logits, {path: given[0] for path, given in outputs.items()}


def _gradients(logits: Tensor, classes: Sequence[int], points: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of each image's class by each output, in one backward pass: images are independent in eval mode."""
    explained = logits[torch.arange(len(classes)), list(classes)].sum()
    found: Sequence[Tensor | None] = [None] * len(points)
    if explained.requires_grad:
        found = torch.autograd.grad(explained, list(points.values()), allow_unused=True)
    gradients = {path: gradient for path, gradient in zip(points, found, strict=True) if gradient is not None}
    lost = [path for path in points if path not in gradients]
    if lost:
        raise UsageError(f"layer {lost[0]} does not reach the logits; name another with --layer")
    return gradients


def _apply_formula(
    model: nn.Module,
    images: Tensor,
    method: str,
    classes: Sequence[int],
    activations: np.ndarray,
    gradients: np.ndarray | None,
) -> np.ndarray:
    """pytorch-grad-cam's formula for one layer: `[B, h, w]`, before negative values are set to zero."""
    library = getattr(pytorch_grad_cam, METHODS[method].library_class)(model, [])  # no layers: it adds no hooks
    targets = [ClassifierOutputTarget(index) for index in classes]
    if not METHODS[method].one_image_at_a_time:
        return library.get_cam_image(images, None, targets, activations, gradients, False)
    with contextlib.redirect_stderr(io.StringIO()):  # it draws a progress bar for every image
        rows = [
            library.get_cam_image(images[i : i + 1], None, targets[i : i + 1], activations[i : i + 1], None, False)
            for i in range(len(images))
        ]
    return np.concatenate(rows)
