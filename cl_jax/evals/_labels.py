"""Labels before they are used: checks of concrete ones, which a compiled program would ignore
without an error, and those of a source that are at hand."""

from typing import Any

import jax
import numpy as np

from cl_jax.data.source import Source, Splits, labels_of


def at_hand(source: Source, label: str) -> np.ndarray | None:
    """The labels of the labelled examples of a source; None where all examples would have to be
    read to know them.

    Raises:
      ValueError: no label of that name.
    """
    if label in source.sizes and source.arrays is None and source.labels is None:
        return None
    found = labels_of(source, label)
    return found[found >= 0]


def check_test_classes(data: Splits, label: str) -> None:
    """Refuses a test part with a class beyond those that the training part counts."""
    known, count = at_hand(data.test, label), data.train.sizes[label]
    if known is not None and known.size and known.max() >= count:
        raise ValueError(
            f"{data.test.name} has examples with {label}={known.max()}, and {data.train.name} "
            f"counts {count} of them; expected at most {count - 1}. Number the {label}s of both "
            "parts alike."
        )


def check_classes(num_classes: int, **labels: Any) -> None:
    """Refuses labels outside 0 .. num_classes - 1; traced ones pass."""
    for name, values in labels.items():
        if values is None or isinstance(values, jax.core.Tracer) or np.size(values) == 0:
            continue
        low, high = int(np.min(values)), int(np.max(values))
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"{name} go from {low} to {high}; expected 0 to {num_classes - 1} with num_classes="
                f"{num_classes}. Leave unlabelled rows out, or raise num_classes."
            )


def check_labelled(**labels: np.ndarray) -> None:
    """Refuses labels below 0, which are none and would be a class of their own."""
    for name, values in labels.items():
        if np.size(values) and np.min(values) < 0:
            raise ValueError(
                f"{name} go down to {np.min(values)}, which is no label; expected 0 or more. Leave "
                "unlabelled rows out."
            )
