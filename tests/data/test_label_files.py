"""The forms of label files that people write, each read as what it says, and every other one refused in one line."""

import pytest

from data.label_files import read_labels, read_renames, write_one_hot
from data.labels import LabelSet
from tools.base.errors import DataError

ROT, OLD = "Black rot (early)", "Äpfel mosaic"  # names with spaces
TRUTH = {"a.jpg": {ROT, OLD}, "b.jpg": {ROT}, "c.jpg": {OLD}}  # what every one of FORMS says
HEADER = f"images,{ROT},{OLD}\n"
FORMS = {
    "bar": f"images,labels\na.jpg,{ROT}|{OLD}\nb.jpg,{ROT}\nc.jpg, {OLD} \n",
    "semicolon": f"images,labels\na.jpg,{ROT}; {OLD}\nb.jpg,{ROT}\nc.jpg,{OLD}\n",
    "comma, quoted": f'images,labels\na.jpg,"{ROT}, {OLD}"\nb.jpg,{ROT}\nc.jpg,{OLD}\n',
    "other first column, capitals": f"Filename,Labels\na.jpg,{ROT}|{OLD}\nb.jpg,{ROT}\nc.jpg,{OLD}\n",
    "columns": f"image_id,label_1,label_2\na.jpg,{ROT},{OLD}\nb.jpg,{ROT},\nc.jpg,,{OLD}\n",
    "columns, other numbering": f"image,Label 1,Label 2\na.jpg,{OLD},{ROT}\nb.jpg,,{ROT}\nc.jpg,{OLD},{OLD}\n",
    "one-hot": f"{HEADER}a.jpg,1,1\nb.jpg,1,0\nc.jpg,0,1\n",
    "one-hot, prefixed": f"images,label_{ROT},label_{OLD}\na.jpg,1,1\nb.jpg,1,0\nc.jpg,0,1\n",
    "words": f"{HEADER}a.jpg,yes,TRUE\nb.jpg,Yes,no\nc.jpg,False,true\n",
    "marks": f"{HEADER}a.jpg,x,X\nb.jpg,x,\nc.jpg, ,X\n",
    "decimal commas": f"{HEADER}a.jpg,1,1\nb.jpg,1,0\nc.jpg,0,1\n".replace(",", ";").replace(";1", ";1,0"),
    "semicolons, comma in a name": f'images;"{ROT}";{OLD};"spot, late"\na.jpg;1;1;0\nb.jpg;1;0;0\nc.jpg;0;1;0\n',
    "Excel": f"{HEADER}a.jpg,x,x\nb.jpg,x,\nc.jpg,,x\n".replace(",", ";").replace("\n", "\r\n"),
    "Excel, tabs": f"{HEADER}a.jpg,1.0,1.0\nb.jpg,1.0,0.0\nc.jpg,0.0,1.0\n".replace(",", "\t"),
    "other spaces, other composition": "images,labels\na.jpg,Black  rot (early)|A\u0308pfel\u00a0mosaic\n"
    "b.jpg, Black rot  (early)\nc.jpg,A\u0308pfel mosaic\n",
    "repeated row": f"images,labels\na.jpg,{ROT}|{OLD}\nb.jpg,{ROT}\na.jpg,{OLD}|{ROT}\nc.jpg,{OLD}\n",
    "empty lines": f"images,labels\n\na.jpg,{ROT}|{OLD}\nb.jpg,{ROT}\n\nc.jpg,{OLD}\n\n",
}


@pytest.fixture
def write(tmp_path):
    """A function that writes a label file and returns its path."""

    def call(text, encoding="utf-8"):
        path = tmp_path / "label.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return call


def labels_of(file):
    assert all(len(row.labels) == len(set(row.labels)) for row in file.rows)
    return {row.image: set(row.labels) for row in file.rows}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_the_same(write, form, encoding):
    file = read_labels(write(FORMS[form], encoding))
    assert labels_of(file) == TRUTH
    assert file.repeats == (form == "repeated row")
    assert set(file.declared) <= {ROT, OLD, "spot, late"}


@pytest.mark.parametrize(("text", "separator", "expected"), [
    ("images,labels\na.jpg,rot spot\nb.jpg,spot\n", None, [{"rot", "spot"}, {"spot"}]),
    ("images,labels\na.jpg,brown rot\nb.jpg,rot|spot\n", None, [{"brown rot"}, {"rot", "spot"}]),
    ("images,labels\na.jpg,rot; late\nb.jpg,rot|spot\n", None, [{"rot; late"}, {"rot", "spot"}]),
    ("images,label\na.jpg,brown rot\nb.jpg,\"rot, late\"\n", None, [{"brown rot"}, {"rot, late"}]),
    ("images,labels\na.jpg,rot / late spot\nb.jpg,rot\n", "/", [{"rot", "late spot"}, {"rot"}]),
    ("images,label\na.jpg,a|b\nb.jpg,c\n", None, [{"a", "b"}, {"c"}]),
    ("image_id,label\na.jpg,0\nb.jpg,4\n", None, [{"0"}, {"4"}]),  # Kaggle's cassava
    ("images,labels\na.jpg,\nb.jpg,rot\n", None, [set(), {"rot"}]),
])  # fmt: skip
def test_what_stands_between_names(write, text, separator, expected):
    assert [set(row.labels) for row in read_labels(write(text), separator).rows] == expected


def test_our_own_one_hot_files_are_read_back_whatever_the_names(tmp_path, write):
    """`label_10` and `label_2` belong to labels called 10 and 2, and do not hold the names `0` and `1`."""
    for names in (["10", "2"], ["10", "2", "apple"], ["label_x", "y"], ["a|b", "c, d", 'e"f'], ["labels", "label"]):
        labels = LabelSet.of_names(names)
        rows = read_labels(write("image_id,label\n" + "".join(f'{i}.jpg,"{i}"\n' for i in range(len(names))))).rows
        truth = {row.image: {name} for row, name in zip(rows, names, strict=True)}
        rows = [type(row)(row.image, tuple(truth[row.image])) for row in rows]
        write_one_hot(tmp_path / "own.csv", rows, labels)
        own = read_labels(tmp_path / "own.csv")
        assert labels_of(own) == truth
        assert set(own.declared) == set(names)


def test_columns_that_are_not_read_are_named(write):
    file = read_labels(write("images,date,label,tree\na.jpg,2024,rot,7\nb.jpg,2025,spot,7\n"))
    assert file.ignored == ("date", "tree")
    file = read_labels(write("images,date,label_1,label_2\na.jpg,2024,rot,\nb.jpg,2025,spot,rot\n"))
    assert (labels_of(file), file.ignored) == ({"a.jpg": {"rot"}, "b.jpg": {"rot", "spot"}}, ("date",))


@pytest.mark.parametrize(("text", "words"), [
    ("", ["is empty"]),
    ("images,labels\n", ["has no rows"]),
    ("images\na.jpg\n", ["the columns are images"]),
    ("images,rot\na.jpg,1\n", ["the columns are images, rot"]),
    ("photo,labels\na.jpg,rot\n", ["the first column is 'photo'"]),
    ("labels,images\nrot,a.jpg\n", ["the first column is 'labels'"]),
    ("images|labels\na.jpg|rot\n", ["'|' separated"]),
    ("images,rot,rot\na.jpg,1,0\n", ["'rot' twice"]),
    ("images,rot,label_rot,spot\na.jpg,1,1,0\n", ["two columns", "'rot'"]),
    ("images,brown rot,brown  rot\na.jpg,1,1\n", ["two columns", "'brown rot'"]),
    ("images,Ä,A\u0308\na.jpg,1,0\n", ["'Ä' twice"]),
    ("images,rot,spot,date\na.jpg,1,0,2024\n", ["row 2", "column date", "'2024'", "0 or 1"]),
    ("images,rot,spot\na.jpg,1,0\nb.jpg,2,0\n", ["row 3", "column rot", "'2'"]),
    ("images,rot,spot\na.jpg,1,0\nb.jpg,,1\n", ["row 3", "column rot", "''"]),
    ("images,rot,spot\na.jpg,x,\nb.jpg,?,x\n", ["row 3", "column rot", "'?'"]),
    ("images,rot,\na.jpg,1,0\n", ["header", "label ''", "empty"]),
    ("images,labels\na.jpg,rot\na.jpg,spot\n", ["a.jpg", "'rot' in row 2", "'spot' in row 3"]),
    ("images,labels\na.jpg,rot\nb.jpg\n", ["row 3", "1 fields"]),
    ("images,labels\na.jpg,rot,spot\n", ["row 2", "3 fields"]),
    ("images,labels\nx/a.jpg,rot\n", ["row 2", "'x/a.jpg'", "plain file name"]),
    ("images,labels\n..,rot\n", ["row 2", "'..'"]),
    ("images,labels\n,rot\n", ["row 2", "''"]),
    ("images,labels\na.made-flip.jpg,rot\n", ["row 2", "--balance"]),
    ("images,label\na.jpg,ro\at\n", ["row 2", "ro\\x07t", "control"]),
    ("images,label\na.jpg,ro\u202et\n", ["row 2", "ro\\u202et", "control"]),
    ("images,label\na.jpg,ro\u200bt\n", ["ro\\u200bt", "control"]),
    (f"images,label\na.jpg,{'é' * 101}\n", ["row 2", "longer than 200 bytes"]),
    ("images,label\na.jpg,ro\0t\n", ["row 2", "NUL"]),
    ('images,label\na.jpg,"rot\n', ["row 2"]),
])  # fmt: skip
def test_every_other_file_is_refused_in_one_line(write, text, words):
    with pytest.raises(DataError) as error:
        read_labels(write(text))
    assert not [word for word in ["label.csv", *words] if word not in str(error.value)], error.value
    assert "\n" not in str(error.value)


def test_renames(write):
    """The last colon before a space divides; names are compared in NFC with single spaces, all at the same time."""
    path = write(
        "\ufeff# ours: theirs\n\nblk_rot: black rot\nrot: late: rot (late)\nA\u0308pfel  mosaic: mosaic\nunsure: -\n"
        "swap: other\nother: swap\nspaced :  new   name \n"
    )
    assert read_renames(path) == {
        "blk_rot": "black rot", "rot: late": "rot (late)", "Äpfel mosaic": "mosaic", "unsure": "",
        "swap": "other", "other": "swap", "spaced": "new name",
    }  # fmt: skip


@pytest.mark.parametrize(("text", "words"), [
    ("rot\n", ["line 1", "'rot'"]),
    ("# names\nrot:spot\n", ["line 2", "'rot:spot'"]),
    ("rot: \n", ["line 1"]),
    (": spot\n", ["line 1"]),
    ("rot: a\nspot: b\n rot : c\n", ["line 3", "'rot' is there twice"]),
    ("rot: a\u202eb\n", ["control"]),
])  # fmt: skip
def test_wrong_renames(write, text, words):
    with pytest.raises(DataError) as error:
        read_renames(write(text))
    assert not [word for word in words if word not in str(error.value)], error.value
    assert "\n" not in str(error.value)


def test_renames_in_another_encoding(write):
    with pytest.raises(DataError, match="not UTF-8 at byte 0"):
        read_renames(write("Äpfel: a\n", "latin-1"))
