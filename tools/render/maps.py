"""Heat maps over their photos, and figures that show them side by side. All pixels are RGB uint8."""

import functools
import math
import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tools.base.errors import ResourceError
from tools.base.files import write_bytes
from tools.base.threads import batches

MAX_COLUMNS = 7  # tiles in a row of a figure
MIN_WIDTH = 240  # of a tile in pixels: smaller pictures are enlarged, so that captions fit
_INK, _PAPER = (51, 65, 58), (255, 255, 255)


def overlay(photo: np.ndarray, heat: np.ndarray, window: Sequence[float] | None = None) -> np.ndarray:
    """The photo `[H, W, 3]` under a map in [0, 1], half and half, in the jet colours.

    Args:
        heat: `[H, W]`; with a window of any size, resized to it.
        window: (left, top, right, bottom) of the part of the photo that the map shows, in pixels; the rest of the photo
            stays as it is. None: the map shows the whole photo.
    """
    if window is None:
        jet = cv2.applyColorMap((255 * heat.clip(0, 1)).astype(np.uint8), cv2.COLORMAP_JET)
        return cv2.addWeighted(photo, 0.5, cv2.cvtColor(jet, cv2.COLOR_BGR2RGB), 0.5, 0)
    left, top, right, bottom = (round(edge) for edge in window)
    right, bottom = max(right, left + 1), max(bottom, top + 1)  # it may be less than one pixel
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
        rows: (caption of the photo, [(caption, map) per tile]); a row longer than MAX_COLUMNS is split evenly.
        window: see `overlay`.
    """
    grid: list[list[tuple[str, np.ndarray]]] = []
    for caption, maps in rows:
        tiles = [(caption, photo), *((text, overlay(photo, heat, window)) for text, heat in maps)]
        num_lines = math.ceil(len(tiles) / MAX_COLUMNS)
        grid += batches(tiles, math.ceil(len(tiles) / num_lines))
    return _draw_grid(title, grid)


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """Writes `[H, W, 3]` uint8 RGB as a PNG."""
    good, encoded = cv2.imencode(".png", pixels[:, :, ::-1])  # OpenCV expects BGR
    if not good:
        raise ResourceError(f"{path} cannot be encoded")
    write_bytes(path, encoded.tobytes())


def _draw_grid(title: str, rows: Sequence[Sequence[tuple[str, np.ndarray]]]) -> np.ndarray:
    """Rows of (caption, pixels `[H, W, 3]`) of one size under a title; the longest caption sets the height of a row."""
    height, width = rows[0][0][1].shape[:2]
    if width < MIN_WIDTH:
        height, width = round(height * MIN_WIDTH / width), MIN_WIDTH
    font, gap = _font(max(13, width // 20)), max(8, width // 30)
    line = round(1.3 * font.size)
    columns = max(map(len, rows))
    total = gap + columns * (width + gap)
    heading = _wrap(title, font, total - 2 * gap)
    captions = [[_wrap(caption, font, width) for caption, _ in row] for row in rows]
    heads = [line * max(map(len, row)) + gap // 2 for row in captions]
    y = gap + line * len(heading) + gap
    canvas = Image.new("RGB", (total, y + sum(heads) + len(rows) * (height + gap)), _PAPER)
    draw = ImageDraw.Draw(canvas)
    _write(draw, (gap, gap), heading, font, line)
    for row, texts, head in zip(rows, captions, heads, strict=True):
        for column, ((_, pixels), text) in enumerate(zip(row, texts, strict=True)):
            x = gap + column * (width + gap)
            _write(draw, (x, y), text, font, line)
            canvas.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC), (x, y + head))
        y += head + height + gap
    return np.asarray(canvas)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """The typeface that comes with matplotlib: it covers more scripts than Pillow's own."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The lines of `text`, broken where they exceed `width`: after a space or one of `.+_/-`, else anywhere."""
    lines = []
    for paragraph in text.split("\n"):
        current = ""
        for piece in re.findall(r"[^ .+_/-]*[ .+_/-]?", paragraph):
            if current and font.getlength((current + piece).rstrip()) > width:
                lines.append(current.rstrip())
                current = ""
            current += piece
            while font.getlength(current.rstrip()) > width and len(current) > 1:
                fits = max(n for n in range(1, len(current)) if n == 1 or font.getlength(current[:n]) <= width)
                lines.append(current[:fits])
                current = current[fits:]
        lines.append(current.rstrip())
    return lines


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], lines: Sequence[str], font, height: int) -> None:
    for number, text in enumerate(lines):
        draw.text((place[0], place[1] + number * height), text, fill=_INK, font=font)
