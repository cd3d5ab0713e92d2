"""Label CSVs of both kinds, and every way in which one can be wrong."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from data.labels import CODE_OF, MADE, ONE_HOT_HEADER, is_made, made_name, origin_name, read_labels, write_one_hot
from tools.errors import DataError


def write(folder, text):
    path = folder / "train_label.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_codes_are_the_seeds_and_their_order_is_the_reverse_of_the_columns():
    assert CODE_OF == {
        "scab": "000001",
        "rust": "000010",
        "powdery_mildew": "000100",
        "healthy": "001000",
        "frog_eye_leaf_spot": "010000",
        "complex": "100000",
    }
    assert [c.removeprefix("label_") for c in ONE_HOT_HEADER[1:]] == sorted(CODE_OF, key=CODE_OF.get, reverse=True)


@pytest.mark.parametrize(
    "text",
    [
        "images,labels\na.jpg,scab frog_eye_leaf_spot\nb.jpg,healthy\n",
        "\ufeffimages,labels\r\na.jpg,scab frog_eye_leaf_spot\r\nb.jpg,healthy",
        "image,labels\na.jpg,scab frog_eye_leaf_spot\n\nb.jpg,healthy\nb.jpg,healthy\n",
        "images,label_complex,label_frog_eye_leaf_spot,label_healthy,label_powdery_mildew,label_rust,label_scab\n"
        "a.jpg,0,1,0,0,0,1\nb.jpg,0,0,1,0,0,0\n",
    ],
)
def test_good_files(tmp_path, text):
    labels = read_labels(write(tmp_path, text))
    assert [(r.image, set(r.labels)) for r in labels.rows] == [
        ("a.jpg", {"scab", "frog_eye_leaf_spot"}),
        ("b.jpg", {"healthy"}),
    ]
    assert labels.repeats == text.count("b.jpg") - 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("images,labels\n", "no rows"),
        ("images;labels\na.jpg;scab\n", "found a ';' separated header"),
        ("images\tlabels\na.jpg\tscab\n", "found a '\\\\t' separated header"),
        ("images,labels,labels\na.jpg,scab,rust\n", "'labels' twice"),
        ("name,labels\na.jpg,scab\n", "first column is 'name'"),
        ("images,disease\na.jpg,scab\n", "the columns are images, disease"),
        ("images,labels\na.jpg\n", "row 2: 1 fields where the header has 2"),
        ("images,labels\na.jpg,scab,x\n", "row 2: 3 fields"),
        ("images,labels\na.jpg,scb\n", "row 2, column labels: unknown label 'scb'; did you mean scab?"),
        ("images,labels\na.jpg,\n", "row 2: a.jpg has no label"),
        ("images,labels\n../../secret.jpg,scab\n", "row 2: .* outside image root"),
        ("images,labels\n/etc/passwd,scab\n", "outside image root"),
        ("images,labels\na.jpg,scab\na.jpg,rust\n", "'scab' in row 2 and 'rust' in row 3"),
        ("images,labels\na.made-flip.jpg,scab\n", "row 2: .* named like a copy"),
        ("images,labels\na\0.jpg,scab\n", "NUL"),
        ("images,labels\n" + "x" * 140_000 + ",scab\n", "field larger than field limit"),
        ("images,labels\n" + "x" * 300 + ".jpg,scab\n", "longer than a file name"),
        (b"images,labels\ncaf\xe9.jpg,scab\n", "row 2: not UTF-8 at byte 17"),
        (",".join(ONE_HOT_HEADER) + "\na.jpg,0,0,0,0,0,2\n", "row 2, column label_scab: '2' is not 0 or 1"),
        (",".join(ONE_HOT_HEADER) + "\na.jpg,0,0,0,0,0,\n", "'' is not 0 or 1"),
        (",".join(ONE_HOT_HEADER) + "\na.jpg,0,0,0,0,0,0\n", "no label"),
    ],
)
def test_bad_files_name_the_row(tmp_path, text, words):
    path = write(tmp_path, text)
    with pytest.raises(DataError, match=words) as error:
        read_labels(path)
    assert str(path) in str(error.value)


def test_what_is_not_a_file_is_refused_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    for path, words in (
        (tmp_path / "pipe.csv", "not a file"),
        (tmp_path, "not a file"),
        (tmp_path / "no.csv", "not exist"),
    ):
        with pytest.raises(DataError, match=words):
            read_labels(path)


def test_one_hot_round_trip(tmp_path):
    rows = read_labels(write(tmp_path, "images,labels\nb.jpg,rust complex\na.jpg,scab\n")).rows
    target = tmp_path / "OneHot-train_label.csv"
    write_one_hot(target, rows)
    assert target.read_bytes() == (
        b"images,label_complex,label_frog_eye_leaf_spot,label_healthy,label_powdery_mildew,label_rust,label_scab\n"
        b"b.jpg,1,0,0,0,1,0\na.jpg,0,0,0,0,0,1\n"
    )
    assert [(r.image, set(r.labels)) for r in read_labels(target).rows] == [
        ("b.jpg", {"rust", "complex"}),
        ("a.jpg", {"scab"}),
    ]


def test_made_copies_are_known_by_their_name_alone():
    assert [made_name("a.b.jpg", kind) for kind in MADE] == [
        "a.b.made-flip.jpg",
        "a.b.made-bright.jpg",
        "a.b.made-turn.jpg",
    ]
    for name in ("a.jpg", "a.made-flop.jpg", "made-flip.jpg", ".made-flip.jpg", "a.made-flip", "a.made-flip.jpg.png"):
        assert not is_made(name)
        assert origin_name(name) == name
    for kind in MADE:
        assert is_made(made_name("a b.PNG", kind))
        assert origin_name(made_name("a b.PNG", kind)) == "a b.PNG"


def test_a_million_rows_take_less_than_a_minute_and_half_a_gigabyte(tmp_path):
    """In a process of its own, whose peak is that of the reading; a tenth of the rows, a tenth of the limits."""
    path = tmp_path / "big.csv"
    with path.open("w") as file:
        file.write("images,labels\n")
        file.writelines(f"{i:016x}.jpg,{'rust complex' if i % 9 else 'scab'}\n" for i in range(100_000))
    probe = (
        "import resource, sys, time\nfrom pathlib import Path\nfrom data.labels import read_labels\n"
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
