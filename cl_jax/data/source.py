"""A data set as random access to examples. Everything that reads examples reads them through `Source`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class Source:
    """Random access to `size` examples.

    `read(i)` gives example `i` as arrays: "image" uint8 [H, W, C], every label an int32 scalar. `classes` says how many
    classes each label field has. `arrays` is the whole set where it is in memory; then `read(i)` is row `i` of each.
    """

    name: str
    size: int
    read: Callable[[int], dict[str, np.ndarray]]
    classes: Mapping[str, int]
    arrays: Mapping[str, np.ndarray] | None = None

    @staticmethod
    def of_arrays(name, arrays, classes):
        return Source(name, len(arrays["image"]), lambda i: {k: v[i] for k, v in arrays.items()}, classes, arrays)


class Splits(NamedTuple):
    train: Source
    test: Source
    unlabeled: Source | None = None
