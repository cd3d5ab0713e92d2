"""Faults in checkpoints that are scored (F), pretrained weights (G, N10), heat maps (M) and numbers (L4).

At the end one real process per kind of fault, whose exit code and whole stderr are checked.
"""

import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from conftest import ROOT, snapshot, written
from provoke import NO_FILES, PHOTO, encoded, faults, put, spoilt

import main
import test as scoring
import visual
from tools.api import load
from tools.base.errors import NumericsError
from tools.checkpoint.store import read
from tools.commands import compare, predict, status
from tools.evaluate import predictor


class Payload:
    """Makes the file `owned` when it is unpickled without protection."""

    def __reduce__(self):
        return os.system, ("touch owned",)


def changed(change, save=written):
    """A maker `(path, content of a good checkpoint)` that writes `change(content)`."""
    return lambda path, content: save(path, change(content))


def saved(path, content):
    """Saves it as any other program would."""
    torch.save(content, path)


def with_part(key, value):
    return changed(lambda content: content | {key: value})


def with_weight(name, value):
    return changed(lambda content: content | {"model": content["model"] | {name: value}})


def without_weight(content):
    return content | {"model": {key: value for key, value in content["model"].items() if key != "norm.weight"}}


def deflated(path, _content):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(100_000_000))


def cut(share):
    def make(path, content):
        written(path, content)
        os.truncate(path, int(share * path.stat().st_size))

    return make


def flipped(path, content):
    written(path, content)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)


def fixed(content):
    return lambda path, _content: put(path, content)


def legacy_tar(path, _content):
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))


HEAD = "head.weight"
BROKEN = [
    *(("F4", fixed(make), "w.pth") for make in NO_FILES.values()),
    ("F4", fixed(""), "w.pth is"),
    ("F4", fixed("<!DOCTYPE html>"), "it is a web page"),
    ("F4", fixed("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    ("F4", fixed(b"\x89HDF\r\n\x1a\n"), "it is an HDF5 file"),
    ("F4", legacy_tar, "it is a tar archive"),
    ("F4", with_weight("norm.weight", torch.ones(32).to(torch.float8_e4m3fn)), "torch.float8_e4m3fn"),
    ("F13", changed(lambda content: content | {"args": np.array([Payload()], object)}, saved), "w.pth is damaged"),
    ("F4", fixed(bytes(range(256)) * 20), "w.pth is"),
    ("F4", fixed(b"PK\x05\x06" + bytes(18)), "w.pth is"),
    ("F4", changed(lambda _content: [1, 2], saved), "it holds a list"),
    ("F4", changed(lambda _content: torch.ones(3), saved), "it holds a Tensor"),
    ("F1", cut(0.3), "w.pth"),
    ("F1", cut(0.999), "w.pth is"),
    ("F2", flipped, "w.pth is damaged"),
    ("F5", changed(without_weight), "missing norm.weight"),
    ("F5", with_weight("stray", torch.ones(1)), "unexpected stray"),
    ("F5", with_weight("norm.weight", torch.ones(3)), "wrong shape norm.weight (3,)"),
    ("F10", with_weight("norm.weight", torch.full((32,), float("nan"))), "non-finite"),
    ("F13", changed(lambda content: content | {"model": Payload()}, saved), "more than tensors and plain values"),
    ("F13", fixed(pickle.dumps(Payload())), "more than tensors and plain values"),
    ("F16", deflated, "its archive is compressed"),
    ("F16", fixed(b"\x80\x02" + b"(" * 20_000), "w.pth is"),
    ("F16", fixed(b"\x80\x04\x8e" + (2**62).to_bytes(8, "little")), "w.pth is"),
]


@faults("make, words", BROKEN)
def test_broken_weights_are_refused_by_every_command(fault, tmp_path, monkeypatch, tiny, dataset, trained, make, words):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # F14: the environment variable has no effect
    make(tmp_path / "w.pth", read(trained / "best.pth"))
    photo = next((dataset / "test").glob("*/*.jpg"))
    fault(scoring.main, ["--resume", "w.pth", "--data-path", dataset, "--to", "to"], 4, "w.pth", words)
    fault(visual.main, ["--resume", "w.pth", "--image", photo, "--to", "to"], 4, "w.pth", words)
    fault(predict.main, [photo, "--resume", "w.pth", "--json", "j"], 4, "w.pth", words)
    fault(main.main, ["--cfg", tiny, "--eval", "--resume", "w.pth", "--data-path", dataset], 4, "w.pth", words)
    arguments = ["--cfg", tiny, "--pretrained", "w.pth", "--data-path", dataset, "--output", "out"]
    fault(main.main, arguments, 4, "w.pth", words)
    assert not (tmp_path / "owned").exists()


OURS = [
    ("F5", changed(lambda content: {"model": content["model"]}, saved), "not a checkpoint of this program"),
    ("F5", with_part("format", 99), "format 99"),
    ("F7", changed(lambda c: c | {"model": c["model"] | {HEAD: c["model"][HEAD][:5]}}), "wrong shape head.weight"),
    ("F7", changed(lambda content: content | {"classes": content["classes"][:5]}), "one name per class"),
    ("F8", changed(lambda content: content | {"classes": content["classes"][::-1]}), "classes must be sorted"),
    *(
        (
            "F8",
            changed(lambda content, name=name: content | {"classes": sorted([*content["classes"][1:], name])}),
            "classes",
        )
        for name in ("../../../PWN", "a\x1b[2Jb", "a\nb", "a\0b", "<b>", "x" * 300, "", ".hidden", "a/b", "a|b")
    ),
    ("F11", changed(lambda content: {k: v for k, v in content.items() if k != "thresholds"}), "lacks thresholds"),
    ("F13", with_part("config", "TRAIN: !!python/object/apply:os.system [touch owned]"), "is inconsistent"),
    ("F5", with_part("config", "TRAIN: {EPOCH: 1}"), "is inconsistent"),
    ("F5", with_part("config", "MODEL: {TYPE: timm, NAME: nosuch}"), "not a model of timm"),
    ("F5", with_part("preprocess", {"size": 3}), "preprocess must be"),
    ("F5", changed(lambda content: content | {"preprocess": content["preprocess"] | {"size": 48}}), "cannot take 48"),
    ("F5", with_part("combinations", [[7]]), "is inconsistent"),
    ("F5", with_part("thresholds", [0.5] * 5), "not 6"),
]


@faults("make, words", OURS)
def test_inconsistent_checkpoints_are_refused(fault, tmp_path, dataset, trained, make, words):
    make(tmp_path / "w.pth", read(trained / "best.pth"))
    fault(scoring.main, ["--resume", "w.pth", "--data-path", dataset, "--to", "to"], 4, "w.pth", words)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["norm.weight", "head.weight"])
def test_a_model_that_overflows_gives_no_answer_in_any_command(fault, tmp_path, dataset, trained, name):
    """Every weight is finite, but the logits are not. The photo is named."""
    weight = read(trained / "best.pth")["model"][name]
    with_weight(name, torch.full_like(weight, 3e38))(tmp_path / "w.pth", read(trained / "best.pth"))
    photo = next((dataset / "test").glob("*/*.jpg"))
    data, no_workers = ["--data-path", dataset], ["--opts", "DATA.NUM_WORKERS", "0"]
    words = ".jpg is not finite"
    fault(scoring.main, ["--resume", "w.pth", *data, "--to", "to", *no_workers], 6, words)
    fault(predict.main, [photo, "--resume", "w.pth", "--csv", "a.csv", "--json", "a.json"], 6, photo.name, words)
    fault(visual.main, ["--resume", "w.pth", "--image", photo, "--to", "to"], 6, photo.name, words)
    fault(visual.main, ["--resume", "w.pth", *data, "--mistakes", "1", "--to", "to"], 6, words)
    fault(compare.main, ["w.pth", *data], 6, words)
    with pytest.raises(NumericsError, match=words):
        load(tmp_path / "w.pth").predict(photo)


WEIGHTS = [
    ("N10", "http://example.org/w.pth", 4, "download it yourself"),
    ("N10", "https://example.org/w.pth", 4, "download it yourself"),
    ("N10", "ftp://example.org/w.pth", 4, "does not exist"),
    ("G1", "no.pth", 4, "no.pth does not exist"),
    ("G1", "auto", 4, "timm has no weights for tiny"),
    ("B8", "a" * 300 + ".pth", 2, "shorter one"),
    ("B8", "a/" * 3000, 2, "2048 bytes"),
]


@faults("choice, code, words", WEIGHTS)
def test_pretrained_weights_that_cannot_be_found(fault, tiny, dataset, choice, code, words):
    arguments = ["--cfg", tiny, "--pretrained", choice, "--data-path", dataset, "--output", "out"]
    fault(main.main, arguments, code, words)


def test_a_hub_that_does_not_answer_g1(fault, monkeypatch, tiny, dataset):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the port of the discard service, which is not running
    arguments = ["--cfg", tiny, "--pretrained", "auto", "--data-path", dataset, "--output", "out", "--opts"]
    model = ["MODEL.TYPE", "timm", "MODEL.NAME", "resnet10t", "DATA.IMG_SIZE", "32"]
    fault(main.main, [*arguments, *model], 4, "no connection", "--pretrained FILE")


COMMANDS = [
    ("F4", scoring.main, ["--output", "empty"], 4, "no trained run"),
    ("F4", scoring.main, ["--resume", "{model}", "no.pth"], 4, "no.pth does not exist"),
    ("E1", scoring.main, ["--resume", "{model}", "--data-path", "no"], 3, "no/test"),
    ("B1", scoring.main, ["--resume", "{model}", "--accumulation-steps", "2"], 2, "unrecognized"),
    ("B4", scoring.main, ["--tag", "nosuch"], 2, "give --cfg FILE"),
    *(("B4", scoring.main, ["--abstain-at", share], 2, "--abstain-at") for share in ("nan", "1", "x", "0_1")),
    ("B7", scoring.main, ["--resume", "{model}", "--to", "{data}/test/000001"], 2, "lies among the photos"),
    ("B4", visual.main, ["--tag", "nosuch", "--examples", "1"], 2, "give --cfg FILE"),
    ("B4", visual.main, ["--resume", "{model}"], 2, "--image FILE"),
    ("B4", visual.main, ["--image", "{photo}", "--examples", "1"], 2, "one of these"),
    ("B4", visual.main, ["--examples", "-1"], 2, "a number of photos"),
    ("B7", visual.main, ["--resume", "{model}", "--image", "{photo}", "--to", "{data}/maps"], 2, "lies among"),
    ("M8", visual.main, ["--resume", "{model}", "--image", "{photo}", "--to", "{photo}/x"], 2, "lies among"),
    ("M8", visual.main, ["--resume", "{model}", "--image", "{photo}", "--to", "{tiny}"], 5, "cannot be written"),
    ("E1", visual.main, ["--resume", "{model}", "--split", "test", "--data-path", "no"], 3, "no/test"),
    ("D1", visual.main, ["--resume", "{model}", "--image", "{photo}", "no.jpg"], 3, "no.jpg does not exist"),
    *(
        ("M1", visual.main, ["--resume", "{model}", "--image", "{photo}", f"--target={target}"], 2, "is not a class of")
        for target in ("scrab", "9", "-1", "")
    ),
    *(
        ("M4", visual.main, ["--resume", "{model}", "--image", "{photo}", "--layer", layer], 2, words)
        for layer, words in {
            "layers[7]": "has no [7]",
            "layers[" + "9" * 5000 + "]": "not a path",
            "layers[-1].eval()": "not a path",
            "__class__": "has no __class__",
            "norm.weight": "has no weight",
            "head": "--layer",
            "": "not a path",
        }.items()
    ),
]


@faults("command, arguments, code, words", COMMANDS)
def test_wrong_arguments_are_refused(fault, tiny, dataset, trained, command, arguments, code, words):
    places = {"model": trained / "best.pth", "data": dataset, "tiny": tiny}
    places["photo"] = next((dataset / "test").glob("*/*.jpg"))
    arguments = [argument.format(**places) for argument in arguments]
    if "--data-path" not in arguments:
        arguments += ["--data-path", dataset]
    fault(command, arguments, code, words)


TIFF = spoilt(encoded(PHOTO, "TIFF", compression="tiff_lzw"), b"\xff")  # libtiff prints its own message about it
PREPARE = ["process_dataset.py", "--src", "raw", "--dst", "d"]
PROCESSES = [
    ("A", ["main.py", "--cfg", "bad.yaml"], {"bad.yaml": "TRAIN: {EPOCH: 3}"}, 2, "bad.yaml: unknown key"),
    ("C", PREPARE, {"raw/val/images/a.tif": TIFF}, 3, "val_label.csv does not exist"),
    ("D", PREPARE, {"raw/val/images/a.tif": TIFF, "raw/val/val_label.csv": "images,labels\na.tif,rust\n"}, 3, "a.tif"),
    ("E", PREPARE, {"raw/val/val_label.csv": ""}, 3, "raw/val/images is not a folder"),
    ("F", ["visual.py", "--resume", "bad.pth", "--image", "a.tif"], {"bad.pth": "<html>"}, 4, "bad.pth"),
]


@faults("command, files, code, words", PROCESSES)
def test_real_processes(tmp_path, command, files, code, words):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        put(tmp_path / name, content)
    before = snapshot(tmp_path)
    command = [sys.executable, str(ROOT / command[0]), *command[1:]]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == code, result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert words in result.stderr
    assert snapshot(tmp_path) == before


def test_files_of_training_scripts_may_hold_their_arguments_and_numpy_numbers(tiny, dataset, trained, tmp_path):
    import argparse

    content = {"model": read(trained / "best.pth")["model"], "args": argparse.Namespace(lr=0.1)}
    torch.save(content | {"best": np.float64(0.5), "step": np.int64(3)}, tmp_path / "w.pth")
    argv = ["--cfg", tiny, "--pretrained", tmp_path / "w.pth", "--data-path", dataset, "--output", tmp_path / "o"]
    assert main.main([str(a) for a in (*argv, "--opts", "TRAIN.MAX_STEPS", "1")]) == 0
    assert read(tmp_path / "w.pth")["best"] == 0.5


def test_run_folders_and_folders_of_photos_may_be_named(trained, dataset, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    assert scoring.main(["--resume", str(folder), "--data-path", str(dataset)]) == 0
    photos = tmp_path / "photos"
    photos.mkdir()
    for photo in sorted((dataset / "test").glob("*/*.jpg"))[:2]:
        shutil.copy(photo, photos)
    assert visual.main(["--resume", str(folder), "--image", str(photos)]) == 0
    assert len(list((folder / "heatmaps").glob("*_pair.png"))) == 2


@pytest.mark.parametrize("name", ["status.json", "run.json", "metrics.csv"])
def test_a_fifo_in_a_run_folder_is_not_waited_for(trained, dataset, tmp_path, fault, name):
    folder = shutil.copytree(trained, tmp_path / "output" / "tiny" / "default")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    if name == "run.json":
        fault(scoring.main, ["--data-path", dataset], 4, "no trained run")
    else:
        fault(status.main, [folder], 5, f"{name}")


def test_a_deep_status_is_an_error_of_one_line(trained, tmp_path, fault):
    folder = shutil.copytree(trained, tmp_path / "run")
    (folder / "status.json").write_text("[" * 100_000)
    fault(status.main, [folder], 5, "status.json cannot be read")


def test_results_that_cannot_be_written_are_refused_before_photos_are_scored(
    trained, dataset, tmp_path, fault, monkeypatch
):
    folder = shutil.copytree(trained, tmp_path / "run")
    folder.chmod(0o555)
    monkeypatch.setattr(predictor, "predict_split", lambda *_: pytest.fail("photos were scored"))
    fault(scoring.main, ["--resume", "run/best.pth", "--data-path", dataset], 5, "run/test cannot be written", "--to")
    fault(visual.main, ["--resume", "run/best.pth", "--data-path", dataset, "--examples", "1"], 5, "cannot be written")
    folder.chmod(0o755)
