"""The drawn leaves: reproducible, in every raw form, with the promised shares and small boxes."""

import csv
import hashlib
from collections import Counter

import numpy as np
import pytest
from conftest import COUNTS
from PIL import Image
from runs import write_drawn

from data.sample.forms import RAW_FORMS
from data.sample.leaves import SIZE, draw_leaf
from data.sample.sets import APPLE, SETS
from data.sample.write import plan_sample, write_sample
from tools.commands import sample


def read(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_equal_seeds_draw_equal_bytes_and_another_seed_other_bytes(tmp_path):
    counts = {"train": 3, "val": 2, "test": 2}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_sample(tmp_path / name, seed, counts)
    files = {n: sorted(p.relative_to(tmp_path / n) for p in (tmp_path / n).rglob("*.*")) for n in "abc"}
    assert files["a"] == files["b"]
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files["a"])
    assert files["a"] != files["c"]


def test_the_layout_is_that_of_the_course(raw):
    for split, count in (("train", 42), ("val", 13), ("test", 14)):
        rows = read(raw / split / f"{split}_label.csv")
        assert rows[0] == ["images", "labels"]
        assert sorted(r[0] for r in rows[1:]) == sorted(p.name for p in (raw / split / "images").iterdir())
        assert len(rows) == count + 1
    assert Image.open(next((raw / "train" / "images").iterdir())).size == (SIZE, SIZE)


def test_the_apple_sample_is_the_one_before_label_sets(raw):
    """Labels and boxes follow from every random number that is drawn before the last lesion of a leaf."""
    files = [raw / "lesion_boxes.csv", *(raw / split / f"{split}_label.csv" for split in COUNTS)]
    found = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    assert found == "9ea72577879dd45a053b189b86abf8cfa675d3708143adf56b53fffa515c2de1"


def test_at_most_a_tenth_have_two_labels_and_every_class_occurs():
    photos = [photo for photo in plan_sample() if photo.split == "train"]
    assert sum(len(photo.labels) == 2 for photo in photos) <= 0.1 * len(photos)
    counts = Counter(photo.labels for photo in photos)
    for labels, share in APPLE.shares.items():
        assert counts[labels] == pytest.approx(share * len(photos), abs=1)


@pytest.mark.parametrize(("set_name", "num_labels", "doubles"), [
    ("three", 3, 0), ("twelve", 12, 1 / 3), ("many", 120, 1 / 10), ("skewed", 4, 0),
])  # fmt: skip
def test_a_set_has_its_labels_in_every_split_and_healthy_alone(set_name, num_labels, doubles):
    photos = plan_sample(set_name=set_name)
    assert {(photo.split, label) for photo in photos for label in photo.labels} == {
        (split, label) for split in ("train", "val", "test") for label in SETS[set_name].lesions
    }
    assert len(SETS[set_name].lesions) == num_labels
    assert np.mean([len(photo.labels) == 2 for photo in photos]) == pytest.approx(doubles, abs=0.03)
    assert not [photo for photo in photos if len(photo.labels) > 1 and "healthy" in photo.labels]


def test_the_rare_label_has_five_photos_whatever_the_counts():
    for counts in (None, COUNTS, {"train": 3, "val": 2, "test": 1}):
        labels = [(photo.split, photo.labels) for photo in plan_sample(0, counts, "skewed")]
        assert Counter(labels)["train", ("gall",)] == 3
        assert Counter(labels)["val", ("gall",)] == Counter(labels)["test", ("gall",)] == 1
        assert len(labels) == sum((counts or SETS["skewed"].counts).values())


def test_names_are_difficult_and_no_two_labels_look_alike():
    labels = list(SETS["twelve"].lesions)
    orders = [sorted(labels), sorted(labels, key=str.casefold), sorted(labels, reverse=True)]
    assert labels not in orders
    assert orders[0] != orders[1]
    assert any(not label.isascii() for label in labels)
    assert {"10 spots", "2 spots", "Black rot (early)", "Äpfel mosaic", "Zonate", "aphid", "healthy"} < set(labels)
    for sample_set in SETS.values():
        assert len(set(sample_set.lesions.values())) == len(sample_set.lesions)


def names_of(path, raw):
    """The labels of every photo that a label file lists, read as its form says."""
    encoding = {"excel": "utf-8-sig", "excel-utf16": "utf-16"}.get(raw, "utf-8")
    with path.open(newline="", encoding=encoding) as file:
        header, *rows = csv.reader(file, delimiter=";" if "excel" in raw else ",")
    yes = {"onehot": "1", "excel": "x", "excel-utf16": "1.0"}.get(raw)
    assert header[0] == ("image_id" if raw == "columns" else "images")
    if raw == "csv":
        return {name: names.split("|") for name, names in rows}
    if raw == "columns":
        assert header[1:] in (["label"], ["label_1", "label_2"])
        return {name: [name for name in names if name] for name, *names in rows}
    return {name: [h for h, cell in zip(header[1:], cells, strict=True) if cell == yes] for name, *cells in rows}


@pytest.mark.parametrize(("set_name", "raw", "pool"), [
    *(("twelve", raw, False) for raw in RAW_FORMS), ("three", "columns", True), ("twelve", "tree", True),
])  # fmt: skip
def test_every_raw_form_says_what_is_drawn(set_name, raw, pool, tmp_path):
    truth = write_drawn(set_name, raw, tmp_path, (15, 4, 3), pool)
    photos = list(tmp_path.rglob("*.jpg"))
    found: dict[str, list[str]] = {}
    if raw == "tree":
        for path in photos:
            found.setdefault(path.name, []).append(path.parent.name)
            assert path.parents[2 - pool] == tmp_path
            assert path.read_bytes() == next(tmp_path.rglob(path.name)).read_bytes()
    elif pool:
        found = names_of(tmp_path / "train.csv", raw)
        assert {path.parent for path in photos} == {tmp_path / "train_images"}
    else:
        for split, count in (("train", 15), ("val", 4), ("test", 3)):
            listed = names_of(tmp_path / split / f"{split}_label.csv", raw)
            assert set(listed) == {path.name for path in (tmp_path / split / "images").iterdir()}
            assert len(listed) == count
            found |= listed
    assert {name: set(labels) for name, labels in found.items()} == {n: set(labels) for n, labels in truth.items()}
    assert len(truth) == 22
    assert max(map(len, truth.values())) == (2 if set_name == "twelve" else 1)
    for name, label, *_ in read(tmp_path / "lesion_boxes.csv")[1:]:
        assert label in truth[name]


@pytest.mark.parametrize("set_name", SETS)
def test_boxes_contain_the_lesions_and_cover_at_most_a_quarter(set_name):
    """Every label but healthy has a box; two labels together fit on one leaf."""
    for labels in SETS[set_name].shares:
        for seed in range(5 if len(SETS[set_name].shares) < 10 else 1):
            leaf = draw_leaf(labels, (9, seed), SETS[set_name].lesions)
            inside = np.zeros((SIZE, SIZE), bool)
            for _, x0, y0, x1, y1 in leaf.boxes:
                assert 0 <= x0 < x1 <= SIZE
                assert 0 <= y0 < y1 <= SIZE
                inside[int(y0) : int(y1), int(x0) : int(x1)] = True
            assert inside.mean() < 0.25
            assert {box[0] for box in leaf.boxes} == set(labels) - {"healthy"}


def test_the_boxes_file_is_relative_and_names_its_photos(raw):
    rows = read(raw / "lesion_boxes.csv")
    assert rows[0] == ["images", "label", "x_center", "y_center", "width", "height"]
    labelled = {
        r[0]: r[1].split() for split in ("train", "val", "test") for r in read(raw / split / f"{split}_label.csv")[1:]
    }
    for name, label, *numbers in rows[1:]:
        x, y, w, h = map(float, numbers)
        assert label in labelled[name]
        assert x - w / 2 >= -1e-6
        assert x + w / 2 <= 1 + 1e-6
        assert y - h / 2 >= -1e-6
        assert y + h / 2 <= 1 + 1e-6


def test_lesions_have_the_colours_they_are_named_for():
    """Mean colour in the boxes against that of the whole photo: rust is more red than blue, mildew is paler."""
    rust, mildew = draw_leaf(("rust",), (3, 1)), draw_leaf(("powdery_mildew",), (3, 1))

    def mean_inside(leaf):
        return np.mean(
            [leaf.pixels[int(y0) : int(y1), int(x0) : int(x1)].mean((0, 1)) for _, x0, y0, x1, y1 in leaf.boxes], 0
        )

    healthy = draw_leaf(("healthy",), (3, 1)).pixels[60:100, 60:100].mean((0, 1))
    assert mean_inside(rust)[0] - mean_inside(rust)[2] > healthy[0] - healthy[2] + 20
    assert mean_inside(mildew).min() > healthy.min() + 20


def test_two_samples_are_never_mixed(refused, tmp_path):
    """process_dataset.py would find photos of the older one without a row."""
    counts = ["--counts", "3", "1", "1"]
    assert sample.main(["--dst", str(tmp_path / "a"), *counts]) == 0
    assert sample.main(["--dst", str(tmp_path / "a"), *counts]) == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*")}
    refused(sample.main, ["--dst", tmp_path / "a", "--counts", "2", "1", "1"], 2, "another sample, with train/images")
    refused(sample.main, ["--dst", tmp_path / "a", *counts, "--seed", "1"], 2, "another sample")
    for other in (["--pool"], ["--raw", "tree"]):
        refused(sample.main, ["--dst", tmp_path / "a", *counts, *other], 2, "another sample, with t")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*")} == before


def test_the_command_draws_the_set_and_form_that_it_is_asked_for(refused, tmp_path):
    flags = ["--set", "twelve", "--raw", "excel", "--pool", "--counts", "5", "2", "2"]
    assert sample.main(["--dst", str(tmp_path / "a"), *flags]) == 0
    write_drawn("twelve", "excel", tmp_path / "b", (5, 2, 2), pool=True)
    files = [{p.relative_to(f): p.read_bytes() for p in f.rglob("*.*")} for f in (tmp_path / "a", tmp_path / "b")]
    assert files[0] == files[1]
    assert len(files[0]) == 11
    refused(sample.main, ["--dst", tmp_path / "c", "--set", "twelf"], 2, "twelve")


@pytest.mark.parametrize(("dst", "code"), [("file", 2), ("file/x", 5), ("a" * 300, 2), ("full", 5)])
def test_places_where_no_sample_can_be_written(refused, tmp_path, dst, code):
    (tmp_path / "file").touch()
    if dst == "full":
        (tmp_path / "full" / "train" / "images").mkdir(parents=True)
        (tmp_path / "full" / "lesion_boxes.csv").touch()
        (tmp_path / "full" / "train" / "images" / "000000000000.jpg").symlink_to("/dev/full")
    refused(sample.main, ["--dst", tmp_path / dst, "--counts", "1", "1", "1"], code)
