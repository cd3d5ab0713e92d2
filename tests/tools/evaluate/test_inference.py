"""Test-time views against numpy's turns and flips, and the mean over them."""

import numpy as np
import pytest
import torch

from tools.evaluate.inference import VIEWS, predict
from tools.runtime.precision import NativePrecision

IMAGE = torch.arange(9.0).view(1, 1, 3, 3)
SQUARE = IMAGE[0, 0].numpy()


def views(name):
    return {tuple(view(IMAGE).flatten().tolist()) for view in VIEWS[name]}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("none", [SQUARE]),
        ("flips", [SQUARE, np.fliplr(SQUARE), np.flipud(SQUARE), np.flipud(np.fliplr(SQUARE))]),
        ("turns", [np.rot90(SQUARE, k) for k in range(4)]),
        ("all", [np.rot90(side, k) for k in range(4) for side in (SQUARE, SQUARE.T)]),
    ],
)
def test_the_views_are_the_symmetries_of_the_square(name, wanted):
    assert views(name) == {tuple(np.ravel(view).tolist()) for view in wanted}
    assert len(VIEWS[name]) == len(wanted)


def test_logits_are_the_mean_over_views():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 2))
    batches = [(IMAGE, torch.tensor([[1.0, 0]]))]
    logits, _ = predict(model, batches, torch.device("cpu"), NativePrecision("cpu", None), 2, VIEWS["all"])
    with torch.no_grad():
        one_by_one = [model(torch.tensor([view]))[0] for view in views("all")]
    assert logits[0] == pytest.approx(torch.stack(one_by_one).mean(0).numpy(), abs=1e-6)
