"""The streamed sums: tile by tile, on one device or passed round a ring, with derivatives that
recompute the tiles."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from cl_jax.core.axis import AxisName, axes_of, axis_size, spread
from cl_jax.core.linear import linear
from cl_jax.core.numerics import at_least_one, capped, dots, wide_type
from cl_jax.losses._sums import LOG_ZERO, Contrast, Pair, Pairs, finish


class _Grid(NamedTuple):
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


def _side(size: int, block_size: int | None) -> int:
    """The side of equal tiles no longer than block_size."""
    if not block_size or size <= block_size:
        return size
    side = -(-size // -(-size // block_size))
    return min(block_size, -(-side // 8) * 8)  # matrix units want multiples of 8


def _cut(tree, side: int):
    """[N, ...] -> [N / side, side, ...], the last tile filled up with the last entry."""

    def cut(x):
        fill = -x.shape[0] % side
        if fill:
            x = jnp.concatenate([x, jnp.broadcast_to(x[-1:], (fill, *x.shape[1:]))])
        return x.reshape(-1, side, *x.shape[1:])

    return jax.tree.map(cut, tree)


def _uncut(tree, size: int):
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:size], tree)


def _at(tree, i):
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), tree)


def _put(tree, i, tile):
    return jax.tree.map(lambda x, y: lax.dynamic_update_index_in_dim(x, y, i, 0), tree, tile)


def _add(tree, i, tile):
    return _put(tree, i, jax.tree.map(lambda x, y: x + y.astype(x.dtype), _at(tree, i), tile))


def _around(ring: AxisName, body, home, travelling):
    """body(home, travelling) for every device's `travelling`, which ends where it began."""
    if ring is None:
        return body(home, travelling)
    size = axis_size(ring)
    path = [(i, (i + 1) % size) for i in range(size)]

    def hop(_, state):
        home, travelling = body(*state)
        return home, lax.ppermute(travelling, ring, path)

    return lax.fori_loop(0, size, hop, (home, travelling))


def _floats(pairs: Pairs) -> tuple[dict, dict]:
    """The arrays that receive gradient, and the others."""
    inexact = {
        name for name, x in pairs.items() if jnp.issubdtype(jnp.result_type(x), jnp.floating)
    }
    return {n: x for n, x in pairs.items() if n in inexact}, {
        n: x for n, x in pairs.items() if n not in inexact
    }


def streamed(pair: Pair, queries, keys, scale, rows, cols, *, ring, block_size) -> Contrast:
    grid = _Grid(
        queries.shape[0],
        keys.shape[0],
        _side(queries.shape[0], block_size),
        _side(keys.shape[0], block_size),
    )
    wide, axes = wide_type(queries.dtype), axes_of(queries)
    variable = not isinstance(scale, (int, float))

    def fill(shape, value, dtype=wide):
        return spread(jnp.full(shape, value, dtype), axes)

    def join(sums, w, e, axis):
        """Running maximum, sum of exponentials and terms, joined by those of a tile."""
        m, total, terms = sums
        if w is not None:
            highest = jnp.maximum(m, jnp.max(w, axis))
            total = total * jnp.exp(m - highest) + jnp.sum(
                jnp.exp(capped(w - jnp.expand_dims(highest, axis))), axis
            )
            m = highest
        return m, total, terms if e is None else terms + jnp.sum(e, axis)

    def start(count, side):
        return fill((count, side), LOG_ZERO), fill((count, side), 0), fill((count, side), 0)

    def forward(queries, keys, scale, rows, cols):
        q, rows = _cut((queries, rows), grid.high)

        def visit(row_sums, travelling):
            k, cols, col_sums = travelling

            def tile(i, j, sums):
                row_sums, col_sums = sums
                w, of_columns, e = pair(
                    dots("rd,kd->rk", _at(q, i), _at(k, j)),
                    scale,
                    _at(rows, i),
                    _at(cols, j),
                    grid.valid(i, j),
                )
                row_sums = _put(row_sums, i, join(_at(row_sums, i), w, e, 1))
                if pair.columns:
                    col_sums = _put(col_sums, j, join(_at(col_sums, j), of_columns, e, 0))
                return row_sums, col_sums

            row_sums, col_sums = grid.over(tile, (row_sums, col_sums))
            return row_sums, (k, cols, col_sums)

        col_sums = start(grid.across, grid.wide) if pair.columns else ()
        row_sums, (_, _, col_sums) = _around(
            ring, visit, start(grid.down, grid.high), (*_cut((keys, cols), grid.wide), col_sums)
        )
        return _uncut(row_sums, grid.rows), _uncut(col_sums, grid.cols)

    def forward_and_parts(queries, keys, scale_or_none, row_floats, col_floats, rests):
        row_rest, col_rest = rests
        row_sums, col_sums = forward(
            queries, keys, fixed(scale_or_none), row_floats | row_rest, col_floats | col_rest
        )
        out = Contrast(*finish(*row_sums), *(finish(*col_sums) if pair.columns else ()))
        out = out._replace(highest=row_sums[0] if pair.powers else None)
        return out, (row_sums[:2], col_sums[:2] if pair.columns else ())

    def of_tile(i, j, q_i, k_j, scale, row_rest, col_rest):
        """s + w and the terms of a tile, as a function of what receives gradient."""

        def of(similarity, scale_or_none, row_floats, col_floats):
            return pair(
                similarity,
                scale_or_none if variable else scale,
                row_floats | _at(row_rest, i),
                col_floats | _at(col_rest, j),
                grid.valid(i, j),
            )

        return of, dots("rd,kd->rk", q_i, k_j)

    def tangents(residuals, moved):
        """The derivative of the sums in the direction of `moved`: [R] and [K] of the log-sum-exps
        and of the terms."""
        queries, keys, scale_or_none, row_floats, col_floats, rests, row_sums, col_sums = residuals
        scale = fixed(scale_or_none)
        d_queries, d_keys, d_scale, d_row_floats, d_col_floats = moved
        q, d_q, row_floats, d_row_floats, row_rest, by_row = _cut(
            (queries, d_queries, row_floats, d_row_floats, rests[0], row_sums), grid.high
        )

        def share(w, sums, axis):
            m, total = (jnp.expand_dims(x, axis) for x in sums)
            return jnp.exp(capped(w - m)) / at_least_one(total)

        def join(sums, w, d_w, d_e, side, axis):
            power, term = sums
            if w is not None:
                power = power + jnp.sum(share(w, side, axis) * d_w, axis)
            return power, term if d_e is None else term + jnp.sum(d_e, axis)

        def visit(out, travelling):
            k, d_k, col_floats, d_col_floats, col_rest, by_col, col_out = travelling

            def tile(i, j, outs):
                row_out, col_out = outs
                q_i, k_j = _at(q, i), _at(k, j)
                of, similarity = of_tile(i, j, q_i, k_j, scale, row_rest, col_rest)
                d_similarity = jnp.zeros_like(similarity)
                if d_q is not None:
                    d_similarity += dots("rd,kd->rk", _at(d_q, i), k_j)
                if d_k is not None:
                    d_similarity += dots("rd,kd->rk", q_i, _at(d_k, j))
                (w, of_columns, _), (d_w, d_of_columns, d_e) = jax.jvp(
                    of,
                    (
                        similarity,
                        scale if variable else None,
                        _at(row_floats, i),
                        _at(col_floats, j),
                    ),
                    (d_similarity, d_scale, _at(d_row_floats, i), _at(d_col_floats, j)),
                )
                row_out = _put(row_out, i, join(_at(row_out, i), w, d_w, d_e, _at(by_row, i), 1))
                if pair.columns:
                    out = join(_at(col_out, j), of_columns, d_of_columns, d_e, _at(by_col, j), 0)
                    col_out = _put(col_out, j, out)
                return row_out, col_out

            out, col_out = grid.over(tile, (out, col_out))
            return out, (k, d_k, col_floats, d_col_floats, col_rest, by_col, col_out)

        travelling = _cut((keys, d_keys, col_floats, d_col_floats, rests[1], col_sums), grid.wide)
        col_out = start(grid.across, grid.wide)[1:] if pair.columns else ()
        row_out, (*_, col_out) = _around(
            ring, visit, start(grid.down, grid.high)[1:], (*travelling, col_out)
        )
        return _uncut(row_out, grid.rows), _uncut(col_out, grid.cols)

    def transposed(of_queries, of_keys, residuals, g):
        """The gradients; of queries or keys that have none, None."""
        queries, keys, scale_or_none, row_floats, col_floats, rests, row_sums, col_sums = residuals
        scale = fixed(scale_or_none)
        (row_rest, col_rest), (g_row, g_col) = rests, g

        def weights(sums, g_power, g_term, side):
            """The maximum, and what multiplies the exponentials and the terms, by tile."""
            m, total = sums
            # By the sum and not by the log-sum-exp, whose rounding would be seen next to a softmax
            # near 1.
            return _cut((m, g_power / at_least_one(total), g_term), side)

        q, row_floats, row_rest = _cut((queries, row_floats, row_rest), grid.high)
        by_row = weights(row_sums, *g_row, grid.high)
        by_col = weights(col_sums, *g_col, grid.wide) if pair.columns else ()

        def visit(home, travelling):
            k, col_floats, col_rest, by_col, *grads = travelling

            def tile(i, j, grads):
                d_q, d_scale, d_rows, d_k, d_cols = grads
                q_i, k_j = _at(q, i), _at(k, j)

                of, similarity = of_tile(i, j, q_i, k_j, scale, row_rest, col_rest)
                (w, of_columns, e), pull = jax.vjp(
                    of,
                    similarity,
                    scale if variable else None,
                    _at(row_floats, i),
                    _at(col_floats, j),
                )

                def shares(w, side, axis):
                    m, g_power, g_term = (jnp.expand_dims(x, axis) for x in side)
                    power = None if w is None else jnp.exp(capped(w - m)) * g_power
                    return power, None if e is None else jnp.broadcast_to(g_term, e.shape)

                g_w, g_e = shares(w, _at(by_row, i), 1)
                g_of_columns = None
                if pair.columns:
                    g_of_columns, of_terms = shares(of_columns, _at(by_col, j), 0)
                    g_e = None if e is None else g_e + of_terms
                # Softmax less positive in float32: the two nearly cancel where the loss is low.
                d_s, d_scale_t, d_row, d_col = pull((g_w, g_of_columns, g_e))
                d_s = d_s.astype(queries.dtype)
                return (
                    _add(d_q, i, dots("rk,kd->rd", d_s, k_j)) if of_queries else None,
                    d_scale + d_scale_t if variable else None,
                    _add(d_rows, i, d_row),
                    _add(d_k, j, dots("rd,rk->dk", q_i, d_s)) if of_keys else None,
                    _add(d_cols, j, d_col),
                )

            *home, d_k, d_cols = grid.over(tile, (*home, *grads))
            return tuple(home), (k, col_floats, col_rest, by_col, d_k, d_cols)

        def zeros(tree):
            return jax.tree.map(lambda x: fill(x.shape, 0, wide_type(x.dtype)), tree)

        def turned(tiles):
            # Summed as [D, K]: a product whose left side is turned is slow on a CPU where that is a
            # whole tile, and not where it is the tile's queries.
            return jnp.swapaxes(tiles, 1, 2)

        def like(grads, tiles, size):
            return jax.tree.map(lambda x, y: x.astype(y.dtype), _uncut(grads, size), tiles)

        k, col_floats, col_rest = _cut((keys, col_floats, col_rest), grid.wide)
        (d_q, d_scale, d_rows), (*_, d_k, d_cols) = _around(
            ring,
            visit,
            (
                zeros(q) if of_queries else None,
                fill((), 0) if variable else None,
                zeros(row_floats),
            ),
            (
                k,
                col_floats,
                col_rest,
                by_col,
                zeros(turned(k)) if of_keys else None,
                zeros(col_floats),
            ),
        )
        return (
            like(d_q, q, grid.rows) if of_queries else None,
            like(turned(d_k), k, grid.cols) if of_keys else None,
            d_scale,
            like(d_rows, row_floats, grid.rows),
            like(d_cols, col_floats, grid.cols),
        )

    def fixed(scale_or_none):
        return scale if scale_or_none is None else scale_or_none

    @jax.custom_jvp
    def sums(*primals):
        return forward_and_parts(*primals)

    def sums_jvp(primals, moved):
        out, parts = sums(*primals)
        by_row = tied(out.lse, *parts[0])
        by_col = tied(out.col_lse, *parts[1]) if pair.columns else ()
        # Of queries or keys without gradient, such as a momentum encoder's, nothing is computed.
        *two_sides, scale_or_none, row_floats, col_floats = moved[:5]
        two_sides = [None if isinstance(x, SymbolicZero) else x for x in two_sides]
        others = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype) if isinstance(x, SymbolicZero) else x,
            (scale_or_none, row_floats, col_floats),
            is_leaf=lambda x: isinstance(x, SymbolicZero),
        )
        moved = jax.tree.map(lambda x: spread(x, axes), (*two_sides, *others))
        with_gradient = (x is not None for x in two_sides)
        d_row, d_col = linear(
            tangents, partial(transposed, *with_gradient), (*primals, by_row, by_col), moved
        )
        d_out = Contrast(
            *outputs(out.lse, *d_row), *(outputs(out.col_lse, *d_col) if pair.columns else ())
        )
        if pair.powers:
            d_out = d_out._replace(highest=zero_like(out.highest))
        return (out, parts), (d_out, jax.tree.map(zero_like, parts))

    sums.defjvp(sums_jvp, symbolic_zeros=True)

    def tied(lse, m, total):
        """The maximum and the sum after it, whose derivative is that of the log-sum-exp."""
        m, total = lax.stop_gradient((m, total))
        return m, total * jnp.exp(lse - lax.stop_gradient(lse))

    def outputs(lse, power, term):
        power = jnp.where(lse > LOG_ZERO, power, 0)  # 0 where nothing is allowed
        return power, term, power - term

    def zero_like(x):
        return fill(x.shape, 0)

    (row_floats, row_rest), (col_floats, col_rest) = _floats(rows), _floats(cols)
    return sums(
        queries, keys, scale if variable else None, row_floats, col_floats, (row_rest, col_rest)
    )[0]
