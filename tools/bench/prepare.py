"""Benchmark: originals of 4000x2672 pixels to photos with a short side of 256, against Pillow's full decode."""

import io
import tempfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from data.images import encode, inspect, shrink
from data.labels import LabelRow
from data.prepare.audit import Shrinking, audit
from data.prepare.raw import RawSplit
from data.sample.leaves import draw_leaf
from tools.base.errors import UsageError
from tools.bench.rounds import Row, compare, interleave

SIDE, QUALITY = 256, 95
PEER = "Pillow: whole decode, Lanczos, JPEG; one thread"
OURS = "process_dataset.py's steps, one thread"
COMMAND = "process_dataset.py's audit, all cores"


def measure(args) -> list[Row]:
    """Rows of the peer, of the same work on one core, and of the command's on all; a note has the likeness."""
    with tempfile.TemporaryDirectory() as name:
        originals = Path(args.data_path or name)
        for seed in range(0 if args.data_path else args.photos):
            (originals / f"{seed:06d}.jpg").write_bytes(encode(draw_photo(4000, 2672, seed), "drawn.jpg", 85))
        paths = sorted(originals.glob("*.jpg"))[: args.photos]
        if not paths:
            raise UsageError(f"--data-path {args.data_path} holds no .jpg files")
        raws = [path.read_bytes() for path in paths]
        functions = {
            PEER: lambda: [encode(shrink_whole(raw), "small.jpg", QUALITY) for raw in raws],
            OURS: lambda: [encode(shrink_reduced(raw), "small.jpg", QUALITY) for raw in raws],
            COMMAND: lambda: run_audit(paths, Path(name) / "smaller"),
        }
        taken = interleave(functions, args.rounds)
    least = min(likeness(shrink_reduced(raw), shrink_whole(raw)) for raw in raws)
    return compare(taken, {OURS: 3.0}, {OURS: f"{least:.1f} dB or better"}, len(raws))


def draw_photo(width: int, height: int, seed: int) -> Image.Image:
    """A drawn leaf with grain and texture, RGB; equal arguments give equal pixels.

    At 4000x2672 pixels it is as hard to shrink as real photos: decoded at a quarter 54 dB, at an eighth below 50.
    """
    rng = np.random.default_rng(seed)
    leaf = draw_leaf(("scab",), (seed,)).pixels.astype(np.float32)
    photo = cv2.resize(leaf, (width, height), interpolation=cv2.INTER_CUBIC)
    for block, strength in ((1, 2.5), (3, 2.5), (9, 9), (27, 6)):  # pixels, grey levels
        grain = rng.normal(0, strength, (-(-height // block), -(-width // block), 1)).astype(np.float32)
        photo = photo + cv2.resize(grain, (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
    return Image.fromarray(photo.clip(0, 255).astype(np.uint8))


def shrink_whole(raw: bytes) -> Image.Image:
    """What Pillow makes of an original that it decodes at full size."""
    with Image.open(io.BytesIO(raw)) as image:
        scale = SIDE / min(image.size)
        return image.convert("RGB").resize([round(side * scale) for side in image.size], Image.Resampling.LANCZOS)


def shrink_reduced(raw: bytes) -> Image.Image:
    """What process_dataset.py --size makes of it."""
    header, image = inspect(raw, "original", SIDE)
    return shrink(image, header.size, SIDE, squash=False) or image


def likeness(image: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio of two images of one size, dB."""
    error = np.asarray(image, float) - np.asarray(other, float)
    return float(10 * np.log10(255**2 / np.mean(error**2)))


def run_audit(paths: list[Path], folder: Path) -> None:
    """process_dataset.py's work on the photos at `paths`; the smaller ones go to `folder`."""
    rows = [LabelRow(path.name, ("scab",), 0) for path in paths]
    raw = RawSplit("train", paths[0].parent, paths[0].parent, rows, "", 0, [], [], [])
    audit([raw], Shrinking(SIDE, False, QUALITY, folder), compare=False, progress=lambda items, _total: items)
