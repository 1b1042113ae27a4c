"""What both k-means are made of: the nearest centroid of each row, and the sums of each cluster,
over blocks of rows that may lie on several devices."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core import sharded
from cl_jax.core.axis import AxisName, axis_size, total, varying
from cl_jax.core.sharded import Sharded

# Rows and centroids compared at a time on a CPU: their similarities stay in its cache.
CPU_ROWS, CPU_CENTROIDS = 256, 1024


class Rows(NamedTuple):
    """x: [R, D] of this device. real: [R] booleans, False for padding."""

    x: jax.Array
    real: jax.Array


def rows_of(x: jax.Array | Sharded, axis_name: AxisName) -> Rows:
    """This device's rows, at least float32."""
    held = x.rows if isinstance(x, Sharded) else x
    held = held.astype(jnp.promote_types(held.dtype, jnp.float32))
    real = jnp.ones(held.shape[0], bool)
    if isinstance(x, Sharded):
        first = sharded.first_held(x, axis_name)
        real = first + jnp.arange(held.shape[0]) < x.size
    return Rows(held, real)


def rows_at(x: jax.Array | Sharded, ids: jax.Array, axis_name: AxisName) -> jax.Array:
    """[B, D] the rows of ids that are the same on every device; of an array, this device's."""
    rows = sharded.lookup(x, ids, axis_name, same=True) if isinstance(x, Sharded) else x[ids]
    return rows.astype(jnp.promote_types(rows.dtype, jnp.float32))


def nearest(centroids: jax.Array, *, spherical: bool) -> Callable[[jax.Array], jax.Array]:
    """A function from rows [B, D] to the number [B] int32 of the centroid that is nearest, or with
    `spherical` has the largest dot product; the first of equal ones.

    Products are exact to float32 (HIGHEST). On a CPU rows are compared with some centroids at a
    time, and the place of the largest is found by comparison with it, which its vector instructions
    do and `argmax` does not.
    """
    k, width = centroids.shape
    half = jnp.zeros(k, centroids.dtype)
    if not spherical:
        half = 0.5 * jnp.sum(centroids * centroids, axis=1)
    tile = k
    if jax.default_backend() == "cpu" and k > CPU_CENTROIDS:
        even = -(-k // -(-k // CPU_CENTROIDS))  # as many in each tile, to eight
        tile = -(-even // 8) * 8
    missing = -k % tile
    tiles = jnp.pad(centroids, ((0, missing), (0, 0))).reshape(-1, tile, width)
    halves = jnp.pad(half, (0, missing), constant_values=jnp.inf).reshape(-1, tile)
    firsts = jnp.arange(0, k + missing, tile, dtype=jnp.int32)
    numbers = jnp.arange(tile, dtype=jnp.int32)

    def find(rows: jax.Array) -> jax.Array:
        def one(best: Any, given: Any) -> tuple[Any, None]:
            some, halved, first = given
            scores = jnp.matmul(some, rows.T, precision=lax.Precision.HIGHEST) - halved[:, None]
            top = jnp.max(scores, axis=0)
            at = jnp.min(jnp.where(scores == top[None], numbers[:, None], tile - 1), axis=0)
            better = top > best[0]
            return (
                jnp.where(better, top, best[0]),
                jnp.where(better, first + at, best[1]),
            ), None

        count = rows.shape[0]
        start = (jnp.full(count, -jnp.inf, rows.dtype), jnp.zeros(count, jnp.int32))
        start = varying((*start, rows, tiles))[:2]
        return lax.scan(one, start, (tiles, halves, firsts))[0][1]

    return find


def block_of(num_clusters: int, block_size: int | None) -> int:
    """Rows compared with the centroids at a time: [block, K] is 64 MiB where None is given."""
    if block_size is not None:
        return block_size
    if jax.default_backend() == "cpu":
        return CPU_ROWS
    return max(2**24 // num_clusters, 1)


def assign_rows(rows: Rows, find: Callable[[jax.Array], jax.Array], block_size: int) -> jax.Array:
    """[R] the nearest centroid of each row."""
    blocks, _ = _blocks(rows, block_size)
    return lax.map(find, blocks).reshape(-1)[: rows.x.shape[0]]


def sums(
    rows: Rows,
    find: Callable[[jax.Array], jax.Array],
    num_clusters: int,
    block_size: int,
    axis_name: AxisName,
) -> tuple[jax.Array, jax.Array]:
    """([K, D] sums of the rows that are nearest to each centroid, [K] int32 how many), over all
    devices, in an order that does not vary between runs."""
    blocks, real = _blocks(rows, block_size)

    def add(carry: Any, block: Any) -> tuple[Any, None]:
        x, real = block
        where = jnp.where(real, find(x), num_clusters)  # padding is in no cluster
        counts = carry[1].at[where].add(1, mode="drop")
        if jax.default_backend() == "cpu":
            return (carry[0].at[where].add(x, mode="drop"), counts), None
        return (_add_sorted(carry[0], x, where), counts), None

    start = (
        jnp.zeros((num_clusters, rows.x.shape[1]), rows.x.dtype),
        jnp.zeros(num_clusters, jnp.int32),
    )
    start = varying((*start, blocks))[:2]
    found, _ = lax.scan(add, start, (blocks, real))
    return total(found[0], axis_name), total(found[1], axis_name)


def unit(x: jax.Array) -> jax.Array:
    """Rows [N, D] at unit length, norms below 1e-12 counting as 1e-12."""
    return x * lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=1, keepdims=True), 1e-24))


def seen_by(x: jax.Array | Sharded, ids: jax.Array, axis_name: AxisName) -> Rows:
    """This device's share of the rows of ids that are the same on every device."""
    devices = axis_size(axis_name) if isinstance(x, Sharded) else 1
    count = ids.shape[0]
    share = -(-count // devices)
    places = jnp.arange(share)
    if devices > 1:
        places = places + lax.axis_index(axis_name) * share
    mine = ids[jnp.minimum(places, count - 1)]
    found = sharded.lookup(x, mine, axis_name) if isinstance(x, Sharded) else x[mine]
    return Rows(found.astype(jnp.promote_types(found.dtype, jnp.float32)), places < count)


def _blocks(rows: Rows, block_size: int) -> tuple[jax.Array, jax.Array]:
    count = rows.x.shape[0]
    size = min(block_size, max(count, 1))
    missing = -count % size
    x = jnp.pad(rows.x, ((0, missing), (0, 0))).reshape(-1, size, rows.x.shape[1])
    return x, jnp.pad(rows.real, (0, missing)).reshape(-1, size)


def _add_sorted(sums: jax.Array, x: jax.Array, where: jax.Array) -> jax.Array:
    """Adds the rows x [B, D] to the sums at `where`, in one order: a GPU's scatter of equal indices
    varies between runs. Sorted by cluster, rows are summed up to the last one of each, and these
    are added, no index twice."""
    order = jnp.argsort(where, stable=True)
    x, where = x[order], where[order]
    one = jnp.ones(1, bool)
    starts = jnp.concatenate([one, where[1:] != where[:-1]])
    ends = jnp.concatenate([where[1:] != where[:-1], one])

    def join(a: Any, b: Any) -> Any:
        return a[0] | b[0], jnp.where(b[0][:, None], b[1], a[1] + b[1])

    summed = lax.associative_scan(join, (starts, x))[1]
    return sums.at[jnp.where(ends, where, sums.shape[0])].add(summed, mode="drop")
