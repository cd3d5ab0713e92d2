"""The image reader: what it accepts, how it converts it, and what it refuses."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from data.images import decode, decode_pixels, encode, inspect, read_image, shrink
from tools.base.errors import DataError
from tools.bench.prepare import draw_photo, shrink_reduced, shrink_whole


def encoded(image, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


def test_sixteen_bit_gray_is_scaled_not_clipped():
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


def test_the_preview_in_a_raw_file_is_no_photo():
    """A camera's raw file is a TIFF that begins with a reduced image (tag 254); a DNG has a version (tag 50706)."""
    for tag, value in ((254, 1), (50706, b"\1\4\0\0")):
        with pytest.raises(DataError, match="raw file; export it as JPEG"):
            decode(encoded(PHOTO, "TIFF", tiffinfo={tag: value}), "IMG_1.dng")


def test_truncated_images_stay_refused_process_wide():
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_the_header_describes_the_file():
    exif = Image.Exif()
    exif[0x0112] = 6
    header, image = inspect(encoded(PHOTO, "JPEG", exif=exif), "x")
    assert (header.size, header.mode, header.format, header.turned, header.animated) == (
        (20, 30),
        "RGB",
        "JPEG",
        True,
        False,
    )
    assert image.size == (20, 30)
    frames = encoded(PHOTO.convert("L"), "TIFF", save_all=True, append_images=[PHOTO.convert("L")])
    header, _ = inspect(frames, "x")
    assert (header.size, header.mode, header.format, header.turned, header.animated) == (
        (30, 20),
        "L",
        "TIFF",
        False,
        True,
    )


def test_a_reduced_decoding_refuses_the_same_and_gives_nearly_the_same_image():
    rng = np.random.default_rng(1)
    smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((800, 600))
    raw = encoded(smooth, "JPEG", quality=95)
    header, reduced = inspect(raw, "x", short_side=60)
    assert header.size == (800, 600)
    assert reduced.size == (200, 150)  # a quarter: an eighth would have less than 2 x 60 pixels
    small, wanted = (np.asarray(shrink(i, (800, 600), 60, False), float) for i in (reduced, decode(raw, "x")))
    assert small.shape == (60, 80, 3)
    assert np.abs(small - wanted).mean() < 1
    for share in (0.1, 0.5, 0.9, 0.99):
        for side in (None, 60):
            with pytest.raises(DataError):
                inspect(raw[: int(len(raw) * share)], "x", short_side=side)


@pytest.mark.parametrize(
    ("size", "squash", "wanted"),
    [
        ((800, 600), False, (85, 64)),
        ((600, 800), False, (64, 85)),
        ((800, 600), True, (64, 64)),
        ((64, 64), True, None),
        ((64, 90), False, None),
        ((40, 90), False, None),
        ((40, 90), True, (40, 40)),
    ],
)
def test_shrinking_never_enlarges(size, squash, wanted):
    small = shrink(Image.new("RGB", size), size, 64, squash)
    assert (small and small.size) == wanted


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "png", "ppm", "bmp", "tif", "webp"])
def test_an_encoded_image_decodes_to_the_same_pixels(suffix):
    smooth = PHOTO.resize((3, 2)).resize((30, 20))
    header, image = inspect(encode(smooth, f"a.{suffix}", 95), "x")
    assert header.format == {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper())
    assert np.abs(np.asarray(image, float) - np.asarray(smooth)).mean() < 3


JPEGS = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"progressive": True},
    "optimised": {"optimize": True, "quality": 30},
    "restarts": {"restart_marker_blocks": 2},
    "turned": {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"},
}


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_have_pillows_pixels_and_size_from_both_decoders(options, mode):
    raw = encoded(PHOTO.resize((67, 41)).convert(mode), "JPEG", **options)
    with Image.open(io.BytesIO(raw)) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(decode_pixels(raw, "x"), wanted)
    assert np.array_equal(np.asarray(decode(raw, "x")), wanted)


def test_damaged_jpegs_are_refused_where_pillow_refuses_them():
    """Against Pillow alone, on 300 files cut short or with bytes changed, of which some still decode."""
    rng = np.random.default_rng(0)
    raw, accepted = encoded(PHOTO.resize((64, 64)), "JPEG", quality=90), 0
    for trial in range(300):
        bad = bytearray(raw if trial % 3 else raw[: rng.integers(2, len(raw))])
        for place in rng.integers(2, len(bad), trial % 3):
            bad[place] = rng.integers(256)
        try:
            with Image.open(io.BytesIO(bad), formats=["JPEG", "MPO"]) as image:
                wanted = np.asarray(image.convert("RGB"))
        except Exception:
            wanted = None
        try:
            got = decode_pixels(bytes(bad), "x")
        except DataError:
            got = None
        if wanted is None or max(wanted.shape) > 20 * min(wanted.shape[:2]):
            assert got is None, trial
        else:
            assert np.array_equal(got, wanted), trial
            accepted += 1
    assert 30 < accepted < 250


def test_an_original_shrunk_from_a_reduced_decoding_is_within_50_db():
    """On a drawn leaf with fine grain; an eighth instead of a quarter would be 5 to 9 dB worse and fail."""
    raw = encode(draw_photo(4000, 2672, seed=1), "a.jpg", 85)
    small, wanted = shrink_reduced(raw), shrink_whole(raw)
    assert small.size == wanted.size == (383, 256)
    assert cv2.PSNR(np.asarray(small), np.asarray(wanted)) >= 50
    with Image.open(io.BytesIO(raw)) as image:
        image.draft(None, (500, 334))
        smaller = image.resize(wanted.size, Image.Resampling.LANCZOS)
    assert cv2.PSNR(np.asarray(smaller), np.asarray(wanted)) < 50
