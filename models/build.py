"""The MODEL node -> keyword arguments -> a model; and where pretrained weights of a name are found."""

import contextlib
from collections.abc import Callable, Sequence

import timm
import torch
from torch import nn

from models.swin_transformer import SwinTransformer
from tools.base.errors import Interrupted, UsageError, nearest

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
    """Builds the model of a MODEL node with fresh weights, for photos of `img_size` and of `test_size` (0: the same).

    Raises:
        UsageError: for a timm name that timm does not know, an option the architecture does not have, or sizes that it
            cannot take.
    """
    if node.TYPE == "swin":
        if test_size not in (0, img_size):
            raise UsageError(f"a Swin that was built for {img_size} pixels cannot take {test_size}")
        return SwinTransformer(**swin_arguments(node, img_size, num_classes, use_checkpoint, selective_checkpoint))
    if selective_checkpoint:
        raise UsageError(
            "TRAIN.SELECTIVE_CHECKPOINT is for our own Swin (MODEL.TYPE swin); --use-checkpoint spares memory in all"
        )
    _check_timm_name(node.NAME)
    try:
        model = timm.create_model(node.NAME, **timm_arguments(node, num_classes))
        if use_checkpoint:
            model.set_grad_checkpointing(True)
        head_name(model)
        for size in {img_size, test_size or img_size}:
            _check_forward(model, size, num_classes)
    except (TypeError, ValueError, AssertionError, RuntimeError, LookupError, ArithmeticError) as error:
        raise UsageError(f"MODEL.NAME {node.NAME}: it cannot be used so: {str(error).splitlines()[0]}") from None
    # Convolutions run up to twice as fast on NHWC memory, on CPUs (oneDNN) and on tensor cores alike; images follow.
    return model.to(memory_format=torch.channels_last)


def compiled(
    forward: nn.Module, inputs: Sequence[torch.Tensor], autocast: Callable = contextlib.nullcontext
) -> tuple[nn.Module, str]:
    """What TRAIN.COMPILE asks for: (`forward` compiled by torch, ""), or (`forward` as it is, why it stays so).

    torch compiles at the first call, so it is tried on `inputs`, there and back, with buffers and gradients restored.

    Args:
        inputs: arguments as in training, on the model's device.
        autocast: makes the context of the forward pass.
    """
    buffers = [buffer.clone() for buffer in forward.buffers()]
    fast = torch.compile(forward)
    try:
        with autocast():
            total = fast(*inputs).float().sum()
        total.backward()
    except Exception as error:  # compilers, linkers and torch itself raise many kinds
        inner = getattr(error, "inner_exception", error)  # torch wraps whatever is raised meanwhile, a signal's too
        if isinstance(inner, Interrupted):
            raise inner from None
        torch.compiler.reset()
        reason = str(error).strip().splitlines()[0]
        return forward, f"TRAIN.COMPILE: torch.compile does not work here and is left out: {reason}"
    finally:
        forward.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in zip(forward.buffers(), buffers, strict=True):
                buffer.copy_(before)
    return fast, ""


def swin_arguments(
    node, img_size: int, num_classes: int, use_checkpoint: bool, selective_checkpoint: bool = False
) -> dict:
    """Keyword arguments of `SwinTransformer`."""
    swin = node.SWIN
    return {
        "img_size": img_size,
        "patch_size": swin.PATCH_SIZE,
        "num_classes": num_classes,
        "embed_dim": swin.EMBED_DIM,
        "depths": swin.DEPTHS,
        "num_heads": swin.NUM_HEADS,
        "window_size": swin.WINDOW_SIZE,
        "mlp_ratio": swin.MLP_RATIO,
        "qkv_bias": swin.QKV_BIAS,
        "qk_scale": swin.QK_SCALE,
        "drop_rate": node.DROP_RATE,
        "drop_path_rate": node.DROP_PATH_RATE,
        "ape": swin.APE,
        "patch_norm": swin.PATCH_NORM,
        "use_checkpoint": use_checkpoint,
        "selective_checkpoint": selective_checkpoint,
    }


def timm_arguments(node, num_classes: int) -> dict:
    """Keyword arguments of `timm.create_model`."""
    return {"num_classes": num_classes, "drop_rate": node.DROP_RATE, "drop_path_rate": node.DROP_PATH_RATE}


def normalization(node) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of RGB in [0, 1] that the model's pretrained weights were trained with."""
    if node.TYPE == "swin":
        return IMAGENET_MEAN, IMAGENET_STD
    _check_timm_name(node.NAME)
    entry = timm.get_pretrained_cfg(node.NAME)
    return (tuple(entry.mean), tuple(entry.std)) if entry else (IMAGENET_MEAN, IMAGENET_STD)


def head_name(model: nn.Module) -> str:
    """Name of the linear layer that gives the logits. Raises ValueError for an architecture with several, or none."""
    name = "head" if isinstance(model, SwinTransformer) else model.pretrained_cfg.get("classifier")
    if not isinstance(name, str):
        raise ValueError(f"its logits come from {name or 'no layer of its own'}, where one layer is wanted")
    return name


def no_weight_decay(model: nn.Module) -> set[str]:
    """Endings of parameter names that weight decay would harm, as the architecture says."""
    names = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    return {str(name) for name in names}


def layer_index(model: nn.Module) -> Callable[[str], int]:
    """Parameter name -> depth of its layer, 0 the first, the head the last; for layer-wise learning rates.

    Raises:
        UsageError: for an architecture that timm has not cut into layers.
    """
    if isinstance(model, SwinTransformer):
        return model.layer_index
    if not hasattr(model, "group_matcher"):
        raise UsageError("TRAIN.LAYER_DECAY: timm has no layers for this architecture; set it to 1")
    depths = timm.models.group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    return depths.__getitem__


def _check_forward(model: nn.Module, size: int, num_classes: int) -> None:
    """One black image through the model: no table says which sizes an architecture takes, and what it gives."""
    model.eval()
    with torch.no_grad():
        logits = model(torch.zeros(1, 3, size, size))
    model.train()
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, num_classes):
        given = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(f"for one image of size {size} it gives {given}, not {num_classes} logits")


def _check_timm_name(name: str) -> None:
    if not timm.is_model(name):
        raise UsageError(f"MODEL.NAME {name!r} is no model of timm{nearest(name, timm.list_models())}")
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # what follows the dot in the name
        raise UsageError(f"MODEL.NAME {name!r}: {error}") from None
