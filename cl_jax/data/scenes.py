"""`scenes`: real images without a download. Handwritten digits, coloured and placed over crops of photographs.

Its parts ship with scikit-learn: the 1,797 digits of `load_digits` (8x8, sixteen grey levels) and the two photographs of
`load_sample_images`. Every image is 32x32 RGB uint8 and keeps the factors it was made from as labels, so that one can ask
which of them a representation holds: InfoMin's study of digit, place and background, from real parts.

A handwriting (one instance of `load_digits`) is in the train part or in the test part and never in both, whatever the seed.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from cl_jax.data.source import Source, Splits

IMAGE_SIZE = 32
#: RGB of the eight digit colours: the corners of the colour cube, drawn in from the walls so that jitter can move them.
PALETTE = np.array([(30, 30, 30), (225, 225, 225), (210, 40, 40), (40, 170, 60), (50, 70, 210), (215, 195, 40),
                    (190, 60, 190), (50, 185, 195)], np.float32)
PLACES_PER_SIDE = 3
REGIONS_PER_SIDE = 2
_SPLIT_SEED = 20200511  # the parts never change, so train and test stay apart across seeds, sizes and levels
_TEST_SHARE = 0.2


@dataclasses.dataclass(frozen=True)
class Level:
    """What makes a level hard. `digit_px` is the range of the digit's side in pixels, `margin_px` how far it may stick out
    of the image, `ground_contrast` the range of the factor on the photograph's departure from its own mean colour (0 is a
    plain ground, 1 the photograph), `ground_zoom` the photograph's pixels per image pixel, and `min_luma_gap` the least
    difference (of 255) between the luma of the digit and of the ground's mean."""

    digit_px: tuple[float, float]
    margin_px: float
    ground_contrast: tuple[float, float]
    ground_zoom: tuple[int, ...]
    min_luma_gap: float


LEVELS: Mapping[str, Level] = {
    "easy": Level((24.0, 28.0), 0.0, (0.0, 0.25), (2, 4), 60.0),
    "medium": Level((22.0, 28.0), 0.0, (0.25, 0.6), (2, 4), 60.0),
    "hard": Level((18.0, 26.0), 0.0, (0.6, 1.0), (1, 2, 4), 40.0),
    "full": Level((18.0, 26.0), 0.0, (1.0, 1.0), (1, 2, 4), 0.0),
}


def make(*, level: str = "easy", train_size: int = 8192, test_size: int = 2048, seed: int = 0) -> Splits:
    if level not in LEVELS:
        raise ValueError(f"level={level!r}; expected one of {', '.join(LEVELS)}.")
    return render_splits(LEVELS[level], train_size=train_size, test_size=test_size, seed=seed)


def render_splits(level: Level, *, train_size: int, test_size: int, seed: int) -> Splits:
    digits, targets = _digits()
    photographs = _photographs()
    shuffled = np.random.Generator(np.random.Philox(_SPLIT_SEED)).permutation(len(digits))
    num_test = round(_TEST_SHARE * len(digits))
    parts = {"test": (shuffled[:num_test], test_size), "train": (shuffled[num_test:], train_size)}
    sources = {}
    for part, (instances, size) in parts.items():
        rng = np.random.Generator(np.random.Philox(key=[seed, part == "train"]))
        arrays = _render(rng, size, instances, digits, targets, photographs, level)
        classes = {"label": 10, "place": PLACES_PER_SIDE**2, "background": len(photographs) * REGIONS_PER_SIDE**2,
                   "colour": len(PALETTE)}
        sources[part] = Source.of_arrays(f"scenes/{part}", arrays, classes)
    return Splits(**sources)


def _digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images.astype(np.float32) / 16, data.target.astype(np.int32)


def _photographs():
    from sklearn.datasets import load_sample_images

    return [np.asarray(image, np.float32) for image in load_sample_images().images]


def _render(rng, size, instances, digits, targets, photographs, level):
    """Draws `size` scenes. Every handwriting is used equally often, up to one."""
    repeats = -(-size // len(instances))
    chosen = rng.permutation(np.tile(instances, repeats)[:size]) if size else instances[:0]
    background, ground = _grounds(rng, size, photographs, level)
    mean = ground.mean(axis=(1, 2), keepdims=True)
    contrast = rng.uniform(*level.ground_contrast, size).astype(np.float32)
    ground = mean + contrast[:, None, None, None] * (ground - mean)
    # Of the colours far enough from the ground, one at random; the farthest where none is.
    gap = np.abs(_luma(PALETTE)[None, :] - _luma(mean[:, 0, 0])[:, None])
    allowed = gap >= np.minimum(level.min_luma_gap, gap.max(axis=1))[:, None]
    colour = np.argmax(rng.uniform(size=allowed.shape) * allowed, axis=1)
    shade = PALETTE[colour] + rng.uniform(-20, 20, (size, 3)).astype(np.float32)
    side = rng.uniform(*level.digit_px, size).astype(np.float32)
    room = IMAGE_SIZE + 2 * level.margin_px - side
    corner = rng.uniform(0, 1, (size, 2)).astype(np.float32) * room[:, None] - level.margin_px
    mask = _place(digits[chosen], corner, side)[..., None]
    image = np.clip(np.rint(mask * shade[:, None, None] + (1 - mask) * ground), 0, 255).astype(np.uint8)
    cell = np.clip((corner + level.margin_px) / room[:, None] * PLACES_PER_SIDE, 0, PLACES_PER_SIDE - 1).astype(np.int32)
    return {"image": image, "label": targets[chosen], "place": cell[:, 0] * PLACES_PER_SIDE + cell[:, 1],
            "background": background, "colour": colour.astype(np.int32), "instance": chosen.astype(np.int32)}


def _luma(rgb):
    return rgb @ np.array([0.299, 0.587, 0.114], np.float32)


def _grounds(rng, size, photographs, level):
    """Square crops: (region number [size], pixels [size, 32, 32, 3]). A region is a quarter of one photograph."""
    which = rng.integers(len(photographs), size=size)
    zoom = rng.choice(np.asarray(level.ground_zoom), size)
    at = rng.uniform(size=(size, 2))
    background = np.empty(size, np.int32)
    ground = np.empty((size, IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)
    for i, photograph in enumerate(photographs):
        for z in level.ground_zoom:
            rows = np.flatnonzero((which == i) & (zoom == z))
            h, w = photograph.shape[0] // z, photograph.shape[1] // z
            small = photograph[:h * z, :w * z].reshape(h, z, w, z, 3).mean(axis=(1, 3))
            corner = (at[rows] * (h - IMAGE_SIZE, w - IMAGE_SIZE)).astype(int)
            windows = np.lib.stride_tricks.sliding_window_view(small, (IMAGE_SIZE, IMAGE_SIZE), axis=(0, 1))
            ground[rows] = windows[corner[:, 0], corner[:, 1]].transpose(0, 2, 3, 1)
            cell = np.minimum((at[rows] * REGIONS_PER_SIDE).astype(np.int32), REGIONS_PER_SIDE - 1)
            background[rows] = (i * REGIONS_PER_SIDE + cell[:, 0]) * REGIONS_PER_SIDE + cell[:, 1]
    return background, ground


def _place(digits, corner, side):
    """Digits [size, 8, 8] enlarged to `side` pixels at `corner` [size, 2]: opacity [size, 32, 32] by linear interpolation."""
    pixel = np.arange(IMAGE_SIZE, dtype=np.float32) + 0.5
    cells = np.arange(digits.shape[1], dtype=np.float32) + 0.5
    where = (pixel[None, :, None] - corner[:, None, :]) / side[:, None, None] * digits.shape[1]  # [size, 32, 2]
    weight = np.maximum(0, 1 - np.abs(where[:, :, None, :] - cells[None, None, :, None]))  # [size, 32, 8, 2]
    return np.matmul(np.matmul(weight[..., 0], digits), weight[..., 1].transpose(0, 2, 1))
