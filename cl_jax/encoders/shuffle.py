"""Shuffled batch norm of MoCo: keys pass the encoder in another order, so query and key see other
batch moments."""

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.shapes import check_axis


def shuffle_batch(
    key: jax.Array, x: jax.Array, axis_name: str | None
) -> tuple[jax.Array, jax.Array]:
    """Permutes the examples of the global batch over devices; returns (this device's new rows, the
    permutation).

    x is [B_local, ...] on each device, `key` the same on all of them. Undo with `unshuffle_batch`.
    """
    batch = x.shape[0] * (1 if axis_name is None else lax.axis_size(axis_name))
    permutation = jax.random.permutation(key, batch)
    return shuffle_by(permutation, x, axis_name), permutation


def unshuffle_batch(x: jax.Array, permutation: jax.Array, axis_name: str | None) -> jax.Array:
    """The rows of x [B_local, ...] back in the order they had before `shuffle_batch`."""
    return shuffle_by(jnp.argsort(permutation), x, axis_name)


def shuffle_by(permutation: jax.Array, x: jax.Array, axis_name: str | None) -> jax.Array:
    """Row i of the global result is row permutation[i] of the global x; each device gets its own
    part."""
    check_axis(axis_name)
    rows = x.shape[0]
    if axis_name is None:
        return x[permutation]
    mine = lax.dynamic_slice_in_dim(permutation, lax.axis_index(axis_name) * rows, rows)
    return lax.all_gather(x, axis_name, axis=0, tiled=True)[mine]
