"""Heat maps over their photos, as arrays and as files. All pixels are RGB uint8."""

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from tools.base.errors import ResourceError
from tools.base.files import write_bytes
from tools.base.threads import batches
from tools.render.grid import draw_grid

MAX_COLUMNS = 7  # tiles in a row of a figure


def overlay(photo: np.ndarray, heat: np.ndarray, window: Sequence[float] | None = None) -> np.ndarray:
    """The photo `[H, W, 3]` under a map in [0, 1], half and half, in the jet colours.

    Args:
        heat: `[H, W]`; with a window `[S, S]`, resized to it.
        window: (left, top, right, bottom) of the part of the photo that the map shows, in pixels; the rest of the photo
            stays as it is. None: the map shows the whole photo.
    """
    if window is None:
        jet = cv2.applyColorMap((255 * heat.clip(0, 1)).astype(np.uint8), cv2.COLORMAP_JET)
        return cv2.addWeighted(photo, 0.5, cv2.cvtColor(jet, cv2.COLOR_BGR2RGB), 0.5, 0)
    left, top, right, bottom = (round(edge) for edge in window)
    part = photo[top:bottom, left:right]
    drawn = photo.copy()
    drawn[top:bottom, left:right] = overlay(part, cv2.resize(heat, (part.shape[1], part.shape[0])))
    return drawn


def draw_figure(
    title: str,
    photo: np.ndarray,
    rows: Sequence[tuple[str, Sequence[tuple[str, np.ndarray]]]],
    window: Sequence[float] | None = None,
) -> np.ndarray:
    """The photo beside its heat maps, as one picture.

    Args:
        rows: (caption of the photo, [(caption, map) per tile]); a row longer than MAX_COLUMNS is broken evenly.
        window: see `overlay`.
    """
    grid: list[list[tuple[str, np.ndarray]]] = []
    for caption, maps in rows:
        tiles = [(caption, photo), *((text, overlay(photo, heat, window)) for text, heat in maps)]
        num_lines = math.ceil(len(tiles) / MAX_COLUMNS)
        grid += batches(tiles, math.ceil(len(tiles) / num_lines))
    return draw_grid(title, grid)


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """Writes `[H, W, 3]` uint8 RGB in the format that the suffix names (.png, .jpg)."""
    good, encoded = cv2.imencode(path.suffix, pixels[:, :, ::-1])  # OpenCV expects BGR
    if not good:
        raise ResourceError(f"{path} cannot be encoded")
    write_bytes(path, encoded.tobytes())
