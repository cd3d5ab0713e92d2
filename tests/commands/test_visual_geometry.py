"""Heat maps and boxes of photos that are not square: a model that looks at one white square, and where it is drawn."""

import csv

import cv2
import numpy as np
import pytest
import torch
import yaml
from conftest import written
from PIL import Image

import visual
from models.swin_transformer import SwinTransformer
from tools.checkpoint.store import read

SIDE = 64  # of the model's input
SHAPES = [(180, 240), (240, 180)]  # 4:3 and 3:4, height first
MARK = (70, 100, 30, 40)  # top, left, height and width of the white part, which is off every centre
LAYER = ["--layer", "patch_embed", "--method", "layercam", "--target", "rust"]


@pytest.fixture(params=["squash", "crop", "letterbox"])
def resize(request):
    return request.param


@pytest.fixture
def checkpoint(trained, tmp_path, resize):
    """A Swin whose first channel is a patch's brightness, whose second one is 1, and whose blocks do nothing."""
    content = read(trained / "best.pth")
    config = yaml.safe_load(content["config"])
    config["DATA"] |= {"IMG_SIZE": SIDE, "RESIZE": resize}
    config["MODEL"]["SWIN"] |= {"DEPTHS": [1], "NUM_HEADS": [2], "PATCH_NORM": False}
    model = SwinTransformer(
        img_size=SIDE, num_classes=6, embed_dim=16, depths=(1,), num_heads=(2,), window_size=4, patch_norm=False
    )
    weights = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    weights["patch_embed.proj.weight"][0] = 1 / 48
    weights["patch_embed.proj.bias"][1] = 1
    weights["norm.weight"] += 1
    weights["head.weight"][:, 0] = 1
    content |= {"config": yaml.safe_dump(config), "model": weights}
    content["preprocess"] |= {"size": SIDE, "resize": resize, "mean": [0.4] * 3, "std": [0.2] * 3}
    return written(tmp_path / "best.pth", content)


def mark(shape):
    """A dark photo `[H, W, 3]` with the white part."""
    top, left, height, width = MARK
    pixels = np.full((*shape, 3), 40, np.uint8)
    pixels[top : top + height, left : left + width] = 255
    return pixels


def read_rgb(path):
    return cv2.imread(str(path))[:, :, ::-1]


def find_hot(heated, original):
    """(top, left, bottom, right) of the pixels where the map's colour is bright and not blue, as its upper half is."""
    colour = 2 * heated.astype(int) - original
    rows, columns = np.nonzero((colour[..., 0] > 128) & (colour[..., 2] < 100))
    return rows.min(), columns.min(), rows.max() + 1, columns.max() + 1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("view", [[], ["--tta", "all"]], ids=["plain", "tta"])
def test_the_map_lies_on_what_the_model_looked_at(checkpoint, resize, shape, view, tmp_path):
    """At the photo's own size and at the input's: within one cell of the white part, and nowhere else."""
    Image.fromarray(mark(shape)).save(tmp_path / "leaf.png")
    top, left, height, width = MARK
    for flags in (["--full-size"], []):
        argv = ["--resume", checkpoint, "--image", tmp_path / "leaf.png", "--to", tmp_path / "maps", *LAYER, *view]
        assert visual.main([str(word) for word in (*argv, *flags)]) == 0
        original, heated = (read_rgb(tmp_path / "maps" / f"leaf_{kind}.png") for kind in ("original", "rust_cam"))
        if flags:
            assert np.array_equal(original, mark(shape))
        elif resize == "letterbox":
            assert original.shape[:2] == tuple(2 * SIDE * side // 240 for side in shape), "the finer of two sizes"
        assert heated.shape == original.shape
        white = np.argwhere(original[..., 0] > 127)
        wanted = [*white.min(0), *(white.max(0) + 1)]
        if flags:
            assert wanted == [top, left, top + height, left + width]
        cell = 4 * (240 / SIDE if flags else 1)
        assert np.abs(np.subtract(find_hot(heated, original), wanted)).max() <= cell
        if flags and resize == "crop":
            margin = (240 - 180 * 224 / 256) / 2 - 2  # cut off by the crop along the long side
            outside = np.s_[:, : int(margin)] if shape[1] > shape[0] else np.s_[: int(margin)]
            assert np.array_equal(heated[outside], original[outside])


def test_a_photo_of_a_few_pixels_has_a_map_too(checkpoint, tmp_path):
    """At its own size, and with `crop` over less than one pixel of it."""
    for height, width in ((1, 1), (1, 2), (20, 1)):
        name = f"{height}x{width}"
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(tmp_path / f"{name}.png")
        argv = ["--resume", checkpoint, "--image", tmp_path / f"{name}.png", "--to", tmp_path / "maps", *LAYER]
        assert visual.main([str(word) for word in (*argv, "--full-size", "--classic")]) == 0
        heated = read_rgb(tmp_path / "maps" / f"{name}_rust_cam.png")
        assert heated.shape == (height, width, 3)
        assert heated.any(), "--classic paints a map of zeros blue"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_comparisons_have_the_shape_of_the_photo(checkpoint, resize, shape, tmp_path):
    Image.fromarray(mark(shape)).save(tmp_path / "leaf.png")
    argv = ["--resume", checkpoint, "--image", tmp_path / "leaf.png", "--to", tmp_path / "maps", "--target", "rust"]
    layers = ["--layer", "patch_embed", "norm", "--method", "layercam"]
    assert visual.main([str(word) for word in (*argv, *layers)]) == 0
    rows, columns = np.nonzero((read_rgb(tmp_path / "maps" / "leaf_rust_side_by_side.png") == 255).all(-1) == 0)
    tile = shape[0] / shape[1] if resize == "letterbox" else 1
    assert np.ptp(columns) > 3 * 240
    assert 240 * tile < np.ptp(rows) < 240 * tile + 200, "captions above a tile of 240 pixels"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_box_around_it_is_hit_and_one_beside_it_is_missed(checkpoint, resize, shape, dataset, tmp_path, refused):
    """`chance` is the share of the photo that the box covers, grown by half a cell; padding does not count."""
    top, left, height, width = MARK
    for folder in (dataset / "test").iterdir():
        (tmp_path / "data" / "test" / folder.name).mkdir(parents=True)
        Image.fromarray(mark(shape)).save(tmp_path / "data" / "test" / folder.name / "leaf.png")
    header = "images,label,x_center,y_center,width,height\n"
    centre, size = ((left + width / 2) / shape[1], (top + height / 2) / shape[0]), (width / shape[1], height / shape[0])
    for (x, y), hit in ((centre, 1), ((centre[0] - 0.3, centre[1]), 0), ((centre[0], centre[1] + 0.3), 0)):
        (tmp_path / "boxes.csv").write_text(f"{header}leaf.png,rust,{x},{y},{size[0]},{size[1]}\n")
        argv = ["--resume", checkpoint, "--data-path", tmp_path / "data", "--score", tmp_path / "boxes.csv"]
        assert visual.main([str(word) for word in (*argv, "--to", tmp_path / "maps", *LAYER[:4])]) == 0
        (row,) = csv.DictReader((tmp_path / "maps" / "cam_scores.csv").open())
        assert float(row["pointing"]) == hit
    if resize == "crop":
        side, end = ("x", "y") if shape[1] > shape[0] else ("y", "x")
        edge = {side: 0.005, end: 0.5}
        (tmp_path / "boxes.csv").write_text(f"{header}leaf.png,rust,{edge['x']},{edge['y']},0.01,0.01\n")
        refused(visual.main, [*argv, "--to", tmp_path / "maps", *LAYER[:4]], 3, "no box lies in the part of a photo")
    scale = {"squash": SIDE / np.array(shape), "crop": SIDE / (180 * 224 / 256), "letterbox": SIDE / 240}[resize]
    grown = np.array([height, width]) * scale + 4
    shown = np.array(shape) * SIDE / 240 if resize == "letterbox" else np.array([SIDE, SIDE])
    assert float(row["chance"]) == pytest.approx(np.prod(grown) / np.prod(shown), rel=0.15)


@pytest.mark.parametrize("shape", [(240, 320), (320, 240), (300, 300)], ids=str)
def test_the_ring_is_round_what_the_model_found(checkpoint, shape, tmp_path):
    """At the photo's own size: what is drawn on the photo is round the white part, within a cell and the number."""
    height, width = shape
    photo = np.full((height, width, 3), 40, np.uint8)
    top, left = height // 2 - 12, width // 2 - 12
    photo[top : top + 24, left : left + 24] = 255
    Image.fromarray(photo).save(tmp_path / "leaf.png")
    argv = ["--resume", checkpoint, "--image", tmp_path / "leaf.png", "--to", tmp_path / "maps", *LAYER, "--full-size"]
    assert visual.main([str(word) for word in argv]) == 0
    pair, gap = read_rgb(tmp_path / "maps" / "leaf_rust_pair.png"), max(8, width // 30)
    tiles = [pair[y : y + height, gap : gap + width] for y in range(len(pair) - height)]
    ringed = max(tiles, key=lambda tile: (tile == photo).mean())
    rows, columns = np.nonzero((ringed != photo).any(axis=2))
    assert len(rows), "something was ringed"
    centre = (rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2
    reach = 24 + 2 * 4 * max(height, width) / SIDE
    assert np.abs(np.subtract(centre, (height / 2, width / 2))).max() < reach


@pytest.mark.parametrize("shape", [(60, 1200), (1200, 300), (2672, 4000)], ids=str)
def test_default_maps_of_photos_of_any_shape(trained, shape, tmp_path):
    """The photo's own size, in files that say so: a JPEG where there is more than a megapixel."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (12, 12, 3), np.uint8)
    Image.fromarray(small).resize(shape[::-1]).save(tmp_path / "leaf.jpg")
    argv = ["--resume", trained / "best.pth", "--image", tmp_path / "leaf.jpg", "--to", tmp_path / "maps"]
    assert visual.main([str(word) for word in (*argv, "--full-size", "--target", "scab")]) == 0
    written = {path.stem: path for path in (tmp_path / "maps").iterdir()}
    assert written.keys() == {"leaf_original", "leaf_scab_cam", "leaf_scab_pair"}
    for path in written.values():
        height, width, _ = read_rgb(path).shape
        assert path.suffix == (".jpg" if height * width > 1_000_000 else ".png")
    assert read_rgb(written["leaf_scab_cam"]).shape == (*shape, 3)
    assert visual.main([str(word) for word in (*argv, "--target", "scab", "--fast")]) == 0
