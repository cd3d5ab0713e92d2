"""The rulers of the data run and say what they should; their figures are nobody's business here."""

import json
import math

import cv2
import pytest

from tools.commands.bench import RULERS, main


@pytest.fixture
def rows(tmp_path, capsys):
    """Runs a ruler for one round: its rows, after a look at the table that it printed."""

    def run(*words):
        path = tmp_path / "rows.json"
        assert main([*map(str, words), "--rounds", "1", "--json", str(path)]) == 0, capsys.readouterr().err
        found, out = json.loads(path.read_text()), capsys.readouterr().out
        assert found["ruler"] == words[0]
        assert [line.split(" | ")[0] for line in out.splitlines()[2:]] == [f"| {row['name']}" for row in found["rows"]]
        return found["rows"]

    return run


def test_the_ruler_of_models(rows):
    found = rows("model", "--size", "toy", "--batch", "2")
    assert len(found) == 2 * 2 * 4 + 2, "train and eval, together and apart: three models and the machine; the loop"
    assert [row["bar"] for row in found if row["bar"]] == [1.08, 1.15, 1.02, 1.05, 0.98]


def test_the_ruler_of_scoring(rows, dataset, trained):
    peer, ours, share = rows("test", *photos(dataset, trained), "--workers", 0)
    assert (peer["ratio"], share["seconds"]) == (None, None)
    assert ours["ratio"] == pytest.approx(peer["seconds"] / ours["seconds"])
    assert 0 < share["ratio"] < 1


def test_the_ruler_of_heat_maps(rows, dataset, trained):
    peer, ours, share, *maps = rows("cam", *photos(dataset, trained), "--size", "toy")
    assert ours["ratio"] == pytest.approx(peer["seconds"] / ours["seconds"])
    assert 0 < share["ratio"] < 1
    assert len(maps) == 5
    assert [float(row["note"].split()[-1]) < 1e-5 for row in maps[1:4]] == [True] * 3, "they are the same maps"


def photos(dataset, trained):
    """Flags: four photos of the shared data set, through the shared checkpoint."""
    return ["--data-path", dataset, "--resume", trained / "best.pth", "--photos", 4, "--batch-size", 3]


def test_the_ruler_of_starts(rows):
    bare, shown, imports, step = rows("start")
    assert [bare["bar"], shown["bar"], imports["bar"], step["bar"]] == [None, 0.1, None, pytest.approx(1 / 3)]
    assert bare["seconds"] < shown["seconds"] < step["seconds"], "each does what the one before it does, and more"


def test_the_ruler_of_growth(rows, tiny, tmp_path):
    found = rows("growth", "--sizes", 32, 40, "--drawn", 32, "--cfg", tiny, "--figure", tmp_path / "growth.png")
    assert len(found) == 2 * 3 * 2
    assert [row["bar"] for row in found] == [None] * 6 + [0.9] * 6
    assert all(math.isfinite(row["ratio"]) for row in found[6:])
    assert cv2.imread(str(tmp_path / "growth.png")).std() > 0


@pytest.mark.parametrize("ruler", RULERS)
def test_every_ruler_explains_itself(ruler, capsys):
    assert main([ruler, "--help"]) == 0
    assert "--rounds" in capsys.readouterr().out


@pytest.mark.parametrize("given", [False, True])
def test_the_loaders_ruler(given, dataset, tmp_path, capsys):
    options = ["--data-path", str(dataset)] if given else []
    command = ["loader", "--rounds", "1", "--photos", "8", "--workers", "0", "1", "--json", str(tmp_path / "rows.json")]
    assert main([*command, *options]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    names = [row["name"] for row in rows]
    assert len(set(names)) == len(names) == 10
    assert [name for name in names if "ImageFolder" in name] == [names[0], names[5]]
    assert all((row["ratio"] is None) == ("ImageFolder" in row["name"]) for row in rows)
    assert [row["bar"] for row in rows] == [None, 1.3, None, 1.8, None, *[None] * 5]
    assert "--cache-mode full, 1 workers" in capsys.readouterr().out


def test_the_ruler_of_prepare(tmp_path):
    assert main(["prepare", "--rounds", "1", "--photos", "1", "--json", str(tmp_path / "rows.json")]) == 0
    peer, ours, command = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert (peer["ratio"], ours["bar"]) == (None, 3.0)
    assert float(ours["note"].split("; ")[1].split()[0]) >= 50
    assert command["ratio"] > 0


def test_folders_without_photos_are_refused(tmp_path, refused):
    refused(main, ["loader", "--data-path", tmp_path, "--photos", "4"], 2, "holds 0 training photos", tmp_path)
    refused(main, ["prepare", "--data-path", tmp_path], 2, "holds no .jpg", tmp_path)
