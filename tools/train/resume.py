"""Whether a run may start in its folder, from where it goes on, and whether that still fits. A part of tools/launch.py.

May import every shelf; only tools/launch.py and entry points import it. Nothing is written here but the lock.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from configs.load import Loaded, differences
from tools.base.errors import CheckpointError, ResourceError, UsageError
from tools.base.files import locked
from tools.checkpoint import store
from tools.checkpoint.find import stored_config
from tools.checkpoint.schema import RESUME
from tools.runtime.distributed import Ranks, gather_objects, on_first_rank
from tools.train.data import Data
from tools.train.history import HISTORY, read_history
from tools.train.run import STATUS, Plan

# What may differ between a run and its continuation without changing a bit of the result.
HARMLESS = (
    *("OUTPUT", "TAG", "SAVE_FREQ", "PRINT_FREQ", "MODEL.RESUME", "MODEL.PRETRAINED"),
    *("DIST.BACKEND", "DIST.TIMEOUT_SECONDS", "TEST.TTA"),
    *("DATA.DATA_PATH", "DATA.ZIP_MODE", "DATA.FOLLOW_LINKS", "DATA.CACHE_MODE", "DATA.PIN_MEMORY", "DATA.NUM_WORKERS"),
    *("TRAIN.AUTO_RESUME", "TRAIN.MAX_STEPS", "TRAIN.SAVE_EVERY_STEPS", "TRAIN.SAVE_EVERY_MINUTES"),
    *("TRAIN.GRACE_SECONDS", "TRAIN.FIT_MEMORY", "TRAIN.MEMORY_GB", "TRAIN.SNAPSHOT_EPOCHS"),
)


CHECKPOINTS = (store.LAST, store.PREVIOUS, store.BEST)


RUN_FILES = (*CHECKPOINTS, store.RUN, STATUS, HISTORY, "curves.png", "log.txt", "config.yaml")


@dataclass(frozen=True)
class Start:
    """From where a run goes on.

    Attributes:
        path: the checkpoint; None for a run from the beginning.
        stored: its content.
        goes_on: whether it is the folder's own, so that the folder's files are added to and not replaced.
        faults: what is wrong with the folder's other checkpoints.
    """

    path: Path | None = None
    stored: dict = field(default_factory=dict)
    goes_on: bool = False
    faults: dict[Path, str] = field(default_factory=dict)


@contextmanager
def sole_run(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Inside, no other run has the folder. Raises BusyError on every rank when one has."""
    with ExitStack() as held:
        with on_first_rank(ranks):
            if ranks.first:
                check_folder(folder)
                held.enter_context(locked(folder))
        yield


def starting_point(loaded: Loaded, overwrite: bool) -> Start:
    """From where the run goes on. After a restart by torchrun, whatever the flags say, from where it was.

    Raises:
        UsageError: for a folder that holds another run.
        CheckpointError: when there are checkpoints and none is whole, or the one that was asked for is not.
    """
    config, folder = loaded.config, loaded.run_folder
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    own = [path for path in (folder / store.LAST, folder / store.PREVIOUS) if os.path.lexists(path)]
    asked = Path(config.MODEL.RESUME) if config.MODEL.RESUME else None
    if asked and not (restarted and own):
        if not any(path.exists() and asked.exists() and path.samefile(asked) for path in own):
            _refuse_another_run(folder, overwrite)
            return Start(asked, store.read_own(asked, RESUME))
        return Start(asked, store.read_own(asked, RESUME), goes_on=True)
    if own and (restarted or (config.TRAIN.AUTO_RESUME and not overwrite)):
        path, stored, faults = store.newest(folder)
        read_history(folder / HISTORY)  # or its new rows would be refused after an epoch
        return Start(path, stored, goes_on=True, faults=faults)
    _refuse_another_run(folder, overwrite or restarted)
    return Start()


def _refuse_another_run(folder: Path, overwrite: bool) -> None:
    if not overwrite and any((folder / name).exists() for name in CHECKPOINTS):
        raise UsageError(f"{folder} holds a run; name another with --tag, or lose it with --overwrite")


def check_folder(folder: Path) -> None:
    """Raises when a run cannot write its files into `folder`, because something else stands where they would be.

    A link is refused too, wherever it leads: what is written through it would be somebody else's.
    """
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not there.is_dir():
        raise UsageError(f"run folder {folder}: {there} is not a folder; choose another --output")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ResourceError(f"{there} is not writable; choose another --output")
    for name in RUN_FILES:
        path = folder / name
        if path.is_symlink() or (path.exists() and not path.is_file()):
            kind = CheckpointError if path.suffix == ".pth" else ResourceError
            raise kind(
                f"{path} is {'a link' if path.is_symlink() else 'not a file'}; move it away, or name another run"
            )


def check_unchanged(start: Start, config, data: Data, plan: Plan, allowed: list[str]) -> None:
    """Raises when a checkpoint was made with another config, other photos or another batch than this run would use."""
    stored, path = start.stored, start.path
    remedy = "start another run with --tag NAME, or lose this one with --overwrite"
    changed = differences(config, stored_config(stored, path), (*HARMLESS, *allowed))
    if changed:
        keys = " ".join(line.split()[0] for line in changed)
        raise UsageError(
            f"{path} was made with another config: {', '.join(changed)}; {remedy}, "
            f"or allow it with --allow-change {keys}"
        )
    if stored["classes"] != list(data.train.classes):
        raise CheckpointError(f"{path} has the classes {stored['classes']}, the data has {list(data.train.classes)}")
    if stored["data_digest"] != data.digests():
        raise CheckpointError(f"{path} was made with other photos or labels; {remedy}")
    if stored["images_per_update"] != plan.images_per_update:
        raise CheckpointError(
            f"{path} was made with {stored['images_per_update']} images an update, and this would be "
            f"{plan.images_per_update}; use as many ranks x batch size as before"
        )


def check_agreement(ranks: Ranks, config, data: Data, start: Start) -> None:
    """Raises UsageError on every rank when one of them sees another config, other photos or another checkpoint."""
    mine = {"config": config.dump(), "photos": data.digests(), "step": start.stored.get("step", 0)}
    for rank, theirs in enumerate(gather_objects(mine)):
        changed = differences(config, stored_config(theirs, Path(f"rank {rank}")), HARMLESS)
        changed += [key for key in ("photos", "step") if theirs[key] != mine[key]]
        if changed:
            raise UsageError(f"rank {ranks.rank} and rank {rank} differ in {', '.join(changed)}; give them the same")


def check_room(folder: Path, whole: int, inference: int) -> None:
    """Raises ResourceError when the disk has no room for the checkpoints of a run.

    Args:
        whole: bytes of a last.pth, of which there are three while one is written.
        inference: bytes of a best.pth, of which there are two.
    """
    there = next(place for place in (folder, *folder.parents) if place.exists())
    kept = sum((folder / name).stat().st_size for name in CHECKPOINTS if (folder / name).exists())
    need, have = 3 * whole + 2 * inference - kept, shutil.disk_usage(there).free
    if need > have:
        raise ResourceError(
            f"no space at {there}: the checkpoints of a run need {need / 2**20:.0f} MB, and there are "
            f"{have / 2**20:.0f}; make room, or choose another --output"
        )
