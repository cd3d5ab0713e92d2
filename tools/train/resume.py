"""Whether a run may start in its folder, and whether the checkpoint it resumes fits. Writes nothing but the lock."""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from configs.keys import KEYS
from configs.load import Loaded, differences
from tools.base.errors import BusyError, CheckpointError, ResourceError, UsageError
from tools.base.files import holder, locked
from tools.checkpoint import store
from tools.checkpoint.find import stored_config
from tools.checkpoint.schema import RESUME
from tools.runtime.distributed import Ranks, gather_objects, together
from tools.train.history import HISTORY, read_history
from tools.train.output import CHECKPOINTS, RUN_FILES

HARMLESS = [name for name, key in KEYS.items() if key.may_change]


@dataclass(frozen=True)
class Start:
    """What a run starts from.

    Attributes:
        path: the checkpoint to resume; None for a new run.
        stored: its content.
        in_place: it is the folder's own checkpoint, so the folder's files are continued, not replaced.
        faults: what is wrong with the folder's other checkpoints.
    """

    path: Path | None = None
    stored: dict = field(default_factory=dict)
    in_place: bool = False
    faults: dict[Path, str] = field(default_factory=dict)


@contextmanager
def sole_run(loaded: Loaded, ranks: Ranks) -> Iterator[None]:
    """Inside the block, no other run uses the folder. Raises BusyError on every rank when one does."""
    with ExitStack() as held:
        with together(ranks):
            if ranks.first:
                check_folder(loaded)
                held.enter_context(locked(loaded.run_folder))
        yield


def check_unused(loaded: Loaded, ranks: Ranks) -> None:
    """Raises as `sole_run` does, and does not take the lock."""
    with together(ranks):
        if ranks.first:
            check_folder(loaded)
            if who := holder(loaded.run_folder):
                raise BusyError(f"{loaded.run_folder} is in use by {who}; wait for it, or name another run with --tag")


def find_start(loaded: Loaded, overwrite: bool) -> Start:
    """What the run starts from: a checkpoint or nothing.

    After a restart by torchrun it resumes the folder's own checkpoint, if there is one, regardless of the flags.

    Raises:
        UsageError: for a folder that holds another run.
        CheckpointError: when no checkpoint of the folder is intact, or the requested one is not.
    """
    config, folder = loaded.config, loaded.run_folder
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    own = [path for path in (folder / store.LAST, folder / store.PREVIOUS) if os.path.lexists(path)]
    asked = Path(config.MODEL.RESUME) if config.MODEL.RESUME else None
    if asked and not (restarted and own):
        in_place = any(path.exists() and asked.exists() and path.samefile(asked) for path in own)
        if not in_place:
            _refuse_another_run(folder, overwrite)
        return Start(asked, store.read_own(asked, RESUME), in_place)
    if own and (restarted or (config.TRAIN.AUTO_RESUME and not overwrite)):
        path, stored, faults = store.newest(folder)
        read_history(folder / HISTORY)  # fail now, not after an epoch, if metrics.csv cannot be continued
        return Start(path, stored, in_place=True, faults=faults)
    _refuse_another_run(folder, overwrite or restarted)
    return Start()


def _refuse_another_run(folder: Path, overwrite: bool) -> None:
    if not overwrite and any((folder / name).exists() for name in CHECKPOINTS):
        raise UsageError(f"{folder} holds a run; name another run with --tag, or replace it with --overwrite")


def check_folder(loaded: Loaded) -> None:
    """Raises when a run cannot write its files into its folder.

    The photos must lie apart, and nothing else may have the names of the files. A link is refused as well: writing
    through it would overwrite a file outside the folder.
    """
    config, folder = loaded.config, loaded.run_folder
    photos, target = Path(config.DATA.DATA_PATH).resolve(), folder.resolve()
    if target.is_relative_to(photos) or photos.is_relative_to(target):
        both = f"--output {config.OUTPUT} and --data-path {config.DATA.DATA_PATH}"
        raise UsageError(f"{both}: one lies inside the other; choose another --output")
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


def check_unchanged(start: Start, config, meta: dict, allowed: list[str]) -> None:
    """Raises when a checkpoint was made with another config, other photos, another batch or another precision.

    Args:
        meta: what the checkpoints of this run would hold, see `tools.train.setup.checkpoint_meta`.
        allowed: config keys that may differ.
    """
    stored, path = start.stored, start.path or Path()
    remedy = "start another run with --tag NAME, or replace this one with --overwrite"
    # other photos, which may give other values to these keys, are reported below
    same_photos = stored["data_digest"] == meta["data_digest"]
    resolved = () if same_photos else ("DATA.TARGETS", "MODEL.NUM_CLASSES")
    changed = differences(config, stored_config(stored, path), (*HARMLESS, *allowed, *resolved))
    if changed:
        keys = " ".join(line.split()[0] for line in changed)
        raise UsageError(
            f"{path} was made with another config: {', '.join(changed)}; {remedy}, "
            f"or allow it with --allow-change {keys}"
        )
    for what in ("classes", "labels", "exclusive"):
        if stored[what] != meta[what]:
            raise CheckpointError(f"{path} has the {what} {stored[what]}, the data has {meta[what]}; {remedy}")
    if not same_photos:
        raise CheckpointError(f"{path} was made with other photos, labels or soft labels; {remedy}")
    if stored["images_per_update"] != meta["images_per_update"]:
        raise CheckpointError(
            f"{path} was made with {stored['images_per_update']} images per update, and this run would have "
            f"{meta['images_per_update']}; use the same ranks x batch size as before"
        )
    was, now = stored["precision"], meta["precision"]
    if was not in ("", now) and not any(key.startswith("AMP.") for key in allowed):
        raise CheckpointError(
            f"{path} was trained in {was}, and AMP.OPT_LEVEL and AMP.DTYPE mean {now} on this machine; resume on a GPU "
            "or CPU like the one before, or set them and add --allow-change AMP.OPT_LEVEL AMP.DTYPE"
        )


def check_agreement(ranks: Ranks, config, meta: dict, start: Start) -> None:
    """Raises UsageError on every rank when one of them has another config, precision, checkpoint or other photos."""
    mine = {"config": meta["config"], "photos": meta["data_digest"], "precision": meta["precision"]}
    mine["step"] = start.stored.get("step", 0)
    for rank, theirs in enumerate(gather_objects(mine)):
        changed = differences(config, stored_config(theirs, Path(f"rank {rank}")), HARMLESS)
        changed += [key for key in ("photos", "step", "precision") if theirs[key] != mine[key]]
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
            f"no space at {there}: the checkpoints of a run need {need / 2**20:.0f} MiB, and there are "
            f"{have / 2**20:.0f}; make room, or choose another --output"
        )
