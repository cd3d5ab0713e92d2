"""`predict` over folders: what is written as it goes, gone on with after a stop, and counted at the end."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import visual
from tools.commands import predict
from tools.evaluate.predictor import Predictor

LABELS = ["scab", "rust", "powdery_mildew", "healthy", "frog_eye_leaf_spot", "complex"]


@pytest.fixture
def orchard(dataset, tmp_path):
    """Seven photos in two rows of trees, one of them cut short, and what is no photo."""
    photos = sorted((dataset / "test").glob("*/*.jpg"))[:6]
    for number, photo in enumerate(photos):
        folder = tmp_path / "orchard" / f"row {number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, folder / f"{number}.jpg")
    (folder / "cut.jpg").write_bytes(photos[0].read_bytes()[:400])
    (folder / "film.mov").write_bytes(b"film")
    (folder / "@eaDir").mkdir()
    shutil.copy(photos[0], folder / "@eaDir" / "0.jpg")
    return tmp_path / "orchard"


@pytest.fixture
def run(trained, orchard, capsys):
    """A function that predicts the orchard and returns (exit code, stdout, stderr)."""

    def call(*flags):
        capsys.readouterr()
        argv = [orchard, "--resume", trained / "best.pth", "--batch-size", "2", *flags]
        code = predict.main([str(word) for word in argv])
        return code, *capsys.readouterr()

    return call


def table(path):
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_a_bad_photo_is_a_row_and_all_others_are_predicted(run, tmp_path):
    for flags, code in (([], 3), (["--max-bad", "1", "--overwrite"], 0)):
        got, _, err = run("--csv", tmp_path / "a.csv", "--json", tmp_path / "a.json", *flags)
        assert got == code
        assert "cut.jpg cannot be decoded" in err
        rows, entries = table(tmp_path / "a.csv"), json.loads((tmp_path / "a.json").read_text())
        assert [row["images"] for row in rows] == [entry["image"] for entry in entries]
        assert sorted(os.path.basename(row["images"]) for row in rows) == [*(f"{n}.jpg" for n in range(6)), "cut.jpg"]
        for row, entry in zip(rows, entries, strict=True):
            if "cut.jpg" in row["images"]:
                assert "cannot be decoded" in row["error"] == entry["error"]
                assert row["decision"] == row["p_rust"] == ""
            else:
                assert row["decision"].split() == entry["labels"]
                assert float(row["confidence"]) == entry["confidence"]
                assert [float(row[f"p_{label}"]) for label in LABELS] == list(entry["probabilities"].values())
    assert "film.mov" in err
    assert "@eaDir" in err


def test_the_summary_counts_labels_by_folder(run, orchard, tmp_path):
    _, out, _ = run("--csv", tmp_path / "a.csv", "--max-bad", "1")
    rows = table(tmp_path / "a.csv")
    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    for folder in (str(orchard / "row 0"), str(orchard / "row 1"), "all"):
        inside = [row for row in rows if folder == "all" or row["images"].startswith(folder)]
        counts = [
            len(inside),
            *(sum(label in row["decision"].split() for row in inside) for label in LABELS),
            sum(row["unsure"] == "1" for row in inside),
            sum(row["error"] != "" for row in inside),
        ]
        assert [int(cell) for cell in lines[folder].removeprefix(folder).split()] == counts
    assert out.splitlines()[-1] == f"written: {tmp_path / 'a.csv'}"


@pytest.mark.parametrize("name", ["a.csv", "a.json"])
@pytest.mark.parametrize("torn", [0, 7, 100])
def test_a_second_start_goes_on(run, tmp_path, monkeypatch, name, torn):
    """After a stop inside the second batch, and after a kill that left half a row; whole rows are not made again."""
    flag = f"--{name.split('.')[1]}"
    run(flag, tmp_path / name, "--max-bad", "1")
    whole = (tmp_path / name).read_bytes()
    answer, calls = Predictor.answer, []

    def stop_at_the_second(self, images, names, precision):
        calls.extend(names)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return answer(self, images, names, precision)

    monkeypatch.setattr(Predictor, "answer", stop_at_the_second)
    assert run(flag, tmp_path / name, "--overwrite")[0] == 130
    part = (tmp_path / name).read_bytes()
    if name.endswith("csv"):
        assert whole.startswith(part)
        assert len(table(tmp_path / name)) == 2
    else:
        assert len(json.loads(part)) == 2
    part = part[: len(part) - torn]
    (tmp_path / name).write_bytes(part)
    whole_rows = part.count(b"\n") - 1 if name.endswith("csv") else part.count(b'"}')
    calls.clear()
    monkeypatch.setattr(
        Predictor,
        "answer",
        lambda self, images, names, *rest: calls.extend(names) or answer(self, images, names, *rest),
    )
    assert run(flag, tmp_path / name, "--max-bad", "1")[0] == 0
    assert (tmp_path / name).read_bytes() == whole
    assert len(calls) == 6 - whole_rows
    calls.clear()
    assert run(flag, tmp_path / name, "--max-bad", "1")[0] == 0
    assert not calls
    assert (tmp_path / name).read_bytes() == whole


def test_shards_are_joined_again(run, tmp_path, refused):
    from tools.commands import join

    run("--csv", tmp_path / "whole.csv", "--max-bad", "1")
    parts = [tmp_path / f"{i}.csv" for i in (1, 2, 3)]
    for i, part in enumerate(parts, 1):
        run("--csv", part, "--shard", f"{i}/3", "--max-bad", "1")
    assert sorted(len(table(part)) for part in parts) == [2, 2, 3]
    assert join.main([*map(str, parts), "--csv", str(tmp_path / "joined.csv")]) == 0
    assert table(tmp_path / "joined.csv") == sorted(table(tmp_path / "whole.csv"), key=lambda row: row["images"])
    refused(join.main, [parts[0], parts[0], "--csv", tmp_path / "x.csv"], 3, "is in both")
    run("--csv", tmp_path / "other.csv", "--tta", "flips", "--max-bad", "1")
    refused(join.main, [parts[0], tmp_path / "other.csv", "--csv", tmp_path / "x.csv"], 3, "another model")
    refused(join.main, [parts[0], "--csv", parts[0]], 2, "one of the inputs")
    for wrong in ("0/3", "4/3", "1", "1/0", "a/b"):
        assert run("--shard", wrong)[0] == 2


def test_predictions_of_two_models_are_not_mixed(run, tmp_path, trained, refused, orchard):
    run("--csv", tmp_path / "a.csv", "--max-bad", "1")
    before = (tmp_path / "a.csv").read_bytes()
    argv = [orchard, "--resume", trained / "best.pth", "--csv", tmp_path / "a.csv"]
    refused(predict.main, [*argv, "--tta", "flips"], 2, "another model or other settings", "--overwrite")
    assert (tmp_path / "a.csv").read_bytes() == before
    (tmp_path / "a.csv").write_text("my,own,table\n1,2,3\n")
    refused(predict.main, argv, 2, "--overwrite")
    assert (tmp_path / "a.csv").read_text() == "my,own,table\n1,2,3\n"


def test_nothing_is_written_through_a_link_nor_into_a_missing_folder(orchard, trained, tmp_path, refused):
    argv = [orchard, "--resume", trained / "best.pth", "--csv"]
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "link.csv").symlink_to(tmp_path / "victim")
    refused(predict.main, [*argv, tmp_path / "link.csv"], 5, "it is a link")
    (tmp_path / ".a.csv.lock").symlink_to(tmp_path / "victim")
    refused(predict.main, [*argv, tmp_path / "a.csv"], 5, ".a.csv.lock", "it is a link")
    assert (tmp_path / "victim").read_text() == "precious"
    os.mkfifo(tmp_path / "fifo.csv")
    refused(predict.main, [*argv, tmp_path / "fifo.csv"], 5, "not a regular file")
    refused(predict.main, [*argv, tmp_path / "no" / "a.csv"], 2, "does not exist")
    assert not (tmp_path / "no").exists()


def test_names_are_escaped_on_the_terminal_and_utf8_in_files(run, orchard, trained, tmp_path, capsys):
    source = orchard / "row 0" / "0.jpg"
    shutil.copy(source, orchard / "row 0" / "a\x1b[2J\nfalse: healthy.jpg")
    shutil.copy(source, os.fsencode(orchard / "row 0") + b"/caf\xe9.jpg")
    _, out, _ = run("--max-bad", "1")
    assert r"a\x1b[2J\nfalse: healthy.jpg" in out
    assert "\x1b" not in out
    argv = ["--resume", trained / "best.pth", "--to", tmp_path / "maps", "--image", orchard / "row 0"]
    assert visual.main([str(a) for a in argv]) == 0
    assert r"a\x1b[2J\nfalse: healthy.jpg: " in (out := capsys.readouterr().out)
    assert "\x1b" not in out
    for _ in range(2):  # the second start finds all names
        run("--csv", tmp_path / "a.csv", "--json", tmp_path / "a.json", "--max-bad", "1")
    assert len(json.loads((tmp_path / "a.json").read_bytes().decode("utf-8"))) == 9
    text = (tmp_path / "a.csv").read_bytes().decode("utf-8")
    assert text.count("caf\\udce9.jpg") == 1
    assert len(list(csv.DictReader(text.splitlines(keepends=True)))) == 9


def test_paths_that_lead_nowhere(refused, trained, tmp_path):
    model = ["--resume", trained / "best.pth"]
    refused(predict.main, [tmp_path / "none.jpg", *model], 3, "none.jpg does not exist")
    (tmp_path / "empty").mkdir()
    refused(predict.main, [tmp_path / "empty", *model], 3, "empty leads to no photo: it holds none")
    (tmp_path / "empty" / "a.mov").touch()
    refused(predict.main, [tmp_path / "empty", *model], 3, "it holds only", "a.mov")
    refused(predict.main, [tmp_path / "empty" / "a.mov", *model], 3, "convert it to JPEG or PNG")


def test_formats_of_phones_are_read(run, orchard):
    import pillow_heif

    image = Image.open(orchard / "row 0" / "0.jpg")
    pillow_heif.from_pillow(image).save(orchard / "IMG_0042.HEIC", quality=95)
    image.save(orchard / "c.jfif", "JPEG")
    image.save(orchard / "e.gif")
    image.save(orchard / "f.avif")
    _, out, _ = run("--max-bad", "1")
    assert all(f"{name}: " in out for name in ("IMG_0042.HEIC", "c.jfif", "e.gif", "f.avif"))


def test_a_killed_command_leaves_its_rows(orchard, trained, tmp_path):
    """A real process, ended by SIGTERM while it predicts."""
    many = tmp_path / "many"
    many.mkdir()
    for number in range(400):
        os.link(orchard / "row 0" / "0.jpg", many / f"{number:03}.jpg")
    argv = [sys.executable, "-m", "tools", "predict", str(many), "--resume", str(trained / "best.pth")]
    argv += ["--csv", str(tmp_path / "a.csv"), "--batch-size", "1", "--tta", "all"]
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and (not (tmp_path / "a.csv").exists() or (tmp_path / "a.csv").stat().st_size < 2000):
        os.sched_yield()
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    rows = table(tmp_path / "a.csv")
    assert 5 < len(rows) < 400
    assert [os.path.basename(row["images"]) for row in rows] == [f"{number:03}.jpg" for number in range(len(rows))]
    assert len({tuple(row[f"p_{label}"] for label in LABELS) for row in rows}) == 1
    assert np.isfinite([float(row["confidence"]) for row in rows]).all()
