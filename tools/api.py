"""Names the diseases on images from Python: a trained model in three lines.

    from tools.api import load

    model = load("output/sample/default")  # a run folder, a checkpoint, or several to average
    print(model.predict("leaf.jpg"))  # scab, rust (58.3%)

The predictions are those of `python -m tools predict`. Every error is a `tools.base.errors.UserError`.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from yacs.config import CfgNode

from configs.load import load as load_config
from data.images import decode, read_image
from tools.base.errors import DataError, UsageError
from tools.base.threads import batches
from tools.checkpoint.find import checkpoint_at
from tools.evaluate.predictions import Prediction, predictions_of
from tools.evaluate.predictor import Predictor, load_predictor
from tools.runtime.distributed import Ranks, choose_device

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


@dataclass(frozen=True)
class ImageClassifier:
    """A trained model that is ready to predict; `load` makes one.

    Attributes:
        predictor: its networks and the rule from their logits to labels.
        config: sets the batch size and the precision.
    """

    predictor: Predictor
    config: CfgNode = field(repr=False)

    @property
    def labels(self) -> list[str]:
        """The labels of the model, in the order of its classes."""
        return self.predictor.labels

    def predict(self, images) -> Prediction | list[Prediction]:
        """The prediction for one image, or a list of predictions for a list of images.

        Args:
            images: a path, a PIL image, or a numpy array, uint8 `[H, W, 3]` (RGB) or `[H, W]` (grey), of any size; or a
                list or tuple of these, which are predicted in batches.

        Raises:
            DataError: naming the image that cannot be read.
            UsageError: for something that is not an image.
        """
        single = not isinstance(images, list | tuple)
        images = [images] if single else images
        names = [
            str(image) if isinstance(image, str | PathLike) else f"image number {number}"
            for number, image in enumerate(images, 1)
        ]
        found: list[Prediction] = []
        for batch in batches(zip(images, names, strict=True), self.config.DATA.BATCH_SIZE):
            inputs = [self.predictor.inputs(_read(image, name)) for image, name in batch]
            members = [torch.stack(member) for member in zip(*inputs, strict=True)]
            answers = self.predictor.answer(members, [name for _, name in batch], self.config.AMP)
            found += predictions_of(answers, self.labels)
        return found[0] if single else found


def load(
    checkpoints: str | PathLike | Sequence[str | PathLike],
    device: str | torch.device | None = None,
    decide_by: str | None = None,
    tta: str | None = None,
) -> ImageClassifier:
    """The model of a checkpoint, or of several whose logits are averaged.

    Args:
        checkpoints: a checkpoint, a run folder (its best.pth is used), or several of these.
        device: such as "cpu" or "cuda:0"; by default the GPU if there is one.
        decide_by: "threshold", "argmax", "combination" or "powerset"; by default as in the first checkpoint.
        tta: views to average, "none", "flips", "turns" or "all"; by default as in the first checkpoint.

    Raises:
        CheckpointError: for a checkpoint that cannot be used.
        ResourceError: for a GPU that this torch cannot use, unless `device` is given.
        UsageError: for an unknown device, `decide_by` or `tta`.
    """
    asked = [("TEST.DECIDE_BY", decide_by, "decide_by"), ("TEST.TTA", tta, "tta")]
    config = load_config(overrides=[option for option in asked if option[1] is not None]).config
    try:
        device = choose_device(Ranks()) if device is None else torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        raise UsageError(f"device {device} cannot be used: {str(error).splitlines()[0]}") from None
    names = [checkpoints] if isinstance(checkpoints, str | PathLike) else checkpoints
    paths = [checkpoint_at(Path(name)) for name in names]
    if not paths:
        raise UsageError("no checkpoint was given; give a file or a run folder")
    return ImageClassifier(load_predictor(paths, device, decide_by=decide_by, tta=tta), config)


def _read(image, name: str) -> Image.Image:
    """The upright RGB image of a path, a PIL image or an array; `name` stands for it in errors.

    An image in memory becomes the bytes of an uncompressed PNG, so that it passes the same checks and the same decoder
    as a file.
    """
    if isinstance(image, str | PathLike):
        return read_image(Path(image))
    if isinstance(image, np.ndarray):
        shape, dtype = list(image.shape), image.dtype
        if dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and shape[2] == 3)):
            raise DataError(f"{name} is an array {shape} of {dtype}; give uint8 [H, W, 3] or [H, W]")
        if not image.size:
            raise DataError(f"{name} is an empty array {shape}")
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise UsageError(f"{name} is of type {type(image).__name__}; give a path, image or array")
    try:
        upright = ImageOps.exif_transpose(image)
        png = upright if upright.mode in _PNG_MODES else upright.convert("RGB")
        buffer = io.BytesIO()
        png.save(buffer, "PNG", compress_level=0)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{name} cannot be decoded: {error}") from None
    return decode(buffer.getvalue(), name)
