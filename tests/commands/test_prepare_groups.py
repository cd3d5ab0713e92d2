"""process_dataset.py --group and --group-pattern: photos of a tree or an orchard stay in one split and in one fold."""

import json
import shutil
from collections import Counter

import pytest
from PIL import Image

import main
import process_dataset
from configs.load import load
from data.manifest import read_manifest
from tools.train.data import scan_splits

SPLIT = ["--split", "0.6", "0.2", "0.2"]
NUM_TREES = 12


@pytest.fixture
def pool(tmp_path, raw):
    """The 42 training leaves in one folder, and a CSV with a column `tree` of 12 trees; duplicates join two of them."""
    folder = tmp_path / "pool"
    shutil.copytree(raw / "train" / "images", folder / "images")
    rows = [line.split(",") for line in (raw / "train" / "train_label.csv").read_text().splitlines()[1:]]
    rows = [[name, labels, f"Baum {number % NUM_TREES}"] for number, (name, labels) in enumerate(rows)]
    Image.open(folder / "images" / rows[0][0]).save(folder / "images" / "again.jpg", quality=60)
    write_rows(folder, [*rows, ["again.jpg", rows[0][1], "Baum 1"]])
    return folder


def write_rows(folder, rows):
    (folder / "labels.csv").write_text("".join(f"{','.join(row)}\n" for row in [["images", "labels", "tree"], *rows]))


def rows_of(folder):
    return [line.split(",") for line in (folder / "labels.csv").read_text().splitlines()[1:]]


def run(*arguments):
    return process_dataset.main([str(a) for a in arguments])


def parts_of_trees(photos, part_of):
    """The parts in which each tree has photos, by its number."""
    parts = {}
    for name, _, tree in photos:
        parts.setdefault(int(tree.split()[1]), set()).add(part_of[name])
    return parts


def test_a_split_cuts_no_tree_and_duplicates_join_trees(pool, tmp_path):
    assert run("--src", pool, "--dst", tmp_path / "d", *SPLIT, "--group", "tree") == 0
    part_of = {p.name: p.parent.parent.name for p in (tmp_path / "d").glob("*/*/*.jpg")}
    parts = parts_of_trees(rows_of(pool), part_of)
    assert {len(found) for found in parts.values()} == {1}
    assert parts[0] == parts[1]  # again.jpg is a photo of tree 0, listed under tree 1
    assert set(part_of.values()) == {"train", "val", "test"}
    groups = read_manifest(tmp_path / "d")["groups"]
    assert {name: [image for images in of.values() for image in images] for name, of in groups.items()} == {
        f"Baum {n}": [name for name, _, tree in rows_of(pool) if tree == f"Baum {n}"] for n in range(NUM_TREES)
    }
    assert run("--src", pool, "--dst", tmp_path / "other", *SPLIT) == 0
    part_of = {p.name: p.parent.parent.name for p in (tmp_path / "other").glob("*/*/*.jpg")}
    assert {len(found) for found in parts_of_trees(rows_of(pool), part_of).values()} != {1}  # not by chance


def test_the_manifest_grows_little_and_is_the_same_every_time(pool, tmp_path):
    for name, group in (("a", ["--group", "tree"]), ("b", ["--group", "tree"]), ("c", [])):
        assert run("--src", pool, "--dst", tmp_path / name, *SPLIT, *group) == 0
    a, b, c = ((tmp_path / name / "manifest.json").read_bytes() for name in "abc")
    assert a == b
    assert len(a) < 1.3 * len(c)
    assert json.loads(c)["groups"] == {}


def test_folds_cut_no_tree(pool, tmp_path, tiny):
    argv = ["--src", pool, "--dst", tmp_path / "d", "--split", "1", "0", "0", "--group", "tree", "--balance"]
    assert run(*argv) == 0
    part_of = {}
    for fold in range(4):
        opts = ["DATA.DATA_PATH", str(tmp_path / "d"), "DATA.NUM_FOLDS", "4", "DATA.FOLD", str(fold)]
        train, val = scan_splits(load(tiny, opts))[1]
        assert not {photo.name for photo in train.photos} & {photo.name for photo in val.photos}
        part_of |= {photo.name: fold for photo in val.photos}
    assert len(part_of) == 43
    parts = parts_of_trees(rows_of(pool), part_of)
    assert {len(found) for found in parts.values()} == {1}
    assert parts[0] == parts[1]
    assert max(Counter(part_of.values()).values()) <= 16


def test_orchards_that_are_too_few_or_too_large_for_folds(pool, tmp_path, tiny, refused):
    rows = rows_of(pool)
    argv = ["--src", pool, "--dst", tmp_path / "d", "--overwrite", "--split", "1", "0", "0", "--group", "tree"]
    train = ["--cfg", tiny, "--data-path", tmp_path / "d", "--output", tmp_path / "out"]
    write_rows(pool, [[name, labels, "ABC"[i % 3]] for i, (name, labels, _) in enumerate(rows)])
    assert run(*argv, "--no-duplicates") == 0
    refused(main.main, [*train, "--folds", "5", "--fold", "0"], 2, "only 3 groups of photos that stay", "lower it")
    write_rows(pool, [[name, labels, str(max(0, i - 33))] for i, (name, labels, _) in enumerate(rows)])
    assert run(*argv, "--no-duplicates") == 0
    opts = ["DATA.DATA_PATH", str(tmp_path / "d"), "DATA.NUM_FOLDS", "5", "DATA.FOLD", "0"]
    notes = scan_splits(load(tiny, opts))[1][0].notes
    assert any("the 5 folds have 2 to 34 photos; use fewer folds, or smaller groups" in note for note in notes)


def test_one_group_with_most_photos_is_warned_about(pool, tmp_path, capsys):
    write_rows(pool, [[name, labels, str(max(0, i - 33))] for i, (name, labels, _) in enumerate(rows_of(pool))])
    argv = ["--src", pool, "--dst", tmp_path / "d", "--split", "0.4", "0.3", "0.3", "--group", "tree"]
    assert run(*argv, "--no-duplicates") == 0
    out = capsys.readouterr().out
    assert "train 79 instead of 40 %" in out
    assert "the largest, 0, with 79 %; give smaller groups" in out


def test_a_pattern_finds_groups_in_the_names_in_class_folders(pool, tmp_path):
    tree = tmp_path / "tree"
    for name, labels, group in rows_of(pool):
        (tree / labels.split()[0]).mkdir(parents=True, exist_ok=True)
        number = int(group.split()[1])
        shutil.copy(pool / "images" / name, tree / labels.split()[0] / f"IMG_T{number:02}_{name}")
    argv = ["--src", tree, "--dst", tmp_path / "d", *SPLIT, "--no-duplicates", "--group-pattern", r"_T(\d+)_"]
    assert run(*argv) == 0
    parts = {}
    for path in (tmp_path / "d").glob("*/*/*.jpg"):
        parts.setdefault(path.name[5:7], set()).add(path.parent.parent.name)
    assert sorted(parts) == [f"{n:02}" for n in range(NUM_TREES)]
    assert {len(found) for found in parts.values()} == {1}
    assert sorted(read_manifest(tmp_path / "d")["groups"]) == sorted(parts)


def test_names_of_groups_are_compared_like_labels(pool, tmp_path):
    rows = rows_of(pool)
    names = ["B\u00e4ume  1", "Ba\u0308ume 1 ", "2", "3"]
    write_rows(pool, [[name, labels, names[i % 4]] for i, (name, labels, _) in enumerate(rows)])
    assert run("--src", pool, "--dst", tmp_path / "d", *SPLIT, "--group", "tree", "--no-duplicates") == 0
    assert sorted(read_manifest(tmp_path / "d")["groups"]) == ["2", "3", "B\u00e4ume 1"]


def test_groups_in_several_given_splits_are_a_warning(raw, tmp_path, capsys):
    source = shutil.copytree(raw, tmp_path / "source")
    for split in ("train", "val", "test"):
        path = source / split / f"{split}_label.csv"
        header, *lines = path.read_text().splitlines()
        lines = [
            f"{line},{'both' if i == 0 and split != 'test' else f'{split} {i % 5}'}" for i, line in enumerate(lines)
        ]
        path.write_text("\n".join([f"{header},tree", *lines]))
    assert run("--src", source, "--dst", tmp_path / "d", "--group", "tree") == 0
    warning = "1 of 16 groups are in several splits, which makes scores too good: both (train, val)"
    assert f"warning: {warning}" in capsys.readouterr().out
    assert warning in (tmp_path / "d" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--group", "tre"], 3, ["no column 'tre'", "did you mean tree?"]),
        (["--group", "tree", "--group-pattern", "(.)"], 2, ["not allowed with"]),
        (["--group-pattern", "(tree"], 2, ["'(tree' is not a regular expression", "unterminated"]),
        (["--group-pattern", "(a{99999999999})"], 2, ["is not a regular expression"]),
        (["--group-pattern", "tree"], 2, ["needs brackets", "'^(tree[0-9]+)_'"]),
        (["--group-pattern", "(tree[0-9]+)"], 3, ["43 of 43 photos", "have no group", "correct the pattern"]),
        (["--group-pattern", "^(again)"], 3, ["42 of 43 photos", "have no group"]),
        (["--group-pattern", "^.*?(x?)"], 3, ["43 of 43 photos"]),
        (["--group-pattern", "([[:alpha:]]+)"], 2, ["is not a regular expression", "nested set"]),
        (
            ["--group-pattern", "([.]jpg)"],
            3,
            ["43 photos, in 1 group(s) that stay together", "val and test", "--split"],
        ),
    ],
)
def test_groups_that_cannot_be(pool, tmp_path, refused, arguments, code, words):
    refused(process_dataset.main, ["--src", pool, "--dst", tmp_path / "d", *SPLIT, *arguments], code, *words)
    assert list(tmp_path.iterdir()) == [pool]


def test_a_photo_without_a_group_or_with_two_is_named(pool, tmp_path, refused):
    rows = rows_of(pool)
    argv = ["--src", pool, "--dst", tmp_path / "d", *SPLIT, "--group", "tree"]
    write_rows(pool, [*rows[:-1], [*rows[-1][:2], " "]])
    refused(process_dataset.main, argv, 3, "1 of 43 photos", "have no group: again.jpg; fill in the column")
    write_rows(pool, [*rows, [*rows[-1][:2], "Baum 5"]])
    refused(process_dataset.main, argv, 3, "again.jpg has the group 'Baum 1' in row 44 and 'Baum 5' in row 45")
    for name, labels, _ in rows:
        (tmp_path / "tree" / labels.split()[0]).mkdir(parents=True, exist_ok=True)
        shutil.copy(pool / "images" / name, tmp_path / "tree" / labels.split()[0] / name)
    argv[1] = tmp_path / "tree"
    refused(process_dataset.main, argv, 3, "no label CSV; give --group-pattern")


def test_five_photos_of_a_label(pool, tmp_path, capsys):
    """Each split answers, and the audit names the label, what its figures are worth, and where it is missing."""
    rows = [[name, "many" if i % 7 else "rare", tree] for i, (name, _, tree) in enumerate(rows_of(pool)[:35])]
    write_rows(pool, rows)
    argv = ["--src", pool, "--dst", tmp_path / "d", "--split", "0.8", "0.1", "0.1", "--max-missing", "99"]
    assert run(*argv) == 0
    counts = {name: split["labels"]["rare"] for name, split in read_manifest(tmp_path / "d")["splits"].items()}
    assert counts["train"] == 4
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    missing = next(name for name, count in counts.items() if not count)
    assert any(
        f"without photos, not learned in train, not scored in val or test: {missing}: rare 0;" in w for w in warnings
    )
    assert any("train: rare 4; photograph more (93 for ±10 points)" in w for w in warnings)
    assert len(warnings) == 3


def test_one_photo_in_two_groups_is_refused(pool, tmp_path, refused):
    """Listed with and without its extension; or, with --join content, in two files."""
    rows, argv = rows_of(pool), ["--src", pool, "--dst", tmp_path / "d", *SPLIT, "--group", "tree"]
    write_rows(pool, [*rows, [rows[2][0].removesuffix(".jpg"), rows[2][1], "Baum 3"]])
    refused(process_dataset.main, argv, 3, f"give {rows[2][0]} different groups")
    shutil.copyfile(pool / "images" / rows[2][0], pool / "images" / "copy.jpg")
    write_rows(pool, [*rows, ["copy.jpg", rows[2][1], "Baum 3"]])
    refused(
        process_dataset.main, [*argv, "--join", "content"], 3, f"{rows[2][0]} and copy.jpg", "'Baum 2' and 'Baum 3'"
    )
