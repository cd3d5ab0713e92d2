"""Class activation maps: pytorch-grad-cam's formulas on a pass of our own, whose backward ends at the layer.

Letters in shape comments: B images of S x S pixels, C channels of a layer, h x w its grid.
"""

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
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
            pytorch-grad-cam; `blocks[3]*blocks[5]` is the geometric mean, high only where all of them are: the
            resolution of the finest map with the evidence of the coarser ones.
    """

    method: str
    layer: str

    def __post_init__(self) -> None:
        if "+" in self.layer and "*" in self.layer:
            raise UsageError(f"--layer {self.layer!r}: join layers either by + (mean) or by * (geometric mean)")

    @property
    def paths(self) -> list[str]:
        """The path of every layer."""
        return re.split(r"[+*]", self.layer)


@dataclass(frozen=True)
class HeatMaps:
    """The heat maps of B images.

    Attributes:
        maps: `[B, S, S]` float32 in [0, 1] per recipe: 1 where all layers and scales have their strongest place, all
            zero where nothing supports the class.
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

    The maps of a layer are averaged over the views and scaled to [0, 1]; then the layers are joined.

    Args:
        images: `[B, 3, S, S]`, normalised as the model was trained.
        classes: index of the class to explain, one per image.
        views: symmetries of the square (`tools.evaluate.inference.VIEWS`), the identity first. Maps are turned back, so
            what appears in one orientation only fades.

    Raises:
        UsageError: for a class or a layer that cannot be explained.
        NumericsError: when the model gives NaN or infinity, which would look like an ordinary map.
    """
    totals: dict[tuple[str, str], np.ndarray] = {}
    for view in views:
        for key, maps in _compute_one_view(model, view(images), recipes, classes).items():
            totals[key] = totals.get(key, np.float32(0)) + turn_back(view, maps)
    side = images.shape[-1]
    joined, cells = [], []
    for recipe in recipes:
        of_layers = [totals[recipe.method, path] for path in recipe.paths]
        if "*" in recipe.layer:
            joined.append(join_maps([_scale(_enlarge(maps, side)) for maps in of_layers]))
        else:  # as in pytorch-grad-cam
            mean = np.mean([scale_cam_image(maps, (side, side)) for maps in of_layers], axis=0)
            joined.append(scale_cam_image(mean))
        cells.append(side / max(totals[recipe.method, path].shape[-1] for path in recipe.paths))
    return HeatMaps(joined, cells)


def join_maps(maps: Sequence[np.ndarray]) -> np.ndarray:
    """The geometric mean of maps: high only where all of them are."""
    return np.prod(maps, axis=0) ** np.float32(1 / len(maps))


def join_scales(scales: Sequence[HeatMaps]) -> HeatMaps:
    """The maps of images that were seen at several sizes, joined as layers are.

    The maps have the largest size. Their cells are those of the first scale, the coarsest: a place is not known more
    exactly than there.
    """
    side = max(scale.maps[0].shape[-1] for scale in scales)
    larger = [[_enlarge(maps, side) for maps in scale.maps] for scale in scales]
    cells = [side * cell / scales[0].maps[0].shape[-1] for cell in scales[0].cells_px]
    return HeatMaps([join_maps(of_recipe).clip(0, 1) for of_recipe in zip(*larger, strict=True)], cells)


def _scale(maps: np.ndarray) -> np.ndarray:
    """`[B, S, S]`, each map scaled to [0, 1]; pytorch-grad-cam's function makes faint maps fainter."""
    low, high = (end(maps, axis=(1, 2), keepdims=True) for end in (np.min, np.max))
    return np.divide(maps - low, high - low, out=np.zeros_like(maps), where=high > low)


def _enlarge(maps: np.ndarray, side: int) -> np.ndarray:
    """`[B, h, w]` -> `[B, side, side]`, smoothly: between linear pieces, every cell's centre would be a peak."""
    return np.stack([cv2.resize(heat, (side, side), interpolation=cv2.INTER_CUBIC).clip(0, None) for heat in maps])


def turn_back(view: Callable[[Tensor], Tensor], maps: np.ndarray) -> np.ndarray:
    """The maps `[B, S, S]` with a symmetry of the square undone: every pixel is back in its place."""
    side = maps.shape[-1]
    origin = view(torch.arange(side * side).view(1, 1, side, side)).flatten().numpy()
    back = np.empty((len(maps), side * side), maps.dtype)
    back[:, origin] = maps.reshape(len(maps), -1)
    return back.reshape(maps.shape)


def _compute_one_view(
    model: nn.Module, images: Tensor, recipes: Sequence[CamRecipe], classes: Sequence[int]
) -> dict[tuple[str, str], np.ndarray]:
    """(method, layer) -> maps `[B, h, w]`, not negative, before they are scaled."""
    wanted = {(recipe.method, path) for recipe in recipes for path in recipe.paths}
    layers = {path: find_layer(model, path) for _, path in wanted}
    backward = any(METHODS[method].needs_gradients for method, _ in wanted)
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
        maps = {
            (method, path): np.maximum(
                _apply_formula(model, images, method, classes, activations[path], gradients.get(path)), 0
            )
            for method, path in wanted
        }
    if not all(np.isfinite(heat).all() for heat in maps.values()):
        raise NumericsError("the gradients are not finite; no heat map was made")
    return maps


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
