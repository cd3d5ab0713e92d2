"""Ruler: originals of 4000x2672 pixels to photos with a short side of 256, against Pillow's full decode."""

import statistics
import tempfile
from pathlib import Path

SIDE, QUALITY = 256, 95
PEER = "Pillow: whole decode, Lanczos, JPEG; one thread"
OURS = "process_dataset.py's steps, one thread"
COMMAND = "process_dataset.py's audit, all cores"


def add_flags(parser) -> None:
    """This ruler's own flags."""
    parser.add_argument("--data-path", metavar="FOLDER", help="folder of JPEG originals (default: drawn ones)")
    parser.add_argument("--photos", type=int, default=6, metavar="N", help="that a round takes (6)")


def measure(args) -> list:
    """Rows of the peer, of the same work on one core, and of the command's on all; the note has the likeness."""
    from tools.base.errors import UsageError
    from tools.bench.drawn import write_photos
    from tools.bench.rounds import compare, interleave

    with tempfile.TemporaryDirectory() as folder:
        if args.data_path:
            paths = sorted(Path(args.data_path).glob("*.jpg"))[: args.photos]
        else:
            paths = write_photos(Path(folder) / "originals", args.photos, 4000, 2672, 85)
        if not paths:
            raise UsageError(f"--data-path {args.data_path} holds no .jpg files")
        raws = [path.read_bytes() for path in paths]
        ways = {
            PEER: lambda: [write(whole(raw)) for raw in raws],
            OURS: lambda: [write(reduced(raw)) for raw in raws],
            COMMAND: lambda: _audit(paths, Path(folder) / "smaller"),
        }
        taken = interleave(ways, args.rounds)
        least = min(likeness(reduced(raw), whole(raw)) for raw in raws)
    notes = {name: f"{len(raws) / statistics.median(times):.1f} photos a second" for name, times in taken.items()}
    notes[OURS] += f"; {least:.1f} dB or better"
    return compare(taken, PEER, {OURS: 3.0}, notes)


def whole(raw: bytes):
    """What Pillow makes of an original without haste."""
    import io

    from PIL import Image

    with Image.open(io.BytesIO(raw)) as image:
        scale = SIDE / min(image.size)
        return image.convert("RGB").resize([round(side * scale) for side in image.size], Image.Resampling.LANCZOS)


def reduced(raw: bytes):
    """What process_dataset.py --size makes of it."""
    from data.images import inspect, shrink

    header, image = inspect(raw, "original", SIDE)
    return shrink(image, header.size, SIDE, squash=False)


def write(image) -> bytes:
    """The last step of both."""
    from data.images import encode

    return encode(image, "small.jpg", QUALITY)


def likeness(image, other) -> float:
    """Peak signal-to-noise ratio of two Images of one size, dB."""
    import numpy as np

    error = np.asarray(image, float) - np.asarray(other, float)
    return float(10 * np.log10(255**2 / np.mean(error**2)))


def _audit(paths: list[Path], folder: Path) -> None:
    from data.labels import LabelRow
    from data.prepare.audit import Shrinking, audit
    from data.prepare.raw import RawSplit

    rows = [LabelRow(path.name, ("scab",), 0) for path in paths]
    raw = RawSplit("train", paths[0].parent, paths[0].parent, rows, "", 0, [], [], 0)
    audit([raw], Shrinking(SIDE, False, QUALITY, folder), compare=False, progress=lambda items, _total: items)
