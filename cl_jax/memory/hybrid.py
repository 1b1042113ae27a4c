"""SpCL's hybrid memory: class centroids of the source, then every target instance, under one set of
labels."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import any_mesh
from cl_jax.core.shapes import check, check_integer
from cl_jax.memory.prototypes import normalise


class HybridMemory(NamedTuple):
    """rows: [N, D], one per source class and per target image. labels: [N] cluster of each row,
    renewed every epoch."""

    rows: jax.Array
    labels: jax.Array


def init(features: jax.Array, labels: jax.Array | None = None) -> HybridMemory:
    """Normalised features of the first forward pass (for source classes their means); each its own
    label by default."""
    sizes = check("n d", features=features)
    if labels is None:
        labels = jnp.arange(sizes["n"], dtype=jnp.int32)
    check_integer("n", sizes, labels=labels)
    return HybridMemory(normalise(features), jnp.asarray(labels))


@any_mesh
def class_means(features: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    """[C, D] mean feature of each class; a class without a member gets the zero row."""
    check_integer("n", check("n d", features=features), labels=labels)
    count = jax.ops.segment_sum(jnp.ones(labels.shape, features.dtype), labels, num_classes)
    return jax.ops.segment_sum(features, labels, num_classes) / jnp.maximum(count, 1)[:, None]


@any_mesh
def update(
    memory: HybridMemory, rows: jax.Array, ids: jax.Array, *, momentum: float, chain: bool = True
) -> HybridMemory:
    """Moves the rows seen: V[i] <- normalise(momentum * V[i] + (1 - momentum) * row).

    Args:
      memory: the memory.
      rows: [B, D] features of the global batch in rank order, used as given; gathered over devices
        by the caller. No gradient flows.
      ids: [B] integers: class of a source image, num_source_classes + instance of a target image.
        Nothing is written for ids below 0 or from N on.
      momentum: how much of the old row stays; 0.2 in SpCL.
      chain: True, as the authors' code: repeated ids move their row once per occurrence, in batch
        order. False, as the paper's equation: once, towards the mean of their rows.

    Returns:
      The memory with the same labels. Norms are bounded below by 1e-12; the authors divide without
      an epsilon.

    Raises:
      ValueError: shapes that disagree, ids that are not integers.

    Reference: Ge et al. 2020, arXiv 2006.02713, equations 2 and 3.
    """
    sizes = check("n d", rows_of_the_memory=memory.rows)
    check_integer("b", check("b d", sizes, rows=rows), ids=ids)
    dtype = memory.rows.dtype
    rows = lax.stop_gradient(rows).astype(dtype)
    if chain:

        def move(stored, row_and_id):
            row, i = row_and_id
            moved = normalise(momentum * stored[i] + (1 - momentum) * row)
            return stored.at[jnp.where(i < 0, len(stored), i)].set(moved, mode="drop"), None

        stored, _ = lax.scan(move, memory.rows, (rows, ids))
        return memory._replace(rows=stored)
    count = jax.ops.segment_sum(jnp.ones(ids.shape, dtype), ids, sizes["n"])[:, None]
    mean = jax.ops.segment_sum(rows, ids, sizes["n"]) / jnp.maximum(count, 1)
    moved = normalise(momentum * memory.rows + (1 - momentum) * mean)
    return memory._replace(rows=jnp.where(count > 0, moved, memory.rows))
