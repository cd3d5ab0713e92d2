"""Finds duplicate photos: fingerprints of their pixels, and the comparison of all pairs.

Exact duplicates have equal pixels. Near-duplicates (saved again, brightened, slightly cropped) have perceptual hashes
within MAX_DISTANCE of 64 bits, and gray thumbnails whose correlation is at least MIN_CORRELATION. On the course's 3,600
photos, the only near-duplicate pair has distance 6 and correlation 0.98; the next pair within the distance has 0.77.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from data.prepare.stratify import connect, find_components

MAX_DISTANCE = 10
MIN_CORRELATION = 0.9
_SIDE_PX = 32  # of the gray thumbnail
_ROWS, _COLUMNS = 256, 4096  # of a tile of the table of all pairs, 8 MB


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What photos are compared by."""

    pixels: bytes  # digest of size and pixels
    cosine: int  # 64-bit perceptual hash
    gray: np.ndarray  # thumbnail, uint8 [1024]


def fingerprint(image: Image.Image) -> Fingerprint:
    """The fingerprint of an RGB image. Its hash tells which of the 8x8 lowest frequencies lie above their median."""
    pixels = np.asarray(image)
    gray = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (_SIDE_PX, _SIDE_PX), interpolation=cv2.INTER_AREA)
    frequencies = cv2.dct(gray.astype(np.float32))[:8, :8]
    bits = np.packbits(frequencies > np.median(frequencies)).tobytes()
    digest = hashlib.blake2b(pixels.data, digest_size=16, person=str(image.size).encode()[:16]).digest()
    return Fingerprint(digest, int.from_bytes(bits, "big"), gray.ravel())


def find_duplicates(prints: Sequence[Fingerprint]) -> list[list[int]]:
    """Groups of two or more indices, ascending: each member duplicates, or nearly duplicates, another of its group.

    All pairs of hashes are compared, one tile of the table at a time. Memory is linear in the number of photos. Time is
    quadratic, but at 50,000 photos a multi-index hash (Norouzi et al. 2012) takes as long, and longer for similar ones.
    """
    hashes, grays = np.array([p.cosine for p in prints], dtype=np.uint64), np.array([p.gray for p in prints])
    first: dict[bytes, int] = {}
    group_of = np.array([first.setdefault(p.pixels, i) for i, p in enumerate(prints)], dtype=np.int64)
    for top in range(0, len(prints), _ROWS):
        for left in range(top, len(prints), _COLUMNS):
            rows, columns = slice(top, top + _ROWS), slice(left, left + _COLUMNS)
            close = np.bitwise_count(hashes[rows, None] ^ hashes[columns]) <= MAX_DISTANCE
            if close.any():
                close &= group_of[rows, None] != group_of[columns]
                row, column = _find_alike(grays[rows], grays[columns], close)
                if len(row):
                    joined = find_components(group_of[rows][row], group_of[columns][column], len(prints))
                    group_of = joined[group_of]
    return [group for group in connect([(group,) for group in group_of.tolist()]) if len(group) > 1]


def _find_alike(one: np.ndarray, other: np.ndarray, close: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The `close` pairs (bool [n, m]) of thumbnails [n, 1024] and [m, 1024] that correlate, as indices into both."""
    rows, columns = np.flatnonzero(close.any(axis=1)), np.flatnonzero(close.any(axis=0))
    correlation = _normalize(one[rows]) @ _normalize(other[columns]).T
    row, column = np.nonzero(close[np.ix_(rows, columns)] & (correlation >= MIN_CORRELATION))
    return rows[row], columns[column]


def _normalize(grays: np.ndarray) -> np.ndarray:
    """Thumbnails [n, 1024] as float32 whose dot products are Pearson's r; zeros for a flat one."""
    centered = grays - grays.mean(axis=1, keepdims=True, dtype=np.float32)
    # gray levels are whole numbers: a length below 1 is a flat image
    return centered / np.maximum(np.linalg.norm(centered, axis=1, keepdims=True), 1)
