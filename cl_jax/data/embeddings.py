"""Features of many examples, with the name and the label of each, in memory and in files."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cl_jax.core.names import nearest

SUFFIXES = (".parquet", ".npz", ".csv")


@dataclass(frozen=True)
class Embeddings:
    """Rows of features with what they are of.

    features: {name: float [N, D]}. paths: [N] text, the file or the number of each example. labels:
    {name: int32 [N]}, -1 for none. classes: {label: names of its values}. about: where the rows are
    from: "run", "step", "data", as text or numbers.

    `embeddings["h"]` is a feature; `len` is N.
    """

    features: dict[str, np.ndarray]
    paths: np.ndarray
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.features:
            raise KeyError(
                f"there is no feature {name!r}{nearest(name, self.features)}; there are "
                f"{', '.join(self.features)}."
            )
        return self.features[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.features)

    def keys(self) -> Iterable[str]:
        """The names of the features, so that `dict(embeddings)` is {name: array}."""
        return self.features.keys()
