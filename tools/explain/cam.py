"""Class activation maps: pytorch-grad-cam's formulas on a pass of our own, whose backward ends at the layer.

Letters in shape comments: B images of S x S pixels, C channels of a layer, h x w its grid.
"""

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

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
            pytorch-grad-cam; `blocks[2]*blocks[4]` is the product, hot only where all of them are, which keeps the
            places of the finest map and the evidence of the coarser ones.
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
            averaged: what appears in one orientation only grows faint.

    Raises:
        UsageError: for a class or a layer that cannot be explained.
        NumericsError: when the model gives NaN or infinity, which would look like an ordinary map.
    """
    first = _compute_one_view(model, views[0](images), recipes, classes)
    if len(views) == 1:
        return first
    maps = first.maps
    for view in views[1:]:
        more = _compute_one_view(model, view(images), recipes, classes)
        maps = [sum_ + turn_back(view, turned) for sum_, turned in zip(maps, more.maps, strict=True)]
    return HeatMaps([scale_cam_image(heat) for heat in maps], first.cells_px)


def turn_back(view: Callable[[Tensor], Tensor], maps: np.ndarray) -> np.ndarray:
    """The maps `[B, S, S]` with a symmetry of the square undone: every pixel is back in its place."""
    side = maps.shape[-1]
    origin = view(torch.arange(side * side).view(1, 1, side, side)).flatten().numpy()
    back = np.empty((len(maps), side * side), maps.dtype)
    back[:, origin] = maps.reshape(len(maps), -1)
    return back.reshape(maps.shape)


def _compute_one_view(
    model: nn.Module,
    images: Tensor,
    recipes: Sequence[CamRecipe],
    classes: Sequence[int],
) -> HeatMaps:
    """`compute_heat_maps` for one view."""
    layers = {path: find_layer(model, path) for recipe in recipes for path in recipe.paths}
    backward = any(METHODS[recipe.method].needs_gradients for recipe in recipes)
    with _frozen(model):
        logits, points = _run(model, layers, images, backward)
        for index in classes:
            if not 0 <= index < logits.shape[1]:
                raise UsageError(f"class index {index} is not among the model's {logits.shape[1]} classes")
        layouts = {path: find_map_layout(model, point, len(images)) for path, point in points.items()}
        slopes = _gradients(logits, classes, points) if backward else {}
        activations = {path: _to_numpy(layouts[path](point)) for path, point in points.items()}
        gradients = {path: _to_numpy(layouts[path](slope)) for path, slope in slopes.items()}
        maps = [_combine(model, images, recipe, activations, gradients, classes) for recipe in recipes]
    if not all(np.isfinite(heat).all() for heat in maps):
        raise NumericsError("the gradients are not finite; no heat map was made")
    side = images.shape[-1]
    cells = [side / max(activations[path].shape[-1] for path in recipe.paths) for recipe in recipes]
    return HeatMaps(maps, cells)


def _to_numpy(values: Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy()


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode and no parameter requires a gradient; both are restored afterwards."""
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
    gradient. What lies before it is most of the cost of pytorch-grad-cam's own pass.
    """
    outputs: dict[str, list] = {path: [] for path in layers}

    def keep(path: str):
        def hook(_module, _inputs, output):
            if not isinstance(output, Tensor):
                raise UsageError(f"--layer {path}: it returns more than one tensor; choose another, e.g. a norm")
            point = output if output.requires_grad else output.detach().requires_grad_()
            outputs[path].append(point)
            return point.clone()  # an in-place activation after it must not overwrite what is kept

        return hook

    handles = [layer.register_forward_hook(keep(path)) for path, layer in layers.items()]
    try:
        with torch.set_grad_enabled(backward):
            logits = model(images)
    finally:
        for handle in handles:
            handle.remove()
    for path, given in outputs.items():
        if len(given) != 1:
            raise UsageError(f"--layer {path}: it runs {len(given)} times per pass; choose another, e.g. a norm")
    if not logits.isfinite().all():
        raise NumericsError("the model's output is not finite; no heat map was made")
    return logits, {path: given[0] for path, given in outputs.items()}


def _gradients(logits: Tensor, classes: Sequence[int], points: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of each image's class by each output, in one backward pass: images do not mix in eval mode."""
    explained = logits[torch.arange(len(classes)), list(classes)].sum()
    gradients: Sequence[Tensor | None] = [None] * len(points)
    if explained.requires_grad:
        gradients = torch.autograd.grad(explained, list(points.values()), allow_unused=True)
    by_path = {}
    for path, gradient in zip(points, gradients, strict=True):
        if gradient is None:
            raise UsageError(f"--layer {path}: its output does not reach the logits; choose another")
        by_path[path] = gradient
    return by_path


def _combine(
    model: nn.Module,
    images: Tensor,
    recipe: CamRecipe,
    activations: Mapping[str, np.ndarray],
    gradients: Mapping[str, np.ndarray],
    classes: Sequence[int],
) -> np.ndarray:
    """`[B, S, S]` in [0, 1]: each layer's map is scaled and enlarged to the image; they are joined and scaled again."""
    size = tuple(images.shape[-2:])[::-1]
    maps = []
    for path in recipe.paths:
        weighted = _apply_formula(model, images, recipe.method, activations[path], gradients.get(path), classes)
        maps.append(scale_cam_image(np.maximum(weighted, 0), size))
    return scale_cam_image(np.prod(maps, axis=0) if "*" in recipe.layer else np.mean(maps, axis=0))


def _apply_formula(
    model: nn.Module,
    images: Tensor,
    method: str,
    activations: np.ndarray,
    gradients: np.ndarray | None,
    classes: Sequence[int],
) -> np.ndarray:
    """pytorch-grad-cam's formula for one layer: `[B, h, w]`, before negative values are set to zero."""
    no_layers: list[nn.Module] = []  # then the library adds no hooks and gives only its formula
    library = getattr(pytorch_grad_cam, METHODS[method].library_class)(model, no_layers)
    targets = [ClassifierOutputTarget(index) for index in classes]
    if not METHODS[method].one_image_at_a_time:
        return library.get_cam_image(images, None, targets, activations, gradients, False)
    with contextlib.redirect_stderr(io.StringIO()):  # it draws a progress bar for every image
        rows = [
            library.get_cam_image(images[i : i + 1], None, targets[i : i + 1], activations[i : i + 1], None, False)
            for i in range(len(images))
        ]
    return np.concatenate(rows)
