"""Tiles of a matrix of queries by keys: how arrays are cut into them, read and written, and how the
keys' tiles go round a ring of devices."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import AxisName, axis_size


class Grid(NamedTuple):
    """Tiles of a matrix with `rows` x `cols` entries: `down` x `across` of them, each `high` x
    `wide`."""

    rows: int
    cols: int
    high: int
    wide: int

    @property
    def down(self) -> int:
        return -(-self.rows // self.high)

    @property
    def across(self) -> int:
        return -(-self.cols // self.wide)

    def valid(self, i, j) -> jax.Array | None:
        """[high, wide] false on what fills up the last tiles; None where nothing does."""
        if self.down * self.high == self.rows and self.across * self.wide == self.cols:
            return None
        row = i * self.high + jnp.arange(self.high) < self.rows
        col = j * self.wide + jnp.arange(self.wide) < self.cols
        return row[:, None] & col[None, :]

    def over(self, body, state):
        """body(i, j, state) -> state over all tiles."""
        if self.down == self.across == 1:
            return body(0, 0, state)
        return lax.fori_loop(
            0,
            self.down * self.across,
            lambda t, state: body(t // self.across, t % self.across, state),
            state,
        )


def side_of(size: int, block_size: int | None) -> int:
    """The side of equal tiles no longer than block_size."""
    if not block_size or size <= block_size:
        return size
    side = -(-size // -(-size // block_size))
    return min(block_size, -(-side // 8) * 8)  # matrix units want multiples of 8


def cut(tree, side: int):
    """[N, ...] -> [N / side, side, ...], the last tile filled up with the last entry."""

    def one(x):
        fill = -x.shape[0] % side
        if fill:
            x = jnp.concatenate([x, jnp.broadcast_to(x[-1:], (fill, *x.shape[1:]))])
        return x.reshape(-1, side, *x.shape[1:])

    return jax.tree.map(one, tree)


def uncut(tree, size: int):
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:size], tree)


def at(tree, i):
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), tree)


def put(tree, i, tile):
    return jax.tree.map(lambda x, y: lax.dynamic_update_index_in_dim(x, y, i, 0), tree, tile)


def add(tree, i, tile):
    return put(tree, i, jax.tree.map(lambda x, y: x + y.astype(x.dtype), at(tree, i), tile))


def around(ring: AxisName, body, home, travelling):
    """body(home, travelling) for every device's `travelling`, which ends where it began."""
    if ring is None:
        return body(home, travelling)
    size = axis_size(ring)
    path = [(i, (i + 1) % size) for i in range(size)]

    def hop(_, state):
        home, travelling = body(*state)
        return home, lax.ppermute(travelling, ring, path)

    return lax.fori_loop(0, size, hop, (home, travelling))
