"""Photos from anywhere: every format, mode, depth, compression and orientation that Pillow writes, whole and damaged.

The oracle is Pillow by itself: it opens, decodes and turns the picture, and the written rules of `data.images` are
applied to what it gives. The reader must give the same pixels or refuse; what Pillow refuses it must refuse as well.
"""

import contextlib
import io
import struct
import zlib
from itertools import product

import cv2
import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageOps

from data.images import FORMATS, decode, decode_pixels, inspect
from tools.base.errors import DataError

ORIENTATION = 0x0112
pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged files, when the oracle reads them
rng = np.random.default_rng(0)
NOISE = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((56, 42))  # neither flat nor square
DEEP = rng.integers(0, 65536, (42, 56, 3), dtype=np.uint16)
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "I;16B", "F")
TIFF_COMPRESSIONS = ("raw", "tiff_lzw", "tiff_deflate", "packbits", "group3", "group4", "jpeg", "zstd", "lzma", "webp")


def in_mode(mode: str) -> Image.Image:
    if mode.startswith("I;16"):
        return Image.fromarray(DEEP[..., 0].astype(">u2" if mode == "I;16B" else "<u2"))
    if mode == "LAB":
        return Image.merge("LAB", NOISE.split())
    if mode == "PA":
        return NOISE.convert("P").convert("PA")
    return NOISE.convert(mode)


def saved(image: Image.Image, kind: str, **options) -> bytes | None:
    """None where Pillow does not write the mode or the option in this format."""
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind, **options)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return None
    return buffer.getvalue()


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags.tobytes()


def with_late_exif(png: bytes, orientation: int) -> bytes:
    """The PNG with its EXIF chunk behind the pixels, where the standard allows it."""
    content = exif(orientation).removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(content)) + b"eXIf" + content + struct.pack(">I", zlib.crc32(b"eXIf" + content))
    return png[:-12] + chunk + png[-12:]


def make_pictures() -> dict[str, bytes]:
    """Name -> content of whole pictures."""
    made: dict[str, bytes | None] = {}
    options = {
        "PNG": [{}, {"compress_level": 0}, {"bits": 1}, {"bits": 2}, {"bits": 4}, {"transparency": 3}],
        "JPEG": [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"restart_marker_blocks": 2}],
        "TIFF": [{"compression": name} for name in TIFF_COMPRESSIONS],
        "WEBP": [{}, {"lossless": True}],
        "GIF": [{}, {"interlace": 0}, {"transparency": 3}],
        "BMP": [{}],
        "PPM": [{}],
        "AVIF": [{"speed": 10}, {"speed": 10, "subsampling": "4:4:4"}],
    }
    for kind, variants in options.items():
        for number, (mode, variant) in enumerate(product(MODES, variants)):
            made[f"{kind} {mode} {variant or number}"] = saved(in_mode(mode), kind, **variant)
        for mode, turn in product(("1", "L", "RGB", "RGBA", "CMYK", "I;16"), range(1, 9)):
            if kind in ("PNG", "JPEG", "TIFF", "WEBP", "AVIF"):
                made[f"{kind} {mode} turned {turn}"] = saved(in_mode(mode), kind, exif=exif(turn))
        frames = [NOISE.transpose(Image.Transpose.ROTATE_180)] * 2
        made[f"{kind} animated"] = saved(NOISE, kind, save_all=True, append_images=frames)
    for mode, turn in product(("L", "RGB", "P"), range(2, 9)):
        made[f"PNG {mode} turned late {turn}"] = with_late_exif(saved(in_mode(mode), "PNG"), turn)
    for mode, turn in product(("L", "RGB", "RGBA"), range(1, 9)):
        buffer = io.BytesIO()
        pillow_heif.from_pillow(in_mode(mode)).save(buffer, quality=80, exif=exif(turn))
        made[f"HEIF {mode} turned {turn}"] = buffer.getvalue()
    made["MPO"] = saved(NOISE, "MPO", save_all=True, append_images=frames)
    for suffix in (".png", ".tiff"):
        made[f"deep {suffix}"] = cv2.imencode(suffix, DEEP)[1].tobytes()
    return {name: content for name, content in made.items() if content is not None}


def zeroed(content: bytes) -> bytes:
    start = int(rng.integers(len(content)))
    return content[:start] + bytes(min(64, len(content) - start)) + content[start + 64 :]


def flipped(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[rng.integers(len(content))] ^= 1 << rng.integers(8)
    return bytes(changed)


def cut(content: bytes) -> bytes:
    return content[: rng.integers(len(content))]


def expected(content: bytes) -> np.ndarray | None:
    """What Pillow gives, by the rules; None where it gives nothing or a rule refuses it."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > 1e8 or max(width, height) > 20 * min(width, height):
                return None
            image.load()
            upright = image
            with contextlib.suppress(Exception):  # of damaged EXIF: the picture is taken as it lies
                upright = ImageOps.exif_transpose(image)
            if image.mode == "F":
                return None
            if image.mode.startswith("I"):
                values = np.asarray(upright).astype(np.int64)
                deep = values.min() < 0 or values.max() > 65535
                return None if deep else np.repeat(np.round(values / 257)[..., None], 3, axis=2).astype(np.uint8)
            return np.asarray(upright.convert("RGB"))
    except Exception:
        return None


def read(reader, content: bytes):
    """None if refused; anything but a DataError gets out."""
    try:
        return reader(content, "x")
    except DataError:
        return None


PICTURES = make_pictures()


def check(name: str, content: bytes) -> bool:
    """Whether the picture was read; fails for any answer but Pillow's pixels or a refusal."""
    wanted, got = expected(content), read(decode, content)
    if got is None:
        assert read(decode_pixels, content) is None, name
        return False
    assert wanted is not None, f"{name}: read, and refused by Pillow"
    assert np.array_equal(np.asarray(got), wanted), f"{name}: other pixels than Pillow's"
    assert np.array_equal(read(decode_pixels, content), wanted), name
    assert inspect(content, "x")[0].size == wanted.shape[1::-1], name
    return True


def test_whole_pictures_have_pillows_pixels():
    """All are read but those of floating-point pixels."""
    assert len(PICTURES) > 250
    refused = [name for name, content in PICTURES.items() if not check(name, content)]
    assert [name for name in refused if expected(PICTURES[name]) is not None] == []
    assert {name.split()[1] for name in refused} == {"F"}


@pytest.mark.parametrize("damage", [zeroed, flipped, cut])
def test_damaged_pictures_have_pillows_pixels_or_are_refused(damage, times):
    accepted = total = 0
    for name, content in PICTURES.items():
        for _ in range(times(1, 6)):
            total += 1
            accepted += check(f"{damage.__name__} {name}", damage(content))
    print(f"{total} pictures {damage.__name__}: {accepted} read as Pillow reads them, {total - accepted} refused")
    assert 0 < accepted < total
