"""Which way up an image is, read from frozen features: what networks that were made invariant to
rotation have lost."""

import dataclasses
from typing import Any

import numpy as np

from cl_jax.core.shapes import check_count, check_positive
from cl_jax.data.source import Source, Splits
from cl_jax.evals import Evaluator, Given, Needs
from cl_jax.evals.logistic import accuracy


def make(
    *,
    feature: str = "",
    c: float = 1.0,
    iterations: int = 300,
    figure: str = "rotation",
    when: str = "always",
) -> Evaluator:
    """Test accuracy of a logistic regression that tells by how many quarters an image was turned:
    "rotation/top1"; 25 % at chance level.

    Every image is turned by 0, 90, 180 or 270 degrees, drawn once by its place in the data.

    feature: of "encode"; "" for the run's own. c, iterations: see `logistic`. figure: the name of
      its figure, for a second feature beside the first. when: see `Evaluator`.

    Raises:
      ValueError: images that are not square.
    """
    check_count(iterations=iterations)
    check_positive(c=c)

    def check(data: Splits) -> None:
        for source in data[:2]:
            _check_square(source)

    def measure(given: Given) -> dict[str, float]:
        parts: list[Any] = []
        for number, source in enumerate(given.data[:2]):
            turns = np.random.default_rng([number]).integers(4, size=source.size)
            rows = given.rows("encode", turned(source, turns))
            parts += [rows[feature or given.feature], turns]
        return {f"{figure}/top1": accuracy(*parts, c=c, iterations=iterations)}

    return Evaluator(
        measure,
        Needs(features=(feature,), fields=("image",)),
        when=when,
        better={f"{figure}/top1": 1},
        titles={f"{figure}/top1": "which way up, logistic regression %"},
        check=check,
    )


def turned(source: Source, turns: np.ndarray) -> Source:
    """The source with image i turned counter-clockwise by turns[i] quarters.

    Raises:
      ValueError: images that are not square.
    """
    _check_square(source)

    def read(i: int) -> dict[str, np.ndarray]:
        example = source.read(i)
        return example | {"image": np.rot90(example["image"], turns[i]).copy()}

    return dataclasses.replace(source, read=read, arrays=None)


def _check_square(source: Source) -> None:
    height, width = source.read(0)["image"].shape[:2]
    if height != width:
        raise ValueError(
            f"{source.name} has images of {height}x{width}; the rotation probe needs square ones, "
            "which keep their shape when they are turned. Set image_size of the data, where it has "
            "one, or make the images square."
        )
