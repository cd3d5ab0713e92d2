"""Digests of three short training runs and of one scoring, to compare two versions of the program on one machine.

    python tests/golden/digests.py > before.json        # then change the program
    python tests/golden/digests.py > after.json
    diff before.json after.json

Bits differ between processors and library versions, so the output is compared and not committed. The run on real
photos needs the course's data and an EfficientNet-Lite0 weight file; it is left out where they are absent.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = Path(os.environ.get("PLANT_DATASET", ROOT.parent / "shared" / "data" / "plant_dataset"))
WEIGHTS = ROOT.parent / "shared" / "weights" / "tf_efficientnet_lite0.safetensors"
SAMPLE = ["--cfg", "configs/sample.yaml"]
TEN_UPDATES = ["TRAIN.MAX_STEPS", 10]


def run(*words: object) -> None:
    """Runs Python with `words` in the root of the repository on one thread; raises when it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, words)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)


def digest_of(checkpoint: Path) -> str:
    """SHA-256 over every tensor of a checkpoint by its sorted name, and over its plain training state."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    digest = hashlib.sha256()

    def visit(name: str, value: object) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(name.encode() + value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                visit(f"{name}.{key}", value[key])

    for part in ("model", "model_ema", "optimizer", "validation"):
        visit(part, content.get(part, {}))
    plain = ("step", "epoch", "best", "sums", "skipped", "validated", "thresholds", "temperatures", "micro_batch")
    digest.update(repr([content.get(key) for key in plain]).encode())
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def drawn(folder: Path) -> dict:
    """Two epochs of the sample Swin on drawn leaves, on one rank and on two; its scores and a heat map."""
    raw, dataset, output = folder / "raw", folder / "dataset", folder / "output"
    run("-m", "tools", "sample", "--dst", raw, "--counts", 160, 32, 40)
    run("process_dataset.py", "--src", raw, "--dst", dataset)
    run("main.py", *SAMPLE, "--data-path", dataset, "--output", output, "--opts", "TRAIN.EPOCHS", 2)
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "main.py"]
    run(*ranks, *SAMPLE, "--data-path", dataset, "--output", output, "--tag", "two", "--batch-size", 8,
        "--opts", "TRAIN.EPOCHS", 2)  # fmt: skip
    best = output / "sample" / "default" / "best.pth"
    run("test.py", "--resume", best, "--data-path", dataset, "--to", folder / "scores")
    run(
        "visual.py", "--resume", best, "--image", next((raw / "test" / "images").glob("*.jpg")), "--to", folder / "maps"
    )
    metrics = json.loads((folder / "scores" / "metrics.json").read_text())
    places = ("checkpoints", "split")  # paths, and the digest of a file that holds paths
    return {
        "sample, one rank": digest_of(output / "sample" / "default" / "last.pth"),
        "sample, two ranks": digest_of(output / "sample" / "two" / "last.pth"),
        "heat map": sha256(next((folder / "maps").glob("*_cam.png"))),
        "predictions.csv": sha256(folder / "scores" / "predictions.csv"),
        "metrics.json": {key: value for key, value in metrics.items() if key not in places},
    }


def real(folder: Path) -> dict:
    """Ten updates of EfficientNet-Lite0 from ImageNet's weights on the course's photos."""
    if not (PHOTOS.is_dir() and WEIGHTS.is_file()):
        return {}
    dataset, output = folder / "real", folder / "real_output"
    run("process_dataset.py", "--src", PHOTOS, "--dst", dataset)
    cfg = ["--cfg", "configs/tf_efficientnet_lite0.yaml", "--pretrained", WEIGHTS]
    run("main.py", *cfg, "--data-path", dataset, "--output", output, "--opts", *TEN_UPDATES)
    return {"Lite0, ten updates": digest_of(output / "tf_efficientnet_lite0" / "default" / "last.pth")}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        print(json.dumps(drawn(Path(place)) | real(Path(place)), indent=1))
