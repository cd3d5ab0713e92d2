"""The page of a scored split, parsed: the headline figures come first, and tables hold figures counted by hand."""

import re

import numpy as np
import pytest

from tools.evaluate.result import EvalResult, figures_of
from tools.render.page import Picture
from tools.render.score_page import MOST_SETS, score_page

# Four photos: right, right, a wrong label given too, nothing given. The top class is a true label of the first three.
TRUTH = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], bool)
DECISION = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], bool)
PROBABILITY = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.6], [0.4, 0.3]])


@pytest.fixture
def texts(read_page):
    """A function: its keywords replace those of `score_page`; it gives the (tag, text) pairs of the page."""

    def texts_of(**changes) -> list[tuple[str, str]]:
        scores, bounds = figures_of(PROBABILITY, DECISION, TRUTH)
        answers = {"probability": PROBABILITY, "decision": DECISION, "confidence": np.ones(4)}
        result = EvalResult(
            **answers, targets="multi", raw=PROBABILITY, truth=TRUTH, scores=scores, bounds=bounds, cross_fitted=False
        )
        known = {"title": "t", "facts": [("tta", "none")], "pictures": [], "mistakes": [], "abstaining": None}
        return read_page(score_page(result, ["scab", "rust"], **known | changes)).texts

    return texts_of


def test_the_headline_figures_come_before_all_tables(texts):
    found = texts()
    start = found.index(("span", "exact match"))
    names, values, intervals = (found[start + i : start + 9 : 3] for i in range(3))
    # exact 2 of 4; top class right 3 of 4; F1 of scab 2*2/(2+2) = 1, of rust 2*1/(2+2) = 0.5
    assert [text for _, text in names] == ["exact match", "hit@1", "macro-F1"]
    assert values == [("strong", "50.00"), ("strong", "75.00"), ("strong", "75.00")]
    assert all(re.fullmatch(r"\[\d+\.\d, \d+\.\d\]", text) for _, text in intervals)
    assert found[start + 9] == ("h2", "All photos")


def test_tables_hold_the_figures_of_each_class_and_label_set(texts):
    cells = [text for tag, text in texts() if tag == "td"]
    assert cells[cells.index("scab") :][:6] == ["scab", "2", "100.00", "100.00", "100.00", "100.00"]
    assert cells[cells.index("rust") :][:6] == ["rust", "2", "50.00", "50.00", "50.00", "50.00"]
    assert cells[-10:] == ["scab", "2", "1", "50.00", "rust", "2", "1", "50.00", "tta", "none"]


def test_mistakes_and_abstaining_are_shown_when_there_are_any(texts):
    words = " ".join(text for _, text in texts())
    assert "None: every photo was decided exactly right." in words
    assert "Answering only" not in words
    abstaining = {"risk": 0.05, "cut": 0.8, "coverage": 0.5, "error": 0.0}
    found = texts(mistakes=[Picture(b"\xff\xd8\xff", "a.jpg")], abstaining=abstaining)
    assert ("figcaption", "a.jpg") in found
    assert any("50.0 % of these photos are answered, and 0.00 % of the answers" in text for _, text in found)


def test_the_most_frequent_of_many_label_sets_have_a_row(read_page):
    """Every pair of 12 labels once, and label 0 alone three times."""
    sets = [(0,)] * 3 + [(a, b) for a in range(12) for b in range(a)]
    truth = np.zeros((len(sets), 12), bool)
    for row, members in enumerate(sets):
        truth[row, list(members)] = True
    scores, bounds = figures_of(truth * 1.0, truth, truth)
    result = EvalResult(truth * 1.0, truth, np.ones(len(sets)), "multi", truth * 1.0, truth, scores, bounds, False)
    known = {"title": "t", "facts": [], "pictures": [], "mistakes": [], "abstaining": None}
    words = read_page(score_page(result, [f"label {c}" for c in range(12)], **known)).words
    start = words.index("By true label set")
    assert words[start + 5 : start + 9] == ["label 0", "3", "3", "100.00"]
    assert sum(" + " in word for word in words) == MOST_SETS - 1
    assert f"and {len(sets) - 2 - MOST_SETS} rarer label sets" in words
