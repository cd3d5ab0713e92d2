"""Draws the embedded sample data set: leaves with the lesions of a label set, and the lesions' boxes.

It replaces the course's photos, which may not be redistributed, in tests and demonstrations. Leaf, background and light
vary more than the lesions, and the background has every colour of the lesions, so that colour alone does not give the
label away. Everything follows from the seed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from data.sample.sets import APPLE, Lesion

SIZE = 160  # pixels, square as the course's 256x256 files are
MAX_BOX_SHARE = 0.22  # of the image that all boxes together may cover


@dataclass(frozen=True)
class DrawnLeaf:
    """One drawn image: `pixels` [SIZE, SIZE, 3] uint8 RGB; boxes (label, x0, y0, x1, y1) in pixels."""

    pixels: np.ndarray
    boxes: list[tuple[str, float, float, float, float]]


def draw_leaf(
    labels: tuple[str, ...], seed: tuple[int, ...], lesions: Mapping[str, tuple[Lesion, ...]] = APPLE.lesions
) -> DrawnLeaf:
    """One leaf with the `lesions` of `labels`; equal arguments give equal pixels."""
    rng = np.random.default_rng(seed)
    canvas = _background(rng)
    mask, axis = _blade(rng)
    canvas = _blend(canvas, _leaf_surface(rng, mask, axis), mask)
    boxes: list[tuple[str, float, float, float, float]] = []
    covered = np.zeros((SIZE, SIZE), bool)
    for label in labels:
        for lesion in lesions[label]:
            for _ in range(int(rng.integers(lesion.count[0], lesion.count[1] + 1))):
                x, y = centre = _point_inside(rng, mask)
                r = rng.uniform(*lesion.radius)
                left, top, right, bottom = (round(min(max(0, edge), SIZE)) for edge in (x - r, y - r, x + r, y + r))
                area = covered.copy()
                area[top:bottom, left:right] = True
                if area.mean() > MAX_BOX_SHARE:
                    continue
                covered = area
                distance = _distance(rng, centre, lesion.stretch)
                canvas = PAINTERS[lesion.painter](rng, canvas, mask, distance, (right - left) / 2, *lesion.colours)
                boxes.append((label, float(left), float(top), float(right), float(bottom)))
    return DrawnLeaf(_light(rng, canvas), boxes)


def _noise(rng: np.random.Generator, scale: float) -> np.ndarray:
    """Smooth noise [SIZE, SIZE] in [-1, 1] whose blotches are about `scale` pixels wide."""
    cells = max(2, round(SIZE / scale))
    grid = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
    return cv2.resize(grid, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC).clip(-1, 1)


def _tint(rng: np.random.Generator, low, high) -> np.ndarray:
    return rng.uniform(low, high).astype(np.float32)


def _background(rng: np.random.Generator) -> np.ndarray:
    """Out-of-focus orchard: soil, grass, sky, fallen leaves, in every colour that lesions have too."""
    palette = [
        ((70, 55, 40), (130, 105, 80)),
        ((50, 80, 35), (110, 140, 80)),
        ((150, 160, 170), (215, 220, 225)),
        ((150, 85, 25), (205, 130, 60)),
        ((50, 50, 30), (90, 85, 50)),
    ]
    canvas = np.tile(_tint(rng, *palette[rng.integers(len(palette))]), (SIZE, SIZE, 1))
    for _ in range(3):
        patch = _noise(rng, rng.uniform(20, 60)) > rng.uniform(0, 0.6)
        canvas[patch] = _tint(rng, *palette[rng.integers(len(palette))])
    canvas = cv2.GaussianBlur(canvas, (0, 0), float(rng.uniform(4, 9)))
    return canvas + 8 * _noise(rng, 12)[..., None]


def _blade(rng: np.random.Generator) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The leaf's mask [SIZE, SIZE] in [0, 1] and the two ends (stalk, tip) of its midrib."""
    length, angle = rng.uniform(0.82, 1.0) * SIZE, rng.uniform(0, 2 * np.pi)
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-along[1], along[0]])
    centre = SIZE / 2 + rng.uniform(-0.05, 0.05, 2) * SIZE
    t = np.linspace(0, 1, 80)
    width = rng.uniform(0.30, 0.38) * length * np.sin(np.pi * t**0.85) ** 0.8
    width = width * (1 + 0.025 * np.sin(2 * np.pi * t * rng.integers(14, 22)))  # the serrated edge
    spine = centre + np.outer(t - 0.5, along) * length + np.outer(np.sin(np.pi * t) * rng.uniform(-9, 9), across)
    outline = np.concatenate([spine + width[:, None] * across, (spine - width[:, None] * across)[::-1]])
    mask = np.zeros((SIZE, SIZE), np.uint8)
    cv2.fillPoly(mask, [np.round(outline * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    return mask.astype(np.float32) / 255, (spine[4], spine[-3])


def _leaf_surface(rng: np.random.Generator, mask: np.ndarray, axis) -> np.ndarray:
    """Green with broad shading, fine grain and lighter veins."""
    surface = np.tile(_tint(rng, (50, 95, 30), (100, 150, 70)), (SIZE, SIZE, 1))
    surface *= 1 + 0.12 * _noise(rng, 50)[..., None] + 0.05 * _noise(rng, 5)[..., None]
    stalk, tip = axis
    vein = np.zeros((SIZE, SIZE), np.uint8)
    along = (tip - stalk) / np.linalg.norm(tip - stalk)
    across = np.array([-along[1], along[0]])

    def line(a, b, width):
        a, b = (tuple(int(v) for v in np.round(p * 16)) for p in (a, b))
        cv2.line(vein, a, b, 255, width, cv2.LINE_AA, shift=4)

    line(stalk, tip, 2)
    for t in np.linspace(0.12, 0.85, int(rng.integers(6, 9))):
        start = stalk + t * (tip - stalk)
        for side in (-1, 1):
            line(start, start + (0.55 * along + 0.8 * side * across) * SIZE * 0.34 * (1 - 0.6 * t), 1)
    lift = cv2.GaussianBlur(vein.astype(np.float32) / 255, (0, 0), 0.7) * mask
    return surface + lift[..., None] * _tint(rng, (25, 25, 15), (50, 45, 35))


def _light(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Exposure, colour of the light and one broad shadow, as 8-bit pixels."""
    canvas = canvas * rng.uniform(0.75, 1.2) * rng.uniform(0.93, 1.07, 3).astype(np.float32)
    canvas = canvas * (1 + 0.15 * _noise(rng, 90)[..., None])
    return (canvas + rng.normal(0, 2.5, canvas.shape)).clip(0, 255).astype(np.uint8)


def _blend(canvas: np.ndarray, colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return canvas + alpha[..., None] * (colour - canvas)


def _point_inside(rng: np.random.Generator, mask: np.ndarray) -> tuple[float, float]:
    """A point (x, y) of the blade, some pixels from its edge."""
    inner = cv2.erode(mask, np.ones((11, 11), np.uint8)) > 0.9
    rows, columns = np.nonzero(inner)
    pick = rng.integers(len(rows))
    return float(columns[pick]), float(rows[pick])


def _distance(rng: np.random.Generator, centre: tuple[float, float], stretch: float) -> np.ndarray:
    """Distance in pixels from `centre`; with `stretch` above 1, across a random direction it grows faster."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    x, y = x - centre[0], y - centre[1]
    if stretch == 1:
        return np.hypot(x, y)
    angle = rng.uniform(0, np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return np.hypot(x * cos + y * sin, stretch * (y * cos - x * sin))


def _disc(distance: np.ndarray, radius, softness: float) -> np.ndarray:
    """1 inside `radius`, 0 outside, a ramp of `softness` pixels between."""
    return ((radius - distance) / softness + 0.5).clip(0, 1)


def _paint_blotch(rng, canvas, mask, distance, radius, colour):
    """A blotch with a feathery edge."""
    ragged = radius * (0.68 + 0.30 * _noise(rng, 7))
    alpha = _disc(distance, ragged, 3) * rng.uniform(0.7, 0.9) * mask
    return _blend(canvas, _tint(rng, *colour), alpha)


def _paint_eye(rng, canvas, mask, distance, radius, rim, middle):
    """A disc with a rim of another colour."""
    core = 0.9 * radius
    canvas = _blend(canvas, _tint(rng, *rim), _disc(distance, core, 1.2) * mask)
    return _blend(canvas, _tint(rng, *middle), _disc(distance, 0.62 * core, 1.2) * mask)


def _paint_halo(rng, canvas, mask, distance, radius, halo, colour):
    """A spot in a soft halo."""
    canvas = _blend(canvas, _tint(rng, *halo), 0.65 * _disc(distance, 0.8 * radius, 3) * mask)
    return _blend(canvas, _tint(rng, *colour), _disc(distance, 0.52 * radius, 1.5) * mask)


def _paint_dust(rng, canvas, mask, distance, radius, colour):
    """A dusty patch through which the leaf still shows."""
    dust = 0.62 + 0.38 * _noise(rng, 3)
    alpha = _disc(distance, radius * (0.72 + 0.25 * _noise(rng, 12)), 6) * dust * rng.uniform(0.6, 0.8) * mask
    return _blend(canvas, _tint(rng, *colour), alpha)


def _paint_ring(rng, canvas, mask, distance, radius, colour):
    """An uneven ring with green leaf inside."""
    outer = radius * (0.82 + 0.16 * _noise(rng, 9))
    alpha = _disc(distance, outer, 2) * (1 - _disc(distance, 0.6 * outer, 2)) * rng.uniform(0.75, 0.9) * mask
    return _blend(canvas, _tint(rng, *colour), alpha)


PAINTERS: dict[str, Callable[..., np.ndarray]] = {
    "blotch": _paint_blotch,
    "eye": _paint_eye,
    "halo": _paint_halo,
    "dust": _paint_dust,
    "ring": _paint_ring,
}
