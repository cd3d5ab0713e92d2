"""The real photos under the labels of a made-up crop: the same model and the same figures, to the last digit."""

import csv
import json
import os

import numpy as np
import pytest
import torch
from conftest import SHARED, written

import main
import process_dataset
import test as test_command
from data.label_files import read_labels
from data.labels import COURSE, LabelSet
from tools.base.tables import format_csv
from tools.checkpoint import store

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="the course's photos are not on this machine")
# in the order of the course's classes
QUINCE = dict(zip(COURSE.names, [
    "Ash scab (old)", "Brown rust", "Cotton / mildew", "Dark, without disease", "Eye spot", "Äther; several",
], strict=True))  # fmt: skip
ALONE = ["--exclusive", QUINCE["healthy"]]
# a merged and a dropped label leave four, in alphabetical order under both sets of names
MERGED = {"rust": "scab", "complex": "-"}
MEDLAR = {
    "frog_eye_leaf_spot": "Circles", "healthy": "No disease", "powdery_mildew": "White dust", "scab": "zonate",
    "rust": "Orange dots", "complex": "Several of them",
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(times):
    """split -> rows of the shared photos, some of them, and all in `make soak`."""
    found = {split: read_labels(SHARED / split / f"{split}_label.csv").rows for split in ("train", "val")}
    step = times(20, 1)
    several = {split: [row for row in rows if len(row.labels) > 1][: 200 // step] for split, rows in found.items()}
    return {
        split: [*{row.image: row for row in [*rows[::step], *several[split]]}.values()] for split, rows in found.items()
    }


def write_raw(folder, photos, form, names):
    """Links to the photos with their labels under other names: `csv` with bars, `excel`, or a `tree`."""
    for split, rows in photos.items():
        table = [["images", "labels"] if form == "csv" else ["images", *sorted(names.values(), reverse=True)]]
        for row in rows:
            given = [names[label] for label in row.labels]
            table.append([row.image, "|".join(given)] if form == "csv" else [
                row.image, *("x" if name in given else "" for name in table[0][1:])])  # fmt: skip
            for parent in given if form == "tree" else ["images"]:
                link = folder / split / parent / row.image
                link.parent.mkdir(parents=True, exist_ok=True)
                os.symlink(SHARED / split / "images" / row.image, link)
        if form == "csv":
            (folder / split / f"{split}_label.csv").write_bytes(format_csv(table))
        elif form == "excel":
            with (folder / split / f"{split}_label.csv").open("w", newline="", encoding="utf-16") as file:
                csv.writer(file, delimiter=";").writerows(table)


@pytest.fixture(scope="module")
def learn(photos, tiny, tmp_path_factory):
    """A function that prepares photos, trains a tiny Swin, scores it on val, and returns its `Outcome`."""

    def call(form, names, *flags, merged=None):
        torch.set_num_threads(1)  # a fixture of the module is made before that of every test which does this
        folder = tmp_path_factory.mktemp("renamed")
        write_raw(folder / "raw", photos, form, names)
        if merged:
            lines = [f"{names[given]}: {names.get(new, new)}\n" for given, new in merged.items()]
            (folder / "names.txt").write_text("".join(lines))
            flags = [*flags, "--labels", folder / "names.txt"]
        argv = ["--src", folder / "raw", "--dst", folder / "dataset", "--follow-links", "--no-duplicates", *flags]
        assert process_dataset.main([str(word) for word in argv]) == 0
        argv = ["--cfg", tiny, "--data-path", folder / "dataset", "--output", folder, "--follow-links"]
        argv += ["--opts", "DATA.TARGETS", "auto", "TRAIN.EPOCHS", "1"]
        assert main.main([str(word) for word in argv]) == 0
        return Outcome(folder / "dataset", folder / "tiny" / "default" / "best.pth")

    return call


class Outcome:
    """A checkpoint, and what test.py says about it on photos of a data set."""

    def __init__(self, data, checkpoint, split="val"):
        self.data, self.checkpoint, self.content = data, checkpoint, store.read(checkpoint)
        argv = ["--resume", checkpoint, "--data-path", data, "--split", split, "--to", checkpoint.parent / "scored"]
        assert test_command.main([str(word) for word in argv]) == 0
        self.metrics = json.loads((checkpoint.parent / "scored" / "metrics.json").read_text())
        with (checkpoint.parent / "scored" / "predictions.csv").open(newline="", encoding="utf-8") as file:
            self.rows = list(csv.reader(file))

    def figures(self, names):
        """metrics.json without the files and folders, with label names translated."""
        text = json.dumps(
            {k: v for k, v in self.metrics.items() if k not in ("checkpoints", "split", "classes", "data_digest")}
        )
        for given, new in names.items():
            text = text.replace(json.dumps(given), json.dumps(new))
        return json.loads(text)


def check_equal(own, renamed, names):
    """Every tensor, figure and prediction is the same; only the names differ."""
    assert renamed.metrics["labels"] == [names[label] for label in own.metrics["labels"]]
    tensors = [list(store.named_tensors(outcome.content)) for outcome in (own, renamed)]
    assert [key for key, _ in tensors[0]] == [key for key, _ in tensors[1]]
    assert all(a.equal(b) for (_, a), (_, b) in zip(*tensors, strict=True))
    for key in ("thresholds", "temperatures", "combinations", "exclusive", "targets", "step"):
        assert own.content[key] == renamed.content[key], key
    assert own.figures(names) == renamed.figures({})
    places = [number for number, name in enumerate(own.rows[0]) if name.startswith("p_") or name == "confidence"]
    for a, b in zip(own.rows[1:], renamed.rows[1:], strict=True):
        assert [a[0], *(a[n] for n in places)] == [b[0], *(b[n] for n in places)]
        for n in (1, places[-1] - 1):  # truth and decision
            assert [names[label] for label in a[n].split(" ")] == _split(b[n], names)


def _split(text, names):
    """The names in a field, whatever stands between them, in the order of the field."""
    found = sorted((text.index(name), name) for name in names.values() if name in text)
    return [name for _, name in found]


@pytest.fixture(scope="module")
def own(learn):
    return learn("csv", {name: name for name in COURSE.names})


@pytest.mark.parametrize("form", ["csv", "excel"])
def test_the_figures_are_the_same_to_the_last_digit(own, learn, form):
    assert own.metrics["targets"] == "multi"
    assert own.metrics["classes"] == list(COURSE.folders)
    check_equal(own, learn(form, QUINCE, *ALONE), QUINCE)


def test_a_tree_of_which_two_labels_are_merged_and_dropped(learn):
    names = {name: name for name in COURSE.names}
    own = learn("csv", names, "--label-set", "found", merged=MERGED)
    assert own.metrics["labels"] == ["frog_eye_leaf_spot", "healthy", "powdery_mildew", "scab"]
    check_equal(own, learn("tree", MEDLAR, "--exclusive", MEDLAR["healthy"], merged=MERGED), MEDLAR)


def test_names_in_another_order_give_every_label_its_figures(own, photos, tmp_path):
    """The head of the model is permuted as the labels are.

    Training cannot be compared: the head's initial weights belong to positions. Figures are equal up to rounding, as
    means over labels add in another order; intervals are drawn by position, and photos are in another order too.
    """
    names = dict(zip(COURSE.names, ["mottle", "canker", "10", "wilt", "2 x", "Öl"], strict=True))
    raw, data = tmp_path / "raw", tmp_path / "dataset"
    write_raw(raw, photos, "csv", names)
    argv = ["--src", raw, "--dst", data, "--follow-links", "--no-duplicates", "--exclusive", names["healthy"]]
    assert process_dataset.main([str(word) for word in argv]) == 0
    labels = LabelSet.of_names(names.values(), [names["healthy"]])
    order = [list(names.values()).index(name) for name in labels.names]  # new class -> the course's
    assert order != sorted(order)
    content = store.read(own.checkpoint) | labels.to_plain()
    content["model"] = {k: v[order] if k.startswith("head.") else v for k, v in content["model"].items()}
    content["validation"] = {key: value[:, order] for key, value in content["validation"].items()}
    for key in ("thresholds", "temperatures"):
        content[key] = [content[key][c] for c in order]
    content["combinations"] = [sorted(order.index(c) for c in classes) for classes in content["combinations"]]
    (tmp_path / "run").mkdir()
    other = Outcome(data, written(tmp_path / "run" / "best.pth", content), "train")
    own = Outcome(own.data, own.checkpoint, "train")  # the rule is fitted on val, where halves depend on the order
    for place, c in enumerate(order):
        mine, theirs = own.metrics["per_class"][c], other.metrics["per_class"][place]
        for key in mine.keys() - {"label"}:  # photos that differ in the last bits may change places in a ranking
            assert mine[key] == pytest.approx(theirs[key], abs=1e-4 if key in ("ap", "auc") else 1e-9), key
    for key in ("exact", "hit1", "accuracy", "macro_f1", "micro_f1"):
        assert own.metrics[key] == pytest.approx(other.metrics[key], abs=1e-9), key
    mine, theirs = ({row[0]: row for row in outcome.rows[1:]} for outcome in (own, other))
    for image, row in mine.items():
        given = np.array(row[2:8], float)[order]
        assert given == pytest.approx(np.array(theirs[image][2:8], float), abs=2e-6)
        assert {names[label] for label in row[1].split(" ")} == set(_split(theirs[image][1], names))
