"""CSV files: what is read, what is refused and by which row; and tables for a terminal."""

from pathlib import Path

import pytest

from tools.base.errors import DataError
from tools.base.tables import format_csv, format_table, read_csv


def read(raw: bytes):
    header, rows = read_csv(raw, Path("x.csv"))
    return header, list(rows)


def test_rows_come_with_their_line():
    assert read(b'\xef\xbb\xbfa, b\r\n1,"x\ny"\r\n\r\n2, z\r\n') == (["a", "b"], [(3, ["1", "x\ny"]), (5, ["2", " z"])])
    assert read(b"") == ([], [])
    assert read(b"a,b\n") == (["a", "b"], [])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_files_as_excel_saves_them(encoding, separator):
    mark = "\ufeff" if encoding.endswith("e") else ""  # the other encodings write their own
    text = f'{mark}é{separator}b\n1{separator}"x,y;z"\n'
    assert read(text.encode(encoding)) == (["é", "b"], [(2, ["1", "x,y;z"])])


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"a,b\n1,2\n3,\xff\n", "row 3: not UTF-8 at byte 10"),
        (b"a|b\n1|2\n", r"found a '\|' separated header; separate with commas"),
        (b"a,b, a\n1,2,3\n", "the header has 'a' twice"),
        (b"a,b\n1,2\n3\n", "row 3: 1 fields where the header has 2"),
        (b"a,b\n1,2,3\n", "row 2: 3 fields where the header has 2"),
        (b'a,b\n1,"2"3\n', "row 2: "),
        (b"a,b\n1,\0\n", "row 2: holds a NUL character"),
    ],
)
def test_a_wrong_file_is_refused_by_row(raw, words):
    with pytest.raises(DataError, match=f"x.csv.*{words}"):
        read(raw)


def test_csv_round_trip():
    rows = [["images", "labels"], ["a,b.jpg", 'said "no"'], ["é.jpg", "line\nbreak"]]
    raw = format_csv(rows)
    assert raw.startswith(b"images,labels\n")
    header, read_rows = read(raw)
    assert [header, *(fields for _, fields in read_rows)] == rows
    assert format_csv([["\udcff.jpg"]]) == rb"\udcff.jpg" + b"\n"  # a byte of another encoding, escaped


def test_columns_are_as_wide_as_their_widest_cell():
    assert format_table([("", "train", "val"), ("rows", 12, 3)]) == ["      train  val", "rows     12    3"]
    assert format_table([("a", 1, "x"), ("bb", 10, "yy")], "<><") == ["a    1  x", "bb  10  yy"]


def test_columns_are_aligned_for_wide_letters_and_combining_marks():
    """On a terminal, a Chinese letter takes two columns, and the dots of a decomposed umlaut none."""
    rows = [("苹果", 1), ("A\u0308pfel", 2), ('<b> | "x"', 30)]
    assert format_table(rows) == ["苹果        1", "A\u0308pfel       2", '<b> | "x"  30']
