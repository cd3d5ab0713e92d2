"""Decodes every raw photo once: its properties, its fingerprint, and the file to place in the tree."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from data.images import Header, encode, format_of, inspect, read_bytes, shrink
from data.label_files import LabelRow
from data.prepare.duplicates import Fingerprint, fingerprint
from data.prepare.raw import RawSplit
from tools.base.errors import DataError, listing
from tools.base.threads import Progress, in_parallel


@dataclass(frozen=True)
class AuditedPhoto:
    """A photo that decodes."""

    split: str  # the split it belongs to
    row: LabelRow  # its row of the CSV, with all its labels
    file: Path  # what is placed in the tree: the raw file, or the smaller copy
    entry: dict  # of that file in the manifest
    header: Header  # of the raw file
    print: Fingerprint | None  # its fingerprint; None where duplicates are not looked for


@dataclass(frozen=True)
class Shrinking:
    """How smaller copies are made: short side (`squash`: both sides) in pixels, JPEG quality, and their folder."""

    side: int
    squash: bool
    quality: int
    folder: Path


def audit(
    raws: Sequence[RawSplit], shrinking: Shrinking | None, compare: bool, progress: Progress
) -> tuple[list[AuditedPhoto], list[str]]:
    """The photos that decode, in the order of the rows, and `split/image: why` for those that do not.

    Args:
        shrinking: None leaves every photo as it is.
        compare: whether to take fingerprints.

    Raises:
        DataError: when no photo decodes.
    """
    work = partial(_audit_photo, shrinking=shrinking, compare=compare)
    results = in_parallel(work, [(raw, row) for raw in raws for row in raw.rows], progress)
    photos = [result for result in results if isinstance(result, AuditedPhoto)]
    unreadable = [result for result in results if isinstance(result, str)]
    if not photos:
        raise DataError(f"none of {len(unreadable)} labelled photos can be read: {listing(unreadable)}")
    return photos, unreadable


def join_equal(photos: Sequence[AuditedPhoto]) -> tuple[list[AuditedPhoto], list[str]]:
    """The photos, with those of equal content in one split joined into the first, and a note about how many were.

    The first one gets the labels of all, and `row.file` names all of their files.

    Raises:
        DataError: for two that are in different groups.
    """
    joined: dict[tuple[str, str], AuditedPhoto] = {}
    for photo in photos:
        first = joined.setdefault((photo.split, photo.entry["sha256"]), photo)
        if first.row.group != photo.row.group:
            raise DataError(
                f"--join content: {first.row.file} and {photo.row.file} are one photo, in the groups "
                f"{first.row.group!r} and {photo.row.group!r}; correct one"
            )
        if first is not photo:
            labels = tuple(dict.fromkeys((*first.row.labels, *photo.row.labels)))
            row = replace(first.row, labels=labels, file=f"{first.row.file} = {photo.row.file}")
            joined[photo.split, photo.entry["sha256"]] = replace(first, row=row)
    num_joined = len(photos) - len(joined)
    return [*joined.values()], [f"{num_joined} files joined with another one of equal content"] if num_joined else []


def count_facts(photos: Sequence[AuditedPhoto]) -> dict:
    """The number of photos per size, mode and format, and per kind of unusual photo."""
    headers = [photo.header for photo in photos]
    return {
        "sizes": _rank("{}x{}".format(*header.size) for header in headers),
        "modes": _rank(header.mode for header in headers),
        "formats": _rank(header.format for header in headers),
        "turned": sum(header.turned for header in headers),
        "animated": sum(header.animated for header in headers),
        "misnamed": sum(_is_misnamed(photo) for photo in photos),
    }


def describe_duplicates(photos: Sequence[AuditedPhoto], groups: Sequence[Sequence[int]]) -> list[dict]:
    """One plain dict per group of duplicates: `kind`, `members`, `contradicting`, `leak`.

    A group is `contradicting` when its members are labelled differently, and a `leak` when they lie in different
    splits: a model is then scored on photos that it was trained on.
    """
    return [
        {
            "kind": "exact" if len({p.print and p.print.pixels for p in members}) == 1 else "near",
            "members": [
                {"split": p.split, "image": p.row.image, "labels": list(p.row.labels), "sha256": p.entry["sha256"]}
                for p in members
            ],
            "contradicting": len({frozenset(p.row.labels) for p in members}) > 1,
            "leak": len({p.split for p in members}) > 1,
        }
        for members in ([photos[index] for index in group] for group in groups)
    ]


def describe_groups(photos: Sequence[AuditedPhoto]) -> dict[str, dict[str, list[str]]]:
    """The names of the photos of every group, by split."""
    groups: dict[str, dict[str, list[str]]] = {}
    for photo in photos:
        if photo.row.group:
            groups.setdefault(photo.row.group, {}).setdefault(photo.split, []).append(photo.row.image)
    return groups


def entry_of(content: bytes) -> dict:
    """What the manifest records of a file."""
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def check_leaks(duplicates: Sequence[dict], allowed: bool) -> None:
    """Raises DataError when duplicates lie in different splits, unless that is allowed."""
    groups = [group["members"] for group in duplicates if group["leak"]]
    leaks = [" = ".join(f"{member['split']}/{member['image']}" for member in members) for members in groups]
    if leaks and not allowed:
        raise DataError(
            f"{len(leaks)} leaks, duplicates in different splits: {listing(leaks)}; "
            "keep one of each, or continue with --allow-leak"
        )


def _audit_photo(item: tuple[RawSplit, LabelRow], shrinking: Shrinking | None, compare: bool) -> AuditedPhoto | str:
    """The audited photo of a row, or its name and why it cannot be used."""
    raw, row = item
    path = raw.images / row.file
    try:
        content = read_bytes(path)
        header, image = inspect(content, path, shrinking.side if shrinking else None)
    except DataError as error:
        return f"{raw.name}/{row.image}: {str(error).removeprefix(f'image {path}').lstrip(': ')}"
    if shrinking:
        small = shrink(image, header.size, shrinking.side, shrinking.squash)
        if small or header.turned:  # one that is small enough may not yet be upright
            path = shrinking.folder / raw.name / row.image
            content = encode(small or image, row.image, shrinking.quality)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return AuditedPhoto(raw.name, row, path, entry_of(content), header, fingerprint(image) if compare else None)


def _is_misnamed(photo: AuditedPhoto) -> bool:
    """Whether the suffix is that of another format. An MPO, as phones write, counts as a JPEG."""
    return format_of(photo.row.image) != {"MPO": "JPEG"}.get(photo.header.format, photo.header.format)


def _rank(values: Iterable[str]) -> dict[str, int]:
    """How often each value occurs, the most frequent first."""
    return dict(Counter(sorted(values)).most_common())
