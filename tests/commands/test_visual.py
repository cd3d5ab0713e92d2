"""visual.py's figures and scores on a trained run: which files, in which colours, and what is refused."""

import csv
import re
import shutil

import cv2
import numpy as np
import pytest
import torch
from conftest import written
from PIL import Image

import visual
from tools.api import load
from tools.base import cli
from tools.checkpoint.store import read


@pytest.fixture
def run_folder(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "output" / "tiny" / "default")


@pytest.fixture
def draw(run_folder, dataset, tmp_path):
    """A function that calls visual.py on the run and returns the names of the files it wrote."""

    def call(*flags):
        shutil.rmtree(tmp_path / "maps", ignore_errors=True)
        argv = ["--resume", run_folder / "best.pth", "--data-path", dataset, "--to", tmp_path / "maps", *flags]
        assert visual.main([str(a) for a in argv]) == 0
        return sorted(p.name for p in (tmp_path / "maps").iterdir())

    return call


def size_of(path):
    return cv2.imread(str(path)).shape[:2]


def test_side_by_side(draw, tmp_path, capsys):
    for flags, kind, columns in (
        (["--compare", "blocks", "--norm", "norm2"], "blocks", 2),
        (["--compare", "stages"], "stages", 2),
        (["--method", "gradcam", "layercam", "eigencam"], "side_by_side", 3),
        (["--layer", "layers[0].blocks[1].norm1", "layers[0].blocks[0]*layers[1]"], "side_by_side", 2),
    ):
        (name,) = draw("--examples", "1", "--target", "rust", *flags)
        assert name.endswith(f"_rust_{kind}.png")
        out = capsys.readouterr().out
        assert "lesion" not in out, "which of the maps would be meant?"
        assert "place" not in out
        height, width = size_of(tmp_path / "maps" / name)
        assert width > (columns + 1) * 240 > width - 240, "the original and one tile per map"
        assert height > 240


def test_a_row_for_every_label(draw, tmp_path, capsys):
    (name,) = draw("--examples", "1", "--compare", "targets")
    assert name.endswith("_targets.png")
    labels = capsys.readouterr().out.splitlines()[-1].count("%")
    assert labels >= 2, "the first example has several labels"
    assert size_of(tmp_path / "maps" / name)[0] > labels * 240


def test_a_photo_of_its_own_has_a_row_for_every_likely_label(run_folder, draw, raw, capsys):
    photo = next((raw / "test" / "images").iterdir())
    prediction = load(run_folder / "best.pth").predict(str(photo))
    likely = {label for label, share in prediction.probabilities.items() if share > 0.1}
    assert len(likely) > len(prediction.labels)
    assert draw("--image", photo, "--compare", "targets") == [f"{photo.stem}_targets.png"]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " -> " in line]
    assert set(re.findall(r"(\w+) [\d.]+%", line.split("map of")[1])) == likely | set(prediction.labels)


def test_mistakes_come_with_both_labels(draw, capsys):
    names = draw("--mistakes", "2", "--split", "val")
    assert [name[:10] for name in names] == ["mistake_01", "mistake_02"]
    out = [line for line in capsys.readouterr().out.splitlines() if " -> " in line]
    for line, name in zip(out, names, strict=True):
        assert line.split(":")[0].rsplit("/", 1)[1].removesuffix(".jpg") in name
        assert line.count("%") >= 2, "truth and prediction"


def test_epochs(run_folder, draw, dataset, raw, refused, tmp_path):
    common = ["--resume", run_folder / "best.pth", "--data-path", dataset, "--examples", "1", "--compare", "epochs"]
    refused(visual.main, common, 2, "holds no epochs", "TRAIN.SNAPSHOT_EPOCHS")
    (run_folder / "epochs").mkdir()
    for epoch in (1, 2):
        shutil.copy(run_folder / "best.pth", run_folder / "epochs" / f"epoch_{epoch:03}.pth")
    (name,) = draw("--examples", "1", "--compare", "epochs")
    assert name.endswith("_epochs.png")
    assert size_of(tmp_path / "maps" / name)[1] > 4 * 240, "the original, two epochs and the best"
    draw("--score", raw / "lesion_boxes.csv", "--compare", "epochs")
    rows = list(csv.DictReader((tmp_path / "maps" / "cam_scores.csv").open()))
    assert [row["checkpoint"] for row in rows] == ["epoch_001.pth", "epoch_002.pth", "best.pth"]


def test_a_whole_split_with_averaged_views(draw):
    names = draw("--split", "val", "--batch-size", "5", "--tta", "turns", "--classic")
    assert len([n for n in names if n.endswith("_pair.png")]) == 13


def test_a_config_without_loader_processes_needs_a_thread_all_the_same(run_folder, dataset, tiny, tmp_path):
    assert "NUM_WORKERS: 0" in tiny.read_text()
    argv = ["--cfg", tiny, "--output", run_folder.parents[1], "--data-path", dataset, "--to", tmp_path / "maps"]
    assert visual.main([str(a) for a in (*argv, "--examples", "1")]) == 0
    assert len(list((tmp_path / "maps").iterdir())) == 3


@pytest.mark.parametrize("resize", ["squash", "crop", "letterbox"])
def test_full_size_keeps_the_photo_and_its_red(run_folder, draw, tmp_path, resize):
    content = read(run_folder / "best.pth")
    content["preprocess"]["resize"] = resize
    written(run_folder / "best.pth", content)
    pixels = np.zeros((90, 140, 3), np.uint8)
    pixels[:, :70, 0], pixels[:, 70:, 1] = 255, 120
    exif = Image.Exif()
    exif[0x0112] = 3  # rotated by 180 degrees: red is on the right of the upright photo
    Image.fromarray(pixels).save(tmp_path / "leaf.png", exif=exif)
    names = draw("--image", tmp_path / "leaf.png", "--full-size", "--target", "rust")
    assert names == ["leaf_original.png", "leaf_rust_cam.png", "leaf_rust_pair.png"]
    original, heated = (cv2.imread(str(tmp_path / "maps" / n))[:, :, ::-1] for n in names[:2])
    assert original.shape == heated.shape == (90, 140, 3)
    assert original[45, 138].tolist() == [255, 0, 0]
    assert original[45, 2].tolist() == [0, 120, 0]
    if resize == "crop":
        assert np.array_equal(heated[:, -10:], original[:, -10:]), "outside the center crop"
    assert heated[45, 80, 0] >= 127


def test_a_healthy_leaf_is_not_painted_unless_asked_for(run_folder, draw, dataset, tmp_path, capsys):
    """With weights that say healthy for everything, the map is the photo; --target paints it, and so does --classic."""
    content = read(run_folder / "best.pth")
    for weights in (content["model"], content.get("model_ema", {})):
        weights |= {"head.bias": 20 * torch.eye(6)[3]} if weights else {}
    written(run_folder / "best.pth", content)
    photo = next((dataset / "test" / "001000").iterdir())
    for flags, painted in (([], False), (["--target", "healthy"], True), (["--classic"], True)):
        draw("--image", photo, *flags)
        out = capsys.readouterr()
        cam, original = (next((tmp_path / "maps").glob(f"*_{kind}.png")) for kind in ("healthy_cam", "original"))
        assert (cv2.imread(str(cam)) != cv2.imread(str(original))).any() == painted
        assert ("nothing found; --target healthy" in out.out) == (not painted)
        assert "lesion" not in out.out
        assert "warning" not in out.out + out.err


def test_a_zero_map_prints_a_warning(run_folder, draw, capsys):
    content = read(run_folder / "best.pth")
    content["model"]["head.weight"].zero_()
    written(run_folder / "best.pth", content)
    draw("--examples", "1", "--target", "rust")
    assert "warning: " in (out := capsys.readouterr().out)
    assert "the map is zero everywhere" in out


def test_a_model_that_overflows_is_an_error(run_folder, dataset, refused, tmp_path):
    content = read(run_folder / "best.pth")
    content["model"]["head.weight"].fill_(3e38)
    written(run_folder / "best.pth", content)
    argv = ["--resume", run_folder / "best.pth", "--data-path", dataset, "--to", tmp_path / "maps"]
    refused(visual.main, [*argv, "--examples", "1"], 6, "not finite")
    refused(visual.main, [*argv, "--score", dataset.parent / "boxes.csv"], 3, "does not exist")
    assert not (tmp_path / "maps").exists()


def test_scores(draw, raw, dataset, tmp_path, capsys):
    flags = ["--score", raw / "lesion_boxes.csv", "--split", "val", "test", "--thorough", "1", "--method", "layercam"]
    names = draw(*flags, "--layer", "layers[0].blocks[1].norm1", "layers[0].blocks[1].norm1*layers[1].blocks[1].norm1")
    assert names == ["cam_scores.csv", "cam_scores.png"]
    out = capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "maps" / "cam_scores.csv").open()))
    assert [row["layer"].count("*") for row in rows] == [0, 1]
    boxed = {line.split(",")[0] for line in (raw / "lesion_boxes.csv").read_text().splitlines()[1:]}
    shown = {p.name for split in ("val", "test") for p in (dataset / split).glob("*/*.jpg")}
    for row in rows:
        assert int(row["photos"]) == len(boxed & shown)
        assert 0 < float(row["chance"]) < 0.6
        assert float(row["pointing_low"]) <= float(row["pointing"]) <= float(row["pointing_high"])
        assert all(row[name] for name in ("insertion", "deletion", "road", "sanity"))
    assert f"{len(boxed & shown)} photos" in out
    assert "pointing" in out


def test_held_out_photos_are_scored_by_the_model_that_did_not_see_them(folds, raw, dataset, tmp_path, refused):
    """Every boxed label of the training photos is a case once; with val, those photos are cases too."""
    boxed = {tuple(line.split(",")[:2]) for line in (raw / "lesion_boxes.csv").read_text().splitlines()[1:]}
    photos = {split: {p.name for p in (dataset / split).glob("*/*.jpg")} for split in ("train", "val")}
    argv = ["--data-path", dataset, "--to", tmp_path / "maps", "--score", raw / "lesion_boxes.csv", "--resume", *folds]
    wanted = 0
    for splits in (["train"], ["train", "val"]):
        names = [cli.HELD_OUT, *splits[1:]]
        assert visual.main([str(word) for word in (*argv, "--split", *names)]) == 0
        (row,) = csv.DictReader((tmp_path / "maps" / "cam_scores.csv").open())
        cases = [name for name, _ in boxed if any(name in photos[split] for split in splits)]
        assert (int(row["cases"]), int(row["photos"])) == (len(cases), len(set(cases)))
        assert len(cases) > wanted
        wanted = len(cases)
    for flags, words in (
        (["--split", cli.HELD_OUT, "train"], "neither with --compare nor with train"),
        (["--split", cli.HELD_OUT, "--compare", "epochs"], "neither with --compare nor with train"),
        (["--split", "val"], "takes one checkpoint"),
        (["--split", cli.HELD_OUT, "--resume", folds[0]], "held out the same photos"),
    ):
        refused(visual.main, [*argv, *flags], 2, words)


def test_a_photo_is_decoded_once_and_an_unreadable_one_ends_the_command_there(
    draw, raw, refused, tmp_path, monkeypatch
):
    from data import images

    decoded, inspect = [], images.inspect
    monkeypatch.setattr(images, "inspect", lambda raw, name, *rest: decoded.append(name) or inspect(raw, name, *rest))
    photos = sorted((raw / "test" / "images").iterdir())[:2]
    draw("--image", *photos)
    assert sorted(decoded) == photos  # threads decode them in any order
    (tmp_path / "bad.jpg").write_bytes(photos[0].read_bytes()[:1000])
    flags = ["--batch-size", "1", "--to", tmp_path / "some", "--image", photos[0], tmp_path / "bad.jpg"]
    refused(visual.main, ["--resume", tmp_path / "output" / "tiny" / "default" / "best.pth", *flags], 3, "bad.jpg")
    assert len(list((tmp_path / "some").glob("*_cam.png"))) == 1


def test_refusals(run_folder, dataset, raw, refused, tmp_path):
    start = ["--resume", run_folder / "best.pth", "--data-path", dataset, "--to", tmp_path / "maps"]
    boxes = raw / "lesion_boxes.csv"
    other = tmp_path / "other.csv"
    other.write_text(boxes.read_text().splitlines()[0] + "\nx.jpg,rust,0.5,0.5,0.1,0.1\n")
    for flags, code, words in (
        ([], 2, "--image FILE"),
        (["--examples", "1", "--mistakes", "1"], 2, "one of these"),
        (["--examples", "-1"], 2, "a number of photos"),
        (["--examples", "1", "--compare", "blocks", "--layer", "norm"], 2, "leave --layer out"),
        (["--mistakes", "1", "--target", "rust"], 2, "--target does not go"),
        (["--mistakes", "1", "--split", "val", "test"], 2, "one --split"),
        (["--score", boxes, "--compare", "targets"], 2, "--compare targets"),
        (["--examples", "1", "--method", "gradcamm"], 2, "gradcamm"),
        (["--examples", "1", "--layer", "layers[0]+layers[9]"], 2, "has no [9]"),
        (["--examples", "1", "--fast", "--tta", "all"], 2, "--fast takes one view"),
        (["--examples", "1", "--map-size", "16"], 2, "between 32 and 4096"),
        (["--examples", "1", "--map-size", "100"], 2, "does not take images of 100 pixels"),
        (["--examples", "1", "--split", "held-out"], 2, "held-out goes with --score"),
        (["--score", other], 3, "the boxes belong to no photo"),
        (["--score", raw / "test" / "test_label.csv"], 3, "wanted the columns"),
    ):
        refused(visual.main, [*start, *flags], code, words)
    assert not (tmp_path / "maps").exists()
