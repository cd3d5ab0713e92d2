"""Where a loader's pixels come from: decoded on every access, or decoded once into one file that all processes map.

That file (DATA.CACHE_MODE full) holds, in this order: SHA-256 of what it was made from (32 bytes); CRC-32 of what
follows (8 bytes); one row (offset, height, width) of int64 per image; the images, uint8 [height, width, 3].
"""

import hashlib
import os
import zlib
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from data.images import decode_pixels
from tools.base.errors import ResourceError
from tools.base.files import locked, staging
from tools.base.threads import in_threads

_FORMAT = "pixels 1"  # change it when the decoded pixels or the layout of the file change
_HEAD_BYTES = 40
_ROW_BYTES = 3 * np.dtype(np.int64).itemsize


class Encoded:
    """file -> its pixels, uint8 [H, W, 3], decoded on every access.

    Args:
        kept: files whose bytes are read once and stay in memory.
    """

    def __init__(self, source, kept: Sequence[str] = ()):
        self.source, self.kept = source, {file: source.read(file) for file in kept}

    def __call__(self, file: str) -> np.ndarray:
        return decode_pixels(self.kept.get(file) or self.source.read(file), self.source.locate(file))


class Pixels:
    """file -> its pixels, uint8 [H, W, 3], a read-only view of the mapped file.

    Raises ValueError when the file at `path` is damaged, or was made from something other than `files` and `digest`.
    """

    def __init__(self, path: Path, files: Sequence[str], digest: bytes):
        self.path, self.files, self.digest = path, files, digest
        self._map = _map(path)
        start = _HEAD_BYTES + _ROW_BYTES * len(files)
        if len(self._map) < start or bytes(self._map[:32]) != digest:
            raise ValueError(f"{path} was made from other photos")
        if self._map[32:_HEAD_BYTES].tobytes() != _checksum(self._map):
            raise ValueError(f"{path} is damaged")
        rows = self._map[_HEAD_BYTES:start].view(np.int64).reshape(-1, 3)
        self.rows = dict(zip(files, rows.tolist(), strict=True))

    def __call__(self, file: str) -> np.ndarray:
        offset, height, width = self.rows[file]
        return self._map[offset : offset + 3 * height * width].reshape(height, width, 3)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_map": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._map = _map(self.path)
        if bytes(self._map[:32]) != self.digest:  # replaced after the run had started
            raise ResourceError(f"{self.path} was replaced while it was in use; start again")


def shared_pixels(source, files: Sequence[str]) -> tuple[Pixels, list[str]]:
    """The decoded pixels of `files`, and notes for the user about where they are kept.

    The file lies beside the photos, or in the user's cache folder where that cannot be written. The first process
    makes it while all others wait. It is made again when the photos have changed or it is damaged.

    Raises:
        DataError: for a photo that cannot be decoded.
        ResourceError: when neither place has room.
    """
    place = source.place.resolve()
    lines = [_FORMAT, *(f"{file} {source.size(file)} {source.checksum(file)}" for file in files)]
    digest = hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).digest()
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "plantswin"
    paths = place.with_suffix(".pixels"), home / f"{hashlib.sha256(os.fsencode(place)).hexdigest()[:16]}.pixels"
    problems: list[str] = []
    for path in paths:
        try:
            pixels = _read(path, files, digest)
            if pixels is None:
                with locked(path, wait=True):
                    pixels = _read(path, files, digest) or _make(path, source, files, digest)
            return pixels, [f"decoded photos are kept in {path}: {problem}" for problem in problems]
        except OSError as error:
            problems.append(f"{path} cannot be written: {error.strerror}")
        except ResourceError as error:
            problems.append(str(error))
    raise ResourceError(f"{'; '.join(problems)}; make room, or train with --cache-mode no")


def _read(path: Path, files: Sequence[str], digest: bytes) -> Pixels | None:
    """The pixels at `path`, or None where the file is absent, damaged or made from other photos."""
    try:
        return Pixels(path, files, digest)
    except (FileNotFoundError, ValueError):
        return None


def _make(path: Path, source, files: Sequence[str], digest: bytes) -> Pixels:
    """Decodes all photos into the file at `path`, which appears when it is complete. Needs the lock of `path`."""
    threads = len(os.sched_getaffinity(0))
    decoded = in_threads(Encoded(source), files, threads, ahead=4 * threads)
    with closing(decoded), staging(path) as folder, (folder / path.name).open("xb+") as file:
        file.seek(_HEAD_BYTES + _ROW_BYTES * len(files))
        rows = []
        for pixels in decoded:
            rows.append((file.tell(), *pixels.shape[:2]))
            file.write(pixels.data)
        file.seek(_HEAD_BYTES)
        file.write(np.array(rows, dtype=np.int64).data)
        file.flush()
        checksum = _checksum(_map(Path(file.name)))
        file.seek(0)
        file.write(digest + checksum)
        file.flush()
        os.fsync(file.fileno())
        os.replace(file.name, path)
    return Pixels(path, files, digest)


def _checksum(content: np.ndarray) -> bytes:
    return zlib.crc32(content[_HEAD_BYTES:].data).to_bytes(_HEAD_BYTES - 32, "little")


def _map(path: Path) -> np.ndarray:
    """The bytes of a file, read-only; a plain array, because indexing a memmap is slow."""
    return np.asarray(np.memmap(path, np.uint8, "r"))
