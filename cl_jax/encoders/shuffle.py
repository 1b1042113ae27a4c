"""Shuffled batch norm of MoCo: keys pass the encoder in another order, so query and key see other
batch moments."""

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import axis_size
from cl_jax.core.shapes import check_axis


def shuffle_batch(
    key: jax.Array, x: jax.Array, axis_name: str | None
) -> tuple[jax.Array, jax.Array]:
    """Permutes the examples of the global batch over devices; returns (this device's new rows, the
    permutation).

    x is [B_local, ...] on each device, `key` the same on all of them. Undo with `unshuffle_batch`.

    The permutation, which the number of devices does not change, is stratified: with P the largest
    power of 2 whose square divides B, each P-th of the batch goes to all P-ths in equal numbers, to
    random places. So on 2, 4, ... P devices each sends as many rows to every other one, by one
    all-to-all of B_local rows; on other numbers of devices all rows are gathered. Where P is 1 the
    permutation is uniform.
    """
    permutation = _permutation(key, x.shape[0] * axis_size(axis_name))
    return _permuted(permutation, x, axis_name), permutation


def unshuffle_batch(x: jax.Array, permutation: jax.Array, axis_name: str | None) -> jax.Array:
    """The rows of x [B_local, ...] back in the order they had before any permutation. All rows are
    gathered: they are embeddings, small beside the images that were shuffled."""
    return shuffle_by(jnp.argsort(permutation), x, axis_name)


def shuffle_by(permutation: jax.Array, x: jax.Array, axis_name: str | None) -> jax.Array:
    """Row i of the global result is row permutation[i] of the global x, for any permutation; each
    device gets its own part of all rows, gathered."""
    check_axis(axis_name)
    rows = x.shape[0]
    if axis_size(axis_name) == 1:
        return x[permutation]
    mine = lax.dynamic_slice_in_dim(permutation, lax.axis_index(axis_name) * rows, rows)
    return lax.all_gather(x, axis_name, axis=0, tiled=True)[mine]


def _strata(batch: int) -> int:
    parts = 1
    while batch % (4 * parts * parts) == 0:
        parts *= 2
    return parts


def _permutation(key: jax.Array, batch: int) -> jax.Array:
    parts = _strata(batch)
    if parts == 1:
        return jax.random.permutation(key, batch)
    ways = jax.random.split(key, 2)

    def within(key: jax.Array, order: jax.Array) -> jax.Array:
        """The rows of each part in an order of their own."""
        return jax.random.permutation(key, order.reshape(parts, -1), axis=1, independent=True)

    order = within(ways[0], jnp.arange(batch)).reshape(parts, parts, -1)
    return within(ways[1], order.swapaxes(0, 1)).reshape(batch)


def _permuted(permutation: jax.Array, x: jax.Array, axis_name: str | None) -> jax.Array:
    """`shuffle_by`, for a permutation that `_permutation` made."""
    check_axis(axis_name)
    devices, rows = axis_size(axis_name), x.shape[0]
    if devices == 1 or _strata(len(permutation)) % devices:
        return shuffle_by(permutation, x, axis_name)
    rank = lax.axis_index(axis_name)
    # [devices, rows] where each row of each device comes from; every device has as many of another.
    source = permutation.reshape(devices, rows)
    leaving = jnp.argsort(source // rows != rank, axis=1, stable=True)[:, : rows // devices]
    sent = x[jnp.take_along_axis(source, leaving, axis=1) - rank * rows]
    received = lax.all_to_all(sent, axis_name, split_axis=0, concat_axis=0)
    places = jnp.argsort(
        lax.dynamic_index_in_dim(source // rows, rank, keepdims=False), stable=True
    )
    return jnp.zeros_like(x).at[places].set(received.reshape(x.shape), unique_indices=True)
