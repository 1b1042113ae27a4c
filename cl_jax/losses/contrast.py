"""The streamed contrast: exact log-sum-exps of similarities to many keys, without the matrix of similarities.

Losses of the InfoNCE family are a few lines on `contrast`. Its gradient recomputes the similarities tile by tile, so
that memory grows with the number of rows and not with its square.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.losses._axis import first_row, gather
from cl_jax.shapes import check, check_axis

LOG_ZERO = -1e30  # the logarithm of an empty sum: finite, so that no gradient meets inf - inf
PLAIN_BYTES = 2**28  # the largest local logits for which the plain matrix is chosen
TILE = {"cpu": 1024}  # rows and columns of a tile; elsewhere large enough to hide the launch of its kernels
OTHER_TILE = 4096

Pairs = Mapping[str, jax.Array]
PairFunction = Callable[[Pairs, Pairs], jax.Array]
PairTerm = Callable[[jax.Array, Pairs, Pairs], jax.Array]


class Contrast(NamedTuple):
    """With logits s_ij = scale q_i . k_j, log-weights w_ij and positive weights p_ij, over all columns j of row i:

    lse: [R] log sum_j exp(s_ij + w_ij); LOG_ZERO, with zero gradient, where every w_ij is -inf.
    pos: [R] sum_j p_ij s_ij.
    gap: [R] lse - pos, with the digits that the subtraction would lose when both are large: the loss of a row whose
      p_ij sum to one. Where nothing is allowed it is -pos: 0 for a row without a positive either.
    col_lse, col_pos, col_gap: [K] the same over all rows i of column j; None unless `columns`.
    """

    lse: jax.Array
    pos: jax.Array
    gap: jax.Array
    col_lse: jax.Array | None = None
    col_pos: jax.Array | None = None
    col_gap: jax.Array | None = None


def allow(mask: jax.Array) -> jax.Array:
    """Log-weights of a mask: 0 where true, -inf where false."""
    return jnp.where(mask, 0.0, -jnp.inf)


def same_id(rows: Pairs, cols: Pairs) -> jax.Array:
    """[r, k] true where `id` of row and column agree: the paired key as the positive."""
    return rows["id"][:, None] == cols["id"][None, :]


def not_self(rows: Pairs, cols: Pairs) -> jax.Array:
    """Log-weights that leave out the column with the row's own `id`."""
    return allow(~same_id(rows, cols))


def same_label(rows: Pairs, cols: Pairs) -> jax.Array:
    """[r, k] true where `label` of row and column agree."""
    return rows["label"][:, None] == cols["label"][None, :]


def row_ids(rows: int, axis_name: str | None) -> jax.Array:
    """[rows] positions of this device's rows in the global batch, when each device has `rows`."""
    return first_row(rows, axis_name) + jnp.arange(rows, dtype=jnp.int32)


def contrast(queries: jax.Array, keys: jax.Array, *, scale: Any, rows: Pairs | None = None, cols: Pairs | None = None,
             log_weight: PairFunction | None = None, positive: PairFunction | None = None, columns: bool = False,
             axis_name: str | None = None, plan: str = "gather", block_size: int | None = None) -> Contrast:
    """Log-sum-exps of scaled similarities over the keys of all devices, and weighted sums over the positive ones.

    lse_i = log sum_j exp(scale q_i . k_j + w_ij),  pos_i = scale sum_j p_ij q_i . k_j,  gap_i = lse_i - pos_i
    with w_ij = log_weight(rows, cols)_ij and p_ij = positive(rows, cols)_ij.

    Matrix products run in the type of the inputs and accumulate in float32 (float64 for float64 inputs); everything
    between them is float32 at least. The streamed forms keep only the sums; in the backward pass the positive is
    subtracted within the tile, before the product is rounded to the type of the inputs.

    Args:
      queries: [R, D] rows of this device; gradient flows. Not normalised here. Scale rows for per-row temperatures.
      keys: [K, D] keys of this device, the same number on each; gradient flows. Scale rows for per-column temperatures.
      scale: multiplies the similarities, 1 / temperature: a number or a traced scalar; gradient flows.
      rows: arrays [R, ...] that describe the queries (ids, labels, weights), handed to both functions tile by tile.
      cols: arrays [K, ...] that describe the keys; they travel with them. Floating ones of both receive gradient.
      log_weight: of (rows, cols) of a tile, [r, k] added to the logits in the log-sum-exps only; -inf leaves a pair
        out. It and `positive` take arrays from rows and cols alone, not from an enclosing differentiated function.
      positive: of (rows, cols) of a tile, [r, k] weights or booleans; None for no positives, pos = 0.
      columns: whether to return the sums over rows as well, from the same pass.
      axis_name: mapped axis over which queries and keys are split; None on one device. Keys that every device
        holds, such as a queue, are contrasted with axis_name=None, and joined by `jnp.logaddexp`.
      plan: "gather" brings all keys to each device; "ring" passes them around, so that no device ever holds more than
        its share and its neighbour's. Same result.
      block_size: largest side of a tile; 0 for the plain matrix, differentiated by JAX (forward mode and higher
        derivatives work there only); None for the plain matrix while a device's logits fit in 256 MiB, else tiles of a
        size for the backend. On the ring 0 makes each visiting block of keys one tile, as None does if it fits.

    Returns:
      A `Contrast` in nats.

    Raises:
      ValueError: wrong ranks or widths, an unknown plan, a negative block size, an axis that is not mapped.
    """
    term = None

    if positive is not None:
        def term(s, rows, cols):
            return _per_pair("positive", positive(rows, cols), s) * s

    pair = _Pair(log_weight, term, columns)
    out = _over_devices(pair, queries, keys, scale, rows, cols, axis_name, plan, block_size)
    return out._replace(**_join_columns(out, axis_name)) if columns and axis_name and plan == "gather" else out


def pair_sums(queries: jax.Array, keys: jax.Array, term: PairTerm, *, scale: Any, rows: Pairs | None = None,
              cols: Pairs | None = None, axis_name: str | None = None, plan: str = "gather",
              block_size: int | None = None) -> jax.Array:
    """[R] sum_j f(scale q_i . k_j) over the keys of all devices, for losses that judge each pair by itself.

    Args:
      term: f, of (s, rows, cols) of a tile, with s its scaled similarities [r, k]; [r, k], finite and with a finite
        gradient. It takes other arrays from rows and cols alone.
      queries, keys, scale, rows, cols, axis_name, plan, block_size: as in `contrast`.

    Raises:
      ValueError: as `contrast`.
    """
    pair = _Pair(None, term, columns=False, powers=False)
    return _over_devices(pair, queries, keys, scale, rows, cols, axis_name, plan, block_size).pos


def _over_devices(pair, queries, keys, scale, rows, cols, axis_name, plan, block_size) -> Contrast:
    """The sums of a pair rule over all keys; of columns, over this device's rows only where keys are gathered."""
    sizes = check("r d", queries=queries)
    sizes = check("k d", sizes, keys=keys)
    rows, cols = dict(rows or {}), dict(cols or {})
    for what, side, size in (("rows", rows, sizes["r"]), ("cols", cols, sizes["k"])):
        for name, array in side.items():
            if jnp.shape(array)[:1] != (size,):
                raise ValueError(f"{what}[{name!r}] has shape {jnp.shape(array)}; expected [{size}, ...], one entry "
                                 f"for each of the {'queries' if what == 'rows' else 'keys'}.")
    check_plan(plan, block_size)
    if jnp.ndim(scale):
        raise ValueError(f"scale has shape {jnp.shape(scale)}; expected a scalar. For a temperature per row or per "
                         "column scale the rows of queries or keys.")
    check_axis(axis_name)

    dtype = jnp.result_type(queries, keys)
    queries, keys = jnp.asarray(queries, dtype), jnp.asarray(keys, dtype)
    if axis_name is not None and plan == "gather":
        keys, cols = gather(keys, axis_name), jax.tree.map(lambda x: gather(x, axis_name), cols)
    if not isinstance(scale, (int, float)):
        scale = jnp.asarray(scale, _wide(dtype))
    queries, keys, rows, cols, scale = _varying((queries, keys, rows, cols, scale))
    ring = axis_name if plan == "ring" else None
    fits = queries.shape[0] * keys.shape[0] * _wide(dtype).itemsize <= PLAIN_BYTES
    if block_size is None and not fits:
        block_size = TILE.get(jax.default_backend(), OTHER_TILE)
    if ring is None and not block_size:
        return _plain(pair, queries, keys, scale, rows, cols)
    return _streamed(pair, queries, keys, scale, rows, cols, ring=ring, block_size=block_size)


def check_plan(plan: str, block_size: int | None) -> None:
    """Refuses a plan or a block size that `contrast` does not know."""
    if plan not in ("gather", "ring"):
        raise ValueError(f'plan is {plan!r}; expected "gather" or "ring".')
    if block_size is not None and (not isinstance(block_size, int) or isinstance(block_size, bool) or block_size < 0):
        raise ValueError(f"block_size is {block_size!r}; expected a number of rows, 0 for the plain matrix, or None to "
                         "choose by size.")


class _Pair(NamedTuple):
    """What is summed over a tile of similarities: exp(s + w) where `powers`, and term(s, rows, cols)."""

    log_weight: PairFunction | None
    term: PairTerm | None
    columns: bool
    powers: bool = True

    def __call__(self, similarity, scale, rows, cols, valid=None):
        """s + w and the terms of a tile, each None where it is not summed; nothing of what is not valid."""
        s = similarity * scale
        w = e = None
        if self.powers:
            w = s
            if self.log_weight is not None:
                w = s + _per_pair("log_weight", self.log_weight(rows, cols), s)
            w = w if valid is None else jnp.where(valid, w, -jnp.inf)
        if self.term is not None:
            e = _per_pair("term", self.term(s, rows, cols), s)
            e = e if valid is None else jnp.where(valid, e, 0)
        return w, e


def _per_pair(name: str, x: jax.Array, s: jax.Array) -> jax.Array:
    if jnp.shape(x) != s.shape:
        raise ValueError(f"{name} returned shape {jnp.shape(x)} for a tile of {s.shape[0]} rows and {s.shape[1]} "
                         "columns; expected one entry per pair, for instance rows['id'][:, None] == "
                         "cols['id'][None, :].")
    return jnp.asarray(x, s.dtype)


def _wide(dtype) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32)


def _dot(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    # Products of float32 in TF32 or bfloat16, the default of accelerators, would show at small temperatures.
    precision = lax.Precision.DEFAULT if a.dtype.itemsize < 4 else lax.Precision.HIGHEST
    return jnp.einsum(subscripts, a, b, precision=precision, preferred_element_type=_wide(a.dtype))


@jax.custom_vjp
def _narrow_similarity(queries, keys):
    return _dot("rd,kd->rk", queries, keys)


def _narrow_forward(queries, keys):
    return _narrow_similarity(queries, keys), (queries, keys)


def _narrow_backward(saved, g):
    # Without this rule the transposed product would be of a float32 matrix.
    queries, keys = saved
    g = g.astype(queries.dtype)
    return _dot("rk,kd->rd", g, keys).astype(queries.dtype), _dot("rk,rd->kd", g, queries).astype(keys.dtype)


_narrow_similarity.defvjp(_narrow_forward, _narrow_backward)


def _plain(pair: _Pair, queries, keys, scale, rows, cols) -> Contrast:
    narrow = queries.dtype.itemsize < 4
    similarity = _narrow_similarity(queries, keys) if narrow else _dot("rd,kd->rk", queries, keys)
    w, e = pair(similarity, scale, rows, cols)

    def reduce(axis):
        zero = jnp.zeros(similarity.shape[1 - axis], similarity.dtype)
        m, total = zero + LOG_ZERO, zero
        if w is not None:
            m = jnp.maximum(lax.stop_gradient(jnp.max(w, axis)), LOG_ZERO)
            total = jnp.sum(jnp.exp(w - jnp.expand_dims(m, axis)), axis)
        return _finish(m, total, zero if e is None else jnp.sum(e, axis))

    return Contrast(*reduce(1), *(reduce(0) if pair.columns else ()))


def _finish(m, total, pos):
    """lse, pos and gap from the maximum, the sum of exponentials after it is taken off, and the positives."""
    some = total > 0
    log_total = jnp.log(jnp.where(some, total, 1))
    return jnp.where(some, log_total + m, LOG_ZERO), pos, log_total + (jnp.where(some, m, 0) - pos)


def _join_columns(out: Contrast, axis_name: str) -> dict[str, jax.Array]:
    """This device's columns over the rows of all devices, from all columns over this device's rows."""
    size = out.col_lse.shape[0] // lax.axis_size(axis_name)
    m = lax.pmax(lax.stop_gradient(out.col_lse), axis_name)
    total = lax.psum_scatter(jnp.exp(out.col_lse - m), axis_name, tiled=True)
    pos = lax.psum_scatter(out.col_pos, axis_name, tiled=True)
    m = lax.dynamic_slice_in_dim(m, lax.axis_index(axis_name) * size, size)
    lse, pos, gap = _finish(m, jnp.where(m > LOG_ZERO, total, 0), pos)
    return {"col_lse": lse, "col_pos": pos, "col_gap": gap}


class _Grid(NamedTuple):
    """Tiles of a matrix with `rows` x `cols` entries: `down` x `across` of them, each `high` x `wide`."""

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
        return lax.fori_loop(0, self.down * self.across,
                             lambda t, state: body(t // self.across, t % self.across, state), state)


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


def _around(ring: str | None, body, home, travelling):
    """body(home, travelling) for every device's `travelling`, which ends where it began."""
    if ring is None:
        return body(home, travelling)
    size = lax.axis_size(ring)
    path = [(i, (i + 1) % size) for i in range(size)]

    def hop(_, state):
        home, travelling = body(*state)
        return home, lax.ppermute(travelling, ring, path)

    return lax.fori_loop(0, size, hop, (home, travelling))


def _floats(pairs: Pairs) -> tuple[dict, dict]:
    """The arrays that receive gradient, and the others."""
    inexact = {name for name, x in pairs.items() if jnp.issubdtype(jnp.result_type(x), jnp.floating)}
    return {n: x for n, x in pairs.items() if n in inexact}, {n: x for n, x in pairs.items() if n not in inexact}


def _streamed(pair: _Pair, queries, keys, scale, rows, cols, *, ring, block_size) -> Contrast:
    grid = _Grid(queries.shape[0], keys.shape[0], _side(queries.shape[0], block_size),
                 _side(keys.shape[0], block_size))
    wide, axes = _wide(queries.dtype), _axes(queries)
    variable = not isinstance(scale, (int, float))

    def fill(shape, value, dtype=wide):
        return _cast(jnp.full(shape, value, dtype), axes)

    def join(sums, w, e, axis):
        """Running maximum, sum of exponentials and terms, joined by those of a tile."""
        m, total, terms = sums
        if w is not None:
            highest = jnp.maximum(m, jnp.max(w, axis))
            total = total * jnp.exp(m - highest) + jnp.sum(jnp.exp(w - jnp.expand_dims(highest, axis)), axis)
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
                w, e = pair(_dot("rd,kd->rk", _at(q, i), _at(k, j)), scale, _at(rows, i), _at(cols, j),
                            grid.valid(i, j))
                row_sums = _put(row_sums, i, join(_at(row_sums, i), w, e, 1))
                if pair.columns:
                    col_sums = _put(col_sums, j, join(_at(col_sums, j), w, e, 0))
                return row_sums, col_sums

            row_sums, col_sums = grid.over(tile, (row_sums, col_sums))
            return row_sums, (k, cols, col_sums)

        col_sums = start(grid.across, grid.wide) if pair.columns else ()
        row_sums, (_, _, col_sums) = _around(ring, visit, start(grid.down, grid.high),
                                             (*_cut((keys, cols), grid.wide), col_sums))
        return _uncut(row_sums, grid.rows), _uncut(col_sums, grid.cols)

    def backward(queries, keys, scale, row_floats, col_floats, row_rest, col_rest, row_sums, col_sums, g):
        def weights(sums, g_lse, g_pos, g_gap, side):
            """The maximum, and what multiplies the exponentials and the terms, by tile."""
            m, total, _ = sums
            # By the sum and not by the log-sum-exp, whose rounding would be seen next to a softmax near 1.
            g_power = jnp.where(total > 0, (g_lse + g_gap) / jnp.where(total > 0, total, 1), 0)
            return _cut((m, g_power, g_pos - g_gap), side)

        q, row_floats, row_rest = _cut((queries, row_floats, row_rest), grid.high)
        by_row = weights(row_sums, g.lse, g.pos, g.gap, grid.high)
        by_col = weights(col_sums, g.col_lse, g.col_pos, g.col_gap, grid.wide) if pair.columns else ()

        def visit(home, travelling):
            k, col_floats, col_rest, by_col, *grads = travelling

            def tile(i, j, grads):
                d_q, d_scale, d_rows, d_k, d_cols = grads
                q_i, k_j = _at(q, i), _at(k, j)

                def of(similarity, scale_or_none, row_floats, col_floats):
                    return pair(similarity, scale_or_none if variable else scale, row_floats | _at(row_rest, i),
                                col_floats | _at(col_rest, j), grid.valid(i, j))

                (w, e), pull = jax.vjp(of, _dot("rd,kd->rk", q_i, k_j), scale if variable else None,
                                       _at(row_floats, i), _at(col_floats, j))
                g_w = g_e = None
                for side, axis in ((_at(by_row, i), 1), *(((_at(by_col, j), 0),) if pair.columns else ())):
                    m, g_power, g_term = (jnp.expand_dims(x, axis) for x in side)
                    if w is not None:
                        part = jnp.exp(w - m) * g_power
                        g_w = part if g_w is None else g_w + part
                    if e is not None:
                        part = jnp.broadcast_to(g_term, e.shape)
                        g_e = part if g_e is None else g_e + part
                # Softmax less positive in float32: the two nearly cancel where the loss is low.
                d_s, d_scale_t, d_row, d_col = pull((g_w, g_e))
                d_s = d_s.astype(queries.dtype)
                return (_add(d_q, i, _dot("rk,kd->rd", d_s, k_j)), d_scale + d_scale_t if variable else None,
                        _add(d_rows, i, d_row), _add(d_k, j, _dot("rk,rd->kd", d_s, q_i)), _add(d_cols, j, d_col))

            *home, d_k, d_cols = grid.over(tile, (*home, *grads))
            return tuple(home), (k, col_floats, col_rest, by_col, d_k, d_cols)

        def zeros(tree):
            return jax.tree.map(lambda x: fill(x.shape, 0, _wide(x.dtype)), tree)

        def like(grads, tiles, size):
            return jax.tree.map(lambda x, y: x.astype(y.dtype), _uncut(grads, size), tiles)

        k, col_floats, col_rest = _cut((keys, col_floats, col_rest), grid.wide)
        (d_q, d_scale, d_rows), (*_, d_k, d_cols) = _around(
            ring, visit, (zeros(q), fill((), 0) if variable else None, zeros(row_floats)),
            (k, col_floats, col_rest, by_col, zeros(k), zeros(col_floats)))
        return (like(d_q, q, grid.rows), like(d_k, k, grid.cols), d_scale, like(d_rows, row_floats, grid.rows),
                like(d_cols, col_floats, grid.cols), None, None)

    def fixed(scale_or_none):
        return scale if scale_or_none is None else scale_or_none

    @jax.custom_vjp
    def sums(*args):
        return sums_forward(*args)[0]

    def sums_forward(queries, keys, scale_or_none, row_floats, col_floats, row_rest, col_rest):
        row_sums, col_sums = forward(queries, keys, fixed(scale_or_none), row_floats | row_rest, col_floats | col_rest)
        out = Contrast(*_finish(*row_sums), *(_finish(*col_sums) if pair.columns else ()))
        return out, (queries, keys, scale_or_none, row_floats, col_floats, row_rest, col_rest, row_sums, col_sums)

    def sums_backward(saved, g):
        queries, keys, scale_or_none, *rest = saved
        return backward(queries, keys, fixed(scale_or_none), *rest, g)

    sums.defvjp(sums_forward, sums_backward)
    (row_floats, row_rest), (col_floats, col_rest) = _floats(rows), _floats(cols)
    return sums(queries, keys, scale if variable else None, row_floats, col_floats, row_rest, col_rest)


def _varying(tree):
    """Every array made to vary over the axes any of them varies over, as the hand-written gradient needs."""
    leaves, structure = jax.tree.flatten(tree)
    axes = frozenset().union(*(_axes(x) for x in leaves))
    return jax.tree.unflatten(structure, [_cast(x, axes) for x in leaves])


def _axes(x) -> frozenset:
    """Mapped axes over which a value varies, in the type's own book-keeping; none where it keeps no book."""
    if isinstance(x, (int, float)):
        return frozenset()
    kind = jax.typeof(x)
    return kind.mat.varying if hasattr(kind, "mat") else getattr(kind, "vma", frozenset())


def _cast(x, axes):
    missing = () if isinstance(x, (int, float)) else tuple(sorted(axes - _axes(x)))
    return lax.pcast(x, missing, to="varying") if missing else x
