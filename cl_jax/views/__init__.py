"""Views on the device: pure, vmapped, keyed by example id."""

from cl_jax.core.keys import example_keys
from cl_jax.views.recipe import Recipe, apply, augment, evaluate, make

__all__ = ["Recipe", "apply", "augment", "evaluate", "example_keys", "make"]
