"""The file of decoded pixels: correct, made once, made again when needed, shared, and elsewhere where needed."""

import multiprocessing
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.loading.cache import shared_pixels
from data.loading.sources import FolderSource, ZipSource
from data.prepare.tree import check_target
from tools.base.errors import DataError, ResourceError
from tools.base.files import locked

SIZES = [(30, 20), (17, 40), (8, 8), (33, 21)]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A split of four photos of different sizes, one of them turned by EXIF; the cache folder is the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    folder = tmp_path / "data" / "train" / "000001"
    folder.mkdir(parents=True)
    rng, exif = np.random.default_rng(0), Image.Exif()
    for number, (width, height) in enumerate(SIZES):
        exif[0x0112] = 6 if number == 1 else 1
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png", exif=exif)
    return folder


FILES = [f"000001/{number}.png" for number in range(len(SIZES))]


def check(pixels, photos):
    from data.images import read_image

    for file in FILES:
        assert np.array_equal(pixels(file), np.asarray(read_image(photos.parent / file)))


def test_photos_of_any_size_come_back_from_the_file_and_in_another_process(photos):
    pixels, notes = shared_pixels(FolderSource(photos.parent), FILES)
    assert notes == []
    assert [path.name for path in photos.parent.parent.iterdir() if path.is_file()] == ["train.pixels"]
    check(pixels, photos)
    check(pickle.loads(pickle.dumps(pixels)), photos)
    assert pixels(FILES[1]).shape == (17, 40, 3)  # turned


def test_it_is_made_again_only_when_a_photo_has_changed_or_the_file_is_damaged(photos):
    source, path = FolderSource(photos.parent), photos.parent.parent / "train.pixels"
    shared_pixels(source, FILES)
    made, inode = path.read_bytes(), path.stat().st_ino
    shared_pixels(source, FILES)
    assert path.stat().st_ino == inode
    for damaged in (made[:-1] + bytes([made[-1] ^ 1]), made[:-5], made[:10], b""):
        path.write_bytes(damaged)
        check(shared_pixels(source, FILES)[0], photos)
        assert path.read_bytes() == made
    old, _ = shared_pixels(source, FILES)
    before = old(FILES[2]).copy()
    Image.new("RGB", SIZES[2], (1, 2, 3)).save(photos / "2.png")
    new, _ = shared_pixels(source, FILES)
    check(new, photos)
    assert np.array_equal(old(FILES[2]), before)  # a process that has mapped the older file keeps it
    with pytest.raises(ResourceError, match="was replaced while it was in use"):
        pickle.loads(pickle.dumps(old))


def test_a_zip_shares_the_file_of_its_folder(photos):
    path = photos.parent.parent / "train.pixels"
    with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
        for file in FILES:
            archive.write(photos.parent / file, file)
    shared_pixels(FolderSource(photos.parent), FILES)
    inode = path.stat().st_ino
    source = ZipSource(path.with_suffix(".zip"))
    source.list_files()
    check(shared_pixels(source, FILES)[0], photos)
    assert path.stat().st_ino == inode


def make(folder: Path, gate, made) -> None:
    gate.wait()
    shared_pixels(FolderSource(folder), FILES)
    made.put((folder.parent / "train.pixels").stat().st_ino)


def test_of_several_processes_one_makes_it(photos):
    context = multiprocessing.get_context("fork")
    gate, made = context.Barrier(4), context.Queue()
    ranks = [context.Process(target=make, args=(photos.parent, gate, made)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    inodes = {made.get(timeout=60) for _ in ranks}
    for rank in ranks:
        rank.join()
    assert len(inodes) == 1
    assert sorted(path.name for path in photos.parent.parent.iterdir()) == ["train", "train.pixels"]


def test_where_the_data_cannot_be_written_the_cache_folder_is_used_and_reported(photos, tmp_path):
    (photos.parent.parent / "train.pixels").mkdir()  # not even root can put a file there
    pixels, (note,) = shared_pixels(FolderSource(photos.parent), FILES)
    check(pixels, photos)
    assert pixels.path.parent == tmp_path / "home" / "plantswin"
    assert str(pixels.path) in note
    assert "train.pixels cannot be written" in note
    shutil.rmtree(tmp_path / "home")
    (tmp_path / "home").write_text("a file")
    with pytest.raises(ResourceError, match="--cache-mode no"):
        shared_pixels(FolderSource(photos.parent), FILES)


def test_files_of_a_killed_writer_are_removed_and_a_bad_photo_leaves_none(photos):
    folder = photos.parent.parent
    (folder / ".train.pixels.tmp-123").mkdir()
    (folder / ".train.pixels.tmp-123" / "train.pixels").write_bytes(b"half")
    (photos / "3.png").write_bytes((photos / "3.png").read_bytes()[:200])
    with pytest.raises(DataError, match=r"3\.png cannot be decoded"):
        shared_pixels(FolderSource(photos.parent), FILES)
    assert [path.name for path in folder.iterdir()] == ["train"]


def test_the_prepared_tree_may_be_replaced_with_the_file_in_it(dataset, tmp_path):
    own = shutil.copytree(dataset, tmp_path / "own")
    (own / "train.pixels").write_bytes(b"x")
    with locked(own):
        check_target(own, {}, overwrite=True)


def test_a_worker_passes_no_view_of_the_file(photos):
    """torch may write to its input, which must not be the read-only map."""
    from data.loading.transforms import TrainTransform
    from tests.data.loading.test_transforms import OFF, settings

    pixels, _ = shared_pixels(FolderSource(photos.parent), FILES)
    view = TrainTransform(settings(**OFF, input_size=8, scale=[1, 1], ratio=[1, 1]))(pixels(FILES[2]))
    view.pixels.zero_()
    check(pixels, photos)
