"""One small model of every family of timm: training, a stop and a resume, scores, heat maps. Checks docs/models.md.

`make soak` goes through the table of docs/models.md and prints the rows as they are now; `make test` takes a few.
"""

import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from places import grid_of_layer
from runs import digest, warm

import main
import test
import visual
from data.sample.write import write_sample
from process_dataset import main as prepare
from tools.evaluate.predictor import load_model
from tools.explain.cam import CamRecipe, compute_heat_maps
from tools.explain.layers import choose_classic_layer, choose_default_layer

TABLE = re.findall(r"^\| `(\w+)` \| (\d+) \|", (ROOT / "docs" / "models.md").read_text(), re.MULTILINE)
FEW = ("test_resnet", "test_vit")  # in `make test`

CONFIG = """
MODEL: {{TYPE: timm, NAME: {name}, PRETRAINED: none, DROP_RATE: 0.1, DROP_PATH_RATE: 0.0}}
DATA: {{IMG_SIZE: {size}, TARGETS: multi, NUM_WORKERS: 0}}
TRAIN: {{EPOCHS: 1, WARMUP_EPOCHS: 0, BASE_LR: 1.0e-3}}
"""


@pytest.fixture(scope="session")
def leaves(tmp_path_factory) -> Path:
    """Eight photos to train on, two batches of four."""
    folder = tmp_path_factory.mktemp("leaves")
    write_sample(folder / "raw", counts={"train": 8, "val": 3, "test": 3})
    assert prepare(["--src", str(folder / "raw"), "--dst", str(folder / "dataset")]) == 0
    return folder / "dataset"


@pytest.mark.parametrize(("name", "size"), TABLE)
def test_a_family_as_the_table_says(name, size, leaves, tmp_path, times):
    times(int(name in FEW), 1)
    run = warm(tmp_path, live_through, name, int(size), str(leaves))
    code = run.wait()
    for output in ("whole", "parts"):
        shutil.rmtree(tmp_path / output, ignore_errors=True)  # a hundred of them would fill a disk
    row = f"| `{name}` | {size} | {run.said[-1]} |"
    if code:
        row = f"| `{name}` | {size} | `{run.said[-1]}`: {run.errors[-1].removeprefix('error: ')} | | | |"
    print(row)
    assert code in (0, 2), (code, run.said, run.errors)
    assert row in (ROOT / "docs" / "models.md").read_text(), row


def live_through(name: str, size: int, dataset: str) -> int:
    """What a user does with a model, in this process; returns the first exit code that is not 0.

    Its last line has the cells of the model's row, or the program that refused it.
    """
    Path("family.yaml").write_text(CONFIG.format(name=name, size=size))
    data = ["--data-path", dataset, "--batch-size", "4"]
    train = ["--cfg", "family.yaml", *data, "--output"]
    whole, parts = (Path(output) / name / "default" for output in ("whole", "parts"))
    resume = ["--resume", str(whole / "best.pth"), *data]
    for program, argv in (
        (main, [*train, "whole"]),
        (main, [*train, "parts", "--opts", "TRAIN.MAX_STEPS", "1"]),
        (main, [*train, "parts"]),
        (test, resume),
        (visual, [*resume, "--examples", "1"]),
    ):
        if code := program.main(argv):
            print(Path(program.__file__).name, flush=True)
            return code
    assert digest(whole) == digest(parts), "the resumed run is not bit-identical"
    model = load_model(whole / "best.pth", torch.device("cpu")).model
    default, classic = choose_default_layer(model, "layercam", size), choose_classic_layer(model)
    grids = ["{}x{}".format(*grid_of_layer(model, path, size)) for path in (*default.split("*"), classic)]
    images = torch.randn(1, 3, size, size).repeat(6, 1, 1, 1)
    for recipe in (CamRecipe("layercam", default), CamRecipe("gradcam", classic)):
        assert compute_heat_maps(model, images, [recipe], range(6)).maps[0].any(), recipe
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    cells = [f"{millions:.1f}", f"`{default}`", f"`{classic}`", ", ".join(grids)]
    print(" | ".join(cells), flush=True)
    return 0
