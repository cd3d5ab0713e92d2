"""Faults in photos (D): every command refuses them in one line that names the file, and leaves no trace."""

import os
import resource
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from provoke import NO_FILES, PHOTO, encoded, faults, large, put, spoilt

import main
import process_dataset
import test as referee
import visual
from tools.commands import predict

NOISE = np.random.default_rng(1).random((60, 80))


def png(width: int, height: int) -> bytes:
    """A PNG with this size in its header and almost no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def text_bomb() -> bytes:
    """70 MB of comment in 70 KB (CVE-2014-9601)."""
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "x" * 70_000_000, zip=True)
    return encoded(PHOTO, "PNG", pnginfo=info)


CUT = {kind: encoded(PHOTO, kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF")}
PHOTOS = [
    *(("D19", make, "") for make in NO_FILES.values()),
    ("D1", large(300_000_000), "larger than"),
    ("D1", "", "empty file"),
    ("D1", "<!DOCTYPE html>", "neither JPEG, PNG"),
    ("D1", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "neither JPEG, PNG"),
    ("D1", '<svg xmlns="http://www.w3.org/2000/svg"/>', "neither JPEG, PNG"),
    ("D1", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "neither JPEG, PNG"),
    ("D1", encoded(PHOTO, "ICO"), "neither JPEG, PNG"),
    *(
        ("D2", content[: len(content) * share // 100], "cannot be decoded")
        for content in CUT.values()
        for share in (1, 60)
    ),
    ("D2", CUT["JPEG"][: len(CUT["JPEG"]) * 99 // 100], "truncated"),
    ("D2", CUT["PNG"][: len(CUT["PNG"]) * 99 // 100], "truncated"),
    ("D2", spoilt(encoded(PHOTO, "TIFF", compression="tiff_lzw"), b"\xff"), "cannot be decoded"),
    ("D2", spoilt(encoded(PHOTO, "TIFF", compression="tiff_deflate"), b"\xff"), "cannot be decoded"),
    ("D2", spoilt(encoded(PHOTO, "TIFF", compression="jpeg"), b"\0"), "cannot be decoded"),
    ("D5", png(20_000, 20_000), "400000000 pixels"),
    ("D5", png(11_000, 10_000), "11000x10000 is more than 100,000,000 pixels"),
    ("D5", png(2**31 - 1, 2), "cannot be decoded"),
    ("D7", png(1, 6_000), "1x6000 is narrower than 1:20"),
    ("D7", png(6_000, 299), "6000x299 is narrower than 1:20"),
    ("D8", text_bomb(), "too large"),
    ("D10", encoded(Image.fromarray(NOISE.astype(np.float32)), "TIFF"), "floating-point"),
    ("D10", encoded(Image.fromarray((2e9 * NOISE).astype(np.int32)), "TIFF"), "more than 16 bits"),
]


@faults("content, words", PHOTOS)
def test_every_command_refuses_the_photo_in_the_same_words(fault, tmp_path, tiny, trained, content, words):
    raw, tree = tmp_path / "raw" / "val", tmp_path / "tree"
    for folder in (raw / "images", tree / "val" / "000001", tree / "test" / "000001"):
        folder.mkdir(parents=True)
        put(folder / "leaf.jpg", content)
    (raw / "val_label.csv").write_text("images,labels\nleaf.jpg,scab\n")
    photo, model = raw / "images" / "leaf.jpg", ["--resume", trained / "best.pth"]
    fault(process_dataset.main, ["--src", "raw", "--dst", "d"], 3, "leaf.jpg", words)
    fault(main.main, ["--cfg", tiny, "--eval", *model, "--data-path", "tree"], 3, "val", words)
    no_workers = ["--opts", "DATA.NUM_WORKERS", "0"]
    fault(referee.main, [*model, "--data-path", "tree", "--to", "to", *no_workers], 3, "test", words)
    fault(visual.main, [*model, "--image", photo, "--to", "to"], 3, "leaf.jpg", words)


@pytest.mark.parametrize("limit", ["0", "5"])  # all five are bad, and none is left
def test_predict_says_the_same(fault, tmp_path, trained, limit):
    (tmp_path / "leaf.jpg").write_bytes(CUT["JPEG"][:900])
    arguments = ["leaf.jpg", "--resume", trained / "best.pth", "--max-bad", limit, "--json", "j", "--csv", "c"]
    fault(predict.main, arguments, 3, "image leaf.jpg cannot be decoded")


PREDICT = [
    ("B4", ["{photo}", "--max-bad", "-1"], 2, "--max-bad -1 is below 0"),
    ("B7", ["{photo}", "--csv", "{photo}"], 2, "is one of the inputs"),
    ("B7", ["{photo}", "--json", "{model}"], 2, "is one of the inputs"),
    ("D1", ["nothing.jpg"], 3, "leads to no photo"),
    ("D1", ["*.png"], 3, "leads to no photo"),
    ("D1", ["."], 3, "leads to no photo"),
    ("B8", ["a" * 5000], 3, "leads to no photo"),
    ("C17", ["a\0.jpg"], 3, "leads to no photo"),
]


@faults("arguments, code, words", PREDICT)
def test_predict_refuses(fault, dataset, trained, arguments, code, words):
    photo, model = next((dataset / "test").glob("*/*.jpg")), trained / "best.pth"
    arguments = [argument.format(photo=photo, model=model) for argument in arguments]
    fault(predict.main, [*arguments, "--resume", model], code, words)


def test_a_bomb_takes_no_memory_d5(fault, tmp_path, trained):
    """In this process, whose peak memory may only grow by the cost of a refusal."""
    (tmp_path / "leaf.jpg").write_bytes(png(60_000, 60_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fault(visual.main, ["--resume", trained / "best.pth", "--image", "leaf.jpg", "--to", "to"], 3, "leaf.jpg")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


def test_unusual_names_of_photos_c19(tmp_path, capsys):
    """Names with a leading dash, spaces, quotes, both forms of e acute, a byte that is not UTF-8 are accepted."""
    names = ["-rf.jpg", "a b'c\".jpg", "caf\u00e9.jpg", "cafe\u0301.jpg", "$(touch owned).jpg"]
    (tmp_path / "raw" / "val" / "images").mkdir(parents=True)
    for number, name in enumerate(names):
        PHOTO.rotate(40 * number).save(tmp_path / "raw" / "val" / "images" / name)
    os.close(os.open(os.fsencode(tmp_path / "raw" / "val" / "images") + b"/\xff.jpg", os.O_CREAT))
    rows = "".join('"{}",rust\n'.format(name.replace('"', '""')) for name in names)
    (tmp_path / "raw" / "val" / "val_label.csv").write_text("images,labels\n" + rows)
    arguments = ["--src", tmp_path / "raw", "--dst", tmp_path / "d", "--max-missing", "1", "--no-duplicates"]
    assert process_dataset.main([str(a) for a in arguments]) == 0
    assert sorted(os.listdir(tmp_path / "d" / "val" / "000010")) == sorted(names)
    assert "left out: val/\\udcff.jpg" in capsys.readouterr().out
