"""test.py and visual.py on a trained run: their lines, files and refusals, and what they take from the checkpoint."""

import dataclasses
import json
import re
import shutil

import cv2
import numpy as np
import pytest
import torch
from conftest import CODE_OF
from PIL import Image

import test as referee
import visual
from data.images import read_image
from data.labels import LabelSet
from data.loading.split import scan_split
from tools.commands.baseline import fit_histograms
from tools.evaluate.predictor import load_model


@pytest.fixture
def run_folder(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "output" / "tiny" / "default")


def truth(raw):
    lines = (raw / "test" / "test_label.csv").read_text().splitlines()[1:]
    return {line.split(",")[0]: [CODE_OF[x] for x in line.split(",")[1].split()] for line in lines}


def test_the_seeds_lines_from_a_count_of_our_own(raw, dataset, run_folder, capsys):
    """One photo at a time through the checkpoint's transform; copies counted by hand."""
    assert (
        referee.main(
            ["--resume", str(run_folder / "best.pth"), "--data-path", str(dataset), "--verbose", "--batch-size", "5"]
        )
        == 0
    )
    out = capsys.readouterr().out
    predictor = load_model(run_folder / "best.pth", torch.device("cpu"))
    transform, right, total, hits = (
        predictor.preprocess.transform(),
        dict.fromkeys(CODE_OF.values(), 0),
        dict.fromkeys(CODE_OF.values(), 0),
        0,
    )
    for name, codes in truth(raw).items():
        with torch.no_grad():
            logits = predictor.model(transform(read_image(raw / "test" / "images" / name))[None]).numpy()
        top = predictor.label_set.folders[predictor.rule.probabilities(logits)[0].argmax()]
        hits += top in codes
        for code in codes:
            right[code] += top == code
            total[code] += 1
            assert f"Image: {name}, Actual: {code} " in out
    for label, code in CODE_OF.items():
        assert (
            f"Accuracy for {code} {label}: {100 * right[code] / total[code]:.2f}% ({right[code]} of {total[code]})"
            in out
        )
    overall = sum(right.values()) / sum(total.values())
    assert f"Overall Accuracy: {100 * overall:.2f}% ({sum(right.values())} of {sum(total.values())} copies" in out
    assert re.search(rf"hit@1 +{100 * hits / 14:.2f} \[", out)
    written = json.loads((run_folder / "test" / "metrics.json").read_text())
    assert written["accuracy"] == pytest.approx(overall)
    assert written["classes"] == sorted(CODE_OF.values())


def test_without_flags_it_takes_the_newest_run_and_dataset_test(run_folder, dataset, tmp_path, monkeypatch, capsys):
    (tmp_path / "dataset").symlink_to(dataset)
    other = shutil.copytree(run_folder, run_folder.parent / "older")
    (other / "run.json").write_text('{"started": "2020-01-01T00:00:00"}')
    monkeypatch.chdir(tmp_path)
    assert referee.main([]) == 0
    out = capsys.readouterr().out
    assert (
        out.splitlines()[0]
        == "checkpoint output/tiny/default/best.pth (of the run started last; another one: --resume FILE)"
    )
    assert "dataset/test: 14 photos" in out
    assert visual.main(["--examples", "1"]) == 0
    assert len(list((run_folder / "heatmaps").iterdir())) == 3


def test_one_split_is_enough_and_other_splits_can_be_asked_for(run_folder, dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "own", ignore=shutil.ignore_patterns("train", "val", "*.json"))
    assert referee.main(["--resume", str(run_folder / "best.pth"), "--data-path", str(tmp_path / "own")]) == 0
    assert referee.main(["--resume", str(run_folder / "best.pth"), "--data-path", str(dataset), "--split", "val"]) == 0
    written = {split: json.loads((run_folder / split / "metrics.json").read_text()) for split in ("test", "val")}
    assert written["val"]["cross_fitted"]  # the rule was chosen on these photos
    assert not written["test"]["cross_fitted"]


def test_a_single_target_run_is_scored_by_its_own_rule(tiny, dataset, tmp_path, capsys):
    import main

    arguments = ["--cfg", str(tiny), "--data-path", str(dataset), "--output", str(tmp_path / "o")]
    assert main.main([*arguments, "--opts", "TRAIN.EPOCHS", "1", "TRAIN.WARMUP_EPOCHS", "0"]) == 0
    capsys.readouterr()
    assert referee.main(["--cfg", str(tiny), "--output", str(tmp_path / "o"), "--data-path", str(dataset)]) == 0
    assert "Overall Accuracy" in capsys.readouterr().out
    assert (
        json.loads((tmp_path / "o" / "tiny" / "default" / "test" / "metrics.json").read_text())["targets"] == "single"
    )


@pytest.mark.parametrize(
    ("target", "layer"),
    [("predicted", None), ("rust", "layers[0].blocks[-1].norm2"), ("100000", "layers[-1].blocks[0].norm1")],
)
def test_heat_map_and_original_are_written_in_true_colours(run_folder, tmp_path, target, layer):
    """The left half of the photo is red, and so are the left halves of both files."""
    pixels = np.zeros((90, 140, 3), np.uint8)
    pixels[:, :70, 0], pixels[:, 70:, 1] = 255, 120
    Image.fromarray(pixels).save(tmp_path / "leaf 1.png")
    flags = ["--layer", layer] if layer else []
    photo, maps = tmp_path / "leaf 1.png", tmp_path / "maps"
    arguments = ["--resume", run_folder / "best.pth", "--image", photo, "--target", target, "--to", maps, *flags]
    assert visual.main([str(a) for a in arguments]) == 0
    files = {p.name: cv2.imread(str(p))[:, :, ::-1].astype(int) for p in (tmp_path / "maps").iterdir()}
    label = {"rust": "rust", "100000": "complex"}.get(target, r"\w+")
    assert len(files) == 3
    assert any(re.fullmatch(rf"leaf 1_{label}_cam\.png", name) for name in files)
    original = files["leaf 1_original.png"]
    assert original.shape == (32, 32, 3)
    assert original[16, 2].tolist() == [255, 0, 0]
    heat = next(v for k, v in files.items() if k.endswith("_cam.png"))
    assert heat[16, 2, 0] >= 127 > heat[16, 29, 0] - 127


def test_photos_with_equal_names_get_separate_pictures(run_folder, dataset, tmp_path):
    photos = sorted((dataset / "test").glob("*/*.jpg"))
    for place, photo in zip(("x/p.jpg", "y/p.jpg", "p_2.jpg"), photos, strict=False):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        shutil.copy(photo, tmp_path / place)
    images = [str(tmp_path / place) for place in ("x/p.jpg", "y/p.jpg", "p_2.jpg")]
    argv = ["--resume", str(run_folder / "best.pth"), "--to", str(tmp_path / "maps"), "--image", *images]
    assert visual.main(argv) == 0
    names = {p.name.replace("_original.png", "") for p in (tmp_path / "maps").glob("*_original.png")}
    assert names == {"p", "p_2", "p_2_2"}
    assert len(list((tmp_path / "maps").iterdir())) == 9


def test_a_class_that_no_training_photo_has(dataset):
    """A histogram cannot learn it; it has an opinion all the same."""
    split = scan_split(dataset, "val")
    more = dataclasses.replace(split, labels=LabelSet.of_names([*split.labels.folders, "1000000"]))
    assert (fit_histograms(more, split)[:, 6] < 0).all()
