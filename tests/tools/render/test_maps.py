"""Colours of heat maps, and rings round lesions, pixel by pixel."""

import cv2
import numpy as np
import pytest

from tools.evaluate.inference import VIEWS
from tools.render.maps import draw_figure, draw_rings, overlay, write_picture


def red_photo(height=4, width=4):
    photo = np.zeros((height, width, 3), np.uint8)
    photo[..., 0] = 200
    return photo


def test_classic_is_photo_and_jet_half_and_half():
    """OpenCV's jet is blue at 0 and red at 1, in BGR; mixed-up channels would swap them."""
    heat = np.zeros((4, 4), np.float32)
    heat[0, 0] = 1
    mixed = overlay(red_photo(), heat, classic=True)
    assert mixed[0, 0].tolist() == [164, 0, 0]  # (200, 0, 0) and (128, 0, 0)
    assert mixed[3, 3].tolist() == [100, 0, 64]  # (200, 0, 0) and (0, 0, 128)


def test_a_photo_without_evidence_is_the_photo_and_the_strongest_place_is_light():
    heat = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    mixed = overlay(red_photo(), heat)
    assert mixed[0, 0].tolist() == [200, 0, 0]
    assert mixed[3, 3].tolist() == [
        242,
        204,
        131,
    ]  # a fifth of the photo, and matplotlib's last inferno (252, 255, 164)
    photo = np.zeros((16, 16, 3), np.uint8)
    lightness = cv2.cvtColor(overlay(photo, heat.repeat(4, 0).repeat(4, 1)), cv2.COLOR_RGB2LAB)[::4, ::4, 0].ravel()
    assert (np.diff(lightness.astype(int)) >= 0).all(), "lighter is always more"


def test_a_window_leaves_the_rest_of_the_photo():
    drawn = overlay(red_photo(8, 8), np.ones((2, 2), np.float32), (2, 0, 6, 4))
    changed = (drawn != red_photo(8, 8)).any(axis=2)
    assert changed[:4, 2:6].all()
    assert changed.sum() == 16


@pytest.mark.parametrize("view", range(8))
def test_rings_turn_with_the_photo(view):
    """The ring, without its number, round a turned place is the turned ring."""
    import torch

    size, (x, y), turn = 96, (30.5, 40.5), VIEWS["all"][view]
    places = torch.arange(size * size).view(1, 1, size, size)
    row, column = divmod(int((turn(places).flatten() == int(y) * size + int(x)).nonzero()), size)
    grey = np.full((size, size, 3), 90, np.uint8)
    straight, turned = (draw_rings(grey, [place], 12) for place in ((x, y), (column + 0.5, row + 0.5)))
    wanted = turn(torch.from_numpy(straight.copy()).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    yy, xx = np.mgrid[:size, :size] + 0.5
    distance = np.hypot(xx - column - 0.5, yy - row - 0.5)
    number = np.abs(distance - 12) > 4  # the number stands outside the ring
    assert (np.abs(turned.astype(int) - wanted) > 60)[~number].mean() < 0.1
    assert turned[(distance > 11.7) & (distance < 12.3)].mean() > 200, "light where the ring is"
    assert (turned[distance < 8] == 90).all(), "and the lesion inside is untouched"


@pytest.mark.parametrize("shape", [(60, 1200), (1200, 60), (2672, 4000), (30, 30)])
def test_rings_and_numbers_fit_on_any_photo(shape):
    height, width = shape
    photo = np.full((height, width, 3), 90, np.uint8)
    places = [(1.0, 1.0), (width - 1.0, 1.0), (1.0, height - 1.0), (width / 2, height / 2)]
    drawn = draw_rings(photo, places, max(shape) / 48)
    assert drawn.shape == photo.shape
    assert (drawn != photo).any()
    assert (photo == 90).all(), "the photo itself is left as it is"


def test_large_pictures_are_jpegs(tmp_path):
    assert write_picture(tmp_path / "a.png", np.zeros((1000, 1000, 3), np.uint8)) == tmp_path / "a.png"
    written = write_picture(tmp_path / "b.v2.png", np.full((1000, 1001, 3), 90, np.uint8))
    assert written == tmp_path / "b.v2.jpg"
    assert cv2.imread(str(written))[0, 0].tolist() == [90, 90, 90]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.v2.jpg"]


def test_the_scale_is_under_every_figure_but_the_classic_one():
    photo, heat = red_photo(240, 240), np.ones((240, 240), np.float32)
    rows = [("photo", photo, [("rust", heat)])]
    plain, classic = (draw_figure("leaf", photo, rows, classic=classic) for classic in (False, True))
    assert plain.shape[0] > classic.shape[0]
    assert plain.shape[1] == classic.shape[1]
