"""A few rows that represent all: k-centre greedy."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.numerics import unit
from cl_jax.core.shapes import check, check_count, check_integer


class Coreset(NamedTuple):
    """rows: [n] int32, in the order in which they were chosen, so that the first m are the coreset
    of m. radius: [n], after each choice, the largest distance of a row of x from its nearest chosen
    one."""

    rows: jax.Array
    radius: jax.Array


def coreset(x: jax.Array, count: int, *, chosen: jax.Array | None = None) -> Coreset:
    """Rows that cover all others: each is the one furthest from those chosen before.

    Their radius is at most twice the smallest possible. Distances are Euclidean, of rows of unit
    length. The first row is the one nearest to the mean, or that furthest from the rows `chosen`
    already.

    Args:
      x: [N, D].
      count: n, how many to choose; at most the rows that are not chosen.
      chosen: [M] integers, rows that are in the set already (those with labels).

    Raises:
      ValueError: more rows than there are, counts below 1.

    Reference: Gonzalez 1985; Sener and Savarese 2018, arXiv 1708.00489, algorithm 1.
    """
    size = check("n d", x=x)["n"]
    check_count(count=count)
    known = 0
    if chosen is not None:
        check_integer("m", {}, chosen=chosen)
        known = len(chosen)
    if count + known > size:
        raise ValueError(
            f"count is {count} and {known} rows are chosen already; x has {size} rows. Ask for at "
            f"most {size - known}."
        )
    return _coreset(x, count, chosen if known else None)


@partial(jax.jit, static_argnums=1)
def _coreset(x, count, chosen):
    x = unit(x.astype(jnp.float32))

    def squared(row):
        # Not the expanded square, which says that a row is away from itself.
        return jnp.sum(jnp.square(x - row[None]), axis=1)

    if chosen is None:
        first = jnp.argmin(squared(jnp.mean(x, axis=0))).astype(jnp.int32)
        distance = jnp.full(x.shape[0], jnp.inf)
    else:
        distance = (
            lax.fori_loop(
                0,
                chosen.shape[0],
                lambda i, nearest: jnp.minimum(nearest, squared(x[chosen[i]])),
                jnp.full(x.shape[0], jnp.inf),
            )
            .at[chosen]
            .set(-1.0)
        )
        first = jnp.argmax(distance).astype(jnp.int32)

    def choose(carry, _):
        distance, row = carry
        # -1: of equal rows, one that is chosen is not chosen again
        distance = jnp.minimum(distance, squared(x[row])).at[row].set(-1.0)
        following = jnp.argmax(distance).astype(jnp.int32)
        return (distance, following), (row, jnp.sqrt(jnp.maximum(distance[following], 0.0)))

    _, (rows, radius) = lax.scan(choose, (distance, first), None, count)
    return Coreset(rows, radius)
