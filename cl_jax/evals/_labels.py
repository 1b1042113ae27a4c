"""Checks of concrete labels, which a compiled program would ignore without an error."""

from typing import Any

import jax
import numpy as np


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
