"""The run folder: full, vanished, read-only, without room from the start, another run's; and its files' rights."""

import ctypes
import os
import resource
import signal
import socket
import stat
import subprocess

import pytest
from runs import RUN, UPDATE, digest, leftovers, warm

import main
from tools.checkpoint import store

NEW_MOUNTS, PRIVATE = 0x20000, 0x44000  # linux/sched.h, linux/mount.h
CAPABILITIES = 0x20080522  # version of capset's structure, linux/capability.h
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")


def with_a_limit(size, argv):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    return main.main(argv)


def test_files_that_may_not_grow_keep_the_older_checkpoint(recipe, undisturbed, tmp_path):
    assert warm(tmp_path, main.main, [*recipe, "TRAIN.MAX_STEPS", "7"]).wait() == 0
    before = {name: (tmp_path / RUN / name).read_bytes() for name in ("last.pth", "previous.pth", "best.pth")}
    run = warm(tmp_path, with_a_limit, len(before["last.pth"]) - 1, recipe)
    assert run.wait() == 5
    assert len(run.errors) == 1
    assert "last.pth cannot be written: File too large; the older one, if any, is untouched" in run.errors[0]
    assert before == {name: (tmp_path / RUN / name).read_bytes() for name in before}
    assert not leftovers(tmp_path)
    assert warm(tmp_path, main.main, recipe).wait() == 0
    assert digest(tmp_path / RUN) == undisturbed


def on_a_small_disk(size, argv):
    """main.py with a file system of its own at its --output, of which it says at the end what is left there."""
    libc = ctypes.CDLL(None, use_errno=True)
    os.mkdir("output")
    assert libc.unshare(NEW_MOUNTS) == 0
    assert libc.mount(b"none", b"/", None, PRIVATE, None) == 0
    assert libc.mount(b"none", b"output", b"tmpfs", 0, f"size={size}".encode()) == 0
    code = main.main(argv)
    _, content, faults = store.newest(RUN)
    print(
        f"left: step {content.get('step')}, faults {faults}, temporary {leftovers(RUN.parent)}, {os.listdir('output')}"
    )
    return code


@AS_ROOT
def test_a_disk_that_fills_up_during_a_run(recipe, tmp_path):
    run = warm(tmp_path, on_a_small_disk, "16m", recipe)
    assert run.wait_for(UPDATE, times=4), run.errors
    ballast = ["dd", "if=/dev/zero", "of=output/ballast", "bs=4k"]
    subprocess.run(["nsenter", "-t", str(run.pid), "-m", "-w", *ballast], check=False, capture_output=True)
    assert run.wait() == 5
    assert len(run.errors) == 1
    assert "No space left on device" in run.errors[0]
    left = run.said[-1]
    steps = len([line for line in run.said if UPDATE.search(line)])
    assert any(left.startswith(f"left: step {step}, faults {{}}, temporary [], ") for step in (steps - 1, steps)), left


@AS_ROOT
def test_no_room_is_said_before_anything_is_written(recipe, tmp_path):
    run = warm(tmp_path, on_a_small_disk, "500k", recipe)
    assert run.wait() == 5
    assert "no space at output/tiny: the checkpoints of a run need 2 MiB, and there are 0" in run.errors[0]
    assert run.said[-1] == "left: step None, faults {}, temporary [], []"


def test_a_folder_that_is_removed_during_a_run_ends_it(recipe, tmp_path):
    run = warm(tmp_path, main.main, recipe)
    assert run.wait_for(UPDATE, times=2)
    (tmp_path / RUN).rename(tmp_path / "gone")
    assert run.wait() == 5
    assert run.errors == [f"error: {RUN} was removed or replaced during the run; put it back, or start again"]
    assert not (tmp_path / RUN).exists()


@pytest.mark.parametrize("back", [False, True], ids=["gone", "replaced"])
def test_a_folder_that_goes_in_the_middle_of_a_write_is_said_so(tmp_path, back):
    """The moment between the look at the folder and the file's own name, which a real run meets now and then."""
    from tools.base.errors import ResourceError
    from tools.base.files import write_bytes
    from tools.runtime.distributed import ALONE
    from tools.train.output import RunFolder

    folder = tmp_path / "run"
    output = RunFolder(folder, {"config": ""}, ALONE)
    output.open([])

    def write():
        with output._owned():
            folder.rename(tmp_path / "gone")
            if back:
                folder.touch()  # not even a folder any more
            write_bytes(folder / "status.json", b"{}", make_folder=False)

    with pytest.raises(ResourceError, match="was removed or replaced during the run"):
        write()
    assert not output.path.is_dir()
    assert {path.name for path in (tmp_path / "gone").iterdir()} == {"config.yaml", "log.txt", "run.json"}


def as_anybody(argv):
    """main.py without root's right to write where the rights of a folder forbid it."""
    header, none = (ctypes.c_uint32 * 2)(CAPABILITIES, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, none) == 0
    return main.main(argv)


def test_a_folder_that_becomes_read_only_ends_the_run(recipe, tmp_path):
    run, folder = warm(tmp_path, as_anybody, recipe), tmp_path / RUN
    assert run.wait_for(UPDATE, times=2)
    for place in (folder, folder.parent):
        place.chmod(0o555)
    code = run.wait()
    for place in (folder.parent, folder):
        place.chmod(0o755)
    assert code == 5
    assert len(run.errors) == 1
    assert f"{RUN}/" in run.errors[0]
    assert "Permission denied" in run.errors[0]
    assert store.newest(folder)[2] == {}


def test_a_read_only_output_is_refused_before_the_run(recipe, tmp_path):
    place = tmp_path / RUN.parent
    place.mkdir(parents=True)
    place.chmod(0o555)
    run = warm(tmp_path, as_anybody, recipe)
    assert run.wait() == 5
    assert run.errors == [f"error: {RUN.parent} is not writable; choose another --output"]
    assert not list(place.iterdir())


def with_umask(mask, argv):
    os.umask(mask)
    return main.main(argv)


@pytest.mark.parametrize("mask", [0o077, 0o022])
def test_files_have_the_rights_that_the_umask_leaves(recipe, tmp_path, mask):
    assert warm(tmp_path, with_umask, mask, [*recipe, "TRAIN.EPOCHS", "1", "TRAIN.WARMUP_EPOCHS", "0"]).wait() == 0
    for path in (tmp_path / RUN).rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~mask, path


def test_the_second_run_in_a_folder_is_told_who_is_there(recipe, undisturbed, tmp_path):
    first = warm(tmp_path, main.main, recipe)
    assert first.wait_for(UPDATE, times=2)
    for more in ([], ["--overwrite"]):
        second = warm(tmp_path, main.main, [*recipe, *more])
        assert second.wait() == 7
        assert len(second.errors) == 1
        assert f"is in use by process {first.pid} on {socket.gethostname()} since " in second.errors[0]
    assert first.wait() == 0
    assert digest(tmp_path / RUN) == undisturbed


def test_the_lock_of_a_killed_run_is_free_at_once(recipe, undisturbed, tmp_path, times):
    for _ in range(times(1, 10)):
        run = warm(tmp_path, main.main, recipe)
        assert run.wait_for(UPDATE, times=2)
        assert run.kill() == -signal.SIGKILL
    assert warm(tmp_path, main.main, recipe).wait() == 0
    assert digest(tmp_path / RUN) == undisturbed
