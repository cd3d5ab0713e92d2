"""metrics.csv: one row per epoch. Rows written after a resume replace those of the same epochs."""

from pathlib import Path

from tools.base.errors import DataError, ResourceError
from tools.base.files import read_regular, write_bytes
from tools.base.tables import format_csv, read_csv

HISTORY = "metrics.csv"
MAX_BYTES = 256_000_000

SCORES = ("accuracy", "top2", "hit1", "exact", "macro_f1")  # of the validation photos, by `tools.evaluate.metrics`
FIELDS = ("epoch", "step", "lr", "train_loss", "grad_norm", "skipped", "seconds", "val_loss", *SCORES, "best")


def read_history(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv; none when it does not exist.

    Raises:
        ResourceError: for a file of another format, to which a run cannot add rows.
    """
    if not path.exists():
        return []
    try:
        header, lines = read_csv(read_regular(path, "history", MAX_BYTES), path)
        if tuple(header) != FIELDS:
            raise ValueError(f"its header is not {','.join(FIELDS)}")
        rows = [dict(zip(FIELDS, fields, strict=True)) for _, fields in lines]
        for row in rows:
            int(row["epoch"]), *map(float, row.values())
    except (DataError, ValueError) as error:
        raise ResourceError(f"{path} cannot be continued: {error}; move it, or start again with --overwrite") from None
    return rows


def add_row(path: Path, row: dict) -> list[dict[str, str]]:
    """Drops the rows from the epoch of `row` on, appends `row`, writes the whole file and returns all rows."""
    rows = [old for old in read_history(path) if int(old["epoch"]) < row["epoch"]]
    rows.append({key: f"{value:.8g}" if isinstance(value, float) else str(value) for key, value in row.items()})
    write_bytes(path, format_csv([FIELDS, *([old[name] for name in FIELDS] for old in rows)]), make_folder=False)
    return rows
