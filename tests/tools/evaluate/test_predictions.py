"""predictions.csv: any label names are read back as they were written."""

import re

import numpy as np
import pytest

from data.labels import COURSE
from tools.base.errors import DataError
from tools.evaluate.predictions import read_predictions, to_csv
from tools.evaluate.rule import Answers


@pytest.mark.parametrize("labels", [
    ["healthy", "rust"], ["rust", "scab", "healthy"], list(COURSE.names),  # some of the course's, and all
    ["10", "2", "apple"], ["a|b", "c"], ["a b", "c|d", "e;f"], ["a b", "c|d", "e;f", "g,h"], ['a"', "'b"],
    ["p_x", "p_"], ["label_x", "y"], ["truth", "decision", "labels"], ["unsure", "error", "model"],
    ["truth", "decision"],
])  # fmt: skip
def test_a_round_trip(tmp_path, labels):
    count, rng = 3 * len(labels), np.random.default_rng(0)
    truth = np.arange(count)[:, None] % len(labels) == np.arange(len(labels))
    truth[len(labels) :, 0] = True
    decision = truth[::-1]
    probability = rng.random(truth.shape)
    answers = Answers(probability=probability, decision=decision, confidence=probability.max(axis=1))
    images = [f"{number}.jpg" for number in range(count)]
    (tmp_path / "predictions.csv").write_bytes(to_csv(images, labels, answers, truth))
    for expected in ((), labels, labels[::-1]):
        table = read_predictions(tmp_path / "predictions.csv", expected)
        assert (table.images, list(table.labels)) == (images, labels)
        assert (table.truth == truth).all()
        assert (table.decision == decision).all()
        assert table.probability == pytest.approx(probability, abs=1e-6)


def test_some_of_the_courses_labels_without_a_column_each_are_all_of_them(tmp_path):
    (tmp_path / "a.csv").write_text("images,labels\n1.jpg,rust scab\n2.jpg,healthy\n")
    table = read_predictions(tmp_path / "a.csv", {"rust", "scab", "healthy"})
    assert table.labels == COURSE.names
    assert table.decision.sum(axis=0).tolist() == [1, 1, 0, 1, 0, 0]


@pytest.mark.parametrize("columns", ["x,p_x", "p_x,p_p_x", "label_x,label_p_x"])
def test_columns_called_like_labels_that_look_like_prefixes(tmp_path, columns):
    (tmp_path / "a.csv").write_text(f"image,{columns}\na.jpg,1,0\nb.jpg,0,1\n")
    table = read_predictions(tmp_path / "a.csv", {"x", "p_x"})
    assert table.labels == ("x", "p_x")
    assert table.decision.tolist() == [[True, False], [False, True]]


def test_names_are_compared_in_one_composition(tmp_path):
    (tmp_path / "a.csv").write_text("image,decision\na.jpg,A\u0308pfel\nb.jpg,rust\n")
    table = read_predictions(tmp_path / "a.csv", {"Äpfel", "rust"})
    assert [table.labels[row.argmax()] for row in table.decision] == ["Äpfel", "rust"]


@pytest.mark.parametrize(("header", "words"), [
    ("image,p_x", "has the one label 'x', and figures need two"),
    ("image,p_x,p_y\u200b", r"label 'y\u200b' holds"),
])  # fmt: skip
def test_labels_that_cannot_be_scored(tmp_path, header, words):
    (tmp_path / "a.csv").write_text(f"{header}\na.jpg{',1' * header.count(',')}\n")
    with pytest.raises(DataError, match=rf"a\.csv.*{re.escape(words)}"):
        read_predictions(tmp_path / "a.csv", {"x"})
