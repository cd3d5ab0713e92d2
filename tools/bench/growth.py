"""Ruler: time and peak memory of prepare, a training epoch and scoring, as the photos grow in number."""

import multiprocessing
import shutil
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

VAL = 32  # photos of the validation split
COMMANDS = ("process_dataset.py", "main.py, one epoch", "test.py")
MEBI = 2**20
BAR = 0.9  # time a photo, and memory, of the fewest photos by those of more


@dataclass(frozen=True)
class Point:
    """What a command took on so many photos: seconds of every round, and the largest peak in bytes."""

    command: str
    photos: int
    seconds: list[float]
    memory: int


def add_flags(parser) -> None:
    """This ruler's own flags; a round takes minutes, so that one is the default."""
    parser.set_defaults(rounds=1)
    parser.add_argument("--sizes", nargs="+", type=int, default=[1000, 4000, 16000], metavar="N", help="photos")
    parser.add_argument("--drawn", type=int, default=300, metavar="N", help="photos drawn, the others are copies")
    parser.add_argument("--cfg", default="configs/sample.yaml", metavar="FILE", help="model, with fresh weights")
    parser.add_argument("--figure", metavar="FILE", help="draw both over the photos, as a PNG")


def measure(args) -> list:
    """Two rows a command and size: time (ratio: of a photo) and peak memory, against the first size."""
    from tools.base.errors import UsageError

    if min(args.sizes) < VAL or sorted(set(args.sizes)) != args.sizes:
        raise UsageError(f"--sizes must be {VAL} or more each, and grow")
    points = [point for photos in args.sizes for point in points_of(args, photos)]
    if args.figure:
        from tools.base.files import write_bytes
        from tools.render.figures import draw_growth

        by_command = {
            name: [(p.photos, statistics.median(p.seconds), p.memory / MEBI) for p in points if p.command == name]
            for name in COMMANDS
        }
        write_bytes(Path(args.figure), draw_growth(by_command))
    first = {point.command: point for point in reversed(points)}
    return [row for point in points for row in rows_of(point, first[point.command])]


def points_of(args, photos: int) -> list[Point]:
    """All commands on so many training photos, one after the other."""
    costs: dict[str, list] = {name: [] for name in COMMANDS}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_raw(folder / "raw", photos, args.drawn)
            dataset, output = folder / "dataset", folder / "output"
            epoch = ["TRAIN.EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0, "MODEL.PRETRAINED", "none"]
            ways = (
                ["process_dataset.py", "--src", folder / "raw", "--dst", dataset, "--no-duplicates"],
                ["main.py", "--cfg", args.cfg, "--data-path", dataset, "--output", output, "--opts", *epoch],
                ["test.py", "--data-path", dataset, "--output", output, "--split", "train"],
            )
            for command, words in zip(COMMANDS, ways, strict=True):
                costs[command].append(cost_of(words))
    return [
        Point(command, photos, [cost.seconds for cost in taken], max(cost.memory for cost in taken))
        for command, taken in costs.items()
    ]


def write_raw(folder: Path, photos: int, most: int) -> None:
    """A raw data set of so many training photos: `most` drawn, the others the same with a comment of their own."""
    from data.sample.write import write_sample

    drawn = min(photos, most)
    write_sample(folder, counts={"train": drawn, "val": VAL, "test": 1})
    shutil.rmtree(folder / "test")
    images, table = folder / "train" / "images", folder / "train" / "train_label.csv"
    header, *lines = table.read_text().splitlines()
    for number in range(drawn, photos):
        name, labels = lines[number % drawn].split(",")
        raw, comment = (images / name).read_bytes(), f"{number:08d}".encode()
        segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment  # COM, which decoders skip
        (images / f"copy{number:08d}.jpg").write_bytes(raw[:2] + segment + raw[2:])
        lines.append(f"copy{number:08d}.jpg,{labels}")
    table.write_text("\n".join([header, *lines]) + "\n")


def cost_of(words: list):
    """`tools.bench.commands.run` from a small process, whose own memory does not pass for the command's."""
    from tools.bench.commands import run

    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run, *words).result()


def rows_of(point: Point, first: Point) -> list:
    """Time and memory of a point, against the point with the fewest photos."""
    from tools.bench.rounds import Row, alone

    name, seconds = f"{point.command}, {point.photos} photos", statistics.median(point.seconds)
    memory, speed = f"{point.memory / MEBI:.0f} MiB", f"{point.photos / seconds:.0f} photos a second"
    if point is first:
        return [alone(name, point.seconds, speed), Row(f"{name}: peak memory", note=memory)]
    rates = [statistics.median(first.seconds) / first.photos / (each / point.photos) for each in point.seconds]
    less = first.memory / point.memory
    return [
        Row(name, seconds, statistics.median(rates), min(rates), max(rates), speed, BAR),
        Row(f"{name}: peak memory", None, less, less, less, memory, BAR),
    ]
