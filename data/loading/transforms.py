"""From an RGB image to the model's input: timm's augmentation for training, one fixed recipe for everything else.

A loader's images stay uint8 until they are on the device, where `data.loading.batches.Normalize` finishes them.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor
from torchvision.transforms import functional as TF

from data.loading.shears import quicken

Patch = tuple[int, int, Tensor]  # of random erasing: top, left, and what it draws over them, float32 [3, h, w]


class View(NamedTuple):
    """A transformed image: `pixels` uint8 [3, S, S], and the `patches` to lay over them after normalisation."""

    pixels: Tensor
    patches: Sequence[Patch] = ()


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes the model's input. Every checkpoint stores it, so that scoring uses the same."""

    size: int  # side of the square input, pixels
    resize: str  # squash, crop or letterbox: see `geometry`
    interpolation: str  # bilinear, bicubic or lanczos
    mean: tuple[float, float, float]  # of RGB in [0, 1]
    std: tuple[float, float, float]  # of RGB in [0, 1]

    @classmethod
    def from_dict(cls, stored: dict) -> "Preprocess":
        """The inverse of `to_dict`."""
        return cls(**{**stored, "mean": tuple(stored["mean"]), "std": tuple(stored["std"])})

    def to_dict(self) -> dict:
        """Plain values, for a checkpoint."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @property
    def _short_side(self) -> int:
        """Short side of the resized image before the center crop, in pixels."""
        return int(256 / 224 * self.size)

    def geometry(self) -> Callable[[Image.Image], Image.Image]:
        """The resizing alone: RGB image -> RGB image of `size` x `size` pixels.

        crop: the short side becomes 256/224 of `size`, and the centre is cut out. squash: both sides become `size`.
        letterbox: the long side becomes `size`, and the image is centred on the mean colour.
        """
        if self.resize == "crop":
            return Compose([Resize(self._short_side, InterpolationMode(self.interpolation)), CenterCrop(self.size)])
        return self._fit

    def _fit(self, image: Image.Image) -> Image.Image:
        rows, columns = self.shown(*image.size)
        shape = rows.stop - rows.start, columns.stop - columns.start
        square = Image.new("RGB", (self.size, self.size), mean_colour(self.mean))
        square.paste(TF.resize(image, shape, InterpolationMode(self.interpolation)), (columns.start, rows.start))
        return square

    def window(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of an image of this size that the input shows: (left, top, right, bottom) in pixels of the image.

        The mapping from it to the pixels `shown` of the input is linear per axis.
        """
        if self.resize != "crop":
            return 0.0, 0.0, float(width), float(height)
        short = self._short_side
        edges = []
        for side in (width, height):
            resized = int(short * side / min(width, height))  # rounded as in torchvision; so is the next line
            first = round((resized - self.size) / 2)
            edges.append((first * side / resized, (first + self.size) * side / resized))
        (left, right), (top, bottom) = edges
        return left, top, right, bottom

    def shown(self, width: int, height: int) -> tuple[slice, slice]:
        """Rows and columns of the input that show an image of this size: all but the padding of letterbox."""
        if self.resize != "letterbox":
            return slice(0, self.size), slice(0, self.size)
        side = max(height, width)
        (_, rows), (_, columns) = (_letterboxed(0, side, side, length, self.size) for length in (height, width))
        return rows, columns

    def view(self, photo: np.ndarray) -> View:
        """The view of an image, uint8 [H, W, 3], without patches."""
        return View(planes(np.asarray(self.geometry()(Image.fromarray(photo)))))

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """Image -> `[3, size, size]`, normalised: `view` and `data.loading.batches.Normalize` in one."""
        return Compose([self.geometry(), ToTensor(), Normalize(self.mean, self.std)])


def quarter_turn(photo: np.ndarray) -> np.ndarray:
    """Turns an image [H, W, 3] by 0, 90, 180 or 270 degrees with equal probability."""
    return np.rot90(photo, random.randrange(4))


def mean_colour(mean: Sequence[float]) -> tuple[int, ...]:
    """The RGB colour in 0 ... 255 that becomes about 0 when it is normalised."""
    return tuple(min(max(round(255 * value), 0), 255) for value in mean)


class Crop(RandomResizedCropAndInterpolation):
    """timm's random crop with timm's draws, uint8 [H, W, 3] -> [3, size, size], resized by torch, not Pillow.

    timm draws on the photo, and so does `crop`. `squash` draws on the squashed photo and `letterbox` on the padded one:
    leaves have the same shape in training as in scoring.
    """

    def __init__(self, settings: dict[str, Any], resize: str):
        super().__init__(*(settings[name] for name in ("input_size", "scale", "ratio", "interpolation")))
        self.on_photo, self.place = resize == "crop", _letterboxed if resize == "letterbox" else _stretched
        self.padding = torch.tensor(mean_colour(settings["mean"]), dtype=torch.uint8).repeat(*self.size, 1)

    def __call__(self, photo: np.ndarray) -> Tensor:
        shape = photo.shape[:2]
        frame = shape if self.on_photo else (max(shape), max(shape))
        shape_only = torch.empty(frame, device="meta")  # get_params asks a tensor or an Image for its size
        top, left, *drawn = self.get_params(shape_only, self.scale, self.ratio)
        height, width = (max(side, 1) for side in drawn)  # timm rounds a small part of a photo of few pixels to none
        top, left = min(top, frame[0] - height), min(left, frame[1] - width)
        from_rows, rows = self.place(top, height, frame[0], shape[0], self.size[0])
        from_columns, columns = self.place(left, width, frame[1], shape[1], self.size[1])
        cut = torch.from_numpy(np.array(photo[from_rows, from_columns], order="C"))
        pixels = resize(cut, (rows.stop - rows.start, columns.stop - columns.start), self.interpolation)
        if pixels.shape[1:] == self.size:
            return pixels
        square = self.padding.clone().permute(2, 0, 1)
        square[:, rows, columns] = pixels
        return square


def _stretched(first: int, length: int, side: int, photo: int, size: int) -> tuple[slice, slice]:
    """(pixels of the photo, where the input shows them) on one axis, for a crop of a photo that is stretched.

    Args:
        first, length: of the crop, in pixels of a frame of `side` pixels, which the photo fills.
        photo, size: lengths of the photo and of the input.
    """
    return slice(first * photo // side, -(-(first + length) * photo // side)), slice(0, size)


def _letterboxed(first: int, length: int, side: int, photo: int, size: int) -> tuple[slice, slice]:
    """As `_stretched`, for a photo that is centred in its frame.

    A crop with a larger share of padding than the whole frame is moved, just far enough: it would show less of the leaf
    than scoring ever does, or nothing.
    """
    before = (side - photo) // 2
    least = -(-length * photo // side)  # pixels of the photo
    first = min(max(first, before + least - length), before + photo - least)
    start, stop = max(first, before), min(first + length, before + photo)
    shown = slice((start - first) * size // length, -((first - stop) * size // length))
    return slice(start - before, stop - before), shown


class _Canvas:
    """Stands in for a normalised image [3, size, size] that timm's RandomErasing writes to, and records the patches."""

    dtype = torch.float32

    def __init__(self, side: int):
        self.side, self.patches = side, list[Patch]()

    def size(self) -> tuple[int, int, int]:
        return 3, self.side, self.side

    def __setitem__(self, place: tuple[slice, slice, slice], pixels: Tensor) -> None:
        _, rows, columns = place
        whole = pixels.expand(3, rows.stop - rows.start, columns.stop - columns.start)
        self.patches.append((rows.start, columns.start, whole))


class TrainTransform:
    """timm's training transform (random resized crop, flips, a policy or colour jitter, random erasing).

    An image, uint8 [H, W, 3] -> its augmented `View`. Draws are timm's; pixels are within 2 of 255 of those that timm
    makes with Pillow.

    Args:
        settings: keyword arguments of `timm.data.create_transform`.
        resize: see `Preprocess.geometry`.
    """

    def __init__(self, settings: dict[str, Any], quarter_turns: bool = False, resize: str = "crop"):
        self.size, interpolation = settings["input_size"], settings["interpolation"]
        drawable = "bicubic" if interpolation == "lanczos" else interpolation  # Pillow cannot rotate with Lanczos
        timms = create_transform(**{**settings, "interpolation": drawable}, is_training=True, separate=True)
        moves, self.policy, final = timms
        keep_one_bit(ops_of(self.policy))
        quicken(ops_of(self.policy))
        _, *flips = moves.transforms
        self.geometry = Compose([*([quarter_turn] if quarter_turns else []), Crop(settings, resize), *flips])
        self.erasing = final.transforms[-1] if settings["re_prob"] else None

    def __call__(self, photo: np.ndarray) -> View:
        pixels = self.geometry(photo).permute(1, 2, 0).numpy()
        if self.policy.transforms:
            pixels = np.asarray(self.policy(Image.fromarray(pixels)))
        canvas = _Canvas(self.size)
        if self.erasing:
            self.erasing(canvas)
        return View(planes(pixels), canvas.patches)


def planes(photo: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] -> [3, H, W], copied by numpy, which takes a third of torch's time."""
    return torch.from_numpy(np.ascontiguousarray(photo.transpose(2, 0, 1)))


def resize(pixels: Tensor, size: tuple[int, int], mode: InterpolationMode) -> Tensor:
    """uint8 [H, W, 3] -> [3, *size] with torch; its pixels differ from Pillow's by at most 2 of 255.

    Resizes one axis at a time and rounds to 8 bits after each, like Pillow 13. The height comes first where that is
    less work. Lanczos, which torch lacks, is left to Pillow.
    """
    if mode == InterpolationMode.LANCZOS:
        image = TF.resize(Image.fromarray(pixels.numpy()), size, mode)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)
    height, width = pixels.shape[:2]
    first = [(size[0], width)] if height - size[0] > max(2 * (width - size[1]), 0) else []
    # not pixels[None]: torch would not recognise its strides as channels-last, and would take twice as long
    batch = pixels.view(1, height, width, 3).permute(0, 3, 1, 2)
    for shape in (*first, size):
        batch = torch.nn.functional.interpolate(batch, shape, mode=mode.value, antialias=True)
    return batch[0]


def keep_one_bit(ops: Iterable[AugmentOp]) -> None:
    """Makes timm's posterize keep at least one bit: at level 10 it asks for 0, which Pillow 13 refuses."""
    for op in ops:
        if op.name.startswith("Posterize"):
            op.level_fn = partial(_at_least_one, op.level_fn)


def ops_of(transform: object) -> Iterator[AugmentOp]:
    """All operations of a timm transform, however deeply nested."""
    if isinstance(transform, AugmentOp):
        yield transform
    names = ("transforms", "ops", "policy")
    nested = transform if isinstance(transform, list | tuple) else [getattr(transform, name, ()) for name in names]
    for part in nested:
        yield from ops_of(part)


def _at_least_one(level_to_bits: Callable, level: float, hparams: dict) -> tuple[int]:
    return (max(1, level_to_bits(level, hparams)[0]),)
