"""Loads weights of every known layout into a model, and reports the changes in one line. Works on state dicts only.

Known layouts: Microsoft's (`{'model': ...}`, which the course project also saved), timm's and torchvision's Swin, a
bare state dict, our own checkpoints, and, for timm's models, efficientnet_pytorch's and the authors' layouts that timm
translates. Weights that do not fit are an error: no parameter silently keeps its initial value.
"""

import contextlib
import math
import re
import sys
from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from models.swin_transformer import SwinTransformer
from tools.base.errors import CheckpointError, listing

_BUFFERS = re.compile(r"(^|\.)(relative_position_index|attn_mask|num_batches_tracked)$")
# What DistributedDataParallel, torch.compile, Lightning and OpenMMLab put before every name; no model has such names.
_WRAPPERS = re.compile(r"^((module|_orig_mod|model|backbone)\.)+")


# Modules of efficientnet_pytorch -> timm's: of the net, of its first blocks, and of the blocks that expand channels.
_NET = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"} | _SQUEEZE
_EXPANDING = {
    **{"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"},
    **{"_project_conv": "conv_pwl", "_bn2": "bn3"},
    **_SQUEEZE,
}


def find_state_dict(content: object, where: str) -> tuple[dict[str, Tensor], str]:
    """Name -> tensor from the content of a weight file, and a note on prefixes that were removed from the names.

    Raises:
        CheckpointError: when it holds no tensors, or two with the same name.
    """
    for key in ("model_ema", "state_dict_ema", "model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping) and content[key]:
            content = content[key]
            break
    parts = content.items() if isinstance(content, Mapping) else ()
    found = [(str(key), value) for key, value in parts if isinstance(value, Tensor)]
    tensors = {_WRAPPERS.sub("", key): value for key, value in found}
    prefixes = sorted({match[0] for key, _ in found if (match := _WRAPPERS.match(key))})
    if len(tensors) < len(found):
        raise CheckpointError(f"{where} holds some tensors twice, with and without {listing(prefixes)} before the name")
    if not tensors:
        raise CheckpointError(f"{where} holds no weights: neither named tensors nor 'model' or 'state_dict'")
    return tensors, f"{listing(prefixes)} removed from the names" if prefixes else ""


def load_pretrained(model: nn.Module, content: object, where: str, heads: Sequence[str]) -> str:
    """Copies weights into `model` and returns one line about what was changed.

    A head with another class count is replaced by a new one. Bias tables of another window size and position embeddings
    of another grid size are resized. Everything else that does not fit is an error.

    Args:
        heads: names of the modules that give the logits (`models.build.head_names`).

    Raises:
        CheckpointError: naming the first keys that are missing, left over, of the wrong shape or not finite.
    """
    tensors, stripped = find_state_dict(content, where)
    own = model.state_dict()
    if isinstance(model, SwinTransformer):
        layout, tensors = _to_microsoft(tensors)
        resized = _resize_tables(tensors, own)
    else:
        layout, resized, tensors = _to_timm(tensors, model)
    tensors = {key: value for key, value in tensors.items() if key in own or not _BUFFERS.search(key)}
    tables = f"{resized} position tables resized" if resized else ""
    replaced = [_replace_head(tensors, own, head) for head in heads]
    load_strictly(model, tensors, where)
    changes = ", ".join(filter(None, (stripped, tables, *replaced))) or "none changed"
    return f"pretrained: {where}, {layout} layout, {len(tensors)} tensors; {changes}"


def load_strictly(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Like `model.load_state_dict`, after checks of names, shapes, types and finiteness.

    Raises:
        CheckpointError: with up to five names per problem.
    """
    own = model.state_dict()
    missing = [key for key in own if key not in tensors and not _BUFFERS.search(key)]
    extra = [key for key in tensors if key not in own]
    shapes = [
        f"{key} {tuple(value.shape)} for {tuple(own[key].shape)}"
        for key, value in tensors.items()
        if key in own and value.shape != own[key].shape
    ]
    kinds = [
        f"{key} {value.dtype}"
        for key, value in tensors.items()
        if key in own and value.is_floating_point() != own[key].is_floating_point()
    ]
    bad = [key for key, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    found = {"missing": missing, "unexpected": extra, "wrong shape": shapes, "wrong kind": kinds, "non-finite": bad}
    problems = [f"{problem} {listing(keys)}" for problem, keys in found.items() if keys]
    if problems:
        raise CheckpointError(f"{where} does not fit the model: {'; '.join(problems)}")
    model.load_state_dict(tensors, strict=False)  # checked above; not strict because of computed buffers


def _to_microsoft(tensors: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """The name of the layout, and the tensors under Microsoft's names, which our Swin uses."""
    if "features.0.0.weight" in tensors:
        return "torchvision's", {_from_torchvision(key): value for key, value in tensors.items()}
    if "head.fc.weight" in tensors:
        return "timm's", {_from_timm(key): value for key, value in tensors.items()}
    return "Microsoft's", tensors


def _to_timm(tensors: dict[str, Tensor], model: nn.Module) -> tuple[str, int, dict[str, Tensor]]:
    """Translates with timm's function: (name of the layout, number of resized tensors, tensors under timm's names)."""
    if "_blocks.0._depthwise_conv.weight" in tensors:
        return "efficientnet_pytorch's", 0, _from_efficientnet_pytorch(tensors, model)
    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    translated = tensors
    if translate:
        with contextlib.suppress(LookupError, AttributeError, TypeError, ValueError, RuntimeError, AssertionError):
            translated = translate(dict(tensors), model)  # `load_strictly` names what it cannot translate
    resized = [key for key, value in translated.items() if key in tensors and value.shape != tensors[key].shape]
    return "timm's" if translated.keys() <= tensors.keys() else "the authors'", len(resized), translated


def _from_efficientnet_pytorch(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors under timm's names. timm counts blocks within stages, efficientnet_pytorch through the whole net."""
    blocks = dict(enumerate(dict.fromkeys(re.findall(r"blocks\.\d+\.\d+", " ".join(model.state_dict())))))

    def rename(key: str) -> str:
        block = re.match(r"_blocks\.(\d+)\.", key)
        module, _, rest = key[block.end() if block else 0 :].partition(".")
        if not block:
            return f"{_NET.get(module, module)}.{rest}"
        names = _EXPANDING if f"{block[0]}_expand_conv.weight" in tensors else _FIRST
        return f"{blocks.get(int(block[1]), block[0])}.{names.get(module, module)}.{rest}"

    return {rename(key): value for key, value in tensors.items()}


def _from_timm(key: str) -> str:
    """Microsoft's name for timm's `key`. timm merges patches at the start of a stage, Microsoft at the end."""
    moved = re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample.", key)
    return moved.replace("head.fc.", "head.")


def _from_torchvision(key: str) -> str:
    """features.0 is the embedding; after it, odd numbers are stages and even ones patch mergings."""
    key = key.replace("features.0.0.", "patch_embed.proj.").replace("features.0.2.", "patch_embed.norm.")
    key = re.sub(r"^features\.(\d+)\.(\d+)\.", lambda m: f"layers.{int(m[1]) // 2}.blocks.{m[2]}.", key)
    key = re.sub(r"^features\.(\d+)\.", lambda m: f"layers.{int(m[1]) // 2 - 1}.downsample.", key)
    return key.replace(".mlp.0.", ".mlp.fc1.").replace(".mlp.3.", ".mlp.fc2.")


def _resize_tables(tensors: dict[str, Tensor], own: Mapping[str, Tensor]) -> int:
    """Resizes position tables of another window or grid size to the shapes in `own`; returns how many."""
    resized = {}
    for key, value in tensors.items():
        if key not in own or not key.endswith(("relative_position_bias_table", "absolute_pos_embed")):
            continue
        *_, tokens, channels = wanted = own[key].shape
        fits = value.ndim == len(wanted) and value.shape[-1] == channels and value.is_floating_point()
        if fits and value.shape != wanted and value.numel() and math.isqrt(value.shape[-2]) ** 2 == value.shape[-2]:
            resized[key] = resize_table(value, tokens)
    tensors |= resized
    return len(resized)


def resize_table(table: Tensor, tokens: int) -> Tensor:
    """A table for the positions of a square grid, `[..., L, C]`, resized bicubically to `[..., tokens, C]`."""
    old, new = math.isqrt(table.shape[-2]), math.isqrt(tokens)
    grid = table.reshape(-1, *table.shape[-2:]).transpose(1, 2).unflatten(2, (old, old))
    grid = F.interpolate(grid, (new, new), mode="bicubic", align_corners=False)
    return grid.flatten(2).transpose(1, 2).reshape(*table.shape[:-2], tokens, -1).contiguous()


def _replace_head(tensors: dict[str, Tensor], own: Mapping[str, Tensor], head: str) -> str:
    """Replaces a head with another class count, or a missing one, by the new head of the model; says so."""
    weight = f"{head}.weight"
    if weight not in own:
        return ""
    old, new = tensors.get(weight), own[weight]
    if old is not None and (old.shape == new.shape or old.shape[1:] != new.shape[1:]):
        return ""
    tensors |= {key: value.clone() for key, value in own.items() if key in (weight, f"{head}.bias")}
    given = "no head" if old is None else f"head of {old.shape[0]} classes"
    return f"{given}: replaced by a new one of {new.shape[0]}"
