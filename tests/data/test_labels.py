"""Label CSVs of both kinds, and the names of balanced copies."""

import subprocess
import sys

import pytest
from conftest import CODE_OF, ROOT

from data.label_files import read_labels, write_one_hot
from data.labels import BALANCE_KINDS, COURSE, balanced_copy_name, is_balanced_copy, origin_name


def write(folder, text):
    path = folder / "train_label.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_the_courses_codes_in_the_order_of_the_classes():
    assert dict(zip(COURSE.names, COURSE.folders, strict=True)) == CODE_OF
    assert COURSE.names == tuple(CODE_OF)
    assert [COURSE.names[index] for index in COURSE.exclusive] == ["healthy"]


@pytest.mark.parametrize(
    "text",
    [
        "images,labels\na.jpg,scab frog_eye_leaf_spot\nb.jpg,healthy\n",
        "\ufeffimages,labels\r\na.jpg,scab frog_eye_leaf_spot\r\nb.jpg,healthy",
        "image,labels\na.jpg,scab frog_eye_leaf_spot\n\nb.jpg,healthy\nb.jpg,healthy\n",
        "images,label_complex,label_frog_eye_leaf_spot,label_healthy,label_powdery_mildew,label_rust,label_scab\n"
        "a.jpg,0,1,0,0,0,1\nb.jpg,0,0,1,0,0,0\n",
        "image_id;complex;frog_eye_leaf_spot;healthy;powdery_mildew;rust;scab\n"
        "a.jpg;no;Yes;no;no;no;yes\nb.jpg;0.0;0.0;1.0;0.0;0.0;0.0\n",
        "images\tlabels\r\na.jpg\tscab frog_eye_leaf_spot\r\nb.jpg\thealthy\r\n".encode("utf-16"),
    ],
)
def test_good_files(tmp_path, text):
    labels = read_labels(write(tmp_path, text))
    assert [(r.image, set(r.labels)) for r in labels.rows] == [
        ("a.jpg", {"scab", "frog_eye_leaf_spot"}),
        ("b.jpg", {"healthy"}),
    ]
    assert labels.repeats == (1 if isinstance(text, str) and text.count("b.jpg") == 2 else 0)


def test_one_hot_round_trip(tmp_path):
    rows = read_labels(write(tmp_path, "images,labels\nb.jpg,rust complex\na.jpg,scab\n")).rows
    target = tmp_path / "OneHot-train_label.csv"
    write_one_hot(target, rows, COURSE)
    assert target.read_bytes() == (
        b"images,label_complex,label_frog_eye_leaf_spot,label_healthy,label_powdery_mildew,label_rust,label_scab\n"
        b"b.jpg,1,0,0,0,1,0\na.jpg,0,0,0,0,0,1\n"
    )
    assert [(r.image, set(r.labels)) for r in read_labels(target).rows] == [
        ("b.jpg", {"rust", "complex"}),
        ("a.jpg", {"scab"}),
    ]


def test_balanced_copies_are_recognised_by_their_names():
    assert [balanced_copy_name("a.b.jpg", kind) for kind in BALANCE_KINDS] == [
        "a.b.made-flip.jpg",
        "a.b.made-bright.jpg",
        "a.b.made-turn.jpg",
    ]
    for name in ("a.jpg", "a.made-flop.jpg", "made-flip.jpg", ".made-flip.jpg", "a.made-flip", "a.made-flip.jpg.png"):
        assert not is_balanced_copy(name)
        assert origin_name(name) == name
    for kind in BALANCE_KINDS:
        assert is_balanced_copy(balanced_copy_name("a b.PNG", kind))
        assert origin_name(balanced_copy_name("a b.PNG", kind)) == "a b.PNG"


def test_a_million_rows_take_less_than_a_minute_and_half_a_gigabyte(tmp_path):
    """In a separate process, so that the peak memory is that of the reading; with a tenth of rows and limits."""
    path = tmp_path / "big.csv"
    with path.open("w") as file:
        file.write("images,labels\n")
        file.writelines(f"{i:016x}.jpg,{'rust complex' if i % 9 else 'scab'}\n" for i in range(100_000))
    probe = (
        "import resource, sys, time\nfrom pathlib import Path\nfrom data.label_files import read_labels\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before, start = peak(), time.perf_counter()\n"
        "rows = read_labels(Path(sys.argv[1])).rows\n"
        "print(len(rows), peak() - before, time.perf_counter() - start)\n"
    )
    out = subprocess.run([sys.executable, "-c", probe, path], cwd=ROOT, capture_output=True, text=True, check=True)
    count, megabytes, seconds = map(float, out.stdout.split())
    assert count == 100_000
    assert megabytes < 50
    assert seconds < 6
