"""The checkpoint that a command takes when none is named."""

import json
import os

import pytest

from tools.base.errors import CheckpointError
from tools.checkpoint.find import newest_run


def test_the_newest_run_is_the_one_that_started_last_whatever_the_file_times(tmp_path):
    for name, started in (("a", "2026-01-02T00:00:00"), ("b", "2026-03-01T00:00:00"), ("c", "2025-12-31T23:59:59")):
        folder = tmp_path / "model" / name
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"started": started}))
        (folder / "best.pth").touch()
    os.utime(tmp_path / "model" / "c" / "best.pth", (4e9, 4e9))
    (tmp_path / "model" / "stray.pth").touch()
    assert newest_run(tmp_path) == tmp_path / "model" / "b" / "best.pth"
    (tmp_path / "model" / "b" / "run.json").write_text("{")
    assert newest_run(tmp_path).parent.name == "a"
    with pytest.raises(CheckpointError, match="no trained run"):
        newest_run(tmp_path / "nowhere")
