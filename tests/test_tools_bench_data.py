"""The rulers of the data run and say what they should; their figures are nobody's business here."""

import json

import pytest

from tools.bench.__main__ import main


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
