"""One real process of each kind, on one tiny data set, from another folder; and signals."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(folder, *command):
    result = subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder, capture_output=True, text=True, timeout=300, env=ENV
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_whole_tour(tmp_path, tiny):
    run(tmp_path, "-m", "tools", "sample", "--counts", 42, 13, 14)
    run(tmp_path, ROOT / "process_dataset.py")
    run(
        tmp_path,
        ROOT / "main.py",
        "--cfg",
        tiny,
        "--opts",
        "TRAIN.EPOCHS",
        "1",
        "TRAIN.WARMUP_EPOCHS",
        "0",
        "DATA.TARGETS",
        "multi",
    )
    assert "Overall Accuracy" in run(tmp_path, ROOT / "test.py")
    assert "heatmaps" in run(tmp_path, ROOT / "visual.py", "--examples", 2)
    lines = run(tmp_path, "-m", "tools", "baseline", "--cfg", tiny).splitlines()
    assert [line.split()[0] for line in lines] == ["untrained", "colour"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path, tiny, dataset, number):
    from tools.checkpoint.store import read

    command = [
        sys.executable,
        str(ROOT / "main.py"),
        "--cfg",
        str(tiny),
        "--data-path",
        str(dataset),
        "--opts",
        "TRAIN.EPOCHS",
        "2000",
        "PRINT_FREQ",
        "1",
        "DATA.NUM_WORKERS",
        "1",
    ]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV
    )
    for line in process.stdout:
        if "Train: [2/2000]" in line:
            break
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert err.startswith(f"error: stopped by {signal.Signals(number).name} at step ")
    assert "resume with: python main.py --cfg" in err
    assert len(err.splitlines()) == 1
    saved = read(tmp_path / "output" / "tiny" / "default" / "last.pth")
    assert saved["step"] > 5
    assert "Traceback" not in out
    assert not list(tmp_path.rglob("*.tmp"))
