"""process_dataset.py on real files: the tree, the counts, what it refuses, and that a refusal leaves no trace.

The audit's findings, --split, --size, --balance and sudden ends are in test_prepare_audit.py.
"""

import errno
import json
import os
import shutil
from collections import Counter

import pytest
from conftest import CODE_OF

import process_dataset

CODES = sorted(CODE_OF.values())


@pytest.fixture
def source(tmp_path, raw):
    return shutil.copytree(raw, tmp_path / "plant_dataset")


def run(*arguments):
    return process_dataset.main([str(a) for a in arguments])


def rows_of(folder, split):
    lines = (folder / split / f"{split}_label.csv").read_text().splitlines()[1:]
    return [(line.split(",")[0], line.split(",")[1].split()) for line in lines]


def tree(folder):
    return {p.relative_to(folder): p.stat().st_size for p in folder.rglob("*") if p.is_file()}


def test_the_tree_is_the_labels_one_hard_link_each(raw, dataset):
    for split in ("train", "val", "test"):
        assert sorted(p.name for p in (dataset / split).iterdir()) == CODES
        wanted = {(CODE_OF[label], name) for name, labels in rows_of(raw, split) for label in labels}
        assert {(p.parent.name, p.name) for p in (dataset / split).glob("*/*")} == wanted
        for code, name in wanted:
            assert (dataset / split / code / name).samefile(raw / split / "images" / name)
        header, *lines = (dataset / f"OneHot-{split}_label.csv").read_text().splitlines()
        columns = [c.removeprefix("label_") for c in header.split(",")]
        for line, (name, labels) in zip(lines, rows_of(raw, split), strict=True):
            values = line.split(",")
            assert values[0] == name
            assert {c for c, v in zip(columns, values, strict=True) if v == "1"} == set(labels)


def test_the_table_counts_what_a_hand_count_finds(source, tmp_path, capsys):
    assert run("--src", source, "--dst", tmp_path / "d") == 0
    out = capsys.readouterr().out.splitlines()
    table = {line[:28].strip(): [int(v) for v in line[28:].split()] for line in out[1:13]}
    splits = [rows_of(source, split) for split in ("train", "val", "test")]
    assert table["rows"] == [len(rows) for rows in splits]
    assert table["with several labels"] == [sum(len(labels) > 1 for _, labels in rows) for rows in splits]
    assert table["files (one per label)"] == [sum(len(labels) for _, labels in rows) for rows in splits]
    for label, code in CODE_OF.items():
        assert table[f"{code} {label}"] == [Counter(x for _, labels in rows for x in labels)[label] for rows in splits]


def test_copies_where_links_are_refused_and_counts_them(source, tmp_path, monkeypatch, capsys):
    def refuse(*_args, **_kwargs):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert run("--src", source, "--dst", tmp_path / "d") == 0
    line = next(row for row in capsys.readouterr().out.splitlines() if row.startswith("copied"))
    assert [int(v) for v in line[28:].split()] == [
        len(list((tmp_path / "d" / s).glob("*/*"))) for s in ("train", "val", "test")
    ]
    photo = next((tmp_path / "d" / "train").glob("*/*"))
    assert not photo.samefile(source / "train" / "images" / photo.name)


def test_mode_copy_and_multi_label_first(source, tmp_path):
    assert run("--src", source, "--dst", tmp_path / "d", "--mode", "copy", "--multi-label", "first") == 0
    for name, labels in rows_of(source, "train"):
        assert [p.parent.name for p in (tmp_path / "d" / "train").glob(f"*/{name}")] == [CODE_OF[labels[0]]]
    assert next((tmp_path / "d" / "train").glob("*/*")).stat().st_nlink == 1


def test_an_equal_tree_is_left_and_another_needs_overwrite(source, tmp_path, refused):
    target = tmp_path / "d"
    assert run("--src", source, "--dst", target) == 0
    before = {p: p.stat().st_mtime_ns for p in target.rglob("*")}
    assert run("--src", source, "--dst", target) == 0
    assert before == {p: p.stat().st_mtime_ns for p in target.rglob("*")}
    refused(process_dataset.main, ["--src", source, "--dst", target, "--mode", "copy"], 2, "--overwrite")
    next((target / "val").glob("*/*")).unlink()
    refused(process_dataset.main, ["--src", source, "--dst", target], 3, "missing")
    assert run("--src", source, "--dst", target, "--mode", "copy", "--overwrite") == 0
    assert json.loads((target / "manifest.json").read_text())["settings"]["mode"] == "copy"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_tree_of_format_2_is_read_and_left_as_it_is(source, tmp_path):
    path = tmp_path / "d" / "manifest.json"
    assert run("--src", source, "--dst", tmp_path / "d") == 0
    manifest = json.loads(path.read_text())
    manifest["settings"]["twins"] = manifest["settings"].pop("duplicates")
    manifest["twins"] = manifest.pop("duplicates")
    old = manifest | {"format": 2}
    path.write_text(json.dumps(old))
    assert run("--src", source, "--dst", tmp_path / "d", "--no-twins", "--overwrite") == 0
    path.write_text(json.dumps(old))
    assert run("--src", source, "--dst", tmp_path / "d") == 0
    assert json.loads(path.read_text()) == old


def test_one_split_is_enough_and_the_csv_may_lie_above_it(source, tmp_path):
    shutil.rmtree(source / "train")
    shutil.rmtree(source / "test")
    (source / "val" / "val_label.csv").rename(source / "val_label.csv")
    assert run("--src", source, "--dst", tmp_path / "d") == 0
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == [
        "OneHot-val_label.csv",
        "manifest.json",
        "report.html",
        "val",
    ]


def break_photo(source):
    path = next((source / "train" / "images").iterdir())
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:200])
    return path.name


def lose_photo(source):
    path = next((source / "train" / "images").iterdir())
    path.unlink()
    return path.name


def add_photo(source):
    shutil.copy(next((source / "train" / "images").iterdir()), source / "train" / "images" / "extra.jpg")
    return "extra.jpg"


@pytest.mark.parametrize(
    ("damage", "flag"), [(break_photo, "--max-bad"), (lose_photo, "--max-missing"), (add_photo, "--max-missing")]
)
def test_damage_is_named_and_counted_and_can_be_allowed(source, tmp_path, refused, capsys, damage, flag):
    name = damage(source)
    before = tree(source)
    refused(process_dataset.main, ["--src", source, "--dst", tmp_path / "d"], 3, name, flag)
    assert not (tmp_path / "d").exists()
    assert tree(source) == before
    assert run("--src", source, "--dst", tmp_path / "d", flag, "1") == 0
    assert f"left out: train/{name}" in capsys.readouterr().out
    assert not list((tmp_path / "d").glob(f"train/*/{name}"))


def test_refusals_of_the_command_line(source, tmp_path, refused):
    refused(
        process_dataset.main, ["--src", source, "--dst", tmp_path / "d", "--multi-label", "error"], 3, "--multi-label"
    )
    refused(process_dataset.main, ["--src", tmp_path / "no"], 3, "not a folder")
    refused(process_dataset.main, ["--src", source / "train" / "images"], 3, "train, val, test")
    refused(process_dataset.main, ["--src", source, "--dst", source], 2, "inside the other")
    refused(process_dataset.main, ["--src", source, "--dst", source / "train" / "d"], 2, "inside the other")
    refused(process_dataset.main, ["--sorce", source], 2, "unrecognized", "did you mean --src")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    refused(process_dataset.main, ["--src", source, "--dst", tmp_path / "mine", "--overwrite"], 2, "not made by")
    (tmp_path / "mine" / "manifest.json").write_text("{}")
    refused(process_dataset.main, ["--src", source, "--dst", tmp_path / "mine"], 3, "damaged")
    refused(process_dataset.main, ["--src", source, "--dst", tmp_path / "mine", "--overwrite"], 2, "thesis.txt")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--split", "0.8", "0.1", "0.2"], "their sum 1"),
        (["--split", "1.2", "-0.1", "-0.1"], "their sum 1"),
        (["--split", "nan", "0.5", "0.5"], "invalid float"),
        (["--squash"], "--size"),
        (["--size", "0"], "below 16"),
        (["--quality", "101"], "above 100"),
        (["--max-bad", "-1"], "--max-bad -1 is below 0"),
        (["--seed", "-1"], "below 0"),
    ],
)
def test_flags_that_make_no_sense(source, tmp_path, refused, arguments, word):
    refused(process_dataset.main, ["--src", source, "--dst", tmp_path / "d", *arguments], 2, word)
    assert list(tmp_path.iterdir()) == [source]


def test_a_damaged_or_older_tree_of_ours_can_be_replaced(source, tmp_path, refused):
    assert run("--src", source, "--dst", tmp_path / "d") == 0
    whole = (tmp_path / "d" / "manifest.json").read_bytes()
    for content in (b"", whole[:500], whole.replace(b'"format": 4', b'"format": 1')):
        (tmp_path / "d" / "manifest.json").write_bytes(content)
        refused(
            process_dataset.main, ["--src", source, "--dst", tmp_path / "d"], 3, "damaged or too old", "--overwrite"
        )
        assert run("--src", source, "--dst", tmp_path / "d", "--overwrite") == 0
        assert (tmp_path / "d" / "manifest.json").read_bytes() == whole


def test_other_photos_under_the_same_labels_are_noticed(source, tmp_path, refused):
    assert run("--src", source, "--dst", tmp_path / "d", "--mode", "copy") == 0
    one, other = sorted((source / "train" / "images").iterdir())[:2]
    one.write_bytes(other.read_bytes())
    refused(process_dataset.main, ["--src", source, "--dst", tmp_path / "d", "--mode", "copy"], 3, "other photos")
