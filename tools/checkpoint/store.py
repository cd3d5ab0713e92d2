"""Checkpoints and run folders: written so that nothing is lost, read so that nothing is believed.

A checkpoint holds tensors and plain values only. `last.pth` has everything a run needs to go on, and `previous.pth` is
the one before it; `best.pth` has the inference weights and what test.py and visual.py must know about them.
"""

import collections
import contextlib
import os
import pickle
import secrets
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from tools.base.errors import CheckpointError, NumericsError, ResourceError
from tools.checkpoint.digest import SealingWriter, ends_well, is_sealed
from tools.checkpoint.schema import INFERENCE, RESUME, Schema

FORMAT = 2


LAST, PREVIOUS, BEST, SNAPSHOTS, RUN = "last.pth", "previous.pth", "best.pth", "epochs", "run.json"


BROKEN = ".bad"  # added to the name of a checkpoint that a run could not go on from


FITTED_KEYS = ("thresholds", "temperatures", "validation")  # what the last validation says of decisions


def save(path: Path, content: dict, previous: Path | None = None) -> None:
    """Writes a checkpoint under its name only after it is on the disk and reads back whole.

    Args:
        previous: the name that the checkpoint at `path`, if there is one, gets when the new one takes its place.

    Raises:
        NumericsError: when a number in it is not finite.
        ResourceError: when the disk refuses; what stood at `path` before is untouched.
    """
    broken = non_finite(content)
    if broken:
        raise NumericsError(f"{broken} is not finite, so {path} was not written; lower TRAIN.BASE_LR")
    staging = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        write(staging, content)
        _verify_archive(staging)
        if not is_sealed(staging):
            raise CheckpointError("it does not read back as it was written")
        if previous and path.exists():
            _keep(path, previous)
        staging.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError, CheckpointError) as error:  # torch reports a full disk as RuntimeError
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise ResourceError(f"{path} cannot be written: {reason}; the older one, if any, is untouched") from None
    finally:
        with contextlib.suppress(OSError):  # its folder is gone or not ours: there is nothing left to tidy
            staging.unlink(missing_ok=True)


def write(path: Path, content: dict) -> None:
    """Writes `content` to a new file, with its seal, and returns when it is on the disk and no longer in memory."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    with os.fdopen(descriptor, "wb") as file:
        archive = SealingWriter(file)
        try:
            torch.save(content, archive)
        except RuntimeError as error:  # of half an archive, which hides what cut it short: a full disk, Ctrl-C
            raise error.__context__ or error from None
        archive.seal()
        os.fsync(descriptor)
        if hasattr(os, "posix_fadvise"):  # so that reading back asks the disk
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def newest(folder: Path) -> tuple[Path | None, dict, dict[Path, str]]:
    """The checkpoint of a run folder that is furthest: its path, its content, and what is wrong with others there.

    Only last.pth and previous.pth count, and only when every bit of them is right; file times do not.
    (None, {}, {}) where there is none at all.

    Raises:
        CheckpointError: when there are some and none of them can be read.
    """
    found, faults = [], {}
    for path in (folder / LAST, folder / PREVIOUS):
        if os.path.lexists(path):
            try:
                found.append((path, read_own(path, RESUME)))
            except CheckpointError as error:
                faults[path] = str(error)
    if faults and not found:
        first = next(iter(faults.values()))
        raise CheckpointError(f"{first}; no other checkpoint is left: start anew with --overwrite or --tag NAME")
    path, content = max(found, key=lambda pair: pair[1]["step"], default=(None, {}))
    return path, content, faults


def sweep(folder: Path) -> None:
    """Removes what writers that were killed left half-written. Needs the lock of the folder."""
    for place in (folder, folder / SNAPSHOTS):
        for path in place.glob(".*.tmp"):
            path.unlink(missing_ok=True)


def read(path: Path) -> dict:
    """The content of a weight file: a torch archive (ours, Microsoft's, the course project's) or .safetensors.

    Only tensors and plain values are ever built from it (and yacs's node, which is a dict). Torch does not check the
    archive's checksums, nor that a tensor has the numbers its shape asks for, so we do.

    Raises:
        CheckpointError: for anything missing, damaged or of another kind.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} {'is not a file' if path.exists() else 'does not exist'}")
    try:
        content = _load(path)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} is damaged, or holds more than tensors and plain values, or is no checkpoint"
        ) from None
    except Exception as error:  # torch and safetensors raise many kinds for a file that is not theirs
        raise CheckpointError(
            f"{path} is not a checkpoint: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a checkpoint: it holds a {type(content).__name__}")
    for name, tensor in named_tensors(content):
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_complex():
            raise CheckpointError(f"{path} is not a checkpoint: {name} is no plain tensor of real numbers")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():  # one number shown many times
            raise CheckpointError(f"{path} is not a checkpoint: {name} claims more numbers than the file holds")
    return content


def read_own(path: Path, schema: Schema = INFERENCE) -> dict:
    """A checkpoint of this program of which every bit is as written, and every key of `schema` there and of its kind.

    Raises:
        CheckpointError: for another program's file, another format, or a part that is missing or makes no sense.
    """
    content = read(path)
    if "format" not in content or "preprocess" not in content:
        raise CheckpointError(f"{path} is not a checkpoint of this program; to start from its weights use --pretrained")
    if content["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {content['format']!r}, and this program reads {FORMAT}")
    if not is_sealed(path):
        raise CheckpointError(f"{path} is damaged: it is not as this program wrote it, down to the last bit")
    missing = [key for key in schema if key not in content]
    if "optimizer" in missing:
        raise CheckpointError(
            f"{path} has no optimizer state, so a run cannot go on from it; "
            f"start a new one from its weights with --pretrained {path}"
        )
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}")
    for key, (holds, wanted) in schema.items():
        if not holds(content[key]):
            raise CheckpointError(f"{path} does not hang together: {key} must be {wanted}")
    broken = non_finite(content)
    if broken:
        raise CheckpointError(f"{path} does not hang together: non-finite {broken}")
    return content


def named_tensors(content: object) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested dicts and lists with its dotted path. What is shared is visited once: no bomb unfolds."""
    seen, waiting = set(), [("", content)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            parts = value.items() if isinstance(value, Mapping) else enumerate(value)
            waiting += reversed([(f"{name}.{key}".lstrip("."), part) for key, part in parts])


def non_finite(content: object) -> str:
    """Path of the first tensor that holds NaN or infinity; the empty string when none does."""
    return next((name for name, tensor in named_tensors(content) if not tensor.isfinite().all()), "")


def _load(path: Path) -> object:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if zipfile.is_zipfile(path):
        _verify_archive(path)
    allowed = [(collections.OrderedDict, "yacs.config.CfgNode")]  # what the course project's files hold
    with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old pickle protocols
        return torch.load(path, map_location="cpu", weights_only=True)


def _verify_archive(path: Path) -> None:
    """Checks every member's CRC, after refusing what torch never writes and bombs are made of."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(info.compress_type != zipfile.ZIP_STORED for info in members):
                raise CheckpointError(f"{path} is not a checkpoint: its archive is compressed")
            if sum(info.file_size for info in members) > path.stat().st_size:
                raise CheckpointError(f"{path} is not a checkpoint: its members add up to more than the file")
            if not ends_well(path, archive.comment):
                raise CheckpointError(f"{path} is damaged: it is not as it was written")
            broken = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeDecodeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    if broken:
        raise CheckpointError(f"{path} is damaged: checksum of {broken} does not match")


def _keep(path: Path, previous: Path) -> None:
    """Gives the file at `path` the name `previous` as well, so that there is no moment without `path`."""
    link = previous.with_name(f".{previous.name}.{secrets.token_hex(8)}.tmp")
    try:
        os.link(path, link)
    except OSError:  # a file system without hard links: `previous` is all there is for a moment
        path.replace(previous)
    else:
        link.replace(previous)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
