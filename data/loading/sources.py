"""The files of a split: a folder of class folders, or one zip archive with the same tree."""

import lzma
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from data.images import MAX_BYTES, is_photo, read_bytes
from data.labels import is_foreign_folder
from tools.base.errors import DataError
from tools.base.files import leads_out

_ZIP_FAULTS = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError, UnicodeError),
    *(KeyError, RuntimeError),  # a member that is gone or encrypted
)
END_BYTES = 32 << 10  # at either end of a large file, over which its checksum is taken


class FolderSource:
    """Files under a folder; with `follow`, also through links that lead out of it."""

    def __init__(self, place: Path, follow: bool = False):
        self.place, self.follow = place, follow

    def list_files(self) -> tuple[dict[str, list[str]], list[str]]:
        """File names by class folder, both sorted, and the entries that were ignored (hidden, or not photos)."""
        if not self.place.is_dir():
            raise DataError(f"{self.place} is not a folder; make it with process_dataset.py, or give --data-path")
        found: dict[str, list[str]] = {}
        ignored = []
        for folder in sorted(os.scandir(self.place), key=lambda entry: entry.name):
            if is_foreign_folder(folder.name) or not (folder.is_symlink() or folder.is_dir()):
                ignored.append(folder.name)
                continue
            self._check_link(folder, "class folder")
            if not os.path.isdir(folder):
                raise DataError(f"class folder {folder.path} is a link that does not lead to a folder; remove it")
            found[folder.name] = []
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                if not is_photo(entry.name):
                    ignored.append(f"{folder.name}/{entry.name}")
                    continue
                self._check_link(entry, "image")
                if not (entry.is_file(follow_symlinks=False) or Path(entry).is_file()):
                    raise DataError(f"image {entry.path} is not a file, nor a link to one; remove it")
                found[folder.name].append(entry.name)
        return found, ignored

    def read(self, file: str) -> bytes:
        """The bytes of `folder/name`."""
        return read_bytes(self.place / file)

    def size(self, file: str) -> int:
        """Its length in bytes."""
        try:
            return (self.place / file).stat().st_size
        except OSError as error:
            raise DataError(f"image {self.place / file} cannot be read: {error.strerror}") from None

    def checksum(self, file: str) -> int:
        """CRC-32 of its bytes; of a file larger than twice END_BYTES, of its first and last END_BYTES."""
        if (size := self.size(file)) <= 2 * END_BYTES:
            return zlib.crc32(self.read(file))
        try:
            with (self.place / file).open("rb") as content:
                return _ends(content, size)
        except OSError as error:
            raise DataError(f"image {self.place / file} cannot be read: {error.strerror}") from None

    def same(self, a: str, b: str) -> bool:
        """Whether two entries are one photo: hard links to one file, or files with equal bytes."""
        return os.path.samefile(self.place / a, self.place / b) or (
            self.size(a) == self.size(b) and self.read(a) == self.read(b)
        )

    def locate(self, file: str) -> str:
        """The path, for messages."""
        return str(self.place / file)

    def _check_link(self, entry: os.DirEntry, what: str) -> None:
        if not self.follow and leads_out(entry, self.place):
            raise DataError(f"{what} {entry.path} is a link out of {self.place}; remove it, or add --follow-links")


class ZipSource:
    """Members of a zip archive, read without unpacking. Every process opens the archive independently."""

    def __init__(self, place: Path):
        self.place = place
        self._own: tuple[int, zipfile.ZipFile] | None = None  # the process that opened the archive, and the archive
        self._inside = ""  # what comes before folder/name, once the archive is open

    def list_files(self) -> tuple[dict[str, list[str]], list[str]]:
        """As `FolderSource.list_files`; a leading folder named after the split is left out."""
        members = self._archive().infolist()
        times = Counter(info.filename for info in members)
        found: dict[str, list[str]] = {}
        ignored: list[str] = []
        for info in members:
            name = info.filename
            for problem, holds in {
                "leads out of the archive": name.startswith("/") or "\\" in name or ".." in name.split("/"),
                "occurs twice": times[name] > 1,
                "is encrypted": info.flag_bits & 1,
                f"is larger than {MAX_BYTES:,} bytes": info.file_size > MAX_BYTES,
            }.items():
                if holds:
                    raise DataError(f"{self.place}: member {name} {problem}; make the archive again")
            parts = name.removeprefix(self._inside).split("/")
            if info.is_dir():
                continue
            foreign = not name.startswith(self._inside) or len(parts) != 2
            if foreign or is_foreign_folder(parts[0]) or not is_photo(parts[1]):
                ignored.append(name)
            else:
                found.setdefault(parts[0], []).append(parts[1])
        return {folder: sorted(found[folder]) for folder in sorted(found)}, ignored

    def read(self, file: str) -> bytes:
        """The bytes of `folder/name`. Raises DataError for more than MAX_BYTES, whatever the archive declares."""
        raw = self._read(file, lambda content: content.read(MAX_BYTES + 1))
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
        return self._read(file, lambda content: _ends(content, member.file_size))

    def same(self, a: str, b: str) -> bool:
        """Whether two members are one photo."""
        return self.size(a) == self.size(b) and self.read(a) == self.read(b)

    def locate(self, file: str) -> str:
        """Archive and member, for messages."""
        return f"{self.place}:{file}"

    def _read(self, file: str, read: Callable[[IO[bytes]], Any]) -> Any:
        try:
            with self._archive().open(self._member(file)) as content:
                return read(content)
        except _ZIP_FAULTS as error:
            raise DataError(f"image {self.locate(file)} cannot be read: {error}") from None

    def _member(self, file: str) -> zipfile.ZipInfo:
        return self._archive().getinfo(self._inside + file)

    def _archive(self) -> zipfile.ZipFile:
        if self._own is None or self._own[0] != os.getpid():  # a forked worker must not share the file offset
            if self.place.exists() and not self.place.is_file():  # opening a FIFO would block forever
                raise DataError(f"{self.place} is not a file")
            try:
                self._own = (os.getpid(), zipfile.ZipFile(self.place))
            except _ZIP_FAULTS as error:
                reason = getattr(error, "strerror", None) or error
                raise DataError(f"{self.place} cannot be read as a zip archive: {reason}") from None
            folder = f"{self.place.stem}/"
            deep = any(name.startswith(folder) and name.count("/") == 2 for name in self._own[1].namelist())
            self._inside = folder if deep else ""
        return self._own[1]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_own": None}


def _ends(content: IO[bytes], size: int) -> int:
    """CRC-32 over the first and the last END_BYTES of `size` bytes."""
    first = zlib.crc32(content.read(END_BYTES))
    content.seek(size - END_BYTES)
    return zlib.crc32(content.read(END_BYTES), first)
