"""The Python interface: its predictions against those of the command, for every kind of image; and its errors."""

import json

import numpy as np
import pytest
from PIL import Image

from tools.api import load
from tools.base.errors import CheckpointError, DataError, UsageError
from tools.commands import predict


@pytest.fixture(scope="module")
def model(trained):
    return load(trained)


@pytest.fixture
def photos(dataset):
    return sorted((dataset / "test").glob("*/*.jpg"))[:5]


def rounded(prediction):
    probabilities = {label: round(p, 6) for label, p in prediction.probabilities.items()}
    return list(prediction.labels), probabilities, round(prediction.confidence, 6)


@pytest.mark.parametrize("decide_by", ["threshold", "powerset"])
@pytest.mark.parametrize("tta", ["none", "flips"])
def test_predictions_are_those_of_the_command(trained, photos, capsys, decide_by, tta):
    best = trained / "best.pth"
    flags = ["--resume", str(best), str(best), "--json", "-", "--tta", tta, "--decide", decide_by]
    capsys.readouterr()
    assert predict.main([*map(str, photos), *flags]) == 0
    expected = json.loads(capsys.readouterr().out)
    predictions = load([best, trained], decide_by=decide_by, tta=tta).predict(photos)
    assert [rounded(p) for p in predictions] == [
        (entry["labels"], entry["probabilities"], entry["confidence"]) for entry in expected
    ]


def test_a_prediction_is_readable(trained, model, photos, capsys):
    assert predict.main([str(photos[0]), "--resume", str(trained / "best.pth")]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    prediction = model.predict(str(photos[0]))
    assert line.removeprefix(f"{photos[0]}: ").split("  ")[0] == str(prediction)
    assert prediction.labels
    assert list(prediction.probabilities) == model.labels


def test_images_in_memory_are_predicted_like_their_files(model, photos):
    expected = rounded(model.predict(photos[0]))
    with Image.open(photos[0]) as image:
        pixels = np.asarray(image)
        for same in (image, pixels, image.convert("CMYK").convert("RGB"), image.convert("RGBA")):
            assert rounded(model.predict(same)) == expected
    mixed = model.predict([photos[1], pixels])
    assert [rounded(p) for p in mixed] == [rounded(model.predict(photos[1])), expected]
    assert model.predict([]) == []


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "CMYK", "YCbCr", "I;16"])
def test_a_pil_image_of_every_mode_is_predicted_like_its_file(model, photos, tmp_path, mode):
    with Image.open(photos[0]) as image:
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        else:
            image = image.convert(mode)
    assert image.mode == mode
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    image.save(path)
    assert rounded(model.predict(image)) == rounded(model.predict(path))


def test_a_turned_photo_is_upright_either_way(model, photos, tmp_path):
    with Image.open(photos[0]) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        assert rounded(model.predict(turned)) == rounded(model.predict(tmp_path / "turned.png"))


def test_errors_are_user_errors_that_name_the_image(trained, model, photos, tmp_path):
    (tmp_path / "cut.jpg").write_bytes(photos[0].read_bytes()[:400])
    with pytest.raises(DataError, match=r"cut\.jpg cannot be decoded"):
        model.predict([photos[0], tmp_path / "cut.jpg"])
    (tmp_path / "cut.jpg").write_bytes(photos[0].read_bytes()[:-400])
    with Image.open(tmp_path / "cut.jpg") as cut, pytest.raises(DataError, match="image number 2 cannot be decoded"):
        model.predict([photos[0], cut])
    with pytest.raises(DataError, match=r"no\.jpg does not exist"):
        model.predict("no.jpg")
    for array in (np.zeros((9, 9, 3)), np.zeros((3, 9, 9), np.uint8), np.zeros((0, 9, 3), np.uint8)):
        with pytest.raises(DataError, match="image number 1 is an"):
            model.predict(array)
    with pytest.raises(UsageError, match="image number 1 is of type int"):
        model.predict(5)
    with pytest.raises(CheckpointError, match=r"nowhere\.pth does not exist"):
        load("nowhere.pth")
    with pytest.raises(CheckpointError, match=r"best\.pth does not exist"):
        load(tmp_path)
    for wrong in ({"device": "gpu"}, {"device": "cuda:99"}, {"decide_by": "luck"}, {"tta": "flip"}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            load(trained, **wrong)
    with pytest.raises(UsageError, match="no checkpoint"):
        load([])
