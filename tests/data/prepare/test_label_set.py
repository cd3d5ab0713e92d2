"""The label set of raw photos, by the real command: renamed, merged, dropped, joined; and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import process_dataset
from data.label_files import LabelRow
from data.labels import COURSE, LabelSet
from data.loading.split import scan_split
from data.prepare.label_set import suspicious_labels
from tools.commands import score

MERGE = "rot: rust\nunsure: -\n"


def photo(path: Path, seed: int) -> None:
    """Writes a photo of noise; equal seeds give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


@pytest.fixture
def prepare(tmp_path, refused, capsys):
    """A function that writes a pool and prepares it, see `call`."""

    def call(content, *flags, labels="", code=0, words=()):
        """The manifest and what was printed, or for an exit code above 0, the check of the error's words.

        `content` is a label CSV for the photos 0.png to 5.png, or file of a tree -> seed of its photo.
        """
        src, dst, names = tmp_path / "orchard", tmp_path / "dataset", tmp_path / "names.txt"
        if isinstance(content, str):
            for number in range(6):
                photo(src / "images" / f"{number}.png", number)
            (src / "train.csv").write_text(content, encoding="utf-8")
        else:
            for file, seed in content.items():
                photo(src / file, seed)
        names.write_text(labels, encoding="utf-8")
        argv = ["--src", src, "--dst", dst, "--split", "1", "0", "0", *flags]
        argv += ["--labels", names] if labels else []
        if code:
            refused(process_dataset.main, argv, code, *words)
            return None
        assert process_dataset.main([str(word) for word in argv]) == 0
        return json.loads((dst / "manifest.json").read_text()), capsys.readouterr().out

    return call


def csv_of(*fields, header="images,labels"):
    """A label file of the photos 0.png, 1.png, ..., one field or row each."""
    return "\n".join([header, *(f"{number}.png,{text}" for number, text in enumerate(fields)), ""])


def files_of(manifest):
    return sorted(manifest["splits"]["train"]["files"])


def test_labels_are_renamed_merged_and_dropped_and_the_manifest_says_so(prepare):
    manifest, out = prepare(csv_of("rot", "rust rot", "unsure", "unsure rust", "late", "rust"), labels=MERGE)
    assert manifest["label_set"]["labels"] == ["late", "rust"]
    assert manifest["settings"]["labels"] == {"rot": "rust", "unsure": ""}
    assert files_of(manifest) == ["late/4.png", *(f"rust/{n}.png" for n in (0, 1, 3, 5))]
    assert manifest["left_out"]["photos whose labels were dropped"] == ["images/2.png"]
    assert "left out: images/2.png" in out
    manifest, out = prepare(csv_of("rot", "blk: x|rot", "a", "a", "blk: x", "a"), "--overwrite", labels="blk: x: a/b\n")
    assert manifest["label_set"] == {"classes": ["a", "a_b", "rot"], "labels": ["a", "a/b", "rot"], "exclusive": []}
    assert files_of(manifest) == ["a/2.png", "a/3.png", "a/5.png", "a_b/1.png", "a_b/4.png", "rot/0.png", "rot/1.png"]
    assert "a/b" in out


@pytest.mark.parametrize(("content", "labels", "words"), [
    (csv_of(*["rot", "rust"] * 3), "unsure: -\n", ["no photo has the label 'unsure'"]),
    (csv_of(*["rot", "rust"] * 3), "rott: a\n", ["'rott'", "did you mean rot?"]),
    (csv_of(*["rot", "rust"] * 3), "rot: -\nrust: -\n", ["no photo has a label"]),
    (csv_of(*["rot", "rust"] * 3), "rot: rust\n", ["the one label 'rust'", "--label-set"]),
    (csv_of(*["rot", "rust"] * 3), "rot: Rust\n", ["'Rust' and 'rust'", "the line rust: Rust"]),
    (csv_of(*["rot", "rust|rot"] * 3), "rot: healthy\n", ["3 photos", "1.png", "3.png", "5.png", "healthy"]),
    (csv_of(*["Rot", "rot", "rust"] * 2), "", ["'Rot' and 'rot'", "--labels FILE", "the line rot: Rot"]),
    (csv_of(*["rot", "rust,rot"] * 3, header="images,label,label_2").replace("rot\n", "rot,\n"), "", ["fields"]),
    (csv_of("rot spot", *["rot", "spot"] * 2, "rot", header="images,label"), "", ["'rot spot'", "several labels"]),
    (csv_of("rot", "", "rot", "rust", "rust", "rust"), "", ["row 3", "1.png has no label", "--unlabelled keep"]),
    (csv_of(*["rot", "rust"] * 3, header="image_id,label").replace("1.png", "0"), "", ["rows 2 and 3", "0.png"]),
])  # fmt: skip
def test_what_is_refused(prepare, content, labels, words):
    prepare(content, labels=labels, code=3, words=words)


def test_flags_about_labels_that_are_not_there(prepare, tmp_path):
    content = csv_of(*["rot|late blight", "rust"] * 3)
    prepare(content, "--exclusive", "late bligt", code=2, words=["'late bligt'", "did you mean late blight?"])
    prepare(content, "--exclusive", "rot", code=3, words=["3 photos have rot beside another label", "0.png (rot, late"])
    prepare(content, "--label-set", tmp_path / "none.json", code=3, words=["none.json does not exist"])
    prepare(content, "--label-set", "course", code=3, words=["0.png", "unknown label"])
    (tmp_path / "set.json").write_text("[1]")
    prepare(
        content,
        "--label-set",
        tmp_path / "set.json",
        code=3,
        words=["set.json holds no label set", "give the manifest.json"],
    )
    prepare(content, "--label-set", "found", "--multi-label", "error", code=3, words=["0.png", "rot, late blight"])


def test_the_label_set_of_a_manifest_of_before_is_the_courses(prepare, tmp_path):
    made, _ = prepare(csv_of(*["rust", "scab"] * 3), "--label-set", "course")
    former = {key: made[key] for key in ("settings", "splits", "duplicates", "left_out", "notes")} | {"format": 3}
    (tmp_path / "last_year.json").write_text(json.dumps(former))
    last_year = ("--label-set", tmp_path / "last_year.json", "--overwrite")
    manifest, _ = prepare(csv_of(*["rust", "scab"] * 3), *last_year)
    assert manifest["label_set"] == COURSE.to_plain()


def test_photos_may_be_listed_without_their_suffix_and_twice(prepare):
    manifest, out = prepare(csv_of(*["rot", "rust"] * 3, header="image_id,label").replace(".png", "") + "0.png,rot\n")
    assert files_of(manifest) == [*(f"rot/{n}.png" for n in (0, 2, 4)), *(f"rust/{n}.png" for n in (1, 3, 5))]
    assert "1 repeated row(s) ignored" in out


def test_photos_without_labels_are_listed_for_review(prepare):
    content = csv_of("rot", "", "rust", " ", "rot")  # 5.png has no row
    manifest, out = prepare(content, "--unlabelled", "keep")
    assert files_of(manifest) == ["rot/0.png", "rot/4.png", "rust/2.png"]
    left = ["images/1.png", "images/3.png", "images/5.png"]
    assert manifest["left_out"]["photos without labels"] == left
    assert [line for line in out.splitlines() if line.startswith("left out")] == [f"left out: {name}" for name in left]


def test_of_many_notes_about_names_the_first_are_printed():
    """Names that are numbered look like one another."""
    names = [f"unknown disease {number}" for number in range(40)]
    rows = [LabelRow(f"{name}.jpg", (name,)) for name in [*names[:20], *names[20:] * 30]]
    notes = suspicious_labels(rows, LabelSet.of_names(names))
    assert (len(notes), notes[-1]) == (11, "10 more labels may be misspelt")


def test_equal_photos_of_two_class_folders_are_one(prepare):
    """By name and content; by content alone where that is asked for."""
    tree = {"rot/1.png": 1, "rust/1.png": 1, "rot/2.png": 2, "rust/3.png": 2, "rust/4.png": 4, "late/1.png": 5}
    manifest, out = prepare(tree)
    assert files_of(manifest) == [
        "late/late__1.png", "rot/2.png", "rot/rot__1.png", "rust/3.png", "rust/4.png", "rust/rot__1.png",
    ]  # fmt: skip
    assert "labelled differently: train/2.png (rot) = train/3.png (rust)" in out
    manifest, out = prepare({}, "--join", "content", "--overwrite")
    assert "rust/2.png" in files_of(manifest)
    assert "rust/3.png" not in files_of(manifest)
    assert "1 files joined" in out


@pytest.mark.parametrize("flags", [(), ("--size", "32")])
def test_an_exclusive_label_beside_another_is_an_error_that_names_the_files(prepare, flags):
    """Before a photo is decoded, where equal names join; and after, where equal content does."""
    prepare({"healthy/3.png": 3, "rot/4.png": 3, "rot/2.png": 2})
    words = ["1 photos have healthy", "orchard/healthy/3.png = rot/4.png (healthy, rot)", "correct their labels"]
    prepare({}, *flags, "--join", "content", "--overwrite", code=3, words=words)
    words = ["1 photos have healthy", "orchard/healthy/2.png (healthy, rot)", "correct their labels"]
    prepare({"healthy/2.png": 2}, *flags, "--overwrite", code=3, words=words)


def test_of_two_photos_that_would_get_one_name_none_is_lost(prepare):
    tree = {"rot/x.png": 1, "rust/x.png": 2, "rot/rot__x.png": 3}
    prepare(tree, code=3, words=["two photos", "rot__x.png", "rename one"])


def test_one_label_in_two_compositions_of_its_accent_is_one(prepare):
    manifest, _ = prepare({"A\u0308pfel/1.png": 1, "Äpfel/2.png": 2, "rot/3.png": 3})
    assert manifest["label_set"]["labels"] == ["rot", "Äpfel"]
    assert files_of(manifest) == ["rot/3.png", "Äpfel/1.png", "Äpfel/2.png"]


def test_the_courses_codes_name_its_labels_only_among_each_other(prepare):
    manifest, _ = prepare({f"{code}/{code}.png": int(code, 2) for code in COURSE.folders})
    assert manifest["label_set"] == COURSE.to_plain()


def test_other_codes_are_names(prepare):
    manifest, _ = prepare({"000001/1.png": 1, "000002/2.png": 2, "000010/3.png": 3})
    assert manifest["label_set"]["labels"] == ["000001", "000002", "000010"]


def test_suspicious_names_are_noted(prepare):
    tree = {f"late blight/{n}.png": n for n in range(22)} | {"late  blihgt/x.png": 30, "rot/y.png": 31}
    notes = prepare(tree)[0]["notes"]
    assert any("'late blihgt' (1 photos) may be 'late blight' misspelt" in note for note in notes)


def test_names_with_spaces_that_were_taken_apart_are_noted(prepare):
    content = csv_of("black rot", "rust", "black rot", "rust", "rust", "black rot")
    manifest, out = prepare(content)
    assert manifest["label_set"]["labels"] == ["black", "rot", "rust"]
    assert "the labels black, rot are always together" in out
    manifest, out = prepare(content, "--separator", "|", "--overwrite")
    assert manifest["label_set"]["labels"] == ["black rot", "rust"]
    assert "together" not in out


def test_the_label_files_of_all_splits_have_one_separator(tmp_path, refused):
    """Where no photo of a split has two labels, its file holds no bar."""
    for split, fields in {"train": ["black rot|late, wet", "rust"], "val": ["black rot", "late, wet"]}.items():
        for number in range(2):
            photo(tmp_path / "raw" / split / "images" / f"{split}{number}.png", len(split) + 10 * number)
        rows = "".join(f'{split}{number}.png,"{field}"\n' for number, field in enumerate(fields))
        (tmp_path / "raw" / split / f"{split}_label.csv").write_text(f"images,labels\n{rows}")
    argv = ["--src", tmp_path / "raw", "--dst", tmp_path / "dataset", "--no-duplicates"]
    assert process_dataset.main([str(word) for word in argv]) == 0
    manifest = json.loads((tmp_path / "dataset" / "manifest.json").read_text())
    assert manifest["label_set"]["labels"] == ["black rot", "late, wet", "rust"]
    assert sorted(manifest["splits"]["val"]["files"]) == ["black rot/val0.png", "late, wet/val1.png"]
    answers = tmp_path / "predictions.csv"
    answers.write_text('images,black rot,"late, wet",rust\nval0.png,1,0,0\nval1.png,0,1,0\n')
    argv = [str(answers), str(tmp_path / "raw" / "val" / "val_label.csv")]
    refused(score.main, argv, 3, "no column for the label 'late'")
    assert score.main([*argv, "--separator", "|"]) == 0


def test_a_split_is_matched_by_the_names_of_its_labels_and_without_a_manifest_by_their_folders(prepare, tmp_path):
    """`a/b` and `a_b` would have the same folder, so that a split with one of them has another one for it."""
    prepare(csv_of(*["a/b", "a_b", "c"] * 2, header="image_id,label"))
    labels = LabelSet.from_plain(json.loads((tmp_path / "dataset" / "manifest.json").read_text())["label_set"])
    assert dict(zip(labels.names, labels.folders, strict=True)) == {"a/b": "a_b", "a_b": "a_b~2", "c": "c"}
    alone = tmp_path / "alone"
    for split, label in (("train", "a_b"), ("train", "c"), ("test", "a_b")):
        photo(tmp_path / "few" / split / label / f"{split}-{label}.png", 1)
    argv = ["--src", tmp_path / "few", "--dst", alone, "--allow-leak"]
    assert process_dataset.main([str(word) for word in argv]) == 0
    assert [path.name for path in (alone / "test").glob("a*")] == ["a_b"]
    assert [photo.classes for photo in scan_split(alone, "test", labels=labels).photos] == [(1,)]
    (tmp_path / "dataset" / "train").rename(tmp_path / "train")  # without its manifest
    found = {
        photo.name: labels.names[photo.classes[0]] for photo in scan_split(tmp_path, "train", labels=labels).photos
    }
    assert found == {f"{number}.png": ["a/b", "a_b", "c"][number % 3] for number in range(6)}


@pytest.mark.parametrize("names", [("lost+found", "@eaDir", "__macosx"), (".", "..", "..."), ("con", "-rf", "train")])
def test_no_label_gets_a_folder_that_is_ignored_when_it_is_read(prepare, tmp_path, names):
    prepare(csv_of(*names * 2, header="image_id,label"))
    split = scan_split(tmp_path / "dataset", "train")
    found = {photo.name: split.labels.names[photo.classes[0]] for photo in split.photos}
    assert found == {f"{number}.png": names[number % 3] for number in range(6)}


def test_rows_without_a_photo_are_renamed_too(prepare):
    content = csv_of(*["blight", "mildew"] * 3, "blight", header="image_id,label")  # there is no 6.png
    flags = ["--label-set", "course", "--max-missing", "1"]
    manifest, _ = prepare(content, *flags, labels="blight: scab\nmildew: rust\n")
    assert manifest["label_set"] == COURSE.to_plain()


def test_photos_of_two_groups_are_not_joined(prepare):
    tree = {"rot/t1_a.png": 1, "late/t2_b.png": 1, "rot/t1_c.png": 2, "late/t2_d.png": 3}
    words = ["rot/t1_a.png", "late/t2_b.png", "the groups 't2' and 't1'", "correct"]
    prepare(tree, "--join", "content", "--group-pattern", "^(t.)_", code=3, words=words)


def test_a_name_typed_in_another_composition_is_found(prepare):
    content = "images,label,Bäume\n" + "".join(f"{n}.png,{'Äpfel' if n % 2 else 'rot'},{n}\n" for n in range(6))
    manifest, _ = prepare(content, "--exclusive", "A\u0308pfel", "--group", "Ba\u0308ume")
    assert manifest["label_set"] == {"classes": ["rot", "Äpfel"], "labels": ["rot", "Äpfel"], "exclusive": [1]}
    assert len(manifest["groups"]) == 6


def test_an_invalid_name_is_said_where_it_stands(prepare):
    prepare({"rot/a.png": 1, "late\u200b/b.png": 2}, code=3, words=["orchard: label 'late\\u200b' holds"])
    prepare(csv_of(*["a", "b"] * 3), labels="a: \u200d\n", code=3, words=["names.txt, line 1: label '\\u200d'"])


LABELS = {"classes": ["rot", "spot"], "labels": ["rot", "spot"], "exclusive": []}


@pytest.mark.parametrize(("stored", "words"), [
    (LABELS | {"labels": ["rot", "spot", 5]}, "labels must be one name per class"),
    (LABELS | {"labels": ["rot", "spot", "spot"]}, "labels must be one name per class"),
    (LABELS | {"classes": ["@eaDir", "spot"]}, "part of a file name"),
    (LABELS | {"exclusive": [True]}, "exclusive must be indices"),
])  # fmt: skip
def test_a_label_set_that_was_edited_by_hand(prepare, tmp_path, stored, words):
    content = csv_of(*["rot", "spot"] * 3)
    (tmp_path / "set.json").write_text(json.dumps({"label_set": stored}))
    prepare(content, "--label-set", tmp_path / "set.json", code=3, words=[words, "; give the manifest.json"])
    prepare(content)
    manifest = tmp_path / "dataset" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"label_set": stored}))
    prepare(content, code=3, words=["manifest.json is damaged"])


def test_a_manifest_without_settings_is_damaged(prepare, tmp_path):
    manifest, _ = prepare(csv_of(*["rot", "spot"] * 3))
    del manifest["settings"]
    (tmp_path / "dataset" / "manifest.json").write_text(json.dumps(manifest))
    prepare(csv_of(*["rot", "spot"] * 3), code=3, words=["manifest.json is damaged"])


def test_the_label_set_of_a_manifest_from_before_label_sets_is_the_courses(prepare, tmp_path):
    (tmp_path / "old.json").write_text(json.dumps({"format": 3, "splits": {}, "duplicates": []}))
    manifest, _ = prepare(csv_of(*["scab", "rust"] * 3), "--label-set", tmp_path / "old.json")
    assert manifest["label_set"] == COURSE.to_plain()


def test_a_separator_must_be_a_sign(prepare):
    prepare(csv_of(*["rot", "spot"] * 3), "--separator", "", code=2, words=["--separator is empty"])


def test_labels_renames_rows_without_a_photo_too(prepare):
    """Such a row is left out, and a label of it that is renamed is not unknown."""
    content = csv_of(*["bad", "rust", "scab"] * 2) + "lost.png,bad\n"
    made, _ = prepare(content, "--label-set", "course", "--max-missing", "1", labels="bad: complex\n")
    assert made["left_out"]["rows without a photo"] == ["images/lost.png"]
    assert made["splits"]["train"]["labels"]["complex"] == 2


def test_photos_that_would_not_be_read_are_an_error(prepare, tmp_path, refused):
    """Photos beside the folder of photos, and a validation split under another name."""
    photo(tmp_path / "orchard" / "more.png", 9)
    prepare(csv_of(*["rot", "rust"] * 3), code=3, words=["orchard/images and in ", "put all photos into one"])
    for split in ("train", "valid"):
        for label in ("rot", "rust"):
            photo(tmp_path / "tree" / split / label / "1.png", len(split) * len(label))
    argv = ["--src", tmp_path / "tree", "--dst", tmp_path / "dataset"]
    refused(process_dataset.main, argv, 3, "has a folder valid", "is val; rename it")
