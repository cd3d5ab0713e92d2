"""The prepared tree: audited photos in one folder per label, and the manifest that records what is there and why.

dataset/{train,val,test}/LABEL/ID.jpg, OneHot-{split}_label.csv, manifest.json, report.html
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from data.images import encode, read_image
from data.label_files import LabelRow, write_one_hot
from data.labels import SPLITS, LabelSet, balanced_copy_name
from data.manifest import FORMAT, MANIFEST, read_manifest
from data.prepare.audit import AuditedPhoto, count_facts, entry_of
from data.prepare.balance import make_copy, plan_copies
from data.prepare.stratify import connect, stratify
from tools.base.errors import DataError, UsageError, listing
from tools.base.tables import format_table
from tools.base.threads import Progress, in_parallel

REPORT = "report.html"
_SPLIT_ENTRIES = [("", ""), ("OneHot-", "_label.csv"), ("", ".pixels")]  # the last is of data/loading/cache.py
_OURS = {MANIFEST, REPORT, *(f"{before}{split}{after}" for split in SPLITS for before, after in _SPLIT_ENTRIES)}


def divide(
    photos: Sequence[AuditedPhoto], duplicates: Sequence[Sequence[int]], shares: Sequence[float], seed: int
) -> list[AuditedPhoto]:
    """The photos of a pool with their splits: label combinations spread evenly, duplicates and groups kept together.

    Args:
        duplicates: indices of photos, one sequence per group.
        shares: of train, val and test; a split with the share 0 gets nothing.

    Raises:
        DataError: when there are too few photos to fill the splits.
    """
    wanted = [(name, share) for name, share in zip(SPLITS, shares, strict=True) if share]
    keys: list[list] = [[photo.row.group] if photo.row.group else [] for photo in photos]
    for number, group in enumerate(duplicates):
        for index in group:
            keys[index].append(number)
    together = sorted(connect(keys), key=lambda group: len(group) == 1)
    strata = [frozenset(photo.row.labels) for photo in photos]
    grouped = any(photo.row.group for photo in photos)
    parts = stratify(together, strata, [share for _, share in wanted], seed, refine=grouped)
    empty = [name for number, (name, _) in enumerate(wanted) if number not in parts]
    if empty:
        found = f"{len(photos)} photos" + (f", in {len(together)} group(s) that stay together," if grouped else "")
        way_out = "change --split, or give smaller groups" if grouped else "change --split"
        raise DataError(f"{found} are too few: {' and '.join(empty)} would be empty; {way_out}")
    return [replace(photo, split=wanted[part][0]) for photo, part in zip(photos, parts, strict=True)]


def write_tree(photos: Sequence[AuditedPhoto], root: Path, known: dict, progress: Progress) -> dict:
    """Writes every split and the manifest, which it returns, under `root`; equal input gives equal bytes.

    Args:
        known: the manifest's other entries: `settings` (of which `mode`, `multi_label`, `balance` and `quality` are
            used here), `label_set`, `groups`, `duplicates`, `left_out`, `notes`.
    """
    settings, labels, splits = known["settings"], LabelSet.from_plain(known["label_set"]), {}
    for name in SPLITS:
        if members := [photo for photo in photos if photo.split == name]:
            splits[name] = _write_split(members, root / name, labels, settings, progress)
    manifest = {"format": FORMAT, "settings": settings, "splits": splits, **known}
    (root / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def check_target(dst: Path, settings: dict, overwrite: bool) -> None:
    """Raises UsageError when `dst` must not be written: not ours, or made with other settings and not `overwrite`."""
    if dst.exists() and not dst.is_dir():
        raise UsageError(f"--dst {dst} is a file; choose another")
    names = set(os.listdir(dst)) if dst.exists() else set()
    if names and MANIFEST not in names:
        raise UsageError(f"--dst {dst} was not made by process_dataset.py; choose another, or remove it yourself")
    foreign = sorted(names - _OURS)
    if overwrite and foreign:
        raise UsageError(f"--dst {dst} also holds {listing(foreign)}, which is not ours to replace; move it away")
    manifest = read_manifest(dst) if names and not overwrite else None
    if manifest and manifest["settings"] != settings:
        raise UsageError(f"--dst {dst} was made with other settings or labels; add --overwrite, or choose another")


def is_finished(dst: Path, manifest: dict) -> bool:
    """Whether `dst` is already the tree of `manifest`. Raises DataError if it holds other or changed photos."""
    if not (dst / MANIFEST).is_file():
        return False
    if read_manifest(dst) != json.loads(json.dumps(manifest)):  # as it is read back: tuples are lists
        raise DataError(f"--dst {dst} was made from other photos; add --overwrite, or choose another")
    for name, split in manifest["splits"].items():
        for file, entry in split["files"].items():
            path = dst / name / file
            if not path.is_file() or path.stat().st_size != entry["size"]:
                raise DataError(f"{path} is missing or has changed since --dst was made; add --overwrite")
    return True


def format_counts(manifest: dict) -> list[str]:
    """The counts of a manifest as lines of text, one column per split."""
    splits, labels = manifest["splits"], LabelSet.from_plain(manifest["label_set"])
    counts, groups = list(splits.values()), manifest["groups"].values()
    rows = [
        ("", *splits),
        ("rows", *(c["rows"] for c in counts)),
        *([("groups", *(sum(name in g for g in groups) for name in splits))] if groups else []),
        ("with several labels", *(c["several"] for c in counts)),
        ("files (one per label)", *(sum(c["labels"].values()) for c in counts)),
        *((f"  {t}", *(c["labels"][n] for c in counts)) for t, n in zip(labels.titles, labels.names, strict=True)),
        ("copied, not linked", *(c["copied"] for c in counts)),
        ("made by --balance", *(sum(c["made"].values()) for c in counts)),
        ("turned by EXIF", *(c["facts"]["turned"] for c in counts)),
        ("several frames, first used", *(c["facts"]["animated"] for c in counts)),
        ("wrong extension", *(c["facts"]["misnamed"] for c in counts)),
    ]
    return format_table(rows)


def _write_split(
    photos: list[AuditedPhoto], folder: Path, labels: LabelSet, settings: dict, progress: Progress
) -> dict:
    """Writes one split, each photo into the folders of its labels, and returns its entry in the manifest."""
    for name in labels.folders:
        (folder / name).mkdir(parents=True)
    most = 1 if settings["multi_label"] == "first" else None
    rows = [replace(photo.row, labels=photo.row.labels[:most]) for photo in photos]
    num_copied, files = 0, {}
    for photo, row in zip(photos, rows, strict=True):
        for label in row.labels:
            file = f"{labels.folder_of[label]}/{row.image}"
            num_copied += _place(photo.file, folder / file, settings["mode"])
            files[file] = photo.entry
    write_one_hot(folder.with_name(f"OneHot-{folder.name}_label.csv"), rows, labels)
    balance = settings["balance"] and folder.name == "train"
    copies = _write_copies(photos, rows, folder, labels, settings, progress) if balance else {}
    return {
        "rows": len(photos),
        "several": sum(len(photo.row.labels) > 1 for photo in photos),
        "copied": num_copied,
        "labels": _count_labels(files, labels),
        "made": _count_labels(copies, labels),
        "combinations": dict(sorted(Counter(" + ".join(sorted(photo.row.labels)) for photo in photos).items())),
        "facts": count_facts(photos),
        "files": files | copies,
    }


def _write_copies(
    photos: list[AuditedPhoto],
    rows: list[LabelRow],
    folder: Path,
    labels: LabelSet,
    settings: dict,
    progress: Progress,
) -> dict:
    """Writes the balanced copies, each into the folders of its labels; returns their entries in the manifest."""

    def write_copy(planned: tuple[int, str]) -> dict:
        """Writes the copy of a photo, given as (its index, kind of copy); returns its entries."""
        index, kind = planned
        name = balanced_copy_name(rows[index].image, kind)
        content = encode(make_copy(read_image(photos[index].file), kind), name, settings["quality"])
        first, *others = (f"{labels.folder_of[label]}/{name}" for label in rows[index].labels)
        (folder / first).write_bytes(content)
        for other in others:
            _place(folder / first, folder / other, settings["mode"])
        return dict.fromkeys([first, *others], entry_of(content))

    made = in_parallel(write_copy, plan_copies([row.labels for row in rows]), progress)
    return {file: entry for files in made for file, entry in files.items()}


def _count_labels(files: Iterable[str], labels: LabelSet) -> dict[str, int]:
    """How many of the files `folder/name` each label has."""
    counts = Counter(file.split("/")[0] for file in files)
    return {name: counts[folder] for folder, name in zip(labels.folders, labels.names, strict=True)}


def _place(source: Path, target: Path, mode: str) -> bool:
    """Hard-links; or copies, if requested or if the file system cannot link. Returns True if it copied."""
    if mode == "link":
        try:
            os.link(source.resolve(), target)
            return False
        except OSError:  # another device, no links on this file system, too many links, another user's file
            pass
    shutil.copyfile(source, target)
    return True
