"""Compares settings over several seeds: makes all runs of a study file, resumable, and says what differs."""

from pathlib import Path

from configs.flags import add_config_flags, overrides
from tools.base import cli
from tools.base.errors import UsageError
from tools.study.plan import counted, read_study

EPILOG = """
Runs, report.txt, results.csv and study.png go to <OUTPUT>/study-<name of the file>/. The same command goes on after any
end; finished runs are not repeated. docs/studies.md explains the file and the verdicts.

examples
  python -m tools study configs/studies/sample.yaml --data-path demo/dataset --output demo/output
  python -m tools study configs/studies/batch_size.yaml --gpus 2
  python -m tools study configs/studies/batch_size.yaml --report   table and figure of the runs that are there
"""
FLAGS = (
    "--data-path",
    "--zip",
    "--follow-links",
    "--cache-mode",
    "--pretrained",
    "--amp-opt-level",
    "--device",
    "--output",
)


@cli.command
def main(argv: list[str]) -> int:
    """Parses `argv`, makes the runs that are missing, and prints the table."""
    parser = cli.Parser(prog="python -m tools study", description=__doc__, epilog=EPILOG)
    add = parser.add_argument
    add("file", metavar="FILE", help="study, e.g. configs/studies/sample.yaml")
    add(
        "--gpus",
        type=int,
        default=0,
        metavar="N",
        help="N runs at a time, each on a GPU of its own",
    )
    add("--report", action="store_true", help="make no runs, only the table and the figure")
    add_config_flags(parser, FLAGS)
    args = parser.parse_args(argv)
    if not 0 <= args.gpus <= 64:
        raise UsageError(f"--gpus {args.gpus} must be between 0 and 64")
    study = read_study(Path(args.file), overrides(args))

    from tools.study.runs import check_unchanged, is_scored, make_runs

    check_unchanged(study)
    done = sum(is_scored(run, study.split) for run in study.runs)
    size = f"{len(study.arms)} arms x {counted(len(study.runs) // len(study.arms), study.unit)}"
    print(f"{study.folder}: {size}, {done} of {len(study.runs)} runs are done", flush=True)
    if not args.report:
        make_runs(study, args.gpus)

    from tools.study.report import write_report

    print(f"\n{write_report(study)}\nwritten: {study.folder}/report.txt, results.csv, study.png")
    return 0
