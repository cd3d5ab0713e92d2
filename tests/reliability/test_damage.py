"""Checkpoints that are damaged or hostile: a run falls back and says so, nothing in a file is ever run or unfolded."""

import io
import os
import pickle
import resource
import runpy
import shutil
import subprocess
import time
import zipfile

import numpy as np
import pytest
import torch
from runs import RUN, digest, warm

import main
import test as referee
import visual
from tools.checkpoint import store


@pytest.fixture(scope="module")
def halfway(recipe, tmp_path_factory):
    """The folder of a run that stopped after seven updates."""
    folder = tmp_path_factory.mktemp("halfway")
    assert warm(folder, main.main, [*recipe, "TRAIN.MAX_STEPS", "7"]).wait() == 0
    return folder / "output"


def flipped(good, random):
    damaged = bytearray(good)
    damaged[random.integers(len(good))] ^= 1 << random.integers(8)
    return bytes(damaged)


def zeroed(good, random):
    """A page that was not zero already."""
    while (start := int(random.integers(len(good)))) >= 0:
        damaged = good[:start] + bytes(min(4096, len(good) - start)) + good[start + 4096 :]
        if damaged != good:
            return damaged
    return None


def cut(good, random):
    return good[: random.integers(len(good))]


@pytest.mark.parametrize(("damage", "many"), [(flipped, 300), (zeroed, 100), (cut, 100)])
def test_a_run_falls_back_to_the_checkpoint_before(halfway, recipe, undisturbed, tmp_path, times, damage, many):
    """Found every time; and a whole run goes on from the one before, to the same bits."""
    random, output = np.random.default_rng(4), shutil.copytree(halfway, tmp_path / "output")
    folder = tmp_path / RUN
    good = (folder / "last.pth").read_bytes()
    for _ in range(times(10, many)):
        bad = damage(good, random)
        (folder / "last.pth").write_bytes(bad)
        path, content, faults = store.newest(folder)
        assert (path.name, content["step"], list(faults)) == ("previous.pth", 6, [folder / "last.pth"])
    for _ in range(times(1, 3)):
        shutil.rmtree(output)
        shutil.copytree(halfway, output)
        (folder / "last.pth").write_bytes(bad := damage(good, random))
        run = warm(tmp_path, main.main, recipe)
        assert run.wait() == 0, run.errors
        log = (folder / "log.txt").read_text()
        assert "last.pth.bad" in log
        assert "previous.pth at step 6 of " in log
        assert (folder / "last.pth.bad").read_bytes() == bad
        assert digest(folder) == undisturbed


class Call:
    """Pickles to a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(marker):
    """Contents whose unpickling by Python makes the file `marker`."""
    touch = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w')"
    yield Call(os.system, touch)
    yield Call(eval, code)
    yield Call(exec, code)
    yield Call(open, str(marker), "w")
    yield Call(subprocess.check_output, ["touch", str(marker)])
    yield Call(os.mkdir, str(marker))
    yield Call(np.save, str(marker), np.zeros(1))
    yield Call(map, os.system, [touch]), Call(os.system, touch)
    yield {"model": {"w": 1, "x": Call(os.system, touch)}}
    yield Call(runpy._run_code, code, {})


def written_by_hand(marker):
    """Pickle programs that no pickler writes: old opcodes, and one that hides behind the memo."""
    touch = f"touch {marker}".encode()
    yield b"(S'" + touch + b"'\nios\nsystem\n."
    yield b"cos\nsystem\n(S'" + touch + b"'\ntR."
    yield b"(cos\nsystem\nS'" + touch + b"'\no."
    yield b"\x80\x02}q\x00X\x05\x00\x00\x00modelcos\nsystem\n(S'" + touch + b"'\ntRs."


def files_of(marker, folder):
    """Every payload as a torch archive, as torch's older format, and as a bare pickle."""
    programs = [pickle.dumps(payload) for payload in hostile(marker)] + list(written_by_hand(marker))
    plain = io.BytesIO()
    torch.save({"model": {}}, plain)
    for number, program in enumerate(programs):
        (folder / f"{number}-bare.pth").write_bytes(program)
        with zipfile.ZipFile(plain) as source, zipfile.ZipFile(folder / f"{number}-zip.pth", "w") as archive:
            for info in source.infolist():
                archive.writestr(info, program if info.filename.endswith("data.pkl") else source.read(info))
    for number, payload in enumerate(hostile(marker)):
        torch.save(payload, folder / f"{number}-legacy.pth", _use_new_zipfile_serialization=False)
    return sorted(folder.glob("*.pth"))


@pytest.mark.parametrize("force", ["0", "1"])
def test_hostile_files_are_refused_by_every_command_and_leave_no_marker(
    refused, monkeypatch, tiny, dataset, halfway, tmp_path, force
):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", force)
    marker, folder = tmp_path / "owned", tmp_path / "files"
    folder.mkdir()
    run = ["--cfg", tiny, "--data-path", dataset, "--output", tmp_path / "out"]
    files = files_of(marker, folder)
    for path in files:
        with pytest.raises(store.CheckpointError, match=path.name):
            store.read(path)
    own = shutil.copytree(halfway, tmp_path / "own") / "tiny" / "default"
    for path in (folder / "0-bare.pth", folder / "0-legacy.pth", folder / "0-zip.pth"):
        refused(main.main, [*run, "--pretrained", path], 4, path)
        refused(main.main, [*run, "--resume", path], 4, path)
        refused(referee.main, ["--resume", path, "--data-path", dataset], 4, path)
        refused(visual.main, ["--resume", path, "--data-path", dataset, "--examples", "1"], 4, path)
        for name in ("last.pth", "previous.pth"):
            shutil.copy(path, own / name)
        refused(main.main, [*run[:-1], tmp_path / "own"], 4, "last.pth")
    assert not list(tmp_path.glob("owned*"))
    assert not (tmp_path / "out").exists()
    print(f"{len(files)} hostile files: refused, no marker")


def test_the_hostile_files_are_hostile(tmp_path):
    """Or the test above would prove nothing."""
    for program in [*map(pickle.dumps, hostile(tmp_path / "m")), *written_by_hand(tmp_path / "m")]:
        pickle.loads(program)
        made = list(tmp_path.iterdir())
        assert len(made) == 1, program
        made[0].rmdir() if made[0].is_dir() else made[0].unlink()


def reading(path):
    """Tries to read a checkpoint; says how many MB and seconds that took."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    try:
        store.read(path)
    except store.CheckpointError as error:
        seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"{(after - before) / 1024:.1f} MB {seconds:.3f} s: {error}")
        return error.exit_code
    return 0


def test_a_deflate_bomb_is_refused_before_it_unfolds(tmp_path, times):
    path, megabytes = tmp_path / "bomb.pth", times(100, 1900)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("archive/data.pkl", "w") as member:
        for _ in range(megabytes):
            member.write(bytes(2**20))
    run = warm(tmp_path, reading, path)
    assert run.wait() == 4
    assert "compressed" in run.said[-1]
    assert float(run.said[-1].split()[0]) < 50
    print(f"{path.stat().st_size / 1e6:.1f} MB that unfold to {megabytes} MB: {run.said[-1]}")
