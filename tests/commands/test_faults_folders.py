"""Faults in data set folders and archives (E, N4, N5): exit code 3, one line that names the place, no trace."""

import os
import shutil
import zipfile
from pathlib import Path

import pytest
from conftest import CODE_OF, snapshot, without_privileges
from provoke import NO_FILES, faults, large, put

import main
import process_dataset
import test as referee
from data.manifest import MANIFEST

CODES = sorted(CODE_OF.values())


@pytest.fixture
def tree(dataset, tmp_path):
    """A tree called `tree` without a manifest, which a test may change."""
    left = shutil.ignore_patterns(MANIFEST, "OneHot*")
    return shutil.copytree(dataset, tmp_path / "tree", ignore=left, copy_function=os.link)


def empty(folder):
    for photo in folder.iterdir():
        photo.unlink()


def keep_one(split):
    for folder in split.iterdir():
        for photo in sorted(folder.iterdir())[1:]:
            photo.unlink()


def keep_one_class(tree):
    for split in ("train", "val"):
        for code in CODES[1:]:
            shutil.rmtree(tree / split / code)


def twice(tree):
    for name in ("Rust", "rust"):
        shutil.copytree(tree / "train" / "000001", tree / "train" / name)


def at(place, make):
    """A function of the tree that calls `make` with that path in it."""
    return lambda tree: make(tree / place)


def gone(place, make=None):
    """A function of the tree that removes that folder and calls `make` with its path."""
    return lambda tree: (shutil.rmtree(tree / place), make and make(tree / place))


def manifest(text):
    return at(MANIFEST, lambda path: path.write_text(text))


def link(target):
    return lambda path: path.symlink_to(target)


CLIMBING = '{"format": 3, "splits": {"train": {"files": {"../../x": {"size": 1}}}}, "duplicates": []}'
NO_PHOTOS = {kind: NO_FILES[kind] for kind in ("folder", "fifo", "socket", "dangling", "loop")}
NO_MANIFESTS = {kind: make for kind, make in NO_FILES.items() if kind != "nothing"}
FOLDERS = [
    ("E1", gone("."), 3, "tree/train is not a folder"),
    ("E1", gone("train"), 3, "tree/train is not a folder"),
    ("E1", gone("val"), 3, "tree/val is not a folder"),
    ("E1", gone("val", Path.touch), 3, "tree/val is not a folder"),
    ("E1", gone("val", os.mkfifo), 3, "tree/val is not a folder"),
    ("E1", gone("val", link("val")), 3, "tree/val is not a folder"),
    ("E1", gone("val", Path.mkdir), 3, "tree/val holds no class folders"),
    ("E2", at("train/000010", empty), 3, "tree/train/000010 is empty"),
    ("E2", at("val/000010", empty), 3, "tree/val/000010 is empty"),
    ("E4", lambda tree: shutil.copytree(tree / "val" / "000001", tree / "val" / "zz"), 3, "tree/val/zz is not a class"),
    ("E4", lambda tree: os.mkdir(os.fsencode(tree / "val") + b"/\xff"), 3, "tree/val: class folder '\\udcff'"),
    ("E7", twice, 3, "upper and lower case"),
    ("E10", at("train/zz", link("/etc")), 3, "tree/train/zz is a link out of tree/train"),
    ("E10", at("val/zz", link("..")), 3, "tree/val/zz is a link out of tree/val"),
    ("E10", at("train/zz", link("zz")), 3, "tree/train/zz is a link that does not lead to a folder"),
    ("E10", at("train/000001/z.jpg", link("/etc/passwd")), 3, "z.jpg is a link out of tree/train; remove it, or add"),
    ("E11", manifest('{"format": 3, "splits": {"train": {'), 3, "manifest.json is damaged"),
    ("E11", at(MANIFEST, large(2**31)), 3, "manifest.json is larger than"),
    *(("E11", at(MANIFEST, make), 3, MANIFEST) for make in NO_MANIFESTS.values()),
    ("C17", manifest(CLIMBING), 3, "since process_dataset.py"),
    ("E13", at("train", keep_one), 2, "do not fill one batch"),
    ("E14", keep_one_class, 3, "tree/train has only one class folder, 000001; add"),
    *(("D19", at("train/000010/z.jpg", make), 3, "z.jpg is not a file") for make in NO_PHOTOS.values()),
]


@faults("spoil, code, words", FOLDERS)
def test_a_tree_that_cannot_be_trained_on(fault, tree, tiny, spoil, code, words):
    spoil(tree)
    fault(main.main, ["--cfg", tiny, "--data-path", "tree", "--output", "out"], code, words)


def test_a_read_only_tree_is_used_and_not_changed_e16(tree, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    for path in [tmp_path, tree, *tree.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = snapshot(tree)
    with without_privileges():
        arguments = ["--cfg", str(tiny), "--data-path", "tree", "--output", "out", "--opts", "TRAIN.MAX_STEPS", "1"]
        assert main.main(arguments) == 0
    for folder in (tmp_path, tree, *(path for path in tree.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
    assert snapshot(tree).keys() == before.keys()


def unlabelled(raw):
    shutil.copy(next((raw / "train" / "images").iterdir()), raw / "val" / "images" / "new.jpg")


def link_out(raw):
    photo = next((raw / "train" / "images").iterdir())
    photo.rename(raw.parent / "secret.jpg")
    photo.symlink_to(raw.parent / "secret.jpg")


RAW = [
    ("E1", gone("."), "raw is not a folder"),
    ("E1", gone("train/images"), "raw/train/images is not a folder"),
    ("E10", link_out, "is a link out of raw; remove it, or add --follow-links"),
    ("C16", unlabelled, "photos without a row: val/new.jpg"),
]


@faults("spoil, words", RAW)
def test_a_raw_folder_that_cannot_be_prepared(fault, tmp_path, raw, spoil, words):
    own = shutil.copytree(raw, tmp_path / "raw", copy_function=os.link)
    spoil(own)
    fault(process_dataset.main, ["--src", "raw", "--dst", "d"], 3, words)


def test_links_are_followed_with_the_flag_e10(tmp_path, raw, trained, capsys):
    own = shutil.copytree(raw, tmp_path / "raw", copy_function=os.link)
    photo = sorted((own / "test" / "images").iterdir())[0]
    photo.rename(tmp_path / photo.name)
    photo.symlink_to(tmp_path / photo.name)
    arguments = ["--src", own, "--dst", tmp_path / "d", "--follow-links"]
    assert process_dataset.main([str(a) for a in arguments]) == 0
    placed = next((tmp_path / "d" / "test").glob(f"*/{photo.name}"))
    assert placed.samefile(tmp_path / photo.name)
    assert not placed.is_symlink()
    (tmp_path / "d" / "test").rename(tmp_path / "elsewhere")
    (tmp_path / "d" / "test").mkdir()
    for folder in (tmp_path / "elsewhere").iterdir():
        (tmp_path / "d" / "test" / folder.name).symlink_to(folder)
    capsys.readouterr()
    arguments = [
        "--resume",
        trained / "best.pth",
        "--data-path",
        tmp_path / "d",
        "--follow-links",
        "--to",
        tmp_path / "to",
    ]
    assert referee.main([*(str(a) for a in arguments), "--follow-links"]) == 0
    assert "test: 14 photos" in capsys.readouterr().out


@pytest.mark.parametrize("mask", [0o077, 0o022])
def test_modes_obey_the_umask_i10(tmp_path, raw, mask):
    before = os.umask(mask)
    try:
        assert process_dataset.main(["--src", str(raw), "--dst", str(tmp_path / "d"), "--mode", "copy"]) == 0
    finally:
        os.umask(before)
    for path in (tmp_path / "d", *(tmp_path / "d").rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~mask, path


# ---------------------------------------------------------------- archives


def write_archive(path, split, extra=(), deflated=False, change=None):
    """Zips the photos of `split` and `extra` (name, bytes), and applies `change` to the bytes of the archive."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as file:
        for photo in sorted(split.glob("*/*.jpg")):
            file.write(photo, photo.relative_to(split))
        for name, content in extra:
            file.writestr(name, content)
    if change:
        path.write_bytes(change(path.read_bytes()))


def with_flag(content: bytes) -> bytes:
    """Every member marked as encrypted."""
    changed, place = bytearray(content), content.find(b"PK\1\2")
    while place >= 0:
        changed[place + 8] |= 1
        place = content.find(b"PK\1\2", place + 4)
    return bytes(changed)


def with_small_size(content: bytes) -> bytes:
    """The last member declared to have 1,000 bytes."""
    place = content.rfind(b"PK\1\2")
    return content[: place + 24] + (1000).to_bytes(4, "little") + content[place + 28 :]


def as_latin(content: bytes) -> bytes:
    """A name declared to be UTF-8 that is not."""
    return content.replace("\xe9".encode(), b"\xff\xff")


JUNK, ZEROS = b"\xff\xd8\xff", bytes(30_000_000)
CLIMBERS = ("../a.jpg", "000001/../../a.jpg", "/etc/a.jpg", "..\\a.jpg")
ARCHIVES = [
    *(("N4", {"extra": [(name, JUNK)]}, "leads out of the archive") for name in CLIMBERS),
    ("N4", {"extra": [("000001/a.jpg", JUNK), ("000001/a.jpg", b"")]}, "member 000001/a.jpg occurs twice"),
    ("N4", {"extra": [("000001/a.jpg", b"PK\3\4")]}, "test.zip:000001/a.jpg cannot be decoded"),
    ("N4", {"extra": [("zz/a.jpg", JUNK)]}, "test.zip/zz is not a class"),
    ("N4", {"extra": [("000001/\xe9.jpg", JUNK)], "change": as_latin}, "cannot be read as a zip archive"),
    ("N4", {"change": with_flag}, "is encrypted"),
    ("N4", {"change": lambda content: content[: len(content) // 2]}, "cannot be read as a zip archive"),
    ("N5", {"extra": [("000001/a.jpg", 7 * ZEROS)], "deflated": True}, "is larger than 200,000,000 bytes"),
    ("N5", {"extra": [("000001/a.jpg", ZEROS)], "deflated": True, "change": with_small_size}, "Bad CRC-32"),
]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@faults("parts, words", ARCHIVES)
def test_a_wrong_archive(fault, tmp_path, dataset, trained, parts, words):
    (tmp_path / "zips").mkdir()
    write_archive(tmp_path / "zips" / "test.zip", dataset / "test", **parts)
    arguments = ["--resume", trained / "best.pth", "--data-path", "zips", "--zip", "--to", "to"]
    fault(referee.main, [*arguments, "--opts", "DATA.NUM_WORKERS", "0"], 3, "test.zip", words)


NO_ARCHIVES = ["", "text", b"PK\x05\x06" + bytes(18), *NO_FILES.values()]


@faults("content", [("N4", content) for content in NO_ARCHIVES])
def test_a_file_that_is_not_an_archive(fault, tmp_path, tiny, content):
    (tmp_path / "zips").mkdir()
    put(tmp_path / "zips" / "train.zip", content)
    fault(main.main, ["--cfg", tiny, "--data-path", "zips", "--zip", "--output", "out"], 3, "train.zip")
