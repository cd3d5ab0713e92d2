"""Compares runs, epoch snapshots and predictions.csv files on the same photos, pairwise against the first."""

from dataclasses import dataclass
from functools import partial

from configs.flags import add_config_flags, overrides
from configs.load import load
from tools.base import cli
from tools.base.errors import DataError, UsageError

EPILOG = """
examples
  python -m tools compare output/*/bs*                        the course project's batch-size study
  python -m tools compare output/x/default/epochs/*.pth       one run over its epochs (TRAIN.SNAPSHOT_EPOCHS)
  python -m tools compare a/test/predictions.csv b.csv        anybody's files; the truth is in the first
  python -m tools compare seed0 seed1 seed2 --mean            three seeds: mean and standard deviation
A difference is called significant when 0 lies outside its 95 % interval over bootstrap draws, the same for both runs.
"""


FLAGS = ("--batch-size", "--data-path", "--zip", "--amp-opt-level", "--tta", "--decide")


SHOWN = ("exact", "hit1", "accuracy", "macro_f1")


@cli.command
def main(argv: list[str]) -> int:
    """Parses `argv`, scores what is no file of predictions yet, and prints the table."""
    parser = cli.Parser(prog="python -m tools compare", description=__doc__, epilog=EPILOG)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, checkpoint or predictions.csv")
    parser.add_argument(
        "--split", default="test", choices=["train", "val", "test"], help="photos to score (default test)"
    )
    parser.add_argument("--by", default="exact", choices=SHOWN, help="the figure that is compared (default exact)")
    parser.add_argument("--mean", action="store_true", help="the runs differ by chance only: show mean and spread")
    add_config_flags(parser, FLAGS)
    args = parser.parse_args(argv)
    loaded = load(None, None, overrides(args))

    from tools.base.bootstrap import interval
    from tools.evaluate.metrics import measure_draws, score

    runs = [read_run(name, loaded, args) for name in args.runs]
    images, labels, truth = photos_of(runs)
    rows, values, base = [], [], None
    for run in runs:
        said = fit_to(run, images, labels)
        scores = score(said.probability, said.decision, truth)
        drawn = measure_draws(said.probability, said.decision, truth)[args.by]
        base = drawn if base is None else base
        values.append([100 * scores[key] for key in SHOWN])
        against = describe_difference(
            values[-1][SHOWN.index(args.by)] - values[0][SHOWN.index(args.by)], interval(100 * (drawn - base))
        )
        rows.append((run.name, run.batch, run.rate, run.epochs, *(f"{v:.2f}" for v in values[-1]), against))
    rows[0] = (*rows[0][:-1], "-")
    if args.mean:
        rows.append(("mean ± sd", "", "", "", *spread(values), f"{len(values)} runs"))
    print(f"{len(images)} photos")
    print_table(
        [("run", "batch", "peak lr", "epochs", *(f"{k} %" for k in SHOWN), f"{args.by} against the first"), *rows]
    )
    return 0


@dataclass(frozen=True)
class Run:
    """One thing that is compared: images an update, peak learning rate and epochs (a dash where unknown), and what it
    said (`tools.evaluate.predictions.Predictions`)."""

    name: str
    said: object
    batch: str = "-"
    rate: str = "-"
    epochs: str = "-"


def read_run(name: str, loaded, args) -> Run:
    """The run called `name`: a predictions.csv as it is, a run folder or a checkpoint after scoring it."""
    from pathlib import Path

    from tools.base.files import read_regular
    from tools.checkpoint import store
    from tools.evaluate.predictions import MAX_BYTES, read_predictions

    path = Path(name)
    if not path.exists():
        raise DataError(f"{path} does not exist; give run folders, checkpoints or predictions.csv files")
    if path.suffix == ".csv":
        return Run(name, read_predictions(read_regular(path, "predictions", MAX_BYTES), path, course_labels()))
    return scored(name, path / store.BEST if path.is_dir() else path, loaded, args)


def course_labels() -> list[str]:
    """The six labels in the order of the classes."""
    from data.labels import NAME_OF

    return [NAME_OF[code] for code in sorted(NAME_OF)]


def scored(name: str, path, loaded, args) -> Run:
    """The checkpoint at `path`, scored on the split."""
    from data.build import build_split
    from tools.base.log import progress
    from tools.evaluate.predictions import Predictions
    from tools.evaluate.predictor import load_ensemble, predict_split
    from tools.evaluate.result import evaluate
    from tools.runtime.distributed import Ranks, choose_device
    from tools.train.schedules import scale_lr

    device, config = choose_device(Ranks()), loaded.config
    ensemble = load_ensemble([path], device, decide=loaded.given("TEST.DECIDE_BY"), tta=loaded.given("TEST.TTA"))
    member = ensemble.members[0]
    split = build_split(config.DATA, args.split, ensemble.classes)
    watch = partial(progress, description=str(path))
    logits, truth = predict_split(ensemble, split, config.DATA, config.AMP, Ranks(), device, watch)
    result = evaluate(ensemble.rule, logits, truth, split.digest() == member.data_digest[1])
    rate = scale_lr(member.config.TRAIN.BASE_LR, member.images_per_update)
    names = [photo.name for photo in split.photos]
    said = Predictions(names, tuple(ensemble.labels), result.probability, result.decision, truth)
    return Run(name, said, str(member.images_per_update), f"{rate:.3g}", str(member.epoch + 1))


def photos_of(runs: list[Run]):
    """(images, labels, truth) that all runs are compared on: those of the first run that knows the truth."""
    for run in runs:
        if run.said.truth is not None:
            return run.said.images, run.said.labels, run.said.truth
    raise UsageError("none of these knows the true labels; add a run, or a predictions.csv with a column truth")


def fit_to(run: Run, images, labels):
    """The predictions in the order of `images`. Raises DataError for other photos, labels or no probabilities."""
    from tools.evaluate.predictions import aligned

    name, said = run.name, run.said
    if tuple(said.labels) != tuple(labels):
        raise DataError(f"{name} has the labels {', '.join(said.labels)}, the others have {', '.join(labels)}")
    if said.probability is None:
        raise DataError(f"{name} holds no probabilities; score it alone with python -m tools score")
    if len(said.images) != len(images):
        raise DataError(f"{name} has {len(said.images)} photos, the others have {len(images)}")
    return aligned(said, images, name)


def describe_difference(points: float, limits: list[float]) -> str:
    """`+1.33 [+0.17, +2.50]`, and what an interval that holds 0 means."""
    remark = "  difference not significant" if limits[0] <= 0 <= limits[1] else ""
    return f"{points:+.2f} [{limits[0]:+.2f}, {limits[1]:+.2f}]{remark}"


def spread(values: list[list[float]]) -> list[str]:
    """`mean ± standard deviation` (of a sample) of every column."""
    import numpy as np

    deviations = np.std(values, axis=0, ddof=1 if len(values) > 1 else 0)
    return [f"{mean:.2f} ± {sd:.2f}" for mean, sd in zip(np.mean(values, axis=0), deviations, strict=True)]


def print_table(rows) -> None:
    """Columns as wide as their widest cell, the first and the last to the left."""
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [
            f"{cell:<{width}}" if i in (0, len(row) - 1) else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
