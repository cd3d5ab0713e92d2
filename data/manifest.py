"""manifest.json of a prepared data set: reading it, and the duplicates and groups that it lists."""

import json
import os
from pathlib import Path

from data.labels import COURSE, plain_fault
from tools.base.errors import DataError
from tools.base.files import read_regular

MANIFEST = "manifest.json"
FORMAT = 4
NEW_SETTINGS: dict = {  # of process_dataset.py since format 4, with the values that say what it did before
    **{"label_set": "auto", "exclusive": [], "labels": {}, "separator": None},
    **{"join": "name", "unlabelled": "refuse", "group": None, "group_pattern": None},
}
MAX_BYTES = 500_000_000  # a manifest has some 150 bytes per photo


def read_manifest(root: Path) -> dict | None:
    """The manifest of a prepared tree, or None where there is none. Raises DataError for a damaged or unknown one."""
    path = root / MANIFEST
    if not os.path.lexists(path):
        return None
    try:
        manifest = json.loads(read_regular(path, "manifest", MAX_BYTES))
        if manifest["format"] == 2:  # the same content under older names
            manifest |= {"format": 3, "duplicates": manifest.pop("twins")}
            manifest["settings"]["duplicates"] = manifest["settings"].pop("twins")
        if manifest["format"] == 3:  # before data sets had their own labels
            manifest |= {"format": FORMAT, "label_set": COURSE.to_plain(), "groups": {}}
            manifest["settings"] = NEW_SETTINGS | manifest.get("settings", {})
        if manifest["format"] != FORMAT or not _is_sound(manifest):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{path} is damaged or too old; run process_dataset.py again with --overwrite") from None
    return manifest


def duplicate_groups(manifest: dict, split: str) -> list[set[str]]:
    """The names of photos in `split` that duplicate each other, one set of two or more names per group."""
    groups = [{m["image"] for m in group["members"] if m["split"] == split} for group in manifest["duplicates"]]
    return [group for group in groups if len(group) > 1]


def photo_groups(manifest: dict, split: str) -> list[set[str]]:
    """The names of the photos in `split` of every group of --group that has some there."""
    return [set(images[split]) for images in manifest["groups"].values() if split in images]


def _is_sound(manifest: dict) -> bool:
    """Whether the parts that other commands read have the right types; an absent part raises."""
    sizes = [entry["size"] for split in manifest["splits"].values() for entry in split["files"].values()]
    members = [member for group in manifest["duplicates"] for member in group["members"]]
    names = [member[key] for member in members for key in ("split", "image")]
    names += [name for images in manifest["groups"].values() for listed in images.values() for name in listed]
    if plain_fault(manifest["label_set"]) or not isinstance(manifest["settings"], dict):
        return False
    return all(isinstance(size, int) for size in sizes) and all(isinstance(name, str) for name in names)
