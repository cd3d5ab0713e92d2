"""A heat map over its photo. All pixels are RGB uint8."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from tools.base.errors import ResourceError
from tools.base.files import write_bytes


def overlay(photo: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lays a map `[H, W]` in [0, 1] over a photo `[H, W, 3]`, half and half, in the jet colours."""
    jet = cv2.applyColorMap(np.uint8(255 * heat.clip(0, 1)), cv2.COLORMAP_JET)
    return cv2.addWeighted(photo, 0.5, cv2.cvtColor(jet, cv2.COLOR_BGR2RGB), 0.5, 0)


def overlay_window(photo: np.ndarray, heat: np.ndarray, window: Sequence[float]) -> np.ndarray:
    """Lays a map `[S, S]` over the part of a photo `[H, W, 3]` that it is of; the rest stays as it is.

    Args:
        window: (left, top, right, bottom) of that part, in pixels of the photo.
    """
    left, top, right, bottom = (round(edge) for edge in window)
    part = photo[top:bottom, left:right]
    drawn = photo.copy()
    drawn[top:bottom, left:right] = overlay(part, cv2.resize(heat, (part.shape[1], part.shape[0])))
    return drawn


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """Writes `[H, W, 3]` uint8 RGB as the format of the suffix (.png, .jpg)."""
    good, encoded = cv2.imencode(path.suffix, pixels[:, :, ::-1])  # OpenCV wants BGR
    if not good:
        raise ResourceError(f"{path} cannot be encoded")
    write_bytes(path, encoded.tobytes())
