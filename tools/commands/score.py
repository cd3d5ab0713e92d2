"""Scores any program's predictions against a label CSV, with the figures and intervals of test.py."""

import json
from pathlib import Path

from tools.base import cli
from tools.base.files import check_output_file, write_bytes
from tools.base.tables import format_table

EPILOG = """
predictions: a first column images, then decision or labels (names separated by spaces, or by | where a name holds a
space), or one column per label (<label>, label_<label> or p_<label>) with 0 and 1 or probabilities; without
probabilities, figures that rank photos are left out
labels: a label CSV in any form that process_dataset.py reads
"""


@cli.command
def main(argv: list[str]) -> int:
    """Parses `argv`, scores and prints."""
    parser = cli.Parser(prog="python -m tools score", description=__doc__, epilog=EPILOG)
    parser.add_argument("predictions", metavar="PREDICTIONS.csv")
    parser.add_argument("labels", metavar="LABELS.csv")
    sign = "between the names in a column `labels` of LABELS.csv (default: found in the file)"
    parser.add_argument("--separator", metavar="SIGN", help=sign)
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    args = parser.parse_args(argv)

    import numpy as np

    from data.label_files import read_labels
    from tools.evaluate.metrics import OVERALL, PER_CLASS
    from tools.evaluate.predictions import aligned, read_predictions
    from tools.evaluate.result import class_rows, figures_of, overall_lines

    truths = read_labels(Path(args.labels), args.separator)
    path = Path(args.predictions)
    check_output_file("--json", args.json, [path, args.labels])
    everything = read_predictions(path, {label for row in truths.rows for label in row.labels} | {*truths.declared})
    place = {image: number for number, image in enumerate(everything.images)}
    rows = sorted(truths.rows, key=lambda row: place.get(row.image, -1))  # intervals depend on the order of the photos
    labels = everything.labels
    table = aligned(everything, [row.image for row in rows], path)
    truth = np.array([[label in row.labels for label in labels] for row in rows])
    probability, ranked = table.probability, table.probability is not None
    probability = table.decision.astype(float) if probability is None else probability
    scores, bounds = figures_of(probability, table.decision, truth)
    overall, columns = ([key for key in part if ranked or not part[key].ranks] for part in (OVERALL, PER_CLASS))
    extra = len(everything.images) - len(rows)
    print(f"{len(rows)} photos" + (f"; {extra} more predictions left out" if extra else ""))
    print("\n".join(overall_lines(scores, bounds, overall)))
    classes = [("label", "photos", *columns), *class_rows(scores, bounds, labels, columns)]
    print("\n".join(f"  {line}" for line in format_table(classes, "<><")))
    if args.json:
        content = {"labels": list(labels), **scores, "intervals": bounds}
        write_bytes(Path(args.json), (json.dumps(content, indent=1) + "\n").encode())
    return 0
