"""Audits raw photos and label CSVs, and writes the folders that main.py, test.py and visual.py read."""

import argparse
import re
import unicodedata
import warnings
from functools import partial
from pathlib import Path

from tools.base import cli
from tools.base.errors import UsageError, listing
from tools.base.files import locked, publish, staging

EPILOG = """
reads   with --split: SRC/LABEL/ID.jpg; or photos in SRC/images, SRC/train_images or SRC, and SRC/train.csv or the
        only CSV of SRC
        else: SRC/{train,val,test}/LABEL/ID.jpg; or SRC/{split}/images and SRC/{split}/{split}_label.csv (or
        SRC/{split}_label.csv); one split is enough
        CSV: image,label or image,labels or image,label_1,label_2 or one column per label with 0 and 1 or x
writes  DST/{split}/LABEL/ID.jpg, DST/OneHot-{split}_label.csv, DST/manifest.json, DST/report.html
        the folders of the course's six labels are called 000001, ..., 100000
docs/own-data.md goes from a folder of photos to a scored model; docs/data.md has all details
"""
MOST_LINES = 20  # about duplicates, and about what is left out


def group_pattern(text: str) -> str:
    """Type of --group-pattern: a regular expression with at least one bracket."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of a pattern that another language would read otherwise, as [[:alpha:]]
            num_brackets = re.compile(text).groups
    except (re.error, OverflowError, RecursionError, Warning) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from None
    if not num_brackets:
        raise argparse.ArgumentTypeError(f"{text!r} needs brackets around the group, such as '^(tree[0-9]+)_'")
    return text


def build_parser() -> cli.Parser:
    """The command line of process_dataset.py."""
    parser = cli.Parser(prog="process_dataset.py", description=__doc__, epilog=EPILOG)
    add = parser.add_argument
    add("--src", default="plant_dataset", metavar="FOLDER", help="raw data (default: %(default)s)")
    add("--dst", default="dataset", metavar="FOLDER", help="folder to write (default: %(default)s)")
    nfc = partial(unicodedata.normalize, "NFC")  # as the names in a label file are compared
    several = "a photo with several labels: one file per label, an error, or its first label only"
    add("--multi-label", default="copy", choices=["copy", "error", "first"], help=several)
    add("--labels", metavar="FILE", help="rename, merge or drop labels: lines `given: new`, or `given: -`")
    which = "the labels found, the course's six, or those of a manifest.json (default: the course's if they match)"
    add("--label-set", default="auto", metavar="found|course|FILE", help=which)
    alone = "labels that stand alone, besides `healthy`"
    add("--exclusive", nargs="+", type=nfc, default=[], metavar="NAME", help=alone)
    add("--separator", metavar="SIGN", help="between the names in a column `labels` (default: found in the file)")
    add(
        "--join",
        default="name",
        choices=["name", "content"],
        help="one photo is: files with equal name and content, or with equal content",
    )
    unlabelled = "photos without labels are an error, or are listed and left out"
    add("--unlabelled", default="refuse", choices=["refuse", "keep"], help=unlabelled)
    add("--mode", default="link", choices=["link", "copy"], help="hard links, or copies of the photos")
    add("--split", nargs=3, type=float, metavar=("TRAIN", "VAL", "TEST"), help="split one folder; the sum must be 1")
    group = parser.add_mutually_exclusive_group().add_argument
    by_column = "keep photos in one split that have the same tree, orchard or date there"
    group("--group", type=nfc, metavar="COLUMN", help=by_column)
    by_name = "the same, where the first bracket of a regular expression finds the group in the name of a photo"
    group("--group-pattern", type=group_pattern, metavar="REGEX", help=by_name)
    add("--seed", default=0, type=int, metavar="N", help="seed of --split (default: %(default)s)")
    add("--size", type=int, metavar="PIXELS", help="write smaller copies with this short side; never enlarges")
    add("--squash", action="store_true", help="with --size: make photos square, like the course's")
    add("--quality", default=95, type=int, metavar="Q", help="JPEG quality of written photos, 1 to 100 (default: 95)")
    add("--balance", action="store_true", help="add brighter, mirrored, turned copies of rare labels, for training")
    names = ("--no-duplicates", "--no-twins")  # the second is the name in earlier versions
    add(*names, action="store_false", dest="duplicates", help="do not look for duplicate photos")
    add("--allow-leak", action="store_true", help="continue although duplicates lie in different splits")
    missing = "leave out up to N rows without a photo, and N photos without a row"
    add("--max-missing", default=0, type=int, metavar="N", help=missing)
    add("--max-bad", default=0, type=int, metavar="N", help="leave out up to N unreadable photos")
    add("--follow-links", action="store_true", help="read photos through links that lead out of SRC")
    add("--overwrite", action="store_true", help="replace a DST that this command made")
    return parser


def check_arguments(args) -> None:
    """Raises UsageError for values that argparse cannot check."""
    if args.split and not (min(args.split) >= 0 < args.split[0] and abs(sum(args.split) - 1) < 1e-6):
        raise UsageError(
            f"--split {' '.join(map(str, args.split))}: shares must be 0 or more, TRAIN above 0, their sum 1"
        )
    if args.separator == "":
        raise UsageError("--separator is empty; give a sign, or leave it out")
    if args.squash and not args.size:
        raise UsageError("--squash needs --size PIXELS")
    lowest = {"seed": 0, "size": 16, "quality": 1, "max_missing": 0, "max_bad": 0}
    for name, low in lowest.items():
        value = getattr(args, name)
        if value is not None and value < low:
            raise UsageError(f"--{name.replace('_', '-')} {value} is below {low}")
    if args.quality > 100:
        raise UsageError(f"--quality {args.quality} is above 100")


def check_apart(src, dst, raws) -> None:
    """Raises UsageError when writing `dst` would touch what is read."""
    target = dst.resolve()
    if src.resolve().is_relative_to(target) or any(target.is_relative_to(raw.folder.resolve()) for raw in raws):
        raise UsageError(f"--dst {dst} and --src {src}: one lies inside the other; choose another --dst")


def settings_of(args, raws, renames) -> dict:
    """Everything besides the photos that decides what the tree holds."""
    names = (
        *("mode", "multi_label", "split", "seed", "size", "squash", "quality", "balance", "duplicates"),
        *("label_set", "exclusive", "separator", "join", "unlabelled", "group", "group_pattern"),
    )
    digests = {raw.name: raw.csv_sha256 for raw in raws if raw.table}
    return {name: getattr(args, name) for name in names} | {"labels": renames, "csv_sha256": digests}


def audit_photos(args, raws, labels, smaller) -> tuple[list, list[dict], list[str], list[str]]:
    """Audits the photos, writes copies of --size to `smaller`, finds duplicates, and splits the pool for --split.

    Returns:
        The photos with their splits, the duplicates as the manifest lists them, unreadable photos with reasons, notes.
    """
    from data.prepare.audit import Shrinking, audit, check_leaks, describe_duplicates, join_equal
    from data.prepare.duplicates import find_duplicates
    from data.prepare.label_set import check_exclusive
    from data.prepare.raw import check_count
    from data.prepare.tree import divide

    shrinking = Shrinking(args.size, args.squash, args.quality, smaller) if args.size else None
    photos, unreadable = audit(raws, shrinking, args.duplicates, bar("checking photos"))
    check_count(unreadable, "unreadable photos", "--max-bad", args.max_bad)
    photos, notes = join_equal(photos) if args.join == "content" else (photos, [])
    check_exclusive([(f"{photo.split}/{photo.row.file}", photo.row) for photo in photos], labels)
    groups = find_duplicates([photo.print for photo in photos if photo.print]) if args.duplicates else []
    if args.split:
        photos = divide(photos, groups, args.split, args.seed)
    duplicates = describe_duplicates(photos, groups)
    check_leaks(duplicates, args.allow_leak)
    return photos, duplicates, unreadable, notes


def write_page(manifest: dict, root) -> None:
    """Writes report.html into the tree at `root`."""
    from data.images import read_image, thumbnail
    from data.prepare.tree import REPORT
    from tools.render.audit_page import audit_page
    from tools.render.page import THUMBNAIL_PX

    page = audit_page(manifest, lambda file: thumbnail(read_image(root / file), THUMBNAIL_PX))
    (root / REPORT).write_bytes(page.encode(errors="backslashreplace"))  # a file name may be invalid Unicode


def bar(description: str):
    """(items, total) -> the items, under a progress bar with this description."""
    from tools.base.log import progress

    return lambda items, total: progress(items, description, total)


def print_outcome(manifest: dict, dst) -> None:
    """Prints the counts, and the first duplicates and photos that were left out; report.html has all."""
    from data.prepare.advice import find_warnings
    from data.prepare.tree import REPORT, format_counts

    print(*format_counts(manifest), sep="\n")
    lines = [cli.printable(describe_group(group)) for group in manifest["duplicates"]]
    lines = [listing(lines, "\n", most=MOST_LINES)] if lines else []
    lines += [cli.printable(note) for note in manifest["notes"]]
    lines += [cli.printable(f"warning: {warning}") for warning in find_warnings(manifest)]
    left = [cli.printable(f"left out: {name}") for names in manifest["left_out"].values() for name in names]
    lines += [listing(left, "\n", most=MOST_LINES)] if left else []
    print(*lines, f"{dst} is complete: {', '.join(manifest['splits'])}; see {dst / REPORT}", sep="\n")


def describe_group(group: dict) -> str:
    """One line about a group of duplicates in the manifest."""
    members = " = ".join(f"{m['split']}/{m['image']} ({', '.join(m['labels'])})" for m in group["members"])
    return f"{group['kind']} duplicates{', labelled differently' if group['contradicting'] else ''}: {members}"


@cli.command
def main(argv: list[str]) -> int:
    """Parses `argv`, audits the raw data, writes the tree atomically, prints the counts."""
    args = build_parser().parse_args(argv)
    check_arguments(args)

    from data.prepare.audit import describe_groups
    from data.prepare.label_set import check_exclusive, choose_set, rename, suspicious_labels
    from data.prepare.raw import Reading, check_rows, left_out, read_raw
    from data.prepare.tree import check_target, is_finished, write_tree

    src, dst = Path(args.src), Path(args.dst)
    keep = args.unlabelled == "keep"
    reading = Reading(args.follow_links, args.separator, args.group, args.group_pattern, keep)
    raws = read_raw(src, bool(args.split), reading)
    check_apart(src, dst, raws)
    raws, renames = rename(raws, Path(args.labels) if args.labels else None)
    labels = choose_set(raws, args.label_set, args.exclusive)
    check_exclusive([(raw.locate(row), row) for raw in raws for row in raw.rows], labels)
    check_rows(raws, args.max_missing, args.multi_label)
    settings = settings_of(args, raws, renames)
    check_target(dst, settings, args.overwrite)
    target = dst.resolve()
    with locked(target), staging(target) as folder:
        tree = folder / "tree"
        photos, duplicates, unreadable, joined = audit_photos(args, raws, labels, folder / "smaller")
        rows = [photo.row for photo in photos]
        notes = [note for raw in raws for note in raw.notes()] + joined + suspicious_labels(rows, labels)
        left = left_out(raws) | {"unreadable photos": unreadable}
        known: dict = {"settings": settings, "label_set": labels.to_plain()}
        known |= {"groups": describe_groups(photos), "duplicates": duplicates, "left_out": left, "notes": notes}
        manifest = write_tree(photos, tree, known, bar("making copies"))
        write_page(manifest, tree)
        if args.overwrite or not is_finished(dst, manifest):
            publish(tree, target)
    print_outcome(manifest, dst)
    return 0
