"""Joins the CSV files that `predict --shard` wrote on several machines into one."""

from pathlib import Path

from tools.base import cli
from tools.base.errors import DataError
from tools.base.files import check_output_file, read_regular, write_bytes
from tools.base.tables import format_csv, read_csv

EPILOG = """
example
  python -m tools join part1.csv part2.csv part3.csv --csv orchard.csv
"""


@cli.command
def main(argv: list[str]) -> int:
    """Parses `argv`, joins, and says how many photos there are."""
    parser = cli.Parser(prog="python -m tools join", description=__doc__, epilog=EPILOG)
    parser.add_argument("parts", nargs="+", metavar="PART.csv")
    parser.add_argument("--csv", required=True, metavar="FILE", help="the file to write")
    args = parser.parse_args(argv)

    from tools.evaluate.predictions import MAX_BYTES

    check_output_file("--csv", args.csv, args.parts)
    joined: dict[str, tuple[str, list[str]]] = {}  # photo -> (part, row)
    first: list[str] = []
    for part in args.parts:
        path = Path(part)
        header, rows = read_csv(read_regular(path, "predictions", MAX_BYTES), path)
        if header[:1] != ["images"] or header[-1:] != ["model"] or header != (first or header):
            raise DataError(f"{path} is not a CSV of predict, or has other labels than {args.parts[0]}")
        first = header
        for number, row in rows:
            if joined and row[-1] != next(iter(joined.values()))[1][-1]:
                raise DataError(f"{path}, row {number} is of another model or other settings than {args.parts[0]}")
            if row[0] in joined:
                raise DataError(f"{path}, row {number}: {row[0]} is in both {joined[row[0]][0]} and {path}")
            joined[row[0]] = part, row
    write_bytes(Path(args.csv), format_csv([first, *(joined[image][1] for image in sorted(joined))]))
    print(f"{len(joined)} photos of {len(args.parts)} parts\nwritten: {args.csv}")
    return 0
