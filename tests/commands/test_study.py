"""A whole study on tiny data: killed anywhere, it goes on to the table of an undisturbed one; its errors; its GPUs."""

import csv
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from runs import PATIENCE, Watched, children, leftovers, warm

import main
import test as score
from tools.checkpoint import store
from tools.commands import study
from tools.study.plan import PlannedRun, read_study
from tools.study.runs import commands_left

DEVICES = "5,7"
SCRIPTS = {"main.py": main.main, "test.py": score.main}


@pytest.fixture(scope="session")
def study_file(tiny, dataset, tmp_path_factory) -> Path:
    """Two arms, one seed; a checkpoint after every update."""
    path = tmp_path_factory.mktemp("study") / "trial.yaml"
    path.write_text(
        f"CFG: {tiny}\n"
        f"OPTS: {{DATA.DATA_PATH: {dataset}, DATA.TARGETS: multi, DEVICE: cpu, TRAIN.EPOCHS: 6, "
        "TRAIN.SAVE_EVERY_STEPS: 1}\n"
        "ARMS: {quick: {TRAIN.BASE_LR: 3.2e-2}, slow: {TRAIN.BASE_LR: 3.2e-3}}\n"
    )
    return path


@pytest.fixture(scope="session")
def undisturbed(study_file, tmp_path_factory) -> Path:
    """The folder of the study when its commands are called one after the other, in this process."""
    folder = tmp_path_factory.mktemp("undisturbed") / "output"
    torch.set_num_threads(1)
    for run in planned(study_file, folder):
        for script, argv in commands_left(run, "val"):
            assert SCRIPTS[script](argv) == 0
    assert study.main([str(study_file), "--output", str(folder), "--report"]) == 0
    return folder / "study-trial"


def planned(study_file: Path, output: Path) -> list[PlannedRun]:
    return read_study(study_file, [("OUTPUT", str(output), "--output")]).runs


def results(folder: Path) -> list:
    """results.csv but for the cost, and the predictions of every run."""
    with (folder / "results.csv").open(newline="") as file:
        rows = [{**row, "minutes": 0, "machine": ""} for row in csv.DictReader(file)]
    return [rows, *(path.read_text() for path in sorted(folder.glob("tiny/*/val/predictions.csv")))]


def wait_until(condition) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def on_one_thread(argv: list[str], devices: str = "") -> int:
    """The command, with an environment for the processes that it starts."""
    os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES=devices)
    return study.main(argv)


def test_ended_anywhere_it_goes_on_to_the_same_table(study_file, undisturbed, tmp_path, times):
    folder = tmp_path / "output" / "study-trial"
    quick = folder / "tiny" / "quick-s0"

    def start():
        return warm(tmp_path, on_one_thread, [str(study_file)])

    for number in range(times(1, 6)):  # in a run, which saves; after SIGKILL, the next study waits for that
        steps = saved_steps(quick)
        run = start()
        wait_until(lambda before=steps: saved_steps(quick) > before)
        run.signal((signal.SIGKILL, signal.SIGTERM)[number % 2])
        assert run.wait() == (-signal.SIGKILL, 128 + signal.SIGTERM)[number % 2]
    run = start()
    assert run.wait_for("quick, seed 0: done; 1 of 2 runs, about"), run.errors
    run.kill()  # between two runs
    log = (quick / "log.txt").read_text()
    assert "resuming" in log
    scored = (quick / "val" / "metrics.json").stat().st_mtime_ns
    (train, argv), _ = commands_left(planned(study_file, tmp_path / "output")[1], "val")
    assert SCRIPTS[train](argv) == 0  # the other run, in this process, which saves a start of Python
    run = start()
    assert run.wait_for("slow, seed 0: ")
    wait_until(lambda: children(run.pid))
    scoring = Watched(children(run.pid))
    run.kill()  # in scoring
    assert scoring.gone()
    run = start()
    assert run.wait() == 0, run.errors
    assert not leftovers(tmp_path)
    assert (quick / "log.txt").read_text() == log, "a finished run was trained again"
    assert (quick / "val" / "metrics.json").stat().st_mtime_ns == scored, "a finished run was scored again"
    assert results(folder) == results(undisturbed)


def saved_steps(folder: Path) -> int:
    path = folder / "last.pth"
    return store.read(path)["step"] if path.exists() else -1


def test_a_finished_study_makes_only_the_table_again(study_file, undisturbed, capsys):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.glob("tiny/**/*")}
    assert study.main([str(study_file), "--output", str(undisturbed.parent)]) == 0
    out = capsys.readouterr().out
    assert "trial: 2 arms x 1 seed, 2 of 2 runs are done" in out
    assert "slow: cannot tell from one seed per arm: " in out
    assert {path: path.stat().st_mtime_ns for path in undisturbed.glob("tiny/**/*")} == before
    assert (undisturbed / "report.txt").read_text() in out
    assert f"trained on {json.loads(next(undisturbed.glob('tiny/*/run.json')).read_text())['machine']}" in out
    assert (undisturbed / "study.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("3.2e-3", "1e-3", "slow-s0 was made with other settings: TRAIN.BASE_LR 0.0032 -> 0.001 (1 such runs)"),
        ("TRAIN.EPOCHS: 6", "TRAIN.EPOCHS: 7", "TRAIN.EPOCHS 6 -> 7 (2 such runs)"),
        ("DEVICE: cpu", "DEVICE: cpu, TEST.TTA: flips", "TEST.TTA none -> flips (2 such runs)"),
        ("3.2e-3", "3.2e-3, TRAIN.EPOCH: 9", "arm slow: TRAIN.EPOCH at --opts: unknown key; did you mean TRAIN.EPOCHS"),
    ],
)
def test_changed_settings_are_refused(study_file, undisturbed, tmp_path, refused, old, new, words):
    changed = tmp_path / "trial.yaml"
    changed.write_text(study_file.read_text().replace(old, new))
    refused(study.main, [changed, "--output", undisturbed.parent], 2, words)


def test_harmless_changes_and_new_seeds_are_not(study_file, undisturbed, tmp_path, capsys):
    changed = tmp_path / "trial.yaml"
    changed.write_text(study_file.read_text().replace("DEVICE", "PRINT_FREQ: 3, DEVICE") + "SEEDS: [0, 1]\n")
    assert study.main([str(changed), "--output", str(undisturbed.parent), "--report"]) == 0
    assert "2 arms x 2 seeds, 2 of 4 runs are done" in capsys.readouterr().out


def test_a_report_needs_runs_and_a_typo_leaves_no_trace(study_file, tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    refused(study.main, [study_file, "--report"], 3, "a table needs a scored run of the baseline 'quick'")
    refused(study.main, [study_file, "--gpus", "65"], 2, "must be between 0 and 64")
    refused(study.main, [tmp_path / "none.yaml"], 2, "does not exist")
    assert not list(tmp_path.iterdir())


def test_a_run_that_fails_ends_the_study_with_its_error_and_exit_code(study_file, tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    refused(
        study.main,
        [study_file, "--data-path", "nowhere"],
        3,
        "quick, seed 0, in output/study-trial/tiny/quick-s0: nowhere",
    )


def test_every_run_at_a_time_sees_one_gpu(study_file, tmp_path):
    run = warm(tmp_path, on_one_thread, [str(study_file), "--gpus", "2"], DEVICES)
    assert run.wait_for(r"slow, seed 0: output"), run.errors
    wait_until(lambda: sorted(map(visible, children(run.pid))) == DEVICES.split(","))
    watched = Watched(children(run.pid))
    run.signal(signal.SIGINT)
    assert run.wait() == 128 + signal.SIGINT
    assert watched.gone()
    run = warm(tmp_path, on_one_thread, [str(study_file), "--gpus", "3"], DEVICES)
    assert run.wait() == 2
    assert run.errors == ["error: --gpus 3: CUDA_VISIBLE_DEVICES names 2, '5,7'; lower --gpus"]


def visible(pid: int) -> str:
    """CUDA_VISIBLE_DEVICES of a process as it was started; empty before that."""
    found = re.search(r"(?:^|\0)CUDA_VISIBLE_DEVICES=([^\0]*)", Path(f"/proc/{pid}/environ").read_text())
    return found[1] if found else ""


def test_another_study_in_the_same_folder_is_refused(study_file, tmp_path, monkeypatch, refused):
    run = warm(tmp_path, on_one_thread, [str(study_file)])
    assert run.wait_for("quick, seed 0: output"), run.errors
    monkeypatch.chdir(tmp_path)
    refused(study.main, [study_file], 7, "output/study-trial is in use by process")
    run.signal(signal.SIGTERM)  # as it starts a process
    assert run.wait() == 128 + signal.SIGTERM
