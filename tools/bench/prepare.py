"""Benchmark: originals of 4000x2672 pixels to photos with a short side of 256, against Pillow's full decode.

Then process_dataset.py as a process, for numbers of small photos: how its time and memory grow.
"""

import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from data.images import encode, inspect, shrink
from data.label_files import LabelRow
from data.prepare.audit import Shrinking, audit
from data.prepare.raw import RawSplit
from data.sample.leaves import draw_leaf
from tools.base.errors import UsageError
from tools.base.tables import format_csv
from tools.bench.commands import run
from tools.bench.rounds import Row, compare, interleave, make_row

SIDE, QUALITY = 256, 95
# A process's ru_maxrss begins with that of its parent, which has imported torch; VmHWM does not.
PREPARE = """
import pathlib, sys
from tools.commands.prepare import main
code = main(sys.argv[2:])
peak = pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
pathlib.Path(sys.argv[1]).write_text(peak)
sys.exit(code)
"""


def measure(args) -> list[Row]:
    """Rows of the peer, of our steps on one core and of our audit on all, and of the command for each `args.linked`."""
    shrunk = measure_shrinking(args)
    return shrunk + [measure_linked(args, num_photos, args.labels.split()) for num_photos in args.linked]


def measure_linked(args, num_photos: int, labels: Sequence[str]) -> Row:
    """Seconds of process_dataset.py on photos of 64x64 pixels that all differ; the note has its peak memory."""
    src, images = args.folder / f"raw{num_photos}", args.folder / f"raw{num_photos}" / "train" / "images"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = [(f"{i:06d}.jpg", labels[i % len(labels)]) for i in range(num_photos)]
    for name, _ in rows:
        pixels = cv2.resize(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), (64, 64), interpolation=cv2.INTER_CUBIC)
        (images / name).write_bytes(cv2.imencode(".jpg", pixels)[1].tobytes())
    (images.parent / "train_label.csv").write_bytes(format_csv([("images", "labels"), *rows]))
    peak, dst = args.folder / "peak", args.folder / f"linked{num_photos}"
    command = ("-c", PREPARE, peak, "--src", src, "--dst", dst, "--overwrite")
    seconds = [run(*command) for _ in range(args.rounds)]
    rate = f"{num_photos / min(seconds):.0f} photos per second at best"
    note = f"{rate}, peak {int(peak.read_text()) / 1024:.0f} MiB"
    return make_row(f"process_dataset.py, {num_photos:,} photos, {len(labels)} labels", seconds, note=note)


def measure_shrinking(args) -> list[Row]:
    """Rows of the peer, of our steps on one core and of our audit on all; a note gives the PSNR to the peer."""
    originals = Path(args.data_path or args.folder)
    for seed in range(0 if args.data_path else args.photos):
        (originals / f"{seed:06d}.jpg").write_bytes(encode(draw_photo(4000, 2672, seed), "drawn.jpg", 85))
    paths = sorted(originals.glob("*.jpg"))[: args.photos]
    if not paths:
        raise UsageError(f"--data-path {args.data_path} holds no .jpg files")
    raws = [path.read_bytes() for path in paths]
    split = RawSplit("train", originals, originals, [LabelRow(path.name, ("scab",), 0, path.name) for path in paths])
    shrinking = Shrinking(SIDE, False, QUALITY, args.folder / "smaller")
    ours = "process_dataset.py's steps, one thread"

    def shrink_all(shrink_one: Callable[[bytes], Image.Image]) -> None:
        for raw in raws:
            encode(shrink_one(raw), "small.jpg", QUALITY)

    functions: dict[str, Callable] = {
        "Pillow: whole decode, Lanczos, JPEG; one thread": partial(shrink_all, shrink_whole),
        ours: partial(shrink_all, shrink_reduced),
        "process_dataset.py's audit, all cores": partial(audit, [split], shrinking, False, lambda items, _total: items),
    }
    least = min(cv2.PSNR(np.asarray(shrink_reduced(raw)), np.asarray(shrink_whole(raw))) for raw in raws)
    return compare(interleave(functions, args.rounds), {ours: f"{least:.1f} dB or better"}, len(raws))


def draw_photo(width: int, height: int, seed: int) -> Image.Image:
    """A drawn leaf with grain and texture, RGB; equal arguments give equal pixels.

    At 4000x2672 pixels it is as hard to shrink as real photos: PSNR 54 dB if decoded at 1/4 size, below 50 at 1/8.
    """
    rng = np.random.default_rng(seed)
    leaf = draw_leaf(("scab",), (seed,)).pixels.astype(np.float32)
    photo = cv2.resize(leaf, (width, height), interpolation=cv2.INTER_CUBIC)
    for block, strength in ((1, 2.5), (3, 2.5), (9, 9), (27, 6)):  # pixels, grey levels
        grain = rng.normal(0, strength, (-(-height // block), -(-width // block), 1)).astype(np.float32)
        photo = photo + cv2.resize(grain, (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
    return Image.fromarray(photo.clip(0, 255).astype(np.uint8))


def shrink_whole(raw: bytes) -> Image.Image:
    """The original as Pillow shrinks it, decoded at full size."""
    with Image.open(io.BytesIO(raw)) as image:
        scale = SIDE / min(image.size)
        return image.convert("RGB").resize([round(side * scale) for side in image.size], Image.Resampling.LANCZOS)


def shrink_reduced(raw: bytes) -> Image.Image:
    """The original as process_dataset.py --size shrinks it."""
    header, image = inspect(raw, "original", SIDE)
    return shrink(image, header.size, SIDE, squash=False) or image
