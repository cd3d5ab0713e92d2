"""One writer at a time; folders and files that are whole or absent; and what a killed writer leaves."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from tools.base import files
from tools.base.errors import BusyError, ResourceError
from tools.base.files import holder, locked, publish, staging, write_bytes


def fill(folder, text):
    folder.mkdir()
    (folder / "a").write_text(text)


def replace(target, text):
    with locked(target), staging(target) as folder:
        fill(folder / "tree", text)
        publish(folder / "tree", target)


def replace_badly(target):
    with locked(target), staging(target) as folder:
        fill(folder / "tree", "new")
        raise RuntimeError("halfway")


@pytest.mark.parametrize("can_swap", [True, False])
def test_a_new_folder_replaces_the_old_one_and_nothing_else_stays(tmp_path, monkeypatch, can_swap):
    if not can_swap:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    target = tmp_path / "deep" / "down" / "d"
    for text in ("one", "two", "three"):
        replace(target, text)
        assert (target / "a").read_text() == text
        assert list(target.parent.iterdir()) == [target]


def test_a_failure_leaves_the_old_folder_and_no_new_parents(tmp_path):
    replace(tmp_path / "d", "old")
    for target in (tmp_path / "d", tmp_path / "not" / "there" / "d"):
        with pytest.raises(RuntimeError, match="halfway"):
            replace_badly(target)
    assert [p.name for p in tmp_path.rglob("*")] == ["d", "a"]
    assert (tmp_path / "d" / "a").read_text() == "old"


def test_a_second_writer_is_refused_and_a_killed_one_blocks_no_one(tmp_path):
    target = tmp_path / "d"
    with locked(target):
        with pytest.raises(BusyError, match=rf"in use by process {os.getpid()} on "), locked(target):
            pass
        with locked(tmp_path / "e"):
            pass
    hold = "import os, sys\nfrom pathlib import Path\nfrom tools.base.files import holder, locked, staging\n"
    hold += "with locked(Path(sys.argv[1])), staging(Path(sys.argv[1])):\n    os.kill(os.getpid(), 9)\n"
    process = subprocess.run([sys.executable, "-c", hold, target], cwd=ROOT)
    assert process.returncode == -9
    assert len(list(tmp_path.iterdir())) == 2  # lock and staging folder
    replace(target, "new")
    assert list(tmp_path.iterdir()) == [target]


def test_the_old_folder_is_restored_after_a_writer_killed_between_two_renames(tmp_path):
    """This happens only where the file system cannot swap names. The next writer restores the folder."""
    fill(tmp_path / ".d.old-12345", "old")
    fill(tmp_path / ".d.tmp-12345", "half")
    fill(tmp_path / ".d.tmp-notes", "mine")
    with locked(tmp_path / "d"), staging(tmp_path / "d"):
        assert (tmp_path / "d" / "a").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".d.tmp-notes", "d"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_parent_is_one_error(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(ResourceError, match="cannot be written"), locked(tmp_path / "d"):
        pass


def test_a_parent_that_is_a_file_is_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be written"), locked(tmp_path / "file" / "d"):
        pass


def write_half(path, _content):
    path.write_text("half")
    raise RuntimeError("halfway")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.txt"
    write_bytes(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(type(path), "write_bytes", write_half)
        with pytest.raises(RuntimeError, match="halfway"):
            write_bytes(path, b"new")
    with pytest.raises(ResourceError, match=r"gone/a\.txt cannot be written: No such file"):
        write_bytes(tmp_path / "gone" / "a.txt", b"x", make_folder=False)
    assert [p.name for p in tmp_path.rglob("*")] == ["new", "a.txt"]
    assert path.read_bytes() == b"old"
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_lock_is_not_opened_through_a_link(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / ".tree.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(ResourceError, match="it is a link"), locked(tmp_path / "tree"):
        pass
    assert holder(tmp_path / "tree") == ""
    (tmp_path / ".tree.lock").unlink()
    os.mkfifo(tmp_path / ".tree.lock")
    with pytest.raises(ResourceError, match="not a regular file"), locked(tmp_path / "tree"):
        pass
    assert (tmp_path / "victim").read_text() == "precious"
