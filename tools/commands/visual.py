"""Shows where on the leaf a trained model looked: heat maps over photos, side by side, or scored against boxes."""

from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from yacs.config import CfgNode

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
    *("--device", "--resume", "--output", "--tag", "--tta", "--decide"),
)
LIKELY = 0.1  # `--compare targets` explains labels with a higher probability too
COMPARISONS = ("blocks", "stages", "epochs", "targets")


class Job(NamedTuple):
    """What the command line asks for, with everything loaded that it needs."""

    args: Namespace
    config: CfgNode
    predictors: list  # of one model each, the best.pth last; several with `--compare epochs` only
    best: Any  # the model of best.pth
    recipes: list  # how maps are made: each method at each layer
    columns: list[tuple[str, str]]  # (title, layer) of each map of a label: one per model and recipe
    views: Sequence[Callable]  # views of an image; their maps are averaged
    splits: list  # those of --split; none with --image
    folder: Path  # for results
    why: str  # which checkpoint is used, as a line


@cli.command
def main(argv: list[str]) -> int:
    """Parses `argv`, then draws or scores."""
    parser = cli.Parser(prog="visual.py", description=__doc__, epilog=EPILOG)
    add = parser.add_argument
    add("--cfg", metavar="FILE", help="use the run of this config (and --tag)")
    add("--image", nargs="+", action="extend", default=[], metavar="FILE", help="photos to explain")
    add("--examples", type=int, default=0, metavar="N", help="explain N photos of --split")
    add("--mistakes", type=int, default=0, metavar="N", help="explain the N most confident mistakes of --split")
    add("--score", metavar="BOXES.csv", help="measure maps of --split against boxes")
    split = "photos of --examples, --mistakes and --score (default test); alone: explain the whole split"
    add("--split", nargs="+", choices=["train", "val", "test"], help=split)
    add("--target", default="predicted", metavar="LABEL", help="label or class folder (default: the predicted label)")
    add("--method", nargs="+", choices=list(METHODS), help="default: see docs/heatmaps.md")
    add("--layer", nargs="+", metavar="PATH", help="e.g. layers[-1].blocks[-1].norm1")
    add("--classic", action="store_true", help="the course project's method and layer as the default")
    add("--compare", choices=COMPARISONS, help="side by side: last blocks, last stages, epochs, labels")
    add("--norm", default="norm1", choices=["norm1", "norm2"], help="norm of a Swin's blocks, for --compare")
    add("--full-size", action="store_true", help="draw over the photo at its own size")
    thorough = "with --score: also insertion, deletion, ROAD and sanity check on N photos"
    add("--thorough", type=int, default=0, metavar="N", help=thorough)
    add("--weights", default="ema", choices=["ema", "raw"], help="weights of a last.pth that has both (default ema)")
    add("--to", metavar="FOLDER", help="where results go (default: beside the checkpoint)")
    add_config_flags(parser, FLAGS)
    args = parser.parse_args(argv)
    loaded = load(args.cfg, None, overrides(args))
    run = loaded.named_run(args.cfg)
    check(args)
    return score(loaded, args, run) if args.score else draw(load_job(loaded, args, run))


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


def load_job(loaded, args, run) -> Job:
    """Loads models and splits, checks layers and the folder for results; `run` is the run folder of --cfg, or None."""
    from data.build import build_split
    from tools.checkpoint.find import find_checkpoints
    from tools.checkpoint.store import SNAPSHOTS
    from tools.evaluate.inference import VIEWS
    from tools.evaluate.predictor import load_predictor
    from tools.runtime.distributed import choose_device, ranks_from_environment
    from tools.runtime.memory import keep_freed_memory

    keep_freed_memory()
    config = loaded.config
    device = choose_device(ranks_from_environment(), config.DEVICE)
    (path,), why = find_checkpoints([config.MODEL.RESUME] if config.MODEL.RESUME else [], config.OUTPUT, run)
    paths = [path]
    if args.compare == "epochs":
        paths = [*sorted((path.parent / SNAPSHOTS).glob("*.pth")), path]
        if len(paths) == 1:
            raise UsageError(f"{path.parent / SNAPSHOTS} holds no epochs; TRAIN.SNAPSHOT_EPOCHS keeps some in training")
    folder = Path(args.to) if args.to else path.parent / "heatmaps"
    check_output_folder("--to", folder, config.DATA.DATA_PATH)
    rule, tta = loaded.given("TEST.DECIDE_BY"), loaded.given("TEST.TTA")
    predictors = [load_predictor([each], device, args.weights, rule, tta) for each in paths]
    best = predictors[-1].members[0]
    recipes = choose_recipes(best.model, args)
    epochs = [f"epoch {predictor.members[0].epoch + 1}\n" for predictor in predictors]
    epochs = [*epochs[:-1], f"best, {epochs[-1]}"] if len(epochs) > 1 else [""]
    columns = [(f"{epoch}{recipe.method} {recipe.layer}", recipe.layer) for epoch in epochs for recipe in recipes]
    splits = [build_split(config.DATA, name, best.label_set) for name in args.split] if not args.image else []
    return Job(args, config, predictors, best, recipes, columns, VIEWS[tta or "none"], splits, folder, why)


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


def draw(job: Job) -> int:
    """Writes the heat maps of the requested photos, batch by batch.

    Each photo is decoded once. An unreadable photo ends the command; the pictures of earlier batches are written.
    Threads read and write while the model runs; without them, it would be idle for a third of the time.
    """
    from data.build import num_workers
    from tools.explain.photos import list_named_photos, list_split_photos

    args, data = job.args, job.config.DATA
    if args.image:
        sources = list_named_photos(args.image)
    elif args.mistakes:
        sources = find_surest_mistakes(job)
    else:
        sources = list_split_photos(job.splits, args.examples, several_first=args.compare == "targets")
    print(job.why)
    threads = num_workers(data.NUM_WORKERS) or 1
    written = in_threads(partial(write_pictures, job), explain_photos(job, sources, threads), threads, data.BATCH_SIZE)
    for lines in progress(written, "explaining", len(sources)):
        say("\n".join(lines))
    return 0


def find_surest_mistakes(job: Job) -> list:
    """The photos with a wrong decision, the most confident first; as many as --mistakes says."""
    from tools.evaluate.predictor import predict_split
    from tools.explain.photos import describe_photo
    from tools.runtime.distributed import Ranks

    predictor, config, (split,) = job.predictors[-1], job.config, job.splits
    device, watch = next(job.best.model.parameters()).device, partial(progress, description="predicting")
    logits, truth = predict_split(predictor, split, config.DATA, config.AMP, Ranks(), device, watch)
    answers = predictor.rule.answer(logits)
    order = (-answers.confidence).argsort(kind="stable")
    wrong = [split.photos[row] for row in order if (answers.decision[row] != truth[row]).any()]
    return [describe_photo(split, p, f"mistake_{n:02d}_") for n, p in enumerate(wrong[: job.args.mistakes], 1)]


def explain_photos(job: Job, sources, threads: int):
    """Yields (source, photo, prediction, explanations).

    By default the most probable of the predicted labels is explained; `--target` names another one, `--mistakes` and
    `--compare targets` take the true and the predicted ones, the latter also the LIKELY ones.
    """
    from tools.evaluate.predictions import predictions_of
    from tools.explain.photos import explain_batch, load_batches

    args, config, best = job.args, job.config, job.best
    models = [predictor.members[0].model for predictor in job.predictors]
    target = None if args.target == "predicted" else best.class_index(args.target)
    for batch, photos, images in load_batches(sources, best.preprocess, config.DATA.BATCH_SIZE, threads):
        names = [source.name for source in batch]
        answers = [predictor.answer([images], names, config.AMP) for predictor in job.predictors]
        wanted = []
        for source, decision, probability in zip(batch, answers[-1].decision, answers[-1].probability, strict=True):
            predicted = decision.nonzero()[0].tolist()
            if args.mistakes or args.compare == "targets":
                likely = (probability > LIKELY).nonzero()[0].tolist() if args.compare else []
                wanted.append(sorted({*source.truth, *predicted, *likely}))
            else:
                wanted.append([max(predicted, key=probability.__getitem__) if target is None else target])
        shares = [answer.probability for answer in answers]
        explained = explain_batch(images, models, job.recipes, wanted, shares, job.views)
        yield from zip(batch, photos, predictions_of(answers[-1], best.labels), explained, strict=True)


def write_pictures(job: Job, explained) -> list[str]:
    """Writes the pictures of one photo, an item of `explain_photos`; returns the lines to print, warnings last."""
    import numpy as np

    from data.labels import as_file_name
    from tools.render.maps import draw_figure, overlay, write_picture

    source, photo, prediction, rows = explained
    args, folder, columns = job.args, job.folder, job.columns
    labels, preprocess = job.best.labels, job.best.preprocess
    shown = preprocess.shown(*photo.size)
    rows = [row._replace(maps=[heat[shown] for heat in row.maps]) for row in rows]
    pixels, window = np.asarray(preprocess.geometry()(photo))[shown], None
    if args.full_size:
        pixels, window = np.asarray(photo), preprocess.window(*photo.size)
    label, where = as_file_name(labels[rows[0].class_index]), ""
    kind = args.compare or ("side_by_side" if len(columns) > 1 else "pair")
    path = folder / f"{source.stem}_{label}_{kind}.png"
    if args.mistakes:
        path = folder / f"{source.stem}.png"
    elif kind == "targets":
        path = folder / f"{source.stem}_targets.png"
    truth = [labels[index] for index in source.truth]
    roles = {"true": truth, "predicted": prediction.labels} if args.mistakes or kind == "targets" else {}
    figure = [caption_row(row, labels[row.class_index], columns, roles) for row in rows]
    title = [cli.printable(Path(source.name).name), str(prediction), *([f"true: {', '.join(truth)}"] if truth else [])]
    write_picture(path, draw_figure("\n".join(title), pixels, figure, window))
    if kind == "pair" and not args.mistakes:
        where, path = f" at {columns[0][1]}", folder / f"{source.stem}_{label}_cam.png"
        write_picture(path, overlay(pixels, rows[0].maps[0], window))
        write_picture(folder / f"{source.stem}_original.png", pixels)
    shares = ", ".join(f"{labels[row.class_index]} {100 * row.probabilities[-1]:.1f}%" for row in rows)
    warnings = [
        f"warning: {source.name}: no evidence for {labels[row.class_index]} at {layer}; the map is zero everywhere"
        for row in rows
        for (_, layer), heat in zip(columns, row.maps, strict=True)
        if not heat.any()
    ]
    lines = [f"{source.name}: {prediction}; map of {shares}{where} -> {path}", *warnings]
    return [cli.printable(line) for line in lines]


def caption_row(row, label: str, columns, roles):
    """(caption of the photo, [(caption, map) per column]) of the explanation of a label, for `draw_figure`.

    `roles` lists the true and the predicted labels, if the figure is to name them.
    """
    maps = []
    for (title, _), probability, heat in zip(columns, row.probabilities, row.maps, strict=True):
        empty = "" if heat.any() else "\nno evidence for it"
        maps.append((f"{title}\n{label} {100 * probability:.1f}%{empty}", heat))
    played = " and ".join(role for role, members in roles.items() if label in members)
    return f"{played}: {label}" if played else "original", maps


def score(loaded, args, run) -> int:
    """Measures maps against boxes; writes cam_scores.csv and cam_scores.png."""
    from data.boxes import read_boxes
    from tools.explain.photos import list_boxed_labels, load_boxed_labels
    from tools.explain.score import score_recipes
    from tools.render.figures import draw_cam_scores

    job = load_job(loaded, args, run)
    boxes = read_boxes(Path(args.score), job.best.labels)
    found, size = list_boxed_labels(job.splits, job.best.labels, boxes), job.config.DATA.BATCH_SIZE
    print(job.why)
    scores = []
    for predictor in job.predictors:
        model = predictor.members[0]
        labels = load_boxed_labels(model.preprocess, found, args.thorough)
        watched = progress(batches(labels, size), str(model.path), -(-len(found) // size))
        measured = score_recipes(model.model, watched, job.recipes, predictor.rule.probabilities, job.views)
        scores += [(model.path.name, score) for score in measured]
    names = [f"{checkpoint}  {score.recipe.method}\n{score.recipe.layer}" for checkpoint, score in scores]
    write_bytes(job.folder / "cam_scores.csv", format_csv(list_score_rows(scores)))
    write_bytes(job.folder / "cam_scores.png", draw_cam_scores(names, [score.figures for _, score in scores]))
    print(f"{scores[0][1].num_photos} photos, {scores[0][1].num_labels} labels with boxes, with 95 % intervals:")
    print("\n".join(format_scores(scores)))
    print(f"written: {job.folder}/cam_scores.csv, cam_scores.png")
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
