"""A best.pth of the first release (commit 4eaedf5) scores as it did there, although config keys have new names."""

import json

import numpy as np
import pytest
import torch
import yaml
from conftest import CODE_OF, ROOT, written

import test as scoring
from models.swin_transformer import SwinTransformer
from tools.checkpoint.store import read, read_own

DECISION_FIGURES = {"exact", "hamming", "macro_f1", "micro_f1", "samples_f1", "macro_precision", "macro_recall"}
GOLDEN = ROOT / "tests" / "golden"


def old_checkpoint(path):
    """The file, rebuilt from its recipe: seeded weights, and the config text exactly as that release wrote it."""
    model = SwinTransformer(img_size=32, num_classes=6, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: 0.3 * torch.randn(value.shape, generator=generator) for name, value in sorted(model.state_dict().items())
    }
    logits = 2 * torch.randn(40, 6, generator=generator)
    truth = torch.eye(6, dtype=torch.bool)[torch.arange(40) % 6] | (torch.arange(40)[:, None] % 9 == torch.arange(6))
    content = {
        "format": 2,
        "config": (GOLDEN / "old_config.yaml").read_text(),
        "classes": sorted(CODE_OF.values()),
        "combinations": [[0], [0, 4], [1], [2], [3], [4], [5]],
        "preprocess": {
            "size": 32,
            "crop": True,
            "interpolation": "bicubic",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
        "targets": "multi",
        "data_digest": ["0" * 64, "1" * 64],
        "images_per_update": 8,
        "thresholds": [0.4, 0.5, 0.6, 0.5, 0.45, 0.55],
        "temperatures": [1.0, 1.2, 0.9, 1.0, 1.1, 1.3],
        "validation": {"logits": logits, "truth": truth},
        "step": 10,
        "epoch": 1,
        "model": weights,
        "scores": {},
    }
    return written(path, content)


@pytest.mark.parametrize("decide", ["threshold", "powerset"])
def test_a_checkpoint_of_the_first_release_scores_as_before(decide, dataset, tmp_path):
    """All figures for thresholds. A powerset decides as before, and its probabilities are sums over label sets now."""
    path = old_checkpoint(tmp_path / "best.pth")
    argv = ["--resume", path, "--data-path", dataset, "--to", tmp_path / "scores", "--decide", decide]
    assert scoring.main([str(word) for word in argv]) == 0
    metrics = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    rows = [line.split(",") for line in (tmp_path / "scores" / "predictions.csv").read_text().splitlines()[1:]]
    expected = json.loads((GOLDEN / "old_scores.json").read_text())[decide]
    same = expected["metrics"] if decide == "threshold" else DECISION_FIGURES & expected["metrics"].keys()
    assert {key: metrics[key] for key in same} == pytest.approx(
        {key: expected["metrics"][key] for key in same}, abs=1e-6
    )
    assert [[row[0], row[8]] for row in rows] == [[row[0], row[8]] for row in expected["rows"]]
    first = 2 if decide == "threshold" else 9
    ours, theirs = (np.array([[*row[first:8], row[9]] for row in table], float) for table in (rows, expected["rows"]))
    assert ours == pytest.approx(theirs, abs=2e-6)  # six digits are written


@pytest.mark.parametrize(("crop", "resize"), [(True, "crop"), (False, "squash")])
def test_a_checkpoint_with_test_crop_scores_bit_identically_to_one_with_data_resize(
    trained, dataset, tmp_path, crop, resize
):
    content = read(trained / "best.pth")
    content["preprocess"]["resize"] = resize
    new = written(tmp_path / "new.pth", content)
    config = yaml.safe_load(content["config"])
    del config["DATA"]["RESIZE"], content["preprocess"]["resize"]
    config["TEST"]["CROP"] = content["preprocess"]["crop"] = crop
    old = written(tmp_path / "old.pth", content | {"config": yaml.safe_dump(config)})
    for path in (old, new):
        argv = ["--resume", path, "--data-path", dataset, "--to", tmp_path / path.stem]
        assert scoring.main([str(word) for word in argv]) == 0
    assert (tmp_path / "old" / "predictions.csv").read_bytes() == (tmp_path / "new" / "predictions.csv").read_bytes()


def test_labels_of_a_checkpoint_of_before_are_as_exclusive_as_they_were(tmp_path):
    """Only `healthy` was, and not the PlantVillage's `Apple___healthy`, which is in new data sets."""
    path = old_checkpoint(tmp_path / "best.pth")
    content = read(path) | {"classes": ["Apple___healthy", "a", "b", "c", "healthy", "x  y"]}
    loaded = read_own(written(tmp_path / "tree.pth", content))
    assert (loaded["labels"], loaded["exclusive"]) == (["Apple___healthy", "a", "b", "c", "healthy", "x y"], [4])
