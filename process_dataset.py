"""Turns raw photos and label CSVs into the folders that main.py, test.py and visual.py read."""

import sys

from tools import cli

EPILOG = """
reads   SRC/{train,val,test}/images and SRC/{split}/{split}_label.csv (or SRC/{split}_label.csv), with the columns
        images,labels or the one-hot columns images,label_complex,...,label_scab; one split is enough
writes  DST/{split}/{000001,...,100000}/ID.jpg, DST/OneHot-{split}_label.csv, DST/manifest.json
"""


@cli.command
def main(argv: list[str]) -> int:
    """Parses `argv`, checks the raw data, writes the tree, prints the counts."""
    parser = cli.Parser(prog="process_dataset.py", description=__doc__, epilog=EPILOG)
    parser.add_argument("--src", default="plant_dataset", metavar="FOLDER", help="raw data (default: %(default)s)")
    parser.add_argument("--dst", default="dataset", metavar="FOLDER", help="folder to write (default: %(default)s)")
    parser.add_argument(
        "--multi-label",
        default="copy",
        choices=["copy", "error", "first"],
        help="a photo with several labels: one file a label, an error, or its first label only",
    )
    parser.add_argument("--mode", default="link", choices=["link", "copy"], help="hard links, or copies of the photos")
    parser.add_argument(
        "--max-missing",
        default=0,
        type=int,
        metavar="N",
        help="go on with up to N rows without a photo, and N photos without a row",
    )
    parser.add_argument("--max-bad", default=0, type=int, metavar="N", help="leave out up to N unreadable photos")
    parser.add_argument("--overwrite", action="store_true", help="replace a DST that this command made")
    args = parser.parse_args(argv)

    from pathlib import Path

    from data.labels import SPLITS
    from data.prepare import build_tree, check_raw, read_raw, table
    from tools.errors import UsageError
    from tools.logger import progress

    src, dst = Path(args.src), Path(args.dst)
    real_src, real_dst = src.resolve(), dst.resolve()
    if real_src.is_relative_to(real_dst) or any(real_dst.is_relative_to(real_src / split) for split in SPLITS):
        raise UsageError(f"--dst {dst} and --src {src} lie within each other; choose another --dst")
    splits = read_raw(src, lambda items, total: progress(items, "checking photos", total))
    check_raw(splits, args.max_missing, args.max_bad, args.multi_label)
    manifest = build_tree(splits, dst, {"mode": args.mode, "multi_label": args.multi_label}, args.overwrite)
    print(table(splits, manifest))
    for split in splits:
        for entry in (*split.missing, *split.unlabelled, *split.bad):
            print(f"left out: {split.name}/{entry}")
    print(f"{dst} is complete: {', '.join(manifest['splits'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
