"""`glyphs`: printed digits in the fonts that come with matplotlib, turned, slanted and scaled. A
labelled source domain for handwriting, of any size, without a download."""

from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cl_jax.core.errors import NotFoundError
from cl_jax.core.seeds import generator
from cl_jax.core.shapes import check_count
from cl_jax.data.source import Source, Splits, from_arrays

FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Italic.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralItalic.ttf",
    "cmr10.ttf",
    "cmss10.ttf",
    "cmti10.ttf",
    "cmtt10.ttf",
)
_LARGE = 64  # pixels that a digit is drawn in


def make(
    *,
    train_size: int = 1438,
    test_size: int = 359,
    characters: str = "0123456789",
    image_size: int = 16,
    rotation: float = 15.0,
    slant: float = 0.3,
    seed: int = 0,
) -> Splits:
    """Printed characters, light on dark as in `digits`.

    Fields: "image" [image_size, image_size, 1] uint8; labels, int32: "label", the character's place
      in `characters` (the digit, by default), and "font", the entry of FONTS.

    Args:
      train_size, test_size: examples; every character occurs equally often, up to one.
      characters: what is printed, each once.
      image_size: side in pixels, of which the character's height is 70 to 95 %.
      rotation: largest angle, in degrees, either way. slant: largest shear, either way.
      seed: of everything.

    Raises:
      ValueError: a size below 1, fewer than two characters, one twice, a space.
    """
    if len(set(characters)) != len(characters) or len(characters) < 2 or " " in characters:
        raise ValueError(
            f"characters={characters!r}; expected two or more to print, each once and no space."
        )
    check_count(train_size=train_size, test_size=test_size, image_size=image_size)
    shapes = {
        (font, number): _drawn(FONTS[font], character)
        for font in range(len(FONTS))
        for number, character in enumerate(characters)
    }

    def part(number: int, name: str, size: int) -> Source:
        rng = generator(seed, number)
        label = rng.permutation(np.arange(size) % len(characters)).astype(np.int32)
        font = rng.integers(len(FONTS), size=size).astype(np.int32)
        angle = np.deg2rad(rng.uniform(-rotation, rotation, size))
        shear = rng.uniform(-slant, slant, size)
        height = rng.uniform(0.7, 0.95, size)
        image = np.stack(
            [
                _placed(shapes[int(f), int(c)], image_size, a, s, h)
                for f, c, a, s, h in zip(font, label, angle, shear, height)
            ]
        )
        arrays = {"image": image[..., None], "label": label, "font": font}
        return from_arrays(f"glyphs/{name}", arrays, {"label": len(characters), "font": len(FONTS)})

    return Splits(part(0, "train", train_size), part(1, "test", test_size))


def _drawn(font: str, character: str) -> Image.Image:
    """The character alone, cut to its ink."""
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / font
    if not file.exists():
        raise NotFoundError(
            f"`glyphs` is drawn in fonts of matplotlib; {file} is missing. pip install matplotlib"
        )
    canvas = Image.new("L", (2 * _LARGE, 2 * _LARGE))
    pen = ImageDraw.Draw(canvas)
    pen.text((_LARGE // 2, _LARGE // 4), character, 255, ImageFont.truetype(str(file), _LARGE))
    return canvas.crop(canvas.getbbox())


def _placed(shape: Image.Image, side: int, angle: float, shear: float, height: float) -> np.ndarray:
    """The digit in the middle of a square, uint8 [side, side]; drawn four times as large."""
    large = 4 * side
    scale = shape.height / (height * large)  # pixels of the shape in one of the square
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    # Image.transform wants the way back: where in the shape a pixel of the square comes from.
    a, b, d, e = cos + shear * sin, shear * cos - sin, sin, cos
    middle = large / 2
    c = shape.width / 2 - a * middle - b * middle
    f = shape.height / 2 - d * middle - e * middle
    turned = shape.transform(
        (large, large), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR
    )
    return np.asarray(turned.resize((side, side), Image.Resampling.BOX))
