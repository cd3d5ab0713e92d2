"""One real process of each kind, on one tiny data set, from another folder; signals; and what is installed."""

import os
import signal
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from importlib.metadata import EntryPoint

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


@pytest.mark.parametrize(
    "start", [["main.py"], ["test.py"], ["visual.py"], ["process_dataset.py", "--src"], ["-m", "tools", "predict"]]
)
def test_a_missing_package_is_one_line_that_says_how_to_install(start):
    """-S leaves site-packages out, as a Python without the requirements does."""
    result = subprocess.run([sys.executable, "-S", *start, "x"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 5
    assert result.stderr.startswith("error: the Python package ")
    assert "pip install -r requirements.txt" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_an_installation_has_every_package_the_command_and_no_module_called_test():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["packages"]["find"]["include"]
    files = [path.relative_to(ROOT) for path in ROOT.rglob("*.py") if path.parent != ROOT]
    packages = {".".join(path.parent.parts) for path in files if not path.parts[0].startswith(".")}
    listed = {package for package in packages if any(fnmatch(package, pattern) for pattern in patterns)}
    assert listed == {package for package in packages if package.split(".")[0] not in ("tests", "docs")}
    assert project["tool"]["setuptools"]["py-modules"] == []
    command = EntryPoint("plantswin", project["project"]["scripts"]["plantswin"], "console_scripts")
    assert command.load()(["--help"]) == 0


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
    assert f"resume with: python {ROOT / 'main.py'} --cfg" in err
    assert len(err.splitlines()) == 1
    saved = read(tmp_path / "output" / "tiny" / "default" / "last.pth")
    assert saved["step"] > 5
    assert "Traceback" not in out
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("size", ["64k", "104k"])
def test_a_full_shared_memory_ends_the_run(dataset, tiny, tmp_path, size):
    """In a /dev/shm of its own: seen at the start, or when a loader process finds no room for its batch."""
    inside = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"', "sh"]
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a /dev/shm")
    argv = [
        "main.py",
        "--cfg",
        tiny,
        "--data-path",
        dataset,
        "--output",
        tmp_path / "o",
        "--opts",
        "DATA.NUM_WORKERS",
        2,
    ]
    run = subprocess.run(
        [*inside, sys.executable, *map(str, argv)], capture_output=True, text=True, cwd=ROOT, timeout=100
    )
    assert run.returncode == 5, run.stderr
    assert len(run.stderr.strip().splitlines()) == 1
    assert "/dev/shm" in run.stderr
    assert "lower DATA.NUM_WORKERS" in run.stderr


def test_a_pipe_whose_reader_has_gone(trained, dataset, tiny, tmp_path):
    """`| head -1`: test.py has written its results before it prints, and a run goes on without its console."""
    data = ["--data-path", dataset]
    for argv, code, result in (
        (["test.py", "--resume", trained / "best.pth", *data, "--to", tmp_path / "to"], 141, "to/report.html"),
        (["main.py", "--cfg", tiny, *data, "--output", tmp_path / "o"], 0, "o/tiny/default/best.pth"),
    ):
        process = subprocess.Popen(
            [sys.executable, *map(str, argv)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV
        )
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == code
        assert (tmp_path / result).is_file()
