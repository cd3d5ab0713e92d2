"""Every photo opened and decoded once: what it is, what it resembles, and the file that the tree will have of it."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.images import Header, encode, format_of, inspect, read_bytes, shrink
from data.labels import LabelRow
from data.prepare.duplicates import Fingerprint, fingerprint
from data.prepare.raw import RawSplit
from tools.base.errors import DataError, listing
from tools.base.threads import Progress, in_parallel


@dataclass(frozen=True)
class AuditedPhoto:
    """A photo that decodes.

    Attributes:
        split: where it belongs.
        row: its line of the CSV, with all its labels.
        file: what goes into the tree: the raw file, or the smaller copy.
        size: bytes of that file.
        sha256: of that file.
        header: of the raw file.
        print: what it is compared by; None where twins are not looked for.
    """

    split: str
    row: LabelRow
    file: Path
    size: int
    sha256: str
    header: Header
    print: Fingerprint | None


@dataclass(frozen=True)
class Shrinking:
    """How smaller copies are made: short side (`squash`: both sides) in pixels, JPEG quality, and where they go."""

    side: int
    squash: bool
    quality: int
    folder: Path


def audit(
    raws: Sequence[RawSplit], shrinking: Shrinking | None, compare: bool, progress: Progress
) -> tuple[list[AuditedPhoto], list[str]]:
    """The photos that decode, in the order of the rows, and `split/image: why` of those that do not.

    Args:
        shrinking: None leaves every photo as it is.
        compare: whether to take fingerprints.

    Raises:
        DataError: when no photo decodes.
    """
    work = partial(_examine, shrinking=shrinking, compare=compare)
    results = in_parallel(work, [(raw, row) for raw in raws for row in raw.rows], progress)
    photos = [result for result in results if isinstance(result, AuditedPhoto)]
    unreadable = [result for result in results if isinstance(result, str)]
    if not photos:
        raise DataError(f"none of {len(unreadable)} labelled photos can be read: {listing(unreadable)}")
    return photos, unreadable


def facts(photos: Sequence[AuditedPhoto]) -> dict:
    """How many photos have which size, mode and format, and how many are unusual in which way."""
    headers = [photo.header for photo in photos]
    return {
        "sizes": _ranked(f"{width}x{height}" for width, height in (header.size for header in headers)),
        "modes": _ranked(header.mode for header in headers),
        "formats": _ranked(header.format for header in headers),
        "turned": sum(header.turned for header in headers),
        "animated": sum(header.animated for header in headers),
        "misnamed": sum(_is_misnamed(photo) for photo in photos),
    }


def describe_twins(photos: Sequence[AuditedPhoto], groups: Sequence[Sequence[int]]) -> list[dict]:
    """One plain dict for every group of twins: `kind`, `members`, `contradicting`, `leak`.

    A group is `contradicting` when its members are labelled differently, and a `leak` when they lie in different
    splits: then the score on one split is partly the memory of another.
    """
    return [_describe_group([photos[index] for index in group]) for group in groups]


def check_leaks(twins: Sequence[dict], allowed: bool) -> None:
    """Raises DataError when twins lie in different splits, unless that is allowed."""
    leaks = [" = ".join(f"{m['split']}/{m['image']}" for m in twin["members"]) for twin in twins if twin["leak"]]
    if leaks and not allowed:
        raise DataError(
            f"{len(leaks)} leaks, twins in different splits: {listing(leaks)}; "
            "keep one of each, or go on with --allow-leak"
        )


def _examine(item: tuple[RawSplit, LabelRow], shrinking: Shrinking | None, compare: bool) -> AuditedPhoto | str:
    """The audited photo of a row, or its name and why it cannot be used."""
    raw, row = item
    path = raw.images / row.image
    try:
        content = read_bytes(path)
        header, image = inspect(content, path, shrinking.side if shrinking else None)
    except DataError as error:
        return f"{raw.name}/{row.image}: {str(error).removeprefix(f'image {path}').lstrip(': ')}"
    small = _smaller(image, header, shrinking) if shrinking else None
    if small:
        path = shrinking.folder / raw.name / row.image
        content = encode(small, row.image, shrinking.quality)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    return AuditedPhoto(raw.name, row, path, len(content), digest, header, fingerprint(image) if compare else None)


def _smaller(image, header: Header, shrinking: Shrinking):
    """The copy to write, or None for a photo that is small and upright as it is."""
    small = shrink(image, header.size, shrinking.side, shrinking.squash)
    return image if small is None and header.turned else small


def _is_misnamed(photo: AuditedPhoto) -> bool:
    """Whether the suffix promises another format; a phone's MPO is a JPEG with a second picture behind it."""
    return format_of(photo.row.image) != {"MPO": "JPEG"}.get(photo.header.format, photo.header.format)


def _ranked(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def _describe_group(group: Sequence[AuditedPhoto]) -> dict:
    return {
        "kind": "exact" if len({photo.print.pixels for photo in group}) == 1 else "near",
        "members": [
            {"split": p.split, "image": p.row.image, "labels": list(p.row.labels), "sha256": p.sha256} for p in group
        ],
        "contradicting": len({frozenset(photo.row.labels) for photo in group}) > 1,
        "leak": len({photo.split for photo in group}) > 1,
    }
