"""One row per example of the data set, moved towards the example's feature each time it is seen."""

from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core import sharded
from cl_jax.core.axis import AxisName, any_mesh
from cl_jax.core.numerics import wide_type
from cl_jax.core.shapes import check, check_axis, check_count, check_integer, check_key, check_share
from cl_jax.core.sharded import Sharded
from cl_jax.memory.prototypes import normalise

Bank = TypeVar("Bank", jax.Array, Sharded)


def init(key: jax.Array, size: int, width: int, *, dtype: Any = jnp.float32) -> jax.Array:
    """[N, D] entries uniform in +-1/sqrt(D/3): rows of norm one in expectation, not normalised
    (InstDisc, CMC, CRD)."""
    check_key(key=key)
    check_count(size=size, width=width)
    bound = (3.0 / width) ** 0.5
    return jax.random.uniform(key, (int(size), int(width)), dtype, -bound, bound)


@any_mesh
def update(
    bank: Bank,
    rows: jax.Array,
    ids: jax.Array,
    *,
    momentum: float,
    axis_name: AxisName = None,
) -> Bank:
    """Moves the rows seen: bank[i] <- normalise(momentum * bank[i] + (1 - momentum) * row).

    Args:
      bank: [N, D], the same on every device, or `Sharded` rows of that shape.
      rows: [B, D] features of the global batch in rank order, gathered over devices by the caller,
        so that all devices hold the same bank. No gradient flows.
      ids: [B] integers, each row's example, gathered likewise. Where an example occurs more than
        once every occurrence starts from the old row and the last one is kept, on every backend.
        Nothing is written for ids below 0 or from N on.
      momentum: how much of the old row stays; 0.5 in InstDisc, CMC, CRD and InfoMin.
      axis_name: the axis that a `Sharded` bank is split over; not read of an array.

    Returns:
      [N, D], or the `Sharded` bank with its writes, which `sharded.settle` does. Rows are divided
      by max(norm, 1e-12): the authors of InstDisc, CMC and CRD have no epsilon, which is NaN for a
      zero row and otherwise equal.

    Raises:
      ValueError: widths or batch sizes that disagree, ids that are not integers, a momentum that
        is not from 0 to 1.

    Reference: Wu et al. 2018, arXiv 1805.01978, section 3.1.
    """
    sizes = check("n d", bank=bank)
    check_integer("b", check("b d", sizes, rows=rows), ids=ids)
    check_axis(axis_name)
    check_share(momentum=momentum)
    ids = jnp.asarray(ids)
    held: jax.Array
    if isinstance(bank, Sharded):  # a device moves the rows that it holds
        held, places = bank.rows, sharded.locate(bank, ids, axis_name)[0]
    else:
        held, places = jnp.asarray(bank), ids
    wide = wide_type(held.dtype)
    old, rows = held[places].astype(wide), jnp.asarray(lax.stop_gradient(rows), wide)
    moved = normalise(momentum * old + (1 - momentum) * rows).astype(held.dtype)
    # A scatter's order over equal indices is undefined, so all but the last are sent out of range
    # and dropped.
    if isinstance(bank, Sharded):
        return cast(Bank, sharded.write(bank, jnp.where(is_last(ids), ids, -1), moved))
    return held.at[jnp.where(is_last(ids) & (ids >= 0), ids, sizes["n"])].set(moved, mode="drop")


@any_mesh
def is_last(ids: jax.Array) -> jax.Array:
    """[B] booleans: whether no later entry has the same id."""
    order = jnp.argsort(ids, stable=True)
    ranked = ids[order]
    last = jnp.concatenate([ranked[1:] != ranked[:-1], jnp.ones((1,), bool)])[: ids.shape[0]]
    return jnp.zeros(ids.shape, bool).at[order].set(last, unique_indices=True)
