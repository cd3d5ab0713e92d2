"""Shows where on the leaf a trained model looked: heat maps over photos, side by side, or scored against boxes."""

from functools import partial
from pathlib import Path

from configs.flags import add_config_flags, overrides
from configs.load import load
from tools.base import cli
from tools.base.errors import UsageError
from tools.base.files import check_output_folder, write_bytes
from tools.base.log import progress, say
from tools.base.tables import format_csv, format_table
from tools.base.threads import batches, in_threads
from tools.explain.methods import METHODS

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

FLAGS = (
    *("--batch-size", "--data-path", "--zip", "--follow-links", "--amp-opt-level"),
    *("--resume", "--output", "--tag", "--tta", "--decide"),
)
COMPARISONS = ("blocks", "stages", "epochs", "targets")


@cli.command
def main(argv: list[str]) -> int:
    """Parses `argv`, then draws or scores."""
    parser = cli.Parser(prog="visual.py", description=__doc__, epilog=EPILOG)
    parser.add_argument("--cfg", metavar="FILE", help="use the run of this config (and --tag)")
    parser.add_argument("--image", nargs="+", action="extend", default=[], metavar="FILE", help="photos to explain")
    parser.add_argument("--examples", type=int, default=0, metavar="N", help="explain N photos of --split")
    parser.add_argument(
        "--mistakes", type=int, default=0, metavar="N", help="explain the N most confident mistakes of --split"
    )
    parser.add_argument("--score", metavar="BOXES.csv", help="measure maps of --split against boxes")
    parser.add_argument(
        "--split",
        nargs="+",
        choices=["train", "val", "test"],
        help="of --examples, --mistakes and --score (default test); alone: explain all of its photos",
    )
    parser.add_argument("--target", default="predicted", metavar="LABEL", help="label or code (default: the predicted)")
    parser.add_argument("--method", nargs="+", choices=list(METHODS), help="default: see docs/results.md, Heatmaps")
    parser.add_argument("--layer", nargs="+", metavar="PATH", help="e.g. layers[-1].blocks[-1].norm1")
    parser.add_argument("--classic", action="store_true", help="the course project's method and layer as the default")
    parser.add_argument("--compare", choices=COMPARISONS, help="side by side: last blocks, last stages, epochs, labels")
    parser.add_argument(
        "--norm", default="norm1", choices=["norm1", "norm2"], help="norm of a Swin's blocks, for --compare"
    )
    parser.add_argument("--full-size", action="store_true", help="draw over the photo at its own size")
    parser.add_argument(
        "--thorough", type=int, default=0, metavar="N", help="--score: N photos' insertion, deletion, ROAD, sanity too"
    )
    parser.add_argument("--weights", default="ema", choices=["ema", "raw"], help="which ones, of a last.pth with both")
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
    """Writes the heat maps of the requested photos, batch by batch.

    Each photo is decoded once. An unreadable photo ends the command; the pictures of earlier batches are written.
    Threads read and write while the model runs; without threads, the model would be idle for a third of the time.
    """
    from data.build import num_workers

    predictors, folder, why = find_predictors(loaded, args, run)
    data = loaded.config.DATA
    recipes = choose_recipes(predictors[-1].members[0].model, args)
    size, threads = data.BATCH_SIZE, num_workers(data.NUM_WORKERS) or 1
    sources = choose_photos(loaded, args, predictors[-1])
    print(why)
    explained = explain_photos(sources, predictors, recipes, args, loaded, threads)
    work = partial(write_pictures, folder, predictors, recipes, args)
    for lines in progress(in_threads(work, explained, threads, size), "explaining", len(sources)):
        say("\n".join(lines))
    return 0


def explain_photos(sources, predictors, recipes, args, loaded, threads: int):
    """Yields (source, photo, prediction, explanations).

    By default the most probable of the predicted labels is explained; `--target` names another one, `--mistakes` and
    `--compare targets` take the true and the predicted ones.
    """
    from tools.evaluate.inference import VIEWS
    from tools.evaluate.predictions import predictions_of
    from tools.explain.photos import explain_batch, load_batches

    config, best, models = loaded.config, predictors[-1], [predictor.members[0] for predictor in predictors]
    views = VIEWS[loaded.given("TEST.TTA") or "none"]
    target = None if args.target == "predicted" else models[-1].class_index(args.target)
    for batch, photos, images in load_batches(sources, models[-1].preprocess, config.DATA.BATCH_SIZE, threads):
        names = [source.name for source in batch]
        answers = [predictor.answer([images], names, config.AMP) for predictor in predictors]
        wanted = []
        for source, decision, probability in zip(batch, answers[-1].decision, answers[-1].probability, strict=True):
            predicted = decision.nonzero()[0].tolist()
            if args.mistakes or args.compare == "targets":
                wanted.append(sorted({*source.truth, *predicted}))
            else:
                wanted.append([max(predicted, key=probability.__getitem__) if target is None else target])
        shares = [answer.probability for answer in answers]
        explained = explain_batch(images, [model.model for model in models], recipes, wanted, shares, views)
        yield from zip(batch, photos, predictions_of(answers[-1], best.labels), explained, strict=True)


def choose_photos(loaded, args, predictor):
    """The photos that the command line asks for."""
    from tools.explain.photos import list_named_photos, list_split_photos

    if args.image:
        return list_named_photos(args.image)
    splits = build_splits(loaded.config, args, predictor)
    if args.mistakes:
        return find_surest_mistakes(predictor, splits[0], loaded.config, args.mistakes)
    return list_split_photos(splits, len(predictor.classes), args.examples, args.compare == "targets")


def find_surest_mistakes(predictor, split, config, most: int):
    """At most `most` photos with a wrong decision, the most confident first."""
    import numpy as np

    from tools.evaluate.predictor import predict_split
    from tools.explain.photos import describe_photo
    from tools.runtime.distributed import Ranks

    device = next(predictor.members[0].model.parameters()).device
    watch = partial(progress, description="predicting")
    logits, truth = predict_split(predictor, split, config.DATA, config.AMP, Ranks(), device, watch)
    answers = predictor.rule.answer(logits)
    order = np.argsort(-answers.confidence, kind="stable")
    wrong = [split.photos[row] for row in order if (answers.decision[row] != truth[row]).any()][:most]
    return [describe_photo(split, p, f"mistake_{n:02d}_{Path(p.name).stem}") for n, p in enumerate(wrong, 1)]


def build_splits(config, args, predictor):
    """The splits of --split."""
    from data.build import build_split

    return [build_split(config.DATA, name, predictor.classes) for name in args.split]


def find_predictors(loaded, args, run):
    """(predictors of one model each, the best.pth last; the folder for results; a line that says which checkpoint)."""
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
    check_output_folder("--to", folder, config.DATA.DATA_PATH)
    rule, tta = loaded.given("TEST.DECIDE_BY"), loaded.given("TEST.TTA")
    return [load_predictor([each], device, args.weights, rule, tta) for each in paths], folder, why


def choose_recipes(model, args):
    """The recipes that the command line asks for: each method at each layer."""
    from tools.explain import layers
    from tools.explain.cam import CamRecipe

    methods, paths = args.method or ["gradcam" if args.classic else "layercam"], args.layer
    if args.compare == "blocks":
        paths = layers.list_block_layers(model, args.norm)
    elif args.compare == "stages":
        paths = layers.list_stage_layers(model, args.norm)
    elif args.classic and not paths:
        paths = [layers.choose_classic_layer(model)]
    recipes = [
        CamRecipe(method, path) for method in methods for path in paths or [layers.choose_default_layer(model, method)]
    ]
    for path in {path for recipe in recipes for path in recipe.paths}:
        layers.find_layer(model, path)
    return recipes


def title_columns(predictors, recipes) -> list[str]:
    """A title per model and recipe; several models are those of `--compare epochs`."""
    *earlier, best = (predictor.members[0].epoch + 1 for predictor in predictors)
    epochs = [*(f"epoch {epoch}\n" for epoch in earlier), f"best, epoch {best}\n" if earlier else ""]
    return [f"{epoch}{recipe.method} {recipe.layer}" for epoch in epochs for recipe in recipes]


def write_pictures(folder, predictors, recipes, args, explained) -> list[str]:
    """Writes the pictures of one photo, an item of `explain_photos`; returns the lines to print, warnings last."""
    import numpy as np

    from tools.render.maps import draw_figure, overlay, write_picture

    source, photo, prediction, rows = explained
    best, titles = predictors[-1].members[0], title_columns(predictors, recipes)
    pixels, window = np.asarray(photo), best.preprocess.window(*photo.size)
    if not args.full_size:
        pixels, window = np.asarray(best.preprocess.geometry()(photo)), None
    label, where = best.labels[rows[0].class_index], ""
    kind = args.compare or ("side_by_side" if len(titles) > 1 else "pair")
    name = f"{source.stem}_{label}_{kind}.png"
    if args.mistakes:
        name = f"{source.stem}.png"
    elif kind == "targets":
        name = f"{source.stem}_targets.png"
    path = folder / name
    truth = [best.labels[index] for index in source.truth]
    roles = {"true": truth, "predicted": prediction.labels} if args.mistakes or kind == "targets" else {}
    figure = [caption_row(row, best.labels, titles, roles) for row in rows]
    title = [cli.printable(Path(source.name).name), str(prediction), *([f"true: {', '.join(truth)}"] if truth else [])]
    write_picture(path, draw_figure("\n".join(title), pixels, figure, window))
    if kind == "pair" and not args.mistakes:
        where, path = f" at {recipes[0].layer}", folder / f"{source.stem}_{label}_cam.png"
        write_picture(path, overlay(pixels, rows[0].maps[0], window))
        write_picture(folder / f"{source.stem}_original.png", pixels)
    shares = ", ".join(f"{best.labels[row.class_index]} {100 * row.probabilities[-1]:.1f}%" for row in rows)
    lines = [f"{source.name}: {prediction}; map of {shares}{where} -> {path}"]
    return [cli.printable(line) for line in (*lines, *warn_of_zero_maps(source, rows, best.labels, recipes))]


def caption_row(row, labels, titles, roles):
    """(caption of the photo, [(caption, map) per column]) of one explanation, for `draw_figure`.

    `roles` has the labels that are true and those that are predicted, where the figure is to name them.
    """
    label = labels[row.class_index]
    maps = []
    for title, probability, heat in zip(titles, row.probabilities, row.maps, strict=True):
        empty = "" if heat.any() else "\nno evidence for it"
        maps.append((f"{title}\n{label} {100 * probability:.1f}%{empty}", heat))
    played = " and ".join(role for role, members in roles.items() if label in members)
    return f"{played}: {label}" if played else "original", maps


def warn_of_zero_maps(source, rows, labels, recipes):
    """Yields a line per map that is zero everywhere."""
    for row in rows:
        for number, heat in enumerate(row.maps):
            if not heat.any():
                where, label = recipes[number % len(recipes)].layer, labels[row.class_index]
                yield f"warning: {source.name}: no evidence for {label} at {where}; the map is zero everywhere"


def score(loaded, args, run) -> int:
    """Measures maps against boxes; writes cam_scores.csv and cam_scores.png."""
    from data.boxes import read_boxes
    from tools.evaluate.inference import VIEWS
    from tools.explain.photos import list_boxed_labels, load_boxed_labels
    from tools.explain.score import score_recipes
    from tools.render.figures import draw_cam_scores

    boxes = read_boxes(Path(args.score))
    predictors, folder, why = find_predictors(loaded, args, run)
    views, size = VIEWS[loaded.given("TEST.TTA") or "none"], loaded.config.DATA.BATCH_SIZE
    recipes = choose_recipes(predictors[-1].members[0].model, args)
    found = list_boxed_labels(build_splits(loaded.config, args, predictors[-1]), predictors[-1].labels, boxes)
    print(why)
    scores = []
    for predictor in predictors:
        model = predictor.members[0]
        labels = load_boxed_labels(model.preprocess, found, args.thorough)
        watched = progress(batches(labels, size), str(model.path), -(-len(found) // size))
        measured = score_recipes(model.model, watched, recipes, predictor.rule.probabilities, views)
        scores += [(model.path.name, score) for score in measured]
    names = [f"{checkpoint}  {score.recipe.method}\n{score.recipe.layer}" for checkpoint, score in scores]
    write_bytes(folder / "cam_scores.csv", format_csv(list_score_rows(scores)))
    write_bytes(folder / "cam_scores.png", draw_cam_scores(names, [score.figures for _, score in scores]))
    print(f"{scores[0][1].num_photos} photos, {scores[0][1].num_labels} labels with boxes, with 95 % intervals:")
    print("\n".join(format_scores(scores)))
    print(f"written: {folder}/cam_scores.csv, cam_scores.png")
    return 0


def list_score_rows(scores) -> list[list]:
    """The rows of cam_scores.csv: figures with their 95 % intervals, empty where they were not measured."""
    from tools.explain.pointing import FIGURES

    columns = [column for name in FIGURES for column in (name, f"{name}_low", f"{name}_high")]
    rows = [["checkpoint", "method", "layer", "photos", "cases", *columns]]
    for checkpoint, score in scores:
        row = [checkpoint, score.recipe.method, score.recipe.layer, score.num_photos, score.num_labels]
        for name in FIGURES:
            row += [f"{value:.4f}" for value in score.figures[name]] if name in score.figures else [""] * 3
        rows.append(row)
    return rows


def format_scores(scores) -> list[str]:
    """The lines for a terminal: a header of what was measured, then one line per score."""
    rows = [["", *scores[0][1].figures]]
    for checkpoint, score in scores:
        cells = ("{:.2f} [{:.2f}, {:.2f}]".format(*figure) for figure in score.figures.values())
        rows.append([f"{checkpoint}  {score.recipe.method} {score.recipe.layer}", *cells])
    return format_table(rows, "<")
