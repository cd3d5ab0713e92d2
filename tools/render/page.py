"""One self-contained HTML page of tables, bars and pictures: no script, no request, readable at any width.

    page = render("The leaves", "600 photos", {"Counts": [Table(("label", "photos"), [("rust", 69)])]})

Jinja escapes all text, so any photo name is safe. The page's Content Security Policy allows inline styles and embedded
pictures only.
"""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2

THUMBNAIL_PX = 168  # side of a picture in a row of 6


class Text(NamedTuple):
    """A paragraph; `alert` makes it stand out."""

    text: str
    alert: bool = False
    kind: str = "text"


class Table(NamedTuple):
    """Rows of cells under a header. Columns in `text` are aligned left, the others (numbers) right.

    A cell is a value, or (value, detail): the detail is set in small type under the value.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""
    text: Sequence[int] = (0,)
    kind: str = "table"


class Bars(NamedTuple):
    """(name, value, text beside the bar) triples, drawn to a common scale from 0 to the largest value."""

    rows: Sequence[tuple[str, int, str]]
    kind: str = "bars"

    def width(self, value: int) -> float:
        """Length of a bar in per cent, at most 100."""
        longest = max(row[1] for row in self.rows) or 1
        return round(100 * min(1, value / longest), 2)


class Picture(NamedTuple):
    """Bytes of a PNG or JPEG and its caption."""

    data: bytes
    caption: str = ""

    @property
    def source(self) -> str:
        """The picture as a data: URL."""
        kind = "jpeg" if self.data.startswith(b"\xff\xd8\xff") else "png"
        return f"data:image/{kind};base64,{base64.b64encode(self.data).decode()}"


class Pictures(NamedTuple):
    """Pictures in rows of 6, or of 4 or 2 on narrower screens; a multiple of 12 leaves no gap.

    `large` pictures stand in rows of 2 or 1; if their number is odd, the first has its own row. `group` draws a border.
    """

    items: Sequence[Picture]
    large: bool = False
    group: bool = False
    kind: str = "pictures"


def render(
    title: str,
    lead: str,
    sections: Mapping[str, Sequence[Text | Table | Bars | Pictures]],
    headline: Sequence[tuple[str, str, str]] = (),
) -> str:
    """The page as one HTML document.

    Args:
        lead: the paragraph under the title.
        sections: heading -> its content.
        headline: (name, value, interval) of the most important figures, in large type above the sections.
    """
    source = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    template = jinja2.Template(
        source, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return template.render(title=title, lead=lead, sections=sections, headline=headline)
