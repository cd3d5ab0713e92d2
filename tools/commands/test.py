"""Scores a trained model on the test photos: the course's accuracy over copies, and all that it leaves out."""

from functools import partial

from configs.flags import add_config_flags, overrides
from configs.load import load
from tools.base import cli

EPILOG = """
Without flags it takes the newest run's best.pth under output/ and dataset/test. Classes, preprocessing, calibration and
thresholds come from the checkpoint. Results: <folder of the checkpoint>/<split>/ with metrics.json, predictions.csv,
report.html and its pictures

examples
  python test.py                                              the newest run on dataset/test
  python test.py --resume a.pth b.pth --tta all               two checkpoints averaged, eight views a photo
  python test.py --split val --abstain-at 0.05                how many photos it can answer with 95 % right
"""


FLAGS = (
    "--batch-size",
    "--data-path",
    "--zip",
    "--follow-links",
    "--amp-opt-level",
    "--output",
    "--tag",
    "--tta",
    "--decide",
)


WORST = 24  # mistakes that are shown


@cli.command
def main(argv: list[str]) -> int:
    """Parses `argv`, scores, prints and writes."""
    parser = cli.Parser(prog="test.py", description=__doc__, epilog=EPILOG)
    parser.add_argument("--cfg", metavar="FILE", help="score the run of this config (and --tag)")
    parser.add_argument("--opts", nargs="+", action="extend", metavar="KEY VALUE", help="set config keys")
    parser.add_argument(
        "--resume", nargs="+", action="extend", default=[], metavar="FILE", help="checkpoints to score, averaged"
    )
    parser.add_argument("--split", default="test", choices=["train", "val", "test"], help="photos to score")
    parser.add_argument("--weights", default="ema", choices=["ema", "raw"], help="of a last.pth with both")
    parser.add_argument("--abstain-at", type=cli.share, metavar="RISK", help="share of wrong answers to stay under")
    parser.add_argument("--to", metavar="FOLDER", help="where results go (default: beside the checkpoint)")
    parser.add_argument("--verbose", action="store_true", help="a line an image")
    add_config_flags(parser, FLAGS)
    args = parser.parse_args(argv)
    loaded = load(args.cfg, args.opts, overrides(args))
    run = loaded.named_run(args.cfg)

    from tools.runtime.distributed import choose_device, process_group, ranks_from_environment
    from tools.runtime.memory import keep_freed_memory

    keep_freed_memory()
    ranks = ranks_from_environment()
    device = choose_device(ranks)
    dist = loaded.config.DIST
    with process_group(ranks, dist.BACKEND, device, dist.TIMEOUT_SECONDS):
        return referee(loaded, args, run, ranks, device)


def referee(loaded, args, run, ranks, device) -> int:
    """Scores one or several checkpoints on one split; `run` is the folder that was named, or None."""
    from pathlib import Path

    from data.build import build_split
    from data.loading.split import describe
    from tools.base.files import check_output
    from tools.base.log import progress
    from tools.checkpoint.find import find_checkpoints
    from tools.evaluate.predictor import load_ensemble, predict_split
    from tools.evaluate.result import confidence_cut, evaluate

    config = loaded.config
    resume = args.resume or ([config.MODEL.RESUME] if config.MODEL.RESUME else [])
    paths, why = find_checkpoints(resume, config.OUTPUT, run)
    folder = Path(args.to) if args.to else paths[0].parent / args.split
    check_output("--to", folder, photos=config.DATA.DATA_PATH)
    ensemble = load_ensemble(paths, device, args.weights, loaded.given("TEST.DECIDE_BY"), loaded.given("TEST.TTA"))
    split = build_split(config.DATA, args.split, ensemble.classes)
    watch = partial(progress, description="scoring")
    logits, truth = predict_split(ensemble, split, config.DATA, config.AMP, ranks, device, watch)
    if not ranks.first:
        return 0

    digest = split.digest()
    result = evaluate(ensemble.rule, logits, truth, digest in {m.data_digest[1] for m in ensemble.members})
    notes = [why, *split.notes, describe(split)]
    if digest in {m.data_digest[0] for m in ensemble.members}:
        notes.append("these are the photos it was trained on: the figures say nothing about new ones")
    abstaining = None
    if args.abstain_at is not None:
        cut = confidence_cut(ensemble.rule, ensemble.validation, args.abstain_at)
        abstaining = result.abstaining(args.abstain_at, cut)
    print("\n".join(notes))
    if args.verbose:
        print_photos(split, result)
    print_scores(result, ensemble, abstaining)
    write_results(folder, result, ensemble, split, {"tta": ensemble.tta, "data_digest": digest}, abstaining)
    print(f"written: {folder}/metrics.json, predictions.csv, report.html and its pictures")
    return 0


def write_results(folder, result, ensemble, split, scored: dict, abstaining: dict | None) -> None:
    """metrics.json, predictions.csv, the pictures and report.html; `scored`: how, for the first and the last."""
    import json

    from tools.base.files import write_bytes
    from tools.evaluate.predictions import Predictions, to_csv
    from tools.render.figures import draw_confusion, draw_precision_recall, draw_reliability
    from tools.render.score_page import score_page

    rule, labels = ensemble.rule, ensemble.labels
    content = {
        "checkpoints": [{"path": str(m.path), "sha256": m.sha256, "step": m.step} for m in ensemble.members],
        "split": split.where,
        **scored,
        "classes": list(ensemble.classes),
        "labels": labels,
        "targets": rule.targets,
        "decide": rule.how,
        "thresholds": rule.thresholds.tolist(),
        "temperatures": rule.temperatures.tolist(),
        **result.to_dict(labels),
        **({"abstaining": abstaining} if abstaining else {}),
    }
    single = result.targets == "single"
    ap = [entry["ap"] for entry in result.scores["per_class"]]
    errors = content["calibration"]
    pictures = {
        "confusion.png": draw_confusion(
            result.confusion(),
            labels,
            "copies by true and predicted class" if single else "found, and taken for another",
            "true" if single else "true label: found (diagonal), missed",
            "predicted" if single else "label wrongly given instead",
        ),
        "pr_curves.png": draw_precision_recall(result.probability, result.truth, labels, ap),
        "reliability.png": draw_reliability(
            result.raw, result.probability, result.truth, (errors["before"], errors["after"])
        ),
    }
    page = score_page(
        result,
        labels,
        title=f"{ensemble.members[0].config.MODEL.NAME} on {split.where}",
        facts=[(key, content[key]) for key in ("split", "targets", "decide", "tta", "data_digest")]
        + [(entry["path"], f"step {entry['step']}, sha256 {entry['sha256']}") for entry in content["checkpoints"]],
        pictures=list(pictures.values()),
        mistakes=worst_mistakes(result, split, labels),
        abstaining=abstaining,
    )
    said = Predictions([p.name for p in split.photos], tuple(labels), result.probability, result.decision, result.truth)
    for name, picture in pictures.items():
        write_bytes(folder / name, picture)
    write_bytes(folder / "predictions.csv", to_csv(said, result.confidence))
    write_bytes(folder / "report.html", page.encode(errors="backslashreplace"))
    write_bytes(folder / "metrics.json", (json.dumps(content, indent=1) + "\n").encode())


def worst_mistakes(result, split, labels) -> list:
    """Thumbnails of the wrong decisions, the most confident first."""
    from data.images import decode, thumbnail
    from tools.evaluate.predictions import names
    from tools.render.page import Picture

    wrong = [row for row in (-result.confidence).argsort(kind="stable") if not result.right[row]]
    pictures = []
    for row in wrong[:WORST]:
        photo = split.photos[row]
        image = decode(split.source.read(photo.file), split.source.locate(photo.file))
        given = result.decision[row]
        shares = ", ".join(f"{100 * p:.0f} %" for p in result.probability[row][given])
        caption = (
            f"{photo.name}\ntrue: {names(labels, result.truth[row])}\ngiven: {names(labels, given)} ({shares})\n"
            f"confidence {100 * result.confidence[row]:.0f} %"
        )
        pictures.append(Picture(thumbnail(image, 168), caption))
    return pictures


def print_photos(split, result) -> None:
    """The course project's line for every copy."""
    from data.labels import label_name

    top = {p.file: split.classes[row.argmax()] for p, row in zip(split.photos, result.probability, strict=True)}
    for copy in split.copies:
        actual, predicted = split.classes[copy.classes[0]], top[copy.file]
        print(
            f"Image: {copy.name}, Actual: {actual} {label_name(actual)}, Predicted: {predicted} {label_name(predicted)}"
        )


def print_scores(result, ensemble, abstaining: dict | None) -> None:
    """The course project's lines, then what they do not say."""
    from tools.evaluate.result import overall_rows
    from tools.render.score_page import describe_abstaining

    scores = result.scores
    for code, label, entry in zip(ensemble.classes, ensemble.labels, scores["per_class"], strict=True):
        share = "no photos"
        if entry["accuracy"] is not None:
            share = f"{100 * entry['accuracy']:.2f}% ({entry['right']} of {entry['n']})"
        print(f"Accuracy for {code} {label}: {share}")
    right = sum(entry["right"] for entry in scores["per_class"])
    print(
        f"Overall Accuracy: {100 * scores['accuracy']:.2f}% ({right} of {scores['copies']} copies; at most "
        f"{100 * scores['ceiling']:.2f}%, for a photo with two labels is two copies)"
    )
    print(f"\n{scores['photos']} photos, per cent, with 95 % intervals:")
    for name, value, interval, remark in overall_rows(scores, result.bounds):
        print(f"  {name:<24} {value:>6} {interval:<14} {remark}".rstrip())
    errors = result.calibration()
    print(f"calibration error {100 * errors['before']:.2f} before, {100 * errors['after']:.2f} after calibration")
    if result.cross_fitted:
        print("thresholds and temperatures were chosen on these photos: each half was judged by the other half's")
    if abstaining:
        print(describe_abstaining(abstaining))
