"""Where a loader's photos come from: decoded each time, or once into one file that all processes map.

That file (DATA.CACHE_MODE full) holds, in this order: SHA-256 of what it was made of (32 bytes); CRC-32 of what follows
(8); a row (offset, height, width) of int64 for every photo; the photos, uint8 [height, width, 3].
"""

import contextlib
import fcntl
import hashlib
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data.images import decode_pixels, read_size
from tools.base.errors import ResourceError
from tools.base.threads import in_parallel

_FORMAT = "pixels 1"  # another one whenever the reader's pixels or this file's layout change


_HEAD = 40


_ROW = np.dtype(np.int64).itemsize * 3


class Encoded:
    """file -> its photo, uint8 [H, W, 3], decoded whenever it is asked for.

    Args:
        kept: files whose bytes are read once and stay in memory.
    """

    def __init__(self, source, kept: Sequence[str] = ()):
        self.source, self.kept = source, {file: source.read(file) for file in kept}

    def __call__(self, file: str) -> np.ndarray:
        return decode_pixels(self.kept.get(file) or self.source.read(file), self.source.locate(file))


class Pixels:
    """file -> its photo, uint8 [H, W, 3], a view of the mapped file.

    Raises ValueError when the file at `path` is not the whole and undamaged one of these `files` and `digest`.
    """

    def __init__(self, path: Path, files: Sequence[str], digest: bytes):
        self.path, self.files, self.digest = path, files, digest
        self._map = _map(path)
        start = _HEAD + _ROW * len(files)
        if len(self._map) < start or bytes(self._map[:32]) != digest:
            raise ValueError(f"{path} was made of other photos")
        if self._map[32:_HEAD].tobytes() != _checksum(self._map):
            raise ValueError(f"{path} is damaged")
        rows = self._map[_HEAD:start].view(np.int64).reshape(-1, 3)
        self.rows = dict(zip(files, rows.tolist(), strict=True))

    def __call__(self, file: str) -> np.ndarray:
        offset, height, width = self.rows[file]
        return self._map[offset : offset + 3 * height * width].reshape(height, width, 3)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_map": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._map = _map(self.path)
        if bytes(self._map[:32]) != self.digest:  # between the start of the run and that of this worker
            raise ResourceError(f"{self.path} was replaced while it was in use; start again")


def shared_pixels(source, files: Sequence[str]) -> tuple[Pixels, list[str]]:
    """The decoded photos of `files`, and what a user should know about where they are.

    The file lies beside the photos, or in the user's cache folder where that cannot be written. Whoever comes first
    makes it and all others wait, in other processes too; it is made anew when it is of other photos, or damaged.

    Raises:
        DataError: for a photo that cannot be decoded.
        ResourceError: when there is no room in either place.
    """
    place = source.place.resolve()
    digest = _digest(source, files)
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "plantswin"
    names = place.with_suffix(".pixels"), home / f"{hashlib.sha256(os.fsencode(place)).hexdigest()[:16]}.pixels"
    problems = []
    for path in names:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path.parent):
                pixels = _existing(path, files, digest) or _made(path, source, files, digest)
            return pixels, [f"decoded photos are kept in {path}: {problem}" for problem in problems]
        except OSError as error:
            problems.append(f"{path} cannot be written: {error.strerror}")
    raise ResourceError(f"{'; '.join(problems)}; make room, or train with --cache-mode no")


def _existing(path: Path, files: Sequence[str], digest: bytes) -> Pixels | None:
    try:
        return Pixels(path, files, digest)
    except (FileNotFoundError, ValueError):
        return None


def _made(path: Path, source, files: Sequence[str], digest: bytes) -> Pixels:
    """Writes the file under another name, and gives it its own when it is whole."""
    sizes = in_parallel(lambda file: read_size(source.read(file), source.locate(file)), files, _unwatched)
    lengths = [3 * width * height for width, height in sizes]
    offsets = np.cumsum([_HEAD + _ROW * len(files), *lengths])
    unfinished = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    _sweep(path)
    try:
        with unfinished.open("xb+") as file:
            os.posix_fallocate(file.fileno(), 0, int(offsets[-1]))  # a full disk says so now
            content = np.memmap(file, np.uint8, "r+")
            rows = [(offset, height, width) for offset, (width, height) in zip(offsets[:-1], sizes, strict=True)]
            content[_HEAD : offsets[0]] = np.array(rows, dtype=np.int64).reshape(-1).view(np.uint8)

            def fill(number: int) -> None:
                photo = decode_pixels(source.read(files[number]), source.locate(files[number]))
                content[offsets[number] : offsets[number + 1]] = photo.reshape(-1)

            in_parallel(fill, range(len(files)), _unwatched)
            content[:_HEAD] = np.frombuffer(digest + _checksum(content), np.uint8)
            content.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return Pixels(path, files, digest)


def _digest(source, files: Sequence[str]) -> bytes:
    lines = [f"{file} {source.size(file)} {source.checksum(file)}" for file in files]
    return hashlib.sha256("\n".join([_FORMAT, *lines]).encode(errors="surrogateescape")).digest()


def _checksum(content: np.ndarray) -> bytes:
    return zlib.crc32(content[_HEAD:]).to_bytes(_HEAD - 32, "little")


def _map(path: Path) -> np.ndarray:
    """The file's bytes, read-only; a plain array, because memmap's own indexing is slow."""
    return np.asarray(np.memmap(path, np.uint8, "r"))


def _unwatched(items: Iterator, _total: int) -> Iterator:
    return items


def _sweep(path: Path) -> None:
    """Removes what killed writers left. With the lock in hand, no writer can be alive."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.tmp-\d+")
    for other in path.parent.iterdir():
        if pattern.fullmatch(other.name):
            other.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Inside, no other process is here for this folder. The kernel lets go when a process ends, however it ends."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
