"""The range of seeds, one for everything that is drawn."""

import numpy as np

SEEDS = 2**32


def check_seed(seed: int) -> int:
    """The seed itself, where runs of different seeds differ.

    jax's keys take a seed modulo 2^32, so that 0 and 2^32 would be one run under two names.

    Raises:
      ValueError: a seed outside 0 .. 2^32 - 1, or no integer.
    """
    if isinstance(seed, bool) or not hasattr(seed, "__index__") or not 0 <= seed < SEEDS:
        raise ValueError(
            f"seed is {seed!r}; expected an integer from 0 to 2**32 - 1. jax's random keys take "
            "seeds modulo 2**32, so that larger ones would repeat the runs of smaller ones."
        )
    return int(seed)


def generator(seed: int, stream: int) -> np.random.Generator:
    """NumPy's generator number `stream` of a seed, the same on every machine.

    Raises:
      ValueError: as `check_seed`.
    """
    return np.random.Generator(np.random.Philox(key=[check_seed(seed), stream]))
