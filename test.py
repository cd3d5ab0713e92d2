"""Scores a trained model on the test photos: the course's accuracy over copies, and what it leaves out."""

import sys

from configs.load import load
from tools import cli
from tools.errors import UsageError

EPILOG = """
Without flags it takes the newest run's best.pth under output/ and dataset/test. Classes, preprocessing and thresholds
come from the checkpoint. Results: <folder of the checkpoint>/<split>/metrics.json
"""
FLAGS = ("--batch-size", "--data-path", "--zip", "--resume", "--amp-opt-level", "--output", "--tag")


@cli.command
def main(argv: list[str]) -> int:
    """Parses `argv`, scores, prints and writes."""
    parser = cli.Parser(prog="test.py", description=__doc__, epilog=EPILOG)
    parser.add_argument("--cfg", metavar="FILE", help="score the run of this config (and --tag)")
    parser.add_argument("--opts", nargs="+", action="extend", metavar="KEY VALUE", help="set config keys")
    parser.add_argument("--split", default="test", choices=["train", "val", "test"], help="photos to score")
    parser.add_argument("--weights", default="ema", choices=["ema", "raw"], help="of a last.pth with both")
    parser.add_argument("--verbose", action="store_true", help="a line an image")
    cli.add_config_flags(parser, FLAGS)
    args = parser.parse_args(argv)
    config = load(args.cfg, args.opts, cli.overrides(args)).config

    from pathlib import Path

    from tools.allocator import keep_freed_memory
    from tools.distributed import choose_device, process_group, ranks_from_environment

    keep_freed_memory()
    path = Path(config.OUTPUT) / config.MODEL.NAME / config.TAG / "best.pth" if args.cfg else None
    ranks = ranks_from_environment()
    device = choose_device(ranks)
    with process_group(ranks, config.DIST.BACKEND, device, config.DIST.TIMEOUT_SECONDS):
        return referee(config, config.MODEL.RESUME or path, args, ranks, device)


def referee(config, checkpoint_path, args, ranks, device) -> int:
    """Scores one checkpoint on one split."""
    import json

    from data.datasets import describe, scan_split
    from tools.assemble import find_checkpoint, load_predictor, predict_split
    from tools.files import write_bytes
    from tools.logger import progress
    from tools.metrics import score

    path, why = find_checkpoint(checkpoint_path, config.OUTPUT)
    predictor = load_predictor(path, device, args.weights)
    split = scan_split(config.DATA.DATA_PATH, args.split, config.DATA.ZIP_MODE, predictor.classes)
    if not split.photos:
        raise UsageError(f"{split.where} holds no photos")
    logits, truth = predict_split(
        predictor, split, config.DATA, config.AMP, ranks, device, lambda batches: progress(batches, "scoring")
    )
    scores = score(logits, truth, predictor.targets, predictor.thresholds)
    if not ranks.first:
        return 0
    for line in (why, *split.notes, describe(split)):
        print(line)
    if args.verbose:
        print_photos(split, logits)
    print_scores(scores, predictor)
    target = path.parent / args.split / "metrics.json"
    content = {
        "checkpoint": str(path),
        "sha256": predictor.sha256,
        "step": predictor.step,
        "split": split.where,
        "data_digest": split.digest(),
        "classes": list(predictor.classes),
        "targets": predictor.targets,
        **scores,
    }
    write_bytes(target, (json.dumps(content, indent=1) + "\n").encode())
    print(f"written: {target}")
    return 0


def print_photos(split, logits) -> None:
    """The course project's line for every copy."""
    from data.labels import label_name

    top = {photo.file: split.classes[row.argmax()] for photo, row in zip(split.photos, logits, strict=True)}
    for copy in split.copies:
        actual, predicted = split.classes[copy.classes[0]], top[copy.file]
        print(
            f"Image: {copy.name}, Actual: {actual} {label_name(actual)}, Predicted: {predicted} {label_name(predicted)}"
        )


def print_scores(scores: dict, predictor) -> None:
    """The course project's lines, then what they do not say."""
    from data.labels import label_name

    for code, entry in zip(predictor.classes, scores["per_class"], strict=True):
        share = (
            "no photos"
            if entry["accuracy"] is None
            else (f"{100 * entry['accuracy']:.2f}% ({entry['right']} of {entry['copies']})")
        )
        print(f"Accuracy for {code} {label_name(code)}: {share}")
    right = sum(entry["right"] for entry in scores["per_class"])
    print(
        f"Overall Accuracy: {100 * scores['accuracy']:.2f}% ({right} of {scores['copies']} copies; at most "
        f"{100 * scores['ceiling']:.2f}%, for a photo with two labels is two copies)"
    )
    print(
        f"hit@1: {100 * scores['hit1']:.2f}%  exact match: {100 * scores['exact']:.2f}%  "
        f"macro-F1: {scores['macro_f1']:.4f}  ({scores['photos']} photos)"
    )


if __name__ == "__main__":
    sys.exit(main())
