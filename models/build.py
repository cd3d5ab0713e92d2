"""From the MODEL node of the config to a model, and the facts about an architecture that training needs."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import timm
import torch
from torch import nn

from models.swin_transformer import SwinTransformer
from tools.base.errors import Interrupted, UsageError, is_out_of_memory, nearest

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def build_model(
    node,
    img_size: int,
    num_classes: int,
    use_checkpoint: bool = False,
    test_size: int = 0,
    selective_checkpoint: bool = False,
) -> nn.Module:
    """A new model of a MODEL node, with initial weights, for images of `img_size` and `test_size` (0: the same) pixels.

    Raises:
        UsageError: for a name that timm does not know, an option that the architecture does not have, or a size that
            it cannot take.
    """
    if node.TYPE == "swin":
        if test_size not in (0, img_size):
            raise UsageError(f"a Swin built for {img_size} pixels cannot take {test_size}")
        return SwinTransformer(
            img_size=img_size,
            num_classes=num_classes,
            drop_rate=node.DROP_RATE,
            drop_path_rate=node.DROP_PATH_RATE,
            use_checkpoint=use_checkpoint,
            selective_checkpoint=selective_checkpoint,
            **{name.lower(): value for name, value in node.SWIN.items()},
        )
    if selective_checkpoint:
        raise UsageError(
            "TRAIN.SELECTIVE_CHECKPOINT works with MODEL.TYPE swin only; --use-checkpoint saves memory in every model"
        )
    _timm_entry(node.NAME)
    options = {"num_classes": num_classes, "drop_rate": node.DROP_RATE, "drop_path_rate": node.DROP_PATH_RATE}
    try:
        model: Any = timm.create_model(node.NAME, **options)
        if use_checkpoint:
            model.set_grad_checkpointing(True)
        head_name(model)
        for size in {img_size, test_size or img_size}:
            _check_forward(model, size, num_classes)
    except (TypeError, ValueError, AssertionError, RuntimeError, LookupError, ArithmeticError) as error:
        raise UsageError(f"MODEL.NAME {node.NAME}: cannot be used so: {str(error).splitlines()[0]}") from None
    # Convolutions run up to twice as fast on NHWC memory, on CPUs (oneDNN) and on tensor cores.
    return model.to(memory_format=torch.channels_last)


def compiled(
    forward: nn.Module, inputs: Sequence[torch.Tensor], autocast: Callable = contextlib.nullcontext
) -> tuple[nn.Module, str]:
    """(`forward` compiled by torch, ""), or (`forward` unchanged, the reason) where torch cannot compile it.

    torch compiles at the first call, so this runs a forward and a backward pass on `inputs` and then restores buffers
    and gradients.

    Args:
        inputs: arguments as in training, on the device of the model.
        autocast: makes the context of the forward pass.

    Raises:
        Exception: one of `is_out_of_memory`, when `inputs` are too many images.
    """
    buffers = [buffer.clone() for buffer in forward.buffers()]
    fast: Any = torch.compile(forward)  # a module when given one
    try:
        with autocast():
            total = fast(*inputs).float().sum()
        total.backward()
    except Exception as error:  # compilers, linkers and torch itself raise many kinds
        inner = getattr(error, "inner_exception", error)  # torch wraps every exception, that of a signal too
        torch.compiler.reset()
        if isinstance(inner, Interrupted) or is_out_of_memory(inner):
            raise inner from None
        reason = str(error).strip().splitlines()[0]
        return forward, f"TRAIN.COMPILE: torch.compile does not work here and is left out: {reason}"
    finally:
        forward.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in zip(forward.buffers(), buffers, strict=True):
                buffer.copy_(before)
    return fast, ""


def normalization(node) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of RGB values in [0, 1] with which the pretrained weights of the model were trained."""
    if node.TYPE == "swin":
        return IMAGENET_MEAN, IMAGENET_STD
    entry = _timm_entry(node.NAME)
    return (tuple(entry.mean), tuple(entry.std)) if entry else (IMAGENET_MEAN, IMAGENET_STD)


def head_name(model: Any) -> str:
    """The name of the linear layer that gives the logits. Raises ValueError when there is not exactly one."""
    name = "head" if isinstance(model, SwinTransformer) else model.pretrained_cfg.get("classifier")
    if not isinstance(name, str):
        raise ValueError(f"its logits come from {name or 'no named layer'}, and one layer is needed")
    return name


def no_weight_decay(model: Any) -> set[str]:
    """Endings of the names of parameters that have no weight decay, as the architecture defines them."""
    names = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    return {str(name) for name in names}


def layer_index(model: Any) -> Callable[[str], int]:
    """A function: parameter name -> depth of its layer, from 0 to the head's; for layer-wise learning rates.

    Raises:
        UsageError: for an architecture that timm does not divide into layers.
    """
    if isinstance(model, SwinTransformer):
        return model.layer_index
    if not hasattr(model, "group_matcher"):
        raise UsageError("TRAIN.LAYER_DECAY: timm does not divide this architecture into layers; set it to 1")
    depths = timm.models.group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    return depths.__getitem__


def _check_forward(model: nn.Module, size: int, num_classes: int) -> None:
    """Runs one black image: no table tells which sizes an architecture takes. Raises ValueError for other logits."""
    model.eval()
    with torch.no_grad():
        logits = model(torch.zeros(1, 3, size, size))
    model.train()
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, num_classes):
        given = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(f"for one image of size {size} it gives {given}, not {num_classes} logits")


def _timm_entry(name: str) -> Any:
    """What timm records of a model, or None when it has no entry. Raises UsageError for a name timm does not know."""
    if not timm.is_model(name):
        raise UsageError(f"MODEL.NAME {name!r} is not a model of timm{nearest(name, timm.list_models())}")
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # of the part after the dot
        raise UsageError(f"MODEL.NAME {name!r}: {error}") from None
