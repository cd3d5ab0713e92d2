"""Writing results: a file gets its name only when it is whole."""

import contextlib
import secrets
from pathlib import Path

import cv2
import numpy as np

from tools.errors import ResourceError


def write_bytes(path: Path, content: bytes) -> None:
    """Writes beside `path` and renames. Raises ResourceError when the disk refuses; no half file stays."""
    staging = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        staging.write_bytes(content)
        staging.replace(path)
    except OSError as error:
        raise ResourceError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):  # its folder is gone or not ours: there is nothing left to tidy
            staging.unlink(missing_ok=True)


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """Writes `[H, W, 3]` uint8 RGB as the format of the suffix (.png, .jpg)."""
    good, encoded = cv2.imencode(path.suffix, pixels[:, :, ::-1])  # OpenCV wants BGR
    if not good:
        raise ResourceError(f"{path} cannot be encoded")
    write_bytes(path, encoded.tobytes())
