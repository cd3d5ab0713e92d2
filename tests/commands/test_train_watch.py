"""A profile of some updates and TensorBoard's events: what they hold, and that neither changes a bit of the run."""

import json
import math
import resource
import shutil
import sys
from collections import deque

import pytest
from runs import digest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main
from tools.base.errors import ResourceError
from tools.train.events import EventWriter


@pytest.fixture
def train(tiny, dataset, tmp_path):
    """(tag, flags) -> the run folder of main.py on the tiny Swin, five updates per epoch."""

    def call(tag, *flags, opts=()):
        arguments = ["--cfg", tiny, "--data-path", dataset, "--output", tmp_path, "--tag", tag, *flags]
        arguments += ["--opts", "DATA.TARGETS", "multi", "PRINT_FREQ", 2, *opts]
        assert main.main([str(each) for each in arguments]) == 0
        return tmp_path / "tiny" / tag

    return call


def curves(folder):
    """name -> (step, value) of every point that TensorBoard shows, and its purging of old ones done."""
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_profile_is_a_trace_and_a_table_and_changes_no_bit(train):
    plain = train("plain")
    train("profiled", opts=["TRAIN.MAX_STEPS", 3])
    profiled = train("profiled", "--profile", "2")  # two updates are left of the first epoch, so in the second
    assert digest(plain) == digest(profiled)
    events = json.loads((profiled / "trace.json").read_text())["traceEvents"]
    steps = {event["name"] for event in events if event.get("name", "").startswith("ProfilerStep")}
    assert steps == {"ProfilerStep#1", "ProfilerStep#2"}  # without #0, which warms up
    assert any(event.get("name") == "aten::addmm" for event in events)
    log = (profiled / "log.txt").read_text()
    assert log.count(f"profile of 2 update(s), as a trace in {profiled / 'trace.json'}") == 1
    assert "aten::addmm" in log[log.index("Self CPU") :]
    assert log.index("[2/2][1/5]") < log.index("profile of 2") < log.index("[2/2][5/5]")
    assert not (plain / "trace.json").exists()


def test_a_profile_needs_its_updates_in_one_epoch(refused, tiny, dataset, tmp_path):
    arguments = ["--cfg", tiny, "--data-path", dataset, "--output", tmp_path, "--profile", "5"]
    refused(main.main, arguments, 2, "TRAIN.PROFILE 5: an epoch has 5 updates", "lower --profile")


def test_tensorboard_has_what_log_and_table_have_and_changes_no_bit(train):
    plain, watched = train("plain"), train("watched", "--tensorboard")
    assert digest(plain) == digest(watched)
    found = curves(watched)
    names = {"accuracy", "top2", "hit1", "exact", "macro_f1", "val_loss", "train_loss", "lr", "grad_norm"}
    names |= {"skipped", "seconds", "best"}
    logged = {"lr", "seconds", "loss", "mean_loss", "grad_norm", "main_bytes"}
    assert found.keys() == {f"epoch/{name}" for name in names} | {f"update/{name}" for name in logged}
    rows = [line.split(",") for line in (watched / "metrics.csv").read_text().splitlines()]
    for name in names:
        column = rows[0].index(name)
        for (step, value), row in zip(found[f"epoch/{name}"], rows[1:], strict=True):
            assert step == int(row[1])
            assert math.isclose(value, float(row[column]), rel_tol=1e-5, abs_tol=1e-7)
    assert [step for step, _ in found["update/loss"]] == [1, 3, 5, 6, 8, 10]
    for _, value in found["update/loss"]:
        assert f" loss {value:.3f} (" in (watched / "log.txt").read_text()
    assert not list(plain.glob("events*"))


def test_a_resumed_run_goes_on_with_its_curves_and_a_new_one_begins_them(train):
    """As after a crash: last.pth is older than the newest points, which the resumed run makes again."""
    whole = curves(train("whole", "--tensorboard"))
    folder = train("cut", "--tensorboard", opts=["TRAIN.MAX_STEPS", 2])
    shutil.copy(folder / "last.pth", folder.parent / "older.pth")
    train("cut", "--tensorboard", opts=["TRAIN.MAX_STEPS", 8])
    shutil.copy(folder.parent / "older.pth", folder / "last.pth")
    (folder / "previous.pth").unlink()
    train("cut", "--tensorboard")
    assert len(list(folder.glob("events*"))) == 3
    steps = [step for step, _ in curves(folder)["update/loss"]]
    assert steps == sorted(set(steps))
    for name in ("update/loss", "epoch/val_loss", "epoch/accuracy"):
        assert {point for point in curves(folder)[name] if point in whole[name]} == set(curves(folder)[name])
    train("cut", "--tensorboard", "--overwrite")
    assert len(list(folder.glob("events*"))) == 1


def test_without_tensorboard_the_flag_is_refused_before_the_run_folder_is_made(
    monkeypatch, refused, tiny, dataset, tmp_path
):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("tensorboard.") or name == "tools.train.events"]:
        monkeypatch.delitem(sys.modules, name)
    arguments = ["--cfg", tiny, "--data-path", dataset, "--output", tmp_path / "out", "--tensorboard"]
    refused(main.main, arguments, 2, "--tensorboard needs the package tensorboard", "pip install tensorboard")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_ends_tensorboards_file_with_one_line(tmp_path):
    events = EventWriter(tmp_path, 0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(ResourceError, match=r"events.out.tfevents.* cannot be written: File too large"):
            deque(events.add("update", step, {"loss": 0.5}) for step in range(3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
