"""A split on disk (folders or one zip archive) as a list of samples.

    <root>/<split>/<class folder>/ID.jpg        or the same tree inside <root>/<split>.zip

A photo with several labels lies in several folders; each of these files is a label copy. With targets "single" every
label copy is a sample with one class; with targets "multi" the label copies of one photo are one sample.
"""

import glob
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.images import EXTENSIONS, is_photo, note_ignored
from data.labels import LabelSet, class_name_fault, is_balanced_copy, is_foreign_folder
from data.loading.sources import FolderSource, ZipSource
from data.manifest import MANIFEST, read_manifest
from tools.base.errors import DataError, listing, nearest

MOST_NAMED = 12  # labels in a line of the log


@dataclass(frozen=True)
class Photo:
    """One photo of a split."""

    name: str  # its file name
    file: str  # where to read it, folder/name
    classes: tuple[int, ...]  # indices into the label set, ascending; each of their folders holds one label copy


@dataclass(frozen=True)
class Split:
    """The photos of one split, in order of class and name, and notes about them for the user."""

    where: str
    source: FolderSource | ZipSource
    labels: LabelSet
    photos: list[Photo]
    notes: list[str] = field(default_factory=list)

    @property
    def copies(self) -> list[Photo]:
        """A single-class photo for every label copy, in the order of the folders."""
        return sorted(
            (Photo(p.name, p.file, (c,)) for p in self.photos for c in p.classes), key=lambda p: (p.classes, p.name)
        )

    @property
    def counts(self) -> list[int]:
        """Label copies per class."""
        found = Counter(c for photo in self.photos for c in photo.classes)
        return [found[c] for c in range(len(self.labels.names))]

    def digest(self) -> str:
        """SHA-256 over the photos' names, classes, sizes and checksums."""
        lines = [f"{p.name} {p.classes} {self.source.size(p.file)} {self.source.checksum(p.file)}" for p in self.photos]
        return hashlib.sha256("\n".join([*self.labels.folders, *lines]).encode(errors="surrogateescape")).hexdigest()


def scan_split(
    root: str | Path,
    name: str,
    zip_mode: bool = False,
    labels: LabelSet | None = None,
    balanced_copies: bool = False,
    follow: bool = False,
) -> Split:
    """Lists the photos of a split.

    Args:
        labels: of the training split or a checkpoint; None takes those of the data. Class folders are matched with
            them by the names of their labels, which the manifest gives; without a manifest, by the folders themselves,
            or if there are others, by their names as names of labels.
        balanced_copies: also list the copies that process_dataset.py --balance made, which only training may use.
        follow: read photos through links that lead out of the split.

    Raises:
        DataError: for a missing split, an unknown or empty class folder, or files that changed since the tree was made.
    """
    root = Path(root)
    manifest = read_manifest(root) if root.is_dir() else None
    source = ZipSource(root / f"{name}.zip") if zip_mode else FolderSource(root / name, follow)
    where = source.locate("").rstrip("/:")
    found, ignored = source.list_files()
    if not found:
        raise DataError(f"{where} holds no class folders")
    notes = note_ignored(where, ignored)
    if manifest is None:
        notes.append(f"{root} has no {MANIFEST}: used as it is, not checked by process_dataset.py")
    else:
        _check_unchanged(manifest, name, found, source, where)
    for folder in found:
        if fault := class_name_fault(folder):
            raise DataError(f"{where}: class folder {folder!r} {fault}; rename it")
    if not balanced_copies:
        total = sum(map(len, found.values()))
        found = {folder: [f for f in names if not is_balanced_copy(f)] for folder, names in found.items()}
        num_left_out = total - sum(map(len, found.values()))
        notes += [f"{where}: {num_left_out} files made by --balance left out"] if num_left_out else []
    labels, folders = _match_folders(found, manifest, labels, where)
    photos = group_copies(source, found, folders)
    if not photos:
        raise DataError(f"{where} holds no photos")
    return Split(where, source, labels, photos, notes)


def find_photos(names: Sequence[str]) -> tuple[list[Path], list[str]]:
    """(photos, ignored files) that files, folders (searched recursively) and glob patterns name; each once, in order.

    A file given by its own name may have any extension; its content decides.

    Raises:
        DataError: for a name that leads to no photo.
    """
    found: dict[Path, None] = {}
    ignored: list[str] = []
    for name in names:
        paths = [Path(name)] if os.path.lexists(name) else [Path(p) for p in sorted(glob.glob(name, recursive=True))]
        photos, others = [], []
        for path in paths:
            for file in sorted(_walk(path)) if path.is_dir() else [path]:
                if file == path or is_photo(file.name):
                    photos.append(file)
                else:
                    others.append(str(file))
        if not photos:
            why = f"it holds only {listing(others)}" if others else "it holds none"
            if not paths:
                why = "nothing matches" if any(sign in name for sign in "*?[") else f"{name} does not exist"
            raise DataError(f"{name} leads to no photo: {why}; photos are files of {', '.join(EXTENSIONS)}")
        found |= dict.fromkeys(photos)
        ignored += others
    return list(found), ignored


def _walk(folder: Path) -> Iterator[Path]:
    """The files under a folder, and the folders in it that belong to a program, which are not searched."""
    for base, folders, files in os.walk(folder):
        foreign = [name for name in folders if is_foreign_folder(name)]
        folders[:] = [name for name in folders if name not in foreign]
        yield from (Path(base) / name for name in (*files, *foreign))


def samples_of(split: Split, targets: str) -> list[Photo]:
    """The samples of a training split: label copies for targets "single", photos for "multi"."""
    return split.copies if targets == "single" else split.photos


def describe(split: Split) -> str:
    """`where: n photos, m copies (scab 12, rust 3, ...)`, with `MOST_NAMED` labels by name."""
    by_label = [f"{name} {n}" for name, n in zip(split.labels.names, split.counts, strict=True)]
    rest = len(by_label) - MOST_NAMED
    named = ", ".join([*by_label[:MOST_NAMED], *([f"{rest} more labels"] if rest > 0 else [])])
    return f"{split.where}: {len(split.photos)} photos, {sum(split.counts)} copies ({named})"


def _check_unchanged(manifest: dict, split: str, found: dict[str, list[str]], source, where: str) -> None:
    """Raises DataError when the files of a split are not those of the manifest."""
    if split not in manifest["splits"]:
        raise DataError(f"{where} is not in {MANIFEST}; run process_dataset.py again with --overwrite")
    listed = manifest["splits"][split]["files"]
    present = {f"{folder}/{name}" for folder, names in found.items() for name in names}
    changed = sorted(listed.keys() ^ present) or [f for f in sorted(present) if source.size(f) != listed[f]["size"]]
    if changed:
        first = changed[0]
        what = "was added" if first not in listed else "has changed" if first in present else "is missing"
        raise DataError(
            f"{where}/{first} {what} since process_dataset.py ({len(changed)} changes in all); "
            "run it again with --overwrite"
        )


def _match_folders(
    found: dict[str, list[str]], manifest: dict | None, labels: LabelSet | None, where: str
) -> tuple[LabelSet, list[str]]:
    """(the label set, the class folder of each label or the empty string), see `scan_split`.

    Raises:
        DataError: for class folders that are unknown, empty, or of one label.
    """
    names_of = {} if manifest else LabelSet.names_of(found)
    own = LabelSet.from_plain(manifest["label_set"]) if manifest else labels or LabelSet.of_folders(names_of)
    folder_of = {own.name_of.get(folder) or names_of.get(folder, folder): folder for folder in found}
    name_of = {folder: name for name, folder in folder_of.items()}
    labels, may_be_empty = labels or own, own.folders if manifest else ()
    for folder, names in found.items():
        name = name_of.get(folder)
        if name is None:
            raise DataError(f"{where}: the class folder {folder} is of the same label as another one; merge them")
        if not names and folder not in may_be_empty:
            raise DataError(f"{where}/{folder} is empty, or holds no photos; add some, or remove the folder")
        if names and name not in labels.folder_of:
            hint = nearest(name or folder, labels.names)
            raise DataError(f"{where}/{folder} is not a class of this model or training split{hint}")
    return labels, [folder_of.get(name, "") for name in labels.names]


def group_copies(source, found: dict[str, list[str]], folders: Sequence[str]) -> list[Photo]:
    """One `Photo` for all label copies of a photo: files with equal names and equal bytes, in order of class and name.

    Args:
        found: names of files by class folder.
        folders: the class folders in the order of the classes.
    """
    groups: dict[tuple[str, int], list[tuple[str, list[int]]]] = {}  # name and size -> files, and their classes
    for index, folder in enumerate(folders):
        for name in found.get(folder, ()):
            file = f"{folder}/{name}"
            entries = groups.setdefault((name, source.size(file)), [])
            known = next((where for first, where in entries if source.same(first, file)), None)
            if known:
                known.append(index)
            else:
                entries.append((file, [index]))
    photos = [Photo(name, file, tuple(where)) for (name, _), entries in groups.items() for file, where in entries]
    return sorted(photos, key=lambda photo: (photo.classes[0], photo.name))
