"""Spherical k-means over a bank of unit features: DeepCluster v2's assignments and prototypes."""

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.cluster._lloyd import assign_rows, block_of, nearest, rows_at, rows_of, sums, unit
from cl_jax.core.shapes import check, check_axis, check_integer
from cl_jax.core.sharded import Sharded


def spherical_kmeans(
    memory: jax.Array | Sharded,
    initial: jax.Array,
    *,
    iterations: int,
    block_size: int | None = None,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array | Sharded]:
    """Clusters directions: the nearest centroid is the one with the largest dot product, a mean is
    scaled back to 1.

    Args:
      memory: [M, D] rows of this device, or `Sharded` over `axis_name`; normalised by the caller.
      initial: [K] integers, the same on all devices: rows that the centroids start from, of an
        array those of the *first* device.
      iterations: 0 or more updates of the centroids (10).
      block_size: rows compared with the centroids at a time; bounds temporaries at block_size * K.
        None: as `kmeans`.
      axis_name: mapped axis over which the rows are split; sums and counts run over all devices.

    Returns:
      (centroids [K, D], assignments [M] int32, `Sharded` where the memory is). Centroids are those
      after the last update, at least float32 and the same on all devices; assignments are to those.
      A cluster without rows keeps its centroid; ties go to the lowest number.

    Raises:
      ValueError: memory of a wrong shape or type, `initial` not integers, iterations below 0,
        `axis_name` not mapped.

    Reference: Caron et al. 2020, arXiv 2006.09882, DeepCluster-v2.
    """
    check("m d", memory=memory)
    check_integer("k", initial=initial)
    check_axis(axis_name)
    block_size = block_of(len(initial), block_size)
    if iterations < 0 or block_size < 1:
        raise ValueError(
            f"iterations is {iterations} and block_size {block_size}; expected at least 0 and 1."
        )
    split = isinstance(memory, Sharded)
    rows = lax.stop_gradient(rows_of(memory, axis_name))
    start = rows_at(memory, initial, axis_name)
    if not split and axis_name is not None:
        start = lax.psum(jnp.where(lax.axis_index(axis_name) == 0, start, 0), axis_name)

    def update(_, centroids):
        found, counts = sums(
            rows, nearest(centroids, spherical=True), len(centroids), block_size, axis_name
        )
        means = unit(found / jnp.maximum(counts, 1)[:, None])
        # Centroids that keep their place are scaled too: the first ones are rows of the memory, as
        # they are.
        return jnp.where(counts[:, None] > 0, means, unit(centroids))

    centroids = lax.fori_loop(0, iterations, update, start)
    assignments = assign_rows(rows, nearest(centroids, spherical=True), block_size)
    return centroids, Sharded(assignments, memory.size, 1) if split else assignments


def labels_by_example(
    assignments: jax.Array,
    example_ids: jax.Array,
    num_examples: int,
    *,
    axis_name: str | None = None,
) -> jax.Array:
    """[M] assignments of memory rows -> [N] labels of the data set's examples, -100 where none has
    a memory row.

    Args:
      assignments: [M] integers of this device's memory rows.
      example_ids: [M] integers below N: which example a row belongs to; no example twice.
      num_examples: N.
      axis_name: mapped axis over which the memory is split; rows of all devices are collected.

    Returns:
      [N] int32, the same on all devices.

    Raises:
      ValueError: shapes that disagree, not integers, `axis_name` not mapped.
    """
    check_integer("m", assignments=assignments, example_ids=example_ids)
    check_axis(axis_name)
    if axis_name is not None:
        assignments, example_ids = (
            lax.all_gather(x, axis_name, tiled=True) for x in (assignments, example_ids)
        )
    return (
        jnp.full((num_examples,), -100, jnp.int32)
        .at[example_ids]
        .set(assignments.astype(jnp.int32))
    )
