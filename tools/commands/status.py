"""Shows the state of a run from its files: step, time left, last scores, and whether its process is alive."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tools.base import cli
from tools.base.errors import CheckpointError, DataError, ResourceError
from tools.base.files import holder, read_regular


@cli.command
def main(argv: list[str]) -> int:
    """Parses `argv`, reads the run's files and prints."""
    parser = cli.Parser(prog="python -m tools status", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="run folder, e.g. output/sample/default")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    found = read_status(Path(args.run))
    print(json.dumps(found) if args.json else describe(found))
    return 0


def read_status(folder: Path) -> dict:
    """The content of a run's status.json and history, and the process that has its lock.

    Raises:
        CheckpointError: when `folder` is not a run folder.
        ResourceError: when one of its files cannot be read.
    """
    from tools.train.history import HISTORY, read_history

    path = folder / "status.json"
    if not path.exists():
        raise CheckpointError(f"{folder} has no status.json; it is not a run folder, or its run has made no update yet")
    try:
        status = json.loads(read_regular(path, "status", 1_000_000))
        age = (datetime.now(UTC) - datetime.fromisoformat(status["at"])).total_seconds()
        left = (status["total_steps"] - status["step"]) * status.get("seconds_per_update", 0.0)
        epoch = 1 + min(status["step"], status["total_steps"] - 1) // status["updates_per_epoch"]
        epochs = status["total_steps"] // status["updates_per_epoch"]
    except (DataError, ValueError, KeyError, TypeError, ZeroDivisionError, RecursionError) as error:
        raise ResourceError(
            f"{path} cannot be read: {type(error).__name__} {error}; resume the run to rewrite it"
        ) from None
    rows = read_history(folder / HISTORY)
    alive = holder(folder)
    more = {"run": str(folder), "alive": alive, "seconds_old": age, "seconds_left": left, "epoch": epoch}
    return status | more | {"epochs": epochs, "last_scores": rows[-1] if rows else {}}


def describe(found: dict) -> str:
    """What `read_status` returned, in words."""
    step, total = found["step"], found["total_steps"]
    lines = [f"{found['run']}: {_state(found)}"]
    lines.append(f"step {step} of {total} ({100 * step / total:.0f} %), epoch {found['epoch']} of {found['epochs']}")
    if found["alive"]:
        lines.append(f"about {timedelta(seconds=int(found['seconds_left']))} to go, validations not counted")
    if "loss" in found:
        lines.append(f"training loss of the epoch {found['loss']:.4f}")
    if scores := found["last_scores"]:
        names = ("val_loss", "hit1", "exact", "macro_f1")
        shown = ", ".join(f"{name} {float(scores[name]):.4f}" for name in names)
        lines.append(f"after epoch {scores['epoch']}: {shown}; best {found['select_by']} {found['best']:.4f}")
    if not found["alive"] and step < total:
        lines.append(f"resume with: {found['command']}")
    return "\n".join(lines)


def _state(found: dict) -> str:
    ago = timedelta(seconds=int(found["seconds_old"]))
    if found["alive"]:
        return f"alive, {found['alive']}; last heard of {ago} ago"
    if found["state"] == "training":
        return f"dead: it was training, last heard of {ago} ago"
    return f"{found['state']} {ago} ago"
