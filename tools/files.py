"""Writing results: a file gets its name only when it is whole."""

import contextlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from tools.errors import ResourceError, UsageError


def write_bytes(path: Path, content: bytes, make_folder: bool = True) -> None:
    """Writes beside `path` and renames. Raises ResourceError when the disk refuses; no half file stays.

    Args:
        make_folder: make the folder of `path` where there is none; False where its absence is an error.
    """
    staging = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        staging.write_bytes(content)
        staging.replace(path)
    except OSError as error:
        raise ResourceError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):  # its folder is gone or not ours: there is nothing left to tidy
            staging.unlink(missing_ok=True)


def check_output(flag: str, target: str | Path | None, inputs: Iterable[str | Path] = (), photos: str = "") -> None:
    """Raises UsageError when the output `target` that `flag` names would harm what is read.

    Args:
        inputs: files, none of which it may be.
        photos: a folder in which it may not lie, because whoever reads it next would take it for a part of the data.
    """
    if target is None:
        return
    if photos and Path(target).resolve().is_relative_to(Path(photos).resolve()):
        raise UsageError(f"{flag} {target} lies among the photos of {photos}; choose another place")
    if os.path.exists(target) and any(os.path.exists(each) and os.path.samefile(target, each) for each in inputs):
        raise UsageError(f"{flag} {target} is what is read; choose another name")


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """Writes `[H, W, 3]` uint8 RGB as the format of the suffix (.png, .jpg)."""
    good, encoded = cv2.imencode(path.suffix, pixels[:, :, ::-1])  # OpenCV wants BGR
    if not good:
        raise ResourceError(f"{path} cannot be encoded")
    write_bytes(path, encoded.tobytes())
