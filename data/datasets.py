"""A split on disk (folders or one zip) as a list of samples, and the samples as tensors.

    <root>/<split>/<one-hot code>/ID.jpg        or the same tree inside <root>/<split>.zip

Targets single: every copy is a sample with one class. Targets multi: the copies of one photo are one sample.
"""

import glob
import hashlib
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.cache import Encoded
from data.files import leads_out
from data.images import EXTENSIONS, MAX_BYTES, is_photo, read_bytes
from data.labels import is_made, label_name, origin_name
from data.prepare import MANIFEST, read_manifest
from data.samplers import Draw
from data.seeds import AUGMENT, seed_of, seeded
from data.transforms import View
from tools.errors import DataError, UserError, nearest

_ZIP_FAULTS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError, UnicodeError)
ENDS = 32 << 10  # bytes at either end of a large file that its checksum is taken of


@dataclass(frozen=True)
class Photo:
    """One photo of a split.

    Attributes:
        name: its file name.
        file: where to read it, `code/name`.
        classes: indices into the split's classes, ascending; one copy lies in each of their folders.
    """

    name: str
    file: str
    classes: tuple[int, ...]

    @property
    def origin(self) -> str:
        """The name of the photo that a made copy was made of; its own name otherwise."""
        return origin_name(self.name)


@dataclass(frozen=True)
class Split:
    """The photos of one split, in order of class and name, and what a user should know about them."""

    where: str
    source: "FolderSource | ZipSource"
    classes: tuple[str, ...]
    photos: list[Photo]
    notes: list[str] = field(default_factory=list)

    @property
    def copies(self) -> list[Photo]:
        """A single-class photo for every copy, in the order of the folders."""
        return sorted(
            (Photo(p.name, p.file, (c,)) for p in self.photos for c in p.classes), key=lambda p: (p.classes, p.name)
        )

    @property
    def counts(self) -> list[int]:
        """Copies of every class."""
        return [sum(c in photo.classes for photo in self.photos) for c in range(len(self.classes))]

    def digest(self) -> str:
        """SHA-256 over names, classes, sizes and checksums: equal digests, the same data."""
        lines = [f"{p.name} {p.classes} {self.source.size(p.file)} {self.source.checksum(p.file)}" for p in self.photos]
        return hashlib.sha256("\n".join([*self.classes, *lines]).encode(errors="surrogateescape")).hexdigest()


class FolderSource:
    """Files under a folder; `place` is where they lie, for both kinds of source."""

    def __init__(self, root: Path, follow: bool = False):
        self.root, self.follow = root, follow

    @property
    def place(self) -> Path:
        """The folder."""
        return self.root

    def list_files(self) -> tuple[dict[str, list[str]], int]:
        """File names by class folder, both sorted, and how many entries were not samples (hidden, no photo)."""
        if not self.root.is_dir():
            raise DataError(f"{self.root} is not a folder; make it with process_dataset.py, or give --data-path")
        found, ignored = {}, 0
        for folder in sorted(os.scandir(self.root), key=lambda entry: entry.name):
            if folder.name.startswith(".") or not (folder.is_symlink() or folder.is_dir()):
                ignored += 1
                continue
            self._check_link(folder, "class folder")
            if not os.path.isdir(folder):
                raise DataError(f"class folder {folder.path} is a link to no folder; remove it")
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            photos = [entry for entry in entries if is_photo(entry.name)]
            for entry in photos:
                self._check_link(entry, "image")
                if not (entry.is_file(follow_symlinks=False) or Path(entry).is_file()):
                    raise DataError(f"image {entry.path} is not a file, nor a link to one; remove it")
            found[folder.name] = [entry.name for entry in photos]
            ignored += len(entries) - len(photos)
        return found, ignored

    def _check_link(self, entry: os.DirEntry, what: str) -> None:
        if not self.follow and leads_out(entry, self.root):
            raise DataError(f"{what} {entry.path} is a link out of {self.root}; remove it, or add --follow-links")

    def read(self, file: str) -> bytes:
        """The bytes of `code/name`."""
        return read_bytes(self.root / file)

    def size(self, file: str) -> int:
        """Its length in bytes."""
        try:
            return (self.root / file).stat().st_size
        except OSError as error:
            raise DataError(f"image {self.root / file} cannot be read: {error.strerror}") from None

    def checksum(self, file: str) -> int:
        """CRC-32 of its bytes; of a file above twice ENDS, of its first and last ENDS bytes."""
        path = self.root / file
        if (size := self.size(file)) <= 2 * ENDS:
            return zlib.crc32(self.read(file))
        try:
            with path.open("rb") as content:
                return _ends(content, size)
        except OSError as error:
            raise DataError(f"image {path} cannot be read: {error.strerror}") from None

    def same(self, a: str, b: str) -> bool:
        """Whether two entries are one photo: hard links, or equal bytes."""
        return os.path.samefile(self.root / a, self.root / b) or (
            self.size(a) == self.size(b) and self.read(a) == self.read(b)
        )

    def locate(self, file: str) -> str:
        """What a user can open."""
        return str(self.root / file)


class ZipSource:
    """Members of a zip archive, read without unpacking. Every process opens the archive for itself."""

    def __init__(self, path: Path):
        self.path = path
        self._archive: tuple[int, zipfile.ZipFile] | None = None
        self._inside = ""  # what comes before code/name, once the archive is open

    @property
    def place(self) -> Path:
        """The archive."""
        return self.path

    def list_files(self) -> tuple[dict[str, list[str]], int]:
        """As `FolderSource.list_files`; a single leading folder named after the split is left out."""
        found: dict[str, list[str]] = {}
        ignored = 0
        seen: set[str] = set()
        for info in self._open().infolist():
            self._check_member(info, seen)
            if info.is_dir():
                continue
            place, parts = info.filename[: len(self._inside)], info.filename[len(self._inside) :].split("/")
            foreign = place != self._inside or len(parts) != 2
            if foreign or parts[0].startswith(".") or not is_photo(parts[1]):
                ignored += 1
                continue
            found.setdefault(parts[0], []).append(parts[1])
        return {code: sorted(found[code]) for code in sorted(found)}, ignored

    def read(self, file: str) -> bytes:
        """The bytes of `code/name`, at most MAX_BYTES of them whatever the archive declares."""
        try:
            with self._open().open(self._member(file)) as member:
                raw = member.read(MAX_BYTES + 1)
        except (*_ZIP_FAULTS, KeyError, RuntimeError) as error:
            raise DataError(f"image {self.locate(file)} cannot be read: {error}") from None
        if len(raw) > MAX_BYTES:
            raise DataError(f"image {self.locate(file)} is larger than {MAX_BYTES:,} bytes")
        return raw

    def size(self, file: str) -> int:
        """Its declared length in bytes."""
        return self._member(file).file_size

    def checksum(self, file: str) -> int:
        """As `FolderSource.checksum`; the archive has that of a small file."""
        member = self._member(file)
        if member.file_size <= 2 * ENDS:
            return member.CRC
        try:
            with self._open().open(member) as content:
                return _ends(content, member.file_size)
        except (*_ZIP_FAULTS, RuntimeError) as error:
            raise DataError(f"image {self.locate(file)} cannot be read: {error}") from None

    def same(self, a: str, b: str) -> bool:
        """Whether two members are one photo."""
        one, other = self._member(a), self._member(b)
        return (one.CRC, one.file_size) == (other.CRC, other.file_size) and self.read(a) == self.read(b)

    def locate(self, file: str) -> str:
        """Archive and member."""
        return f"{self.path}:{file}"

    def _check_member(self, info: zipfile.ZipInfo, seen: set[str]) -> None:
        """Raises DataError for a member that no archive of photos has; `seen`: the names before it."""
        name = info.filename
        for problem, holds in {
            "leads out of the archive": name.startswith("/") or "\\" in name or ".." in name.split("/"),
            "is there twice": name in seen,
            "is encrypted": info.flag_bits & 1,
            f"is larger than {MAX_BYTES:,} bytes": info.file_size > MAX_BYTES,
        }.items():
            if holds:
                raise DataError(f"{self.path}: member {name} {problem}; make the archive anew")
        seen.add(name)

    def _member(self, file: str) -> zipfile.ZipInfo:
        return self._open().getinfo(self._inside + file)

    def _open(self) -> zipfile.ZipFile:
        if self._archive is None or self._archive[0] != os.getpid():  # a forked worker must not share the file offset
            if self.path.exists() and not self.path.is_file():  # opening a FIFO would wait for ever
                raise DataError(f"{self.path} is not a file")
            try:
                self._archive = (os.getpid(), zipfile.ZipFile(self.path))
            except _ZIP_FAULTS as error:
                reason = getattr(error, "strerror", None) or error
                raise DataError(f"{self.path} cannot be read as a zip archive: {reason}") from None
            folder = f"{self.path.stem}/"
            deep = any(name.startswith(folder) and name.count("/") == 2 for name in self._archive[1].namelist())
            self._inside = folder if deep else ""
        return self._archive[1]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_archive": None}


def scan_split(
    root: str | Path,
    name: str,
    zip_mode: bool = False,
    classes: Sequence[str] | None = None,
    made: bool = False,
    follow: bool = False,
) -> Split:
    """Lists the photos of a split.

    Args:
        classes: the class folders in order, from the training split or a checkpoint; None takes those found.
        made: also list the copies that process_dataset.py --balance made. Only training may ask for them.
        follow: take what links out of the split lead to.

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
    notes = [f"{where}: {ignored} hidden or foreign entries ignored"] if ignored else []
    if manifest is None:
        notes.append(f"{root} has no {MANIFEST}: taken as it is, not checked by process_dataset.py")
    else:
        _check_against(manifest, name, found, source, where)
    if not made:
        copies = sum(is_made(file) for names in found.values() for file in names)
        found = {code: [file for file in names if not is_made(file)] for code, names in found.items()}
        notes += [f"{where}: {copies} files made by --balance left out"] if copies else []
    ordered = tuple(classes) if classes is not None else tuple(found)
    clash = {code.lower() for code in ordered}
    if len(clash) < len(ordered):
        raise DataError(f"{where}: class folders differ only in upper and lower case")
    for code, names in found.items():
        if code not in ordered:
            raise DataError(f"{where}/{code}: no class of this model or training split{nearest(code, ordered)}")
        if not names and manifest is None:
            raise DataError(f"{where}/{code} is empty; add photos, or remove the folder")
    photos = _group(source, found, ordered)
    if not photos:
        raise DataError(f"{where} holds no photos")
    return Split(where, source, ordered, photos, notes)


def loose_photos(paths: Sequence[Path], classes: tuple[str, ...]) -> Split:
    """Photos from anywhere, of which nothing is known, as a split without labels; `file` is the path."""
    photos = [Photo(path.name, str(path), ()) for path in paths]
    return Split("photos", FolderSource(Path()), classes, photos)


def find_photos(names: Sequence[str]) -> list[Path]:
    """The photos that files, folders (and what lies under them) and patterns name, each once, in order.

    Raises:
        DataError: for a name that leads to no photo.
    """
    found: dict[Path, None] = {}
    for name in names:
        paths = [Path(name)] if os.path.lexists(name) else [Path(p) for p in sorted(glob.glob(name, recursive=True))]
        photos = []
        for path in paths:
            inside = (Path(base) / file for base, _, files in os.walk(path) for file in files)
            photos += sorted(p for p in inside if is_photo(p.name)) if path.is_dir() else [path]
        if not photos:
            raise DataError(f"{name} leads to no photo ({', '.join(EXTENSIONS)})")
        found |= dict.fromkeys(photos)
    return list(found)


def samples_of(split: Split, targets: str) -> list[Photo]:
    """The samples of a training split: copies for "single" targets, photos for "multi"."""
    return split.copies if targets == "single" else split.photos


def describe(split: Split) -> str:
    """`where: n photos, m copies (scab 12, rust 3, ...)`."""
    by_label = ", ".join(f"{label_name(code)} {n}" for code, n in zip(split.classes, split.counts, strict=True))
    return f"{split.where}: {len(split.photos)} photos, {sum(split.counts)} copies ({by_label})"


class LeafDataset(Dataset):
    """Photos as `(view, target [num_classes] of 0 and 1)`.

    A `Draw` as index gives the augmentation of that place in that epoch, whatever process asks; a plain index gives
    what the transform gives. An unreadable photo is returned as its `DataError`, which `collate` passes on, because
    an exception that crosses from a worker loses its one-line message.

    Args:
        transform: photo, uint8 [H, W, 3] -> `data.transforms.View`.
        finish: `(batch, device)` -> the model's input there, of a batch of such views.
        photos: file -> its photo; None decodes it from the split's source.
    """

    def __init__(
        self,
        split: Split,
        samples: list[Photo],
        transform: Callable,
        finish: Callable,
        seed: int = 0,
        photos: Callable[[str], np.ndarray] | None = None,
    ):
        self.samples, self.transform, self.finish, self.seed = samples, transform, finish, seed
        self.photos = photos or Encoded(split.source)
        self.num_classes = len(split.classes)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int | Draw) -> tuple[View, Tensor] | UserError:
        draw = index if isinstance(index, Draw) else None
        photo = self.samples[draw.index if draw else index]
        try:
            image = self.photos(photo.file)
        except UserError as error:
            return error
        target = torch.zeros(self.num_classes)
        target[list(photo.classes)] = 1
        if draw is None:
            return self.transform(image), target
        with seeded(seed_of(self.seed, AUGMENT, draw.epoch, draw.position)):
            return self.transform(image), target


def _ends(content: BinaryIO, size: int) -> int:
    """CRC-32 of the first and the last ENDS of `size` bytes."""
    first = zlib.crc32(content.read(ENDS))
    content.seek(size - ENDS)
    return zlib.crc32(content.read(ENDS), first)


def _check_against(manifest: dict, split: str, found: dict[str, list[str]], source, where: str) -> None:
    if split not in manifest["splits"]:
        raise DataError(f"{where} is not in {MANIFEST}; run process_dataset.py again with --overwrite")
    listed = manifest["splits"][split]["files"]
    present = {f"{code}/{name}" for code, names in found.items() for name in names}
    changed = sorted(listed.keys() ^ present) or [f for f in sorted(present) if source.size(f) != listed[f]["size"]]
    if changed:
        first = changed[0]
        what = "was added" if first not in listed else "has changed" if first in present else "is missing"
        raise DataError(
            f"{where}/{first} {what} since process_dataset.py ({len(changed)} changes in all); "
            "run it again with --overwrite"
        )


def _group(source, found: dict[str, list[str]], classes: tuple[str, ...]) -> list[Photo]:
    """One `Photo` for all copies of a photo. Equal names are one photo only if the bytes are equal."""
    groups: dict[str, list[tuple[str, list[int]]]] = {}
    for index, code in enumerate(classes):
        for name in found.get(code, ()):
            file = f"{code}/{name}"
            known = next((g for g in groups.get(name, ()) if source.same(g[0], file)), None)
            if known:
                known[1].append(index)
            else:
                groups.setdefault(name, []).append((file, [index]))
    photos = [Photo(name, file, tuple(where)) for name, entries in groups.items() for file, where in entries]
    return sorted(photos, key=lambda photo: (photo.classes[0], photo.name))
