"""Lesion boxes: read or refused by row, and mapped to the model's input as its pixels are."""

import numpy as np
import pytest
from conftest import CODE_OF
from PIL import Image

from data.boxes import Box, on_input, read_boxes
from data.loading.transforms import Preprocess
from tools.base.errors import DataError

HEADER = "images,label,x_center,y_center,width,height\n"


def test_the_samples_boxes(raw):
    boxes = read_boxes(raw / "lesion_boxes.csv", list(CODE_OF))
    rows = (raw / "lesion_boxes.csv").read_text().splitlines()[1:]
    assert sum(map(len, boxes.values())) == len(rows)
    name, label, x, y, width, height = rows[0].split(",")
    first = boxes[name][0]
    assert first.label == label
    assert [first.left + first.right, first.top + first.bottom] == pytest.approx([2 * float(x), 2 * float(y)])
    assert [first.right - first.left, first.bottom - first.top] == pytest.approx([float(width), float(height)])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "wanted the columns"),
        (HEADER, "at least one row"),
        ("a,b\n1,2\n", "wanted the columns"),
        (HEADER + "a.jpg,rust,0.5,0.5,0.1\n", "row 2: 5 fields"),
        (HEADER + "a.jpg,rust,0.5,0.5,0.1,0.1\na.jpg,rusd,0.5,0.5,0.1,0.1\n", "row 3, column label: .*mean rust"),
        (HEADER + "a.jpg,rust,0.5,0.5,0.1,x\n", "row 2.*not four numbers"),
        (HEADER + "a.jpg,rust,50,50,10,10\n", "row 2.*shares from 0 to 1"),
        (HEADER + "a.jpg,rust,0.5,0.5,nan,0.1\n", "row 2.*shares"),
        (HEADER + "a.jpg,rust,0.5,0.5,0,0.1\n", "row 2.*shares"),
    ],
)
def test_a_wrong_box_is_refused_by_row(tmp_path, text, words):
    (tmp_path / "boxes.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        read_boxes(tmp_path / "boxes.csv", ["rust", "scab"])


def test_no_file(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_boxes(tmp_path / "no.csv", ["rust"])


@pytest.mark.parametrize("resize", ["squash", "crop", "letterbox"])
@pytest.mark.parametrize("size", [(640, 400), (301, 500), (256, 256)])
def test_a_box_lies_where_its_pixels_go(resize, size):
    """The edges of a white patch after the real transform are those of its box."""
    width, height = size
    left, top, right, bottom = round(0.4 * width), round(0.35 * height), round(0.6 * width), round(0.7 * height)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[top:bottom, left:right] = 255
    preprocess = Preprocess(224, resize, "bilinear", (0.2,) * 3, (0.5,) * 3)
    seen = np.asarray(preprocess.geometry()(Image.fromarray(pixels)))[:, :, 0] > 127
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    box = Box("rust", left / width, top / height, right / width, bottom / height)
    (placed,) = on_input([box], size, preprocess.window(*size), preprocess.shown(*size))
    assert placed == pytest.approx((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1), abs=1)


def test_a_box_that_the_crop_leaves_out_is_dropped():
    size, preprocess = (1000, 500), Preprocess(224, "crop", "bilinear", (0.5,) * 3, (0.5,) * 3)
    box = Box("rust", 0.0, 0.4, 0.1, 0.6)
    assert on_input([box], size, preprocess.window(*size), preprocess.shown(*size)) == []
