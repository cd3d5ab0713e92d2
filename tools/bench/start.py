"""Benchmark: how long --help takes, and main.py until its first training step is done."""

from functools import partial

from tools.bench.commands import prepare_sample, run
from tools.bench.rounds import Row, compare, interleave

# The steps of this Swin take milliseconds, so that the start is what is timed.
CONFIG = """
MODEL: {NAME: start, PRETRAINED: none, SWIN: {EMBED_DIM: 16, DEPTHS: [2, 2], NUM_HEADS: [2, 4], WINDOW_SIZE: 4}}
DATA: {IMG_SIZE: 32, BATCH_SIZE: 8, NUM_WORKERS: 0}
TRAIN: {EPOCHS: 1, WARMUP_EPOCHS: 0, MAX_STEPS: 1}
"""


def measure(args) -> list[Row]:
    """Rows of --help against bare Python, and of the first training step against importing torch and timm."""
    dataset, config = prepare_sample(args.folder, 16, 8, 8), args.folder / "start.yaml"
    config.write_text(CONFIG)
    flags = ["--cfg", config, "--data-path", dataset, "--output", args.folder / "output", "--overwrite"]
    shown, step = "python main.py --help", "python main.py, one training step, its checkpoint and the end"
    light = {"python -c pass": partial(run, "-c", "pass"), shown: partial(run, "main.py", "--help")}
    imports = partial(run, "-c", "import torch, timm")
    heavy = {'python -c "import torch, timm"': imports, step: partial(run, "main.py", *flags)}
    return [row for pair in (light, heavy) for row in compare(interleave(pair, args.rounds))]
