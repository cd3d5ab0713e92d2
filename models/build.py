"""From the MODEL node of the config to a model, and the facts about an architecture that training needs."""

import contextlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import timm
import torch
from torch import nn

from models.swin_transformer import SwinTransformer
from tools.base.errors import UsageError, is_out_of_memory, nearest

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
    return _build_timm_model(node, img_size, num_classes, use_checkpoint, test_size or img_size)


def compiled(
    forward: nn.Module, inputs: Sequence[torch.Tensor], autocast: Callable = contextlib.nullcontext
) -> tuple[nn.Module, str]:
    """(`forward` compiled by torch, ""), or (`forward` unchanged, the reason) where torch cannot compile it.

    torch compiles at the first call, so this runs a forward and a backward pass on `inputs`, then restores buffers and
    clears gradients.

    Args:
        inputs: arguments as in training, on the device of the model.
        autocast: returns the context manager of the forward pass.

    Raises:
        Exception: when memory runs out (see `is_out_of_memory`).
    """
    buffers = [buffer.clone() for buffer in forward.buffers()]
    fast: Any = torch.compile(forward)  # a module if `forward` is one
    try:
        with autocast():
            total = fast(*inputs).float().sum()
        total.backward()
    except Exception as error:  # compilers, linkers and torch itself raise many kinds
        inner = getattr(error, "inner_exception", error)  # torch wraps every exception
        torch.compiler.reset()
        if is_out_of_memory(inner):
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


def head_names(model: Any) -> tuple[str, ...]:
    """The names of the linear layers that give the logits: one, or two where a model averages two heads.

    Raises:
        ValueError: for an architecture that names none.
    """
    names = "head" if isinstance(model, SwinTransformer) else model.pretrained_cfg.get("classifier")
    if not names:
        raise ValueError("timm does not name the layer that gives its logits")
    return (names,) if isinstance(names, str) else tuple(names)


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


def _build_timm_model(node, img_size: int, num_classes: int, use_checkpoint: bool, test_size: int) -> nn.Module:
    """`build_model` for MODEL.TYPE timm."""
    _timm_entry(node.NAME)
    try:
        model = _create_timm_model(
            node.NAME,
            num_classes=num_classes,
            drop_rate=node.DROP_RATE,
            drop_path_rate=node.DROP_PATH_RATE,
            img_size=img_size,
            dynamic_img_size=True if test_size != img_size else None,
        )
        if use_checkpoint:
            model.set_grad_checkpointing(True)
        head_names(model)
        for size in {img_size, test_size}:
            _check_forward(model, size, num_classes)
    except (TypeError, ValueError, AssertionError, RuntimeError, LookupError, ArithmeticError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"MODEL.NAME {node.NAME}: cannot be used so: {reason}") from None
    # Convolutions are 1.2 to 1.5 times as fast on NHWC memory on a CPU (oneDNN), and faster on tensor cores too.
    return model if any(map(_crashes_in_nhwc, model.modules())) else model.to(memory_format=torch.channels_last)


def _create_timm_model(name: str, **options) -> Any:
    """A model of timm. Options that its constructor lacks are left out.

    timm ignores options that are None; an architecture without `img_size` takes any size.

    Raises:
        ValueError: for a drop rate other than 0 that the architecture lacks.
    """
    while True:
        try:
            return timm.create_model(name, **options)
        except TypeError as error:
            lacked = re.search(r"unexpected keyword argument.*?'(\w+)'", str(error))
            if not lacked or lacked[1] not in options:
                raise
            if options.pop(lacked[1]) and lacked[1].startswith("drop_"):
                raise ValueError(f"it has no {lacked[1]}; set MODEL.{lacked[1].upper()} to 0") from None


def _crashes_in_nhwc(module: nn.Module) -> bool:
    """Whether the backward pass of this layer writes out of bounds on a CPU in channels_last (torch 2.14, oneDNN)."""
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.in_channels < 16
    )


def _check_forward(model: nn.Module, size: int, num_classes: int) -> None:
    """Tries a black image: no table lists the sizes that a model takes. Raises ValueError for a wrong output shape."""
    model.eval()
    try:
        with torch.no_grad():
            logits = model(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"it does not take images of {size} pixels{f': {error}' if str(error) else ''}") from None
    model.train()
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, num_classes):
        given = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(f"for one image of size {size} it gives {given}, not {num_classes} logits")


def _timm_entry(name: str) -> Any:
    """timm's pretrained config of a model, or None without one. Raises UsageError for a name timm does not know."""
    if not timm.is_model(name):
        raise UsageError(f"MODEL.NAME {name!r} is not a model of timm{nearest(name, timm.list_models())}")
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # about the part after the dot
        raise UsageError(f"MODEL.NAME {name!r}: {error}") from None
