"""Finds duplicate photos: fingerprints of their pixels, and the comparison of all pairs.

Exact duplicates have equal pixels. Near-duplicates (saved again, brightened, slightly cropped) have perceptual hashes
within MAX_DISTANCE of 64 bits, and gray thumbnails whose correlation is at least MIN_CORRELATION. On the course's 3,600
photos, the only near-duplicate pair has distance 6 and correlation 0.98; the next pair within the distance has 0.77.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

MAX_DISTANCE = 10
MIN_CORRELATION = 0.9
_SIDE_PX = 32  # of the gray thumbnail
_BLOCK = 256  # rows of the table of all pairs held at a time: 41 MB for 20,000 photos


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
    """Groups of two or more indices, ascending: each member duplicates, or nearly duplicates, another of its group."""
    first: dict[bytes, int] = {}
    group_of = np.array([first.setdefault(p.pixels, i) for i, p in enumerate(prints)], dtype=np.int64)
    distinct = np.array(list(first.values()), dtype=np.int64)
    for near in _find_near([prints[i] for i in distinct]):
        joined = group_of[distinct[near]]
        group_of[np.isin(group_of, joined)] = joined.min()
    members: dict[int, list[int]] = {}
    for index, group in enumerate(group_of.tolist()):
        members.setdefault(group, []).append(index)
    return [group for group in members.values() if len(group) > 1]


def _find_near(prints: list[Fingerprint]) -> Iterator[np.ndarray]:
    """Yields, per photo that has near-duplicates later in the list, the indices of these and its own."""
    hashes = np.array([p.cosine for p in prints], dtype=np.uint64)
    for start in range(0, len(prints), _BLOCK):
        close = np.bitwise_count(hashes[start : start + _BLOCK, None] ^ hashes[None, start:]) <= MAX_DISTANCE
        for row in np.flatnonzero(close.sum(axis=1) > 1):  # each is close to itself
            others = np.flatnonzero(close[row, row + 1 :]) + start + row + 1
            if not len(others):
                continue
            alike = _correlate(prints[start + row].gray, np.stack([prints[i].gray for i in others]))
            if (alike >= MIN_CORRELATION).any():
                yield np.append(others[alike >= MIN_CORRELATION], start + row)


def _correlate(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Pearson's r of a thumbnail [n] with each of others [k, n]; 0 where either is flat."""
    one = one - one.mean(dtype=np.float32)
    others = others - others.mean(axis=1, keepdims=True, dtype=np.float32)
    lengths = np.linalg.norm(one) * np.linalg.norm(others, axis=1)
    return others @ one / np.maximum(lengths, 1)  # gray levels are whole numbers: a length below 1 is a flat image
