"""One self-contained HTML page of tables, bars and pictures: no script, no request, readable at any width.

    page = render("The leaves", "600 photos", [Section("Counts", [Table(("label", "photos"), [("rust", 69)])])])

Jinja escapes all text, so any photo name is safe. The page's Content Security Policy allows inline styles and embedded
pictures only.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

_SIGNATURES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg"}


@dataclass(frozen=True)
class Text:
    """A paragraph; `alert` makes it stand out."""

    text: str
    alert: bool = False
    kind: str = "text"


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header. Columns in `text` are aligned left, the others (numbers) right.

    A cell is a value, or (value, detail): the detail is set in small type under the value.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""
    text: Sequence[int] = (0,)
    kind: str = "table"


@dataclass(frozen=True)
class Bars:
    """(name, value, text beside the bar) triples, drawn to a common scale from 0 to `top` (the largest value)."""

    rows: Sequence[tuple[str, float, str]]
    top: float = 0.0
    kind: str = "bars"

    def width(self, value: float) -> float:
        """Length of a bar in per cent."""
        top = self.top or max((row[1] for row in self.rows), default=0) or 1
        return round(100 * min(1, max(0, value / top)), 2)


@dataclass(frozen=True)
class Picture:
    """Bytes of a PNG or JPEG and its caption."""

    data: bytes
    caption: str = ""

    @property
    def source(self) -> str:
        """The picture as a data: URL."""
        kind = next((kind for start, kind in _SIGNATURES.items() if self.data.startswith(start)), "image/png")
        return f"data:{kind};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True)
class Pictures:
    """Pictures in rows of 6, on narrower screens of 4 or 2: 12 pictures fill every row.

    `large` pictures stand in rows of 2 or 1; of an odd number, the first has its own row. `group` draws a border.
    """

    items: Sequence[Picture]
    large: bool = False
    group: bool = False
    kind: str = "pictures"


@dataclass(frozen=True)
class Section:
    """A heading and its blocks."""

    heading: str
    blocks: Sequence[Text | Table | Bars | Pictures]


def render(title: str, lead: str, sections: Sequence[Section], headline: Sequence[tuple[str, str, str]] = ()) -> str:
    """The page as one HTML document.

    Args:
        lead: the paragraph under the title.
        headline: (name, value, interval) of the figures that matter most, in large type above the sections.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return template.render(title=title, lead=lead, sections=sections, headline=headline)
