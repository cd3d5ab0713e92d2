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
MOST_OPAQUE = 0.8  # of a map's highest place
MIN_WIDTH = 240  # of a tile in pixels: smaller pictures are enlarged, so that captions fit
_SUBPIXEL_BITS = 4
_INK, _PAPER, _LEAF = (51, 65, 58), (255, 255, 255), (107, 142, 75)


def overlay(
    photo: np.ndarray, heat: np.ndarray, window: Sequence[float] | None = None, classic: bool = False
) -> np.ndarray:
    """The photo `[H, W, 3]` under a map from 0: the higher, the brighter and the less transparent; 0 is the photo.

    Colours are relative to the map's highest place.

    Args:
        heat: `[H, W]`; with a window of any size, resized to it.
        window: (left, top, right, bottom) of the part of the photo that the map shows, in pixels; the rest of the photo
            stays as it is. None: the map shows the whole photo.
        classic: the course project's picture instead, photo and jet colours half and half.
    """
    if window is None:
        heat = heat if classic else heat / max(heat.max(), np.finfo(np.float32).tiny)
        colours = _colours(heat, cv2.COLORMAP_JET if classic else cv2.COLORMAP_INFERNO)
        share = np.float32(0.5) if classic else MOST_OPAQUE * heat.clip(0, 1)[..., None] ** 0.75
        return np.rint(photo * (1 - share) + colours * share).astype(np.uint8)
    left, top, right, bottom = (round(edge) for edge in window)
    right, bottom = max(right, left + 1), max(bottom, top + 1)  # it may be less than one pixel
    part = photo[top:bottom, left:right]
    drawn = photo.copy()
    drawn[top:bottom, left:right] = overlay(part, cv2.resize(heat, (part.shape[1], part.shape[0])), None, classic)
    return drawn


def _colours(heat: np.ndarray, table: int) -> np.ndarray:
    """`[H, W]` in [0, 1] -> RGB by a table of OpenCV. Inferno's lightness grows evenly; jet has bright bands."""
    return cv2.applyColorMap((255 * heat.clip(0, 1)).astype(np.uint8), table)[..., ::-1]


def draw_rings(photo: np.ndarray, places: Sequence[tuple[float, float]], radius: float) -> np.ndarray:
    """The photo `[H, W, 3]` with a numbered ring round each place.

    Args:
        places: (x, y) in pixels of the photo.
        radius: of the rings, in pixels.
    """
    width, fine = max(1, round(max(photo.shape) / 300)), 2**_SUBPIXEL_BITS
    ringed = photo.copy()
    for x, y in places:
        centre, size = (round((x - 0.5) * fine), round((y - 0.5) * fine)), round(radius * fine)
        for ink, thickness in ((_INK, 3 * width), (_PAPER, width)):  # light on dark is seen on any photo
            cv2.circle(ringed, centre, size, ink, thickness, cv2.LINE_AA, _SUBPIXEL_BITS)
    canvas = Image.fromarray(ringed)
    draw, font = ImageDraw.Draw(canvas), _font(max(9, round(max(photo.shape) / 24)))
    for number, (x, y) in enumerate(places, 1):
        place = _beside(x, y, radius + 2 * width, photo.shape, font.size)
        draw.text(place, str(number), _PAPER, font, "mm", stroke_width=width, stroke_fill=_INK)
    return np.asarray(canvas)


def _beside(x: float, y: float, distance: float, shape: Sequence[int], height: float) -> tuple[float, float]:
    """Where a number stands: to the upper right of a place, or on the other side where the photo ends."""
    offset = 0.7 * distance + 0.4 * height
    right, up = x + 2 * offset < shape[1], y - 2 * offset > 0
    return x + (offset if right else -offset), y - (offset if up else -offset)


def draw_figure(
    title: str,
    photo: np.ndarray,
    rows: Sequence[tuple[str, np.ndarray, Sequence[tuple[str, np.ndarray]]]],
    window: Sequence[float] | None = None,
    classic: bool = False,
) -> np.ndarray:
    """The photo beside its heat maps, as one picture.

    Args:
        photo: under the maps.
        rows: (caption, the photo with or without rings, [(caption, map) per tile]); a row longer than MAX_COLUMNS is
            split evenly.
        window, classic: see `overlay`.
    """
    grid: list[list[tuple[str, np.ndarray]]] = []
    for caption, ringed, maps in rows:
        tiles = [(caption, ringed), *((text, overlay(photo, heat, window, classic)) for text, heat in maps)]
        num_lines = math.ceil(len(tiles) / MAX_COLUMNS)
        grid += batches(tiles, math.ceil(len(tiles) / num_lines))
    return _draw_grid(title, grid, scale=not classic)


def write_picture(path: Path, pixels: np.ndarray) -> Path:
    """Writes `[H, W, 3]` uint8 RGB as a PNG, or as a JPEG where it has more than a megapixel; returns its path."""
    options: list[int] = []
    if pixels.shape[0] * pixels.shape[1] > 1_000_000:
        path, options = path.with_name(path.name.removesuffix(".png") + ".jpg"), [cv2.IMWRITE_JPEG_QUALITY, 92]
    good, encoded = cv2.imencode(path.suffix, pixels[:, :, ::-1], options)  # OpenCV expects BGR
    if not good:
        raise ResourceError(f"{path} cannot be encoded")
    write_bytes(path, encoded.tobytes())
    return path


def _draw_grid(title: str, rows: Sequence[Sequence[tuple[str, np.ndarray]]], scale: bool) -> np.ndarray:
    """Rows of (caption, pixels `[H, W, 3]`) of one size under a title; the longest caption sets the height of a row.

    Args:
        scale: draw what the colours of maps mean below.
    """
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
    foot = line + gap if scale else 0
    canvas = Image.new("RGB", (total, y + sum(heads) + len(rows) * (height + gap) + foot), _PAPER)
    draw = ImageDraw.Draw(canvas)
    _write(draw, (gap, gap), heading, font, line)
    for row, texts, head in zip(rows, captions, heads, strict=True):
        for column, ((_, pixels), text) in enumerate(zip(row, texts, strict=True)):
            x = gap + column * (width + gap)
            _write(draw, (x, y), text, font, line)
            canvas.paste(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC), (x, y + head))
        y += head + height + gap
    if scale:
        left, right = "no evidence", "strongest"
        x = total - gap - width
        start, end = x + round(font.getlength(left)) + gap, total - gap - round(font.getlength(right)) - gap
        ramp = np.tile(np.linspace(0, 1, max(2, end - start), dtype=np.float32), (round(font.size), 1))
        _write(draw, (x, y), [left], font, line)
        canvas.paste(Image.fromarray(overlay(np.full((*ramp.shape, 3), _LEAF, np.uint8), ramp)), (start, y + 2))
        _write(draw, (end + gap, y), [right], font, line)
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
