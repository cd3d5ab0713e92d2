"""The page of a scored split, parsed: the headline figures come first, and every table holds the figures counted by hand."""

import re
from html.parser import HTMLParser

import numpy as np

from tools.evaluate.result import EvalResult, figures_of
from tools.render.page import Picture
from tools.render.score_page import score_page

LABELS = ["scab", "rust"]
# Four photos: right, right, a wrong label given, nothing given. The top class is a true label of the first three.
TRUTH = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], bool)
DECISION = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], bool)
PROBABILITY = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.6], [0.4, 0.3]])


class Reader(HTMLParser):
    """Collects (enclosing tag, text) pairs, in order, without the style sheet."""

    def __init__(self):
        super().__init__()
        self.tag, self.texts = "", []

    def handle_starttag(self, tag, attrs):
        self.tag = tag

    def handle_data(self, data):
        if data.strip() and self.tag != "style":
            self.texts.append((self.tag, data.strip()))


def read_page(**changes) -> list[tuple[str, str]]:
    scores, bounds = figures_of(PROBABILITY, DECISION, TRUTH)
    parts = {"probability": PROBABILITY, "decision": DECISION, "confidence": np.ones(4), "truth": TRUTH}
    result = EvalResult(**parts, targets="multi", raw=PROBABILITY, scores=scores, bounds=bounds, cross_fitted=False)
    known = {"title": "t", "facts": [("tta", "none")], "pictures": [], "mistakes": [], "abstaining": None}
    reader = Reader()
    reader.feed(score_page(result, LABELS, **known | changes))
    return reader.texts


def test_the_headline_figures_come_before_all_tables():
    texts = read_page()
    large = [place for place, (tag, _) in enumerate(texts) if tag == "strong"]
    headline = [tuple(text for _, text in texts[place - 1 : place + 1]) for place in large]
    # exact 2 of 4; top class right 3 of 4; F1 of scab 2*2/(2+2) = 1, of rust 2*1/(2+2) = 0.5
    assert headline == [("exact match", "50.00"), ("hit@1", "75.00"), ("macro-F1", "75.00")]
    assert all(re.fullmatch(r"\[\d+\.\d, \d+\.\d\]", texts[place + 1][1]) for place in large)
    assert max(large) < texts.index(("h2", "All photos"))


def test_tables_hold_the_figures_of_each_class_and_label_set():
    cells = [text for tag, text in read_page() if tag == "td"]
    assert cells[cells.index("scab") + 1 :][:4] == ["2", "100.00", "100.00", "100.00"]
    assert cells[cells.index("rust") + 1 :][:5] == ["2", "50.00", "50.00", "50.00", "50.00"]
    assert cells[-10:] == ["scab", "2", "1", "50.00", "rust", "2", "1", "50.00", "tta", "none"]


def test_mistakes_and_abstaining_are_shown_when_there_are_any():
    words = " ".join(text for _, text in read_page())
    assert "None: every photo was decided exactly right." in words
    assert "Answering only" not in words
    abstaining = {"risk": 0.05, "cut": 0.8, "coverage": 0.5, "error": 0.0}
    texts = read_page(mistakes=[Picture(b"\xff\xd8\xff", "a.jpg")], abstaining=abstaining)
    assert ("figcaption", "a.jpg") in texts
    assert any("50.0 % of these photos are answered, and 0.00 % of the answers" in text for _, text in texts)
