"""Checkpoints of a run folder: written whole or not at all, validated on read.

A checkpoint holds tensors and plain values only. `last.pth` has everything a run needs to continue, and `previous.pth`
is the one before it; `best.pth` has the inference weights and what test.py and visual.py must know about them.
"""

import argparse
import collections
import contextlib
import io
import os
import pickle
import secrets
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from torch import Tensor

from data.labels import LabelSet, plain_fault
from tools.base.errors import CheckpointError, DataError, NumericsError, ResourceError
from tools.checkpoint.digest import SealingWriter, is_whole, read_digest
from tools.checkpoint.schema import INFERENCE, RESUME, Schema

Content = dict[str, Any]  # of a checkpoint, by part
FORMAT = 2
LAST, PREVIOUS, BEST, SNAPSHOTS, RUN = "last.pth", "previous.pth", "best.pth", "epochs", "run.json"
BROKEN = ".bad"  # added to the name of a checkpoint that a run could not resume from
FITTED_KEYS = ("thresholds", "temperatures", "validation")  # the decision rule that the last validation fitted


_DTYPES = (  # of the tensors that a weight file may hold
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
)


def save(path: Path, content: Content, previous: Path | None = None) -> None:
    """Writes a checkpoint, and gives it its name only after it is on the disk and reads back as it was written.

    Args:
        previous: new name of the checkpoint that is at `path` now, if there is one.

    Raises:
        NumericsError: when a number in it is not finite.
        ResourceError: when it cannot be written; the file at `path` is then untouched.
    """
    if "labels" in content and (fault := plain_fault(content)):
        raise CheckpointError(f"{path} is inconsistent: {fault}")
    if broken := non_finite(content):
        raise NumericsError(f"{broken} is not finite, so {path} was not written; lower TRAIN.BASE_LR")
    staging = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        write(staging, content)
        with staging.open("rb") as file:
            if not read_digest(file)[1]:
                raise OSError("it does not read back as it was written")
        if previous and path.exists():
            _keep(path, previous)
        staging.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise ResourceError(f"{path} cannot be written: {reason}; the older one, if any, is untouched") from None
    finally:
        with contextlib.suppress(OSError):  # the folder is gone, or may no longer be written to
            staging.unlink(missing_ok=True)


def write(path: Path, content: Content) -> None:
    """Writes `content` and its seal to a new file; it is on the disk, and out of the page cache, on return."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    with os.fdopen(descriptor, "wb") as file:
        archive = SealingWriter(file)
        try:
            torch.save(content, cast(IO[bytes], archive))  # it calls write and flush only
        except RuntimeError as error:  # "half an archive" hides the cause: a full disk, Ctrl-C
            raise error.__context__ or error from None
        archive.seal()
        os.fsync(descriptor)
        if hasattr(os, "posix_fadvise"):  # so that reading back reads from the disk
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def newest(folder: Path) -> tuple[Path | None, Content, dict[Path, str]]:
    """(path, content, errors of damaged ones by path) of a run folder's checkpoint with the highest step.

    Only undamaged files named last.pth and previous.pth count; file times are ignored. (None, {}, {}) if none exists.

    Raises:
        CheckpointError: when there are checkpoints and none of them can be read.
    """
    found: list[tuple[Path | None, Content]] = []
    faults: dict[Path, str] = {}
    for path in (folder / LAST, folder / PREVIOUS):
        if os.path.lexists(path):
            try:
                found.append((path, read_own(path, RESUME)))
            except CheckpointError as error:
                faults[path] = str(error)
    if faults and not found:
        first = next(iter(faults.values()))
        raise CheckpointError(f"{first}; no other checkpoint is left: start again with --overwrite or --tag NAME")
    return *max(found, key=lambda pair: pair[1]["step"], default=(None, {})), faults


def sweep(folder: Path) -> None:
    """Removes the half-written files of killed processes. The caller must hold the folder's lock."""
    for place in (folder, folder / SNAPSHOTS):
        for path in place.glob(".*.tmp"):
            path.unlink(missing_ok=True)


def read(path: Path) -> Content:
    """The content of any weight file, see `read_file`."""
    return read_file(path)[0]


def read_own(path: Path, schema: Schema = INFERENCE) -> Content:
    """The content of a checkpoint of this program, see `read_file`."""
    return read_file(path, schema)[0]


def read_file(path: Path, schema: Schema | None = None) -> tuple[Content, str]:
    """(content, SHA-256) of a weight file: a torch archive (ours, Microsoft's, the course project's) or .safetensors.

    Only tensors and plain values are ever built from it (and yacs's node, which is a dict). Torch checks neither the
    archive's checksums nor that a tensor has as many numbers as its shape claims; this function does. It reads the
    file once.

    Args:
        schema: the file must be a checkpoint of this program, match its stored SHA-256, and have a valid value per key.

    Raises:
        CheckpointError: for a missing file, a damaged one, another kind of file, or a missing or invalid part.
    """
    raw = _read_bytes(path)
    if foreign := describe_foreign(raw):
        raise CheckpointError(f"{path} is not a checkpoint: it is {foreign}")
    sha256, sealed = read_digest(io.BytesIO(raw))
    try:
        content = _parse(path, raw, sealed)
    except CheckpointError:
        raise
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} is damaged, or holds more than tensors and plain values, or is not a checkpoint"
        ) from None
    except Exception as error:  # torch and safetensors raise many types for files of other programs
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if "weights_only" in reason:  # torch's advice to load it unsafely
            reason = "torch does not read it safely"
        raise CheckpointError(f"{path} is not a checkpoint: {reason}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a checkpoint: it holds a {type(content).__name__}")
    for name, tensor in named_tensors(content):
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.dtype not in _DTYPES:
            raise CheckpointError(
                f"{path} is not a checkpoint: {name} is not a plain tensor of real numbers ({tensor.dtype})"
            )
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():  # repeated by strides of 0
            raise CheckpointError(f"{path} is not a checkpoint: {name} claims more numbers than the file holds")
    if schema:
        _check_own(path, content, sealed, schema)
    return content, sha256


def _check_own(path: Path, content: Content, sealed: bool, schema: Schema) -> None:
    if "format" not in content or "preprocess" not in content:
        raise CheckpointError(f"{path} is not a checkpoint of this program; to start from its weights use --pretrained")
    if content["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {content['format']!r}, and this program reads {FORMAT}")
    if not sealed:
        raise CheckpointError(f"{path} is damaged: it is not bit for bit as this program wrote it")
    _translate(content)
    missing = [key for key in schema if key not in content]
    if "optimizer" in missing:
        raise CheckpointError(
            f"{path} has no optimizer state, so a run cannot resume from it; "
            f"start a new one from its weights with --pretrained {path}"
        )
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}")
    for key, (holds, wanted) in schema.items():
        if not holds(content[key]):
            raise CheckpointError(f"{path} is inconsistent: {key} must be {wanted}")
    if fault := plain_fault(content):
        raise CheckpointError(f"{path} is inconsistent: {fault}")
    if broken := non_finite(content):
        raise CheckpointError(f"{path} is inconsistent: non-finite {broken}")


def _translate(content: Content) -> None:
    """Turns the content of a file of an earlier version into that of a new one; parts of a wrong kind are left."""
    content.setdefault("precision", "")
    preprocess, folders = content["preprocess"], content.get("classes")
    if isinstance(preprocess, dict) and "resize" not in preprocess and isinstance(preprocess.get("crop"), bool):
        preprocess["resize"] = "crop" if preprocess.pop("crop") else "squash"
    if "labels" not in content and isinstance(folders, list) and all(isinstance(folder, str) for folder in folders):
        with contextlib.suppress(DataError):  # an invalid name: the labels are then missing
            names = LabelSet.names_of(folders)
            content["labels"] = [names[folder] for folder in folders]
            content["exclusive"] = [i for i, name in enumerate(content["labels"]) if name == "healthy"]  # no other then


def named_tensors(content: object) -> Iterator[tuple[str, Tensor]]:
    """(dotted path, tensor) in nested dicts and lists. Shared parts are visited once: nesting cannot multiply them."""
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
    """Dotted path of the first tensor that holds NaN or infinity, or the empty string."""
    return next((name for name, tensor in named_tensors(content) if not tensor.isfinite().all()), "")


def _read_bytes(path: Path) -> bytes:
    if not path.is_file():
        raise CheckpointError(f"{path} {'is not a file' if path.exists() else 'does not exist'}")
    try:
        if path.stat().st_size > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
            raise CheckpointError(f"{path} is not a checkpoint: it is larger than the memory of this machine")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None


_FOREIGN = {  # how a file begins, in lower case -> what it is instead of a weight file, and what to do
    (b"version https://git-lfs",): "a Git LFS pointer; fetch the file itself with git lfs pull",
    (b"<!doctype html", b"<html"): "a web page, perhaps of a login or an error; download the file again",
    (b"\x89hdf",): "an HDF5 file, as Keras writes; convert it to .safetensors",
    (b"\x1f\x8b", b"bzh", b"7z", b"rar!"): "a compressed archive; unpack it first",
}


def describe_foreign(raw: bytes) -> str:
    """What the bytes are instead of a weight file and what to do, if recognised; else the empty string."""
    if not raw:
        return "empty"
    if raw[257:262] == b"ustar":
        return "a tar archive, perhaps of a torch before 0.1.11; save it again with torch.save of a newer one"
    start = raw[:200].lstrip().lower()
    return next((words for starts, words in _FOREIGN.items() if start.startswith(starts)), "")


def _number(dtype: np.dtype, raw: bytes) -> object:
    """A numpy scalar from a pickle, as a plain number."""
    if dtype.kind not in "biuf" or len(raw) != dtype.itemsize:
        raise pickle.UnpicklingError("not a number")
    return np.frombuffer(raw, dtype)[0].item()


_ALLOWED: list[Any] = [  # what files of the course project and of training scripts hold besides tensors
    (collections.OrderedDict, "yacs.config.CfgNode"),
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(name)) for name in ("bool", "int32", "int64", "float32", "float64")),
    *((_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def _parse(path: Path, raw: bytes, sealed: bool) -> object:
    """The content of the file at `path`, from its bytes."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load

        return load(raw)
    if zipfile.is_zipfile(io.BytesIO(raw)):
        _verify_archive(path, raw, sealed)
    with torch.serialization.safe_globals(_ALLOWED), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about old pickle protocols
        return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)


def _verify_archive(path: Path, raw: bytes, sealed: bool) -> None:
    """Refuses what zip bombs need and torch never writes (compression, overlaps), then checks every member's CRC."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            members = archive.infolist()
            if any(info.compress_type != zipfile.ZIP_STORED for info in members):
                raise CheckpointError(f"{path} is not a checkpoint: its archive is compressed")
            if sum(info.file_size for info in members) > len(raw):
                raise CheckpointError(f"{path} is not a checkpoint: its members add up to more than the file")
            if not is_whole(raw, archive.comment, sealed):
                raise CheckpointError(f"{path} is damaged: it has changed since it was written")
            broken = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeDecodeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    if broken:
        raise CheckpointError(f"{path} is damaged: checksum of {broken} does not match")


def _keep(path: Path, previous: Path) -> None:
    """Gives the file at `path` the name `previous` as well, so that `path` exists at every moment."""
    link = previous.with_name(f".{previous.name}.{secrets.token_hex(8)}.tmp")
    try:
        os.link(path, link)
    except OSError:  # a file system without hard links: for a moment only `previous` exists
        path.replace(previous)
    else:
        link.replace(previous)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
