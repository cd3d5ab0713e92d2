"""Shows where on the leaf a trained model looked: heat maps over photos, side by side, or scored against boxes."""

import sys

from configs.load import load
from tools import cli
from tools.errors import UsageError

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
  python visual.py --image a.jpg --compare epochs             over the run's snapshots (TRAIN.SNAPSHOTS)
  python visual.py --score lesion_boxes.csv --split val train --method gradcam layercam --layer "blocks[4]" "blocks[6]"
"""
FLAGS = ("--batch-size", "--data-path", "--zip", "--resume", "--tta", "--output", "--tag")
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
    cli.add_config_flags(parser, FLAGS)
    args = parser.parse_args(argv)
    loaded = load(args.cfg, None, cli.overrides(args))
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
    """Explains photos, a batch at a time. All of them are decoded before the first picture is written."""
    from tools.engine import VIEWS
    from tools.explain import Album, batches, rows_of, warnings
    from tools.logger import progress, say

    predictors, folder, why = find_predictors(loaded, args, run)
    best = predictors[-1]
    columns = columns_of(predictors, recipes_of(best.model, args))
    wanted = None if args.target == "predicted" else [best.class_index(args.target)]
    subjects = list(mistakes(loaded, args, best) if args.mistakes else chosen(loaded.config, args, best))
    for subject in subjects:
        subject.read()
    album, views = Album(folder, best.labels, args.full_size), VIEWS[loaded.given("TEST.TTA") or "none"]
    print(why)
    size = loaded.config.DATA.BATCH_SIZE
    for batch in progress(batches(subjects, size), "explaining", -(-len(subjects) // size)):
        leaves = [leaf_of(subject, best.preprocess) for subject in batch]
        if args.compare == "targets":
            leaves = with_predictions(leaves, best)
        classes = [wanted] * len(leaves) if wanted else None
        if args.mistakes or args.compare == "targets":
            classes = [sorted({*leaf.truth, *leaf.given}) for leaf in leaves]
        for leaf, rows in zip(leaves, rows_of(leaves, columns, classes, views), strict=True):
            say(write(album, leaf, rows, columns, args))
            for line in warnings(leaf, rows, columns, best.labels):
                say(line)
    return 0


def find_predictors(loaded, args, run):
    """(models to look through, the best.pth last; the folder for results; a line that says which checkpoint)."""
    from pathlib import Path

    from tools.allocator import keep_freed_memory
    from tools.assemble import find_checkpoints, load_predictor
    from tools.checkpoint import SNAPSHOTS
    from tools.distributed import choose_device, ranks_from_environment

    keep_freed_memory()
    device = choose_device(ranks_from_environment())
    config = loaded.config
    (path,), why = find_checkpoints([config.MODEL.RESUME] if config.MODEL.RESUME else [], config.OUTPUT, run)
    paths = [path]
    if args.compare == "epochs":
        paths = [*sorted((path.parent / SNAPSHOTS).glob("*.pth")), path]
        if len(paths) == 1:
            raise UsageError(f"{path.parent / SNAPSHOTS} holds no epochs; TRAIN.SNAPSHOTS keeps some in training")
    folder = Path(args.to) if args.to else path.parent / "heatmaps"
    return [load_predictor(each, device, args.weights) for each in paths], folder, why


def recipes_of(model, args):
    """The ways of making maps that the command line asks for, each method at each layer."""
    from tools import cam

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
    from tools.explain import Column

    epochs = [f"epoch {predictor.epoch + 1}\n" for predictor in predictors[:-1]]
    epochs.append(f"best, epoch {predictors[-1].epoch + 1}\n" if epochs else "")
    return [
        Column(f"{epoch}{recipe.method} {recipe.where}", predictor.model, recipe, predictor.rule.probabilities)
        for epoch, predictor in zip(epochs, predictors, strict=True)
        for recipe in recipes
    ]


def chosen(config, args, predictor):
    """The photos of --image; or of --split: all, or --examples of them, every label in turn."""
    from pathlib import Path

    from data.datasets import scan_split
    from data.images import read_image
    from tools.explain import Subject, distinct

    if args.image:
        for name, stem in zip(args.image, distinct(Path(name).stem for name in args.image), strict=True):
            yield Subject(name, stem, lambda name=name: read_image(Path(name)))
        return
    found = []
    for name in args.split:
        split = scan_split(config.DATA.DATA_PATH, name, config.DATA.ZIP_MODE, predictor.classes)
        found += [(split, photo) for photo in split.photos]
    if args.examples:
        by_class = [[one for one in found if c in one[1].classes] for c in range(len(predictor.classes))]
        in_turn = [group[i] for i in range(max(map(len, by_class))) for group in by_class if i < len(group)]
        found = list({(one[0].where, one[1].file): one for one in in_turn}.values())
        if args.compare == "targets":  # the photos with several labels are what it is for
            found.sort(key=lambda one: -len(one[1].classes))
        found = found[: args.examples]
    stems = distinct(Path(photo.name).stem for _, photo in found)
    yield from (subject_of(split, photo, stem) for (split, photo), stem in zip(found, stems, strict=True))


def mistakes(loaded, args, predictor):
    """The photos of --split whose labels were decided wrongly, the most confident first."""
    from pathlib import Path

    import numpy as np

    from data.datasets import scan_split
    from tools.assemble import Ensemble, predict_split
    from tools.distributed import Ranks
    from tools.logger import progress

    config, rule = loaded.config, predictor.rule
    split = scan_split(config.DATA.DATA_PATH, args.split[0], config.DATA.ZIP_MODE, predictor.classes)
    ensemble = Ensemble([predictor], rule, predictor.validation)
    device = next(predictor.model.parameters()).device
    watch = lambda batches: progress(batches, "predicting")  # noqa: E731
    tta = loaded.given("TEST.TTA") or "none"
    logits, truth = predict_split(ensemble, split, config.DATA, config.AMP, Ranks(), device, tta, watch)
    probability = rule.probabilities(logits)
    decision = rule.decide(probability)
    order = np.argsort(-rule.confidence(probability, decision), kind="stable")
    wrong = [row for row in order if (decision[row] != truth[row]).any()][: args.mistakes]
    for number, row in enumerate(wrong, 1):
        photo, given = split.photos[row], tuple(np.flatnonzero(decision[row]).tolist())
        yield subject_of(split, photo, f"mistake_{number:02d}_{Path(photo.name).stem}", given)


def subject_of(split, photo, stem, given=()):
    """A photo of a split, to be read when it is needed."""
    from data.images import decode
    from tools.explain import Subject

    where = split.source.locate(photo.file)
    return Subject(where, stem, lambda: decode(split.source.read(photo.file), where), photo.classes, given)


def leaf_of(subject, preprocess):
    """The photo, decoded and made ready for the model."""
    import numpy as np

    from tools.explain import Leaf

    photo = subject.read()
    seen, window = preprocess.geometry()(photo), preprocess.window(*photo.size)
    image = preprocess.transform()(photo)
    return Leaf(
        subject.name, subject.stem, np.asarray(photo), np.asarray(seen), window, image, subject.truth, subject.given
    )


def with_predictions(leaves, predictor):
    """The leaves, each with the labels that the model gives it."""
    from dataclasses import replace

    import torch

    device, rule = next(predictor.model.parameters()).device, predictor.rule
    with torch.no_grad():
        logits = predictor.model(torch.stack([leaf.image for leaf in leaves]).to(device)).float().cpu().numpy()
    decision = rule.decide(rule.probabilities(logits))
    return [replace(leaf, given=tuple(row.nonzero()[0].tolist())) for leaf, row in zip(leaves, decision, strict=True)]


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
    from tools.cam_score import lines, score_recipes, to_csv
    from tools.engine import VIEWS
    from tools.explain import batches
    from tools.figures import draw_cam_scores
    from tools.files import write_bytes
    from tools.logger import progress

    boxes = read_boxes(Path(args.score))
    predictors, folder, why = find_predictors(loaded, args, run)
    views, size = VIEWS[loaded.given("TEST.TTA") or "none"], loaded.config.DATA.BATCH_SIZE
    recipes = recipes_of(predictors[-1].model, args)
    found = boxed_photos(loaded.config, args, predictors[-1], boxes)
    print(why)
    scores = []
    for predictor in predictors:
        cases = boxed_cases(predictor, found, args.thorough)
        watched = progress(batches(cases, size), str(predictor.path), -(-len(found) // size))
        name = predictor.path.name
        scores += score_recipes(predictor.model, watched, recipes, predictor.rule.probabilities, name, views)
    write_bytes(folder / "cam_scores.csv", to_csv(scores))
    write_bytes(folder / "cam_scores.png", draw_cam_scores(scores))
    print(f"{scores[0].photos} photos, {scores[0].cases} labels with boxes, with 95 % intervals:")
    print("\n".join(lines(scores)))
    print(f"written: {folder}/cam_scores.csv, cam_scores.png")
    return 0


def boxed_photos(config, args, predictor, boxes):
    """(split, photo, class, its boxes) of every label of a photo of --split that has boxes.

    Raises:
        DataError: when no photo of the split has any.
    """
    from data.datasets import scan_split
    from tools.errors import DataError

    found = []
    for name in args.split:
        split = scan_split(config.DATA.DATA_PATH, name, config.DATA.ZIP_MODE, predictor.classes)
        for photo in split.photos:
            here = boxes.get(photo.name, [])
            for index, label in enumerate(predictor.labels):
                if mine := [box for box in here if box.label == label]:
                    found.append((split, photo, index, mine))
    if not found:
        raise DataError(f"{args.score} has boxes of no photo in {', '.join(args.split)}; name others with --split")
    return found


def boxed_cases(predictor, found, thorough: int):
    """They are read one at a time; `thorough` of them, evenly spread, are to be measured in every way."""
    from data.boxes import on_input
    from data.images import decode
    from tools.cam_score import Case

    transform, preprocess = predictor.preprocess.transform(), predictor.preprocess
    for number, (split, photo, index, boxes) in enumerate(found):
        image = decode(split.source.read(photo.file), split.source.locate(photo.file))
        placed = on_input(boxes, image.size, preprocess.window(*image.size), preprocess.size)
        closely = (number + 1) * thorough // len(found) > number * thorough // len(found)
        if placed:
            yield Case(f"{split.where}/{photo.name}", transform(image), index, placed, closely)


if __name__ == "__main__":
    sys.exit(main())
