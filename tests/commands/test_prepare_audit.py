"""process_dataset.py as an audit: what it finds in the photos, --split, --size, --balance, and sudden ends."""

import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from collections import Counter

import numpy as np
import pytest
from conftest import CODE_OF, ROOT, SHARED
from PIL import Image, ImageEnhance

import main
import process_dataset
from configs.load import load
from data.images import read_image
from data.labels import is_balanced_copy, origin_name
from data.loading.split import scan_split
from data.manifest import duplicate_groups, read_manifest
from tools.base.errors import DataError
from tools.base.files import locked
from tools.runtime.distributed import Ranks
from tools.train.data import load_data, scan_splits

COMMAND = [sys.executable, str(ROOT / "process_dataset.py")]


def run(*arguments):
    return process_dataset.main([str(a) for a in arguments])


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def add_row(split, name, labels):
    with (split / f"{split.name}_label.csv").open("a") as file:
        file.write(f"{name},{labels}\n")


@pytest.fixture
def source(tmp_path, raw):
    return shutil.copytree(raw, tmp_path / "plant_dataset")


@pytest.fixture
def pool(tmp_path, raw):
    """Kaggle's layout: the 42 training leaves in one folder beside one CSV."""
    folder = tmp_path / "kaggle"
    shutil.copytree(raw / "train" / "images", folder / "train_images")
    shutil.copy(raw / "train" / "train_label.csv", folder / "train.csv")
    return folder


# ---------------------------------------------------------------- what is found


def test_unusual_files_are_counted_and_made_usual(source, tmp_path):
    images = source / "val" / "images"
    first, second, third, fourth = sorted(images.iterdir())[:4]
    wanted = Image.open(first).convert("RGB")
    wanted.save(first, "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(second).transpose(Image.Transpose.ROTATE_90).resize((160, 120)).save(second, "JPEG", exif=exif)
    Image.open(third).convert("L").save(third, "JPEG")
    frames = Image.open(fourth)
    frames.save(fourth, "PNG", save_all=True, append_images=[frames.transpose(Image.Transpose.ROTATE_180)])

    assert run("--src", source, "--dst", tmp_path / "d", "--size", 64) == 0
    facts = read_manifest(tmp_path / "d")["splits"]["val"]["facts"]
    assert facts == {
        "sizes": {"160x160": 12, "120x160": 1},
        "modes": {"RGB": 12, "L": 1},
        "formats": {"JPEG": 11, "PNG": 2},
        "turned": 1,
        "animated": 1,
        "misnamed": 2,
    }
    placed = {p.name: p for p in (tmp_path / "d" / "val").glob("*/*")}
    for path in placed.values():
        with Image.open(path) as image:
            assert (image.format, min(image.size), image.mode) == ("JPEG", 64, "RGB")
            assert not image.getexif()
    small = np.asarray(Image.open(placed[first.name]), float)
    assert np.abs(small - np.asarray(wanted.resize((64, 64), Image.Resampling.BOX))).mean() < 6
    assert Image.open(placed[second.name]).size == (64, 85)


def test_duplicates_are_listed_with_their_labels(source, tmp_path, capsys):
    images = source / "train" / "images"
    one, other = sorted(images.iterdir())[:2]
    labels = dict(line.split(",") for line in (source / "train" / "train_label.csv").read_text().splitlines()[1:])
    shutil.copy(one, images / "copy.jpg")
    add_row(source / "train", "copy.jpg", labels[one.name])
    ImageEnhance.Brightness(Image.open(other)).enhance(1.1).save(images / "bright.jpg", quality=60)
    add_row(source / "train", "bright.jpg", "complex rust scab")
    assert run("--src", source, "--dst", tmp_path / "d") == 0
    out = capsys.readouterr().out
    assert f"exact duplicates: train/{one.name}" in out
    assert f"near duplicates, labelled differently: train/{other.name}" in out
    manifest = read_manifest(tmp_path / "d")
    assert sorted((t["kind"], t["contradicting"], t["leak"]) for t in manifest["duplicates"]) == [
        ("exact", False, False),
        ("near", True, False),
    ]
    for group in manifest["duplicates"]:
        for member in group["members"]:
            placed = tmp_path / "d" / "train" / CODE_OF[member["labels"][0]] / member["image"]
            assert hashlib.sha256(placed.read_bytes()).hexdigest() == member["sha256"]
    groups = duplicate_groups(manifest, "train")
    assert sorted(map(sorted, groups)) == sorted(map(sorted, [{one.name, "copy.jpg"}, {other.name, "bright.jpg"}]))
    assert duplicate_groups(manifest, "val") == []


def test_a_leak_across_splits_is_an_error_that_can_be_allowed(source, tmp_path, refused):
    one = sorted((source / "train" / "images").iterdir())[0]
    shutil.copy(one, source / "test" / "images" / "seen.jpg")
    add_row(source / "test", "seen.jpg", "rust")
    arguments = ["--src", source, "--dst", tmp_path / "d"]
    refused(process_dataset.main, arguments, 3, f"train/{one.name} = test/seen.jpg", "--allow-leak")
    assert list(tmp_path.iterdir()) == [source]
    assert run(*arguments, "--allow-leak") == 0
    manifest = read_manifest(tmp_path / "d")
    assert [group["leak"] for group in manifest["duplicates"]] == [True]
    assert duplicate_groups(manifest, "train") == []
    assert run(*arguments, "--no-duplicates", "--overwrite") == 0
    assert read_manifest(tmp_path / "d")["duplicates"] == []


def test_the_report_is_complete_and_self_contained(source, tmp_path, capsys):
    victim, other = sorted((source / "train" / "images").iterdir())[:2]
    victim.write_bytes(victim.read_bytes()[:500])
    shutil.copy(other, source / "train" / "images" / "again.jpg")
    add_row(source / "train", "again.jpg", "complex")
    (source / "val" / "images" / "<b>.jpg").write_text("no row")
    (source / "val" / "images" / "Thumbs.db").write_text("junk")
    os.close(os.open(os.fsencode(source / "val" / "images") + b"/\xff\n.jpg", os.O_CREAT))
    assert run("--src", source, "--dst", tmp_path / "d", "--max-bad", 1, "--max-missing", 2, "--balance") == 0
    assert "left out: val/\\udcff\\n.jpg" in capsys.readouterr().out
    page = (tmp_path / "d" / "report.html").read_text()
    for text in (f"train/{victim.name}: cannot be decoded", "val/&lt;b&gt;.jpg", "train/again.jpg", *CODE_OF):
        assert text in page
    assert "val: 1 hidden or foreign entries ignored" in page
    assert not re.search(r"(src|href)=\"?http|<script|url\(", page)
    pictures = page.count("data:image/jpeg;base64,")
    counts = read_manifest(tmp_path / "d")["splits"]["train"]["labels"]
    assert 0 < pictures - 2 <= sum(min(12, n) for n in counts.values())


@pytest.mark.skipif(not SHARED.is_dir(), reason="the course's photos are not on this machine (PLANT_DATASET)")
def test_the_real_photos_give_the_known_counts_and_exactly_the_known_duplicates(tmp_path):
    assert run("--src", SHARED, "--dst", tmp_path / "d") == 0
    assert len(list((tmp_path / "d" / "train").glob("*/*"))) == 3250
    assert len(list((tmp_path / "d" / "val").glob("*/*"))) == 643
    duplicates = read_manifest(tmp_path / "d")["duplicates"]
    assert {(t["kind"], t["contradicting"], *sorted(m["image"][:4] for m in t["members"])) for t in duplicates} == {
        ("exact", True, "8589", "ec83"),
        ("exact", True, "a3bb", "e7ec"),
        ("near", False, "ab91", "abb0"),
    }


# ---------------------------------------------------------------- --split, --size, --balance


def test_split_cuts_by_combination_and_keeps_duplicates_together(pool, tmp_path):
    names = sorted(p.name for p in (pool / "train_images").iterdir())
    duplicates = {name: f"{name[:-4]}b.jpg" for name in names[::6]}
    with (pool / "train.csv").open("a") as file:
        for name, duplicate in duplicates.items():
            Image.open(pool / "train_images" / name).save(pool / "train_images" / duplicate, quality=50)
            file.write(f"{duplicate},scab\n")
    assert run("--src", pool, "--dst", tmp_path / "d", "--split", 0.5, 0.25, 0.25, "--seed", 3) == 0
    split_of = {p.name: p.parent.parent.name for p in (tmp_path / "d").glob("*/*/*.jpg")}
    assert set(split_of) == {*names, *duplicates.values()}
    assert all(split_of[name] == split_of[duplicate] for name, duplicate in duplicates.items())
    counts = Counter(split_of.values())
    assert abs(counts["train"] - 49 / 2) <= 4
    assert min(counts["val"], counts["test"]) >= 49 / 4 - 4
    manifest = read_manifest(tmp_path / "d")
    for combination in ("scab", "rust", "healthy"):
        train, rest = (
            sum(manifest["splits"][s]["combinations"].get(combination, 0) for s in g)
            for g in (["train"], ["val", "test"])
        )
        assert abs(train - rest) <= 3
    assert run("--src", pool, "--dst", tmp_path / "other", "--split", 0.5, 0.25, 0.25, "--seed", 4) == 0
    assert split_of != {p.name: p.parent.parent.name for p in (tmp_path / "other").glob("*/*/*.jpg")}


def test_a_pool_is_found_in_any_sensible_place_or_what_was_looked_for_is_said(pool, tmp_path, refused):
    arguments = ["--src", pool, "--dst", tmp_path / "d", "--split", 0.5, 0.5, 0]
    refused(process_dataset.main, ["--src", pool, "--dst", tmp_path / "d"], 3, "--split 0.8 0.1 0.1")
    (pool / "train_images").rename(pool / "images")
    (pool / "train.csv").rename(pool / "labels.csv")
    assert run(*arguments) == 0
    shutil.copy(pool / "labels.csv", pool / "more.csv")
    refused(process_dataset.main, arguments, 3, "train.csv or a single CSV", "labels.csv, more.csv")
    refused(process_dataset.main, ["--src", tmp_path, *arguments[2:]], 3, "train_images/, images/")
    refused(process_dataset.main, [*arguments[:3], pool / "images" / "d", *arguments[4:]], 3, "single CSV")
    (pool / "more.csv").unlink()
    refused(process_dataset.main, [*arguments[:3], pool / "images" / "d", *arguments[4:]], 2, "inside the other")
    for photo in (pool / "images").iterdir():
        photo.rename(pool / photo.name)
    assert run(*arguments, "--overwrite") == 0


def test_too_few_photos_for_the_splits(pool, tmp_path, refused):
    lines = (pool / "train.csv").read_text().splitlines()
    (pool / "train.csv").write_text("\n".join(lines[:3]))
    arguments = ["--src", pool, "--dst", tmp_path / "d", "--split", 0.5, 0.25, 0.25, "--max-missing", 99]
    refused(process_dataset.main, arguments, 3, "2 photos are too few", "--split")
    assert list(tmp_path.iterdir()) == [pool]


def test_size_writes_smaller_copies_and_leaves_small_photos_alone(source, tmp_path):
    small = sorted((source / "val" / "images").iterdir())[0]
    Image.open(small).resize((50, 60)).save(small)
    original = small.read_bytes()
    for quality, squash in ((95, []), (50, ["--squash"])):
        target = tmp_path / str(quality)
        assert run("--src", source, "--dst", target, "--size", 64, "--quality", quality, *squash) == 0
        for path in target.glob("*/*/*.jpg"):
            side = Image.open(path).size
            assert side == ((50, 50) if squash else (50, 60)) if path.name == small.name else (64, 64)
            if path.name == small.name and not squash:
                assert path.read_bytes() == original
        for name, split in read_manifest(target)["splits"].items():
            for file, entry in split["files"].items():
                content = (target / name / file).read_bytes()
                assert entry == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert sum(p.stat().st_size for p in (tmp_path / "50").glob("*/*/*.jpg")) < 0.6 * sum(
        p.stat().st_size for p in (tmp_path / "95").glob("*/*/*.jpg")
    )


def test_balance_lifts_rare_labels_of_the_training_split_and_scoring_never_sees_it(source, tmp_path, tiny):
    assert run("--src", source, "--dst", tmp_path / "d", "--balance") == 0
    plain, made = scan_split(tmp_path / "d", "train"), scan_split(tmp_path / "d", "train", balanced_copies=True)
    copies = [photo for photo in made.photos if is_balanced_copy(photo.name)]
    assert plain.photos == [photo for photo in made.photos if not is_balanced_copy(photo.name)]
    assert len(plain.labels.names) == len(made.labels.names) == 6
    assert any("files made by --balance left out" in note for note in plain.notes)
    assert not made.notes
    classes = {photo.name: photo.classes for photo in plain.photos}
    assert copies
    for photo in copies:
        assert photo.classes == classes[origin_name(photo.name)]  # a folder for every label of the original
        assert origin_name(photo.name) != photo.name
    before, after = ([sum(c in p.classes for p in photos) for c in range(6)] for photos in (plain.photos, made.photos))
    for count, lifted in zip(before, after, strict=True):
        assert lifted >= min(np.mean(before), 4 * count)
    for split in ("val", "test"):
        assert not any(
            is_balanced_copy(photo.name) for photo in scan_split(tmp_path / "d", split, balanced_copies=True).photos
        )
    assert ".made-" not in (tmp_path / "d" / "OneHot-train_label.csv").read_text()
    loaded, splits = scan_splits(load(tiny, ["DATA.DATA_PATH", str(tmp_path / "d")]))
    data = load_data(loaded.config, splits, Ranks())
    assert (data.train.photos, data.val.photos) == (made.photos, scan_split(tmp_path / "d", "val").photos)
    flip = next(photo for photo in copies if ".made-flip" in photo.name)
    pixels = [
        np.asarray(Image.open(tmp_path / "d" / "train" / file), float)
        for file in (flip.file, flip.file.replace(flip.name, origin_name(flip.name)))
    ]
    assert np.abs(pixels[0] - pixels[1][:, ::-1]).mean() < 3


def test_a_changed_file_is_noticed_by_its_size(source, tmp_path):
    assert run("--src", source, "--dst", tmp_path / "d", "--mode", "copy") == 0
    victim = next((tmp_path / "d" / "train").glob("*/*"))
    victim.write_bytes(victim.read_bytes()[:-7])
    with pytest.raises(DataError, match=f"{victim.name} has changed since"):
        scan_split(tmp_path / "d", "train")


# ---------------------------------------------------------------- sudden ends


def test_the_same_command_gives_the_same_bytes(pool, tmp_path):
    arguments = ["--src", pool, "--split", 0.6, 0.2, 0.2, "--size", 48, "--balance"]
    for name in ("a", "b"):
        assert run(*arguments, "--dst", tmp_path / name) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*")}
    assert run(*arguments, "--dst", tmp_path / "a") == 0
    assert times == {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*")}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_in_the_middle_leaves_nothing(source, tmp_path, monkeypatch, refused, number):
    def interrupt(items, _description, _total):
        for count, item in enumerate(items):
            if count == 20:
                assert any(".tmp-" in p.name for p in tmp_path.iterdir())
                os.kill(os.getpid(), number)
            yield item

    monkeypatch.setattr("tools.base.log.progress", interrupt)
    refused(process_dataset.main, ["--src", source, "--dst", tmp_path / "d", "--size", 64], 128 + number)
    assert list(tmp_path.iterdir()) == [source]


def test_killed_at_random_moments_there_is_always_a_whole_tree(source, tmp_path):
    """Twelve kills while the tree is replaced by another one again and again; the first may leave none."""
    rng, whole, target = random.Random(0), {}, tmp_path / "d"
    for size in (48, 64):
        assert run("--src", source, "--dst", tmp_path / str(size), "--size", size) == 0
        whole[size] = contents(tmp_path / str(size))
    command = [*COMMAND, "--src", str(source), "--dst", str(target), "--overwrite", "--size"]
    start = time.perf_counter()
    subprocess.run([*command, "48"], check=True, stdout=subprocess.DEVNULL)
    duration = time.perf_counter() - start
    shutil.rmtree(target)
    for attempt in range(12):
        existed = target.exists()
        process = subprocess.Popen([*command, str((48, 64)[attempt % 2])], stdout=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.3, 1.05) * duration)
        process.kill()
        process.wait()
        assert target.exists() or not existed
        if target.exists():
            assert contents(target) in whole.values()
    subprocess.run([*command, "48"], check=True, stdout=subprocess.DEVNULL)
    assert contents(target) == whole[48]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_of_two_at_once_one_wins(source, tmp_path, refused):
    with locked(tmp_path / "d"):
        refused(process_dataset.main, ["--src", source, "--dst", tmp_path / "d"], 7, "in use by process")
    assert list(tmp_path.iterdir()) == [source]
    command = [*COMMAND, "--src", str(source), "--dst", str(tmp_path / "d"), "--size", "64", "--balance"]
    two = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)]
    codes = {process.wait() for process in two}
    assert 0 in codes <= {0, 7}
    assert len(scan_split(tmp_path / "d", "train").photos) == 42
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "plant_dataset"]


# ---------------------------------------------------------------- photos of any origin


def test_one_rule_says_what_a_photo_is(source, tmp_path, refused):
    """What process_dataset.py takes, training and scoring list; another extension is refused, not left out."""
    import pillow_heif

    train = source / "train"
    photo = Image.open(sorted((train / "images").iterdir())[0])
    for name in ("a.jfif", "b.jpe", "c.gif", "d.avif", "e.HEIC", "f.tif"):
        if name == "e.HEIC":
            pillow_heif.from_pillow(photo).save(train / "images" / name)
        else:
            photo.transpose(Image.Transpose.ROTATE_90).resize((40 + ord(name[0]), 90)).save(train / "images" / name)
        add_row(train, name, "rust")
    assert run("--src", source, "--dst", tmp_path / "d", "--no-duplicates") == 0
    listed = {photo.name for photo in scan_split(tmp_path / "d", "train").photos}
    assert {"a.jfif", "b.jpe", "c.gif", "d.avif", "e.HEIC", "f.tif"} <= listed
    assert run("--src", source, "--dst", tmp_path / "small", "--no-duplicates", "--size", 32, "--balance") == 0
    for photo in scan_split(tmp_path / "small", "train", balanced_copies=True).photos:
        assert min(read_image(tmp_path / "small" / "train" / photo.file).size) == 32
    shutil.copy(train / "images" / "f.tif", train / "images" / "g.xyz")
    add_row(train, "g.xyz", "rust")
    argv = ["--src", source, "--dst", tmp_path / "e"]
    refused(process_dataset.main, argv, 3, "g.xyz is not named like a photo", "convert it to JPEG or PNG")


def test_folders_of_programs_are_no_classes(source, tmp_path, tiny, refused):
    assert run("--src", source, "--dst", tmp_path / "d") == 0
    train = tmp_path / "d" / "train"
    photo = next((train / "000001").iterdir())
    for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX", "lost+found", ".thumbnails"):
        (train / name).mkdir()
        shutil.copy(photo, train / name / "x.jpg")
    split = scan_split(tmp_path / "d", "train")
    assert split.labels.folders == tuple(sorted(CODE_OF.values()))
    assert any("5 hidden or foreign entries ignored" in note and "@eaDir" in note for note in split.notes)
    (train / "notes").mkdir()
    argv = ["--cfg", tiny, "--data-path", tmp_path / "d", "--output", tmp_path / "o"]
    refused(main.main, argv, 3, "train/notes is empty", "remove the folder")


def test_a_name_that_differs_in_accents_or_case_only_is_named(source, tmp_path, refused):
    images = source / "train" / "images"
    shutil.copy(next(images.iterdir()), images / unicodedata.normalize("NFD", "café.jpg"))
    shutil.copy(next(images.iterdir()), images / "upper.JPG")
    add_row(source / "train", unicodedata.normalize("NFC", "café.jpg"), "rust")
    add_row(source / "train", "upper.jpg", "rust")
    argv = ["--src", source, "--dst", tmp_path / "d"]
    refused(process_dataset.main, argv, 3, "2 rows without a photo", "upper.jpg (there is upper.JPG)", "(there is caf")


def test_photos_whose_format_cannot_hold_colours_are_made_smaller(source, tmp_path):
    """A fax TIFF's compression is for one-bit pixels, and a one-bit PNG's transparency is not for RGB."""
    train = source / "train"
    dots = Image.fromarray(np.random.default_rng(0).random((90, 120)) > 0.5)
    for name, options in (("fax.tif", {"compression": "group4"}), ("bit.png", {"transparency": 0})):
        dots.save(train / "images" / name, **options)
        add_row(train, name, "rust")
    assert run("--src", source, "--dst", tmp_path / "d", "--size", 64, "--no-duplicates") == 0
    for name in ("fax.tif", "bit.png"):
        small = read_image(tmp_path / "d" / "train" / CODE_OF["rust"] / name)
        wanted = dots.convert("RGB").resize((85, 64), Image.Resampling.LANCZOS)
        assert np.array_equal(np.asarray(small), np.asarray(wanted))


def test_a_full_disk_is_named_by_the_file_that_did_not_fit(source, tmp_path):
    """In a file system of its own, of 60 KB."""
    (tmp_path / "small").mkdir()
    script = f'mount -t tmpfs -o size=60k tmpfs {tmp_path / "small"} && exec "$@"'
    inside = ["unshare", "--mount", "sh", "-c", script, "sh"]
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system")
    argv = ["--src", source, "--dst", tmp_path / "small" / "d", "--mode", "copy"]
    made = subprocess.run([*inside, *COMMAND, *map(str, argv)], capture_output=True, text=True, check=False)
    assert made.returncode == 5, made.stderr
    assert re.fullmatch(rf"error: {tmp_path}/small/.* cannot be written: No space left on device\n", made.stderr)


def test_names_cut_at_their_spaces_and_misspelt_folders_are_noted(pool, tmp_path, capsys):
    photos = sorted((pool / "train_images").iterdir())
    names = ["Black rot" if index < 20 else "Downy mildew" for index in range(len(photos))]
    table = pool / "train.csv"
    table.write_text("image,labels\n" + "".join(f"{p.name},{n}\n" for p, n in zip(photos, names, strict=True)))
    split = ("--split", 0.5, 0.25, 0.25, "--no-duplicates")
    assert run("--src", pool, "--dst", tmp_path / "words", *split) == 0
    out = capsys.readouterr().out
    assert "Black, rot are always together" in out
    assert "Downy, mildew are always together" in out
    table.write_text(table.read_text().replace("labels", "label"))
    assert run("--src", pool, "--dst", tmp_path / "names", *split) == 0
    assert "always together" not in capsys.readouterr().out
    table.write_text(table.read_text().replace("Black rot", "Blak rot", 1).replace("Downy mildew", "Black rot"))
    assert run("--src", pool, "--dst", tmp_path / "typo", *split, "--label-set", "found", "--overwrite") == 0
    assert "holds the line Blak rot: Black rot" in capsys.readouterr().out


def test_an_excel_workbook_beside_the_photos_is_named_with_what_to_do(pool, tmp_path, refused):
    (pool / "train.csv").rename(pool / "labels.xlsx")
    arguments = ["--src", pool, "--dst", tmp_path / "d", "--split", 0.5, 0.5, 0]
    refused(process_dataset.main, arguments, 3, "found labels.xlsx", "CSV UTF-8")
