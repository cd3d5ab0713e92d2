"""Draws a sample data set (leaves, labels, lesion boxes) in one of the raw forms that process_dataset.py reads."""

from pathlib import Path

from tools.base import cli
from tools.base.errors import UsageError

EPILOG = """
sets    apple: the course's six labels     three: exclusive labels     twelve: several labels per photo, difficult names
        many: 120 labels                   skewed: four labels, one with five photos
raw     csv: images,labels                 onehot: one column per label, 0 or 1
        columns: image_id,label, or image_id,label_1,label_2 in sets with two labels per photo
        excel: one column per label, x or empty, UTF-8 with BOM, separated by ';'     excel-utf16: 1.0 or 0.0, UTF-16
        tree: one folder per label
"""


@cli.command
def main(argv: list[str]) -> int:
    """Parses `argv` and draws the data set."""
    from data.labels import SPLITS
    from data.sample.forms import RAW_FORMS
    from data.sample.sets import SETS

    parser = cli.Parser(prog="python -m tools sample", description=__doc__, epilog=EPILOG)
    add = parser.add_argument
    add("--dst", default="plant_dataset", metavar="FOLDER", help="folder to write (default: %(default)s)")
    add("--set", default="apple", choices=SETS, help="label set (default: %(default)s)")
    add("--raw", default="csv", choices=RAW_FORMS, help="form of the labels (default: %(default)s)")
    add("--pool", action="store_true", help="one folder without splits, for process_dataset.py --split")
    add("--seed", default=0, type=int, metavar="N", help="another seed draws other leaves")
    add("--counts", nargs=3, type=int, metavar=("TRAIN", "VAL", "TEST"), help="leaves per split")
    args = parser.parse_args(argv)

    from data.sample.write import plan_sample, write_sample

    counts = dict(zip(SPLITS, args.counts, strict=True)) if args.counts else SETS[args.set].counts
    if args.seed < 0 or min(counts.values()) < 1:
        raise UsageError("--seed must be 0 or more, and every count 1 or more")
    dst = Path(args.dst)
    if dst.exists() and not dst.is_dir():
        raise UsageError(f"--dst {dst} is not a folder; choose another")
    if dst.exists() and any(dst.iterdir()) and not (dst / "lesion_boxes.csv").exists():
        raise UsageError(f"--dst {dst} holds something else; choose another")
    options = (args.seed, counts, args.set, args.raw, args.pool)
    planned = {path for photo in plan_sample(*options) for path in photo.paths}
    others = {f"{path.relative_to(dst)}" for path in dst.rglob("*.jpg")} - planned
    if others:
        raise UsageError(f"--dst {dst} holds another sample, with {min(others)}; remove it, or choose another")
    write_sample(dst, *options)
    print(f"{dst}: {', '.join(f'{n} {split}' for split, n in counts.items())} leaves, lesion_boxes.csv")
    return 0
