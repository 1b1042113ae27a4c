"""An environment's worlds as a data set: an example is a world's number."""

import numpy as np

from cl_jax.data.source import Source, Splits, from_arrays


def make(*, train_size: int = 64, test_size: int = 256) -> Splits:
    """Numbers of worlds, from which a method draws all that is random in them.

    Field: "world" int32, 0 to train_size - 1 to train in, the next `test_size` to test in. What
    happens in a world is the method's environment, and where it stands a row of the method's
    memory. One epoch is one unroll in every world.

    Raises:
      ValueError: a size below 1.
    """
    if train_size < 1 or test_size < 1:
        raise ValueError(f"train_size={train_size}, test_size={test_size}; expected 1 or more.")

    def part(name: str, first: int, size: int) -> Source:
        numbers = np.arange(first, first + size, dtype=np.int32)
        return from_arrays(f"worlds/{name}", {"world": numbers}, {})

    return Splits(part("train", 0, train_size), part("test", train_size, test_size))
