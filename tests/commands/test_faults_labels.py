"""Faults in label CSVs (C), box files and predictions: exit code 3, one line that names the file, no trace."""

import os
import shutil

import pytest
from conftest import CODE_OF
from provoke import NO_FILES, faults, large, put

import process_dataset
import visual
from tools.commands import compare, score

HEADER = "images,labels\n"
ONE_HOT = "images," + ",".join(f"label_{name}" for name in sorted(CODE_OF)) + "\n"
TABLES = [
    *(("C1", make, "train_label.csv") for make in NO_FILES.values()),
    ("C1", large(300_000_000), "larger than"),
    ("C1", "\ufeff", "empty"),
    ("C4", HEADER + "a.jpg;scab\n", "row 2: 1 fields where the header has 2"),
    ("C4", "images|labels\na.jpg|scab\n", "found a '|' separated header"),
    ("C5", b"PK\x03\x04\xff\xfe", "not UTF-8"),
    ("C8", HEADER + '"a.jpg,scab\n', "row 2"),
    ("C10", HEADER + "a.jpg,sc\0ab\n", "NUL"),
    *(
        ("C11", f"{ONE_HOT}a.jpg,0,0,0,0,0,{value}\n", f"{value!r} is not 0 or 1")
        for value in ("-1", "0.5", "maybe", "nan")
    ),
    ("C12", HEADER + "a.jpg,SCAB\n", "unknown label 'SCAB'; did you mean scab?"),
    ("C12", HEADER + 'a.jpg,"rust, scab powdery_mildew"\n', "'scab powdery_mildew' looks like several labels"),
    ("C12", HEADER + "a.jpg,rust+scab\n", "'rust+scab' looks like several labels"),
    ("C14", HEADER + "a.jpg,scab\na.jpg,scab\na.jpg,rust\n", "'scab' in row 2 and 'rust' in row 4"),
    ("C16", HEADER + "gone.jpg,scab\n", "rows without a photo: train/gone.jpg"),
    *(("C17", f"{HEADER}{name},scab\n", "outside image root") for name in ("..", "a/b.jpg", "..\\a.jpg", "./a.jpg")),
    ("C19", HEADER + "a\u202eb.jpg,scab\n", "train/a\\u202eb.jpg"),
    ("C19", HEADER + '"a\nb.jpg",scab\n', "train/a b.jpg"),
    ("C19", HEADER + "-rf.jpg,scab\n", "train/-rf.jpg"),
    ("C1", "", "empty"),
    ("C1", HEADER, "no rows"),
    ("C7", "images,labels,labels\na.jpg,scab,rust\n", "'labels' twice"),
    ("C8", "name,labels\na.jpg,scab\n", "first column is 'name'"),
    ("C8", "images,disease\na.jpg,scab\n", "the columns are images, disease"),
    ("C8", HEADER + "a.jpg\n", "row 2: 1 fields where the header has 2"),
    ("C8", HEADER + "a.jpg,scab,x\n", "row 2: 3 fields"),
    ("C11", HEADER + "a.jpg,scb\n", "row 2: a.jpg: unknown label 'scb'; did you mean scab?"),
    ("C11", HEADER + "a.jpg,\n", "row 2: a.jpg has no label"),
    ("C17", HEADER + "../../secret.jpg,scab\n", "outside image root"),
    ("C17", HEADER + "/etc/passwd,scab\n", "outside image root"),
    ("C14", HEADER + "a.jpg,scab\na.jpg,rust\n", "'scab' in row 2 and 'rust' in row 3"),
    ("C19", HEADER + "a.made-flip.jpg,scab\n", "named like a copy"),
    ("C10", HEADER + "a\0.jpg,scab\n", "NUL"),
    ("C10", HEADER + "x" * 140_000 + ",scab\n", "field larger than field limit"),
    ("C19", HEADER + "x" * 300 + ".jpg,scab\n", "longer than a file name"),
    ("C5", b"images,labels\ncaf\xe9.jpg,scab\n", "row 2: not UTF-8 at byte 17; in Excel, save it as `CSV UTF-8`"),
    ("C11", ONE_HOT + "a.jpg,0,0,0,0,0,2\n", "row 2, column label_scab: '2' is not 0 or 1"),
    ("C11", ONE_HOT + "a.jpg,0,0,0,0,0,\n", "'' is not 0 or 1"),
    ("C11", ONE_HOT + "a.jpg,0,0,0,0,0,0\n", "no label"),
]


@pytest.fixture
def source(raw, tmp_path):
    """The drawn photos without their CSV; a link to one folder is enough."""
    shutil.copytree(raw / "train" / "images", tmp_path / "raw" / "train" / "images", copy_function=os.link)
    return tmp_path / "raw"


@faults("content, words", TABLES)
def test_a_wrong_label_file(fault, source, content, words):
    put(source / "train" / "train_label.csv", content)
    fault(process_dataset.main, ["--src", "raw", "--dst", "d"], 3, "train", words)


PREDICTIONS = [
    *(("C1", make, "p.csv") for make in NO_FILES.values()),
    ("C1", "", "wanted a first column 'images'"),
    ("C1", HEADER, "at least one row"),
    ("C5", b"images,labels\n\xff,rust\n", "row 2: not UTF-8"),
    ("C7", "images,labels,labels\na.jpg,rust,scab\n", "'labels' twice"),
    ("C8", HEADER + "a.jpg\n", "row 2: 1 fields"),
    ("C10", HEADER + "x" * 140_000 + ",rust\n", "field larger"),
    ("C11", HEADER + "a.jpg,rst\n", "did you mean rust?"),
    ("C11", ONE_HOT + "a.jpg,nan,0,0,0,0,0\n", "'nan' is not a number"),
    ("C14", HEADER + "a.jpg,rust\na.jpg,scab\n", "a.jpg is there twice"),
]


@faults("content, words", PREDICTIONS)
def test_wrong_predictions(fault, tmp_path, content, words):
    (tmp_path / "labels.csv").write_text(HEADER + "a.jpg,rust\n")
    put(tmp_path / "p.csv", content)
    fault(score.main, ["p.csv", "labels.csv", "--json", "figures.json"], 3, "p.csv", words)
    fault(compare.main, ["p.csv", "p.csv"], 3, "p.csv", words)


def test_figures_may_not_replace_their_input_b7(fault, tmp_path):
    for name in ("p.csv", "labels.csv"):
        (tmp_path / name).write_text(HEADER + "a.jpg,rust\n")
    for name in ("p.csv", "labels.csv"):
        fault(score.main, ["p.csv", "labels.csv", "--json", name], 2, f"--json {name} is one of the inputs")


BOXES = "images,label,x_center,y_center,width,height\n"
BOX_FILES = [
    *(("M1", make, "boxes.csv") for make in NO_FILES.values()),
    ("M1", "", "wanted the columns"),
    ("M1", BOXES, "at least one row"),
    ("M1", BOXES + "a.jpg,rust,nan,0.5,0.1,0.1\n", "row 2: nan,0.5,0.1,0.1 is not a box"),
    ("M1", BOXES + "a.jpg,rust,0.5,0.5,0.1,x\n", "are not four numbers"),
    ("M1", BOXES + "a.jpg,rst,0.5,0.5,0.1,0.1\n", "did you mean rust?"),
    ("M1", b"\xff", "not UTF-8"),
]


@faults("content, words", BOX_FILES)
def test_wrong_boxes(fault, tmp_path, dataset, trained, content, words):
    put(tmp_path / "boxes.csv", content)
    arguments = ["--resume", trained / "best.pth", "--data-path", dataset, "--score", "boxes.csv", "--to", "maps"]
    fault(visual.main, arguments, 3, "boxes.csv", words)
