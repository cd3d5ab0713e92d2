"""The page, parsed: what went in comes out, and nothing acts."""

from tools.render.page import Bars, Picture, Pictures, Table, Text, render

PNG = b"\x89PNG\r\n\x1a\nrest"


def test_everything_given_is_on_the_page_and_hostile_names_stay_text(read_page):
    hostile = '<script>alert(1)</script>"><img src=x onerror=y>.jpg'
    table = Table(("label", "n"), [(hostile, 12), ("rust", (3, "[1, 5]"))], note="all")
    pictures = Pictures([Picture(PNG, hostile), Picture(b"\xff\xd8\xff\xe0", "b")])
    sections = {"One": [Text("a < b", alert=True), table], "Two": [pictures]}
    html = render(hostile, "lead", sections, [("exact match", "50", "[40, 60]")])
    page = read_page(html)
    assert "script" not in page.tags
    assert page.tags.count("img") == 2
    assert page.words.count(hostile) == 4  # title, h1, cell, caption
    for pair in (("p", "a < b"), ("th", "n"), ("td", "12"), ("td", "3"), ("small", "[1, 5]"), ("figcaption", "b")):
        assert pair in page.texts
    assert page.words[2:6] == ["lead", "exact match", "50", "[40, 60]"]
    assert [a.split(",")[0] for a in page.addresses] == ["data:image/png;base64", "data:image/jpeg;base64"]
    assert "default-src 'none'" in html


def test_bars_are_to_scale(read_page):
    page = read_page(render("t", "l", {"s": [Bars([("a", 50, "50"), ("b", 25, "25"), ("c", 0, "0")])]}))
    assert [float(style.split()[1].rstrip("%")) for style in page.styles] == [100, 50, 0]
    assert Bars([("none", 0, "0")]).width(0) == 0
