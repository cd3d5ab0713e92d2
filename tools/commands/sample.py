"""Draws the sample data set (leaves, labels, lesion boxes) in the course's raw layout."""

from pathlib import Path

from tools.base import cli
from tools.base.errors import UsageError


@cli.command
def main(argv: list[str]) -> int:
    """Parses `argv` and draws the data set."""
    parser = cli.Parser(prog="python -m tools sample", description=__doc__)
    add = parser.add_argument
    add("--dst", default="plant_dataset", metavar="FOLDER", help="folder to write (default: %(default)s)")
    add("--seed", default=0, type=int, metavar="N", help="another seed draws other leaves")
    add("--counts", nargs=3, type=int, metavar=("TRAIN", "VAL", "TEST"), help="leaves per split")
    args = parser.parse_args(argv)

    from data.labels import SPLITS
    from data.sample.write import COUNTS, photo_names, write_sample

    counts = dict(zip(SPLITS, args.counts, strict=True)) if args.counts else COUNTS
    if args.seed < 0 or min(counts.values()) < 1:
        raise UsageError("--seed must be 0 or more, and every count 1 or more")
    dst = Path(args.dst)
    if dst.exists() and not dst.is_dir():
        raise UsageError(f"--dst {dst} is not a folder; choose another")
    if dst.exists() and any(dst.iterdir()) and not (dst / "lesion_boxes.csv").exists():
        raise UsageError(f"--dst {dst} holds something else; choose another")
    others = {f"{path.relative_to(dst)}" for path in dst.glob("*/images/*")} - photo_names(args.seed, counts)
    if others:
        raise UsageError(f"--dst {dst} holds another sample, with {min(others)}; remove it, or choose another")
    write_sample(dst, args.seed, counts)
    print(f"{dst}: {', '.join(f'{n} {split}' for split, n in counts.items())} leaves, lesion_boxes.csv")
    return 0
