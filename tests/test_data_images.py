"""The one image reader: what it accepts, by which rule, and what it refuses."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from data.images import decode, read_image
from tools.errors import DataError


def encoded(image, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"<html>",
        b"version https://git-lfs.github.com/spec/v1",
        encoded(PHOTO, "JPEG")[:400],
        encoded(PHOTO)[:200],
        png_header(20000, 20000),
        png_header(1, 6000),
        png_header(4_000_000_000, 2),
    ],
    ids=range(8),
)
def test_refused_with_the_name_and_without_the_decoders_own_exception(raw):
    with pytest.raises(DataError, match=r"image leaf\.jpg"):
        decode(raw, "leaf.jpg")


def test_sixteen_bit_grey_is_scaled_not_clipped():
    grey = np.array([[0, 257, 65535], [1000, 32896, 514]], dtype=np.uint16)
    got = np.asarray(decode(encoded(Image.fromarray(grey)), "x"))
    assert got[..., 0].tolist() == [[0, 1, 255], [4, 128, 2]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: np.rot90,
    }
    got = np.asarray(decode(encoded(PHOTO, exif=exif), "x"))
    assert np.array_equal(got, upright[orientation](np.asarray(PHOTO)))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    assert decode(encoded(PHOTO.convert(mode), kind), "x").mode == "RGB"


def test_content_decides_not_the_extension_and_animations_give_their_first_frame(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(PHOTO))
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.jpg")), np.asarray(PHOTO))
    frames = encoded(PHOTO, "PNG", save_all=True, append_images=[PHOTO.transpose(Image.Transpose.ROTATE_180)])
    assert np.array_equal(np.asarray(decode(frames, "x")), np.asarray(PHOTO))


def test_fifos_folders_and_lost_links_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("pipe.jpg", "link.jpg", "folder.jpg", "no.jpg"):
        with pytest.raises(DataError, match=name):
            read_image(tmp_path / name)


def test_truncated_images_stay_refused_process_wide():
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
