"""metrics.csv: one row per epoch. Rows written after a resume replace those of the same epochs."""

import csv
import io
from pathlib import Path

from tools.base.errors import DataError, ResourceError
from tools.base.files import read_regular, write_bytes

HISTORY = "metrics.csv"
MAX_BYTES = 256_000_000


FIELDS = (
    "epoch",
    "step",
    "lr",
    "train_loss",
    "grad_norm",
    "skipped",
    "seconds",
    "val_loss",
    "accuracy",
    "top2",
    "hit1",
    "exact",
    "macro_f1",
    "best",
)


def read_history(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv; none when it does not exist.

    Raises:
        ResourceError: for a file that a run cannot continue, because another program has changed it.
    """
    if not path.exists():
        return []
    try:
        text = io.StringIO(read_regular(path, "history", MAX_BYTES).decode(), newline="")
        header, *lines = list(csv.reader(text, strict=True)) or [[]]
        if tuple(header) != FIELDS:
            raise ValueError(f"its header is not {','.join(FIELDS)}")
        rows = [dict(zip(FIELDS, line, strict=True)) for line in lines]
        for row in rows:
            int(row["epoch"]), *map(float, row.values())
    except (DataError, ValueError, csv.Error) as error:
        raise ResourceError(f"{path} cannot be continued: {error}; move it, or start again with --overwrite") from None
    return rows


def add_row(path: Path, row: dict) -> list[dict[str, str]]:
    """Replaces the rows from the epoch of `row` on by `row`, writes the file whole, and returns all rows."""
    rows = [old for old in read_history(path) if int(old["epoch"]) < row["epoch"]]
    rows.append({key: f"{value:.8g}" if isinstance(value, float) else str(value) for key, value in row.items()})
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode(), make_folder=False)
    return rows
