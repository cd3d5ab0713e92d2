"""Free-response scoring: counted by hand, by a second formula that tries every threshold, and by scipy."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from tools.evaluate.inference import VIEWS
from tools.explain.free_response import RATES, Response, compare_counts, judge, recall
from tools.explain.peaks import find_peaks

# (height, x, y): two peaks in the first box, one in both of the last, one that only growing brings into the second
PEAKS = np.array([[0.9, 2, 2], [0.8, 12, 12], [0.7, 4, 4], [0.5, 18, 2], [0.4, 30, 30], [0.2, 9, 20]], float)
NONE = np.empty(0)
BOXES = [(0.0, 0.0, 5.0, 5.0), (20.0, 0.0, 25.0, 5.0), (10.0, 10.0, 14.0, 14.0), (11.0, 11.0, 20.0, 20.0)]


def test_peaks_against_boxes_by_hand():
    response = judge(PEAKS, BOXES, 0)
    assert response.boxes.tolist() == [0.9, -np.inf, 0.8, 0.8], "one peak may find two boxes"
    assert response.false.tolist() == [0.5, 0.4, 0.2], "a second peak in a box is not false"
    grown = judge(PEAKS, BOXES, 2)
    assert grown.boxes.tolist() == [0.9, 0.5, 0.8, 0.8]
    assert grown.false.tolist() == [0.4], "the last one is now in the fourth"
    assert grown.peaks.tolist() == response.peaks.tolist() == PEAKS[:, 0].tolist()


def test_a_map_without_peaks_and_a_photo_without_boxes():
    none = judge(np.empty((0, 3)), BOXES, 1)
    assert (none.boxes.tolist(), none.false.tolist()) == ([-np.inf] * 4, [])
    healthy = judge(PEAKS, [], 1)
    assert (healthy.boxes.tolist(), healthy.false.tolist()) == ([], PEAKS[:, 0].tolist())
    assert recall([none, none], np.ones((1, 2))).tolist() == [[0] * len(RATES)]


def test_recall_by_hand():
    """Two maps. Above 0.6 there is one false peak, which is 0.5 per map; above 0.5 there are two, which is 1."""
    maps = [
        Response(np.array([0.9, 0.7, -np.inf]), np.array([0.8, 0.5]), NONE),
        Response(np.array([0.55, 0.6]), np.array([0.6, 0.1]), NONE),
    ]
    found = recall(maps, np.ones((1, 2)))[0]
    assert found.tolist() == [2 / 5, 3 / 5 + 1 / 5, 4 / 5, 4 / 5, 4 / 5]
    doubled = recall(maps, np.array([[2.0, 0.0]]))[0]  # the first map twice: a height counts two false peaks at once
    assert doubled.tolist() == [1 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3]


def by_every_threshold(maps, weights, rate):
    """The best recall of all heights whose false peaks per map are at most the rate."""
    heights = np.unique(np.concatenate([part for response in maps for part in response[:2]]))
    best = 0.0
    for height in heights[np.isfinite(heights)]:
        false = sum(w * (m.false >= height).sum() for m, w in zip(maps, weights, strict=True)) / weights.sum()
        found = sum(w * (m.boxes >= height).sum() for m, w in zip(maps, weights, strict=True))
        if false <= rate:
            best = max(best, found / sum(w * len(m.boxes) for m, w in zip(maps, weights, strict=True)))
    return best


@pytest.mark.parametrize("seed", range(5))
def test_recall_against_a_second_formula(seed):
    """Random maps with ties, weighted by how often each is drawn."""
    draw = np.random.default_rng(seed)
    maps = []
    for _ in range(12):
        boxes = draw.integers(0, 30, draw.integers(1, 9)) / 10.0
        false = draw.integers(0, 25, draw.integers(0, 15)) / 10.0
        maps.append(Response(np.where(boxes > 2.5, -np.inf, boxes), false, NONE))
    weights = np.stack([np.ones(12), draw.multinomial(12, [1 / 12] * 12), draw.multinomial(12, [1 / 12] * 12)])
    wanted = [[by_every_threshold(maps, row, rate) for rate in RATES] for row in weights]
    assert recall(maps, weights.astype(float)) == pytest.approx(np.array(wanted))


def test_counts_against_scipy():
    draw = np.random.default_rng(1)
    one, other = draw.integers(0, 9, 40), draw.integers(0, 9, 40)
    weights = np.stack([np.ones(40), draw.multinomial(40, [1 / 40] * 40)])
    for row, times in zip(compare_counts(one, other, weights), weights.astype(int), strict=True):
        a, b = np.repeat(one, times), np.repeat(other, times)
        assert row.tolist() == pytest.approx([spearmanr(a, b).statistic, np.abs(a - b).mean()])


def hills(places, size=64):
    y, x = np.mgrid[:size, :size]
    return sum(h * np.exp(-((x - px) ** 2 + (y - py) ** 2) / 18) for h, px, py in places).astype(np.float32)


def test_peaks_are_where_hills_are():
    heat = hills([(1.0, 10, 50), (0.6, 40, 20), (0.3, 55, 5)])
    assert find_peaks(heat, 8) == pytest.approx(
        np.array([[1, 10.5, 50.5], [0.6, 40.5, 20.5], [0.3, 55.5, 5.5]]), abs=0.01
    )
    near = hills([(1.0, 30, 30), (0.9, 40, 30)])
    assert len(find_peaks(near, 3)) == 2
    assert find_peaks(near, 12)[:, 1:].tolist() == [[30.5, 30.5]], "of two that are near, the higher one stays"
    assert len(find_peaks(np.zeros((8, 8), np.float32), 2)) == 0
    part = find_peaks(heat, 8, (slice(0, 30), slice(20, 64)))
    assert part[:, 1:].tolist() == [[40.5, 20.5], [55.5, 5.5]], "places are those of the whole map"


@pytest.mark.parametrize("view", range(8))
def test_peaks_turn_with_the_map(view):
    """Rotations and mirrors: the same heights, at the turned places."""
    import torch

    heat = hills([(1.0, 10, 50), (0.6, 40, 20), (0.3, 55, 5), (0.5, 30, 44)])
    turned = VIEWS["all"][view](torch.from_numpy(heat)[None, None])[0, 0].numpy()
    places = np.arange(64 * 64).reshape(64, 64)
    origin = VIEWS["all"][view](torch.from_numpy(places)[None, None])[0, 0].numpy()
    peaks, seen = find_peaks(heat, 6), find_peaks(np.ascontiguousarray(turned), 6)
    back = [divmod(int(origin[int(y), int(x)]), 64) for _, x, y in seen]
    assert seen[:, 0].tolist() == peaks[:, 0].tolist()
    assert [(column + 0.5, row + 0.5) for row, column in back] == [(x, y) for _, x, y in peaks.tolist()]
