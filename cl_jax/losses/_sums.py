"""What `contrast` sums over pairs, its outputs, and the plain form that holds the matrix of
similarities."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.linear import linear
from cl_jax.core.numerics import at_least_one, capped, dots

LOG_ZERO = -1e30  # the logarithm of an empty sum: finite, so that no gradient has inf - inf

Pairs = Mapping[str, jax.Array]
PairFunction = Callable[[Pairs, Pairs], jax.Array]
PairTerm = Callable[[jax.Array, Pairs, Pairs], jax.Array]


class Contrast(NamedTuple):
    """With logits s_ij = scale q_i . k_j, log-weights w_ij and positive weights p_ij, over all
    columns j of row i:

    lse: [R] log sum_j exp(s_ij + w_ij); LOG_ZERO, with zero gradient, where every w_ij is -inf.
    pos: [R] sum_j p_ij s_ij.
    gap: [R] lse - pos, with the digits that the subtraction would lose when both are large: the
      loss of a row whose p_ij sum to one. Where nothing is allowed it is -pos: 0 for a row without
      a positive either.
    col_lse, col_pos, col_gap: [K] the same over all rows i of column j; None unless `columns`.
    highest: [R] max_j (s_ij + w_ij), no gradient. Where one p_ij is 1 and the others 0, pos >=
      highest says that the positive wins, ties counted as won: the contrastive accuracy.
    """

    lse: jax.Array
    pos: jax.Array
    gap: jax.Array
    col_lse: jax.Array | None = None
    col_pos: jax.Array | None = None
    col_gap: jax.Array | None = None
    highest: jax.Array | None = None


class Pair(NamedTuple):
    """What is summed over a tile of similarities: exp(s + w) where `powers`, and term(s, rows,
    cols). Where `columns`, also over rows, with s there multiplied by `column_ratio`."""

    log_weight: PairFunction | None
    term: PairTerm | None
    columns: bool
    powers: bool = True
    column_ratio: float = 1.0

    def __call__(self, similarity, scale, rows, cols, valid=None):
        """s + w for the sums over columns, the same for those over rows, and the terms of a tile,
        each None where it is not summed; nothing of what is not valid."""
        s = similarity * scale
        w = of_columns = e = None
        if self.powers:
            weight = None
            if self.log_weight is not None:
                weight = per_pair("log_weight", self.log_weight(rows, cols), s)
            w = _weighted(s, weight, valid)
            if self.columns:
                of_columns = w
                if self.column_ratio != 1:
                    of_columns = _weighted(similarity * (scale * self.column_ratio), weight, valid)
        if self.term is not None:
            e = per_pair("term", self.term(s, rows, cols), s)
            e = e if valid is None else jnp.where(valid, e, 0)
        return w, of_columns, e


def _weighted(s, weight, valid):
    s = s if weight is None else s + weight
    return s if valid is None else jnp.where(valid, s, -jnp.inf)


def per_pair(name: str, x: jax.Array, s: jax.Array) -> jax.Array:
    if jnp.shape(x) != s.shape:
        raise ValueError(
            f"{name} returned shape {jnp.shape(x)} for a tile of {s.shape[0]} rows and "
            f"{s.shape[1]} "
            "columns; expected one entry per pair, for instance rows['id'][:, None] == "
            "cols['id'][None, :]."
        )
    return jnp.asarray(x, s.dtype)


def finish(m, total, pos):
    """lse, pos and gap from the maximum, the sum of exponentials after it is taken off, and the
    positives."""
    none = m <= LOG_ZERO  # false of NaN, which is passed on
    log_total = jnp.log(at_least_one(total))
    return jnp.where(none, LOG_ZERO, log_total + m), pos, log_total + (jnp.where(none, 0, m) - pos)


def plain(pair: Pair, queries, keys, scale, rows, cols) -> Contrast:
    narrow = queries.dtype.itemsize < 4
    similarity = _narrow_similarity(queries, keys) if narrow else dots("rd,kd->rk", queries, keys)
    by_row, by_column, e = pair(similarity, scale, rows, cols)

    def highest(w, axis):
        return jnp.maximum(lax.stop_gradient(jnp.max(w, axis)), LOG_ZERO)

    def reduce(w, axis):
        zero = jnp.zeros(similarity.shape[1 - axis], similarity.dtype)
        m, total = zero + LOG_ZERO, zero
        if w is not None:
            m = highest(w, axis)
            total = jnp.sum(jnp.exp(capped(w - jnp.expand_dims(m, axis))), axis)
        return finish(m, total, zero if e is None else jnp.sum(e, axis))

    out = Contrast(*reduce(by_row, 1), *(reduce(by_column, 0) if pair.columns else ()))
    return out if by_row is None else out._replace(highest=highest(by_row, 1))


@jax.custom_jvp
def _narrow_similarity(queries, keys):
    return dots("rd,kd->rk", queries, keys)


@_narrow_similarity.defjvp
def _narrow_similarity_jvp(primals, tangents):
    return _narrow_similarity(*primals), linear(
        _narrow_tangent, _narrow_transpose, primals, tangents
    )


def _narrow_tangent(primals, tangents):
    (queries, keys), (d_queries, d_keys) = primals, tangents
    return dots("rd,kd->rk", d_queries, keys) + dots("rd,kd->rk", queries, d_keys)


def _narrow_transpose(primals, g):
    # JAX's own transposed products would be of a float32 matrix.
    queries, keys = primals
    g = g.astype(queries.dtype)
    return (
        dots("rk,kd->rd", g, keys).astype(queries.dtype),
        dots("rk,rd->kd", g, queries).astype(keys.dtype),
    )
