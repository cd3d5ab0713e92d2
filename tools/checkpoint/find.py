"""Finds the checkpoint a command uses: the named ones, or the best.pth of the newest run; reads its config."""

import json
from collections.abc import Sequence
from pathlib import Path

from yacs.config import CfgNode

from configs.load import from_text
from tools.base.errors import CheckpointError, DataError, UsageError
from tools.base.files import read_regular
from tools.checkpoint.store import BEST, RUN, Content


def newest_run(output: Path) -> Path:
    """The best.pth of the run under `output` with the latest start in run.json. Raises CheckpointError for none."""
    found = []
    for record in output.glob(f"*/*/{RUN}"):
        try:
            started = json.loads(read_regular(record, "record", 1_000_000))["started"]
        except (DataError, ValueError, KeyError, TypeError, RecursionError):
            continue
        if (record.parent / BEST).is_file():
            found.append((str(started), record.parent / BEST))
    if not found:
        raise CheckpointError(f"no trained run under {output}; train one with main.py, or give --resume FILE")
    return max(found)[1]


def checkpoint_at(path: Path) -> Path:
    """The best.pth of a run folder; any other path as it is."""
    return path / BEST if path.is_dir() else path


def stored_config(content: Content, path: Path) -> CfgNode:
    """The config that a checkpoint was made with. Raises CheckpointError for an invalid one."""
    try:
        return from_text(content["config"], f"{path} (config)")
    except UsageError as error:
        raise CheckpointError(f"{path} is inconsistent: {error}") from None


def find_checkpoints(resume: Sequence[str], output: str, run: Path | None = None) -> tuple[list[Path], str]:
    """The checkpoints a command is to use, and a line that says why.

    Args:
        resume: the named files or run folders; when empty, the best.pth of `run` or of the newest run under `output`
            is used.
    """
    if resume:
        paths = [checkpoint_at(Path(name)) for name in resume]
        return paths, f"checkpoint {', '.join(map(str, paths))}"
    if run is not None:
        return [run / BEST], f"checkpoint {run / BEST}"
    path = newest_run(Path(output))
    return [path], f"checkpoint {path} (of the run started last; another one: --resume FILE)"
