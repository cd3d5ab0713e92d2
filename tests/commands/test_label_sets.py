"""Any label set, from raw photos through every command and back: names stay whole, and with their photos.

MARKED photos are flat in a colour of their label, which a tiny Swin learns to certainty, so that every command must
give the right name for the right photo.
"""

import csv
import hashlib
import json
import re
import shutil
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torchvision
from conftest import TINY, written
from PIL import Image
from runs import write_drawn

import main
import process_dataset
import test as test_command
import visual
from data.labels import LabelSet, as_file_name
from data.loading.split import scan_split
from tools.api import load
from tools.checkpoint import store
from tools.commands import compare, predict, score

PLAIN = """
AUG: {AUTO_AUGMENT: '', COLOR_JITTER: 0.0, REPROB: 0.0, MIXUP: 0.0, CUTMIX: 0.0, SCALE: [0.9, 1.0]}
"""
# label -> colour, RGB; in the order of the classes, which is neither that of the numbers nor a dictionary's
MARKED = {
    "10": (220, 30, 30),
    "2": (30, 200, 40),
    "Banana": (230, 220, 40),
    "Zonate": (40, 50, 220),
    "apple": (200, 40, 200),
    "Äpfel": (40, 210, 220),
}


def nfd(name):
    """The name in Unicode's form NFD, as some file systems and spreadsheets write it."""
    return unicodedata.normalize("NFD", name)


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def separator_of(labels):
    """What stands between these labels in one field, none of which holds a bar."""
    return "|" if any(" " in label for label in labels) else " "


def numbers_in(value, where=""):
    """(where, number) for every number in plain values."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return [found for key, part in pairs for found in numbers_in(part, f"{where}/{key}")]
    return [(where, value)] if isinstance(value, int | float) else []


def run(command, *argv):
    assert command([str(word) for word in argv]) == 0


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """A config of the tiny Swin that sees photos almost as they are."""
    path = tmp_path_factory.mktemp("plain") / "tiny.yaml"
    path.write_text(TINY + PLAIN)
    return path


class Trained:
    """A prepared data set and the model that was trained on it."""

    def __init__(self, folder, raw, config, *flags, opts=()):
        self.folder, self.raw, self.data = folder, raw, folder / "dataset"
        run(process_dataset.main, "--src", raw, "--dst", self.data, *flags)
        argv = ["--cfg", config, "--data-path", self.data, "--output", folder / "output"]
        run(main.main, *argv, *(["--opts", *opts] if opts else []))
        self.best = folder / "output" / "tiny" / "default" / "best.pth"
        self.scored = folder / "scored"
        self.labels = json.loads((self.data / "manifest.json").read_text())["label_set"]["labels"]

    def test(self, split="test", data=None):
        """metrics.json and the rows of predictions.csv of a split."""
        argv = ["--resume", self.best, "--data-path", data or self.data, "--split", split, "--to", self.scored]
        run(test_command.main, *argv)
        return json.loads((self.scored / "metrics.json").read_text()), table(self.scored / "predictions.csv")


@pytest.fixture
def drawn(tmp_path, tiny):
    """A function that trains on a drawn data set; returns the `Trained` and the labels of every photo by its name."""

    def call(set_name, raw, counts, pool, *opts):
        truth = write_drawn(set_name, raw, tmp_path / "raw", counts, pool)
        flags = ["--split", "0.6", "0.2", "0.2"] if pool else []
        flags += ["--no-duplicates"]
        return Trained(tmp_path, tmp_path / "raw", tiny, *flags, opts=opts), truth

    return call


@pytest.mark.parametrize(("set_name", "raw", "counts", "pool"), [
    ("three", "columns", (24, 9, 9), True),
    ("twelve", "csv", (36, 18, 18), False),
    ("twelve", "tree", (36, 18, 18), False),
    ("skewed", "excel", (24, 9, 9), False),
    ("many", "onehot", (132, 132, 132), False),
])  # fmt: skip
def test_a_drawn_set_from_raw_photos_to_scores_maps_and_predictions_and_back(
    drawn, set_name, raw, counts, pool, tmp_path, capsys, times, monkeypatch
):
    times(set_name != "many", 1)
    got, truth = drawn(set_name, raw, counts, pool, "TRAIN.EPOCHS", "1", "DATA.TARGETS", "auto")
    assert set(got.labels) == {label for labels in truth.values() for label in labels}
    capsys.readouterr()
    metrics, rows = got.test()
    out = capsys.readouterr().out
    check_scores(got, truth, metrics, rows, out)
    labels = [got.data / "OneHot-test_label.csv", *got.raw.glob("test/test_label.csv")]
    for path in labels:
        run(score.main, got.scored / "predictions.csv", path, "--json", tmp_path / "score.json")
        check_scored_again(json.loads((tmp_path / "score.json").read_text()), metrics, capsys.readouterr().out, out)
    run(compare.main, got.best, got.scored / "predictions.csv", "--data-path", got.data)
    first, second = capsys.readouterr().out.splitlines()[2:]
    assert re.findall(r"\d+\.\d\d", first)[-4:] == re.findall(r"\d+\.\d\d", second)[:4]
    assert "+0.00 [" in second

    some = {row["images"]: row for row in rows[:6]}
    (tmp_path / "orchard").mkdir()
    for name in some:
        shutil.copy(next(got.data.glob(f"test/*/{name}")), tmp_path / "orchard")
    monkeypatch.chdir(tmp_path / "orchard")
    run(predict.main, ".", "--resume", got.best, "--csv", tmp_path / "p.csv", "--json", tmp_path / "p.json")
    check_predictions(got.labels, some, table(tmp_path / "p.csv"), json.loads((tmp_path / "p.json").read_text()))
    with (tmp_path / "some.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["images", "labels"], *([name, row["truth"]] for name, row in some.items())])
    run(score.main, tmp_path / "p.csv", tmp_path / "some.csv")
    capsys.readouterr()
    check_maps(got, sorted(some)[:2], truth, rows, tmp_path / "maps", capsys)
    check_class_indices(got.data)


def check_scores(got, truth, metrics, rows, out):
    """Names in metrics.json, predictions.csv, report.html and on the terminal are those of the drawn photos."""
    assert metrics["labels"] == got.labels
    assert metrics["targets"] == ("multi" if max(map(len, truth.values())) > 1 else "single")
    separator = separator_of(got.labels)
    assert {row["images"]: set(row["truth"].split(separator)) for row in rows} == {
        row["images"]: set(truth[row["images"]]) for row in rows
    }
    assert [name for name in rows[0] if name.startswith("p_")] == [f"p_{label}" for label in got.labels]
    counted = Counter(label for row in rows for label in truth[row["images"]])
    assert [entry["n"] for entry in metrics["per_class"]] == [counted[label] for label in got.labels]
    assert not [label for label in got.labels if f"Accuracy for {label}: " not in out]
    page = (got.scored / "report.html").read_text()
    assert not [label for label in got.labels if f">{label}<" not in page]


def check_scored_again(again, metrics, printed, out):
    """The figures of `score` are those of test.py: as printed exactly, and as far as p_ columns have digits."""
    expected = {key: metrics[key] for key in again}
    assert dict(numbers_in(again)) == pytest.approx(dict(numbers_in(expected)), abs=1e-5)
    assert again["labels"] == metrics["labels"]
    lines = [line for line in printed.splitlines() if line.startswith("  ")]
    assert len(lines) == 14 + len(metrics["labels"])
    assert not [line for line in lines[:13] if line not in out.splitlines()]


def check_predictions(labels, known, rows, entries):
    """The files of predict say of each photo what test.py's predictions.csv says, `known` by its name."""
    for row, entry in zip(rows, entries, strict=True):
        expected = known[row["images"]]
        assert {key: row[key] for key in expected if key != "truth"} | {"truth": expected["truth"]} == expected
        assert entry["image"] == row["images"]
        assert entry["labels"] == [name for name in labels if name in expected["decision"].split(separator_of(labels))]
        assert list(entry["probabilities"]) == labels


def check_maps(got, names, truth, rows, maps, capsys):
    """Maps of the last label of two photos, and maps scored against the boxes of all labels."""
    chosen = got.labels[-1]
    photos = [got.folder / "orchard" / name for name in names]
    run(visual.main, "--image", *photos, "--resume", got.best, "--to", maps, "--target", chosen)
    ends = ("original", f"{as_file_name(chosen)}_cam", f"{as_file_name(chosen)}_pair")
    assert {path.name for path in maps.iterdir()} == {f"{photo.stem}_{end}.png" for photo in photos for end in ends}
    assert capsys.readouterr().out.count(f"map of {chosen} ") == 2
    boxes = ["--score", got.raw / "lesion_boxes.csv", "--split", "test", "--data-path", got.data]
    run(visual.main, *boxes, "--resume", got.best, "--to", maps)
    ill = [set(truth[row["images"]]) - {"healthy"} for row in rows]
    assert f"\n{sum(map(bool, ill))} photos, {sum(map(len, ill))} labels with boxes" in capsys.readouterr().out


def check_class_indices(data):
    """torchvision's ImageFolder over a made tree gives every photo the class that our split gives it."""
    for name in ("train", "val", "test"):
        if (data / name).is_dir():
            split = scan_split(data, name)
            theirs = torchvision.datasets.ImageFolder(data / name, allow_empty=True)
            assert theirs.class_to_idx == {folder: c for c, folder in enumerate(split.labels.folders)}
            found = sorted((Path(path).name, index) for path, index in theirs.samples)
            assert found == sorted((photo.name, c) for photo in split.photos for c in photo.classes)


def write_marked(folder, counts, names=None):
    """Flat photos of MARKED labels, label -> how many; `names` renames some folders. Returns name -> label."""
    found = {}
    for label, count in counts.items():
        for number in range(count):
            shade = np.random.default_rng((number, len(found))).integers(-12, 13, 3)
            name = f"{folder.name}-{len(found):03d}.png"
            path = folder / (names or {}).get(label, label) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (48, 48), tuple(map(int, np.add(MARKED[label], shade)))).save(path)
            found[name] = label
    return found


@pytest.fixture(scope="module")
def marked(tmp_path_factory, plain):
    """A model that was trained on the marked photos, Äpfel in one Unicode form in train and in another in val."""
    folder, truth = tmp_path_factory.mktemp("marked"), {}
    for split, count, names in (("train", 8, {"Äpfel": nfd("Äpfel")}), ("val", 3, {}), ("test", 2, {})):
        truth |= write_marked(folder / "raw" / split, dict.fromkeys(MARKED, count), names)
    flags = ["--no-duplicates"]  # flat photos all look alike
    got = Trained(folder, folder / "raw", plain, *flags, opts=["TRAIN.EPOCHS", "6", "DATA.TARGETS", "auto"])
    got.truth = truth
    return got


def check_marked(got, data, truth, split="test"):
    """test.py decides the true label of every photo of a split, under its name."""
    metrics, rows = got.test(split, data)
    assert {row["images"]: row["truth"] for row in rows} == truth
    assert {row["images"]: row["decision"] for row in rows} == truth
    assert [entry["n"] for entry in metrics["per_class"]] == [Counter(truth.values())[label] for label in MARKED]
    return rows


def test_marked_photos_have_their_names_in_every_command(marked, tmp_path, capsys, monkeypatch):
    assert marked.labels == list(MARKED) == sorted(MARKED)
    truth = {name: label for name, label in marked.truth.items() if name.startswith("test")}
    check_marked(marked, None, truth)
    check_class_indices(marked.data)
    capsys.readouterr()
    argv = ["--resume", marked.best, "--data-path", marked.data]
    run(test_command.main, *argv, "--to", tmp_path / "scored", "--verbose")
    lines = capsys.readouterr().out.splitlines()
    titles = dict(zip(MARKED, LabelSet.of_names(MARKED).titles, strict=True))
    for name, label in truth.items():
        assert f"Image: {name}, Actual: {titles[label]}, Predicted: {titles[label]}" in lines
    for label in MARKED:
        assert f"Accuracy for {titles[label]}: 100.00% (2 of 2)" in lines

    (tmp_path / "orchard").mkdir()
    for name in truth:
        shutil.copy(next(marked.data.glob(f"test/*/{name}")), tmp_path / "orchard")
    monkeypatch.chdir(tmp_path / "orchard")
    run(predict.main, ".", "--resume", marked.best)
    said = dict(re.findall(r"^(test\S+): (.*) \(\d", capsys.readouterr().out, re.MULTILINE))
    assert said == truth
    run(predict.main, ".", "--resume", marked.best, "--csv", tmp_path / "p.csv", "--json", tmp_path / "p.json")
    assert {row["images"]: row["decision"] for row in table(tmp_path / "p.csv")} == truth
    entries = json.loads((tmp_path / "p.json").read_text())
    assert {entry["image"]: entry["labels"] for entry in entries} == {name: [label] for name, label in truth.items()}
    for entry in entries:
        assert max(entry["probabilities"], key=entry["probabilities"].get) == truth[entry["image"]]
    assert [photo.labels for photo in load(marked.best).predict(list(truth))] == [(label,) for label in truth.values()]
    run(score.main, tmp_path / "p.csv", marked.data / "OneHot-test_label.csv")
    assert "exact match              100.00" in capsys.readouterr().out

    run(visual.main, *argv, "--split", "test", "--to", tmp_path / "maps")
    out = capsys.readouterr().out
    for name, label in truth.items():
        assert (tmp_path / "maps" / f"{Path(name).stem}_{label}_pair.png").is_file()
        assert re.search(rf"{name}: {label} \(.*; map of {label} ", out)


def test_marked_photos_in_a_tree_without_a_manifest(marked, tmp_path):
    """It lacks labels, and its folders are in another Unicode form."""
    truth = write_marked(tmp_path / "tree" / "test", {"Äpfel": 2, "2": 1, "apple": 1}, {"Äpfel": nfd("Äpfel")})
    check_marked(marked, tmp_path / "tree", truth)


@pytest.mark.parametrize("label_set", [True, False])
def test_marked_photos_that_were_prepared_separately(marked, label_set, tmp_path, refused):
    """The split lacks labels, which stand between others in the order, and has other names until they are renamed."""
    src, names = tmp_path / "raw", tmp_path / "names.txt"
    truth = write_marked(src / "test", {"Zonate": 2, "2": 1, "apple": 1}, {"Zonate": "zone", "2": "a: two"})
    names.write_text("zone: Zonate\na: two: 2\n")
    argv = ["--src", src, "--no-duplicates", *(["--label-set", marked.data / "manifest.json"] if label_set else [])]
    if label_set:
        refused(process_dataset.main, [*argv, "--dst", tmp_path / "none"], 3, "unknown label 'a: two'")
    run(process_dataset.main, *argv, "--dst", tmp_path / "dataset", "--labels", names)
    folders = {path.name for path in (tmp_path / "dataset" / "test").iterdir()}
    assert folders == (set(MARKED) if label_set else {"2", "Zonate", "apple"})
    check_marked(marked, tmp_path / "dataset", truth)


def test_a_label_that_differs_only_in_case_is_refused_with_what_to_do(marked, tmp_path, refused, plain):
    write_marked(tmp_path / "raw" / "train", {"apple": 2, "2": 2, "Banana": 2}, {"Banana": "Apple"})
    words = ("'Apple' and 'apple' differ only in upper and lower case", "--labels FILE", "the line apple: Apple")
    refused(process_dataset.main, ["--src", tmp_path / "raw", "--dst", tmp_path / "dataset"], 3, *words)
    refused(main.main, ["--cfg", plain, "--data-path", tmp_path / "raw", "--output", tmp_path / "out"], 3, *words)
    write_marked(tmp_path / "raw" / "test", {"apple": 1, "2": 1}, {"apple": "Apple"})
    argv = ["--resume", marked.best, "--data-path", tmp_path / "raw", "--to", tmp_path / "scored"]
    refused(test_command.main, argv, 3, "test/Apple is not a class", "did you mean apple?")


def test_the_apple_tree_is_that_of_before_label_sets(dataset):
    """Its names and one-hot files; that the photos are links to the raw ones is tested in test_prepare.py."""
    found = hashlib.sha256()
    for path in sorted(dataset.rglob("*.*")):
        if path.name not in ("manifest.json", "report.html"):
            found.update(str(path.relative_to(dataset)).encode())
            found.update(path.read_bytes() if path.suffix == ".csv" else b"")
    assert found.hexdigest() == "9a8d090af47388d1595ef8382c200c400bc979edaeb1604e3a58f60ec7424867"
    check_class_indices(dataset)


def test_names_that_are_awkward_in_paths_tables_and_formulas(marked, tmp_path, capsys, monkeypatch):
    """The marked model under other names, on a test folder without a manifest, which its class folders match."""
    names = ["a/b", "../up", "$x$ & $y$", "_low", "unsure", "a|b, c; d"]
    (tmp_path / "run").mkdir()
    best = written(tmp_path / "run" / "best.pth", store.read(marked.best) | {"labels": names})
    shutil.copytree(marked.data / "test", tmp_path / "data" / "test")
    new = dict(zip(MARKED, names, strict=True))
    truth = {name: new[label] for name, label in marked.truth.items() if name.startswith("test")}
    run(test_command.main, "--resume", best, "--data-path", tmp_path / "data", "--to", tmp_path / "scored")
    rows = table(tmp_path / "scored" / "predictions.csv")
    assert {row["images"]: row["decision"] for row in rows} == truth
    (tmp_path / "orchard").mkdir()
    for photo in (tmp_path / "data").glob("test/*/*.png"):
        shutil.copy(photo, tmp_path / "orchard")
    monkeypatch.chdir(tmp_path / "orchard")
    capsys.readouterr()
    run(predict.main, ".", "--resume", best, "--csv", tmp_path / "p.csv", "--json", tmp_path / "p.json")
    header, counts = (re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()[1:3])
    assert header == ["folder", "photos", *names, "unsure", "unreadable"]
    entries = json.loads((tmp_path / "p.json").read_text())
    assert counts == [".", "12", *["2"] * 6, str(sum(entry["unsure"] for entry in entries)), "0"]
    assert [entry["labels"] for entry in entries] == [[truth[name]] for name in sorted(truth)]
    with (tmp_path / "p.csv").open("w", newline="", encoding="utf-8") as file:  # another program's order of columns
        columns = ["images", *(name for name in reversed(rows[0]) if name not in ("images", "truth"))]
        csv.writer(file).writerows([columns, *([row[column] for column in columns] for row in rows)])
    capsys.readouterr()
    run(compare.main, tmp_path / "scored" / "predictions.csv", tmp_path / "p.csv")
    assert "100.00  +0.00 [" in capsys.readouterr().out
    (tmp_path / "p.csv").unlink()
    run(visual.main, "--image", *sorted(truth), "--resume", best, "--to", tmp_path / "maps")
    assert {path.name for path in (tmp_path / "maps").glob("*_pair.png")} == {
        f"{Path(name).stem}_{as_file_name(label)}_pair.png" for name, label in truth.items()
    }
    assert {path.name for path in tmp_path.iterdir()} == {"run", "data", "scored", "orchard", "p.json", "maps"}
