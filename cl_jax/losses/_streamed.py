"""The streamed sums: tile by tile, on one device or passed round a ring, with derivatives that
recompute the tiles."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from cl_jax.core.axis import AxisName, axes_of, spread
from cl_jax.core.linear import linear
from cl_jax.core.numerics import at_least_one, capped, dots, wide_type
from cl_jax.losses._sums import LOG_ZERO, Contrast, Pair, Pairs, finish
from cl_jax.losses._tiles import Grid, add, around, at, cut, put, side_of, uncut


def streamed(pair: Pair, queries, keys, scale, rows, cols, *, ring, block_size) -> Contrast:
    grid = Grid(
        queries.shape[0],
        keys.shape[0],
        side_of(queries.shape[0], block_size),
        side_of(keys.shape[0], block_size),
    )
    number = isinstance(scale, (int, float))
    own = _Stream(
        pair, grid, scale if number else None, ring, wide_type(queries.dtype), axes_of(queries)
    )
    (row_floats, row_rest), (col_floats, col_rest) = _floats(rows), _floats(cols)
    return _sums_of(own)(
        queries, keys, None if number else scale, row_floats, col_floats, (row_rest, col_rest)
    )[0]


class _Stream(NamedTuple):
    """What the passes of one call share. number: the scale, None where it is an array; dtype: of
    the sums; axes: those that the queries vary over."""

    pair: Pair
    grid: Grid
    number: float | None
    ring: AxisName
    dtype: Any
    axes: Any

    def scale(self, given):
        return self.number if given is None else given

    def fill(self, shape, value, dtype=None):
        return spread(jnp.full(shape, value, self.dtype if dtype is None else dtype), self.axes)

    def start(self, count, side):
        """A maximum, a sum of exponentials and a sum of terms, of nothing."""
        return (
            self.fill((count, side), LOG_ZERO),
            self.fill((count, side), 0),
            self.fill((count, side), 0),
        )

    def of_tile(self, i, j, q_i, k_j, scale, row_rest, col_rest):
        """s + w and the terms of a tile, as a function of what receives gradient; and the tile's
        similarities."""

        def of(similarity, scale_or_none, row_floats, col_floats):
            return self.pair(
                similarity,
                scale if scale_or_none is None else scale_or_none,
                row_floats | at(row_rest, i),
                col_floats | at(col_rest, j),
                self.grid.valid(i, j),
            )

        return of, dots("rd,kd->rk", q_i, k_j)


class _Residuals(NamedTuple):
    """What a derivative of the sums is taken at. scale: None where it is a number. floats, rest:
    of the pairs, what receives gradient and what does not. by_row, by_col: (maximum, sum of
    exponentials after it), by_col () unless columns are summed."""

    queries: jax.Array
    keys: jax.Array
    scale: jax.Array | None
    row_floats: dict
    col_floats: dict
    rests: tuple[dict, dict]
    by_row: tuple
    by_col: tuple


def _floats(pairs: Pairs) -> tuple[dict, dict]:
    """The arrays that receive gradient, and the others."""
    inexact = {
        name for name, x in pairs.items() if jnp.issubdtype(jnp.result_type(x), jnp.floating)
    }
    return {n: x for n, x in pairs.items() if n in inexact}, {
        n: x for n, x in pairs.items() if n not in inexact
    }


def _sums_of(own: _Stream):
    """(queries, keys, scale or None, row floats, column floats, rests) -> (Contrast, the maxima and
    sums of exponentials of rows and columns), with both modes of differentiation."""

    @jax.custom_jvp
    def sums(*primals):
        return _values(own, *primals)

    def sums_jvp(primals, moved):
        out, parts = sums(*primals)
        by_row = _tied(out.lse, *parts[0])
        by_col = _tied(out.col_lse, *parts[1]) if own.pair.columns else ()
        # Of queries or keys without gradient, such as a momentum encoder's, nothing is computed.
        *two_sides, scale_or_none, row_floats, col_floats = moved[:5]
        two_sides = [None if isinstance(x, SymbolicZero) else x for x in two_sides]
        others = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype) if isinstance(x, SymbolicZero) else x,
            (scale_or_none, row_floats, col_floats),
            is_leaf=lambda x: isinstance(x, SymbolicZero),
        )
        moved = jax.tree.map(lambda x: spread(x, own.axes), (*two_sides, *others))
        with_gradient = (x is not None for x in two_sides)
        d_row, d_col = linear(
            partial(_tangents, own),
            partial(_transposed, own, *with_gradient),
            _Residuals(*primals, by_row, by_col),
            moved,
        )
        d_out = Contrast(
            *_outputs(out.lse, *d_row),
            *(_outputs(out.col_lse, *d_col) if own.pair.columns else ()),
        )
        if own.pair.powers:
            d_out = d_out._replace(highest=own.fill(out.highest.shape, 0))
        return (out, parts), (d_out, jax.tree.map(lambda x: own.fill(x.shape, 0), parts))

    sums.defjvp(sums_jvp, symbolic_zeros=True)
    return sums


def _tied(lse, m, total):
    """The maximum and the sum after it, whose derivative is that of the log-sum-exp."""
    m, total = lax.stop_gradient((m, total))
    return m, total * jnp.exp(lse - lax.stop_gradient(lse))


def _outputs(lse, power, term):
    power = jnp.where(lse <= LOG_ZERO, 0, power)  # 0 where nothing is allowed
    return power, term, power - term


# Values --------------------------------------


def _values(own: _Stream, queries, keys, scale_or_none, row_floats, col_floats, rests):
    row_rest, col_rest = rests
    row_sums, col_sums = _totals(
        own,
        queries,
        keys,
        own.scale(scale_or_none),
        row_floats | row_rest,
        col_floats | col_rest,
    )
    columns = own.pair.columns
    out = Contrast(*finish(*row_sums), *(finish(*col_sums) if columns else ()))
    out = out._replace(highest=row_sums[0] if own.pair.powers else None)
    return out, (row_sums[:2], col_sums[:2] if columns else ())


def _totals(own: _Stream, queries, keys, scale, rows, cols):
    """(maximum, sum of exponentials, sum of terms) of rows, and of columns or ()."""
    pair, grid = own.pair, own.grid
    q, rows = cut((queries, rows), grid.high)

    def visit(row_sums, travelling):
        k, cols, col_sums = travelling

        def tile(i, j, sums):
            row_sums, col_sums = sums
            w, of_columns, e = pair(
                dots("rd,kd->rk", at(q, i), at(k, j)),
                scale,
                at(rows, i),
                at(cols, j),
                grid.valid(i, j),
            )
            row_sums = put(row_sums, i, _join(at(row_sums, i), w, e, 1))
            if pair.columns:
                col_sums = put(col_sums, j, _join(at(col_sums, j), of_columns, e, 0))
            return row_sums, col_sums

        row_sums, col_sums = grid.over(tile, (row_sums, col_sums))
        return row_sums, (k, cols, col_sums)

    col_sums = own.start(grid.across, grid.wide) if pair.columns else ()
    row_sums, (_, _, col_sums) = around(
        own.ring, visit, own.start(grid.down, grid.high), (*cut((keys, cols), grid.wide), col_sums)
    )
    return uncut(row_sums, grid.rows), uncut(col_sums, grid.cols)


def _join(sums, w, e, axis):
    """Running maximum, sum of exponentials and terms, joined by those of a tile."""
    m, total, terms = sums
    if w is not None:
        highest = jnp.maximum(m, jnp.max(w, axis))
        total = total * jnp.exp(m - highest) + jnp.sum(
            jnp.exp(capped(w - jnp.expand_dims(highest, axis))), axis
        )
        m = highest
    return m, total, terms if e is None else terms + jnp.sum(e, axis)


# Forward mode --------------------------------------


def _tangents(own: _Stream, residuals: _Residuals, moved):
    """The derivative of the sums in the direction of `moved`: [R] and [K] of the log-sum-exps and
    of the terms."""
    grid, columns, given = own.grid, own.pair.columns, residuals
    scale = own.scale(given.scale)
    d_queries, d_keys, d_scale, d_row_floats, d_col_floats = moved
    q, d_q, row_floats, d_row_floats, row_rest, by_row = cut(
        (given.queries, d_queries, given.row_floats, d_row_floats, given.rests[0], given.by_row),
        grid.high,
    )

    def visit(out, travelling):
        k, d_k, col_floats, d_col_floats, col_rest, by_col, col_out = travelling

        def tile(i, j, outs):
            row_out, col_out = outs
            q_i, k_j = at(q, i), at(k, j)
            of, similarity = own.of_tile(i, j, q_i, k_j, scale, row_rest, col_rest)
            d_similarity = jnp.zeros_like(similarity)
            if d_q is not None:
                d_similarity += dots("rd,kd->rk", at(d_q, i), k_j)
            if d_k is not None:
                d_similarity += dots("rd,kd->rk", q_i, at(d_k, j))
            (w, of_columns, _), (d_w, d_of_columns, d_e) = jax.jvp(
                of,
                (similarity, given.scale, at(row_floats, i), at(col_floats, j)),
                (d_similarity, d_scale, at(d_row_floats, i), at(d_col_floats, j)),
            )
            row_out = put(row_out, i, _moved(at(row_out, i), w, d_w, d_e, at(by_row, i), 1))
            if columns:
                out = _moved(at(col_out, j), of_columns, d_of_columns, d_e, at(by_col, j), 0)
                col_out = put(col_out, j, out)
            return row_out, col_out

        out, col_out = grid.over(tile, (out, col_out))
        return out, (k, d_k, col_floats, d_col_floats, col_rest, by_col, col_out)

    travelling = cut(
        (given.keys, d_keys, given.col_floats, d_col_floats, given.rests[1], given.by_col),
        grid.wide,
    )
    col_out = own.start(grid.across, grid.wide)[1:] if columns else ()
    row_out, (*_, col_out) = around(
        own.ring, visit, own.start(grid.down, grid.high)[1:], (*travelling, col_out)
    )
    return uncut(row_out, grid.rows), uncut(col_out, grid.cols)


def _moved(sums, w, d_w, d_e, side, axis):
    """Derivatives of a log-sum-exp and of a sum of terms, joined by those of a tile."""
    power, term = sums
    if w is not None:
        m, total = (jnp.expand_dims(x, axis) for x in side)
        share = jnp.exp(capped(w - m)) / at_least_one(total)
        power = power + jnp.sum(share * d_w, axis)
    return power, term if d_e is None else term + jnp.sum(d_e, axis)


# Reverse mode --------------------------------------


def _transposed(own: _Stream, of_queries, of_keys, residuals: _Residuals, g):
    """The gradients; of queries or keys that have none, None."""
    grid, columns, given = own.grid, own.pair.columns, residuals
    scale, variable = own.scale(given.scale), own.number is None
    (row_rest, col_rest), (g_row, g_col) = given.rests, g
    q, row_floats, row_rest = cut((given.queries, given.row_floats, row_rest), grid.high)
    by_row = _weights(given.by_row, g_row, grid.high)
    by_col = _weights(given.by_col, g_col, grid.wide) if columns else ()

    def visit(home, travelling):
        k, col_floats, col_rest, by_col, *grads = travelling

        def tile(i, j, grads):
            d_q, d_scale, d_rows, d_k, d_cols = grads
            q_i, k_j = at(q, i), at(k, j)
            of, similarity = own.of_tile(i, j, q_i, k_j, scale, row_rest, col_rest)
            (w, of_columns, e), pull = jax.vjp(
                of, similarity, given.scale, at(row_floats, i), at(col_floats, j)
            )
            g_w, g_e = _shares(w, e, at(by_row, i), 1)
            g_of_columns = None
            if columns:
                g_of_columns, of_terms = _shares(of_columns, e, at(by_col, j), 0)
                g_e = None if e is None else g_e + of_terms
            # Softmax less positive in float32: the two nearly cancel where the loss is low.
            d_s, d_scale_t, d_row, d_col = pull((g_w, g_of_columns, g_e))
            d_s = d_s.astype(given.queries.dtype)
            return (
                add(d_q, i, dots("rk,kd->rd", d_s, k_j)) if of_queries else None,
                d_scale + d_scale_t if variable else None,
                add(d_rows, i, d_row),
                add(d_k, j, dots("rd,rk->dk", q_i, d_s)) if of_keys else None,
                add(d_cols, j, d_col),
            )

        *home, d_k, d_cols = grid.over(tile, (*home, *grads))
        return tuple(home), (k, col_floats, col_rest, by_col, d_k, d_cols)

    def zeros(tree):
        return jax.tree.map(lambda x: own.fill(x.shape, 0, wide_type(x.dtype)), tree)

    k, col_floats, col_rest = cut((given.keys, given.col_floats, col_rest), grid.wide)
    (d_q, d_scale, d_rows), (*_, d_k, d_cols) = around(
        own.ring,
        visit,
        (
            zeros(q) if of_queries else None,
            own.fill((), 0) if variable else None,
            zeros(row_floats),
        ),
        (
            k,
            col_floats,
            col_rest,
            by_col,
            zeros(_turned(k)) if of_keys else None,
            zeros(col_floats),
        ),
    )
    return (
        _whole(d_q, q, grid.rows) if of_queries else None,
        _whole(_turned(d_k), k, grid.cols) if of_keys else None,
        d_scale,
        _whole(d_rows, row_floats, grid.rows),
        _whole(d_cols, col_floats, grid.cols),
    )


def _weights(sums, g, side):
    """The maximum, and what multiplies the exponentials and the terms, by tile."""
    (m, total), (g_power, g_term) = sums, g
    # By the sum and not by the log-sum-exp, whose rounding would be seen next to a softmax near 1.
    return cut((m, g_power / at_least_one(total), g_term), side)


def _shares(w, e, side, axis):
    """The cotangents of s + w and of the terms of a tile."""
    m, g_power, g_term = (jnp.expand_dims(x, axis) for x in side)
    power = None if w is None else jnp.exp(capped(w - m)) * g_power
    return power, None if e is None else jnp.broadcast_to(g_term, e.shape)


def _turned(tiles):
    # Summed as [D, K]: a product whose left side is turned is slow on a CPU where that is a whole
    # tile, and not where it is the tile's queries.
    return jnp.swapaxes(tiles, 1, 2)


def _whole(grads, tiles, size):
    return jax.tree.map(lambda x, y: x.astype(y.dtype), uncut(grads, size), tiles)
