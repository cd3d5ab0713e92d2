"""Ruler: how long until --help is there, and until main.py has done its first training step."""

import tempfile
from pathlib import Path

BARE, HELP = "python -c pass", "python main.py --help"
IMPORTS, STEP = 'python -c "import torch, timm"', "python main.py, one training step, its checkpoint and the end"
# A Swin of which a step takes milliseconds, so that the start is what is timed.
CONFIG = """
MODEL: {NAME: start, PRETRAINED: none, SWIN: {EMBED_DIM: 16, DEPTHS: [2, 2], NUM_HEADS: [2, 4], WINDOW_SIZE: 4}}
DATA: {IMG_SIZE: 32, BATCH_SIZE: 8, NUM_WORKERS: 0}
TRAIN: {EPOCHS: 1, WARMUP_EPOCHS: 0, MAX_STEPS: 1}
"""


def measure(args) -> list:
    """Rows of both pairs, each in processes that take turns."""
    from tools.bench.commands import prepare_sample, run
    from tools.bench.rounds import compare, interleave

    with tempfile.TemporaryDirectory() as folder:
        dataset = prepare_sample(Path(folder), 16, 8, 8)
        config = Path(folder) / "start.yaml"
        config.write_text(CONFIG)
        step = ["main.py", "--cfg", config, "--data-path", dataset, "--output", Path(folder) / "output", "--overwrite"]
        light = {BARE: lambda: run("-c", "pass"), HELP: lambda: run("main.py", "--help")}
        heavy = {IMPORTS: lambda: run("-c", "import torch, timm"), STEP: lambda: run(*step)}
        return [
            *compare(interleave(light, args.rounds), BARE, {HELP: 1 / 10}, {HELP: "bar: 10 bare starts"}),
            *compare(interleave(heavy, args.rounds), IMPORTS, {STEP: 1 / 3}, {STEP: "bar: 3 bare imports"}),
        ]
