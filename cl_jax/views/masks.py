"""Masks of patches, drawn for each example by its key: random patches, rectangular blocks, cells of
a coarser grid. True is hidden."""

import math

import jax
import jax.numpy as jnp
from jax import lax


def noise(keys: jax.Array, patches: int) -> jax.Array:
    """[B, patches] uniform in [0, 1), by typed keys [B]."""
    return jax.vmap(lambda key: jax.random.uniform(key, (patches,)))(keys)


def counts(
    keys: jax.Array, patches: int, *, probability: float, ratio: tuple[float, float]
) -> jax.Array:
    """[B] how many of `patches` to hide: floor(patches * r), r uniform in `ratio`, for a share
    `probability` of the examples; 0 for the others (iBOT, DINOv2)."""

    def draw(key):
        coin, share = jax.random.uniform(key, (2,))
        share = ratio[0] + (ratio[1] - ratio[0]) * share
        return jnp.where(coin < probability, jnp.floor(patches * share), 0).astype(jnp.int32)

    return jax.vmap(draw)(keys)


def scattered(keys: jax.Array, patches: int, count: jax.Array) -> jax.Array:
    """[B, patches] booleans, exactly `count` [B] true in each row."""
    order = jnp.argsort(noise(keys, patches), axis=1)
    rank = jnp.argsort(order, axis=1)
    return rank < count[:, None]


def cells(keys: jax.Array, rows: int, columns: int, *, ratio: float) -> jax.Array:
    """[B, rows, columns] booleans, ceil(ratio * rows * columns) true in each (SimMIM)."""
    count = math.ceil(rows * columns * ratio)
    hidden = scattered(keys, rows * columns, jnp.full(keys.shape, count))
    return hidden.reshape(-1, rows, columns)


def blocks(
    keys: jax.Array,
    rows: int,
    columns: int,
    count: jax.Array,
    *,
    smallest: int | None = None,
    aspect: float = 0.3,
    tries: int = 10,
) -> jax.Array:
    """[B, rows, columns] booleans: rectangles that may overlap, at most `count` [B] patches in all.

    One rectangle after the other: its area is uniform from `smallest`, by default
    (min(rows, columns) // 3)^2, to what may still be hidden, its height over its width log-uniform
    from `aspect` to 1 / aspect, its place uniform. It is kept if it is smaller than the grid in
    both directions, hides something new, and not too much. The mask is done when `count` is reached
    or `tries` rectangles in a row were not kept.

    Reference: Bao et al., arXiv 2106.08254, algorithm 1, as iBOT's program has it.
    """
    smallest = (min(rows, columns) // 3) ** 2 if smallest is None else smallest
    down = jnp.arange(rows)[:, None]
    along = jnp.arange(columns)[None, :]

    def one(key, count):
        def more(state):
            mask, failures, _ = state
            return (jnp.sum(mask) < count) & (failures < tries)

        def attempt(state):
            mask, failures, number = state
            area, shape, top, left = jax.random.uniform(jax.random.fold_in(key, number), (4,))
            left_over = count - jnp.sum(mask)
            area = smallest + area * (left_over - smallest)
            ratio = jnp.exp((2 * shape - 1) * math.log(1 / aspect))
            height = jnp.round(jnp.sqrt(area * ratio)).astype(jnp.int32)
            width = jnp.round(jnp.sqrt(area / ratio)).astype(jnp.int32)
            top = jnp.floor(top * (rows - height + 1))
            left = jnp.floor(left * (columns - width + 1))
            block = ((down >= top) & (down < top + height)) & jnp.ones((1, columns), bool)
            block &= ((along >= left) & (along < left + width)) & jnp.ones((rows, 1), bool)
            new = jnp.sum(block & ~mask)
            keep = (height < rows) & (width < columns) & (new > 0) & (new <= left_over)
            return mask | (block & keep), jnp.where(keep, 0, failures + 1), number + 1

        start = jnp.zeros((rows, columns), bool), jnp.int32(0), jnp.int32(0)
        return lax.while_loop(more, attempt, start)[0]

    return jax.vmap(one)(keys, count)
