"""Scores a trained model on the test photos: the course's accuracy over label copies, and more."""

import json
from functools import partial
from pathlib import Path

from configs.flags import KEY_OF_FLAG, add_config_flags, overrides
from configs.load import check_acting, load
from tools.base import cli
from tools.base.files import check_output_folder, write_bytes
from tools.commands import hint_config_key

EPILOG = """
Without flags it takes the newest run's best.pth under output/ and dataset/test. Classes, preprocessing, calibration and
thresholds come from the checkpoint. Results: <folder of the checkpoint>/<split>/ with metrics.json, predictions.csv,
report.html and its pictures

--split held-out takes models of folds (main.py --folds): every training photo is predicted by those that were not
trained on it

examples
  python test.py                                              the newest run on dataset/test
  python test.py --resume a.pth b.pth --tta all               two checkpoints averaged, eight views per photo
  python test.py --split val --abstain-at 0.05                how many photos it can answer with 95 % right
  python test.py --split held-out --resume output/x/fold?/best.pth   all training photos, by the models of the folds
"""
FLAGS = (
    *("--batch-size", "--data-path", "--zip", "--follow-links", "--amp-opt-level"),
    *("--device", "--output", "--tag", "--tta", "--decide"),
)
ACTING = (  # config keys that are not the checkpoint's
    *(KEY_OF_FLAG[flag] for flag in FLAGS),
    *("MODEL.RESUME", "DATA.NUM_WORKERS", "AMP.DTYPE", "DIST.BACKEND", "DIST.TIMEOUT_SECONDS"),
)
MAX_MISTAKES = 24  # shown in the report


@cli.command
def main(argv: list[str]) -> int:
    """Parses `argv`, scores, prints and writes."""
    parser = cli.Parser(hint=hint_config_key, prog="test.py", description=__doc__, epilog=EPILOG)
    add = parser.add_argument
    add("--cfg", metavar="FILE", help="score the run of this config (and --tag)")
    add("--opts", nargs="+", action="extend", metavar="KEY VALUE", help="set config keys")
    add("--resume", nargs="+", action="extend", default=[], metavar="FILE", help="checkpoints to score, averaged")
    add("--split", default="test", choices=["train", "val", "test", cli.HELD_OUT], help="photos to score")
    add("--weights", default="ema", choices=["ema", "raw"], help="weights of a last.pth that has both (default ema)")
    add("--abstain-at", type=cli.share, metavar="RISK", help="largest share of wrong answers to allow")
    add("--to", metavar="FOLDER", help="where results go (default: beside the checkpoint)")
    add("--verbose", action="store_true", help="print one line per label copy")
    add_config_flags(parser, FLAGS)
    args = parser.parse_args(argv)
    check_acting(args.opts, ACTING)
    loaded = load(args.cfg, args.opts, overrides(args))
    run = loaded.named_run(args.cfg)

    from tools.runtime.distributed import choose_device, process_group, ranks_from_environment
    from tools.runtime.memory import keep_freed_memory

    keep_freed_memory()
    ranks = ranks_from_environment()
    device = choose_device(ranks, loaded.config.DEVICE)
    dist = loaded.config.DIST
    with process_group(ranks, dist.BACKEND, device, dist.TIMEOUT_SECONDS):
        return score_split(loaded, args, run, ranks, device)


def score_split(loaded, args, run, ranks, device) -> int:
    """Scores one or several checkpoints on one split; `run` is the run folder that --cfg named, or None."""
    from data.build import build_split
    from data.loading.split import describe
    from tools.base.log import progress
    from tools.checkpoint.find import find_checkpoints
    from tools.evaluate.held_out import hold_out
    from tools.evaluate.predictor import load_predictor, predict_split
    from tools.evaluate.result import confidence_cut, evaluate

    config = loaded.config
    resume = args.resume or ([config.MODEL.RESUME] if config.MODEL.RESUME else [])
    paths, why = find_checkpoints(resume, config.OUTPUT, run)
    folder = Path(args.to) if args.to else paths[0].parent / args.split
    check_output_folder("--to", folder, config.DATA.DATA_PATH)
    predictor = load_predictor(paths, device, args.weights, loaded.given("TEST.DECIDE_BY"), loaded.given("TEST.TTA"))
    parts: list = []
    if args.split == cli.HELD_OUT:
        split, parts = hold_out(predictor.members, config.DATA)
    else:
        split = build_split(config.DATA, args.split, predictor.label_set)
    watch = partial(progress, description="scoring")
    logits, truth = predict_split(predictor, split, config.DATA, config.AMP, ranks, device, watch, parts)
    if not ranks.first:
        return 0

    digest = split.digest()
    tuned_here = bool(parts) or digest in {m.data_digest[1] for m in predictor.members}
    result = evaluate(predictor.rule, logits, truth, tuned_here)
    abstaining = None
    if args.abstain_at is not None:
        cut = confidence_cut(predictor.rule, predictor.validation, args.abstain_at)
        abstaining = result.abstaining(args.abstain_at, cut)
    write_results(folder, result, predictor, split, digest, abstaining)  # before `| head` can end the command
    print("\n".join([why, *split.notes, describe(split)]))
    if digest in {m.data_digest[0] for m in predictor.members}:
        print("these are the photos it was trained on: the figures say nothing about new ones")
    if args.verbose:
        print_copies(split, result)
    print_scores(result, predictor, abstaining)
    print(f"written: {folder}/metrics.json, predictions.csv, report.html and its pictures")
    return 0


def write_results(folder, result, predictor, split, digest: str, abstaining: dict | None) -> None:
    """Writes metrics.json, predictions.csv, the pictures and report.html; `digest` is the split's."""
    from tools.evaluate.predictions import to_csv
    from tools.render.score_page import score_page

    labels = predictor.labels
    metrics = describe_predictor(predictor, split, digest) | result.to_dict(labels)
    if abstaining:
        metrics["abstaining"] = abstaining
    pictures = draw_pictures(result, labels, metrics["calibration"])
    facts = [(key, metrics[key]) for key in ("split", "targets", "decide", "tta", "data_digest")]
    facts += [(entry["path"], f"step {entry['step']}, sha256 {entry['sha256']}") for entry in metrics["checkpoints"]]
    page = score_page(
        result,
        labels,
        title=f"{predictor.members[0].config.MODEL.NAME} on {split.where}",
        facts=facts,
        pictures=list(pictures.values()),
        mistakes=worst_mistakes(result, split, labels),
        abstaining=abstaining,
    )
    for name, picture in pictures.items():
        write_bytes(folder / name, picture)
    table = to_csv([photo.name for photo in split.photos], labels, result, result.truth)
    write_bytes(folder / "predictions.csv", table)
    write_bytes(folder / "report.html", page.encode(errors="backslashreplace"))
    write_bytes(folder / "metrics.json", (json.dumps(metrics, indent=1) + "\n").encode())


def describe_predictor(predictor, split, digest: str) -> dict:
    """The first keys of metrics.json: what was scored, on which photos, and by which rule."""
    rule = predictor.rule
    return {
        "checkpoints": [{"path": str(m.path), "sha256": m.sha256, "step": m.step} for m in predictor.members],
        "split": split.where,
        "tta": predictor.tta,
        "data_digest": digest,
        "classes": list(predictor.label_set.folders),
        "labels": predictor.labels,
        "targets": rule.targets,
        "decide": rule.decide_by,
        "thresholds": rule.thresholds.tolist(),
        "temperatures": rule.temperatures.tolist(),
    }


def draw_pictures(result, labels: list[str], errors: dict) -> dict[str, bytes]:
    """File name -> PNG; `errors` is what `EvalResult.calibration` returned."""
    from tools.render.figures import draw_confusion, draw_precision_recall, draw_reliability

    words = ("labels given for each true label", "true label", "label given (diagonal: found)")
    if result.targets == "single":
        words = ("copies by true and predicted class", "true", "predicted")
    ap = [entry["ap"] for entry in result.scores["per_class"]]
    pair = errors["before"], errors["after"]
    return {
        "confusion.png": draw_confusion(result.confusion(), labels, *words),
        "pr_curves.png": draw_precision_recall(result.probability, result.truth, labels, ap),
        "reliability.png": draw_reliability(result.raw, result.probability, result.truth, pair),
    }


def worst_mistakes(result, split, labels) -> list:
    """Thumbnails of the wrong decisions with captions, the most confident first."""
    from data.images import decode, thumbnail
    from tools.evaluate.predictions import names
    from tools.render.page import THUMBNAIL_PX, Picture

    wrong = [row for row in (-result.confidence).argsort(kind="stable") if not result.right[row]]
    pictures = []
    for row in wrong[:MAX_MISTAKES]:
        photo = split.photos[row]
        image = decode(split.source.read(photo.file), split.source.locate(photo.file))
        truth, answer = (", ".join(names(labels, members[row])) for members in (result.truth, result.decision))
        caption = f"{photo.name}\ntrue: {truth}\ngiven: {answer} ({100 * result.confidence[row]:.1f}%)"
        pictures.append(Picture(thumbnail(image, THUMBNAIL_PX), caption))
    return pictures


def print_copies(split, result) -> None:
    """Prints the course project's line for every label copy."""
    names = split.labels.titles
    top = {p.file: names[row.argmax()] for p, row in zip(split.photos, result.probability, strict=True)}
    for copy in split.copies:
        print(f"Image: {copy.name}, Actual: {names[copy.classes[0]]}, Predicted: {top[copy.file]}")


def print_scores(result, predictor, abstaining: dict | None) -> None:
    """Prints the course project's lines, then the figures that it lacks."""
    from tools.evaluate.result import overall_lines
    from tools.render.score_page import describe_abstaining

    scores = result.scores
    for title, entry in zip(predictor.label_set.titles, scores["per_class"], strict=True):
        share = "no photos"
        if entry["accuracy"] is not None:
            share = f"{100 * entry['accuracy']:.2f}% ({entry['right']} of {entry['n']})"
        print(f"Accuracy for {title}: {share}")
    right = sum(entry["right"] for entry in scores["per_class"])
    print(
        f"Overall Accuracy: {100 * scores['accuracy']:.2f}% ({right} of {scores['copies']} copies; at most "
        f"{100 * scores['ceiling']:.2f}%: a photo with two labels is two copies)"
    )
    print(f"\n{scores['photos']} photos, per cent, with 95 % intervals:")
    print("\n".join(overall_lines(scores, result.bounds)))
    errors = result.calibration()
    print(f"calibration error {100 * errors['before']:.2f} before, {100 * errors['after']:.2f} after calibration")
    if result.cross_fitted:
        print("each half of these photos was scored with thresholds and temperatures fitted on the other half")
    if abstaining:
        print(describe_abstaining(abstaining))
