"""Reads a page with the standard library's HTML parser."""

from html.parser import HTMLParser

import pytest


class Page(HTMLParser):
    """What a page holds: its tags, its (enclosing tag, text) pairs, its addresses and its styles, each in order."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.texts, self.addresses, self.styles = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href")]
        self.styles += [v for k, v in attrs if k == "style"]

    def handle_data(self, data):
        if data.strip() and self.tags[-1] != "style":
            self.texts.append((self.tags[-1], " ".join(data.split())))

    @property
    def words(self) -> list[str]:
        return [text for _, text in self.texts]


@pytest.fixture
def read_page():
    return Page
