"""Class activation maps through pytorch-grad-cam, with the map's geometry worked out from the layer and checked."""

import re
from collections.abc import Callable

import cv2
import numpy as np
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from tools.errors import NumericsError, UsageError


def find_layer(model: nn.Module, path: str) -> nn.Module:
    """The module at a path as Python writes it, e.g. `layers[-1].blocks[-1].norm1`. Nothing is evaluated.

    Raises:
        UsageError: when the path is malformed or leads nowhere.
    """
    if not re.fullmatch(r"\w+(\[-?\d+\]|\.\w+)*", path):
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


def default_layer(model: nn.Module) -> str:
    """Where to look when the user does not say: the course project's layer of a Swin, else timm's last feature map."""
    if hasattr(model, "layers") and hasattr(model.layers[-1], "blocks"):
        return "layers[-1].blocks[-1].norm1"
    entries = getattr(model, "feature_info", None)
    if not entries:
        raise UsageError("this architecture names no feature maps; give --layer")
    last = list(entries)[-1]["module"]
    return re.sub(r"\.(\d+)", r"[\1]", last)


def map_geometry(model: nn.Module, layer: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor]:
    """How the layer's output becomes maps `[B, C, h, w]`, from what it gives for these (square) images.

    Tokens `[B, L, C]` become a square grid, less a vision transformer's class token; NHWC is turned to NCHW.

    Raises:
        UsageError: for an output that is no map of each image (windows, vectors, several tensors).
    """
    seen: list = []
    handle = layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        with torch.no_grad():
            model(images)
    finally:
        handle.remove()
    if len(seen) != 1 or not isinstance(seen[0], Tensor):
        raise UsageError("--layer: this module does not give one tensor a pass; choose another, e.g. a norm")
    shape = tuple(seen[0].shape)
    wrong = UsageError(f"--layer: its output {shape} is no map of {len(images)} image(s); choose another, e.g. a norm")
    if len(shape) < 3 or shape[0] != len(images):
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


def class_activation_maps(model: nn.Module, layer: nn.Module, images: Tensor, classes: list[int]) -> np.ndarray:
    """Grad-CAM (Selvaraju et al., arXiv 1610.02391) of one class an image.

    Args:
        images: `[B, 3, S, S]`, normalised as the model was trained.
        classes: index of the class to explain, one an image.

    Returns:
        `[B, S, S]` float32 in [0, 1]; all zero where nothing speaks for the class.

    Raises:
        UsageError: for a class or a layer that cannot be explained.
        NumericsError: for a model that gives NaN or infinity, which would look like an ordinary map.
    """
    reshape = map_geometry(model, layer, images)
    with torch.no_grad():
        logits = model(images)
    if not logits.isfinite().all():
        raise NumericsError("the model's output is not finite; no heat map was made")
    if not all(0 <= index < logits.shape[1] for index in classes):  # grad-cam swallows the IndexError of this
        raise UsageError(f"class index {max(classes)} is not among the model's {logits.shape[1]} classes")
    training = model.training
    cam = GradCAM(model=model, target_layers=[layer], reshape_transform=reshape)
    try:
        inputs = images.detach().clone().requires_grad_(True)  # so that gradients flow through frozen layers too
        maps = cam(input_tensor=inputs, targets=[ClassifierOutputTarget(index) for index in classes])
    finally:
        cam.activations_and_grads.release()
        model.zero_grad(set_to_none=True)
        model.train(training)
    if not np.isfinite(maps).all():
        raise NumericsError("the gradients are not finite; no heat map was made")
    return maps.astype(np.float32)


def overlay(photo: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lays a map `[H, W]` in [0, 1] over a photo `[H, W, 3]` uint8 RGB, half and half, in the jet colours; RGB out."""
    jet = cv2.applyColorMap(np.uint8(255 * heat.clip(0, 1)), cv2.COLORMAP_JET)[:, :, ::-1]  # OpenCV gives BGR
    return np.uint8((0.5 * photo.astype(np.float32) + 0.5 * jet).round())
