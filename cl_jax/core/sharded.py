"""Rows that grow with the data set, one for each example, split over devices: each holds 1/n of
them.

Device d of n holds rows d R to (d + 1) R - 1 of R = ceil(N / n); the last ones are padding where n
does not divide N. Inside a map over the axis a function sees the rows of its device, outside of it
all of them, padding included. What the rows hold is the same on every number of devices.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import AxisName, axis_size, gather

Tree = Any


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["rows", "writes"],
    meta_fields=["size", "rank"],
)
@dataclasses.dataclass(frozen=True)
class Sharded:
    """One row for each of N examples.

    rows: [R, ...] of this device; on one device, and outside of a map, all of them.
    size: N. rank: axes of `rows`; an axis in front of them (members of a population) is not a row.
    writes: (ids [B], values [B, ...]) that `settle` is yet to do, or None.
    """

    rows: jax.Array
    size: int
    rank: int
    writes: tuple[jax.Array, jax.Array] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, ...], whatever the number of devices."""
        return (self.size, *self.rows.shape[len(self.rows.shape) - self.rank + 1 :])

    @property
    def dtype(self) -> Any:
        """Of the rows."""
        return self.rows.dtype


def whole(rows: Any) -> Sharded:
    """All rows [N, ...], as a State of step 0 holds them before it is placed on its devices."""
    return Sharded(rows, rows.shape[0], rows.ndim)


def is_sharded(x: Any) -> bool:
    """Whether x is `Sharded`: a leaf for `jax.tree` functions."""
    return isinstance(x, Sharded)


def first_held(rows: Sharded, axis_name: AxisName) -> jax.Array | int:
    """The example of this device's first row."""
    return 0 if axis_size(axis_name) == 1 else lax.axis_index(axis_name) * rows.rows.shape[0]


def locate(rows: Sharded, ids: jax.Array, axis_name: AxisName) -> tuple[jax.Array, jax.Array]:
    """(places among this device's rows, whether the example's row is one of them); the place of a
    row that another device holds is 0."""
    held = rows.rows.shape[0]
    places = ids - first_held(rows, axis_name)
    own = (places >= 0) & (places < held) & (ids < rows.size)
    return jnp.where(own, places, 0), own


def lookup(rows: Sharded, ids: jax.Array, axis_name: AxisName, *, same: bool = False) -> jax.Array:
    """[B, ...] the rows of examples, exact: one device gives a row and all others add zero to it.

    Args:
      rows: before the step's own writes; no gradient flows.
      ids: [B] integers, other ones on each device, or with `same` the same on all of them.
      axis_name: the axis that the rows are split over, None on one device.
    """
    if axis_size(axis_name) == 1:
        return lax.stop_gradient(rows.rows[ids])
    every = ids if same else gather(ids, axis_name)
    places, own = locate(rows, every, axis_name)
    found = lax.stop_gradient(rows.rows[places])
    found = jnp.where(own.reshape(own.shape + (1,) * (found.ndim - own.ndim)), found, 0)
    if same:
        return lax.psum(found, axis_name)
    return lax.psum_scatter(found, axis_name, scatter_dimension=0, tiled=True)


def write(rows: Sharded, ids: jax.Array, values: jax.Array) -> Sharded:
    """Rows that are to hold `values` [B, ...] at `ids` [B], once `settle` is called; ids below 0
    are not written. Both are those of the global batch, and no id occurs twice. A device needs the
    values of the rows that it holds."""
    return dataclasses.replace(rows, writes=(ids, values.astype(rows.dtype)))


def choose(go: jax.Array, new: Tree, old: Tree) -> Tree:
    """`new` where `go`, a boolean, else `old`. Of rows with writes, which must be the old rows
    otherwise, the writes are dropped where not `go`: the rows are neither copied nor read."""

    def one(new: Any, old: Any) -> Any:
        if not is_sharded(new) or new.writes is None:
            return jax.tree.map(lambda new, old: jnp.where(go, new, old), new, old)
        ids, values = new.writes
        return dataclasses.replace(new, writes=(jnp.where(go, ids, -1), values))

    return jax.tree.map(one, new, old, is_leaf=is_sharded)


def settle(tree: Tree, axis_name: AxisName) -> Tree:
    """The tree after the writes of all its sharded rows, each device its own."""

    def one(x: Any) -> Any:
        if not is_sharded(x) or x.writes is None:
            return x
        ids, values = x.writes
        places, own = locate(x, ids, axis_name)
        places = jnp.where(own, places, x.rows.shape[0])
        return dataclasses.replace(x, rows=x.rows.at[places].set(values, mode="drop"), writes=None)

    return jax.tree.map(one, tree, is_leaf=is_sharded)
