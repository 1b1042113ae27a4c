"""What a loss needs of a mapped device axis; each function is the identity where `axis_name` is None.

Losses return the mean over the *global* batch, the same number on every device. Differentiated inside `jax.pmap` or
`jax.shard_map` and averaged over the axis with `lax.pmean`, that gives the gradient one device would give.
"""

import jax
from jax import lax


def gather(x: jax.Array, axis_name: str | None) -> jax.Array:
    """[B_local, ...] -> [B, ...]: rows of all devices in rank order; gradient flows back to the device of each row."""
    return x if axis_name is None else lax.all_gather(x, axis_name, axis=0, tiled=True)


def mean(x: jax.Array, axis_name: str | None) -> jax.Array:
    """Mean over devices of a per-device value."""
    return x if axis_name is None else lax.pmean(x, axis_name)


def total(x: jax.Array, axis_name: str | None) -> jax.Array:
    """Sum over devices of a per-device value."""
    return x if axis_name is None else lax.psum(x, axis_name)


def first_row(rows: int, axis_name: str | None) -> jax.Array | int:
    """Position of this device's first row among the gathered rows, when each device has `rows`."""
    return 0 if axis_name is None else lax.axis_index(axis_name) * rows
