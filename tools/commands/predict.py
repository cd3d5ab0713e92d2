"""Names the diseases on photos of any size, given as files, folders or patterns."""

import re
import sys
from argparse import ArgumentTypeError
from collections import Counter, defaultdict
from contextlib import ExitStack

from configs.flags import add_config_flags, overrides
from configs.load import load
from tools.base import cli
from tools.base.errors import DataError, UsageError, listing
from tools.base.files import check_output_file
from tools.base.tables import format_table, to_utf8
from tools.base.threads import batches, in_threads

EPILOG = """
examples
  python -m tools predict orchard/ --csv orchard.csv          every photo under a folder, newest run
  python -m tools predict a.jpg 'b*.jpg' --json -             JSON to stdout
  python -m tools predict orchard/ --csv part1.csv --shard 1/3   a third of them; join merges the parts
Rows are added while the command runs. After a stop, the same command continues with the missing photos. A photo that
cannot be read has a row with the error.
A photo is "unsure" when its confidence is below a limit. Of the validation photos at or above this limit, at most the
share --abstain-at was predicted wrongly.
"""
FLAGS = ("--batch-size", "--amp-opt-level", "--device", "--output", "--tta", "--decide")


def shard(text: str) -> slice:
    """Type of --shard: `I/N`, the photos I, I + N, I + 2 N, ..."""
    match = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", text)
    if not match or int(match[1]) > int(match[2]):
        raise ArgumentTypeError(f"{text} must be I/N with I from 1 to N, such as 1/3")
    return slice(int(match[1]) - 1, None, int(match[2]))


@cli.command
def main(argv: list[str]) -> int:
    """Parses `argv`, predicts, prints or writes."""
    parser = cli.Parser(prog="python -m tools predict", description=__doc__, epilog=EPILOG)
    add = parser.add_argument
    add("photos", nargs="+", metavar="PHOTO", help="file, folder or pattern")
    add("--resume", nargs="+", action="extend", default=[], metavar="FILE", help="checkpoints, averaged")
    add("--csv", metavar="FILE", help="write a CSV, or continue it (- for stdout)")
    add("--json", metavar="FILE", help="write JSON, or continue it (- for stdout)")
    add("--overwrite", action="store_true", help="start the files of --csv and --json from scratch")
    add("--shard", type=shard, default=slice(None), metavar="I/N", help="part I of N, for N machines")
    risk = "share of wrong answers to allow (default 0.05)"
    add("--abstain-at", type=cli.share, default=0.05, metavar="RISK", help=risk)
    add("--max-bad", type=int, default=0, metavar="N", help="succeed with up to N unreadable photos")
    add_config_flags(parser, FLAGS)
    args = parser.parse_args(argv)
    if args.max_bad < 0:
        raise UsageError(f"--max-bad {args.max_bad} is below 0")
    if args.csv and args.csv == args.json:
        raise UsageError(f"--csv and --json both write to {args.csv}; give two names")
    return predict(load(None, None, overrides(args)), args)


def predict(loaded, args) -> int:
    """Predicts photo by photo; prints a line for each, or writes a row and prints a summary at the end."""
    from data.images import note_ignored
    from data.loading.split import find_photos
    from tools.checkpoint.find import find_checkpoints
    from tools.evaluate.predictor import load_predictor
    from tools.runtime.distributed import Ranks, choose_device
    from tools.runtime.memory import keep_freed_memory

    keep_freed_memory()
    paths, why = find_checkpoints(args.resume, loaded.config.OUTPUT)
    found, ignored = find_photos(args.photos)
    for flag, target in (("--csv", args.csv), ("--json", args.json)):
        check_output_file(flag, target, [*paths, *found])
    device = choose_device(Ranks(), loaded.config.DEVICE)
    predictor = load_predictor(paths, device, decide_by=loaded.given("TEST.DECIDE_BY"), tta=loaded.given("TEST.TTA"))
    if "-" not in (args.csv, args.json):  # else stdout is for the rows
        print(why)
    summary = Summary(predictor.labels)
    record(predictor, found[args.shard], summary, loaded.config, args)
    if len(summary.errors) > args.max_bad or not summary.num_predicted:
        raise DataError(
            f"{listing(summary.errors, '; ', 3)} ({len(summary.errors)} unreadable photos; "
            f"--max-bad {len(summary.errors)} accepts that)"
        )
    for line in (*(f"left out: {error}" for error in summary.errors), *note_ignored("photos", ignored)):
        print(cli.printable(line), file=sys.stderr)
    return 0


def record(predictor, photos, summary, config, args) -> None:
    """Predicts the photos that the files of --csv and --json lack, and adds them; without files, prints a line each."""
    from tools.base.log import progress, say
    from tools.evaluate.prediction_files import CsvFormat, JsonFormat, PredictionFile

    names = {to_utf8(str(photo)): photo for photo in photos}
    made_by = f"{predictor.fingerprint()}-{args.abstain_at:g}"
    forms = (args.csv, CsvFormat(predictor.labels, made_by)), (args.json, JsonFormat(predictor.labels, made_by))
    with ExitStack() as stack:
        files = [stack.enter_context(PredictionFile(to, form, args.overwrite)) for to, form in forms if to]
        todo = []
        for name, photo in names.items():
            if files and all(name in file.known for file in files):
                summary.add(files[0].known[name])
            else:
                todo.append(photo)
        rows = predict_photos(predictor, todo, args.abstain_at, config)
        waiting = []  # until a photo is predicted: where none can be, no file is made
        for row in progress(rows, "predicting", len(todo), "photo"):
            summary.add(row)
            waiting.append(row)
            while waiting and summary.num_predicted:
                first = waiting.pop(0)
                for file in files:
                    file.write(first)
            if not files and not row.error:
                say(cli.printable(f"{row.image}: {row.prediction}{'  unsure' if row.unsure else ''}"))
    if files and summary.num_predicted and "-" not in (args.csv, args.json):
        print("\n".join([*summary.lines(), f"written: {', '.join(file.path for file in files)}"]))


def predict_photos(predictor, photos, risk: float, config):
    """Yields a `Row` for every photo, in order. Threads read the next photos while the model runs."""
    import torch

    from data.build import num_workers
    from data.images import read_image
    from tools.evaluate.prediction_files import Row
    from tools.evaluate.predictions import predictions_of
    from tools.evaluate.result import confidence_cut

    def read(path):
        try:
            return path, predictor.inputs(read_image(path)), ""
        except DataError as error:
            return path, None, str(error)

    cut = confidence_cut(predictor.rule, predictor.validation, risk)
    size, threads = config.DATA.BATCH_SIZE, num_workers(config.DATA.NUM_WORKERS) or 1
    for batch in batches(in_threads(read, photos, threads, 2 * size), size):
        readable = [(path, inputs) for path, inputs, error in batch if not error]
        predictions: list = []
        if readable:
            good, inputs = zip(*readable, strict=True)
            images = [torch.stack(member) for member in zip(*inputs, strict=True)]
            predictions = predictions_of(predictor.answer(images, good, config.AMP), predictor.labels)[::-1]
        for path, _, error in batch:
            found = None if error else predictions.pop()
            yield Row(str(path), found, bool(found and found.confidence < cut), error)


class Summary:
    """Counts of photos by folder: all, with each label, unsure, unreadable."""

    def __init__(self, labels):
        self.columns = ("photos", *labels, "unsure", "unreadable")
        self.counts: dict[str, Counter] = defaultdict(Counter)  # by index of the column: a label may be called unsure
        self.errors: list[str] = []
        self.num_predicted = 0

    def add(self, row) -> None:
        """Counts one `Row`."""
        counts, labels = self.counts[row.image.rpartition("/")[0] or "."], self.columns[1:-2]
        counts[0] += 1
        if row.error:
            counts[len(labels) + 2] += 1
            self.errors.append(row.error)
        else:
            counts.update(1 + labels.index(label) for label in row.prediction.labels)
            counts[len(labels) + 1] += row.unsure
            self.num_predicted += 1

    def lines(self, most: int = 40) -> list[str]:
        """A table with a line per folder, at most `most`, and one for all."""
        folders = sorted(self.counts.items())
        shown = [(cli.printable(folder), counts) for folder, counts in folders[:most]]
        if len(folders) != 1:
            shown.append(("all", sum(self.counts.values(), Counter())))
        rows = [(name, *(counts[column] for column in range(len(self.columns)))) for name, counts in shown]
        if len(folders) > most:
            rows.insert(most, (f"... and {len(folders) - most} more", *("" for _ in self.columns)))
        return format_table([("folder", *self.columns), *rows])
