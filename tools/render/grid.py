"""Grids of captioned pictures under a title. All pixels are RGB uint8."""

import functools
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

MIN_WIDTH = 240  # of a tile in pixels: smaller pictures are enlarged, so that captions fit
_INK, _PAPER = (51, 65, 58), (255, 255, 255)


def draw_grid(title: str, rows: Sequence[Sequence[tuple[str, np.ndarray]]]) -> np.ndarray:
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
    """The lines of `text`, broken where they exceed `width`: after a space or a sign, else anywhere."""
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
