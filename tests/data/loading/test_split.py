"""Splits on disk: folders and zips, label copies and photos, junk, and augmentation independent of the worker."""

import json
import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import torch
from conftest import CODE_OF
from PIL import Image

from configs.load import load
from data.build import batches_of, build_eval_loader, build_preprocess, build_train_loader, num_workers
from data.labels import LabelSet
from data.loading.dataset import LeafDataset
from data.loading.samplers import Draw
from data.loading.sources import ZipSource
from data.loading.split import Photo, Split, describe, samples_of, scan_split
from data.manifest import MANIFEST
from tools.base.errors import DataError, UsageError

MEAN = STD = (0.5, 0.5, 0.5)


@pytest.fixture
def own(tmp_path, dataset):
    """A tree without a manifest, which a test may change."""
    shutil.copytree(dataset, tmp_path / "own", ignore=shutil.ignore_patterns("*.json", "OneHot*"))
    return tmp_path / "own"


def truth(raw, split):
    lines = (raw / split / f"{split}_label.csv").read_text().splitlines()[1:]
    return {line.split(",")[0]: {CODE_OF[label] for label in line.split(",")[1].split()} for line in lines}


def test_photos_and_copies_are_those_of_the_csv(raw, dataset):
    split, wanted = scan_split(dataset, "train"), truth(raw, "train")
    assert {p.name: {split.labels.folders[c] for c in p.classes} for p in split.photos} == wanted
    assert len(samples_of(split, "multi")) == len(wanted) == 42
    copies = samples_of(split, "single")
    assert len(copies) == sum(map(len, wanted.values()))
    assert [c.classes for c in copies] == sorted(c.classes for c in copies)
    assert describe(split).startswith(f"{dataset}/train: 42 photos, {len(copies)} copies (scab ")


def test_a_line_names_a_dozen_labels_and_counts_the_others():
    photos = [Photo("a", "a", (0, 19)), Photo("b", "b", (1,))]
    text = describe(Split("x", None, LabelSet.of_names(f"l{c:02}" for c in range(20)), photos))
    others = ", ".join(f"l{c:02} 0" for c in range(2, 12))
    assert text == f"x: 2 photos, 3 copies (l00 1, l01 1, {others}, 8 more labels)"


def test_a_tree_of_copies_is_read_like_a_tree_of_links(dataset, own):
    linked, copied = scan_split(dataset, "train"), scan_split(own, "train")
    assert [p.classes for p in linked.photos] == [p.classes for p in copied.photos]
    assert any("not checked by process_dataset.py" in note for note in copied.notes)
    assert not linked.notes
    assert linked.digest() == copied.digest()


def test_equal_names_with_other_pixels_are_two_photos(own):
    files = sorted((own / "train" / "000001").iterdir())[:1] + sorted((own / "train" / "001000").iterdir())[:1]
    for file in files:
        file.rename(file.with_name("1.jpg"))
    photos = [p for p in scan_split(own, "train").photos if p.name == "1.jpg"]
    assert [len(p.classes) for p in photos] == [1, 1]


def test_a_name_shared_by_all_folders_is_joined_by_content(own):
    """Three contents, two of them of equal size."""
    contents = (b"one", b"two", b"three", b"one", b"two", b"one")
    for code, content in zip(sorted(os.listdir(own / "train")), contents, strict=True):
        (own / "train" / code / "1.jpg").write_bytes(content)
    photos = [p.classes for p in scan_split(own, "train").photos if p.name == "1.jpg"]
    assert photos == [(0, 3, 5), (1, 4), (2,)]


def test_junk_is_ignored_and_counted(own):
    (own / "train" / ".ipynb_checkpoints").mkdir()
    shutil.copy(next((own / "train" / "000001").iterdir()), own / "train" / ".ipynb_checkpoints" / "a.jpg")
    for name in ("Thumbs.db", "._0.jpg", "notes.txt"):
        (own / "train" / "000001" / name).write_text("junk")
    split = scan_split(own, "train")
    assert split.labels.folders == tuple(sorted(CODE_OF.values()))
    assert len(split.photos) == 42
    assert any("4 hidden or foreign entries" in note for note in split.notes)


def test_a_zip_has_the_samples_of_its_folder(dataset, tmp_path):
    root = tmp_path / "zipped"
    root.mkdir()
    with zipfile.ZipFile(root / "train.zip", "w") as archive:
        for path in sorted((dataset / "train").glob("*/*")):
            archive.write(path, path.relative_to(dataset / "train"))
    folder, zipped = scan_split(dataset, "train"), scan_split(root, "train", zip_mode=True)
    assert [(p.name, p.classes) for p in zipped.photos] == [(p.name, p.classes) for p in folder.photos]
    assert all(zipped.source.read(p.file) == folder.source.read(p.file) for p in folder.photos)
    assert folder.digest() == zipped.digest()


@pytest.mark.parametrize("large", [False, True])
def test_the_digest_sees_a_byte_that_changes_at_equal_size(own, tmp_path, large):
    """At either end and, in a photo of up to 64 KiB, anywhere; a zip of the same photos has the same digest."""
    photo = next((own / "val" / "000001").iterdir())
    content = photo.read_bytes() + bytes(100_000 if large else 0)
    photo.write_bytes(content)
    zipped(own / "val", tmp_path / "val.zip")
    before = scan_split(own, "val").digest()
    assert scan_split(tmp_path, "val", zip_mode=True).digest() == before
    for place in (2, len(content) - 1, *([] if large else [len(content) // 2])):
        changed = bytearray(content)
        changed[place] ^= 1
        photo.write_bytes(changed)
        zipped(own / "val", tmp_path / "val.zip")
        after = scan_split(own, "val").digest()
        assert after != before, place
        assert scan_split(tmp_path, "val", zip_mode=True).digest() == after
    photo.write_bytes(content)
    assert scan_split(own, "val").digest() == before


def test_a_name_that_is_not_unicode_has_a_digest(own):
    photo = next((own / "val" / "000001").iterdir())
    photo.rename(os.fsdecode(os.fsencode(photo.parent) + b"/\xff.jpg"))
    assert len(scan_split(own, "val").digest()) == 64


def test_a_split_without_photos(own, dataset):
    """A prepared tree may have empty class folders, and a split of nothing else."""
    shutil.rmtree(own / "val")
    (own / "val" / "000001").mkdir(parents=True)
    manifest = json.loads((dataset / MANIFEST).read_text())
    manifest["splits"]["val"]["files"] = {}
    (own / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"own/val holds no photos"):
        scan_split(own, "val")


def zipped(split, path, prefix="", compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for photo in sorted(split.glob("*/*.jpg")):
            archive.write(photo, prefix + str(photo.relative_to(split)))
    return path


def test_a_zip_may_hold_its_split_as_a_folder(dataset, tmp_path):
    zipped(dataset / "train", tmp_path / "train.zip", "train/")
    split, folder = scan_split(tmp_path, "train", zip_mode=True), scan_split(dataset, "train")
    assert split.digest() == folder.digest()
    again = pickle.loads(pickle.dumps(split.source))
    assert again.read(split.photos[0].file) == folder.source.read(folder.photos[0].file)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_damaged_members_are_data_errors(dataset, tmp_path, compression):
    path = zipped(dataset / "val", tmp_path / "val.zip", compression=compression)
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            start = info.header_offset + 30 + len(info.filename)
            raw[start : start + info.compress_size] = b"\xff" * info.compress_size
    path.write_bytes(raw)
    source = ZipSource(path)
    code, names = next(iter(source.list_files()[0].items()))
    with pytest.raises(DataError, match=r"val\.zip:.* cannot be read"):
        source.read(f"{code}/{names[0]}")


def test_files_that_are_not_zips(dataset, tmp_path):
    os.mkfifo(tmp_path / "fifo.zip")
    raw = bytearray(zipped(dataset / "val", tmp_path / "new.zip").read_bytes())
    place = raw.find(b"PK\1\2")
    raw[place + 6] = 99  # the version that is needed to read it
    (tmp_path / "new.zip").write_bytes(raw)
    for name, words in (("fifo", "is not a file"), ("new", "cannot be read"), ("no", "cannot be read")):
        with pytest.raises(DataError, match=words):
            ZipSource(tmp_path / f"{name}.zip").list_files()


def loader_of(dataset, *opts):
    config = load(
        None, ["MODEL.TYPE", "timm", "DATA.TARGETS", "multi", "DATA.IMG_SIZE", "56", "DATA.BATCH_SIZE", "8", *opts]
    ).config
    split = scan_split(dataset, "train", config.DATA.ZIP_MODE)
    preprocess = build_preprocess(config.DATA, config.TEST, MEAN, STD)
    return build_train_loader(config.DATA, config.AUG, split, preprocess, seed=5)


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("mode", ["no", "part", "full"])
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_workers_caches_and_zips_change_no_pixel_over_three_epochs(own, tmp_path, kind, mode, workers):
    plain, root = loader_of(own, "DATA.NUM_WORKERS", "0"), own
    if kind == "zip":
        root = tmp_path
        zipped(own / "train", root / "train.zip")
    opts = ("DATA.ZIP_MODE", str(kind == "zip"), "DATA.CACHE_MODE", mode)
    other = loader_of(root, "DATA.NUM_WORKERS", workers, *opts)
    for epoch in range(3):
        plain.batch_sampler.epoch = other.batch_sampler.epoch = epoch
        batches = list(zip(batches_of(plain), batches_of(other), strict=True))
        assert len(batches) == 5
        for (images, targets), (theirs, their_targets) in batches:
            assert torch.equal(images, theirs)
            assert torch.equal(targets, their_targets)


def test_a_photo_drawn_twice_in_an_epoch_is_augmented_twice(dataset):
    data = loader_of(dataset).dataset
    first, second, again = (data[Draw(0, position, 3)][0].pixels for position in (1, 2, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_evaluation_gives_every_photo_once_in_order(dataset):
    split = scan_split(dataset, "val")
    for workers in ("0", "2"):
        config = load(None, ["DATA.BATCH_SIZE", "4", "DATA.NUM_WORKERS", workers]).config
        preprocess = build_preprocess(config.DATA, config.TEST, MEAN, STD)
        targets = torch.cat([t for _, t in batches_of(build_eval_loader(config.DATA, split, preprocess))]).numpy()
        assert [tuple(np.flatnonzero(row)) for row in targets] == [p.classes for p in split.photos]


@pytest.mark.parametrize("pinned", [True, False])
def test_both_loaders_pin_memory_where_there_is_a_gpu(dataset, monkeypatch, pinned):
    config = load(None, ["DATA.PIN_MEMORY", str(pinned), "DATA.TARGETS", "multi"]).config
    split, preprocess = scan_split(dataset, "val"), build_preprocess(config.DATA, config.TEST, MEAN, STD)

    def loaders():
        yield build_train_loader(config.DATA, config.AUG, split, preprocess, seed=0)
        yield build_eval_loader(config.DATA, split, preprocess)

    assert [loader.pin_memory for loader in loaders()] == [False, False]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [loader.pin_memory for loader in loaders()] == [pinned, pinned]


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_bad_photo_is_one_line_with_its_path_from_any_worker(own, workers):
    victim = next((own / "train" / "010000").iterdir())
    victim.write_bytes(victim.read_bytes()[:300])
    with pytest.raises(DataError) as error:
        list(batches_of(loader_of(own, "DATA.NUM_WORKERS", workers)))
    assert str(victim) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_photo_that_vanishes_after_the_listing_is_named(own):
    split = scan_split(own, "val")
    data = LeafDataset(split, split.photos, transform=np.array, finish=None)
    gone = own / "val" / split.photos[0].file
    gone.unlink()
    assert isinstance(data[0], DataError)
    assert str(gone) in str(data[0])
    Image.new("L", (9, 9)).save(gone)
    assert data[0][0].shape == (9, 9, 3)


def test_worker_counts(monkeypatch):
    assert num_workers(3) == 3
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(6)))
    assert [num_workers(-1, world_size=w) for w in (1, 2, 8)] == [6, 3, 1]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "x")
    with pytest.raises(UsageError, match="LOCAL_WORLD_SIZE=x"):
        num_workers(-1)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"format": 3}',
        '{"format": 3, "splits": 5, "duplicates": []}',
        '{"format": 3, "splits": {"train": {}}, "duplicates": []}',
        '{"format": 3, "splits": {"train": {"files": [1, 2]}}, "duplicates": []}',
        '{"format": 3, "splits": {"train": {"files": {"a": {"size": "1"}}}}, "duplicates": []}',
        '{"format": 3, "splits": {}, "duplicates": [{"members": [{"split": 1, "image": "a"}]}]}',
    ],
)
def test_a_wrong_manifest_is_a_data_error(dataset, tmp_path, text):
    own = shutil.copytree(dataset, tmp_path / "own")
    (own / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        scan_split(own, "train")
