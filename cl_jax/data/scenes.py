"""`scenes`: real images without a download. Handwritten digits, coloured and placed over crops of
photographs.

Its parts ship with scikit-learn: the 1,797 digits of `load_digits` (8x8, sixteen grey levels) and
the two photographs of `load_sample_images`. Every image is 32x32 RGB and keeps the factors it was
made from as labels, so one can ask which of them a representation holds: the study of digit, place
and background of Tian et al. ("What makes for good views", arXiv 2005.10243, section 3), from real
parts. Like theirs, an example has a second rendering that shares the factors named by `share` with
the first and nothing else: views of the two agree on those factors alone. How many views are of the
second is the recipe's `second` (`views.image`).

A handwriting (one instance of `load_digits`) is in the train part or in the test part and never in
both, whatever the seed, the level and the sizes. What a small network reaches at each level is in
docs/guides/data.md."""

import dataclasses
import gzip
import hashlib
import importlib.util
import platform
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL

from cl_jax.core import processor, seeds
from cl_jax.core.errors import NotFoundError
from cl_jax.core.seeds import generator
from cl_jax.data import kept
from cl_jax.data.source import Splits, allocate, from_arrays

IMAGE_SIZE = 32
PALETTE = np.array(
    [
        (30, 30, 30),
        (225, 225, 225),
        (210, 40, 40),
        (40, 170, 60),
        (50, 70, 210),
        (215, 195, 40),
        (190, 60, 190),
        (50, 185, 195),
    ],
    np.float32,
)  # the colours of the digits
FACTORS = ("digit", "place", "background")  # what two renderings can share
PARTS = ("train", "test")
KEPT_FROM = 2048  # images of a set, which take longer to paint than to read
_DIGITS, _PHOTOGRAPHS = "data/digits.csv.gz", ("china", "flower")
_MADE_BY = (__file__, seeds.__file__)
_CELLS = 3  # "place" is the cell of a 3x3 grid
_QUARTERS = 2  # "background" is the quarter of a photograph
_FEW = 64  # images painted at a time
_SPLIT_SEED, _TEST_SHARE = 20200511, 0.2


@dataclasses.dataclass(frozen=True)
class Level:
    """What makes a level hard.

    digit_px: range of the digit's side, in pixels. The smaller, the farther it can be from where
      another one is.
    ground_contrast: range of the factor on the photograph's departure from its crop's mean colour:
      0 is a plain ground of that colour, 1 the photograph itself.
    ground_zoom: pixels of the photograph per pixel of the image; one is chosen per image.
    min_luma_gap: least difference, of 255, between the luma of the digit's colour and of the
      ground's mean.
    """

    digit_px: tuple[float, float]
    ground_contrast: tuple[float, float]
    ground_zoom: tuple[int, ...]
    min_luma_gap: float


LEVELS: Mapping[str, Level] = {
    "easy": Level((20.0, 26.0), (0.0, 0.25), (2, 4), 60.0),
    "medium": Level((20.0, 26.0), (0.25, 0.6), (2, 4), 60.0),
    "hard": Level((18.0, 26.0), (0.6, 1.0), (1, 2, 4), 40.0),
    "full": Level((18.0, 26.0), (1.0, 1.0), (1, 2, 4), 0.0),
}


def make(
    *,
    level: str = "easy",
    share: Sequence[str] | None = ("digit",),
    train_size: int = 8192,
    test_size: int = 2048,
    seed: int = 0,
) -> Splits:
    """Renders the two parts. A set of KEPT_FROM images or more is kept in the user's cache, and
    read from there the next time.

    Fields: "image" [32, 32, 3] uint8 and, unless `share` is None, "image_b", the second rendering.
      Labels, int32, of "image": "label" (the digit, 10), "place" (9 cells of a 3x3 grid),
      "background" (8: which photograph, which quarter of it), "colour" (8, the entry of PALETTE).
      "instance", int32, is the handwriting's number in `load_digits`.

    Args:
      level: "easy", "medium", "hard" or "full".
      share: factors of FACTORS that "image_b" has in common with "image"; all else is drawn
        again, its colour always. "digit" is the same handwriting, "place" the same position,
        "background" the same crop and contrast.
      train_size, test_size: examples. Every handwriting occurs equally often, up to one.
      seed: of everything but the division of the handwritings.

    Raises:
      ValueError: an unknown level or factor, a size below 1.
    """
    if level not in LEVELS:
        raise ValueError(f"level={level!r} is unknown; expected one of {', '.join(LEVELS)}.")
    if isinstance(share, str) or not set(share or ()) <= set(FACTORS):
        raise ValueError(
            f"share={share!r}; expected None, or a sequence of names among {', '.join(FACTORS)}."
        )
    for name, size in (("train_size", train_size), ("test_size", test_size)):
        if size < 1:
            raise ValueError(f"{name}={size}; expected 1 or more.")
    given = (LEVELS[level], None if share is None else tuple(share), train_size, test_size, seed)
    if train_size + test_size < KEPT_FROM:
        return _splits(_rendered(*given))
    return _splits(kept.arrays("scenes", _key(*given), lambda: _rendered(*given)))


def render(
    level: Level, *, share: Sequence[str] | None, train_size: int, test_size: int, seed: int
) -> Splits:
    """As `make`, for a `Level` of one's own; nothing is kept."""
    return _splits(_rendered(level, share, train_size, test_size, seed))


def _rendered(
    level: Level, share: Sequence[str] | None, train_size: int, test_size: int, seed: int
) -> dict[str, np.ndarray]:
    """{"train/image": ...}: the fields of both parts."""
    digits, targets = handwritings()
    photographs = grounds(level)
    found: dict[str, np.ndarray] = {}
    for number, (part, instances, size) in enumerate(
        zip(PARTS, division(len(digits)), (train_size, test_size))
    ):
        rng = generator(seed, number)
        scene = draw(rng, size, instances, len(photographs), level)
        image, colour = paint(scene, digits, photographs, level)
        place = np.minimum((scene.position * _CELLS).astype(np.int32), _CELLS - 1)
        quarter = np.minimum((scene.crop * _QUARTERS).astype(np.int32), _QUARTERS - 1)
        background = (scene.photograph * _QUARTERS + quarter[:, 0]) * _QUARTERS + quarter[:, 1]
        fields = {
            "image": image,
            "label": targets[scene.instance],
            "place": place[:, 0] * _CELLS + place[:, 1],
            "background": background.astype(np.int32),
            "colour": colour,
            "instance": scene.instance,
        }
        if share is not None:
            other = draw(rng, size, instances, len(photographs), level)
            fields["image_b"], _ = paint(_sharing(scene, other, share), digits, photographs, level)
        found |= {f"{part}/{field}": values for field, values in fields.items()}
    return found


def _splits(arrays: Mapping[str, np.ndarray]) -> Splits:
    sizes = {
        "label": 10,
        "place": _CELLS**2,
        "background": len(_PHOTOGRAPHS) * _QUARTERS**2,
        "colour": len(PALETTE),
    }
    parts: dict[str, dict[str, np.ndarray]] = {part: {} for part in PARTS}
    for name, values in arrays.items():
        part, _, field = name.partition("/")
        parts[part][field] = values
    train, test = (from_arrays(f"scenes/{part}", parts[part], sizes) for part in PARTS)
    return Splits(train, test)


def _key(*given: Any) -> str:
    """What the images depend on: the arguments of `_rendered`, the files that they are made of and
    the programs that make them. Last bits of a product may be others on another processor."""
    files = [_shipped(name).stat() for name in (_DIGITS, *map(_file_of, _PHOTOGRAPHS))]
    programs = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in _MADE_BY]
    return repr(
        (
            given,
            [(found.st_size, found.st_mtime_ns) for found in files],
            programs,
            (np.__version__, PIL.__version__),
            processor.lines() or [platform.machine(), platform.processor()],
        )
    )


def division(num_instances: int) -> tuple[np.ndarray, np.ndarray]:
    """The handwritings of the train part and of the test part, always the same."""
    shuffled = np.argsort(
        np.random.Philox(_SPLIT_SEED).random_raw(num_instances), kind="stable"
    ).astype(np.int32)
    num_test = round(_TEST_SHARE * num_instances)
    return shuffled[num_test:], shuffled[:num_test]


class Scene(NamedTuple):
    """The factors of N scenes before they are painted; `position` and `crop` are shares of the room
    there is."""

    instance: np.ndarray
    position: np.ndarray
    side_px: np.ndarray
    photograph: np.ndarray
    crop: np.ndarray
    zoom: np.ndarray
    contrast: np.ndarray
    preference: (
        np.ndarray
    )  # [N, colours]: of the colours that stand out, the one with the highest draw wins
    shade: np.ndarray


def draw(
    rng: np.random.Generator,
    size: int,
    instances: np.ndarray,
    num_photographs: int,
    level: Level,
) -> Scene:
    """The factors of `size` scenes of the handwritings `instances`, each equally often, up to
    one."""
    return Scene(
        instance=rng.permutation(np.tile(instances, -(-size // len(instances)))[:size]),
        position=rng.uniform(size=(size, 2)),
        side_px=rng.uniform(*level.digit_px, size),
        photograph=rng.integers(num_photographs, size=size),
        crop=rng.uniform(size=(size, 2)),
        zoom=rng.choice(np.asarray(level.ground_zoom), size),
        contrast=rng.uniform(*level.ground_contrast, size),
        preference=rng.uniform(size=(size, len(PALETTE))),
        shade=rng.uniform(-20, 20, (size, 3)),
    )


def _sharing(scene, other, share):
    fields = {
        "digit": ("instance",),
        "place": ("position",),
        "background": ("photograph", "crop", "zoom", "contrast"),
    }
    return other._replace(
        **{field: getattr(scene, field) for factor in share for field in fields[factor]}
    )


def paint(
    scene: Scene,
    digits: np.ndarray,
    photographs: Sequence[Mapping[int, np.ndarray]],
    level: Level,
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 32, 32, 3] and the numbers of their colours, int32 [N].

    digits: opacities [_, 8, 8] that `scene.instance` counts. photographs: of `grounds`.
    """
    # A few at a time, which stay in the processor's cache.
    few = [
        Scene(*(field[at : at + _FEW] for field in scene))
        for at in range(0, len(scene.instance), _FEW)
    ]
    images = allocate((len(scene.instance), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    out = [images[at : at + _FEW] for at in range(0, len(images), _FEW)]
    with ThreadPoolExecutor() as pool:
        colours = pool.map(
            lambda some, into: _paint_few(some, into, digits, photographs, level), few, out
        )
        return images, np.concatenate(list(colours))


def _paint_few(scene, out, digits, photographs, level):
    """Paints into `out`, images of the scene; returns the numbers of their colours."""
    ground = _grounds(scene, photographs)
    # The same sums as of `mean`, in the same order, in a quarter of the time.
    mean = np.einsum("nijc->nc", ground) / np.float32(IMAGE_SIZE**2)
    gap = np.abs(_luma(PALETTE)[None, :] - _luma(mean)[:, None])
    stands_out = gap >= np.minimum(level.min_luma_gap, gap.max(axis=1))[:, None]
    colour = np.argmax(np.where(stands_out, scene.preference, -1), axis=1).astype(np.int32)
    ink = (PALETTE[colour] + scene.shade).astype(np.float32)
    corner = scene.position * (IMAGE_SIZE - scene.side_px)[:, None]
    opacity = _enlarge(digits[scene.instance], corner, scene.side_px)[:, None]
    # Planes [N, 3, 32, 32]: NumPy is slow where the last axis is short.
    ground, mean = np.ascontiguousarray(ground.transpose(0, 3, 1, 2)), mean[:, :, None, None]
    ground -= mean
    ground *= scene.contrast[:, None, None, None].astype(np.float32)
    ground += mean
    ground *= 1 - opacity
    ground += opacity * ink[:, :, None, None]
    np.clip(np.rint(ground, out=ground), 0, 255, out=ground)
    out[...] = ground.astype(np.uint8).transpose(0, 2, 3, 1)
    return colour


def grounds(level: Level) -> list[dict[int, np.ndarray]]:
    """Each photograph at each zoom of a level: {pixels of it per pixel of an image: [H, W, 3]}."""
    return [
        {zoom: _shrunk(photograph, zoom) for zoom in level.ground_zoom}
        for photograph in _photographs()
    ]


def _shrunk(photograph, zoom):
    """Means of zoom x zoom pixels."""
    height, width = photograph.shape[0] // zoom, photograph.shape[1] // zoom
    return (
        photograph[: height * zoom, : width * zoom]
        .reshape(height, zoom, width, zoom, 3)
        .mean(axis=(1, 3))
    )


def _grounds(scene, photographs):
    """Crops of the photographs, [N, 32, 32, 3]."""
    ground = np.empty((len(scene.zoom), IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)
    for i, photograph in enumerate(photographs):
        for zoom, small in photograph.items():
            rows = np.flatnonzero((scene.photograph == i) & (scene.zoom == zoom))
            corner = (
                scene.crop[rows] * (small.shape[0] - IMAGE_SIZE, small.shape[1] - IMAGE_SIZE)
            ).astype(int)
            for row, (top, left) in zip(rows, corner.tolist()):
                ground[row] = small[top : top + IMAGE_SIZE, left : left + IMAGE_SIZE]
    return ground


def _enlarge(digits, corner, side):
    """Digits [N, 8, 8] drawn `side` pixels large at `corner` [N, 2], linearly interpolated: opacity
    [N, 32, 32]."""
    cells = digits.shape[1]
    pixel = np.arange(IMAGE_SIZE) + 0.5
    where = (
        (pixel[None, :, None] - corner[:, None, :]) / side[:, None, None] * cells
    )  # [N, 32, 2], in cells
    weight = np.maximum(
        0, 1 - np.abs(where[:, :, None, :] - (np.arange(cells) + 0.5)[None, None, :, None])
    )
    weight = weight.astype(np.float32)
    return weight[..., 0] @ digits @ weight[..., 1].transpose(0, 2, 1)


def _luma(rgb):
    return rgb @ np.array([0.299, 0.587, 0.114], np.float32)


def handwritings() -> tuple[np.ndarray, np.ndarray]:
    """`load_digits`: opacities [N, 8, 8] between 0 and 1, and which digit, int32 [N]."""
    with gzip.open(_shipped(_DIGITS), "rt") as file:
        table = np.loadtxt(file, np.float32, delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8) / 16, table[:, -1].astype(np.int32)


def _file_of(photograph):
    return f"images/{photograph}.jpg"


def _photographs():
    from PIL import Image

    return [np.asarray(Image.open(_shipped(_file_of(name))), np.float32) for name in _PHOTOGRAPHS]


def _shipped(name):
    """A file of scikit-learn's data sets, found without importing it: that takes longer than all
    the painting."""
    package = importlib.util.find_spec("sklearn")
    path = Path(package.origin).parent / "datasets" / name if package else None
    if path is None or not path.exists():
        raise NotFoundError(
            f"`scenes` is made from files of scikit-learn; {path or 'scikit-learn itself'} is "
            f"missing. "
            "pip install scikit-learn"
        )
    return path
