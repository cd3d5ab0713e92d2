"""Measures this program beside its peers: every way in turn, medians and ratios of the rounds."""

import importlib
import json
from pathlib import Path

from tools.base import cli
from tools.base.errors import UsageError

# ruler -> (its module, what it measures)
RULERS = {
    "model": ("model", "a training step and a forward pass of Swin-T, against timm's and torchvision's"),
    "loader": ("loader", "prepared photos to augmented batches, against torchvision's ImageFolder"),
    "prepare": ("prepare", "originals to prepared photos, against Pillow's full decode"),
    "test": ("scoring", "test.py over many photos, against one at a time"),
    "cam": ("scoring", "visual.py over many photos, against one at a time"),
    "memory": ("memory", "activations kept for backward, in bytes, and the largest batch that fits"),
    "start": ("start", "--help, and the first training step of a new process"),
    "growth": ("growth", "time and memory of prepare, train and test as the photos grow in number"),
}


EPILOG = "rulers\n" + "\n".join(f"  {name:8} {what}" for name, (_, what) in RULERS.items())


@cli.command
def main(argv: list[str]) -> int:
    """Parses `argv`, measures, prints a table and writes JSON where asked."""
    named = next((word for word in argv if word in RULERS), None)
    ruler = importlib.import_module(f"tools.bench.{RULERS[named][0]}") if named else None
    parser = cli.Parser(prog="python -m tools bench", description=__doc__, epilog=EPILOG)
    parser.add_argument("ruler", choices=RULERS, help="what is measured; RULER --help shows its own flags")
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="in which every way is timed once (9)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="of torch (0: one a core)")
    parser.add_argument("--json", metavar="FILE", help="write the rows and the machine there too")
    if hasattr(ruler, "add_flags"):
        ruler.add_flags(parser)
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.threads < 0:
        raise UsageError("--rounds must be 1 or more, --threads 0 or more")

    import torch

    from tools.base.files import write_bytes
    from tools.bench.rounds import record, table

    args.threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(args.threads)
    rows = ruler.measure(args)
    print(table(rows))
    if args.json:
        write_bytes(Path(args.json), (json.dumps(record(args.ruler, argv, rows), indent=1) + "\n").encode())
    return 0
