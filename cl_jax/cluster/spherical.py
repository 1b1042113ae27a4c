"""Spherical k-means over a bank of unit features: DeepCluster v2's assignments and prototypes."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.shapes import check, check_axis, check_integer


def spherical_kmeans(
    memory: jax.Array,
    initial: jax.Array,
    *,
    iterations: int,
    block_size: int = 8192,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Clusters directions: the nearest centroid is the one with the largest dot product, a mean is
    scaled back to 1.

    Args:
      memory: [M, D] rows of this device, normalised by the caller.
      initial: [K] integers: rows of the *first* device's memory that the centroids start from, the
        same on all devices.
      iterations: 0 or more updates of the centroids (10).
      block_size: rows compared with the centroids at a time; bounds temporaries at block_size * K.
      axis_name: mapped axis over which the rows are split; sums and counts run over all devices.

    Returns:
      (centroids [K, D], assignments [M] int32). Centroids are those after the last update, at least
      float32 and the same on all devices; assignments are to those. A cluster without rows keeps
      its centroid; ties go to the lowest number.

    Raises:
      ValueError: memory of a wrong shape or type, `initial` not integers, iterations below 0,
        `axis_name` not mapped.

    Reference: Caron et al. 2020, arXiv 2006.09882, DeepCluster-v2.
    """
    check("m d", memory=memory)
    check_integer("k", initial=initial)
    check_axis(axis_name)
    if iterations < 0 or block_size < 1:
        raise ValueError(
            f"iterations is {iterations} and block_size {block_size}; expected at least 0 and 1."
        )
    memory = lax.stop_gradient(memory.astype(jnp.promote_types(memory.dtype, jnp.float32)))
    start = memory[initial]
    if axis_name is not None:
        start = lax.psum(jnp.where(lax.axis_index(axis_name) == 0, start, 0), axis_name)

    rows = memory.shape[0]
    block_size = min(block_size, rows)
    blocks = -(-rows // block_size)
    padded = jnp.pad(memory, ((0, blocks * block_size - rows), (0, 0))).reshape(
        blocks, block_size, -1
    )
    real = (jnp.arange(blocks * block_size) < rows).reshape(blocks, block_size)

    def update(_, centroids):
        # The carry starts from the first block, which makes it vary over the mapped axis as the
        # others do.
        first = _add(centroids, (0, 0), (padded[0], real[0]))[0]
        (sums, counts), _ = lax.scan(partial(_add, centroids), first, (padded[1:], real[1:]))
        if axis_name is not None:
            sums, counts = lax.psum((sums, counts), axis_name)
        means = _unit(sums / jnp.maximum(counts, 1)[:, None])
        # Centroids that keep their place are scaled too: the first ones are rows of the memory, as
        # they are.
        return jnp.where(counts[:, None] > 0, means, _unit(centroids))

    centroids = lax.fori_loop(0, iterations, update, start)
    assignments = lax.map(partial(_nearest, centroids), padded).reshape(-1)[:rows]
    return centroids, assignments


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


def _nearest(centroids, rows):
    scores = jnp.matmul(rows, centroids.T, precision=lax.Precision.HIGHEST)
    return jnp.argmax(scores, axis=1).astype(jnp.int32)


def _add(centroids, carry, block):
    """Adds a block's rows to sums and counts of their clusters, by matmul: a GPU's scatter-add
    varies between runs."""
    rows, real = block
    member = (_nearest(centroids, rows)[:, None] == jnp.arange(centroids.shape[0])[None]) & real[
        :, None
    ]
    member = member.astype(rows.dtype)
    sums = jnp.matmul(member.T, rows, precision=lax.Precision.HIGHEST)
    return (carry[0] + sums, carry[1] + member.sum(0)), None


def _unit(x):
    return x * lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=1, keepdims=True), 1e-24))
