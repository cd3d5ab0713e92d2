"""Class activation maps: pytorch-grad-cam's formulas on a pass of our own, which ends where the layer stands.

Letters in shape comments: B images of S x S pixels, C channels of a layer, h x w its grid.
"""

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pytorch_grad_cam import EigenCAM, GradCAM, GradCAMPlusPlus, LayerCAM, ScoreCAM
from pytorch_grad_cam.base_cam import BaseCAM
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from tools.base.errors import NumericsError, UsageError

METHODS: dict[str, type[BaseCAM]] = {
    "gradcam": GradCAM,  # Selvaraju et al., arXiv 1610.02391
    "gradcam++": GradCAMPlusPlus,  # Chattopadhay et al., arXiv 1710.11063
    "layercam": LayerCAM,  # Jiang et al., IEEE TIP 2021, doi 10.1109/TIP.2021.3089943
    "eigencam": EigenCAM,  # Muhammad and Yeasin, arXiv 2008.00299: the same map for every class
    "scorecam": ScoreCAM,  # Wang et al., arXiv 1910.01279: a pass for every channel
}


WITHOUT_GRADIENTS = ("eigencam", "scorecam")


@dataclass(frozen=True)
class Recipe:
    """How a heat map is made: one of METHODS, and at which layers.

    Attributes:
        join: what becomes of several layers' maps: "+" their mean, as in pytorch-grad-cam; "*" their product, hot only
            where all of them are, which keeps the finest one's places and the coarser ones' opinion.
    """

    method: str
    layers: tuple[str, ...]
    join: str = "+"

    @classmethod
    def parse(cls, method: str, layers: str) -> "Recipe":
        """From what a user writes: a layer, or several as in `blocks[2]+blocks[4]` or `blocks[2]*blocks[4]`."""
        if "+" in layers and "*" in layers:
            raise UsageError(f"--layer {layers!r}: join layers either by + (mean) or by * (product)")
        join = "*" if "*" in layers else "+"
        return cls(method, tuple(layers.split(join)), join)

    @property
    def where(self) -> str:
        """The layers, as a user writes them."""
        return self.join.join(self.layers)


@dataclass(frozen=True)
class Explained:
    """What one pass over B images gave.

    Attributes:
        logits: `[B, num_classes]`.
        classes: the class that was explained, one an image.
        maps: one `[B, S, S]` float32 in [0, 1] a recipe; all zero where nothing speaks for the class.
        cells: side of a map's cell in input pixels, one a recipe; of its finest layer.
    """

    logits: np.ndarray
    classes: list[int]
    maps: list[np.ndarray]
    cells: list[float]


def explain(
    model: nn.Module,
    images: Tensor,
    recipes: Sequence[Recipe],
    classes: Sequence[int] | Callable[[np.ndarray], Sequence[int]],
    views: Sequence[Callable[[Tensor], Tensor]] = (lambda x: x,),
) -> Explained:
    """Heat maps of a batch by all `recipes`, from one pass a view. The model is left as it was.

    Args:
        images: `[B, 3, S, S]`, normalised as the model was trained.
        classes: index of the class to explain, one an image; or how to choose them from the logits `[B, num_classes]`
            of the first view.
        views: symmetries of the square (`tools.evaluate.inference.VIEWS`), the first of which moves nothing. Maps are
            turned back and averaged, and so are logits: what one orientation shows by accident grows faint.

    Raises:
        UsageError: for a class or a layer that cannot be explained.
        NumericsError: for a model that gives NaN or infinity, which would look like an ordinary map.
    """
    first = _explain_once(model, views[0](images), recipes, classes)
    if len(views) == 1:
        return first
    logits, maps = first.logits, first.maps
    for view in views[1:]:
        more = _explain_once(model, view(images), recipes, first.classes)
        logits = logits + more.logits
        maps = [sum_ + turn_back(view, turned) for sum_, turned in zip(maps, more.maps, strict=True)]
    return Explained(logits / len(views), first.classes, [scale_cam_image(heat) for heat in maps], first.cells)


def turn_back(view: Callable[[Tensor], Tensor], maps: np.ndarray) -> np.ndarray:
    """The inverse of a symmetry of the square, on `[B, S, S]`: every pixel goes back to where the view took it from."""
    side = maps.shape[-1]
    origin = view(torch.arange(side * side).view(1, 1, side, side)).flatten().numpy()
    back = np.empty((len(maps), side * side), maps.dtype)
    back[:, origin] = maps.reshape(len(maps), -1)
    return back.reshape(maps.shape)


def _explain_once(
    model: nn.Module,
    images: Tensor,
    recipes: Sequence[Recipe],
    classes: Sequence[int] | Callable[[np.ndarray], Sequence[int]],
) -> Explained:
    """`explain` of one view."""
    layers = {path: find_layer(model, path) for recipe in recipes for path in recipe.layers}
    backward = any(recipe.method not in WITHOUT_GRADIENTS for recipe in recipes)
    with _frozen(model):
        logits, outputs = _run(model, layers, images, backward)
        chosen = classes(logits.detach().float().cpu().numpy()) if callable(classes) else classes
        classes = [int(index) for index in chosen]
        for index in classes:
            if not 0 <= index < logits.shape[1]:
                raise UsageError(f"class index {index} is not among the model's {logits.shape[1]} classes")
        reshape = {path: map_geometry(model, output, len(images)) for path, output in outputs.items()}
        gradients = _gradients(logits, classes, outputs) if backward else dict.fromkeys(outputs)
        parts = {
            path: (_to_numpy(reshape[path], output), _to_numpy(reshape[path], gradients[path]))
            for path, output in outputs.items()
        }
        maps = [_combine(model, images, recipe, parts, classes) for recipe in recipes]
    if not all(np.isfinite(heat).all() for heat in maps):
        raise NumericsError("the gradients are not finite; no heat map was made")
    side = images.shape[-1]
    cells = [side / max(parts[path][0].shape[-1] for path in recipe.layers) for recipe in recipes]
    return Explained(logits.detach().float().cpu().numpy(), classes, maps, cells)


def find_layer(model: nn.Module, path: str) -> nn.Module:
    """The module at a path as Python writes it, e.g. `layers[-1].blocks[-1].norm1`. Nothing is evaluated.

    Raises:
        UsageError: when the path is malformed or leads nowhere.
    """
    if not re.fullmatch(r"\w+(\[-?[0-9]{1,4}\]|\.\w+)*", path):
        raise UsageError(f"--layer {path!r} is not a path like layers[-1].blocks[-1].norm1")
    module, walked = model, "model"
    for name, index in re.findall(r"(\w+)(?=\.|\[|$)|\[(-?\d+)\]", path):
        children = dict(module.named_children())
        if index:
            names = list(children)
            place = int(index)
            if not isinstance(module, nn.ModuleList | nn.Sequential) or not -len(names) <= place < len(names):
                raise UsageError(f"--layer {path}: {walked} has no [{index}]")
            module = children[names[place]]
        elif name in children:
            module = children[name]
        else:
            raise UsageError(f"--layer {path}: {walked} has no {name}; it has {', '.join(children) or 'no parts'}")
        walked += f"[{index}]" if index else f".{name}"
    return module


def default_recipe(model: nn.Module, method: str = "layercam") -> Recipe:
    """What to draw when the user does not say: what pointed at the lesions best (docs/results.md, "Heatmaps").

    That is LayerCAM, the product of the two stages before the last, whose cells are as small as lesions. The other
    methods weigh a whole channel by one number, which only the last layer's channels deserve.
    """
    if method != "layercam":
        return classic_recipe(model, method)
    stages = _stages(model, "norm1")
    return Recipe(method, tuple(stages[-3:-1] or stages), "*")


def classic_recipe(model: nn.Module, method: str = "gradcam") -> Recipe:
    """The course project's figure: Grad-CAM at the last block of a Swin, elsewhere at timm's last feature map."""
    return Recipe(method, (_stages(model, "norm1")[-1],))


def block_layers(model: nn.Module, norm: str) -> list[str]:
    """The last two blocks: of a Swin's last stage, at their `norm1` or `norm2`; elsewhere of the row of stages.

    Raises:
        UsageError: for an architecture without such a row of blocks.
    """
    if _is_swin(model):
        return [f"layers[-1].blocks[{place}].{norm}" for place in (-2, -1)]
    match = re.fullmatch(r"(.+)\[(\d+)\]", _stages(model, norm)[-1])
    if not match or int(match[2]) < 1:
        raise UsageError("this architecture has no row of blocks to compare; name layers with --layer A B")
    return [f"{match[1]}[{int(match[2]) - 1}]", match[0]]


def stage_layers(model: nn.Module, norm: str) -> list[str]:
    """The last two stages, each at its own grid: a Swin's at a norm of its last block, before patch merging."""
    return _stages(model, norm)[-2:]


def _is_swin(model: nn.Module) -> bool:
    """Whether it is a Swin, ours or timm's."""
    return hasattr(model, "layers") and hasattr(model.layers[-1], "blocks")


def _stages(model: nn.Module, norm: str) -> list[str]:
    """A path for every stage, the coarsest last: at the `norm` of a Swin's last blocks, else as timm names them.

    Raises:
        UsageError: for an architecture that names none.
    """
    if _is_swin(model):
        return [f"layers[{stage}].blocks[-1].{norm}" for stage in range(-len(model.layers), 0)]
    entries = getattr(model, "feature_info", None)
    if not entries:
        raise UsageError("this architecture names no feature maps; give --layer")
    return [re.sub(r"\.(\d+)", r"[\1]", entry["module"]) for entry in entries]


def map_geometry(model: nn.Module, output: Tensor, batch: int) -> Callable[[Tensor], Tensor]:
    """How a layer's output for `batch` square images becomes maps `[B, C, h, w]`.

    Tokens `[B, L, C]` become a square grid, less a vision transformer's class token; NHWC is turned to NCHW.

    Raises:
        UsageError: for an output that is no map of each image (windows, vectors).
    """
    shape = tuple(output.shape)
    wrong = UsageError(f"--layer: its output {shape} is no map of {batch} image(s); choose another, e.g. a norm")
    if len(shape) < 3 or shape[0] != batch:
        raise wrong
    if len(shape) == 3:
        prefix = getattr(model, "num_prefix_tokens", 0)
        side = round((shape[1] - prefix) ** 0.5)
        if side < 2 or side * side != shape[1] - prefix:
            raise wrong
        return lambda tokens: tokens[:, prefix:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    if len(shape) != 4:
        raise wrong
    last_two, first_two = shape[2] == shape[3], shape[1] == shape[2]
    if not last_two and not first_two:
        raise wrong
    channels_last = first_two and (not last_two or getattr(model, "output_fmt", "NCHW") == "NHWC")
    return (lambda maps: maps.permute(0, 3, 1, 2)) if channels_last else (lambda maps: maps)


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode and no parameter asks for a gradient; afterwards all is as it was."""
    modes = [(module, module.training) for module in model.modules()]
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter in asking:
            parameter.requires_grad_(True)


def _run(
    model: nn.Module, layers: Mapping[str, nn.Module], images: Tensor, backward: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and each layer's output by its path.

    The graph begins at the first of the layers, so that a backward pass ends there: nothing before it asks for a
    gradient. That is most of what pytorch-grad-cam's own pass costs.
    """
    outputs: dict[str, list] = {path: [] for path in layers}

    def keep(path: str):
        def hook(_module, _inputs, output):
            if not isinstance(output, Tensor):
                raise UsageError(f"--layer {path}: this module gives more than one tensor; choose another, e.g. a norm")
            point = output if output.requires_grad else output.detach().requires_grad_()
            outputs[path].append(point)
            return point.clone()  # an in-place activation behind it must not overwrite what is kept

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
            raise UsageError(f"--layer {path}: it runs {len(given)} times a pass; choose another, e.g. a norm")
    if not logits.isfinite().all():
        raise NumericsError("the model's output is not finite; no heat map was made")
    return logits, {path: given[0] for path, given in outputs.items()}


def _gradients(logits: Tensor, classes: Sequence[int], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of each image's class by each output. Images do not mix in eval mode, so one backward pass serves all."""
    explained = logits[torch.arange(len(classes)), list(classes)].sum()
    given = [None] * len(outputs)
    if explained.requires_grad:
        given = torch.autograd.grad(explained, list(outputs.values()), allow_unused=True)
    for path, gradient in zip(outputs, given, strict=True):
        if gradient is None:
            raise UsageError(f"--layer {path}: nothing of it reaches the logits; choose another")
    return dict(zip(outputs, given, strict=True))


def _to_numpy(reshape: Callable[[Tensor], Tensor], values: Tensor | None) -> np.ndarray | None:
    return None if values is None else reshape(values.detach()).float().cpu().numpy()


def _combine(
    model: nn.Module,
    images: Tensor,
    recipe: Recipe,
    parts: Mapping[str, tuple[np.ndarray, np.ndarray | None]],
    classes: Sequence[int],
) -> np.ndarray:
    """`[B, S, S]` in [0, 1]: each layer's map is scaled, drawn out to the image; they are joined and scaled again."""
    size = tuple(images.shape[-2:])[::-1]
    maps = [
        scale_cam_image(np.maximum(_formula(model, images, recipe.method, *parts[path], classes), 0), size)
        for path in recipe.layers
    ]
    return scale_cam_image(np.mean(maps, axis=0) if recipe.join == "+" else np.prod(maps, axis=0))


def _formula(
    model: nn.Module,
    images: Tensor,
    method: str,
    activations: np.ndarray,
    gradients: np.ndarray | None,
    classes: Sequence[int],
) -> np.ndarray:
    """pytorch-grad-cam's formula for one layer: `[B, h, w]`, before negative values are cut off."""
    library = METHODS[method](model, [])  # no layers: it is to compute, not to hook
    targets = [ClassifierOutputTarget(index) for index in classes]
    if method != "scorecam":
        return library.get_cam_image(images, None, targets, activations, gradients, False)
    with contextlib.redirect_stderr(io.StringIO()):  # it draws a progress bar for every image
        rows = [  # one image at a time: its masked copies, one a channel, are all made at once
            library.get_cam_image(images[i : i + 1], None, targets[i : i + 1], activations[i : i + 1], None, False)
            for i in range(len(images))
        ]
    return np.concatenate(rows)
