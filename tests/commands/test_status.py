"""tools.status: the state of a run from its files, and whether its process is alive."""

import json
import os
import shutil

import pytest

from tools.base.files import locked
from tools.commands import status


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def test_a_finished_run(run, capsys):
    assert status.main([str(run)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{run}: finished 0:0")
    assert "step 10 of 10 (100 %), epoch 2 of 2" in out
    assert "to go" not in out
    assert "resume with" not in out
    assert status.main([str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    last = (run / "metrics.csv").read_text().splitlines()[-1].split(",")
    assert found["last_scores"]["epoch"] == last[0] == "2"
    assert found["alive"] == ""
    assert found["best"] == pytest.approx(
        max(float(line.split(",")[-2]) for line in (run / "metrics.csv").read_text().splitlines()[1:]), abs=1e-6
    )


def test_a_dead_run_and_a_running_one(run, capsys):
    written = json.loads((run / "status.json").read_text())
    written |= {"state": "training", "step": 4, "seconds_per_update": 600.0, "at": "2020-01-01T00:00:00+00:00"}
    (run / "status.json").write_text(json.dumps(written))
    assert status.main([str(run)]) == 0
    out = capsys.readouterr().out
    assert "dead: it was training, last heard of" in out
    assert "step 4 of 10 (40 %), epoch 1 of 2" in out
    assert f"resume with: python main.py --cfg {written['command'].split()[3]}" in out
    with locked(run):
        assert status.main([str(run)]) == 0
    out = capsys.readouterr().out
    assert f"alive, process {os.getpid()} on " in out
    assert "about 1:00:00 to go" in out


def test_other_folders_and_damaged_files_are_refused(run, tmp_path, refused):
    before = sorted(p.name for p in run.iterdir())
    refused(status.main, [tmp_path / "no"], 4, "not a run folder")
    (run / "status.json").write_text('{"at": "2020-01-01"}')
    refused(status.main, [run], 5, "status.json cannot be read")
    (run / "status.json").write_text("[")
    refused(status.main, [run], 5, "status.json cannot be read")
    assert sorted(p.name for p in run.iterdir()) == before
