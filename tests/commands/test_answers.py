"""One photo, one answer: test, predict, visual, the reports and the Python interface agree to the last digit."""

import csv
import json
import re
import shutil

import pytest
from conftest import written

import main
import test as scoring
import visual
from tools.api import load
from tools.checkpoint.store import read
from tools.commands import predict

RULES = ("threshold", "argmax", "combination", "powerset")


@pytest.fixture(scope="module")
def models(trained, tiny, dataset, tmp_path_factory):
    """Targets -> two checkpoints: that of a run, and one with other weights."""
    folder = tmp_path_factory.mktemp("models")
    argv = ["--cfg", tiny, "--data-path", dataset, "--output", folder / "output"]
    assert main.main([str(a) for a in (*argv, "--opts", "TRAIN.EPOCHS", "1", "TRAIN.WARMUP_EPOCHS", "0")]) == 0
    found = {}
    for targets, best in (
        ("multi", trained / "best.pth"),
        ("single", folder / "output" / "tiny" / "default" / "best.pth"),
    ):
        content = read(best)
        assert content["targets"] == targets
        content["model"]["head.weight"] *= 3
        content["validation"]["logits"] = content["validation"]["logits"] * 3
        one, two = folder / f"{targets}1" / "best.pth", folder / f"{targets}2" / "best.pth"
        for path in (one, two):
            path.parent.mkdir()
        shutil.copy(best, one)
        found[targets] = [one, written(two, content)]
    return found


def table(path):
    return {row["images"].rpartition("/")[2]: row for row in csv.DictReader(path.read_text().splitlines())}


@pytest.mark.parametrize("decide_by", RULES)
@pytest.mark.parametrize("targets", ["multi", "single"])
@pytest.mark.parametrize("number", [1, 2])
def test_every_command_gives_the_same_answer(models, dataset, tmp_path, capsys, decide_by, targets, number):
    paths = models[targets][:number]
    photos = sorted({photo.name: photo for photo in (dataset / "test").glob("*/*.jpg")}.values())
    common = ["--resume", *paths, "--decide", decide_by, "--tta", "flips"]
    argv = [*common, "--data-path", dataset, "--to", tmp_path / "to", "--batch-size", "5"]
    assert scoring.main([str(a) for a in argv]) == 0
    argv = [*photos, *common, "--csv", tmp_path / "a.csv", "--json", tmp_path / "a.json", "--batch-size", "3"]
    assert predict.main([str(a) for a in argv]) == 0
    scored, rows = table(tmp_path / "to" / "predictions.csv"), table(tmp_path / "a.csv")
    answers = [column for column in scored[photos[0].name] if column not in ("images", "truth")]
    assert {name: [row[column] for column in answers] for name, row in scored.items()} == {
        name: [row[column] for column in answers] for name, row in rows.items()
    }
    entries = {entry["image"].rpartition("/")[2]: entry for entry in json.loads((tmp_path / "a.json").read_text())}
    predictions = load(paths, decide_by=decide_by, tta="flips").predict(photos)
    for photo, prediction in zip(photos, predictions, strict=True):
        row, entry = rows[photo.name], entries[photo.name]
        assert row["decision"].split() == entry["labels"] == list(prediction.labels)
        assert float(row["confidence"]) == entry["confidence"] == round(prediction.confidence, 6)
        for label, p in prediction.probabilities.items():
            assert float(row[f"p_{label}"]) == entry["probabilities"][label] == round(p, 6)
    titles = {photo.name: str(prediction) for photo, prediction in zip(photos, predictions, strict=True)}
    page = (tmp_path / "to" / "report.html").read_text()
    captions = re.findall(r"<figcaption>(\w+\.jpg)\ntrue: .*\ngiven: (.*)</figcaption", page)
    assert captions
    assert {name: given for name, given in captions} == {name: titles[name] for name, _ in captions}
    if number == 1:
        capsys.readouterr()
        argv = ["--image", *photos, *common, "--to", tmp_path / "maps", "--batch-size", "2"]
        assert visual.main([str(a) for a in argv]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if " -> " in line]
        for photo, prediction, line in zip(photos, predictions, lines, strict=True):
            explained = max(prediction.labels, key=prediction.probabilities.get)
            share = f"{100 * prediction.probabilities[explained]:.1f}%"
            said = "nothing found; " if explained == "healthy" else f"map of {explained} {share} ("
            assert line.startswith(f"{photo}: {prediction}; {said}")
            assert list((tmp_path / "maps").glob(f"{photo.stem}_{explained}_pair.*"))
