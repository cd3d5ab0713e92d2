"""Names the diseases on photos of any size, given as files, folders or patterns."""

import sys
from functools import partial

from configs.flags import add_config_flags, overrides
from configs.load import load
from tools.base import cli
from tools.base.errors import DataError, UsageError

EPILOG = """
examples
  python -m tools predict orchard/ --csv orchard.csv          every photo under a folder, newest run
  python -m tools predict a.jpg 'b*.jpg' --json -             JSON to stdout
A photo is "unsure" when the model's confidence in its labels is below the one that kept the share of wrong answers in
validation at --abstain-at.
"""
FLAGS = ("--batch-size", "--amp-opt-level", "--output", "--tta", "--decide")


@cli.command
def main(argv: list[str]) -> int:
    """Parses `argv`, predicts, prints or writes."""
    parser = cli.Parser(prog="python -m tools predict", description=__doc__, epilog=EPILOG)
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="file, folder or pattern")
    parser.add_argument(
        "--resume", nargs="+", action="extend", default=[], metavar="FILE", help="checkpoints, averaged"
    )
    parser.add_argument("--csv", metavar="FILE", help="write a CSV (- for stdout)")
    parser.add_argument("--json", metavar="FILE", help="write JSON (- for stdout)")
    parser.add_argument(
        "--abstain-at",
        type=cli.share,
        default=0.05,
        metavar="RISK",
        help="share of wrong answers to allow (default 0.05)",
    )
    parser.add_argument("--max-bad", type=int, default=0, metavar="N", help="leave out up to N unreadable photos")
    add_config_flags(parser, FLAGS)
    args = parser.parse_args(argv)
    if args.max_bad < 0:
        raise UsageError(f"--max-bad {args.max_bad} is below 0")
    return predict(load(None, None, overrides(args)), args)


def predict(loaded, args) -> int:
    """Predicts and outputs the results."""
    import json

    from data.loading.split import find_photos, loose_photos
    from tools.base.files import check_output
    from tools.base.log import progress
    from tools.checkpoint.find import find_checkpoints
    from tools.evaluate.predictions import predictions_of, to_csv
    from tools.evaluate.predictor import load_predictor, predict_split
    from tools.evaluate.result import confidence_cut
    from tools.runtime.distributed import Ranks, choose_device
    from tools.runtime.memory import keep_freed_memory

    keep_freed_memory()
    config, device = loaded.config, choose_device(Ranks())
    paths, why = find_checkpoints(args.resume, config.OUTPUT)
    found = find_photos(args.photos)
    for flag, target in (("--csv", args.csv), ("--json", args.json)):
        check_output(flag, target, [*paths, *found])
    photos, bad = select_readable(found, args.max_bad)
    predictor = load_predictor(paths, device, decide_by=loaded.given("TEST.DECIDE_BY"), tta=loaded.given("TEST.TTA"))
    split = loose_photos(photos, predictor.classes)
    watch = partial(progress, description="predicting")
    logits, _ = predict_split(predictor, split, config.DATA, config.AMP, Ranks(), device, watch)
    answers = predictor.rule.answer(logits)
    unsure = answers.confidence < confidence_cut(predictor.rule, predictor.validation, args.abstain_at)
    names, predictions = [str(path) for path in photos], predictions_of(answers, predictor.labels)
    if args.csv:
        write_output(args.csv, to_csv(names, predictor.labels, answers, unsure=unsure))
    if args.json:
        entries = [to_json(*row) for row in zip(names, predictions, unsure, strict=True)]
        write_output(args.json, (json.dumps(entries, indent=1) + "\n").encode())
    if "-" not in (args.csv, args.json):
        print(why)
        for name, prediction, doubtful in zip(names, predictions, unsure, strict=True):
            print(f"{name}: {prediction}" + (f"  (unsure: {100 * prediction.confidence:.0f}%)" if doubtful else ""))
    for line in bad:
        print(f"left out: {line}", file=sys.stderr)
    return 0


def select_readable(paths, max_bad: int):
    """(photos that decode, the errors of the others). Raises DataError for more than `max_bad` errors."""
    from data.images import read_image

    if max_bad == 0:  # the pass itself ends at the first unreadable photo, so none is read twice
        return paths, []
    good, bad = [], []
    for path in paths:
        try:
            read_image(path)
            good.append(path)
        except DataError as error:
            bad.append(str(error))
    if len(bad) > max_bad or not good:
        raise DataError(f"{len(bad)} unreadable photos: {'; '.join(bad[:3])}; allow them with --max-bad {len(bad)}")
    return good, bad


def write_output(target: str, content: bytes) -> None:
    """Writes to a file, or to stdout for `-`."""
    from pathlib import Path

    from tools.base.files import write_bytes

    if target == "-":
        sys.stdout.write(content.decode())
    else:
        write_bytes(Path(target), content)


def to_json(name: str, prediction, unsure) -> dict:
    """The JSON object of one photo."""
    return {
        "image": name,
        "labels": list(prediction.labels),
        "probabilities": {label: round(p, 6) for label, p in prediction.probabilities.items()},
        "confidence": round(prediction.confidence, 6),
        "unsure": bool(unsure),
    }
