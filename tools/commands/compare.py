"""Compares runs, epoch snapshots and predictions.csv files on the same photos, pairwise against the first."""

from functools import partial
from pathlib import Path

from configs.flags import add_config_flags, overrides
from configs.keys import FIGURES
from configs.load import load
from tools.base import cli
from tools.base.errors import DataError, UsageError
from tools.base.tables import format_table

EPILOG = """
examples
  python -m tools compare output/*/lr*                        runs whose tags begin with lr
  python -m tools compare output/x/default/epochs/*.pth       one run over its epochs (TRAIN.SNAPSHOT_EPOCHS)
  python -m tools compare a/test/predictions.csv b.csv        any program's files; the first has the truth
  python -m tools compare seed0 seed1 seed2 --mean            three seeds: mean and standard deviation
A difference is significant when its 95 % interval excludes 0. Both runs are scored on the same bootstrap draws. The
interval allows for other photos only; python -m tools study compares settings over seeds too.
"""
FLAGS = ("--batch-size", "--data-path", "--zip", "--amp-opt-level", "--device", "--tta", "--decide")


@cli.command
def main(argv: list[str]) -> int:
    """Parses `argv`, scores runs and checkpoints, and prints the table."""
    parser = cli.Parser(prog="python -m tools compare", description=__doc__, epilog=EPILOG)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="run folder, checkpoint or predictions.csv")
    add("--split", default="test", choices=["train", "val", "test"], help="photos to score (default test)")
    add("--by", default="exact", choices=FIGURES, help="figure to compare (default exact)")
    add("--mean", action="store_true", help="for runs that differ by chance only: show mean and spread")
    add_config_flags(parser, FLAGS)
    args = parser.parse_args(argv)
    loaded = load(None, None, overrides(args))

    import numpy as np

    from tools.base.bootstrap import interval
    from tools.evaluate.metrics import measure_draws, score
    from tools.evaluate.predictions import fit_to
    from tools.evaluate.result import signed

    runs = [read_run(name, loaded, args) for name in args.runs]
    known = next((table for _, table in runs if table.truth is not None), None)
    if known is None:
        raise UsageError("none of these has the true labels; add a run, or a predictions.csv with a column truth")
    tables = [fit_to(known, facts[0], table) for facts, table in runs]
    answers = [table.answers() for table in tables]
    scores = [score(*answer) for answer in answers]
    values = 100 * np.array([[figures[key] for key in FIGURES] for figures in scores])
    drawn = [measure_draws(*answer)[args.by] for answer in answers]
    rows = []
    for number, (facts, _) in enumerate(runs):
        difference = (values[number] - values[0])[FIGURES.index(args.by)]
        limits = interval(100 * (drawn[number] - drawn[0]), difference, len(known.images), (-100, 100)) or [0.0, 0.0]
        remark = "  difference not significant" if limits[0] <= 0 <= limits[1] else ""
        against = signed(difference, limits) + remark if number else "-"
        rows.append((*facts, *(f"{v:.2f}" for v in values[number]), against))
    if args.mean:
        deviations = values.std(axis=0, ddof=1 if len(runs) > 1 else 0)
        spread = (f"{mean:.2f} ± {sd:.2f}" for mean, sd in zip(values.mean(axis=0), deviations, strict=True))
        rows.append(("mean ± sd", "", "", "", *spread, f"{len(runs)} runs"))
    print(f"{len(known.images)} photos")
    header = ("run", "batch", "peak lr", "epochs", *(f"{key} %" for key in FIGURES), f"{args.by} against the first")
    print("\n".join(format_table([header, *rows], "<" + ">" * (len(header) - 2) + "<")))
    return 0


def read_run(name: str, loaded, args):
    """((name, images per update, peak learning rate, epochs), predictions) of a run.

    Args:
        name: a predictions.csv (numbers are then "-"), or a run folder or checkpoint, which is scored.
    """
    from tools.checkpoint.find import checkpoint_at
    from tools.evaluate.predictions import read_predictions

    path = Path(name)
    if not path.exists():
        raise DataError(f"{path} does not exist; give run folders, checkpoints or predictions.csv files")
    if path.suffix == ".csv":
        return (name, "-", "-", "-"), read_predictions(path)
    return score_checkpoint(name, checkpoint_at(path), loaded, args)


def score_checkpoint(name: str, path, loaded, args):
    """What `read_run` returns, of the checkpoint at `path`."""
    from data.build import build_split
    from tools.base.log import progress
    from tools.evaluate.predictions import PredictionTable
    from tools.evaluate.predictor import load_predictor, predict_split
    from tools.evaluate.result import evaluate
    from tools.runtime.distributed import Ranks, choose_device
    from tools.train.schedules import scale_lr

    config = loaded.config
    device = choose_device(Ranks(), config.DEVICE)
    predictor = load_predictor([path], device, decide_by=loaded.given("TEST.DECIDE_BY"), tta=loaded.given("TEST.TTA"))
    member = predictor.members[0]
    split = build_split(config.DATA, args.split, predictor.label_set)
    watch = partial(progress, description=str(path))
    logits, truth = predict_split(predictor, split, config.DATA, config.AMP, Ranks(), device, watch)
    result = evaluate(predictor.rule, logits, truth, split.digest() == member.data_digest[1])
    rate = scale_lr(member.config.TRAIN.BASE_LR, member.images_per_update)
    names = [photo.name for photo in split.photos]
    table = PredictionTable(names, tuple(predictor.labels), result.probability, result.decision, truth)
    return (name, member.images_per_update, f"{rate:.3g}", member.epoch + 1), table
