"""Damaged files, hostile files and files of other programs; and that a failed save loses nothing."""

import hashlib
import io
import os
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import written

from tools.base.errors import CheckpointError, NumericsError, ResourceError
from tools.checkpoint import store
from tools.checkpoint.schema import RESUME
from tools.evaluate.predictor import load_model

FLIPS = 300


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "last.pth"
    store.save(path, {"format": 2, "model": {"w": torch.arange(5000.0)}, "text": "x"})
    return path


def bytes_read():
    """What this process has read through system calls so far."""
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])


class Bomb:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_round_trip_and_no_temporary_files(file):
    content = store.read(file)
    assert torch.equal(content["model"]["w"], torch.arange(5000.0))
    assert [p.name for p in file.parent.iterdir()] == ["last.pth"]


def test_a_file_is_read_once(trained):
    """By Python and by C++ alike, with its digest, its seal and its checksums."""
    path = trained / "best.pth"
    load_model(path, torch.device("cpu"))  # imports read files too
    before = bytes_read()
    model = load_model(path, torch.device("cpu"))
    size = path.stat().st_size
    assert size <= bytes_read() - before < 1.2 * size
    assert model.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_written_file_is_verified_in_one_pass(trained, tmp_path):
    content = store.read(trained / "last.pth")
    before = bytes_read()
    store.save(tmp_path / "last.pth", content)
    size = (tmp_path / "last.pth").stat().st_size
    assert size <= bytes_read() - before < 1.2 * size


def damages(good):
    """(description, bytes) of a file with a flipped bit, a zeroed page or a cut end, at random places."""
    random = np.random.default_rng(0)
    for place in random.integers(len(good), size=FLIPS):
        damaged = bytearray(good)
        damaged[place] ^= 1 << random.integers(8)
        yield f"bit of byte {place}", bytes(damaged)
    for start in random.integers(len(good), size=FLIPS // 3):
        damaged = good[:start] + bytes(min(4096, len(good) - start)) + good[start + 4096 :]
        if damaged != good:
            yield f"page at {start}", damaged
    for length in random.integers(len(good), size=FLIPS // 3):
        yield f"cut at {length}", good[:length]


def test_every_flipped_bit_zeroed_page_and_cut_is_found(trained, tmp_path):
    """torch.load alone loads nearly all of the flips."""
    good, path = (trained / "last.pth").read_bytes(), tmp_path / "last.pth"
    for what, damaged in damages(good):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"last\.pth"):
            pytest.fail(f"{what} was not found: {store.read_own(path, RESUME).keys()}")
    path.write_bytes(good)
    assert store.read_own(path, RESUME)


def test_files_of_other_programs_must_match_their_checksums(file):
    """Without a seal a flipped bit may pass where zip has padding, but then no value has changed."""
    torch.save(store.read(file), file)
    good = file.read_bytes()
    for what, damaged in damages(good):
        file.write_bytes(damaged)
        try:
            content = store.read(file)
        except CheckpointError:
            continue
        assert torch.equal(content["model"]["w"], torch.arange(5000.0)), what


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"<html></html>", b"PK\x05\x06" + bytes(18), os.urandom(999)], ids=range(5)
)
def test_files_that_are_not_checkpoints(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.pth"):
        store.read(tmp_path / "x.pth")


def test_a_file_larger_than_the_memory_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "x.pth").open("wb") as file:
        file.truncate(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + 1)
    with pytest.raises(CheckpointError, match=r"x\.pth is not a checkpoint: it is larger than the memory"):
        store.read(tmp_path / "x.pth")


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        store.read(tmp_path / "no.pth")
    with pytest.raises(CheckpointError, match="is not a file"):
        store.read(tmp_path)


@pytest.mark.parametrize("force", ["0", "1"])
def test_pickles_never_run(tmp_path, monkeypatch, force):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", force)
    marker = tmp_path / "owned"
    torch.save({"model": Bomb(marker)}, tmp_path / "zip.pth")
    (tmp_path / "legacy.pth").write_bytes(pickle.dumps(Bomb(marker)))
    for name in ("zip.pth", "legacy.pth"):
        with pytest.raises(CheckpointError, match="more than tensors"):
            store.read(tmp_path / name)
    assert not marker.exists()


def test_compressed_archives_are_refused_before_they_unfold(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    with pytest.raises(CheckpointError, match="compressed"):
        store.read(tmp_path / "bomb.pth")


def test_a_failed_save_leaves_the_older_one_and_nothing_else(file, monkeypatch):
    before = file.read_bytes()

    def full(*_args, **_kwargs):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 13633984 vs 13633936")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ResourceError, match="untouched"):
        store.save(file, {"model": {}})
    assert file.read_bytes() == before
    assert [p.name for p in file.parent.iterdir()] == ["last.pth"]
    monkeypatch.undo()
    with pytest.raises(ResourceError):
        store.save(file.parent / "gone" / "last.pth", {"model": {}})


def test_errors_name_what_is_missing(file, trained, tmp_path):
    with pytest.raises(CheckpointError, match=r"not a checkpoint of this program; .* --pretrained"):
        store.read_own(file)
    with pytest.raises(CheckpointError, match=r"no optimizer state.*--pretrained"):
        store.read_own(trained / "best.pth", RESUME)
    written(tmp_path / "new.pth", store.read(trained / "best.pth") | {"format": 99})
    with pytest.raises(CheckpointError, match="format 99"):
        store.read_own(tmp_path / "new.pth")


NAN = float("nan")
BAD = {
    "model": [{}, [], {1: torch.ones(1)}, {"a": "text"}, {"a": torch.tensor(NAN)}, {"a": torch.ones(2, 2).to_sparse()}],
    "step": ["x", 2.5, -5, 10**30, True, None],
    "epoch": [-1, "0"],
    "config": [5, None, ["a"]],
    "classes": ["abcdef", [1, 2], ["a", "a"], ["a"], [["a"], ["b"]], ["../a", "b"]],
    "labels": ["abcdef", [1, 2], ["a"], ["a\x1b", "b"], ["a", "A"]],
    "exclusive": [0, [-1], [1.5], [99]],
    "preprocess": ["x", {}, {"size": 3}],
    "targets": ["foo", ["single"], None],
    "thresholds": [[NAN] * 6, 0.5, ["a"] * 6, [True] * 6],
    "temperatures": [[0.0] * 6, [NAN] * 6, None],
    "validation": [{}, {"logits": torch.ones(2, 6), "truth": torch.ones(1, 6) > 0}, {"logits": 1, "truth": 1}],
    "combinations": [[["a"]], [[-1]], 5, [[]]],
    "data_digest": ["ab", [1, 2], ["a"]],
    "images_per_update": [0, "8", 8.0],
    "precision": [None, 16],
    "model_ema": [None, [], {"a": torch.ones(1, device="meta")}],
    "optimizer": [[], {}, {"state": [], "param_groups": []}, {"state": {}, "param_groups": [{}]}],
    "scaler": [None, []],
    "micro_batch": [None, 0],
    "best": ["x", NAN, 2],
    "sums": [[], [0.0] * 3, ["a"] * 4, [NAN] * 4],
    "skipped": [-1, "0"],
    "validated": [-1, 0.5],
}


@pytest.mark.parametrize("key", BAD)
def test_a_part_of_a_wrong_kind_is_refused(trained, tmp_path, key):
    content = store.read(trained / "last.pth")
    for value in BAD[key]:
        written(tmp_path / "last.pth", content | {key: value})
        with pytest.raises(CheckpointError, match=rf"last\.pth .*\b{key}"):
            store.read_own(tmp_path / "last.pth", RESUME)
    assert set(BAD) == set(RESUME) - {"format"}


@pytest.mark.parametrize(
    "change",
    [
        {"size": 0},
        {"size": "96"},
        {"resize": "stretch"},
        {"resize": None},
        {"crop": True},
        {"interpolation": "foo"},
        {"mean": [1]},
        {"std": [0, 1, 1]},
        {"x": 1},
    ],
    ids=str,
)
def test_a_part_of_the_preprocessing_of_a_wrong_kind_is_refused(trained, tmp_path, change):
    content = store.read(trained / "best.pth")
    written(tmp_path / "x.pth", content | {"preprocess": content["preprocess"] | change})
    with pytest.raises(CheckpointError, match="preprocess must be"):
        store.read_own(tmp_path / "x.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_without_a_seal_is_refused(trained, tmp_path, zipped):
    torch.save(store.read(trained / "best.pth"), tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="not bit for bit as this program wrote it"):
        store.read_own(tmp_path / "x.pth")


def test_one_number_expanded_to_a_billion_is_refused(tmp_path):
    torch.save({"model": {"w": torch.ones(1).expand(10**9)}}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="more numbers than the file holds"):
        store.read(tmp_path / "x.pth")


def test_shared_lists_do_not_unfold():
    bomb = [torch.ones(1)]
    for _ in range(60):
        bomb = [bomb, bomb]
    assert [name for name, _ in store.named_tensors(bomb)] == ["0." * 60 + "0"]


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_values_that_are_not_finite_are_never_written(file, value):
    before = file.read_bytes()
    with pytest.raises(NumericsError, match=r"^model\.a is not finite"):
        store.save(file, {"model": {"a": torch.tensor([1, value])}, "step": 5})
    assert file.read_bytes() == before


def run_folder(trained, tmp_path, last, previous):
    """A run folder whose two checkpoints have these steps; None leaves one out."""
    content = store.read(trained / "last.pth")
    for name, step in (("last.pth", last), ("previous.pth", previous)):
        if step is not None:
            written(tmp_path / name, content | {"step": step})
    return tmp_path


@pytest.mark.parametrize(
    ("last", "previous", "chosen"), [(3, 2, "last.pth"), (2, 3, "previous.pth"), (None, 2, "previous.pth")]
)
def test_the_checkpoint_of_the_highest_step_is_taken_whatever_the_file_times(trained, tmp_path, last, previous, chosen):
    folder = run_folder(trained, tmp_path, last, previous)
    os.utime(folder / "previous.pth", (4e9, 4e9))
    written(folder / "stray.pth", store.read(trained / "last.pth") | {"step": 99})
    path, content, faults = store.newest(folder)
    assert (path.name, content["step"], faults) == (chosen, max(last or 0, previous), {})


def test_a_damaged_checkpoint_is_skipped_and_an_error_if_there_is_no_other(trained, tmp_path):
    folder = run_folder(trained, tmp_path, 3, 2)
    (folder / "last.pth").write_bytes((folder / "last.pth").read_bytes()[:-9])
    path, content, faults = store.newest(folder)
    assert (path.name, content["step"], [p.name for p in faults]) == ("previous.pth", 2, ["last.pth"])
    (folder / "previous.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no other checkpoint is left"):
        store.newest(folder)
    assert store.newest(tmp_path / "nowhere") == (None, {}, {})


def test_the_older_checkpoint_stays_when_the_next_one_is_written(file):
    previous = file.with_name("previous.pth")
    before = file.read_bytes()
    store.save(file, {"model": {}, "step": 2}, previous)
    assert previous.read_bytes() == before
    assert store.read(file)["step"] == 2
    assert sorted(p.name for p in file.parent.iterdir()) == ["last.pth", "previous.pth"]


def test_a_legacy_file_without_a_zip_still_loads(tmp_path):
    buffer = io.BytesIO()
    torch.save({"model": {"w": torch.ones(3)}}, buffer, _use_new_zipfile_serialization=False)
    (tmp_path / "old.pth").write_bytes(buffer.getvalue())
    assert torch.equal(store.read(tmp_path / "old.pth")["model"]["w"], torch.ones(3))
