"""What a loss needs of a mapped device axis; each function is the identity where `axis_name` is
None.

Losses return the mean over the *global* batch, the same number on every device. Differentiated
inside `jax.pmap` or `jax.shard_map` and averaged over the axis with `lax.pmean`, that gives the
gradient one device would give."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def gather(x: jax.Array, axis_name: str | None) -> jax.Array:
    """[B_local, ...] -> [B, ...]: rows of all devices in rank order; gradient flows back to the
    device of each row."""
    return x if axis_name is None else lax.all_gather(x, axis_name, axis=0, tiled=True)


def mean(x: jax.Array, axis_name: str | None) -> jax.Array:
    """Mean over devices of a per-device value."""
    return x if axis_name is None else lax.pmean(x, axis_name)


def total(x: jax.Array, axis_name: str | None) -> jax.Array:
    """Sum over devices of a per-device value."""
    return x if axis_name is None else lax.psum(x, axis_name)


def log_total(x: jax.Array, axis_name: str | None) -> jax.Array:
    """log of the sum of exp(x) over all entries and devices."""
    highest = lax.stop_gradient(jnp.max(x))
    if axis_name is not None:
        highest = lax.pmax(highest, axis_name)
    return highest + jnp.log(total(jnp.sum(jnp.exp(x - highest)), axis_name))


def first_row(rows: int, axis_name: str | None) -> jax.Array | int:
    """Position of this device's first row among the gathered rows, when each device has `rows`."""
    return 0 if axis_name is None else lax.axis_index(axis_name) * rows


def varying(tree: Any) -> Any:
    """Every array made to vary over the axes any of them varies over, as the hand-written gradient
    needs."""
    leaves, structure = jax.tree.flatten(tree)
    axes = frozenset().union(*(axes_of(x) for x in leaves))
    return jax.tree.unflatten(structure, [spread(x, axes) for x in leaves])


def axes_of(x: Any) -> frozenset:
    """Mapped axes over which a value varies, in the type's own book-keeping; none where it keeps no
    book."""
    if isinstance(x, (int, float)):
        return frozenset()
    kind = jax.typeof(x)
    return kind.mat.varying if hasattr(kind, "mat") else getattr(kind, "vma", frozenset())


def spread(x: Any, axes: frozenset) -> Any:
    """x, made to vary over these axes too."""
    missing = () if isinstance(x, (int, float)) else tuple(sorted(axes - axes_of(x)))
    if not missing:
        return x
    if hasattr(lax, "pcast"):
        return lax.pcast(x, missing, to="varying")
    return lax.pvary(x, missing)  # type: ignore[attr-defined]  # its name in jax 0.8
