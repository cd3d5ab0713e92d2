"""Benchmark: how long --help takes, and main.py until its first training step is done."""

import tempfile
from functools import partial
from pathlib import Path

from tools.bench.commands import prepare_sample, run
from tools.bench.rounds import Row, compare, interleave

BARE, HELP = "python -c pass", "python main.py --help"
IMPORTS, STEP = 'python -c "import torch, timm"', "python main.py, one training step, its checkpoint and the end"
# The steps of this Swin take milliseconds, so that the start is what is timed.
CONFIG = """
MODEL: {NAME: start, PRETRAINED: none, SWIN: {EMBED_DIM: 16, DEPTHS: [2, 2], NUM_HEADS: [2, 4], WINDOW_SIZE: 4}}
DATA: {IMG_SIZE: 32, BATCH_SIZE: 8, NUM_WORKERS: 0}
TRAIN: {EPOCHS: 1, WARMUP_EPOCHS: 0, MAX_STEPS: 1}
"""


def measure(args) -> list[Row]:
    """Rows of both pairs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset, config = prepare_sample(folder, 16, 8, 8), folder / "start.yaml"
        config.write_text(CONFIG)
        step = ["main.py", "--cfg", config, "--data-path", dataset, "--output", folder / "output", "--overwrite"]
        light = {BARE: partial(run, "-c", "pass"), HELP: partial(run, "main.py", "--help")}
        heavy = {IMPORTS: partial(run, "-c", "import torch, timm"), STEP: partial(run, *step)}
        return [
            *compare(interleave(light, args.rounds), {HELP: 1 / 10}, {HELP: "bar: 10 bare starts"}),
            *compare(interleave(heavy, args.rounds), {STEP: 1 / 3}, {STEP: "bar: 3 bare imports"}),
        ]
