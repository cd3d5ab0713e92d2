"""metrics.csv: one row an epoch. Because a run is a pure function of its step, rows after a resume replace old ones."""

import csv
from pathlib import Path

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
    """The rows of a metrics.csv; none when it does not exist."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def add_row(path: Path, row: dict) -> list[dict[str, str]]:
    """Writes `row` in the place of those of its epoch and later, and returns all rows. Nobody sees half of it."""
    rows = [old for old in read_history(path) if int(old["epoch"]) < row["epoch"]]
    rows.append({key: f"{value:.8g}" if isinstance(value, float) else str(value) for key, value in row.items()})
    staging = path.with_name(f".{path.name}.tmp")
    with staging.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    staging.replace(path)
    return rows
