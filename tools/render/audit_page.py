"""The audit of a data set as a page: counts, bars, photos of each label, groups of duplicates, what was left out."""

from collections import defaultdict
from collections.abc import Callable

from data.labels import LabelSet
from data.prepare.advice import find_warnings, half_width
from tools.render.page import Bars, Picture, Pictures, Table, Text, render

PHOTOS_PER_LABEL = 12
MOST_DUPLICATES = 50  # groups that are shown; the manifest lists all
MOST_ROWS = 20  # in the table of sizes
_COUNTS = {  # name of a row -> its value for a split of the manifest
    "photos": lambda split: split["rows"],
    "with several labels": lambda split: split["several"],
    "files, one per label": lambda split: sum(split["labels"].values()),
    "made by --balance": lambda split: sum(split["made"].values()),
    "copied, not linked": lambda split: split["copied"],
}
_UNUSUAL = {
    "turned by EXIF": lambda split: split["facts"]["turned"],
    "several frames, first used": lambda split: split["facts"]["animated"],
    "wrong extension": lambda split: split["facts"]["misnamed"],
}


def audit_page(manifest: dict, picture: Callable[[str], bytes]) -> str:
    """The page of one manifest (of data/prepare/tree.py), as HTML.

    Args:
        picture: `split/folder/name` -> a thumbnail of that file, as a PNG or JPEG.
    """
    splits, labels = manifest["splits"], LabelSet.from_plain(manifest["label_set"])
    photos = ", ".join(f"{split['rows']} photos in {name}" for name, split in splits.items())
    sections: dict[str, list] = {
        "Warnings": [Text(line, alert=True) for line in find_warnings(manifest)] or [Text("None.")],
        "Counts": [_by_split(splits, _COUNTS)],
        **{f"Labels in {name}": _labels(split, name) for name, split in splits.items()},
        "Files": [_by_split(splits, _UNUSUAL), *(_frequent(splits, fact) for fact in ("sizes", "modes", "formats"))],
        "Photos of each label": _mosaics(splits, labels, picture),
        "Groups": _groups(manifest),
        "Duplicates": _duplicates(manifest, picture),
        "Left out": _left_out(manifest["left_out"]),
        "Settings and notes": _settings(manifest),
    }
    return render("The data set", f"{photos}.", sections)


def _by_split(splits: dict, rows: dict[str, Callable[[dict], object]]) -> Table:
    """A table with one column per split."""
    return Table(("", *splits), [(name, *map(value, splits.values())) for name, value in rows.items()])


def _labels(split: dict, name: str) -> list:
    """Bars of the labels, then of their combinations, the most frequent first."""
    made = split["made"]
    labels = []
    for label, count in split["labels"].items():
        text = f"{count} + {made[label]} made" if made[label] else f"{count}"
        width = f" (±{100 * half_width(count):.0f})" if name != "train" and count else ""
        labels.append((label, count + made[label], text + width))
    combinations = sorted(split["combinations"].items(), key=lambda item: (-item[1], item[0]))
    bars = [(names, count, str(count)) for names, count in combinations]
    why = "In brackets: the 95 % interval of a recall that is measured on so many photos, in points, at its widest."
    return [*([] if name == "train" else [Text(why)]), Bars(labels), Text("Label combinations:"), Bars(bars)]


def _frequent(splits: dict, fact: str) -> Table:
    """How often each value of a fact occurs; the note says how many rarer values there are."""
    values = list(dict.fromkeys(value for split in splits.values() for value in split["facts"][fact]))
    rest = len(values) - MOST_ROWS
    rows = [(value, *(split["facts"][fact].get(value, 0) for split in splits.values())) for value in values[:MOST_ROWS]]
    return Table((fact, *splits), rows, note=f"and {rest} rarer {fact}" if rest > 0 else "")


def _mosaics(splits: dict, labels: LabelSet, picture: Callable[[str], bytes]) -> list:
    """For each label, some photos of the first split, evenly spaced in their sorted names."""
    split, entry = next(iter(splits.items()))
    blocks, files_of = [], defaultdict[str, list[str]](list)
    for file in entry["files"]:
        files_of[file.split("/")[0]].append(file)
    for label, count in entry["labels"].items():
        files = sorted(files_of[labels.folder_of[label]][:count])  # photos come before balanced copies
        num_shown = min(PHOTOS_PER_LABEL, len(files))
        shown = [files[place * len(files) // num_shown] for place in range(num_shown)]
        pictures = [Picture(picture(f"{split}/{file}"), file.split("/")[1]) for file in shown]
        blocks += [Text(f"{label}: {num_shown} of {count} in {split}"), Pictures(pictures)]
    return blocks


def _groups(manifest: dict) -> list:
    groups, splits = manifest["groups"], manifest["splits"]
    if not groups:
        return [Text("Not given (--group, --group-pattern).")]
    sizes = {split: {name: len(of[split]) for name, of in groups.items() if split in of} for split in splits}
    largest = [max(held, key=lambda name: held[name]) for held in sizes.values()]
    counts = [(f"{sizes[split][name]}", name) for split, name in zip(splits, largest, strict=True)]
    return [Table(("", *splits), [("groups", *map(len, sizes.values())), ("photos in the largest", *counts)])]


def _duplicates(manifest: dict, picture: Callable[[str], bytes]) -> list:
    groups, labels = manifest["duplicates"], LabelSet.from_plain(manifest["label_set"])
    if not manifest["settings"]["duplicates"]:
        return [Text("Not looked for (--no-duplicates).", alert=True)]
    leaks, contradicting = (sum(group[key] for group in groups) for key in ("leak", "contradicting"))
    blocks: list = [
        Text(f"{len(groups)} groups of duplicates; {contradicting} with different labels."),
        Text(f"{leaks} groups are in more than one split.", alert=leaks > 0),
    ]
    for group in groups[:MOST_DUPLICATES]:
        title = f"{group['kind']} duplicates"
        title += ", different labels" if group["contradicting"] else ""
        title += ", a leak between splits" if group["leak"] else ""
        members = [_member(member, labels, picture) for member in group["members"]]
        blocks += [Text(title), Pictures(members, group=True)]
    return blocks


def _member(member: dict, known: LabelSet, picture: Callable[[str], bytes]) -> Picture:
    split, image, labels = member["split"], member["image"], member["labels"]
    return Picture(picture(f"{split}/{known.folder_of[labels[0]]}/{image}"), f"{split}/{image}\n{', '.join(labels)}")


def _left_out(left_out: dict[str, list[str]]) -> list:
    if not any(left_out.values()):
        return [Text("Nothing.")]
    return [Table((f"{len(names)} {what}",), [(name,) for name in names]) for what, names in left_out.items() if names]


def _settings(manifest: dict) -> list:
    rows: list[tuple[str, object]] = []
    for name, value in manifest["settings"].items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        rows += [(f"{name} {key}", v) for key, v in value.items()] if isinstance(value, dict) else [(name, shown)]
    return [Table(("setting", "value"), rows, text=(0, 1)), *(Text(note) for note in manifest["notes"])]
