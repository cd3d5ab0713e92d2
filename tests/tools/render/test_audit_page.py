"""The audit page from a manifest written by hand: all counts are on it, duplicates together, long lists cut."""

import re

from tools.render.audit_page import MOST_DUPLICATES, MOST_ROWS, PHOTOS_PER_LABEL, audit_page


def manifest(**changes) -> dict:
    files = {f"000001/{n:03}.jpg": {} for n in range(30)} | {"000010/030.jpg": {}, "000010/030.made-flip.jpg": {}}
    split = {
        "rows": 31,
        "several": 0,
        "copied": 5,
        "labels": {"scab": 30, "rust": 1},
        "made": {"scab": 0, "rust": 1},
        "combinations": {"rust": 1, "scab": 30},
        "facts": {
            "sizes": {f"{n}x{n}": 1 for n in range(100, 131)},
            "modes": {"RGB": 31},
            "formats": {"JPEG": 31},
            "turned": 7,
            "animated": 8,
            "misnamed": 9,
        },
        "files": files,
    }
    left_out = {
        "rows without a photo": [],
        "photos without a row": [],
        "unreadable photos": ["train/x.jpg: empty file"],
    }
    settings = {"duplicates": True, "balance": True, "csv_sha256": {"train": "abc"}}
    labels = {"classes": ["000001", "000010"], "labels": ["scab", "rust"], "exclusive": []}
    known = {"settings": settings, "label_set": labels, "groups": {}, "duplicates": [], "notes": ["a note"]}
    return {**known, "splits": {"train": split}, "left_out": left_out, **changes}


def page_of(content: dict) -> tuple[str, list[str]]:
    """The page's text without tags, and the pictures it asked for."""
    asked = []

    def picture(file):
        asked.append(file)
        return b"\xff\xd8\xff"

    page = audit_page(content, picture)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.split("<body>")[1])), asked


def test_counts_and_lists_are_on_the_page():
    text, asked = page_of(manifest())
    for words in ("31 photos in train", "copied, not linked 5", "rust 1 + 1 made", "turned by EXIF 7", "JPEG 31"):
        assert words in text
    for words in (
        "1 unreadable photos train/x.jpg: empty file",
        "csv_sha256 train abc",
        "a note",
        "0 groups of duplicates",
    ):
        assert words in text
    assert f"and {31 - MOST_ROWS} rarer sizes" in text
    places = [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27]  # 12 of 30: every 2.5th
    assert len(places) == PHOTOS_PER_LABEL
    assert asked == [f"train/000001/{place:03}.jpg" for place in places] + ["train/000010/030.jpg"]


def test_duplicates_are_shown_together_with_their_faults():
    members = [
        {"split": "train", "image": f"{n:03}.jpg", "labels": [label]} for n, label in ((1, "scab"), (30, "rust"))
    ]
    group = {"kind": "near", "members": members, "contradicting": True, "leak": True}
    text, asked = page_of(manifest(duplicates=[group] * (MOST_DUPLICATES + 3)))
    assert "near duplicates, different labels, a leak between splits train/001.jpg scab train/030.jpg rust" in text
    assert "53 groups of duplicates; 53 with different labels." in text
    pair = ["train/000001/001.jpg", "train/000010/030.jpg"]
    assert asked[-2 * MOST_DUPLICATES :] == pair * MOST_DUPLICATES
    text, _ = page_of(manifest(settings={"duplicates": False, "balance": False}))
    assert "Not looked for" in text


def test_groups_warnings_and_the_width_of_intervals_are_on_the_page():
    groups = {"tree 1": {"train": ["a", "b"]}, "tree <2>": {"train": ["c", "d", "e"], "val": ["f"]}}
    split = manifest()["splits"]["train"]
    text, _ = page_of(manifest(groups=groups, splits={"train": split, "val": split}))
    assert "1 of 2 groups are in several splits" in text
    assert "train: rust 1; photograph more" in text
    assert "Groups train val groups 2 1 photos in the largest 3 tree &lt;2&gt; 1 tree &lt;2&gt;" in text
    assert "scab 30 (±17)" in text.split("Labels in val")[1]
    assert "±" not in text.split("Labels in train")[1].split("Labels in val")[0]
    text, _ = page_of(manifest())
    assert "Groups Not given" in text
