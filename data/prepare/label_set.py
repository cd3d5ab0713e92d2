"""The label set of the raw photos: labels are renamed, merged or dropped as --labels says, then form a set."""

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from data.label_files import LabelRow, read_renames
from data.labels import COURSE, LabelSet, plain_fault
from data.prepare.raw import RawSplit
from tools.base.errors import DataError, UsageError, listing, nearest
from tools.base.files import read_regular

MAX_BYTES = 500_000_000  # of a manifest, from which a label set can be taken

_MOST_NOTES = 10  # about names


def rename(raws: Sequence[RawSplit], path: Path | None) -> tuple[list[RawSplit], dict[str, str]]:
    """The splits with the labels that the file of --labels gives, and what it says; without a file, as they are.

    Raises:
        DataError: for a line about a label that no photo has.
    """
    if path is None:
        return list(raws), {}
    renames = read_renames(path)
    found = {label for raw in raws for label in _labels_of(raw)}
    if unknown := [label for label in renames if label not in found]:
        hint = nearest(unknown[0], sorted(found))
        raise DataError(f"{path}: no photo has the label {unknown[0]!r}{hint}; correct or remove its line")
    return [_renamed(raw, renames) for raw in raws], renames


def choose_set(raws: Sequence[RawSplit], wanted: str, exclusive: Sequence[str]) -> LabelSet:
    """The label set of the photos.

    Args:
        wanted: "found" takes the labels that there are. "course" takes the course's six. A file takes the set of this
            manifest.json. "auto" takes the course's for exactly its six labels, and for splits with CSVs, the layout of
            the course, for some of them too; otherwise those that there are.
        exclusive: further labels that never stand beside another one.

    Raises:
        DataError: for a label that is not in the set, and for fewer than two labels.
        UsageError: for an exclusive label that is not in the set.
    """
    found = {label for raw in raws for label in _labels_of(raw)}
    rows = [(raw, row) for raw in raws for row in (*raw.rows, *raw.lost)]
    given = {label for _, row in rows for label in row.labels}
    if wanted == "auto":
        wanted = "course" if _is_course(raws, found | given) else "found"
    if wanted == "found":
        labels = LabelSet.of_names(found or given)
    else:
        labels = COURSE if wanted == "course" else _read_set(Path(wanted))
    faults = _name_faults(given, labels, wanted != "found")
    for raw, row in rows:
        for name in row.labels:
            if name in faults:
                raise DataError(f"{raw.locate(row)}: {faults[name]}")
    if not labels.names:
        raise DataError("no photo has a label; check the label files and --labels FILE")
    if len(labels.names) < 2:
        raise DataError(
            f"all photos have the one label {labels.names[0]!r}, and a model needs two; for photos on which a model is "
            "to be scored, add --label-set with the manifest.json of its data set"
        )
    for name in exclusive:
        if name not in labels.folder_of:
            raise UsageError(f"--exclusive {name!r} is not a label{nearest(name, labels.names)}")
    alone = {*labels.exclusive, *(labels.names.index(name) for name in exclusive)}
    return replace(labels, exclusive=tuple(sorted(alone)))


def check_exclusive(rows: Sequence[tuple[str, LabelRow]], labels: LabelSet) -> None:
    """Raises DataError, naming the photos, when an exclusive label stands beside another one.

    Args:
        rows: with where each came from.
    """
    alone = {labels.names[index] for index in labels.exclusive}
    wrong = [
        f"{where} ({', '.join(row.labels)})" for where, row in rows if len(row.labels) > 1 and alone & {*row.labels}
    ]
    if wrong:
        raise DataError(
            f"{len(wrong)} photos have {' or '.join(sorted(alone))} beside another label: {listing(wrong, '; ')}; "
            "correct their labels"
        )


def suspicious_labels(rows: Sequence[LabelRow], labels: LabelSet) -> list[str]:
    """Notes about names that may be another label misspelt, and about names that may be words of one name."""
    counts = Counter(label for row in rows for label in row.labels)
    notes = [
        f"the labels {', '.join(words)} are always together; if they are one name with spaces, separate the names in "
        "the CSV with | or ;, or call their column `label`"
        for words in _inseparable(rows)
    ]
    for name in labels.names:
        others = [other for other in labels.names if counts[other] > 10 * counts[name] > 0]
        for other in get_close_matches(name, others, n=1, cutoff=0.85):
            notes.append(
                f"the label {name!r} ({counts[name]} photos) may be {other!r} misspelt; if so, merge them with "
                f"--labels FILE, which holds the line {name}: {other}"
            )
    rest = len(notes) - _MOST_NOTES
    return [*notes[:_MOST_NOTES], f"{rest} more labels may be misspelt"] if rest > 0 else notes


def _inseparable(rows: Sequence[LabelRow]) -> list[list[str]]:
    """Groups of two or more labels that have exactly the same photos, at least two."""
    photos: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        for label in row.labels:
            photos.setdefault(label, []).append(index)
    groups: dict[tuple[int, ...], list[str]] = {}
    for label, indices in photos.items():
        groups.setdefault(tuple(indices), []).append(label)
    return [labels for indices, labels in groups.items() if len(labels) > 1 < len(indices)]


def _is_course(raws: Sequence[RawSplit], found: set[str]) -> bool:
    """Whether the labels are the course's, or in its layout, some of them, or misspellings of them."""
    in_layout = all(raw.table and raw.images != raw.folder for raw in raws)
    alike = all(nearest(name.lower(), COURSE.names, 0.7) for name in found - set(COURSE.names))
    return found == set(COURSE.names) or (in_layout and alike)


def _name_faults(given: Collection[str], labels: LabelSet, closed: bool) -> dict[str, str]:
    """What is wrong with some of the given names; where the set is `closed`, a name that it lacks is unknown."""
    known, faults = {*labels.names, *COURSE.names}, {}
    for name in given:
        parts = [part for part in re.split(r"[\s,;|/+&]+", name) if part]
        if len(parts) > 1 and known.issuperset(parts):
            faults[name] = (
                f"{name!r} looks like several labels; separate them with spaces, or with | in all rows; if it is one "
                "label, rename it with --labels FILE"
            )
        elif closed and name not in labels.folder_of:
            faults[name] = (
                f"unknown label {name!r}{nearest(name.lower(), labels.names)}; rename it with --labels FILE, or if it "
                "is a label of its own, give --label-set found"
            )
    return faults


def _read_set(path: Path) -> LabelSet:
    """The label set in a manifest.json, or in a file that holds only what a manifest has under `label_set`."""
    try:
        stored = json.loads(read_regular(path, "label set", MAX_BYTES))
        if stored.get("format") in (2, 3):  # a manifest from before data sets had their own labels
            return COURSE
        stored = stored.get("label_set", stored)
        if fault := plain_fault(stored):
            raise DataError(f"{path}: {fault}; give the manifest.json of a prepared data set")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{path} holds no label set; give the manifest.json of a prepared data set") from None
    return LabelSet.from_plain(stored)


def _labels_of(raw: RawSplit) -> set[str]:
    return {label for row in raw.rows for label in row.labels} | set(raw.declared)


def _renamed(raw: RawSplit, renames: Mapping[str, str]) -> RawSplit:
    def new(labels: Sequence[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for label in labels if (name := renames.get(label, label))))

    rows, lost = ([replace(row, labels=new(row.labels)) for row in part] for part in (raw.rows, raw.lost))
    dropped = [row.image for row in rows if not row.labels]
    kept = [row for row in rows if row.labels]
    return replace(raw, rows=kept, lost=lost, declared=new(raw.declared), dropped=dropped)
