"""Shows where on the leaf a trained model looked: heat maps over photos, side by side, or scored against boxes."""

from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from yacs.config import CfgNode

from configs.flags import add_config_flags, overrides
from configs.load import load
from tools.base import cli
from tools.base.errors import DataError, UsageError
from tools.base.files import check_output_folder, write_bytes
from tools.base.log import progress, say
from tools.base.tables import format_csv
from tools.base.threads import batches, in_threads
from tools.explain.methods import METHODS

EPILOG = """
Pictures go to <folder of the checkpoint>/heatmaps: <photo>_<label>_cam.png, <photo>_original.png and both with a title
in <photo>_<label>_pair.png; <photo>_<label>_<blocks, stages, epochs or side_by_side>.png; <photo>_targets.png;
mistake_01_<photo>.png; .jpg where a picture has over a megapixel. Layers are joined by + (mean of their maps) or
* (geometric mean); quote them.

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
    *("--device", "--output", "--tag", "--tta", "--decide"),
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
    scales: list[list]  # per predictor, the sizes at which photos are seen for maps
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
    add("--split", nargs="+", choices=["train", "val", "test", cli.HELD_OUT], help=split)
    add("--resume", nargs="+", action="extend", default=[], metavar="FILE", help="the checkpoint; folds for held-out")
    add("--target", default="predicted", metavar="LABEL", help="label or class folder (default: the predicted label)")
    add("--method", nargs="+", choices=list(METHODS), help="default: see docs/heatmaps.md")
    add("--layer", nargs="+", metavar="PATH", help="e.g. layers[-1].blocks[-1].norm1")
    add("--classic", action="store_true", help="the course project's method, layer and size as the default")
    add("--map-size", type=int, metavar="PIXELS", help="side of the input for maps (default: see docs/heatmaps.md)")
    add("--fast", action="store_true", help="maps of one view at one size, instead of up to eight")
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
    args.tta = loaded.given("TEST.TTA")
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
    if args.map_size is not None and not 32 <= args.map_size <= 4096:
        raise UsageError(f"--map-size {args.map_size} is not a number of pixels between 32 and 4096")
    if args.fast and args.tta:
        raise UsageError("--fast takes one view, and --tta names others; leave one of them out")
    if args.split and cli.HELD_OUT in args.split and (not args.score or args.compare or "train" in args.split):
        raise UsageError(f"--split {cli.HELD_OUT} goes with --score, and neither with --compare nor with train")
    if len(args.resume) > 1 and not (args.split and cli.HELD_OUT in args.split):
        raise UsageError(f"visual.py takes one checkpoint; several only with --score and --split {cli.HELD_OUT}")
    args.split = args.split or ["test"]


def load_job(loaded, args, run) -> Job:
    """Loads models and splits, checks layers and the folder for results; `run` is the run folder of --cfg, or None."""
    from data.build import build_split
    from tools.checkpoint.find import find_checkpoints
    from tools.checkpoint.store import SNAPSHOTS
    from tools.evaluate.predictor import load_predictor
    from tools.runtime.distributed import choose_device, ranks_from_environment
    from tools.runtime.memory import keep_freed_memory

    keep_freed_memory()
    config = loaded.config
    device = choose_device(ranks_from_environment(), config.DEVICE)
    resume = args.resume or ([config.MODEL.RESUME] if config.MODEL.RESUME else [])
    paths, why = find_checkpoints(resume, config.OUTPUT, run)
    path = paths[-1]
    if args.compare == "epochs":
        paths = [*sorted((path.parent / SNAPSHOTS).glob("*.pth")), path]
        if len(paths) == 1:
            raise UsageError(f"{path.parent / SNAPSHOTS} holds no epochs; TRAIN.SNAPSHOT_EPOCHS keeps some in training")
    folder = Path(args.to) if args.to else path.parent / "heatmaps"
    check_output_folder("--to", folder, config.DATA.DATA_PATH)
    rule = loaded.given("TEST.DECIDE_BY")
    predictors = [load_predictor([each], device, args.weights, rule, args.tta) for each in paths]
    best = predictors[-1].members[0]
    scales = [choose_scales(predictor.members[0], args) for predictor in predictors]
    recipes = choose_recipes(scales[-1][0], args)
    epochs = [f"epoch {predictor.members[0].epoch + 1}\n" for predictor in predictors]
    epochs = [*epochs[:-1], f"best, {epochs[-1]}"] if len(epochs) > 1 else [""]
    columns = [(f"{epoch}{recipe.method} {recipe.layer}", recipe.layer) for epoch in epochs for recipe in recipes]
    names = [] if args.image else [name for name in args.split if name != cli.HELD_OUT]
    splits = [build_split(config.DATA, name, best.label_set) for name in names]
    return Job(args, config, predictors, best, recipes, columns, scales, splits, folder, why)


def choose_scales(best, args) -> list:
    """The sizes and views for maps that the command line asks for."""
    from dataclasses import replace

    from tools.evaluate.inference import VIEWS
    from tools.evaluate.predictor import build_for
    from tools.explain import scales

    views, own = VIEWS[args.tta or ("none" if args.fast or args.classic else "all")], best.preprocess
    if args.map_size or args.classic:
        size = args.map_size or own.size
        seen = views if args.tta else scales.affordable(views, [size])
        return [scales.Scale(build_for(best, size), replace(own, size=size), seen)]
    chosen = scales.choose_scales(partial(build_for, best), own, views)
    if args.fast or args.tta:
        chosen = [scale._replace(views=views) for scale in chosen]
    return chosen[:1] if args.fast else chosen


def choose_recipes(scale, args):
    """The recipes that the command line asks for: each method at each layer; `scale` is the coarsest."""
    from tools.explain import layers
    from tools.explain.cam import CamRecipe

    model, methods, paths = scale.model, args.method or ["gradcam" if args.classic else "layercam"], args.layer
    if args.compare == "blocks":
        paths = layers.list_block_layers(model, args.norm)
    elif args.compare == "stages":
        paths = layers.list_stage_layers(model, args.norm)
    elif args.classic and not paths:
        paths = [layers.choose_classic_layer(model)]
    recipes = [
        CamRecipe(method, path)
        for method in methods
        for path in paths or [layers.choose_default_layer(model, method, scale.preprocess.size)]
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
    target = None if args.target == "predicted" else best.class_index(args.target)
    transforms = [each.transform() for each in (best.preprocess, *(scale.preprocess for scale in job.scales[-1]))]
    for batch, photos, (images, *sizes) in load_batches(sources, transforms, config.DATA.BATCH_SIZE, threads):
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
        explained = explain_batch(sizes, job.scales, job.recipes, wanted, shares)
        yield from zip(batch, photos, predictions_of(answers[-1], best.labels), explained, strict=True)


def write_pictures(job: Job, explained) -> list[str]:
    """Writes the pictures of one photo, an item of `explain_photos`; returns the lines to print, warnings last."""
    import numpy as np

    from data.labels import as_file_name
    from tools.render.maps import draw_figure, overlay, write_picture

    source, photo, prediction, rows = explained
    args, folder, columns, labels = job.args, job.folder, job.columns, job.best.labels
    preprocess = job.scales[-1][-1].preprocess
    shown = preprocess.shown(*photo.size)
    rows = [row._replace(maps=[heat[shown] for heat in row.maps]) for row in rows]
    if nothing := nothing_found(job, rows):  # a painted leaf would be taken for a sick one
        rows = [row._replace(maps=[np.zeros_like(heat) for heat in row.maps]) for row in rows]
    pixels, window = np.asarray(preprocess.geometry()(photo))[shown], None
    if args.full_size:
        pixels, window = np.asarray(photo), preprocess.window(*photo.size)
    label = as_file_name(labels[rows[0].class_index])
    kind = args.compare or ("side_by_side" if len(columns) > 1 else "pair")
    path = folder / f"{source.stem}_{label}_{kind}.png"
    if args.mistakes:
        path = folder / f"{source.stem}.png"
    elif kind == "targets":
        path = folder / f"{source.stem}_targets.png"
    truth = [labels[index] for index in source.truth]
    roles = {"true": truth, "predicted": prediction.labels} if args.mistakes or kind == "targets" else {}
    ringed = [ring_lesions(job, row, pixels, window) for row in rows]
    figure = [
        caption_row(row, labels[row.class_index], columns, roles, picture, found, nothing)
        for row, (picture, found) in zip(rows, ringed, strict=True)
    ]
    title = [cli.printable(Path(source.name).name), prediction.in_words()]
    title += [f"true: {', '.join(truth)}"] if truth else []
    path = write_picture(path, draw_figure("\n".join(title), pixels, figure, window, args.classic))
    where = ""
    if kind == "pair" and not args.mistakes:
        where = f" at {columns[0][1]}"
        cam = overlay(pixels, rows[0].maps[0], window, args.classic)
        path = write_picture(folder / f"{source.stem}_{label}_cam.png", cam)
        write_picture(folder / f"{source.stem}_original.png", pixels)
    shares = ", ".join(
        f"{labels[row.class_index]} {100 * row.probabilities[-1]:.1f}%{f' ({found})' if found else ''}"
        for row, (_, found) in zip(rows, ringed, strict=True)
    )
    warnings = [
        f"warning: {source.name}: no evidence for {labels[row.class_index]} at {layer}; the map is zero everywhere"
        for row in rows
        for (_, layer), heat in zip(columns, row.maps, strict=True)
        if not heat.any() and not nothing
    ]
    lines = [f"{source.name}: {prediction}; {nothing or f'map of {shares}{where}'} -> {path}", *warnings]
    return [cli.printable(line) for line in lines]


def nothing_found(job: Job, rows) -> str:
    """What is said instead of painting a map, where the answer is an exclusive label and no label was asked for."""
    args, best = job.args, job.best
    asked = args.target != "predicted" or args.mistakes or args.compare or args.classic
    if asked or any(row.class_index not in best.label_set.exclusive for row in rows):
        return ""
    return f"nothing found; --target {best.labels[rows[0].class_index]} shows what speaks for it"


def ring_lesions(job: Job, row, pixels, window):
    """(the photo with its lesions ringed and numbered, how many there are in words) for the explanation of a label.

    An exclusive label, e.g. healthy, has none. None are shown where several maps are compared, or with --classic.
    """
    from tools.explain.peaks import count_in_words, find_lesions
    from tools.render.maps import draw_rings

    if job.args.classic or len(row.maps) > 1 or row.class_index in job.best.label_set.exclusive:
        return pixels, ""
    (heat,), (cell,) = row.maps, row.cells
    lesions = find_lesions(heat, cell)
    left, top, right, bottom = window or (0, 0, pixels.shape[1], pixels.shape[0])
    across, down = (right - left) / heat.shape[1], (bottom - top) / heat.shape[0]
    places = [(left + across * x, top + down * y) for _, x, y in lesions.tolist()]
    args = job.args
    default = not (args.method or args.layer or args.map_size or args.fast or args.tta)
    return draw_rings(pixels, places, max(across, down) * cell), count_in_words(len(lesions), default)


def caption_row(row, label: str, columns, roles, picture, found: str, nothing: str):
    """(caption, photo, [(caption, map) per column]) of the explanation of a label, for `draw_figure`.

    `roles` lists the true and the predicted labels, if the figure is to name them; `nothing` is from `nothing_found`.
    """
    maps = []
    for (title, _), probability, heat in zip(columns, row.probabilities, row.maps, strict=True):
        below = title if heat.any() else nothing or f"no evidence for it\n{title}"
        maps.append((f"{label} {100 * probability:.1f}%\n{below}", heat))
    played = " and ".join(role for role, members in roles.items() if label in members)
    caption = f"{played}: {label}" if played else found or "photo"
    return f"{caption}\n{found}" if played and found else caption, picture, maps


def score(loaded, args, run) -> int:
    """Measures maps against boxes; writes cam_scores.csv and cam_scores.png."""
    from data.boxes import read_boxes
    from tools.evaluate.held_out import share_out
    from tools.explain.photos import list_boxed_labels, load_boxed_labels
    from tools.explain.score import format_scores, list_score_rows, measure_recipes, summarise
    from tools.render.figures import draw_cam_scores

    job = load_job(loaded, args, run)
    boxes, size = read_boxes(Path(args.score), job.best.labels), job.config.DATA.BATCH_SIZE
    print(job.why)
    held_out = cli.HELD_OUT in args.split
    members = [predictor.members[0] for predictor in job.predictors]
    shares = share_out(members, job.config.DATA, job.splits) if held_out else [job.splits] * len(members)
    boxed = [list_boxed_labels(splits, job.best.labels, boxes) for splits in shares]
    if not any(boxed):
        raise DataError(f"the boxes belong to no photo in {', '.join(args.split)}; name other splits with --split")
    measured = []
    for predictor, found, scales in zip(job.predictors, boxed, job.scales, strict=True):
        if not found:
            continue
        labels = load_boxed_labels([scale.preprocess for scale in scales], found, args.thorough)
        watched = progress(batches(labels, size), str(predictor.members[0].path), -(-len(found) // size))
        measured.append(measure_recipes(scales, watched, job.recipes, predictor.rule.probabilities))
    if not any(of_recipes[0].photos for of_recipes in measured):
        raise DataError(f"{args.score}: no box lies in the part of a photo that the model sees")
    if held_out:  # the models share the photos
        measured = [[sum(parts[1:], parts[0]) for parts in zip(*measured, strict=True)]]
    names = [cli.HELD_OUT] if held_out else [member.path.name for member in members]
    scores = [(name, summarise(each)) for name, of_recipes in zip(names, measured, strict=True) for each in of_recipes]
    titles = [f"{checkpoint}  {score.recipe.method}\n{score.recipe.layer}" for checkpoint, score in scores]
    write_bytes(job.folder / "cam_scores.csv", format_csv(list_score_rows(scores)))
    write_bytes(job.folder / "cam_scores.png", draw_cam_scores(titles, [score.figures for _, score in scores]))
    first = scores[0][1]
    sizes = " and ".join(f"{len(scale.views)} x {scale.preprocess.size} pixels" for scale in job.scales[0])
    print(f"{first.num_photos} photos, {first.num_labels} labels with boxes, {sizes}, with 95 % intervals:")
    print("\n".join(format_scores(scores)))
    print(f"written: {job.folder}/cam_scores.csv, cam_scores.png")
    return 0
