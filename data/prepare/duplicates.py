"""Photos that show the same: fingerprints of pixels, and all pairs of them compared.

Exact twins have equal pixels. Near twins (saved again, brightened, cropped by a little) have perceptual hashes within
MAX_DISTANCE bits of 64 and grey thumbnails that correlate by MIN_CORRELATION or more. Measured on the course's 3,600
photos: the one near pair has distance 6 and correlation 0.98; the next best pair within the distance, 0.77.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

MAX_DISTANCE = 10


MIN_CORRELATION = 0.9


_SIDE = 32  # of the grey thumbnail, pixels


_BLOCK = 256  # rows of the table of all pairs held at a time: 41 MB for 20,000 photos


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What photos are compared by.

    Attributes:
        pixels: digest of size and pixels.
        cosine: 64-bit perceptual hash.
        grey: thumbnail, uint8 [1024].
    """

    pixels: bytes
    cosine: int
    grey: np.ndarray


def fingerprint(image: Image.Image) -> Fingerprint:
    """Of an RGB image. The perceptual hash says which of the 8x8 lowest frequencies lie above their median."""
    pixels = np.asarray(image)
    grey = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    frequencies = cv2.dct(grey.astype(np.float32))[:8, :8]
    bits = np.packbits(frequencies > np.median(frequencies)).tobytes()
    digest = hashlib.blake2b(pixels, digest_size=16, person=str(image.size).encode()[:16]).digest()
    return Fingerprint(digest, int.from_bytes(bits, "big"), grey.ravel())


def find_twins(prints: Sequence[Fingerprint]) -> list[list[int]]:
    """Groups of two or more indices, ascending: everyone is the exact or near twin of someone in the group."""
    first: dict[bytes, int] = {}
    group_of = np.array([first.setdefault(p.pixels, i) for i, p in enumerate(prints)], dtype=np.int64)
    distinct = np.array(list(first.values()), dtype=np.int64)
    for near in _near([prints[i] for i in distinct]):
        joined = group_of[distinct[near]]
        group_of[np.isin(group_of, joined)] = joined.min()
    members: dict[int, list[int]] = {}
    for index, group in enumerate(group_of.tolist()):
        members.setdefault(group, []).append(index)
    return [group for group in members.values() if len(group) > 1]


def _near(prints: list[Fingerprint]) -> Iterator[np.ndarray]:
    """For every print that has near twins behind it: its index and theirs."""
    hashes = np.array([p.cosine for p in prints], dtype=np.uint64)
    for start in range(0, len(prints), _BLOCK):
        close = np.bitwise_count(hashes[start : start + _BLOCK, None] ^ hashes[None, start:]) <= MAX_DISTANCE
        for row in np.flatnonzero(close.sum(axis=1) > 1):  # each is close to itself
            others = np.flatnonzero(close[row, row + 1 :]) + start + row + 1
            if not len(others):
                continue
            alike = _correlations(prints[start + row].grey, np.stack([prints[i].grey for i in others]))
            if (alike >= MIN_CORRELATION).any():
                yield np.append(others[alike >= MIN_CORRELATION], start + row)


def _correlations(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Pearson's r of a thumbnail [n] with each of others [k, n]; 0 where one of the two is flat."""
    one = one - one.mean(dtype=np.float32)
    others = others - others.mean(axis=1, keepdims=True, dtype=np.float32)
    lengths = np.linalg.norm(one) * np.linalg.norm(others, axis=1)
    return others @ one / np.maximum(lengths, 1)  # grey levels are whole numbers: a length below 1 is a flat photo
