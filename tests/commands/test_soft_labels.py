"""TRAIN.SOFT_LABELS: what the targets are, by hand; what a run with them resumes; files that do not fit."""

import csv
from itertools import islice

import numpy as np
import pytest
import torch
from conftest import CODE_OF
from runs import RUN, warm_ranks

import main
import process_dataset
from configs.load import load
from tools.checkpoint.store import read
from tools.runtime.distributed import Ranks
from tools.train.data import load_data, scan_splits

LABELS = list(CODE_OF)


@pytest.fixture
def soft(dataset, tmp_path):
    """A predictions.csv of the drawn training photos with random probabilities, and those by photo."""
    draw = np.random.default_rng(0)
    names = sorted({path.name for path in (dataset / "train").glob("*/*")})
    said = {name: draw.random(6).round(6) for name in [*names, "of another split.jpg"]}
    write(tmp_path / "soft.csv", said)
    return tmp_path / "soft.csv", said


def write(path, said, labels=LABELS, order=None):
    order = order or labels
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["images", *(f"p_{label}" for label in order)])
        rows.writerows([name, *(p[labels.index(label)] for label in order)] for name, p in said.items())


def first_epoch(tiny, dataset, path, targets, weight, *opts):
    """(photo's file name, target) of every training sample of an epoch, and the data."""
    words = ["DATA.DATA_PATH", dataset, "DATA.TARGETS", targets, "TRAIN.SOFT_LABELS", path, "TRAIN.SOFT_WEIGHT", weight]
    loaded, splits = scan_splits(load(tiny, [str(word) for word in [*words, *opts]]))
    data = load_data(loaded.config, splits, Ranks())
    steps = len(data.train_loader)
    drawn = [(data.photos(step, steps, 1), batch.targets) for step, batch in enumerate(data.train_loader)]
    return [(file.rsplit("/", 1), row) for files, rows in drawn for file, row in zip(files, rows, strict=True)], data


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_targets_are_mixed_by_hand(tiny, raw, soft, tmp_path, weight):
    """w x probability + (1 - w) x label, for balanced copies those of their originals; validation keeps its labels."""
    path, said = soft
    tree = tmp_path / "balanced"
    assert process_dataset.main(["--src", str(raw), "--dst", str(tree), "--balance"]) == 0
    folders = {}
    for file in (tree / "train").glob("*/*"):
        folders.setdefault(file.name, set()).add(file.parent.name)
    samples, data = first_epoch(tiny, tree, path, "multi", weight)
    copies = 0
    for (_, name), row in samples:
        origin = name.split(".made-")[0].removesuffix(".jpg") + ".jpg"
        copies += origin != name
        hard = [float(code in folders[name]) for code in CODE_OF.values()]
        wanted = [weight * p + (1 - weight) * t for p, t in zip(said[origin], hard, strict=True)]
        assert row.tolist() == pytest.approx(wanted, abs=1e-6)
    assert copies >= 8
    assert {value for batch in data.val_loader for value in batch.targets.flatten().tolist()} == {0.0, 1.0}


def test_single_targets_take_a_share_of_the_normalised_probabilities(tiny, dataset, soft):
    path, said = soft
    samples, _ = first_epoch(tiny, dataset, path, "single", 0.25)
    got, wanted = ({name: [] for name in said} for _ in range(2))
    for (_, name), row in samples:  # the copies of a photo have one file
        got[name].append(row.tolist())
    for file in (dataset / "train").glob("*/*"):
        hard = [float(file.parent.name == code) for code in CODE_OF.values()]
        share = said[file.name] / sum(said[file.name])
        wanted[file.name].append([0.25 * p + 0.75 * t for p, t in zip(share, hard, strict=True)])
    drawn = [name for name in said if len(got[name]) == len(wanted[name]) > 0]  # the last batch is not filled up
    assert len(drawn) > 30
    for name in drawn:
        assert np.array(sorted(got[name])) == pytest.approx(np.array(sorted(wanted[name])), abs=1e-6)


def test_columns_are_matched_by_name(tiny, dataset, soft, tmp_path):
    path, said = soft
    write(tmp_path / "turned.csv", said, order=LABELS[::-1])
    both = [first_epoch(tiny, dataset, p, "multi", 0.5)[0] for p in (path, tmp_path / "turned.csv")]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(*both, strict=True))


def weights(folder):
    return torch.cat([tensor.double().flatten() for tensor in read(folder / "last.pth")["model"].values()])


def test_a_run_with_soft_labels(train, soft, dataset, tiny, tmp_path, refused):
    """Weight 0 is the run without them, to the bit; an interrupted run goes on to the same bits, two ranks to the same
    weights; and neither other probabilities nor another weight continue it."""
    path, said = soft
    multi = ("DATA.TARGETS", "multi")
    plain, none, whole, parts = (
        train(tag, *multi, *opts)[1]
        for tag, opts in (
            ("plain", ()),
            ("none", ("TRAIN.SOFT_LABELS", path, "TRAIN.SOFT_WEIGHT", 0)),
            ("whole", ("TRAIN.SOFT_LABELS", path)),
            ("parts", ("TRAIN.SOFT_LABELS", path, "TRAIN.MAX_STEPS", 4)),
        )
    )
    assert torch.equal(weights(plain), weights(none))
    assert not torch.equal(weights(plain), weights(whole))
    line = f"targets multi, 6 classes, mixed with 0.5 x the probabilities in {path}\n"
    assert line in (whole / "log.txt").read_text()

    argv = ["--cfg", tiny, "--data-path", dataset, "--output", tmp_path / "out", "--tag", "parts", "--opts", *multi]
    other = tmp_path / "other.csv"
    write(other, {**said, min(said): 1 - said[min(said)]})
    for opts in (["TRAIN.SOFT_LABELS", other], []):
        refused(main.main, [*argv, *opts], 4, "other photos, labels or soft labels")
    refused(main.main, [*argv, "TRAIN.SOFT_LABELS", path, "TRAIN.SOFT_WEIGHT", 0.4], 2, "TRAIN.SOFT_WEIGHT 0.5 -> 0.4")
    moved = path.rename(tmp_path / "moved.csv")
    assert train("parts", *multi, "TRAIN.SOFT_LABELS", moved)[0] == 0
    assert torch.equal(weights(parts), weights(whole))

    flags = ["--cfg", tiny, "--data-path", dataset, "--batch-size", 4, "--opts", *multi, "TRAIN.SOFT_LABELS", moved]
    argv = [str(word) for word in flags]
    assert [rank.wait() for rank in warm_ranks(tmp_path, argv, argv)] == [0, 0]
    assert (weights(tmp_path / RUN) - weights(whole)).abs().max() < 1e-4
    assert (weights(tmp_path / RUN) - weights(plain)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("nowhere.csv", 3, ["nowhere.csv"]),
        ("missing.csv", 3, ["missing.csv has no row for", "(2 photos without one)"]),
        ("more.csv", 3, ["more.csv and the training photos differ in the labels blotch"]),
        ("fewer.csv", 3, ["fewer.csv: no column for the label 'scab'"]),
        ("binary.csv", 3, ["binary.csv holds no probabilities", "--split held-out"]),
        ("range.csv", 3, ["range.csv, row 2, column p_scab", "'1.5' is not a number between 0 and 1"]),
    ],
)
def test_a_file_that_does_not_fit(fault, tiny, dataset, soft, tmp_path, name, code, words):
    _, said = soft
    write(tmp_path / "missing.csv", dict(islice(sorted(said.items()), 2, None)))
    write(tmp_path / "more.csv", {photo: [*p, 0.5] for photo, p in said.items()}, labels=[*LABELS, "blotch"])
    write(tmp_path / "fewer.csv", said, order=LABELS[1:])
    write(tmp_path / "binary.csv", {photo: p.round() for photo, p in said.items()})
    write(tmp_path / "range.csv", {photo: [1.5, *p[1:]] for photo, p in said.items()})
    argv = ["--cfg", tiny, "--data-path", dataset, "--opts", "DATA.TARGETS", "multi", "TRAIN.SOFT_LABELS", name]
    fault(main.main, argv, code, *words)
