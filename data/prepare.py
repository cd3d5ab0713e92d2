"""Raw photos + label CSVs -> the folders that training reads, checked first and put in place in one move.

plant_dataset/{train,val,test}/images + {split}_label.csv
dataset/{train,val,test}/{000001,...,100000}/ID.jpg, OneHot-{split}_label.csv, manifest.json
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from data.images import EXTENSIONS, read_image
from data.labels import CODE_OF, NAME_OF, SPLITS, Row, read_labels, write_one_hot
from tools.errors import DataError, ResourceError, UsageError, UserError

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass
class RawSplit:
    """One split as it came, after the checks: `rows` have their photo in `images`."""

    name: str
    images: Path
    rows: list[Row]
    csv_sha256: str
    repeats: int
    missing: list[str] = field(default_factory=list)  # rows without a photo
    unlabelled: list[str] = field(default_factory=list)  # photos without a row
    bad: list[str] = field(default_factory=list)  # photos that do not decode, with the reason


def read_raw(src: Path, progress: Callable[[Iterable, int], Iterable] = lambda items, _total: items) -> list[RawSplit]:
    """Reads the label CSVs under `src` and decodes every photo they name once.

    Raises:
        DataError: when no split is there, or a label file is wrong.
    """
    if not src.is_dir():
        raise DataError(f"--src {src} is not a folder")
    splits = [_read_split(src, name) for name in SPLITS if (src / name).is_dir()]
    if not splits:
        raise DataError(f"--src {src} has none of the folders {', '.join(SPLITS)}, each with images/ and a label CSV")
    todo = [(split, row) for split in splits for row in split.rows]
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        problems = pool.map(lambda item: _problem(item[0].images / item[1].image), todo)
        for (split, row), problem in progress(zip(todo, problems, strict=True), len(todo)):
            if problem:
                split.bad.append(f"{row.image}: {problem}")
    for split in splits:
        unusable = {entry.split(": ")[0] for entry in split.bad}
        split.rows = [row for row in split.rows if row.image not in unusable]
    return splits


def check_raw(splits: list[RawSplit], max_missing: int, max_bad: int, multi_label: str) -> None:
    """Raises DataError when more is missing or bad than was allowed, or a row has several labels and must not."""
    for kind, limit, flag in (
        ("missing", max_missing, "--max-missing"),
        ("unlabelled", max_missing, "--max-missing"),
        ("bad", max_bad, "--max-bad"),
    ):
        found = [f"{split.name}/{entry}" for split in splits for entry in getattr(split, kind)]
        if len(found) > limit:
            text = {"missing": "rows without a photo", "unlabelled": "photos without a row", "bad": "unreadable photos"}
            raise DataError(
                f"{len(found)} {text[kind]}: {', '.join(found[:5])}{', ...' if len(found) > 5 else ''}; "
                f"mend them, or allow them with {flag} {len(found)}"
            )
    if multi_label == "error":
        for split in splits:
            for row in split.rows:
                if len(row.labels) > 1:
                    raise DataError(
                        f"{split.name}, row {row.line}: {row.image} has the labels {' '.join(row.labels)}; "
                        "choose --multi-label copy or first"
                    )


def build_tree(splits: list[RawSplit], dst: Path, settings: dict, overwrite: bool) -> dict:
    """Writes the tree to `dst` in one move and returns its manifest. An equal tree is verified and left.

    Args:
        settings: `mode` (link or copy) and `multi_label` (copy, error or first).

    Raises:
        UsageError: when `dst` holds something else and `overwrite` is not set.
        DataError: when `dst` was made with these settings but files have changed since.
        ResourceError: when the disk refuses.
    """
    settings = settings | {"csv_sha256": {split.name: split.csv_sha256 for split in splits}}
    left = _existing(dst, settings, overwrite)
    if left:
        return left
    staging = dst.parent / f".{dst.name}.tmp-{os.getpid()}"
    try:
        dst.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir()
        manifest = {"format": FORMAT, "settings": settings, "splits": {}}
        for split in splits:
            manifest["splits"][split.name] = _write_split(split, staging, settings)
        (staging / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        if dst.exists():
            old = dst.parent / f".{dst.name}.old-{os.getpid()}"
            dst.rename(old)
            staging.rename(dst)
            shutil.rmtree(old)
        else:
            staging.rename(dst)
    except OSError as error:
        raise ResourceError(f"{error.filename or dst} cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def read_manifest(root: Path) -> dict | None:
    """The manifest of a prepared tree, or None for a tree that somebody else made."""
    path = root / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text())
        if manifest["format"] != FORMAT or not isinstance(manifest["splits"], dict):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{path} is damaged; run process_dataset.py again with --overwrite") from None
    return manifest


def table(splits: list[RawSplit], manifest: dict) -> str:
    """The counts of a prepared tree as text: a column a split."""
    names = [split.name for split in splits]
    counts = [manifest["splits"][name] for name in names]
    lines = [
        ("rows", *(c["rows"] for c in counts)),
        ("with several labels", *(c["several"] for c in counts)),
        ("files (one a label)", *(c["copies"] for c in counts)),
    ]
    lines += [(f"  {code} {NAME_OF[code]}", *(c["labels"][code] for c in counts)) for code in sorted(NAME_OF)]
    lines += [
        ("copied, not linked", *(c["copied"] for c in counts)),
        ("repeated rows", *(s.repeats for s in splits)),
        ("rows without a photo", *(len(s.missing) for s in splits)),
        ("photos without a row", *(len(s.unlabelled) for s in splits)),
        ("unreadable photos", *(len(s.bad) for s in splits)),
    ]
    rows = [("", *names), *lines]
    return "\n".join(f"{row[0]:<28}" + "".join(f"{cell:>8}" for cell in row[1:]) for row in rows)


def _read_split(src: Path, name: str) -> RawSplit:
    images = src / name / "images"
    if not images.is_dir():
        raise DataError(f"{images} is not a folder")
    beside, above = src / name / f"{name}_label.csv", src / f"{name}_label.csv"
    labels = read_labels(above if above.exists() and not beside.exists() else beside)
    present = {entry.name for entry in os.scandir(images)}
    listed = {row.image for row in labels.rows}
    stray = sorted(n for n in present - listed if n.lower().endswith(EXTENSIONS) and not n.startswith("."))
    return RawSplit(
        name=name,
        images=images,
        rows=[row for row in labels.rows if row.image in present],
        csv_sha256=labels.sha256,
        repeats=labels.repeats,
        missing=[row.image for row in labels.rows if row.image not in present],
        unlabelled=stray,
    )


def _problem(path: Path) -> str:
    """Why the photo cannot be used, or the empty string."""
    try:
        read_image(path)
    except UserError as error:
        return str(error).removeprefix(f"image {path} ")
    return ""


def _write_split(split: RawSplit, root: Path, settings: dict) -> dict:
    """Links or copies one split under `root` and returns its entry in the manifest."""
    for code in NAME_OF:
        (root / split.name / code).mkdir(parents=True)
    rows = split.rows
    if settings["multi_label"] == "first":
        rows = [Row(row.image, row.labels[:1], row.line) for row in rows]
    copied, files, labels = 0, {}, Counter(dict.fromkeys(NAME_OF, 0))
    for row in rows:
        for name in row.labels:
            code = CODE_OF[name]
            target = root / split.name / code / row.image
            copied += _place(split.images / row.image, target, settings["mode"])
            files[f"{code}/{row.image}"] = target.stat().st_size
            labels[code] += 1
    write_one_hot(root / f"OneHot-{split.name}_label.csv", rows)
    several = sum(len(row.labels) > 1 for row in split.rows)
    return {
        "rows": len(rows),
        "several": several,
        "copies": len(files),
        "copied": copied,
        "labels": dict(labels),
        "files": files,
    }


def _place(source: Path, target: Path, mode: str) -> bool:
    """Hard-links, or copies when asked to or when the file system cannot link. True when it copied."""
    if mode == "link":
        try:
            os.link(source.resolve(), target)
            return False
        except OSError:  # another device, no links on this file system, too many links, not our file
            pass
    shutil.copyfile(source, target)
    return True


def _existing(dst: Path, settings: dict, overwrite: bool) -> dict | None:
    """The manifest of a tree that can be left as it is; None when `dst` is to be (re)written."""
    if not dst.exists() and not dst.is_symlink():
        return None
    if not dst.is_dir():
        raise UsageError(f"--dst {dst} is a file")
    manifest = read_manifest(dst)
    if manifest is None:
        if any(dst.iterdir()):
            raise UsageError(f"--dst {dst} was not made by process_dataset.py; choose another, or remove it yourself")
        return None
    if overwrite:
        return None
    if manifest["settings"] != settings:
        raise UsageError(f"--dst {dst} was made with other settings or labels; add --overwrite, or choose another")
    for name, split in manifest["splits"].items():
        for file, size in split["files"].items():
            path = dst / name / file
            if not path.is_file() or path.stat().st_size != size:
                raise DataError(f"{path} is missing or has changed since --dst was made; add --overwrite")
    return manifest
