"""Measures this program beside its peers: all take turns, medians and ratios over the rounds."""

import importlib
import json
import tempfile
from pathlib import Path

from tools.base import cli
from tools.base.errors import UsageError

# module of tools/bench -> what it measures
BENCHMARKS = {
    "gpu": "what a GPU does with this program, in minutes; also `make gpu-check`",
    "model": "a training step and a forward pass of Swin-T, against timm's",
    "loader": "prepared photos to augmented batches, against torchvision's ImageFolder",
    "prepare": "originals to prepared photos, against Pillow's full decode; the whole command on small photos",
    "cam": "heat maps of Swin-T, against pytorch-grad-cam's",
    "start": "--help, and the first training step of a new process, against bare imports",
    "study": "how often simulated studies call equal arms different, and find a planted gap",
    "recipes": "CPU minutes to a val hit@1 of our recipe, timm's and fastai's, from the same photos and weights",
    "memory": "activations kept for backward, in bytes, and the largest batch that fits",
}
# flag -> (default, help), for all benchmarks and for each. The default gives the type, see `add_flag`.
COMMON_FLAGS = {
    "--rounds": (9, "rounds; each times everything once"),
    "--threads": (0, "threads of torch, 0 for one per core"),
    "--json": (None, "file that receives the rows and a description of the machine"),
}
SIZE = {"--size": (("swin_t", "toy"), "size of the model")}
FLAGS: dict[str, dict] = {
    "gpu": {
        "--cfg": ("configs/swin_tiny_patch4_window7_224.yaml", "config of the runs"),
        **SIZE,
        "--batch": (32, "images per training step"),
        "--dtype": (["bf16", "fp16", "fp32"], "precisions of the training steps"),
        "--compile": ("inductor", "backend of torch.compile"),
        "--ranks": ([1, 2], "numbers of ranks that are stopped and resumed"),
        "--photos": (256, "drawn training photos"),
        "--budget": (8.0, "memory in which the largest batch is searched, GiB"),
        "--minutes": (5.5, "no part begins later; a last part takes up to two minutes"),
    },
    "model": {
        **SIZE,
        "--batch": ([8, 16], "batch sizes"),
        "--dtype": (("fp32", "bf16", "fp16"), "autocast of the step"),
    },
    "loader": {
        "--data-path": (None, "prepared data set, instead of drawn photos"),
        "--photos": (256, "photos to draw"),
        "--workers": ([0, 2], "loader processes; 0 gives the figure per core"),
    },
    "prepare": {
        "--data-path": (None, "folder of JPEG originals, instead of drawn ones"),
        "--photos": (6, "photos per round"),
        "--linked": ([1000], "numbers of small photos that the whole command links, with its peak memory"),
        "--labels": ("scab rust powdery_mildew healthy frog_eye_leaf_spot complex", "labels of these, between spaces"),
    },
    "cam": SIZE,
    "recipes": {
        "--data-path": (None, "prepared photos"),
        "--weights": (None, "ImageNet weights of tf_efficientnet_lite0"),
        "--recipe": (["PlantSwin", "timm", "fastai"], "recipes; fastai is installed with pip install fastai"),
        "--minutes": (30.0, "CPU minutes of each training, about"),
    },
    "study": {
        "--predictions": (
            None,
            "pattern of the predictions.csv of runs that differ in their seed, e.g. 'out/s?/val/*.csv'",
        ),
        "--seeds": ([2, 3, 5], "seeds per arm"),
        "--arms": ([2, 4], "arms per study"),
        "--gap": (3.0, "points by which one arm is worse"),
        "--studies": (200, "studies per row"),
    },
    "memory": {**SIZE, "--budget": (8.0, "memory of the card to fill, GiB")},
}
EPILOG = "benchmarks\n" + "\n".join(f"  {name:8} {what}" for name, what in BENCHMARKS.items())


def add_flag(parser: cli.Parser, flag: str, default: object, text: str) -> None:
    """Adds a flag. Its type follows the default: None takes a text, a tuple one of its items, a list several values."""
    options: dict = {"default": default, "type": str if default is None else type(default)}
    if isinstance(default, tuple):
        options = {"default": default[0], "choices": default}
    elif isinstance(default, list):
        options |= {"nargs": "+", "type": type(default[0])}
        options |= {"choices": default} if isinstance(default[0], str) else {"metavar": "N"}
    shown = f" (default: {options['default']})" if options.get("default") is not None else ""
    parser.add_argument(flag, help=text + shown, **options)


@cli.command
def main(argv: list[str]) -> int:
    """Parses `argv`, measures, prints a table and writes JSON on request."""
    named = next((word for word in argv if word in BENCHMARKS), "")
    parser = cli.Parser(prog="python -m tools bench", description=__doc__, epilog=EPILOG)
    parser.add_argument("benchmark", choices=BENCHMARKS, help="what to measure; BENCHMARK --help shows its own flags")
    for flag, (default, text) in (COMMON_FLAGS | FLAGS.get(named, {})).items():
        add_flag(parser, flag, default, text)
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.threads < 0:
        raise UsageError("--rounds must be 1 or more, --threads 0 or more")

    import torch

    from tools.base.files import write_bytes
    from tools.bench.machine import describe_machine
    from tools.bench.rounds import FAILED, format_markdown

    args.threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(args.threads)
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as name:
        args.folder = Path(name)
        rows = importlib.import_module(f"tools.bench.{args.benchmark}").measure(args)
    print(", ".join(f"{name} {value}" for name, value in machine.items()), format_markdown(rows), sep="\n\n")
    if args.json:
        record = {"command": f"python -m tools bench {' '.join(argv)}", "machine": machine, "rows": rows}
        write_bytes(Path(args.json), (json.dumps(record, indent=1) + "\n").encode())
    return int(any(row["note"].startswith(FAILED) for row in rows))
