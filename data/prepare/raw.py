"""The raw folder: photos and the labels that belong to them. No photo is decoded here.

SRC/{train,val,test}/images + {split}_label.csv      splits, as the course gives them
SRC/{train,val,test}/LABEL/photo                     splits, as torchvision's ImageFolder reads them
SRC/train_images + train.csv                         one pool to be split, as Kaggle gives it
SRC/LABEL/photo                                      one pool
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.images import EXTENSIONS, is_photo, note_ignored
from data.label_files import LabelRow, image_name, read_labels
from data.labels import SPLITS, LabelSet, is_foreign_folder
from data.loading.sources import FolderSource
from data.loading.split import group_copies
from data.manifest import read_manifest
from tools.base.errors import DataError, listing
from tools.base.files import leads_out
from tools.base.tables import find_repeated


@dataclass(frozen=True)
class Reading:
    """How the raw folder is read.

    Attributes:
        follow: read photos through links that lead out of it.
        separator, group: as in `data.label_files.read_labels`.
        group_pattern: a regular expression; its first bracket is, in the name of a photo's file, the photo's group.
        keep_unlabelled: photos without labels are listed; otherwise they are an error.
    """

    follow: bool = False
    separator: str | None = None
    group: str | None = None
    group_pattern: str | None = None
    keep_unlabelled: bool = False


@dataclass(frozen=True)
class RawSplit:
    """One split, or the pool, as it came."""

    name: str
    folder: Path  # the folder that belongs to this split alone
    images: Path  # the folder of the photos
    rows: list[LabelRow]  # those that have a photo and labels
    table: Path | None = None  # the label CSV; None for class folders
    csv_sha256: str = ""
    declared: Sequence[str] = ()  # labels that have a column, whether or not a photo has them
    repeats: int = 0  # how many rows repeat an earlier one
    missing: Sequence[str] = ()  # photos that have a row and no file, with the file that has nearly its name
    unlisted: Sequence[str] = ()  # photos that have a file and no row
    lost: Sequence[LabelRow] = ()  # rows that have no photo
    unlabelled: Sequence[str] = ()  # photos that have a row without labels
    dropped: Sequence[str] = ()  # photos whose labels were all dropped by --labels
    ignored: Sequence[str] = ()  # entries that are hidden or not photos
    ignored_columns: Sequence[str] = ()  # of the CSV

    def notes(self) -> list[str]:
        """Lines about rows, columns and files that are always ignored."""
        notes = [f"{self.name}: {self.repeats} repeated row(s) ignored"] if self.repeats else []
        columns = ", ".join(self.ignored_columns)
        notes += [f"{self.name}: the columns {columns} of {self.table} are not read"] if columns else []
        return notes + note_ignored(self.name, self.ignored)

    def locate(self, row: LabelRow) -> str:
        """Where a row came from, for messages."""
        return f"{self.table}, row {row.line}: {row.image}" if self.table else str(self.images / row.file)


def read_raw(src: Path, pool: bool, reading: Reading) -> list[RawSplit]:
    """The splits under `src`, one or more of train, val and test.

    Args:
        pool: `src` has no splits yet: its photos are the only one, named after their folder.

    Raises:
        DataError: when photos or labels are missing, or a label file is wrong.
    """
    if not src.is_dir():
        raise DataError(f"--src {src} is not a folder; give the folder of the photos and labels")
    if pool:
        return [_name_groups(_read_pool(src, reading), reading)]
    names = [name for name in SPLITS if (src / name).is_dir()]
    if not names:
        raise DataError(
            f"--src {src} has none of the folders {', '.join(SPLITS)}, each with class folders, or with images/ and a "
            "label CSV; for one folder that is not yet split give --split 0.8 0.1 0.1"
        )
    for other in ("valid", "validation"):  # as in several public data sets
        if "val" not in names and (src / other).is_dir():
            raise DataError(f"--src {src} has a folder {other}, and the name of that split is val; rename it")
    tables = [table for name in names if (table := _table_of(src, name)).is_file()]
    return [_name_groups(_read_split(src, name, reading, tables), reading) for name in names]


def check_rows(raws: list[RawSplit], max_missing: int, multi_label: str) -> None:
    """Raises DataError for more missing items than `max_missing`, or for several labels if `multi_label` is "error"."""
    for what in ("rows without a photo", "photos without a row"):
        check_count(left_out(raws).get(what, []), what, "--max-missing", max_missing)
    for raw, row in ((split, row) for split in raws for row in split.rows):
        if len(row.labels) > 1 and multi_label == "error":
            raise DataError(
                f"{raw.name}, {raw.locate(row)} has the labels {', '.join(row.labels)}; "
                "choose --multi-label copy or first"
            )


def check_count(found: Sequence[str], what: str, flag: str, limit: int) -> None:
    """Raises DataError with the first of `found` when there are more than `limit`, which `flag` sets."""
    if len(found) > limit:
        raise DataError(f"{len(found)} {what}: {listing(found)}; fix them, or allow them with {flag} {len(found)}")


def left_out(raws: list[RawSplit]) -> dict[str, list[str]]:
    """The photos and rows that are left out of the tree before a photo is read, by reason."""

    def named(attribute: str) -> list[str]:
        return [f"{raw.name}/{name}" for raw in raws for name in getattr(raw, attribute)]

    kept = {"photos without labels": named("unlabelled"), "photos whose labels were dropped": named("dropped")}
    found = {what: names for what, names in kept.items() if names}
    return {"rows without a photo": named("missing"), "photos without a row": named("unlisted")} | found


def _read_pool(src: Path, reading: Reading) -> RawSplit:
    folders = [src / name for name in ("train_images", "images", ".") if _has_photos(src / name)]
    tables = [src / "train.csv"] if (src / "train.csv").exists() else sorted(src.glob("*.csv"))
    if not folders and _has_class_folders(src):
        return _read_tree(src.resolve().name, src, src, reading)
    if not folders:
        raise DataError(
            f"--src {src}: no photos in train_images/, images/ or the folder itself, nor in class folders; --split "
            "wants SRC/LABEL/photo, or a CSV and photos in one folder"
        )
    if len(folders) > 1:
        raise DataError(
            f"--src {src} has photos in {' and in '.join(map(str, folders))}; only one folder is read, so put all "
            "photos into one of them"
        )
    if len(tables) != 1:
        found = ", ".join(path.name for path in (tables or sorted(src.glob("*.xls*")))) or "no CSV"
        raise DataError(
            f"--src {src}: the photos in {folders[0]} need train.csv or a single CSV in {src}, found {found}; save an "
            "Excel sheet as `CSV UTF-8`, or put every photo into a folder that is called like its label"
        )
    return _match(folders[0].resolve().name, folders[0], folders[0], tables[0], src, reading)


def _table_of(src: Path, name: str) -> Path:
    """Where the label CSV of a split is, or would be."""
    beside, above = src / name / f"{name}_label.csv", src / f"{name}_label.csv"
    return above if above.exists() and not beside.exists() else beside


def _read_split(src: Path, name: str, reading: Reading, tables: Sequence[Path]) -> RawSplit:
    folder, table = src / name, _table_of(src, name)
    if not os.path.lexists(table) and _has_class_folders(folder):
        return _read_tree(name, folder, src, reading)
    if not (folder / "images").is_dir():
        raise DataError(f"{folder / 'images'} is not a folder, and {folder} has no class folders with photos either")
    return _match(name, folder, folder / "images", table, src, reading, tables)


def _match(
    name: str, folder: Path, images: Path, table: Path, src: Path, reading: Reading, tables: Sequence[Path] = ()
) -> RawSplit:
    """Matches the rows of a CSV with the entries of a folder; `tables` are the CSVs of all splits."""
    labels = read_labels(table, reading.separator, reading.group, tables)
    for row in labels.rows:
        if not row.labels and not reading.keep_unlabelled:
            raise DataError(
                f"{table}, row {row.line}: {row.image} has no label; --unlabelled keep leaves such photos out"
            )
    entries = list(os.scandir(images))
    out = [entry.path for entry in entries if not reading.follow and leads_out(entry, src)]
    if out:
        raise DataError(f"image {min(out)} is a link out of {src}; remove it, or add --follow-links")
    present = {entry.name for entry in entries} - ({table.name} if table.parent == images else set())
    rows, lost = _find_files(labels.rows, present, table)
    unlisted = sorted(present - rows.keys())
    stray = [name for name in unlisted if is_photo(name)]
    alike = {_plain_name(name): f" (there is {name})" for name in stray}
    unlabelled = [file for file, row in rows.items() if not row.labels]
    return RawSplit(
        name=name,
        folder=folder,
        images=images,
        rows=[row for row in rows.values() if row.labels],
        table=table,
        csv_sha256=labels.sha256,
        declared=labels.declared,
        repeats=labels.repeats + len(labels.rows) - len(rows) - len(lost),
        lost=lost,
        missing=[row.image + alike.get(_plain_name(row.image), "") for row in lost],
        unlisted=[] if reading.keep_unlabelled else stray,
        unlabelled=[*unlabelled, *stray] if reading.keep_unlabelled else [],
        ignored=[name for name in unlisted if not is_photo(name)],
        ignored_columns=labels.ignored,
    )


def _find_files(
    given: Sequence[LabelRow], present: Collection[str], table: Path
) -> tuple[dict[str, LabelRow], list[LabelRow]]:
    """(file -> its row, rows without a file); a row may leave out the extension of its photo."""
    rows: dict[str, LabelRow] = {}
    lost = []
    stems: dict[str, list[str]] = {}
    for name in filter(is_photo, present):
        stems.setdefault(os.path.splitext(name)[0], []).append(name)
    for row in given:
        file = row.image
        if file not in present and len(named := stems.get(file, [])) == 1:
            file = named[0]
        if file not in present:
            lost.append(row)
            continue
        if not is_photo(file):
            raise DataError(
                f"{table}, row {row.line}: {row.image} is not named like a photo ({', '.join(EXTENSIONS)}); "
                "convert it to JPEG or PNG, and correct its name in the row"
            )
        first = rows.setdefault(file, replace(row, image=file, file=file))
        if (set(first.labels), first.group) != (set(row.labels), row.group):
            what = "labels" if first.group == row.group else "groups"
            raise DataError(f"{table}: rows {first.line} and {row.line} give {file} different {what}; remove one")
    return rows, lost


def _read_tree(name: str, folder: Path, src: Path, reading: Reading) -> RawSplit:
    """The photos of class folders. Files with equal names and equal bytes are one photo with several labels.

    Where different photos have the same name, it becomes `<folder>__<name>`.
    """
    source = FolderSource(folder, reading.follow)
    found, ignored = source.list_files()
    ignored += [f"{empty}/" for empty, names in found.items() if not names]
    found = {label_folder: files for label_folder, files in found.items() if files}
    manifest = read_manifest(src)
    try:
        names = LabelSet.names_of(found)
    except DataError as error:
        raise DataError(f"{folder}: {error}") from None
    names |= LabelSet.from_plain(manifest["label_set"]).name_of if manifest else {}
    labels = [names[label_folder] for label_folder in found]
    photos = group_copies(source, found, tuple(found))
    times = Counter(photo.name for photo in photos)
    rows = []
    for photo in photos:
        single = times[photo.name] == 1
        image = image_name(photo.name if single else photo.file.replace("/", "__"), str(folder / photo.file))
        rows.append(LabelRow(image, tuple(dict.fromkeys(labels[c] for c in photo.classes)), 0, photo.file))
    if repeated := find_repeated(row.image for row in rows):
        raise DataError(f"{folder} holds two photos that would be called {repeated}; rename one of them")
    return RawSplit(name, folder, folder, rows, ignored=ignored)


def _name_groups(raw: RawSplit, reading: Reading) -> RawSplit:
    """The split with the names of the groups: Unicode's form NFC, words one space apart."""
    column, pattern = reading.group, reading.group_pattern
    if not column and not pattern:
        return raw
    if column and not raw.table:
        raise DataError(f"--group {column}: {raw.folder} has class folders and no label CSV; give --group-pattern")

    def name_group(row: LabelRow) -> str:
        found = re.search(pattern, Path(row.file).name) if pattern else None
        text = (found[1] if found else None) or row.group
        return " ".join(unicodedata.normalize("NFC", text).split())

    rows = [replace(row, group=name_group(row)) for row in raw.rows]
    if without := [row.image for row in rows if not row.group]:
        flag = f"--group-pattern {pattern!r}" if pattern else f"--group {column}"
        way_out = "correct the pattern" if pattern else "fill in the column"
        raise DataError(
            f"{flag}: {len(without)} of {len(rows)} photos of {raw.table or raw.folder} have no group: "
            f"{listing(without)}; {way_out}; a photo that belongs with no other needs a group of its own"
        )
    return replace(raw, rows=rows)


def _plain_name(name: str) -> str:
    """The name normalised: file systems differ in upper and lower case and in how they compose accents."""
    return unicodedata.normalize("NFC", name).casefold()


def _has_photos(folder: Path) -> bool:
    return folder.is_dir() and any(map(is_photo, os.listdir(folder)))


def _has_class_folders(folder: Path) -> bool:
    """Whether some folder in it holds photos; `images` alone belongs to a label CSV, which may be missing."""
    names = [entry.name for entry in folder.iterdir() if not is_foreign_folder(entry.name) and entry.name != "images"]
    return any(_has_photos(folder / name) for name in names)
