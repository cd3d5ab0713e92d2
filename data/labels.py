"""Label sets: the names of the labels, the class folders that hold their photos, and which labels stand alone."""

import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from tools.base.errors import DataError

SPLITS = ("train", "val", "test")
IMAGE_COLUMNS = ("images", "image", "image_id", "file", "filename", "file_name")  # names of a table's first column
BALANCE_KINDS = ("flip", "bright", "turn")  # of the copies that process_dataset.py --balance makes
_BALANCED_NAME = re.compile(rf"\A(.+)\.made-(?:{'|'.join(BALANCE_KINDS)})(\.[^.]+)\Z", re.DOTALL)
_FOREIGN = ("__macosx", "@eadir", "lost+found", "#recycle", "$recycle.bin", "system volume information")
_FORBIDDEN = frozenset('/\\<>:"|?*')  # in the name of a class folder; not all file systems take them
MAX_FOLDER_BYTES, MAX_NAME_BYTES = 100, 200
_SEPARATORS = (" ", "|", ";", ",", "\n")  # between label names in one field; a label name never holds the last


@dataclass(frozen=True)
class LabelSet:
    """The labels of a data set, in the order of their class folders, which is that of torchvision's ImageFolder.

    Attributes:
        folders: names of the class folders, ascending.
        names: of the labels; `clean_name` describes them.
        exclusive: indices of the labels that never stand beside another one, such as `healthy`.
    """

    folders: tuple[str, ...]
    names: tuple[str, ...]
    exclusive: tuple[int, ...] = ()

    @classmethod
    def of_names(cls, names: Iterable[str], exclusive: Iterable[str] = ()) -> "LabelSet":
        """The set of these labels, each in a folder of its name, as far as file systems allow.

        Raises:
            DataError: for two names that differ only in upper and lower case.
        """
        folders: dict[str, str] = {}
        for name in sorted(names):
            folders[_free(as_file_name(name), folders)] = name
        return cls.of_folders(folders, exclusive)

    @classmethod
    def of_folders(cls, names: dict[str, str], exclusive: Iterable[str] = ()) -> "LabelSet":
        """The set of the labels `folder -> name`; those called `healthy` and those of `exclusive` stand alone."""
        folders = tuple(sorted(names))
        ordered = tuple(names[folder] for folder in folders)
        seen: dict[str, str] = {}
        for name in ordered:
            if (other := seen.setdefault(name.casefold(), name)) is not name:
                raise DataError(
                    f"the labels {other!r} and {name!r} differ only in upper and lower case, or not at all; merge them "
                    f"with --labels FILE, which holds the line {name}: {other}"
                )
        alone = set(exclusive)
        return cls(folders, ordered, tuple(i for i, name in enumerate(ordered) if name in alone or is_healthy(name)))

    @staticmethod
    def names_of(folders: Collection[str]) -> dict[str, str]:
        """folder -> name of its label, for a tree without a manifest: as the folder, unless all are the course's."""
        names = dict(zip(COURSE.folders, COURSE.names, strict=True))
        is_course = names.keys() >= set(folders)
        return {folder: names[folder] if is_course else clean_name(folder) for folder in folders}

    @cached_property
    def name_of(self) -> dict[str, str]:
        """folder -> name of its label."""
        return dict(zip(self.folders, self.names, strict=True))

    @cached_property
    def folder_of(self) -> dict[str, str]:
        """name -> folder of the label."""
        return dict(zip(self.names, self.folders, strict=True))

    @property
    def titles(self) -> list[str]:
        """The names of the labels, each after its folder where that is a code: `000001 scab`, `Black rot`."""
        pairs = zip(self.folders, self.names, strict=True)
        return [f"{folder} {name}" if folder.isdigit() and folder != name else name for folder, name in pairs]

    def to_plain(self) -> dict:
        """Plain values, for manifest.json and checkpoints."""
        return {"classes": list(self.folders), "labels": list(self.names), "exclusive": list(self.exclusive)}

    @classmethod
    def from_plain(cls, stored: dict) -> "LabelSet":
        """The inverse of `to_plain`."""
        return cls(tuple(stored["classes"]), tuple(stored["labels"]), tuple(stored["exclusive"]))


def plain_fault(stored: dict) -> str:
    """Why `stored` is not what `LabelSet.to_plain` gives, or the empty string."""
    folders, names, exclusive = stored["classes"], stored["labels"], stored["exclusive"]
    if not all(isinstance(part, list) for part in (folders, names, exclusive)):
        return "classes, labels and exclusive must be lists"
    if not all(isinstance(folder, str) and not class_name_fault(folder) for folder in folders):
        return "classes must be names that can be part of a file name"
    if sorted(set(folders)) != folders:
        return "classes must be sorted, each once"
    distinct = {name.casefold() for name in names if isinstance(name, str) and not name_fault(name)}
    if not len(names) == len(distinct) == len(folders):
        return "labels must be one name per class, each once and printable"
    if not all(type(i) is int and 0 <= i < len(folders) for i in exclusive):
        return "exclusive must be indices of labels"
    return ""


def name_fault(name: str) -> str:
    """Why this is not a valid label name, or the empty string."""
    if not name or name != " ".join(unicodedata.normalize("NFC", name).split()):
        return "is empty, is not in Unicode's form NFC, or has needless spaces"
    if not name.strip(_JOINERS) or any(unicodedata.category(c)[0] == "C" and c not in _JOINERS for c in name):
        return "holds control or invisible characters"
    return f"is longer than {MAX_NAME_BYTES} bytes" if len(name.encode()) > MAX_NAME_BYTES else ""


_JOINERS = "\u200c\u200d"  # the invisible characters that some scripts need inside words


def clean_name(text: str) -> str:
    """A label name as it is compared and written: NFC, words one space apart.

    Raises:
        DataError: for a name that is empty, too long, or holds control or invisible characters.
    """
    name = " ".join(unicodedata.normalize("NFC", text).split())
    if fault := name_fault(name):
        raise DataError(f"label {text!r} {fault}; rename it")
    return name


def is_healthy(name: str) -> bool:
    """Whether a label says that the leaf has no disease: `healthy` in any case, or `<crop>___healthy`."""
    return name.casefold().rpartition("___")[2] == "healthy"


def class_name_fault(name: str) -> str:
    """Why this is not a valid class folder (it becomes part of file names), or the empty string."""
    if not name or is_foreign_folder(name) or not name.isprintable():
        return "is empty, hidden, a program's own, or holds characters that cannot be printed"
    if forbidden := sorted(set(name) & _FORBIDDEN):
        return f"holds {' '.join(forbidden)}"
    too_long = len(name.encode(errors="replace")) > MAX_FOLDER_BYTES
    return f"is longer than {MAX_FOLDER_BYTES} bytes" if too_long else ""


def is_foreign_folder(name: str) -> bool:
    """Whether a folder with this name belongs to a program and holds no photos of the user: hidden, or in _FOREIGN."""
    return name.startswith(".") or name.lower() in _FOREIGN


def as_file_name(name: str) -> str:
    """The name of a label as a part of a path, with everything replaced that not all file systems take."""
    text = "".join("_" if c in _FORBIDDEN or not c.isprintable() else c for c in name).strip(". ") or "_"
    return text.encode()[: MAX_FOLDER_BYTES - 4].decode(errors="ignore")


def separator_of(labels: Sequence[str]) -> str:
    """What stands between these labels in one field of a CSV: a space, or a sign that none of them holds."""
    return next(sign for sign in _SEPARATORS if not any(sign in label for label in labels))


def join_labels(given: Iterable[str], labels: Sequence[str]) -> str:
    """Some of the `labels` in one field of a CSV, see `separator_of`."""
    return separator_of(labels).join(given)


def split_labels(text: str, labels: Sequence[str]) -> tuple[str, ...]:
    """The inverse of `join_labels`; a name that is not among `labels` is returned too."""
    if text in labels:
        return (text,)
    separator = separator_of(labels)
    if separator == " " and "|" in text and not any("|" in name for name in labels):
        separator = "|"
    return tuple(name for part in text.split(separator) if (name := part.strip()))


def balanced_copy_name(name: str, kind: str) -> str:
    """The name of the balanced copy of the photo `name` that `kind` (one of BALANCE_KINDS) makes."""
    stem, suffix = os.path.splitext(name)
    return f"{stem}.made-{kind}{suffix}"


def is_balanced_copy(name: str) -> bool:
    """Whether `name` is that of a balanced copy, which is trained on and never scored."""
    return origin_name(name) != name


def origin_name(name: str) -> str:
    """The name of the photo that a balanced copy was made from; any other name is its own origin."""
    return _BALANCED_NAME.sub(r"\1\2", name)


def _free(folder: str, taken: Iterable[str]) -> str:
    """The folder, with a number behind it where one that differs only in case is taken, or where it is foreign."""
    used = {name.casefold() for name in taken}
    numbered = (folder, *(f"{folder}~{number}" for number in range(2, 1000)))
    return next(name for name in numbered if name.casefold() not in used and not is_foreign_folder(name))


# The course project's set. The order of the folders is the reverse of that of the columns in its one-hot CSV.
COURSE = LabelSet(
    ("000001", "000010", "000100", "001000", "010000", "100000"),
    ("scab", "rust", "powdery_mildew", "healthy", "frog_eye_leaf_spot", "complex"),
    (3,),
)
