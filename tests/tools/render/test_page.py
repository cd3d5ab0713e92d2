"""The page, read back with the standard library's own HTML parser: what went in comes out, and nothing acts."""

from html.parser import HTMLParser

from tools.render.page import Bars, Picture, Pictures, Section, Table, Text, render

PNG = b"\x89PNG\r\n\x1a\nrest"


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.words, self.addresses, self.styles = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href")]
        self.styles += [v for k, v in attrs if k == "style"]

    def handle_data(self, data):
        if data.strip():
            self.words.append(data.strip())


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def test_everything_given_is_on_the_page_and_hostile_names_stay_text():
    hostile = '<script>alert(1)</script>"><img src=x onerror=y>.jpg'
    page = render(
        hostile,
        "lead",
        [
            Section(
                "One", [Text("a < b", alert=True), Table(("label", "n"), [(hostile, 12), ("rust", 3)], note="all")]
            ),
            Section("Two", [Pictures([Picture(PNG, hostile), Picture(b"\xff\xd8\xff\xe0", "b")])]),
        ],
    )
    reader = read(page)
    assert "script" not in reader.tags
    assert reader.tags.count("img") == 2
    assert reader.words.count(hostile) == 4  # title, h1, cell, caption
    for text in ("lead", "One", "Two", "a < b", "label", "n", "12", "rust", "3", "all", "b"):
        assert text in reader.words
    assert [a.split(",")[0] for a in reader.addresses] == ["data:image/png;base64", "data:image/jpeg;base64"]
    assert "default-src 'none'" in page


def test_bars_are_to_scale():
    reader = read(render("t", "l", [Section("s", [Bars([("a", 50, "50"), ("b", 25, "25"), ("c", 0, "0")])])]))
    assert [float(s.split()[1].rstrip("%")) for s in reader.styles] == [100, 50, 0]
    reader = read(render("t", "l", [Section("s", [Bars([("a", 0.5, "half")], top=1.0)])]))
    assert reader.styles == ["width: 50.0%"]
    assert Bars([("none", 0, "0")]).width(0) == 0
