"""Layers of a model: which ones heat maps are taken at, and how a layer's output becomes maps."""

import re
from collections.abc import Callable

from torch import Tensor, nn

from tools.base.errors import UsageError


def choose_default_layer(model: nn.Module, method: str) -> str:
    """The layer of a heat map when the user names none: what pointed at lesions best (docs/results.md, "Heatmaps").

    For LayerCAM that is the product of the two stages before the last, whose cells are as small as lesions. The other
    methods weight a whole channel by one number, which suits only the last layer.
    """
    if method != "layercam":
        return choose_classic_layer(model)
    stages = _list_stages(model, "norm1")
    return "*".join(stages[-3:-1] or stages)


def choose_classic_layer(model: nn.Module) -> str:
    """The layer of the course project's figure: the last block of a Swin, elsewhere timm's last feature map."""
    return _list_stages(model, "norm1")[-1]


def list_block_layers(model: nn.Module, norm: str) -> list[str]:
    """Paths of the last two blocks: in a Swin's last stage at `norm1` or `norm2`, elsewhere the last two stages.

    Raises:
        UsageError: for an architecture whose stages are not numbered.
    """
    if _count_swin_stages(model):
        return [f"layers[-1].blocks[{place}].{norm}" for place in (-2, -1)]
    match = re.fullmatch(r"(.+)\[(\d+)\]", _list_stages(model, norm)[-1])
    if not match or int(match[2]) < 1:
        raise UsageError("this architecture has no sequence of blocks to compare; name layers with --layer A B")
    return [f"{match[1]}[{int(match[2]) - 1}]", match[0]]


def list_stage_layers(model: nn.Module, norm: str) -> list[str]:
    """Paths of the last two stages, each at its own grid: a Swin's at a norm of its last block, before merging."""
    return _list_stages(model, norm)[-2:]


def _count_swin_stages(model: nn.Module) -> int:
    """The number of stages of a Swin, ours or timm's; 0 for any other architecture."""
    layers = getattr(model, "layers", None)
    stages = list(layers.children()) if isinstance(layers, nn.Module) else []
    return len(stages) if stages and hasattr(stages[-1], "blocks") else 0


def _list_stages(model: nn.Module, norm: str) -> list[str]:
    """One path per stage, the coarsest last: at the `norm` of a Swin's last blocks, else as timm names them.

    Raises:
        UsageError: for an architecture that names no stages.
    """
    if num_stages := _count_swin_stages(model):
        return [f"layers[{stage}].blocks[-1].{norm}" for stage in range(-num_stages, 0)]
    entries = getattr(model, "feature_info", None)
    if not entries:
        raise UsageError("this architecture names no feature maps; give --layer")
    return [re.sub(r"\.(\d+)", r"[\1]", entry["module"]) for entry in entries]


def find_layer(model: nn.Module, path: str) -> nn.Module:
    """The module at a path in Python's notation, e.g. `layers[-1].blocks[-1].norm1`. Nothing is evaluated.

    Raises:
        UsageError: when the path is malformed or names no module.
    """
    if not re.fullmatch(r"\w+(\[-?[0-9]{1,4}\]|\.\w+)*", path):
        raise UsageError(f"--layer {path!r} is not a path like layers[-1].blocks[-1].norm1")
    module, walked = model, "model"
    for name, index in re.findall(r"(\w+)(?=\.|\[|$)|\[(-?\d+)\]", path):
        children = dict(module.named_children())
        if index:
            is_list = isinstance(module, nn.ModuleList | nn.Sequential)
            if not is_list or not -len(children) <= int(index) < len(children):
                raise UsageError(f"--layer {path}: {walked} has no [{index}]")
            module = list(children.values())[int(index)]
        elif name in children:
            module = children[name]
        else:
            raise UsageError(f"--layer {path}: {walked} has no {name}; it has {', '.join(children) or 'no children'}")
        walked += f"[{index}]" if index else f".{name}"
    return module


def find_map_layout(model: nn.Module, output: Tensor, batch: int) -> Callable[[Tensor], Tensor]:
    """The function that turns a layer's output for `batch` square images into maps `[B, C, h, w]`.

    Tokens `[B, L, C]` become a square grid, without a vision transformer's class token; NHWC becomes NCHW.

    Raises:
        UsageError: for an output that is not one map per image (windows, vectors).
    """
    shape = tuple(output.shape)
    if len(shape) == 3 and shape[0] == batch:
        prefix = getattr(model, "num_prefix_tokens", 0)
        side = round((shape[1] - prefix) ** 0.5)
        if side >= 2 and side * side == shape[1] - prefix:
            return lambda tokens: tokens[:, prefix:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    elif len(shape) == 4 and shape[0] == batch:
        last_two, first_two = shape[2] == shape[3], shape[1] == shape[2]
        if first_two and (not last_two or getattr(model, "output_fmt", "NCHW") == "NHWC"):
            return lambda maps: maps.permute(0, 3, 1, 2)
        if last_two:
            return lambda maps: maps
    raise UsageError(f"--layer: its output {shape} is not a map of {batch} image(s); choose another, e.g. a norm")
