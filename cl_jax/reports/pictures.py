"""A small picture of an example of any kind, and many of them packed into few files."""

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

CELL = 48  # pixels of a picture's side
COLUMNS = 40  # of an atlas, and its rows
INK, LINE = (40, 70, 130), (150, 160, 180)


def picture(example: Mapping[str, np.ndarray], cell: int = CELL) -> Image.Image | None:
    """A picture [cell, cell] of what an example has: an image, the first picture of a clip, the
    spectrum of a sound, the drawing of a graph; None of what has no picture, such as a sentence."""
    if "image" in example:
        return fitted(shown(example["image"]), cell)
    if "clip" in example:
        return fitted(shown(example["clip"][0]), cell)
    if "audio" in example:
        length = int(example.get("length", len(example["audio"])))
        return spectrum(example["audio"][: max(length, 1)], cell)
    if "edge" in example and "node" in example:
        return graph(example["node"], example["edge"], cell)
    return None


def shown(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] of an image of any number of channels: the first three, or the first."""
    image = np.asarray(image)
    if image.dtype != np.uint8:
        low, high = np.percentile(image, (0.5, 99.5))
        image = np.clip(255 * (image - low) / max(high - low, 1e-6), 0, 255).astype(np.uint8)
    if image.shape[-1] >= 3:
        return image[..., :3]
    return np.repeat(image[..., :1], 3, axis=-1)


def fitted(image: np.ndarray, cell: int) -> Image.Image:
    """The picture inside a white square, enlarged or reduced, its aspect kept."""
    picture = Image.fromarray(image)
    scale = cell / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    sampling = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.BICUBIC
    square = Image.new("RGB", (cell, cell), "white")
    place = (cell - width) // 2, (cell - height) // 2
    square.paste(picture.resize((width, height), sampling), place)
    return square


def spectrum(audio: np.ndarray, cell: int) -> Image.Image:
    """The sound's spectrogram, low frequencies at the bottom, 60 dB from white to dark."""
    x = np.asarray(audio, np.float32)
    size = 256
    if len(x) < size:
        x = np.pad(x, (0, size - len(x)))
    starts = np.linspace(0, len(x) - size, cell).astype(int)
    frames = x[starts[:, None] + np.arange(size)] * np.hanning(size).astype(np.float32)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    level = 10 * np.log10(np.maximum(power, power.max() * 1e-6 + 1e-12))
    level = 1 + np.clip((level - level.max()) / 60, -1, 0)
    grey = (255 - 215 * level.T[::-1]).astype(np.uint8)
    return Image.fromarray(grey).resize((cell, cell)).convert("RGB")


def graph(node: np.ndarray, edge: np.ndarray, cell: int) -> Image.Image:
    """A drawing: nodes on their places by the two slowest vectors of the graph's Laplacian, tags by
    shade."""
    count = int((node > 0).sum())
    square = Image.new("RGB", (cell, cell), "white")
    if not count:
        return square
    ends = edge[(edge >= 0).all(1)]
    joined = np.zeros((count, count))
    joined[ends[:, 0], ends[:, 1]] = joined[ends[:, 1], ends[:, 0]] = 1
    degree = np.maximum(joined.sum(1), 1e-3)
    scaled = np.eye(count) - joined / np.sqrt(degree[:, None] * degree)
    places = np.linalg.eigh(scaled)[1][:, 1:3] / np.sqrt(degree)[:, None]
    places = np.pad(places, ((0, 0), (0, 2 - places.shape[1])))
    low, high = places.min(0), places.max(0)
    places = 4 + (cell - 9) * (places - low) / np.maximum(high - low, 1e-9)
    draw = ImageDraw.Draw(square)
    for a, b in ends:
        draw.line([*places[a], *places[b]], fill=LINE)
    tags = node[:count].astype(int)
    for (x, y), tag in zip(places, tags):
        shade = 60 + 150 * (tag - tags.min()) // max(tags.max() - tags.min(), 1)
        draw.ellipse([x - 2, y - 2, x + 2, y + 2], fill=(INK[0], int(shade), INK[2]))
    return square


def atlases(pictures: Sequence[Image.Image], cell: int = CELL) -> list[str]:
    """Pictures side by side in squares of COLUMNS x COLUMNS, as data URLs of JPEG files; picture i
    is in file i // COLUMNS ** 2, row by row."""
    files, most = [], COLUMNS**2
    for start in range(0, len(pictures), most):
        part = pictures[start : start + most]
        rows = -(-len(part) // COLUMNS)
        sheet = Image.new("RGB", (COLUMNS * cell, rows * cell), "white")
        for i, one in enumerate(part):
            sheet.paste(one, (i % COLUMNS * cell, i // COLUMNS * cell))
        files.append(url(sheet))
    return files


def url(picture: Image.Image, kind: str = "JPEG") -> str:
    """A picture as a data URL, for a page that opens without any other file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 82} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()
