"""`moving_scenes`: clips of handwritten digits that move over photographs, with sentences about
them, without a download.

The parts are those of `data.scenes`, with smaller digits that have room to move. A clip has one
digit in one colour; it moves in one of four directions at one of two speeds, and the ground stands
still. A sentence names digit, colour, direction and speed by templates with synonyms. A handwriting
is in the train part or in the test part and never in both.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from cl_jax.core.seeds import generator
from cl_jax.data import captions, scenes, tokenizer
from cl_jax.data.source import Source, Splits, from_arrays

DIRECTIONS = (
    ("to the right", "eastward"),
    ("to the left", "westward"),
    ("down", "to the bottom"),
    ("up", "to the top"),
)
SPEEDS = (("slowly", "at leisure"), ("quickly", "in a hurry"))
TEMPLATES = (
    "a {colour} {digit} moves {direction} {speed}",
    "{speed} the {digit} in {colour} goes {direction}",
    "someone pulls a {digit} drawn in {colour} {direction} {speed}",
    "{direction} travels a {colour} {digit} {speed}",
    "the clip has a {colour} {digit} that slides {speed} {direction}",
)
# What stands in place of a factor that sentences do not name.
_SILENT: Mapping[str, tuple[tuple[str, str], ...]] = {
    "digit": (("{digit}", "digit"),),
    "colour": (("drawn in {colour} ", ""), ("in {colour} ", ""), ("{colour} ", "")),
}
_STEPS = np.array([(0, 1), (0, -1), (1, 0), (-1, 0)], np.float64)  # (row, column) of each direction
_PIXELS = ((0.4, 0.8), (1.4, 2.0))  # of each speed, per frame
_DIGIT_PX = (11.0, 15.0)


def make(
    *,
    level: str = "easy",
    frames: int = 8,
    train_size: int = 4096,
    test_size: int = 1024,
    length: int = 24,
    plain: bool = False,
    unsaid: Sequence[str] = (),
    vocab_size: int = 4000,
    tokenizer_cache: str = "",
    seed: int = 0,
) -> Splits:
    """Renders the two parts; about four seconds.

    Fields: "clip" uint8 [frames, 32, 32, 3] and "tokens" uint16 [length], its sentence. Labels,
    int32: "label" (the digit, 10), "colour" (8), "direction" (4), "motion" (8, direction and
    speed), "meaning" (640 or fewer: clips with one number have sentences that say the same).
    "instance", int32, is the handwriting's number in `load_digits`.

    Args:
      level: of `scenes`, which decides the ground: "easy", "medium", "hard" or "full".
      frames: of a clip; 1 to 9, beyond which a fast digit has no room.
      train_size, test_size: clips.
      length, vocab_size, tokenizer_cache: as in `data.text`.
      plain: one template and no synonyms, so that all words of a sentence that can differ say
        something about its clip.
      unsaid: what sentences leave out, "digit", "colour" or both: 64, 80 or 8 meanings are left.
      seed: of everything but the division of the handwritings.

    Raises:
      ValueError: an unknown level, another number of frames, a size below 1, something else in
        `unsaid`.
    """
    if isinstance(unsaid, str) or not set(unsaid) <= set(_SILENT):
        raise ValueError(f"unsaid={unsaid!r}; expected a sequence of {', '.join(_SILENT)}, or ().")
    if level not in scenes.LEVELS:
        raise ValueError(f"level={level!r} is unknown; expected one of {', '.join(scenes.LEVELS)}.")
    most = 1 + int((scenes.IMAGE_SIZE - _DIGIT_PX[1]) / _PIXELS[1][1])
    if not 1 <= frames <= most:
        raise ValueError(
            f"frames={frames}; expected 1 to {most}: a fast digit crosses the picture in {most}."
        )
    for name, size in (("train_size", train_size), ("test_size", test_size)):
        if size < 1:
            raise ValueError(f"{name}={size}; expected 1 or more.")
    ground = dataclasses.replace(scenes.LEVELS[level], digit_px=_DIGIT_PX)
    digits, targets = scenes.handwritings()
    photographs = scenes.grounds(ground)
    parts = {}
    for number, (name, instances, size) in enumerate(
        zip(("train", "test"), scenes.division(len(digits)), (train_size, test_size))
    ):
        rng = generator(seed, 64 + number)
        scene = scenes.draw(rng, size, instances, len(photographs), ground)
        direction = rng.integers(len(DIRECTIONS), size=size)
        speed = rng.integers(len(SPEEDS), size=size)
        places = _places(rng, scene, direction, speed, frames)
        whole = scenes.Scene(*(np.repeat(field, frames, axis=0) for field in scene))
        images, colour = scenes.paint(
            whole._replace(position=places.reshape(-1, 2)), digits, photographs, ground
        )
        parts[name] = {
            "clip": images.reshape(size, frames, *images.shape[1:]),
            "label": targets[scene.instance],
            "colour": colour[::frames].copy(),
            "direction": direction.astype(np.int32),
            "motion": (direction * len(SPEEDS) + speed).astype(np.int32),
            "instance": scene.instance,
        }
        parts[name]["meaning"] = _meanings(factors(parts[name]), unsaid)
    texts = {
        name: sentences(generator(seed, 96 + number), factors(arrays), plain, unsaid)
        for number, (name, arrays) in enumerate(parts.items())
    }
    made = tokenizer.train(texts["train"], vocab_size=vocab_size, cache=tokenizer_cache or None)
    sizes = {
        "label": len(captions.DIGITS),
        "colour": len(captions.COLOURS),
        "direction": len(DIRECTIONS),
        "motion": len(DIRECTIONS) * len(SPEEDS),
        "meaning": math.prod(_said(unsaid)),
        "tokens": made.size,
    }

    def part(name: str) -> Source:
        tokens = made.encode(texts[name], length)
        return from_arrays(f"moving_scenes/{name}", parts[name] | {"tokens": tokens}, sizes)

    return Splits(part("train"), part("test"))


def factors(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """[N, 4] digit, colour, direction and speed of clips."""
    direction, speed = np.divmod(arrays["motion"], len(SPEEDS))
    return np.stack([arrays["label"], arrays["colour"], direction, speed], axis=1)


def _said(unsaid: Sequence[str]) -> tuple[int, ...]:
    """How many values of digit, colour, direction and speed sentences tell apart."""
    return (
        1 if "digit" in unsaid else len(captions.DIGITS),
        1 if "colour" in unsaid else len(captions.COLOURS),
        len(DIRECTIONS),
        len(SPEEDS),
    )


def _meanings(rows: np.ndarray, unsaid: Sequence[str]) -> np.ndarray:
    """[N] the number of what is said of each row of factors [N, 4]."""
    said = _said(unsaid)
    kept = np.where(np.array(said) > 1, rows, 0)
    return np.ravel_multi_index(tuple(kept.T), said).astype(np.int32)


def sentences(
    rng: np.random.Generator, rows: np.ndarray, plain: bool = False, unsaid: Sequence[str] = ()
) -> list[str]:
    """A sentence for each row of factors [N, 4], template and synonyms drawn by `rng`; the first of
    each where they are plain. `unsaid`: as of `make`."""
    templates = list(TEMPLATES)
    for factor in unsaid:
        for words, instead in _SILENT[factor]:
            templates = [text.replace(words, instead) for text in templates]
    template = rng.integers(1 if plain else len(templates), size=len(rows))
    synonym = np.zeros((len(rows), 4)) if plain else rng.random((len(rows), 4))
    names = ("digit", "colour", "direction", "speed")
    tables: Sequence[Sequence[Sequence[str]]] = (
        captions.DIGITS,
        captions.COLOURS,
        DIRECTIONS,
        SPEEDS,
    )
    return [
        templates[template[i]].format(
            **{
                name: table[value][int(chance * len(table[value]))]
                for name, table, value, chance in zip(names, tables, rows[i], synonym[i])
            }
        )
        for i in range(len(rows))
    ]


def _places(
    rng: np.random.Generator,
    scene: scenes.Scene,
    direction: np.ndarray,
    speed: np.ndarray,
    frames: int,
) -> np.ndarray:
    """[N, frames, 2] places of the digits as shares of the room there is, all inside."""
    size = len(direction)
    low, high = np.array(_PIXELS)[speed].T
    step = _STEPS[direction] * rng.uniform(low, high)[:, None]
    room = (scenes.IMAGE_SIZE - scene.side_px)[:, None]
    way = step * (frames - 1)
    first = np.maximum(-way, 0) + rng.uniform(size=(size, 2)) * (room - np.abs(way))
    corner = first[:, None] + step[:, None] * np.arange(frames)[None, :, None]
    return corner / room[:, None]
