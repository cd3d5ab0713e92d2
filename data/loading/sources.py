"""The files of a split: a folder of class folders, or one zip archive with the same tree."""

import lzma
import os
import zipfile
import zlib
from pathlib import Path
from typing import IO

from data.images import MAX_BYTES, is_foreign_folder, is_photo, read_bytes
from tools.base.errors import DataError
from tools.base.files import leads_out

_ZIP_FAULTS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError, UnicodeError)
END_BYTES = 32 << 10  # at either end of a large file, over which its checksum is taken


class FolderSource:
    """Files under a folder; with `follow`, also through links that lead out of it."""

    def __init__(self, root: Path, follow: bool = False):
        self.root, self.follow = root, follow

    @property
    def place(self) -> Path:
        """The folder."""
        return self.root

    def list_files(self) -> tuple[dict[str, list[str]], list[str]]:
        """File names by class folder, both sorted, and the entries that were ignored (hidden, or not photos)."""
        if not self.root.is_dir():
            raise DataError(f"{self.root} is not a folder; make it with process_dataset.py, or give --data-path")
        found, ignored = {}, []
        for folder in sorted(os.scandir(self.root), key=lambda entry: entry.name):
            if is_foreign_folder(folder.name) or not (folder.is_symlink() or folder.is_dir()):
                ignored.append(folder.name)
                continue
            self._check_link(folder, "class folder")
            if not os.path.isdir(folder):
                raise DataError(f"class folder {folder.path} is a link that does not lead to a folder; remove it")
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            photos = [entry for entry in entries if is_photo(entry.name)]
            for entry in photos:
                self._check_link(entry, "image")
                if not (entry.is_file(follow_symlinks=False) or Path(entry).is_file()):
                    raise DataError(f"image {entry.path} is not a file, nor a link to one; remove it")
            found[folder.name] = [entry.name for entry in photos]
            ignored += [f"{folder.name}/{entry.name}" for entry in entries if not is_photo(entry.name)]
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
        """CRC-32 of its bytes; of a file larger than twice END_BYTES, of its first and last END_BYTES."""
        path = self.root / file
        if (size := self.size(file)) <= 2 * END_BYTES:
            return zlib.crc32(self.read(file))
        try:
            with path.open("rb") as content:
                return _ends(content, size)
        except OSError as error:
            raise DataError(f"image {path} cannot be read: {error.strerror}") from None

    def same(self, a: str, b: str) -> bool:
        """Whether two entries are one photo: hard links to one file, or files with equal bytes."""
        return os.path.samefile(self.root / a, self.root / b) or (
            self.size(a) == self.size(b) and self.read(a) == self.read(b)
        )

    def locate(self, file: str) -> str:
        """The path, for messages."""
        return str(self.root / file)


class ZipSource:
    """Members of a zip archive, read without unpacking. Every process opens the archive independently."""

    def __init__(self, path: Path):
        self.path = path
        self._archive: tuple[int, zipfile.ZipFile] | None = None
        self._inside = ""  # what comes before code/name, once the archive is open

    @property
    def place(self) -> Path:
        """The archive."""
        return self.path

    def list_files(self) -> tuple[dict[str, list[str]], list[str]]:
        """As `FolderSource.list_files`; a leading folder named after the split is left out."""
        found: dict[str, list[str]] = {}
        ignored: list[str] = []
        seen: set[str] = set()
        for info in self._open().infolist():
            self._check_member(info, seen)
            if info.is_dir():
                continue
            place, parts = info.filename[: len(self._inside)], info.filename[len(self._inside) :].split("/")
            foreign = place != self._inside or len(parts) != 2
            if foreign or is_foreign_folder(parts[0]) or not is_photo(parts[1]):
                ignored.append(info.filename)
                continue
            found.setdefault(parts[0], []).append(parts[1])
        return {code: sorted(found[code]) for code in sorted(found)}, ignored

    def read(self, file: str) -> bytes:
        """The bytes of `code/name`. Raises DataError for more than MAX_BYTES, whatever the archive declares."""
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
        """As `FolderSource.checksum`; for a small file, the archive's own."""
        member = self._member(file)
        if member.file_size <= 2 * END_BYTES:
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
        """Archive and member, for messages."""
        return f"{self.path}:{file}"

    def _check_member(self, info: zipfile.ZipInfo, seen: set[str]) -> None:
        """Raises DataError for a member that is unsafe, encrypted, too large or listed before, in `seen`."""
        name = info.filename
        for problem, holds in {
            "leads out of the archive": name.startswith("/") or "\\" in name or ".." in name.split("/"),
            "occurs twice": name in seen,
            "is encrypted": info.flag_bits & 1,
            f"is larger than {MAX_BYTES:,} bytes": info.file_size > MAX_BYTES,
        }.items():
            if holds:
                raise DataError(f"{self.path}: member {name} {problem}; make the archive again")
        seen.add(name)

    def _member(self, file: str) -> zipfile.ZipInfo:
        return self._open().getinfo(self._inside + file)

    def _open(self) -> zipfile.ZipFile:
        if self._archive is None or self._archive[0] != os.getpid():  # a forked worker must not share the file offset
            if self.path.exists() and not self.path.is_file():  # opening a FIFO would block forever
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


def _ends(content: IO[bytes], size: int) -> int:
    """CRC-32 over the first and the last END_BYTES of `size` bytes."""
    first = zlib.crc32(content.read(END_BYTES))
    content.seek(size - END_BYTES)
    return zlib.crc32(content.read(END_BYTES), first)
