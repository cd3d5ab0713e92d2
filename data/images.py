"""The only image reader: every command decodes through this file, and so accepts and refuses the same photos.

The rules: at most 100 megapixels and 20:1, decided from the header before anything is decoded; the first frame of an
animation; EXIF orientation applied; 16-bit gray divided by 257, wider pixels refused; transparency dropped; CMYK,
palette and gray made RGB; the preview inside a camera's raw file refused. Decoders print nothing: a faulty photo
gives one DataError.
"""

import contextlib
import ctypes
import io
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pi_heif
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from tools.base.errors import DataError, listing
from tools.base.files import read_regular

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".heic", ".heif", ".hif", ".avif"),
    *(".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm"),
)
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF", "AVIF", "HEIF")  # Pillow opens an MPO as a JPEG
_WRITTEN_AS = {"HEIF": "JPEG", "AVIF": "JPEG", "GIF": "PNG"}  # formats that are only read, or that would lose colours
MAX_PIXELS = 100_000_000
MAX_ASPECT = 20
MAX_BYTES = 200_000_000
_SUBFILE_TYPE, _DNG_VERSION = 254, 50706  # TIFF tags: 1 marks a reduced image, the preview that a raw file begins with
_TO_UPRIGHT = {  # EXIF orientation -> the transpose that undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

pi_heif.register_heif_opener()
# warnings of broken metadata; permanently, because catch_warnings is not thread-safe
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())
with contextlib.suppress(AttributeError, OSError):  # a Pillow without libtiff, or with one whose symbols are hidden
    ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)  # its handler would print a second line


def is_photo(name: str) -> bool:
    """Whether a file with this name counts as a photo: it has one of EXTENSIONS and is not hidden."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def note_ignored(where: object, names: Sequence[str]) -> list[str]:
    """A line that counts and names the entries that were ignored among photos, or no line for none."""
    return [f"{where}: {len(names)} hidden or foreign entries ignored ({listing(names)})"] if names else []


def read_bytes(path: Path) -> bytes:
    """The bytes of an image file. Raises DataError for anything but a regular file of at most MAX_BYTES."""
    return read_regular(path, "image", MAX_BYTES)


@dataclass(frozen=True, slots=True)
class Header:
    """The properties of a photo that its file declares."""

    size: tuple[int, int]  # (width, height) in pixels, upright
    mode: str  # Pillow's name of the pixel format, such as RGB, L or I;16
    format: str  # Pillow's name of the file format, such as JPEG
    turned: bool  # whether its EXIF orientation turns or mirrors it
    animated: bool  # whether it holds more than one frame


def decode(raw: bytes, name: object) -> Image.Image:
    """The whole photo as RGB, upright. Raises DataError for every fault; `name` stands for the photo in it."""
    return inspect(raw, name)[1]


def inspect(raw: bytes, name: object, short_side: int | None = None) -> tuple[Header, Image.Image]:
    """The header, and the image that `decode` gives.

    Args:
        short_side: a JPEG may be decoded at a half, a quarter or an eighth of its size if its short side stays at least
            twice this long. The whole file is still read, so that a truncated one is found.
    """
    with _opened(raw, name) as image:
        size, mode, kind = image.size, image.mode, image.format or ""
        turned_on_load = isinstance(image, TiffImageFile) and _orientation(image) > 1
        if short_side:
            image.draft(None, (2 * short_side, 2 * short_side))
        quick = None if short_side else _decode_with_simplejpeg(image, raw)
        if quick is None:
            image.load()
        orientation = _orientation(image)
        pixels = _to_rgb(image) if quick is None else Image.fromarray(quick)
        pixels = pixels.transpose(_TO_UPRIGHT[orientation]) if orientation > 1 else pixels
        pixels.info = {}  # metadata of the file that was read; an encoder would copy its compression
        size = size[::-1] if orientation >= 5 else size
        try:
            animated = getattr(image, "is_animated", False)
        except Exception:  # damage behind the first frame, the only one that is used
            animated = True
        return Header(size, mode, kind, turned_on_load or orientation > 1, animated), pixels


def decode_pixels(raw: bytes, name: object) -> np.ndarray:
    """The pixels of the image that `decode` gives, uint8 [H, W, 3]. Raises DataError as it does."""
    with _opened(raw, name) as image:
        quick = _decode_with_simplejpeg(image, raw)
        if quick is not None and _orientation(image) == 1:
            return quick
    return np.asarray(decode(raw, name))


@contextlib.contextmanager
def _opened(raw: bytes, name: object) -> Iterator[Image.Image]:
    """The image before its pixels are decoded; every fault, inside the context too, becomes a DataError."""
    try:
        with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(f"image {name}: {width}x{height} is more than {MAX_PIXELS:,} pixels")
            if max(width, height) > MAX_ASPECT * min(width, height):
                raise DataError(f"image {name}: {width}x{height} is narrower than 1:{MAX_ASPECT}")
            tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
            if tags.get(_SUBFILE_TYPE) == 1 or _DNG_VERSION in tags:
                raise ValueError("it is a camera's raw file; export it as JPEG")
            yield image
    except (DataError, MemoryError):
        raise
    except UnidentifiedImageError:
        what = f"neither {', '.join(FORMATS[:-1])} nor {FORMATS[-1]}, or damaged at its start" if raw else "empty file"
        known = not os.path.splitext(str(name))[1] or is_photo(os.path.basename(str(name)))
        hint = "" if known else "; convert it to JPEG or PNG"
        raise DataError(f"image {name} cannot be decoded: {what}{hint}") from None
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error, ...
        raise DataError(f"image {name} cannot be decoded: {str(error) or type(error).__name__}") from None


def read_image(path: Path) -> Image.Image:
    """The photo at `path` as an upright RGB image."""
    return decode(read_bytes(path), path)


def thumbnail(image: Image.Image, side: int) -> bytes:
    """A JPEG file of at most `side` x `side` pixels, for an HTML page."""
    small = image.copy()
    small.thumbnail((side, side))
    return encode(small, "thumbnail.jpg", quality=80)


def encode(image: Image.Image, name: str, quality: int) -> bytes:
    """The image encoded in the format of the suffix of `name`, or in its substitute in `_WRITTEN_AS`.

    Args:
        quality: of lossy formats.
    """
    kind = format_of(name) or ""
    kind = _WRITTEN_AS.get(kind, kind)
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": quality} if kind in ("JPEG", "WEBP") else {}))
    return buffer.getvalue()


def format_of(name: str) -> str | None:
    """Pillow's name of the file format for the suffix of `name`, or None."""
    return Image.registered_extensions().get(os.path.splitext(name)[1].lower())


def shrink(image: Image.Image, full_size: tuple[int, int], side: int, squash: bool) -> Image.Image | None:
    """A copy whose short side has `side` pixels (`squash`: both sides); None where that is not smaller.

    Args:
        full_size: size of the photo; `image` may be a smaller decode of it.
    """
    short = min(side, *full_size)
    width, height = (short if squash else max(short, round(v * short / min(full_size))) for v in full_size)
    return None if (width, height) == full_size else image.resize((width, height), Image.Resampling.LANCZOS)


def _decode_with_simplejpeg(image: Image.Image, raw: bytes) -> np.ndarray | None:
    """The pixels of an ordinary JPEG from simplejpeg, the same codec as Pillow (libjpeg-turbo) in half the time.

    Returns None for other formats and faulty files; Pillow then decodes or refuses them.
    """
    if image.format != "JPEG" or image.mode != "RGB":
        return None
    try:
        return simplejpeg.decode_jpeg(raw, "RGB", strict=True)
    except ValueError:
        return None


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8, still to be applied; 1 (upright) where none is given.

    The image must be loaded, or in a format whose EXIF is in the header (JPEG, TIFF): for a PNG, Pillow would decode
    the pixels here and hide their errors. Pillow turns a TIFF upright while it loads it.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        return orientation if orientation in range(1, 9) else 1
    except Exception:  # unreadable EXIF is only metadata: the pixels may be sound
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray: Pillow's own conversion clips everything above 255 to white
        gray = np.asarray(image, dtype=np.float64)
        if gray.min() < 0 or gray.max() > 65535:
            raise ValueError("its pixels have more than 16 bits")
        return Image.fromarray((gray / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    return image if image.mode == "RGB" else image.convert("RGB")
