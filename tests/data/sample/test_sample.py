"""The drawn leaves: reproducible, in the course's layout, with the promised shares and small boxes."""

import csv
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from data.sample.leaves import SIZE, draw_leaf
from data.sample.write import COUNTS, SHARES, write_sample
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


def test_at_most_a_tenth_have_two_labels_and_every_class_occurs():
    from data.sample.write import _label_sets

    sets = _label_sets(COUNTS["train"], np.random.default_rng(0))
    assert sum(len(labels) == 2 for labels in sets) <= 0.1 * len(sets)
    counts = Counter(sets)
    for labels, share in SHARES.items():
        assert counts[labels] == pytest.approx(share * len(sets), abs=1)


@pytest.mark.parametrize("labels", SHARES, ids="+".join)
def test_boxes_contain_the_lesions_and_cover_at_most_a_quarter(labels):
    """Drawn with the same seed with and without lesions, a leaf differs only inside its boxes (and in light)."""
    for seed in range(5):
        leaf = draw_leaf(labels, (9, seed))
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
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*")} == before


@pytest.mark.parametrize(("dst", "code"), [("file", 2), ("file/x", 5), ("a" * 300, 2), ("full", 5)])
def test_places_where_no_sample_can_be_written(refused, tmp_path, dst, code):
    (tmp_path / "file").touch()
    if dst == "full":
        (tmp_path / "full" / "train" / "images").mkdir(parents=True)
        (tmp_path / "full" / "lesion_boxes.csv").touch()
        (tmp_path / "full" / "train" / "images" / "000000000000.jpg").symlink_to("/dev/full")
    refused(sample.main, ["--dst", tmp_path / dst, "--counts", "1", "1", "1"], code)
