"""The raw folder: photos and the CSV rows that belong to them. No photo is opened here.

SRC/{train,val,test}/images + {split}_label.csv      splits, as the course gives them
SRC/train_images + train.csv                         one pool to be split, as Kaggle gives it
"""

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.images import EXTENSIONS, is_photo, note_ignored
from data.labels import SPLITS, LabelRow, read_labels
from tools.base.errors import DataError, listing
from tools.base.files import leads_out


@dataclass(frozen=True)
class RawSplit:
    """One split, or the pool, as it came."""

    name: str
    folder: Path  # the folder that belongs to this split alone
    images: Path  # the folder of the photos
    rows: list[LabelRow]  # those of the CSV that have a file in images
    csv_sha256: str = ""
    repeats: int = 0  # how many rows repeat an earlier one
    missing: Sequence[str] = ()  # photos that have a row and no file, with the file that has nearly its name
    unlabelled: Sequence[str] = ()  # photos that have a file and no row
    ignored: Sequence[str] = ()  # entries of images that are hidden or not photos

    def notes(self) -> list[str]:
        """Lines about rows and files that are always ignored."""
        notes = [f"{self.name}: {self.repeats} repeated row(s) ignored"] if self.repeats else []
        return notes + note_ignored(self.name, self.ignored)


def read_raw(src: Path, pool: bool, follow: bool = False) -> list[RawSplit]:
    """The splits under `src`, one or more of train, val and test.

    Args:
        pool: `src` has no splits yet: its photos and its CSV are the only one, named after the image folder.
        follow: read photos through links that lead out of `src`.

    Raises:
        DataError: when photos or a label file are missing, or a label file is wrong.
    """
    if not src.is_dir():
        raise DataError(f"--src {src} is not a folder")
    root = None if follow else src
    if pool:
        return [_read_pool(src, root)]
    names = [name for name in SPLITS if (src / name).is_dir()]
    if not names:
        raise DataError(
            f"--src {src} has none of the folders {', '.join(SPLITS)}, each with images/ and a label CSV; "
            "for one folder and one CSV give --split 0.8 0.1 0.1"
        )
    return [_read_split(src, name, root) for name in names]


def check_rows(raws: list[RawSplit], max_missing: int, multi_label: str) -> None:
    """Raises DataError for more missing items than `max_missing`, or for several labels if `multi_label` is "error"."""
    for what, names in left_out(raws, unreadable=[]).items():
        check_count(names, what, "--max-missing", max_missing)
    for name, row in ((raw.name, row) for raw in raws for row in raw.rows):
        if len(row.labels) > 1 and multi_label == "error":
            raise DataError(
                f"{name}, row {row.line}: {row.image} has the labels {' '.join(row.labels)}; "
                "choose --multi-label copy or first"
            )


def check_count(found: list[str], what: str, flag: str, limit: int) -> None:
    """Raises DataError with the first of `found` when there are more than `limit`, which `flag` sets."""
    if len(found) > limit:
        raise DataError(f"{len(found)} {what}: {listing(found)}; fix them, or allow them with {flag} {len(found)}")


def left_out(raws: list[RawSplit], unreadable: list[str]) -> dict[str, list[str]]:
    """Everything that is left out of the tree, by reason."""
    return {
        "rows without a photo": [f"{raw.name}/{name}" for raw in raws for name in raw.missing],
        "photos without a row": [f"{raw.name}/{name}" for raw in raws for name in raw.unlabelled],
        "unreadable photos": unreadable,
    }


def _read_pool(src: Path, root: Path | None) -> RawSplit:
    folders = [src / name for name in ("train_images", "images", ".") if _has_photos(src / name)]
    if not folders:
        raise DataError(f"--src {src}: no photos in train_images/, images/ or the folder itself; needed by --split")
    tables = [src / "train.csv"] if (src / "train.csv").exists() else sorted(src.glob("*.csv"))
    if len(tables) != 1:
        found = ", ".join(path.name for path in tables) or "no CSV"
        raise DataError(f"--src {src}: looked for train.csv or a single CSV, found {found}; needed by --split")
    return _match(folders[0].resolve().name, folders[0], folders[0], tables[0], root)


def _read_split(src: Path, name: str, root: Path | None) -> RawSplit:
    folder = src / name
    if not (folder / "images").is_dir():
        raise DataError(f"{folder / 'images'} is not a folder")
    beside, above = folder / f"{name}_label.csv", src / f"{name}_label.csv"
    table = above if above.exists() and not beside.exists() else beside
    return _match(name, folder, folder / "images", table, root)


def _match(name: str, folder: Path, images: Path, table: Path, root: Path | None) -> RawSplit:
    """Matches the rows of a CSV with the entries of a folder; no link may lead out of `root`."""
    labels = read_labels(table)
    entries = list(os.scandir(images))
    out = [entry.path for entry in entries if root and leads_out(entry, root)]
    if out:
        raise DataError(f"image {min(out)} is a link out of {root}; remove it, or add --follow-links")
    present = {entry.name for entry in entries} - ({table.name} if table.parent == images else set())
    unlisted = sorted(present - {row.image for row in labels.rows})
    for row in labels.rows:
        if row.image in present and not is_photo(row.image):
            raise DataError(
                f"{table}, row {row.line}: {row.image} is not named like a photo ({', '.join(EXTENSIONS)}); "
                "convert it to JPEG or PNG, and correct its name in the row"
            )
    stray = [name for name in unlisted if is_photo(name)]
    alike = {_plain_name(name): f" (there is {name})" for name in stray}
    missing = [row.image for row in labels.rows if row.image not in present]
    return RawSplit(
        name=name,
        folder=folder,
        images=images,
        rows=[row for row in labels.rows if row.image in present],
        csv_sha256=labels.sha256,
        repeats=labels.repeats,
        missing=[name + alike.get(_plain_name(name), "") for name in missing],
        unlabelled=stray,
        ignored=[name for name in unlisted if not is_photo(name)],
    )


def _plain_name(name: str) -> str:
    """The name normalised: file systems differ in upper and lower case and in how they compose accents."""
    return unicodedata.normalize("NFC", name).casefold()


def _has_photos(folder: Path) -> bool:
    return folder.is_dir() and any(map(is_photo, os.listdir(folder)))
