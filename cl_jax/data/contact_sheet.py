"""A sheet of small pictures in rows with captions, as one PNG."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cl_jax.data import images

SIDE, GAP, CAPTION, TITLE = 96, 8, 30, 22  # pixels
INK, GREY = (30, 30, 30), (226, 226, 226)
MAX_ROWS, MAX_COLUMNS = 40, 16


class Tile(NamedTuple):
    """One picture: its file, and up to two lines below it."""

    path: Path
    caption: str


class Row(NamedTuple):
    """Pictures beside each other under a title."""

    title: str
    tiles: Sequence[Tile]


def write(path: str | Path, rows: Sequence[Row]) -> tuple[int, int]:
    """Writes at most MAX_ROWS rows of at most MAX_COLUMNS pictures.

    A picture that cannot be read is a grey square that says so; where none can, nothing is written.

    Returns:
      (pictures on the sheet, those of them that cannot be read).

    Raises:
      OSError: the file cannot be written.
    """
    shown = [Row(row.title, row.tiles[:MAX_COLUMNS]) for row in rows[:MAX_ROWS]]
    columns = max((len(row.tiles) for row in shown), default=1)
    height = TITLE + SIDE + CAPTION + GAP
    sheet = Image.new(
        "RGB", (GAP + max(columns, 3) * (SIDE + GAP), GAP + max(len(shown), 1) * height), "white"
    )
    draw, font, large = ImageDraw.Draw(sheet), _font(10), _font(12)
    missing = 0
    for i, row in enumerate(shown):
        top = GAP + i * height
        draw.text((GAP, top), _fitted(row.title, sheet.width - 2 * GAP, large), INK, large)
        for j, tile in enumerate(row.tiles):
            left = GAP + j * (SIDE + GAP)
            picture = _picture(tile.path)
            if picture is None:
                missing += 1
                draw.rectangle((left, top + TITLE, left + SIDE, top + TITLE + SIDE), GREY)
                draw.text((left + 6, top + TITLE + SIDE // 2 - 6), "cannot be read", INK, font)
            else:
                sheet.paste(picture, (left, top + TITLE))
            for k, line in enumerate(tile.caption.split("\n")[:2]):
                at = (left, top + TITLE + SIDE + 2 + 13 * k)
                draw.text(at, _fitted(line, SIDE, font), INK, font)
    count = sum(len(row.tiles) for row in shown)
    if missing < count or not count:
        sheet.save(path)
    return count, missing


def _picture(path: Path) -> Image.Image | None:
    try:
        scale = _scale(path) if images.may_be_deep(path.name) else None
        pixels = images.decode(path, path.name, image_size=SIDE, channels=3, scale=scale)
    except ValueError:
        return None
    return Image.fromarray(np.asarray(pixels))


def _scale(path: Path) -> images.Scale | None:
    """Of 12 bits in a file of 16, which would be nearly black: white is the largest of 12 bits."""
    kind, largest = images.depth(path, path.name)
    if kind != "integers":
        return None
    return images.Scale(0.0, 2.0 ** max(8, int(largest).bit_length()) - 1, False)


def _font(size: int) -> ImageFont.FreeTypeFont:
    """matplotlib's, which has the letters of most alphabets."""
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def _fitted(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """The end of a text that is too wide: names differ there."""
    text = images.printable(text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"…{text}") > width:
        text = text[1:]
    return f"…{text}"
