"""The seal of a checkpoint: a SHA-256 as the comment of its zip archive. It covers every byte; zip readers ignore it.

A zip's own checksums leave out padding and headers, and torch does not check them: of 300 flipped bits it loads 299.
"""

import hashlib
import os
import struct
from typing import BinaryIO

_MARK = b"plantswin sha256 "
_SEAL_BYTES = len(_MARK) + 64  # of the comment: the mark, and in hex the digest of all before the comment's length
_LENGTH = struct.Struct("<H")  # the last field of a zip without a comment
_BLOCK_BYTES = 2**20


class SealingWriter:
    """A binary file to write one zip archive through; `seal` ends it."""

    def __init__(self, file: BinaryIO):
        self._file, self._digest, self._held = file, hashlib.sha256(), b""

    def write(self, data: bytes) -> int:
        """Writes all but the last two bytes, which may turn out to be the length of the comment."""
        block = self._held + bytes(data)
        self._digest.update(block[:-2])
        self._file.write(block[:-2])
        self._held = block[-2:]
        return len(data)

    def flush(self) -> None:
        """Does nothing: `seal` writes what is held back."""

    def seal(self) -> None:
        """Ends the archive with its digest."""
        self._file.write(_LENGTH.pack(_SEAL_BYTES) + _MARK + self._digest.hexdigest().encode())
        self._file.flush()


def read_digest(file: BinaryIO) -> tuple[str, bool]:
    """(SHA-256 of the whole file, whether it ends with a seal that matches its content), in one pass over `file`."""
    left = file.seek(0, os.SEEK_END) - _LENGTH.size - _SEAL_BYTES
    file.seek(0)
    digest = hashlib.sha256()
    while left > 0 and (block := file.read(min(left, _BLOCK_BYTES))):
        digest.update(block)
        left -= len(block)
    seal = _LENGTH.pack(_SEAL_BYTES) + _MARK + digest.hexdigest().encode()
    end = file.read()
    digest.update(end)
    return digest.hexdigest(), end == seal


def is_whole(raw: bytes, comment: bytes, sealed: bool) -> bool:
    """Whether an archive ends with its `comment`, and with a matching seal (`sealed`) if the comment is a seal."""
    return raw.endswith(_LENGTH.pack(len(comment)) + comment) and (sealed or not comment.startswith(_MARK))
