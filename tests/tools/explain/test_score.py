"""Scores of heat maps: figures counted by hand on a map of 4x4, and a model whose every score is known."""

import csv
import io

import numpy as np
import pytest
import torch
from torch import nn

from tools.base.tables import format_csv
from tools.explain.cam import CamRecipe
from tools.explain.faithfulness import shuffle_weights
from tools.explain.pointing import (
    FIGURES,
    build_box_mask,
    correlate,
    draw_photos,
    integrate,
    measure_pointing,
    summarise_means,
)
from tools.explain.scales import Scale
from tools.explain.score import NAMES, BoxedLabel, format_scores, list_score_rows, measure_recipes, summarise
from tools.render.figures import draw_cam_scores

HEAT = np.array([[0, 0, 0, 0], [0, 4, 2, 0], [0, 2, 0, 0], [0, 0, 0, 2]], np.float32)


def test_pointing_and_energy_by_hand():
    """The box covers pixels (1..2, 1..2); grown by half a pixel it reaches no further centre, by one it does."""
    mask = build_box_mask([(1, 1, 3, 3)], 4, 0.4)
    assert mask.sum() == 4
    assert mask[1:3, 1:3].all()
    assert measure_pointing(HEAT, mask) == (1, 4 / 16, pytest.approx(8 / 10))
    far = build_box_mask([(3, 3, 4, 4)], 4, 0)
    assert measure_pointing(HEAT, far) == (0, 1 / 16, pytest.approx(2 / 10))
    assert measure_pointing(HEAT, build_box_mask([(3, 3, 4, 4)], 4, 1))[1] == 4 / 16
    assert measure_pointing(HEAT, build_box_mask([(3, 3, 4, 4)], 4, 2))[0] == 1, "half a cell of 4 pixels"
    two = build_box_mask([(0, 0, 1, 1), (0, 0, 2, 1)], 4, 0)
    assert two.sum() == 2, "overlapping boxes count once"
    assert measure_pointing(np.zeros((4, 4)), mask) == (0, 1 / 4, 0)


def test_areas_and_correlations():
    assert integrate(np.array([0, 1.0])) == 0.5
    assert integrate(np.array([0, 1, 1.0])) == 0.75
    assert correlate(HEAT, 2 * HEAT + 1) == pytest.approx(1)
    assert correlate(HEAT, -HEAT) == pytest.approx(-1)
    assert correlate(HEAT, np.ones((4, 4))) == 0


def test_the_labels_of_a_photo_are_drawn_together():
    """Two photos, one right in both of its labels and one wrong: the interval of the mean is [0, 1]."""
    values = np.full((3, len(FIGURES)), np.nan)
    values[:, 0] = 1, 1, 0
    summary = summarise_means(values, draw_photos(["a", "a", "b"]))
    assert summary["pointing"] == (pytest.approx(2 / 3), 0, 1)
    assert summary.keys() == {"pointing"}, "nothing else was measured"


class Spot(nn.Module):
    """Class 0 is the mean red of an image's upper left quarter, class 1 of its lower right one."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1, bias=False)
        with torch.no_grad():
            self.layer.weight[:] = torch.tensor([[1.0, 0, 0], [1.0, 0, 0]])[:, :, None, None]

    def forward(self, images):
        maps = self.layer(nn.functional.adaptive_avg_pool2d(images, 8))
        return torch.stack([maps[:, 0, :4, :4].mean((1, 2)), maps[:, 1, 4:, 4:].mean((1, 2))], 1)


def list_labels(thorough=False):
    boxes = [[(4.0, 4.0, 28.0, 28.0)], [(36.0, 36.0, 60.0, 60.0)]]
    for number in range(6):
        yield BoxedLabel(f"photo {number // 2}", (torch.ones(3, 64, 64),), number % 2, boxes[number % 2], thorough)


def score_recipe(model, batches):
    scales = [Scale(model, None, [lambda x: x])]
    (measured,) = measure_recipes(scales, batches, [CamRecipe("layercam", "layer")], sigmoid)
    return summarise(measured)


def sigmoid(logits):
    return 1 / (1 + np.exp(-8 * (logits - 0.5)))


def test_a_model_whose_every_score_is_known():
    model, batch = Spot().eval(), list(list_labels(thorough=True))
    score = score_recipe(model, [batch[:4], batch[4:]])
    figures = score.figures
    named = [("spot.pth", score)]
    assert (score.num_photos, score.num_labels) == (3, 6)
    assert figures.keys() == set(NAMES)
    assert figures["pointing"] == (1, 1, 1)
    assert figures["chance"][0] == pytest.approx((32 / 64) ** 2), "24 pixels and 4 of a cell's 8 on either side"
    assert figures["energy"][0] > 0.9
    low, high = sigmoid(np.zeros(1))[0], sigmoid(np.ones(1))[0]
    assert figures["deletion"][0] < low + 0.35 * (high - low), "only a quarter of the pixels counts"
    assert figures["road"][0] == pytest.approx(0, abs=0.05), "an image of one colour is filled with that colour"
    assert -1 <= figures["sanity"][0] <= 1
    rows = list(csv.DictReader(io.StringIO(format_csv(list_score_rows(named)).decode())))
    assert rows[0]["layer"] == "layer"
    assert float(rows[0]["pointing_high"]) == 1
    assert "1.00 [1.00, 1.00]" in format_scores(named)[1]
    assert draw_cam_scores(["spot.pth"], [figures]).startswith(b"\x89PNG")


def test_insertion_and_deletion_of_a_red_spot():
    """A map of the spot has good insertion, deletion and ROAD; a map of the wrong corner misses the box."""
    image = torch.zeros(3, 64, 64)
    image[0, :32, :32] = 1
    figures = {}
    for index in (0, 1):
        label = BoxedLabel("a", (image,), 0, [(0.0, 0.0, 32.0, 32.0)], True)
        model = Spot().eval()
        if index:
            model.layer.register_forward_hook(lambda _m, _i, out: out.flip((2, 3)) * 1.0)
        figures[index] = score_recipe(model, [[label]]).figures
    assert figures[0]["insertion"][0] > 0.75
    assert figures[0]["deletion"][0] < 0.3
    assert figures[0]["road"][0] > 0.2
    assert figures[1]["pointing"][0] == 0, "nothing is red where this map peaks"


def test_shuffled_weights_are_the_same_values_elsewhere():
    model = nn.Linear(20, 30)
    shuffled = shuffle_weights(model)
    assert not torch.equal(shuffled.weight, model.weight)
    assert torch.equal(shuffled.weight.flatten().sort().values, model.weight.flatten().sort().values)
