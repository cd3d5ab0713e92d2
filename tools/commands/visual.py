"""Shows where on the leaf a trained model looked: heat maps over photos, side by side, or scored against boxes."""

from configs.flags import add_config_flags, overrides
from configs.load import load
from tools.base import cli
from tools.base.errors import UsageError

EPILOG = """
Pictures go to <folder of the checkpoint>/heatmaps: <photo>_<label>_cam.png, <photo>_original.png and both with a title
in <photo>_<label>_pair.png; <photo>_<label>_<blocks, stages, epochs or side_by_side>.png; <photo>_targets.png;
mistake_01_<photo>.png. Layers are joined by + (mean of their maps) or * (product); quote them.

examples
  python visual.py --image photo.jpg                          the predicted label, newest run
  python visual.py --image a.jpg --target rust --classic      the course project's figure: Grad-CAM, last block
  python visual.py --examples 6 --compare stages              six photos of dataset/test, every label in turn
  python visual.py --split val                                all photos of a split
  python visual.py --mistakes 12 --split val                  the most confident wrong answers, with both maps
  python visual.py --image a.jpg --compare epochs             over the run's snapshots (TRAIN.SNAPSHOT_EPOCHS)
  python visual.py --score lesion_boxes.csv --split val train --method gradcam layercam --layer "blocks[4]" "blocks[6]"
"""


FLAGS = ("--batch-size", "--data-path", "--zip", "--follow-links", "--resume", "--tta", "--output", "--tag")


METHODS = ("gradcam", "gradcam++", "layercam", "eigencam", "scorecam")  # of tools.cam, which would import torch


COMPARISONS = ("blocks", "stages", "epochs", "targets")


@cli.command
def main(argv: list[str]) -> int:
    """Parses `argv`, then draws or scores."""
    parser = cli.Parser(prog="visual.py", description=__doc__, epilog=EPILOG)
    parser.add_argument("--cfg", metavar="FILE", help="use the run of this config (and --tag)")
    parser.add_argument("--image", nargs="+", action="extend", default=[], metavar="FILE", help="photos to explain")
    parser.add_argument("--examples", type=int, default=0, metavar="N", help="explain N photos of --split")
    parser.add_argument("--mistakes", type=int, default=0, metavar="N", help="the N surest wrong ones of --split")
    parser.add_argument("--score", metavar="BOXES.csv", help="measure maps of --split against boxes")
    parser.add_argument(
        "--split",
        nargs="+",
        choices=["train", "val", "test"],
        help="of --examples, --mistakes and --score (default test); alone: explain all of its photos",
    )
    parser.add_argument(
        "--target",
        default="predicted",
        metavar="LABEL",
        help="a label or its code (default: the predicted one)",
    )
    parser.add_argument("--method", nargs="+", choices=METHODS, help="how (default: see docs/results.md, Heatmaps)")
    parser.add_argument("--layer", nargs="+", metavar="PATH", help="e.g. layers[-1].blocks[-1].norm1")
    parser.add_argument("--classic", action="store_true", help="the course project's method and layer as the default")
    parser.add_argument("--compare", choices=COMPARISONS, help="side by side: last blocks, last stages, epochs, labels")
    parser.add_argument("--norm", default="norm1", choices=["norm1", "norm2"], help="of a Swin, for --compare")
    parser.add_argument("--full-size", action="store_true", help="draw over the photo at its own size")
    parser.add_argument(
        "--thorough", type=int, default=0, metavar="N", help="--score: N photos' insertion, deletion, ROAD, sanity too"
    )
    parser.add_argument("--weights", default="ema", choices=["ema", "raw"], help="of a last.pth with both")
    parser.add_argument("--to", metavar="FOLDER", help="where results go (default: beside the checkpoint)")
    add_config_flags(parser, FLAGS)
    args = parser.parse_args(argv)
    loaded = load(args.cfg, None, overrides(args))
    run = loaded.named_run(args.cfg)
    check(args)
    return score(loaded, args, run) if args.score else draw(loaded, args, run)


def check(args) -> None:
    """Raises UsageError for flags that do not go together."""
    if min(args.examples, args.mistakes, args.thorough) < 0:
        raise UsageError("--examples, --mistakes and --thorough take a number of photos")
    sources = [flag for flag in ("image", "examples", "mistakes", "score") if getattr(args, flag)]
    if len(sources) > 1 or not (sources or args.split):
        raise UsageError(
            "give photos with --image FILE ..., a number of them with --examples N or --mistakes N, all of them with "
            "--split NAME, or boxes with --score FILE; one of these"
        )
    if args.compare in ("blocks", "stages") and args.layer:
        raise UsageError(f"--compare {args.compare} names the layers itself; leave --layer out")
    if args.target != "predicted" and (args.score or args.mistakes or args.compare == "targets"):
        raise UsageError("--target does not go with --score, --mistakes and --compare targets, which name labels")
    if args.compare == "targets" and (args.score or args.mistakes):
        raise UsageError("--compare targets is for photos given by --image, --examples or --split")
    if args.mistakes and len(args.split or []) > 1:
        raise UsageError("--mistakes takes one --split")
    args.split = args.split or ["test"]


def draw(loaded, args, run) -> int:
    """Explains photos, a batch at a time. All of them are decoded before the first picture is written.

    Threads read and write beside the model, which would wait for pictures a third of the time otherwise.
    """
    from functools import partial

    from data.build import num_workers
    from tools.base.log import progress, say
    from tools.base.threads import in_threads
    from tools.evaluate.inference import VIEWS
    from tools.explain.photos import Subject, explain_photos
    from tools.render.album import Album

    predictors, folder, why = find_predictors(loaded, args, run)
    best, data = predictors[-1], loaded.config.DATA
    columns = columns_of(predictors, recipes_of(best.model, args))
    tta, size, threads = loaded.given("TEST.TTA") or "none", data.BATCH_SIZE, num_workers(data.NUM_WORKERS)
    subjects = list(chosen(loaded.config, args, best, tta))
    for _ in in_threads(Subject.check, subjects, threads, size):
        pass  # an unreadable one has raised its error
    print(why)
    explained = explain_photos(
        subjects,
        best.preprocess,
        columns,
        size,
        threads,
        target=None if args.target == "predicted" else best.class_index(args.target),
        every_label=bool(args.mistakes) or args.compare == "targets",
        predict=partial(decisions, best) if args.compare == "targets" else None,
        views=VIEWS[tta],
    )
    work = partial(written_lines, Album(folder, best.labels, args.full_size), columns, args)
    for lines in progress(in_threads(work, explained, threads, size), "explaining", len(subjects)):
        say("\n".join(lines))
    return 0


def written_lines(album, columns, args, explained) -> list[str]:
    """Writes the pictures of one photo, (its leaf, its rows); what is to be said of it."""
    from tools.render.album import warnings

    leaf, rows = explained
    return [write(album, leaf, rows, columns, args), *warnings(leaf, rows, columns, album.labels)]


def chosen(config, args, predictor, tta: str):
    """The photos that the command line asks for."""
    from tools.explain.photos import named_photos, split_photos

    if args.image:
        return named_photos(args.image)
    splits = splits_of(config, args, predictor)
    if args.mistakes:
        return surest_mistakes(predictor, splits[0], config.DATA, config.AMP, tta, args.mistakes)
    return split_photos(splits, len(predictor.classes), args.examples, args.compare == "targets")


def surest_mistakes(predictor, split, data, amp, tta: str, most: int):
    """At most `most` photos whose labels were decided wrongly, the most confident first.

    Args:
        data, amp: see `tools.evaluate.predictor.predict_split`.
        tta: see `tools.evaluate.predictor.Ensemble`.
    """
    from functools import partial
    from pathlib import Path

    import numpy as np

    from tools.base.log import progress
    from tools.evaluate.predictor import Ensemble, predict_split
    from tools.explain.photos import subject_of
    from tools.runtime.distributed import Ranks

    rule, device = predictor.rule, next(predictor.model.parameters()).device
    ensemble = Ensemble([predictor], rule, predictor.validation, tta)
    watch = partial(progress, description="predicting")
    logits, truth = predict_split(ensemble, split, data, amp, Ranks(), device, watch)
    probability = rule.probabilities(logits)
    decision = rule.decide(probability)
    order = np.argsort(-rule.confidence(probability, decision), kind="stable")
    wrong = [row for row in order if (decision[row] != truth[row]).any()][:most]
    for number, row in enumerate(wrong, 1):
        photo, given = split.photos[row], tuple(np.flatnonzero(decision[row]).tolist())
        yield subject_of(split, photo, f"mistake_{number:02d}_{Path(photo.name).stem}", given)


def decisions(predictor, images):
    """The labels that the model gives to images `[B, 3, S, S]`: `[B, C]` bool."""
    import torch

    with torch.no_grad():
        logits = predictor.model(images.to(next(predictor.model.parameters()).device)).float().cpu().numpy()
    return predictor.rule.decide(predictor.rule.probabilities(logits))


def splits_of(config, args, predictor):
    """The splits of --split."""
    from data.build import build_split

    return [build_split(config.DATA, name, predictor.classes) for name in args.split]


def find_predictors(loaded, args, run):
    """(models to look through, the best.pth last; the folder for results; a line that says which checkpoint)."""
    from pathlib import Path

    from tools.base.files import check_output
    from tools.checkpoint.find import find_checkpoints
    from tools.checkpoint.store import SNAPSHOTS
    from tools.evaluate.predictor import load_predictor
    from tools.runtime.distributed import choose_device, ranks_from_environment
    from tools.runtime.memory import keep_freed_memory

    keep_freed_memory()
    device = choose_device(ranks_from_environment())
    config = loaded.config
    (path,), why = find_checkpoints([config.MODEL.RESUME] if config.MODEL.RESUME else [], config.OUTPUT, run)
    paths = [path]
    if args.compare == "epochs":
        paths = [*sorted((path.parent / SNAPSHOTS).glob("*.pth")), path]
        if len(paths) == 1:
            raise UsageError(f"{path.parent / SNAPSHOTS} holds no epochs; TRAIN.SNAPSHOT_EPOCHS keeps some in training")
    folder = Path(args.to) if args.to else path.parent / "heatmaps"
    check_output("--to", folder, photos=config.DATA.DATA_PATH)
    return [load_predictor(each, device, args.weights) for each in paths], folder, why


def recipes_of(model, args):
    """The ways of making maps that the command line asks for, each method at each layer."""
    from tools.explain import cam

    methods, layers = args.method or ["gradcam" if args.classic else "layercam"], args.layer
    if args.compare == "blocks":
        layers = cam.block_layers(model, args.norm)
    elif args.compare == "stages":
        layers = cam.stage_layers(model, args.norm)
    if layers:
        recipes = [cam.Recipe.parse(method, layer) for method in methods for layer in layers]
    else:
        default = cam.classic_recipe if args.classic else cam.default_recipe
        recipes = [default(model, method) for method in methods]
    for layer in {layer for recipe in recipes for layer in recipe.layers}:
        cam.find_layer(model, layer)
    return recipes


def columns_of(predictors, recipes):
    """A column for every recipe of every model."""
    from tools.explain.photos import Column

    epochs = [f"epoch {predictor.epoch + 1}\n" for predictor in predictors[:-1]]
    epochs.append(f"best, epoch {predictors[-1].epoch + 1}\n" if epochs else "")
    return [
        Column(f"{epoch}{recipe.method} {recipe.where}", predictor.model, recipe, predictor.rule.probabilities)
        for epoch, predictor in zip(epochs, predictors, strict=True)
        for recipe in recipes
    ]


def write(album, leaf, rows, columns, args) -> str:
    """The pictures of one photo; what is said of them."""
    label = album.labels[rows[0].index]
    said = f"{leaf.name}: " + ", ".join(f"{album.labels[r.index]} {100 * r.probability[-1]:.1f}%" for r in rows)
    if args.mistakes:
        return f"{said} -> {album.write_figure(leaf, rows, columns, f'{leaf.stem}.png')}"
    if args.compare == "targets":
        return f"{said} -> {album.write_figure(leaf, rows, columns, f'{leaf.stem}_targets.png')}"
    if len(columns) == 1:
        return f"{said} at {columns[0].recipe.where} -> {album.write_pair(leaf, rows[0], columns[0])}"
    kind = args.compare or "side_by_side"
    return f"{said} -> {album.write_figure(leaf, rows, columns, f'{leaf.stem}_{label}_{kind}.png')}"


def score(loaded, args, run) -> int:
    """Measures maps against boxes; writes cam_scores.csv and cam_scores.png."""
    from pathlib import Path

    from data.boxes import read_boxes
    from tools.base.files import write_bytes
    from tools.base.log import progress
    from tools.base.threads import batches
    from tools.evaluate.inference import VIEWS
    from tools.explain.photos import boxed_cases, boxed_photos
    from tools.explain.score import lines, score_recipes, to_csv
    from tools.render.figures import draw_cam_scores

    boxes = read_boxes(Path(args.score))
    predictors, folder, why = find_predictors(loaded, args, run)
    views, size = VIEWS[loaded.given("TEST.TTA") or "none"], loaded.config.DATA.BATCH_SIZE
    recipes = recipes_of(predictors[-1].model, args)
    found = boxed_photos(splits_of(loaded.config, args, predictors[-1]), predictors[-1].labels, boxes)
    print(why)
    scores = []
    for predictor in predictors:
        cases = boxed_cases(predictor.preprocess, found, args.thorough)
        watched = progress(batches(cases, size), str(predictor.path), -(-len(found) // size))
        name = predictor.path.name
        scores += score_recipes(predictor.model, watched, recipes, predictor.rule.probabilities, name, views)
    write_bytes(folder / "cam_scores.csv", to_csv(scores))
    write_bytes(folder / "cam_scores.png", draw_cam_scores(scores))
    print(f"{scores[0].photos} photos, {scores[0].cases} labels with boxes, with 95 % intervals:")
    print("\n".join(lines(scores)))
    print(f"written: {folder}/cam_scores.csv, cam_scores.png")
    return 0
