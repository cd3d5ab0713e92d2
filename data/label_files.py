"""Label files: the forms of CSV that give photos their labels, and the file of --labels that renames labels."""

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from data.labels import IMAGE_COLUMNS, LabelSet, clean_name, is_balanced_copy
from tools.base.errors import DataError, nearest
from tools.base.files import read_regular
from tools.base.tables import find_repeated, format_csv, read_csv

MAX_BYTES = 256_000_000
_IS_GIVEN = {  # a value in a column of a label, in any case -> whether the photo has the label
    **dict.fromkeys(("1", "1.0", "1,0", "yes", "true", "x"), True),
    **dict.fromkeys(("0", "0.0", "0,0", "no", "false"), False),
}
_NUMBERED = re.compile(r"label[ _-]?\d+", re.IGNORECASE)  # a column that holds the name of one of several labels


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One photo and its labels.

    Attributes:
        image: the name of the photo in the prepared tree.
        labels: each once, in the order in which they are given.
        line: of a CSV, in which the header is line 1; 0 for a photo from a class folder.
        file: where the photo is, relative to the folder of the photos.
        group: what it must stay together with when photos are divided; empty for none.
    """

    image: str
    labels: tuple[str, ...]
    line: int = 0
    file: str = ""
    group: str = ""


@dataclass(frozen=True)
class LabelFile:
    """A label CSV.

    Attributes:
        rows: one per photo, in the order of the file.
        repeats: how many repeated rows were left out.
        sha256: of its bytes.
        declared: the labels that have a column, whether or not a photo has them.
        ignored: columns that are not read.
    """

    rows: list[LabelRow]
    repeats: int
    sha256: str
    declared: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


def read_labels(
    path: Path, separator: str | None = None, group: str | None = None, beside: Iterable[Path] = ()
) -> LabelFile:
    """Reads a label CSV, see docs/data.md for its forms.

    One column `label` holds a name, or several that are separated by `|`. One column `labels` holds names that are
    separated by `|`, `;` or `,`, or if there is none of these in it, by spaces. Columns `label_1`, `label_2` hold one
    name each. All other forms have a column per label, called `label_<name>` or `<name>`, with 1 and 0, yes and no, or
    x and nothing.

    Args:
        separator: between the names in `labels`, instead of the one that is found.
        group: column of the groups of photos that must stay together.
        beside: label files of other splits, which have the same separator: one of photos with one label shows none.

    Raises:
        DataError: for any other content, such as a value that is not 0 or 1, a photo name with a folder in it, or one
            photo with two different sets of labels or two groups; errors in a row name the row.
    """
    raw = read_regular(path, "label file", MAX_BYTES)
    form, signs = _read_form(raw, path, group)
    if _NUMBERED.fullmatch(form.header[form.columns[0]]) and signs <= {"0", "1"}:  # one-hot; the labels are numbers
        form = _one_hot_form(form.header, path, form.group)
    for other in beside:
        signs |= _read_form(read_regular(other, "label file", MAX_BYTES), other, group)[1]
    rows: dict[str, LabelRow] = {}
    num_rows = 0
    for row in form.rows(read_csv(raw, path)[1], separator or form.separator(signs), bool(signs & {"x", "X"})):
        num_rows += 1
        before = rows.setdefault(row.image, row)
        if set(before.labels) != set(row.labels):
            raise DataError(
                f"{path}: {row.image} has the labels {', '.join(before.labels)!r} in row {before.line} "
                f"and {', '.join(row.labels)!r} in row {row.line}"
            )
        if before.group != row.group:
            raise DataError(
                f"{path}: {row.image} has the group {before.group!r} in row {before.line} and {row.group!r} in row "
                f"{row.line}; keep one"
            )
    if not rows:
        raise DataError(f"{path} has no rows")
    sha256 = hashlib.sha256(raw).hexdigest()
    return LabelFile(list(rows.values()), num_rows - len(rows), sha256, form.labels, form.ignored)


def read_renames(path: Path) -> dict[str, str]:
    """What a file of --labels says: given label -> its new name, or the empty string for a label that is dropped.

    A line is `given: new` or `given: -`; empty lines and lines that begin with # are skipped. The colon is the last
    one of the line that is followed by a space.

    Raises:
        DataError: for any other line, and for a label that has two lines.
    """
    try:
        text = read_regular(path, "label file", MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}") from None
    renames: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        given, colon, new = line.rpartition(": ")
        if not colon or not given.strip() or not new.strip():
            raise DataError(f"{path}, line {number}: {line.strip()!r} is not `label: new name` or `label: -`")
        try:
            label, name = clean_name(given), "" if new.strip() == "-" else clean_name(new)
        except DataError as error:
            raise DataError(f"{path}, line {number}: {error}") from None
        if label in renames:
            raise DataError(f"{path}, line {number}: {label!r} is there twice; remove one line")
        renames[label] = name
    return renames


def write_one_hot(path: Path, rows: Sequence[LabelRow], labels: LabelSet) -> None:
    """Writes a one-hot CSV: `images,label_<name>,...` with the names sorted, as in the course's one-hot CSV."""
    names = sorted(labels.names)
    one_hot = ([row.image, *(int(name in row.labels) for name in names)] for row in rows)
    path.write_bytes(format_csv([["images", *(f"label_{name}" for name in names)], *one_hot]))


@dataclass(frozen=True)
class _Form:
    """What the columns of a label CSV are.

    Attributes:
        columns: indices of the columns of labels.
        labels: of a one-hot CSV, the label of each of these; without them, the columns hold names.
        group: index of the column of groups, or None.
        ignored: names of columns that are not read.
    """

    path: Path
    header: tuple[str, ...]
    columns: tuple[int, ...]
    labels: tuple[str, ...] = ()
    group: int | None = None
    ignored: tuple[str, ...] = ()

    def separator(self, signs: Collection[str]) -> str:
        """What stands between the names in a field, given all characters of such fields."""
        if self.header[self.columns[0]].casefold() != "labels":
            return "|"
        return next((sign for sign in "|;," if sign in signs), " ")

    def rows(self, lines: Iterable[tuple[int, list[str]]], separator: str, marked: bool) -> Iterator[LabelRow]:
        """The rows, each checked independently; where labels are `marked` by an x, an empty field means no."""
        split, is_given = _split_by(separator), _IS_GIVEN | ({"": False} if marked else {})
        for line, fields in lines:
            where = f"{self.path}, row {line}"
            image = image_name(fields[0].strip(), where)
            try:
                if self.labels:
                    given = zip(self.labels, self.columns, strict=True)
                    labels = tuple(name for name, column in given if is_given[fields[column].strip().lower()])
                else:
                    labels = tuple(dict.fromkeys(name for column in self.columns for name in split(fields[column])))
            except DataError as error:
                raise DataError(f"{where}: {error}") from None
            except KeyError:
                wrong = next(column for column in self.columns if fields[column].strip().lower() not in is_given)
                raise DataError(
                    f"{where}, column {self.header[wrong]}: {fields[wrong]!r} is not 0 or 1 (nor yes or no); fill it "
                    "in, remove a column that is not a label, or call a column of names `label` or `labels`"
                ) from None
            group = fields[self.group].strip() if self.group is not None else ""
            yield LabelRow(image, labels, line, image, group)


def _read_form(raw: bytes, path: Path, group: str | None) -> tuple[_Form, set[str]]:
    """The form of a label CSV, and the characters in its columns of labels."""
    columns, lines = read_csv(raw, path)
    form, signs = _form_of(columns, path, group), set[str]()
    for _, fields in lines:
        signs.update(*(fields[column] for column in form.columns))
    return form, signs


def _form_of(header: Sequence[str], path: Path, group: str | None) -> _Form:
    if not header:
        raise DataError(f"label file {path} is empty")
    if header[0].casefold() not in IMAGE_COLUMNS:
        raise DataError(f"{path}: the first column is {header[0]!r}, not 'images'; rename it")
    if group is not None and group not in header[1:]:
        raise DataError(f"{path} has no column {group!r} for --group{nearest(group, header[1:])}")
    place = header.index(group) if group is not None else None
    others = [index for index in range(1, len(header)) if index != place]
    by_name = {header[index].casefold(): index for index in others}
    one = by_name.get("labels", by_name.get("label"))
    if one is not None:
        ignored = tuple(header[index] for index in others if index != one)
        return _Form(path, tuple(header), (one,), group=place, ignored=ignored)
    if numbered := tuple(index for index in others if _NUMBERED.fullmatch(header[index])):
        ignored = tuple(header[index] for index in others if index not in numbered)
        return _Form(path, tuple(header), numbered, group=place, ignored=ignored)
    return _one_hot_form(header, path, place)


def _one_hot_form(header: Sequence[str], path: Path, group: int | None) -> _Form:
    columns = tuple(index for index in range(1, len(header)) if index != group)
    if len(columns) < 2:
        raise DataError(f"{path}: the columns are {', '.join(header)}; wanted images,labels, or one column per label")
    try:
        names = tuple(clean_name(header[index].removeprefix("label_")) for index in columns)
    except DataError as error:
        raise DataError(f"{path}, header: {error}") from None
    if repeated := find_repeated(names):
        raise DataError(f"{path}: two columns belong to the label {repeated!r}; remove one")
    return _Form(path, tuple(header), columns, names, group)


def _split_by(separator: str) -> Callable[[str], tuple[str, ...]]:
    """text -> the label names in it, each once. Cached, so that rows with the same labels share one tuple."""

    @cache
    def split(text: str) -> tuple[str, ...]:
        parts = text.split() if separator == " " else text.split(separator)
        return tuple(dict.fromkeys(clean_name(part) for part in parts if part.strip()))

    return split


def image_name(name: str, where: str) -> str:
    """The name, if it can be that of a photo. Raises DataError otherwise."""
    if not name or name in (".", "..") or "/" in name or "\\" in name:
        raise DataError(f"{where}: image {name!r} is outside image root; give a plain file name")
    if is_balanced_copy(name):
        raise DataError(f"{where}: image {name!r} is named like a copy made by --balance; rename the photo")
    if len(name.encode()) > 255:
        raise DataError(f"{where}: image name of {len(name.encode())} bytes is longer than a file name can be")
    return name
