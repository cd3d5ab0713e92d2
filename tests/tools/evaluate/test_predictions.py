"""predictions.csv: any label names are read back as they were written."""

import numpy as np
import pytest

from data.labels import COURSE
from tools.evaluate.predictions import read_predictions, to_csv
from tools.evaluate.rule import Answers


@pytest.mark.parametrize("labels", [
    ["healthy", "rust"], ["rust", "scab", "healthy"], list(COURSE.names),  # some of the course's, and all
    ["10", "2", "apple"], ["a|b", "c"], ["a b", "c|d", "e;f"], ["a b", "c|d", "e;f", "g,h"], ['a"', "'b"],
    ["p_x", "p_"], ["label_x", "y"], ["truth", "decision", "labels"], ["unsure", "error", "model"],
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
