"""Measures this program beside its peers: all take turns, medians and ratios over the rounds."""

import importlib
import json
import tempfile
from pathlib import Path

from tools.base import cli
from tools.base.errors import UsageError

# benchmark -> (its module, what it measures)
BENCHMARKS = {
    "model": ("model", "a training step and a forward pass of Swin-T, against timm's and torchvision's"),
    "loader": ("loader", "prepared photos to augmented batches, against torchvision's ImageFolder"),
    "prepare": ("prepare", "originals to prepared photos, against Pillow's full decode"),
    "test": ("scoring", "test.py over many photos, against one at a time"),
    "cam": ("scoring", "visual.py over many photos, against one at a time"),
    "memory": ("memory", "activations kept for backward, in bytes, and the largest batch that fits"),
    "start": ("start", "--help, and the first training step of a new process"),
    "growth": ("growth", "time and memory of prepare, train and test as the number of photos grows"),
}
# flag -> (default, help), for all benchmarks and for each module. The default gives the type, see `add_flag`.
FLAGS = {
    "--rounds": (9, "rounds; each times everything once"),
    "--threads": (0, "threads of torch, 0 for one per core"),
    "--json": (None, "file that receives the rows and a description of the machine"),
}
CFG = {"--cfg": ("configs/sample.yaml", "model, with fresh weights")}
DATA = {"--data-path": (None, "prepared data set, instead of drawn photos")}
SIZE = {"--size": (("swin_t", "toy"), "size of the model")}
MODULE_FLAGS: dict[str, dict] = {
    "model": {
        **SIZE,
        "--batch": ([8, 16], "batch sizes"),
        "--dtype": (("fp32", "bf16", "fp16"), "autocast of the step"),
        "--compile": (False, "torch.compile all models"),
        "--only": (["train", "eval", "loop"], "some rows only"),
    },
    "loader": {
        **DATA,
        "--photos": (256, "training photos per round"),
        "--workers": ([0, 2], "loader processes; 0 gives the figure per core"),
    },
    "prepare": {
        "--data-path": (None, "folder of JPEG originals, instead of drawn ones"),
        "--photos": (6, "photos per round"),
    },
    "scoring": {
        **DATA,
        **CFG,
        **SIZE,
        "--split": (("test", "train", "val"), "split of the data set"),
        "--photos": (600, "photos per pass"),
        "--resume": (None, "checkpoint to use instead of --cfg"),
        "--batch-size": (32, "images per batch"),
        "--workers": (2, "loader processes or threads"),
    },
    "memory": {**SIZE, "--budget": (8.0, "memory of the card to fill, GiB")},
    "start": {},
    "growth": {
        **CFG,
        "--rounds": (1, "rounds, which take minutes each"),
        "--sizes": ([1000, 4000, 16000], "numbers of training photos"),
    },
}
EPILOG = "benchmarks\n" + "\n".join(f"  {name:8} {what}" for name, (_, what) in BENCHMARKS.items())


def add_flag(parser: cli.Parser, flag: str, default: object, text: str) -> None:
    """Adds a flag of the default's type: None takes a text, a tuple one of its items, a list one or more of a kind."""
    options: dict = {"default": default, "type": str if default is None else type(default)}
    if default is False:
        options = {"action": "store_true"}
    elif isinstance(default, tuple):
        options = {"default": default[0], "choices": default}
    elif isinstance(default, list):
        options |= {"nargs": "+", "type": type(default[0])}
        options |= {"choices": default} if isinstance(default[0], str) else {"metavar": "N"}
    shown = f" (default: {options['default']})" if options.get("default") is not None else ""
    parser.add_argument(flag, help=text + shown, **options)


@cli.command
def main(argv: list[str]) -> int:
    """Parses `argv`, measures, prints a table and writes JSON on request."""
    named = next((word for word in argv if word in BENCHMARKS), None)
    module = BENCHMARKS[named][0] if named else ""
    parser = cli.Parser(prog="python -m tools bench", description=__doc__, epilog=EPILOG)
    parser.add_argument("benchmark", choices=BENCHMARKS, help="what to measure; BENCHMARK --help shows its own flags")
    for flag, (default, text) in (FLAGS | MODULE_FLAGS.get(module, {})).items():
        add_flag(parser, flag, default, text)
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.threads < 0:
        raise UsageError("--rounds must be 1 or more, --threads 0 or more")

    import torch

    from tools.base.files import write_bytes
    from tools.bench.rounds import format_markdown, to_record

    args.threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        args.folder = Path(name)
        rows = importlib.import_module(f"tools.bench.{module}").measure(args)
    print(format_markdown(rows))
    if args.json:
        write_bytes(Path(args.json), (json.dumps(to_record(args.benchmark, argv, rows), indent=1) + "\n").encode())
    return 0
