"""Layers of a model: which layers heat maps use, and how a layer's output becomes maps."""

import contextlib
import itertools
import math
import re
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from tools.base.errors import UsageError

MOST_CELLS = 28  # along a side of the finest default map; the median lesion of our boxes is a thirtieth of the photo


def choose_default_layer(model: nn.Module, method: str, size: int) -> str:
    """The default layer of a heat map of `size` pixels: the best at finding lesions (docs/heatmaps.md).

    For LayerCAM, the first stages of two grids that follow each other: the first with at most MOST_CELLS cells along a
    side, whose cells are about as large as lesions, or where none is left after it, the last two. In a model with one
    grid, the two stages before the last. The other methods weight a whole channel by one number, which suits only the
    last layer.
    """
    if method != "layercam":
        return choose_classic_layer(model)
    sides = measure_grids(model, _list_all_stages(model), size)
    firsts: list[str] = []  # of each grid, every one coarser than the one before
    for path, side in sides.items():
        if not firsts or side < sides[firsts[-1]]:
            firsts.append(path)
    pairs = list(itertools.pairwise(firsts))
    if pairs:
        return "*".join(next((pair for pair in pairs if sides[pair[0]] <= MOST_CELLS), pairs[-1]))
    stages = _list_stages(model, "norm1")
    return "*".join(stages[-3:-1] or stages)


def choose_classic_layer(model: nn.Module) -> str:
    """The layer of the course project's figure: the last block of a Swin, elsewhere timm's last feature map."""
    return _list_stages(model, "norm1")[-1]


def list_block_layers(model: nn.Module, norm: str) -> list[str]:
    """Paths of the last two blocks, in transformers at `norm1` or `norm2`.

    Raises:
        UsageError: for an architecture whose blocks are not numbered.
    """
    last = _list_stages(model, norm)[-1]
    match = re.fullmatch(r"(.+)\[(-?\d+)\](.*)", last)
    if match and match[2] != "0":
        before = f"{match[1]}[{int(match[2]) - 1}]{match[3]}"
        with contextlib.suppress(UsageError):
            find_layer(model, before)
            return [before, last]
    raise UsageError("this architecture has no sequence of blocks to compare; name layers with --layer A B")


def list_stage_layers(model: nn.Module, norm: str) -> list[str]:
    """Paths of the last two stages, in transformers at a norm of the last block, before a Swin merges its patches."""
    return _list_stages(model, norm)[-2:]


def _list_stages(model: nn.Module, norm: str) -> list[str]:
    """One path per stage, the coarsest last: in transformers at a norm of its last block."""
    return list(dict.fromkeys(_enter_stage(find_layer(model, path), path, norm) for path in _name_stages(model)))


def _list_all_stages(model: nn.Module) -> list[str]:
    """As `_list_stages`, with the stages in between that keep the grid; an EfficientNet has several per grid."""
    names = _name_stages(model)
    places = [re.fullmatch(r"(.+)\[(\d+)\]", name) for name in names]
    if all(places) and len({place[1] for place in places if place}) == 1:
        first, last = (places[end] for end in (0, -1))
        assert first
        assert last
        names = [f"{first[1]}[{number}]" for number in range(int(first[2]), int(last[2]) + 1)]
    return list(dict.fromkeys(_enter_stage(find_layer(model, name), name, "norm1") for name in names))


def measure_grids(model: nn.Module, paths: Sequence[str], size: int) -> dict[str, int]:
    """Cells along a side of each layer's map, for an image of `size` pixels; layers that have no map are left out."""
    sides: dict[str, int] = {}

    def note(path: str, _module, _inputs, output) -> None:
        with contextlib.suppress(UsageError, AttributeError):
            sides[path] = find_map_layout(model, output, 1)(output).shape[-1]

    handles = [find_layer(model, path).register_forward_hook(partial(note, path)) for path in paths]
    try:
        with torch.inference_mode():
            model(torch.zeros(1, 3, size, size, device=next(model.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return {path: sides[path] for path in paths if path in sides}


def _name_stages(model: nn.Module) -> list[str]:
    """The path of every stage: those in timm's `feature_info`, or else the children of the largest list of modules.

    Our Swin has no `feature_info`; that of timm's MViT and Twins has one entry per stage, but wrong module names.

    Raises:
        UsageError: for an architecture without stages.
    """
    entries = getattr(model, "feature_info", None) or ()
    modules = dict(model.named_modules())
    names = [entry["module"] for entry in entries if entry["module"] and entry["module"] in modules]
    if names:
        return [re.sub(r"\.(\d+)", r"[\1]", name) for name in names]
    lists = [
        (sum(parameter.numel() for parameter in child.parameters()), name, len(child))
        for name, child in model.named_children()
        if isinstance(child, nn.ModuleList | nn.Sequential) and len(child) == (len(entries) or len(child))
    ]
    if not lists:
        raise UsageError("this architecture names no feature maps; give --layer")
    _, name, count = max(lists)
    return [f"{name}[{stage}]" for stage in range(-count, 0)]


def _enter_stage(stage: nn.Module, path: str, norm: str) -> str:
    """The path of the norm before the last attention of a stage, or of the stage itself where there is none.

    With a class token, the other tokens of the last block reach the logits only through that attention.
    """
    module, inner = stage, path
    while True:
        children = dict(module.named_children())
        names = list(children)
        attention = max((place for place, name in enumerate(names) if "att" in name), default=0)
        norms = [name for name in names[:attention] if name.startswith("norm")]
        if norms:
            return f"{inner}.{norm if norm in names else norms[-1]}"
        if "blocks" in children:
            module, inner = children["blocks"], f"{inner}.blocks"
        elif isinstance(module, nn.ModuleList | nn.Sequential) and names:
            module, inner = children[names[-1]], f"{inner}[-1]"
        else:
            return inner if isinstance(stage, nn.ModuleList) else path


def find_layer(model: nn.Module, path: str) -> nn.Module:
    """The module at a path in Python's notation, e.g. `layers[-1].blocks[-1].norm1`. The path is parsed, not evaluated.

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

    Tokens `[B, L, C]` become a square grid in raster order, without the class token; NHWC becomes NCHW.

    Raises:
        UsageError: for an output that is not one map per image (windows, vectors).
    """
    shape = tuple(output.shape)
    if len(shape) == 3 and shape[0] == batch:
        if reroll := getattr(model, "reroll", None):  # Hiera orders tokens by the units that it pools
            for block, (_, grid) in reroll.schedule.items():
                if math.prod(grid) == shape[1]:
                    return lambda tokens: reroll(tokens, block).permute(0, 3, 1, 2)
        # XCiT adds its class token after these blocks, and CoaT does not count its own.
        for prefix in (getattr(model, "num_prefix_tokens", 0), 0, 1):
            side = math.isqrt(max(shape[1] - prefix, 0))
            if side >= 2 and side * side == shape[1] - prefix:
                return lambda tokens: tokens[:, prefix:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    elif len(shape) == 4 and shape[0] == batch:
        last_two, first_two = shape[2] == shape[3], shape[1] == shape[2]
        if first_two and (not last_two or getattr(model, "output_fmt", "NCHW") == "NHWC"):
            return lambda maps: maps.permute(0, 3, 1, 2)
        if last_two:
            return lambda maps: maps
    raise UsageError(
        f"the layer's output {shape} is not a map of {batch} image(s); name another with --layer, e.g. a norm"
    )
