"""scikit-learn's 1,797 handwritten digits of 8x8 pixels: images that a generator learns in a
minute."""

import numpy as np

from cl_jax.data import scenes
from cl_jax.data.source import Source, Splits, from_arrays


def make() -> Splits:
    """The digits in two parts, those of `scenes`: 1,438 to train on, 359 to test.

    Fields: "image" [8, 8, 1] uint8, 0 to 255 where the file has 0 to 16; "label" int32, the digit.
    """
    opacity, labels = scenes.handwritings()
    image = np.rint(255 * opacity).astype(np.uint8)[..., None]

    def part(name: str, chosen: np.ndarray) -> Source:
        arrays = {"image": image[chosen], "label": labels[chosen]}
        return from_arrays(f"digits/{name}", arrays, {"label": 10})

    train, test = scenes.division(len(labels))
    return Splits(part("train", train), part("test", test))
