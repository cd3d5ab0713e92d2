"""manifest.json of a prepared data set: reading it, and the duplicates that it lists."""

import json
import os
from pathlib import Path

from tools.base.errors import DataError
from tools.base.files import read_regular

MANIFEST = "manifest.json"


FORMAT = 2


MAX_BYTES = 500_000_000  # of the manifest: some 150 bytes a photo


def read_manifest(root: Path) -> dict | None:
    """The manifest of a prepared tree, or None for a tree that somebody else made."""
    path = root / MANIFEST
    if not os.path.lexists(path):
        return None
    try:
        manifest = json.loads(read_regular(path, "manifest", MAX_BYTES))
        if manifest["format"] != FORMAT or not _is_sound(manifest):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{path} is damaged or too old; run process_dataset.py again with --overwrite") from None
    return manifest


def _is_sound(manifest: dict) -> bool:
    """Whether the parts that other commands read are what they should be; what is absent raises."""
    files = [entry for split in manifest["splits"].values() for entry in split["files"].values()]
    members = [member for twin in manifest["twins"] for member in twin["members"]]
    return all(isinstance(entry["size"], int) for entry in files) and all(
        isinstance(member[key], str) for member in members for key in ("split", "image")
    )


def twin_groups(manifest: dict, split: str) -> list[set[str]]:
    """Names of the photos of `split` that are twins of each other, a set a group; each has two or more."""
    groups = [{m["image"] for m in twin["members"] if m["split"] == split} for twin in manifest["twins"]]
    return [group for group in groups if len(group) > 1]
