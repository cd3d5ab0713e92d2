"""Names the diseases on photos from anywhere: files, folders, patterns; of any size."""

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
    loaded = load(None, None, overrides(args))
    return predict(loaded, args)


def predict(loaded, args) -> int:
    """Predicts and gives the results out."""
    import json

    from data.loading.split import find_photos, loose_photos
    from tools.base.files import check_output
    from tools.base.log import progress
    from tools.checkpoint.find import find_checkpoints
    from tools.evaluate.predictions import Predictions, to_csv
    from tools.evaluate.predictor import load_ensemble, predict_split
    from tools.evaluate.result import confidence_cut
    from tools.runtime.distributed import Ranks, choose_device
    from tools.runtime.memory import keep_freed_memory

    keep_freed_memory()
    device = choose_device(Ranks())
    paths, why = find_checkpoints(args.resume, loaded.config.OUTPUT)
    found = find_photos(args.photos)
    for flag, target in (("--csv", args.csv), ("--json", args.json)):
        check_output(flag, target, [*paths, *found])
    photos, bad = readable(found, args.max_bad)
    ensemble = load_ensemble(paths, device, decide=loaded.given("TEST.DECIDE_BY"), tta=loaded.given("TEST.TTA"))
    rule, labels = ensemble.rule, ensemble.labels
    config, watch = loaded.config, partial(progress, description="predicting")
    split = loose_photos(photos, ensemble.classes)
    logits, _ = predict_split(ensemble, split, config.DATA, config.AMP, Ranks(), device, watch)
    probability = rule.probabilities(logits)
    decision = rule.decide(probability)
    confidence = rule.confidence(probability, decision)
    unsure = confidence < confidence_cut(rule, ensemble.validation, args.abstain_at)
    said = Predictions([str(path) for path in photos], tuple(labels), probability, decision)
    if args.csv:
        give_out(args.csv, to_csv(said, confidence, unsure))
    if args.json:
        give_out(args.json, (json.dumps(as_json(said, confidence, unsure), indent=1) + "\n").encode())
    if "-" not in (args.csv, args.json):
        print(why)
        for line in lines(said, confidence, unsure):
            print(line)
    for line in bad:
        print(f"left out: {line}", file=sys.stderr)
    return 0


def readable(paths, max_bad: int):
    """(photos that decode, what is wrong with the others). Raises DataError for more than `max_bad` of these."""
    from data.images import read_image

    if max_bad == 0:  # the first bad one ends the pass by itself, so none is read twice
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


def give_out(target: str, content: bytes) -> None:
    """Writes to a file, or to stdout for `-`."""
    from pathlib import Path

    from tools.base.files import write_bytes

    if target == "-":
        sys.stdout.write(content.decode())
    else:
        write_bytes(Path(target), content)


def as_json(said, confidence, unsure) -> list[dict]:
    """One object a photo."""
    from tools.evaluate.predictions import names

    return [
        {
            "image": image,
            "labels": names(said.labels, said.decision[row]).split(),
            "probabilities": {k: round(float(p), 6) for k, p in zip(said.labels, said.probability[row], strict=True)},
            "confidence": round(float(confidence[row]), 6),
            "unsure": bool(unsure[row]),
        }
        for row, image in enumerate(said.images)
    ]


def lines(said, confidence, unsure):
    """One line a photo: labels with their probabilities, and whether to doubt it."""
    for row, image in enumerate(said.images):
        pairs = zip(said.labels, said.probability[row], said.decision[row], strict=True)
        given = ", ".join(f"{label} {100 * p:.0f}%" for label, p, yes in pairs if yes)
        doubt = f"  (unsure: {100 * confidence[row]:.0f}%)" if unsure[row] else ""
        yield f"{image}: {given}{doubt}"
