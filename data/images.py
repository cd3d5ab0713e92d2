"""THE image reader: every command decodes through `decode`, so a bad photo gets the same verdict everywhere.

The rules: at most 100 megapixels and 20:1, decided from the header before anything is decoded; the first frame of an
animation; EXIF orientation applied; 16-bit grey divided by 257; transparency dropped; CMYK, palette and grey made RGB.
"""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from data.files import read_regular
from tools.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF", "MPO")
MAX_PIXELS = 100_000_000
MAX_ASPECT = 20
MAX_BYTES = 200_000_000


def read_bytes(path: Path) -> bytes:
    """The bytes of an image file. Raises DataError for what is no regular file of a sensible size."""
    return read_regular(path, "image", MAX_BYTES)


def decode(raw: bytes, name: object) -> Image.Image:
    """Decodes a photo completely to RGB, upright. `name` stands for it in errors.

    Raises:
        DataError: for whatever is wrong with it; the decoder's own exceptions never get out.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken metadata, and Pillow's milder size limit
            with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise DataError(f"image {name}: {width}x{height} is more than {MAX_PIXELS:,} pixels")
                if max(width, height) > MAX_ASPECT * min(width, height):
                    raise DataError(f"image {name}: {width}x{height} is narrower than 1:{MAX_ASPECT}")
                image.load()
                return _to_rgb(_upright(image))
    except DataError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, ...
        reason = "empty file" if not raw else str(error).replace("<_io.BytesIO object", "<the file")
        raise DataError(f"image {name} cannot be decoded: {reason or type(error).__name__}") from None


def read_image(path: Path) -> Image.Image:
    """The photo at `path` as an upright RGB image."""
    return decode(read_bytes(path), path)


def thumbnail(image: Image.Image, side: int) -> bytes:
    """A JPEG of at most `side` x `side` pixels, for a page."""
    small = image.copy()
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # unreadable EXIF is metadata only: the pixels decoded
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips everything above 255 to white
        grey = (np.asarray(image, dtype=np.float64).clip(0, 65535) / 257).round().astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
