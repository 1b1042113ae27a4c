"""The streamed contrast: exact log-sum-exps of similarities to many keys, without the matrix of
similarities.

Losses of the InfoNCE family are a few lines on `contrast`. Its gradient recomputes the similarities
tile by tile, so that memory grows with the number of rows and not with its square.
"""

from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from cl_jax.core.axis import AxisName, any_mesh, axis_size, first_row, gather, split_over, varying
from cl_jax.core.numerics import capped, common_type, wide_type
from cl_jax.core.shapes import check, check_axis
from cl_jax.losses._streamed import streamed
from cl_jax.losses._sums import (
    LOG_ZERO,
    Contrast,
    Pair,
    PairFunction,
    Pairs,
    PairTerm,
    finish,
    per_pair,
    plain,
)

# Rows and columns of a tile, and the largest logits of a device for which the plain matrix is
# chosen. A CPU's caches hold one tile, and more than one are faster as tiles; elsewhere tiles are
# large enough to hide the launch of their kernels, and the plain matrix is chosen where it fits.
TILE, OTHER_TILE = {"cpu": 1024}, 4096
PLAIN_BYTES, OTHER_PLAIN_BYTES = {"cpu": 2**22}, 2**28


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
    """[r, k] true where `label` of row and column agree. Rows without a label (below 0) agree with
    each other unless `separate_unlabelled` told them apart."""
    return rows["label"][:, None] == cols["label"][None, :]


def same_example(rows: Pairs, cols: Pairs) -> jax.Array:
    """[r, k] true where `example` of row and column agree: other views of an image, other times of
    a sequence."""
    return rows["example"][:, None] == cols["example"][None, :]


def row_ids(rows: int, axis_name: AxisName) -> jax.Array:
    """[rows] positions of this device's rows in the global batch, when each device has `rows`."""
    return first_row(rows, axis_name) + jnp.arange(rows, dtype=jnp.int32)


@any_mesh
def separate_unlabelled(labels: jax.Array, axis_name: AxisName = None) -> jax.Array:
    """[B] labels in which every row below 0, which means "no label", has a number below 0 of its
    own, so that it shares its label with its own views alone."""
    labels = jnp.asarray(labels)
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)
    own = -1 - row_ids(labels.shape[0], axis_name).astype(labels.dtype)
    return jnp.where(labels < 0, own, labels)


@any_mesh
def contrast(
    queries: jax.Array,
    keys: jax.Array,
    *,
    scale: Any,
    rows: Pairs | None = None,
    cols: Pairs | None = None,
    log_weight: PairFunction | None = None,
    positive: PairFunction | None = None,
    columns: bool = False,
    column_ratio: float = 1.0,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> Contrast:
    """Log-sum-exps of scaled similarities over the keys of all devices, and weighted sums over the
    positive ones.

    lse_i = log sum_j exp(scale q_i . k_j + w_ij),  pos_i = scale sum_j p_ij q_i . k_j,
    gap_i = lse_i - pos_i
    with w_ij = log_weight(rows, cols)_ij and p_ij = positive(rows, cols)_ij.

    Matrix products run in the type of the inputs and accumulate in float32 (float64 for float64
    inputs); everything between them is float32 at least. The streamed forms keep only the sums; in
    the backward pass the positive is subtracted within the tile, before the product is rounded to
    the type of the inputs.

    Args:
      queries: [R, D] rows of this device; gradient flows. Not normalised here. Scale rows for
        per-row temperatures.
      keys: [K, D] keys of this device, the same number on each; gradient flows. Scale rows for
        per-column temperatures.
      scale: multiplies the similarities, 1 / temperature: a number or a traced scalar; gradient
        flows.
      rows: arrays [R, ...] that describe the queries (ids, labels, weights), handed to both
        functions tile by tile.
      cols: arrays [K, ...] that describe the keys; they travel with them. Floating ones of both
        receive gradient.
      log_weight: of (rows, cols) of a tile, [r, k] added to the logits in the log-sum-exps only;
        -inf leaves a pair out. It and `positive` take arrays from rows and cols alone, not from an
        enclosing differentiated function.
      positive: of (rows, cols) of a tile, [r, k] weights or booleans; None for no positives, pos =
        0.
      columns: whether to return the sums over rows as well, from the same pass.
      column_ratio: a Python number; the sums over rows take scale * column_ratio as their scale in
        the log-sum-exps. Where queries are the keys, one pass then gives the log-sum-exps of a row
        at two temperatures.
      axis_name: mapped axis over which queries and keys are split; None on one device. Keys that
        every device holds, such as a queue, are contrasted with axis_name=None, and joined by
        `jnp.logaddexp`.
      plan: "gather" brings all keys to each device; "ring" passes them around, so that no device
        ever holds more than its share and its neighbour's. Same result.
      block_size: largest side of a tile; 0 for the plain matrix, differentiated by JAX; None for
        the plain matrix while a device's logits fit in 256 MiB (on a CPU 4 MiB, one tile), else
        tiles of a size for this process's default backend. On the ring 0 makes each visiting
        block of keys one tile, as None does if it fits.

    Returns:
      A `Contrast` in nats.

    Raises:
      ValueError: wrong ranks or widths, an unknown plan, a negative block size, an axis that is not
        mapped.
    """
    term = None

    if positive is not None:

        def term(s, rows, cols):
            return per_pair("positive", positive(rows, cols), s) * s

    pair = Pair(log_weight, term, columns, column_ratio=column_ratio)
    out = _over_devices(pair, queries, keys, scale, rows, cols, axis_name, plan, block_size)
    return (
        out._replace(**_join_columns(out, axis_name))
        if columns and axis_name and plan == "gather"
        else out
    )


@any_mesh
def pair_sums(
    queries: jax.Array,
    keys: jax.Array,
    term: PairTerm,
    *,
    scale: Any,
    rows: Pairs | None = None,
    cols: Pairs | None = None,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """[R] sum_j f(scale q_i . k_j) over the keys of all devices, for losses that judge each pair by
    itself.

    Args:
      term: f, of (s, rows, cols) of a tile, with s its scaled similarities [r, k]; [r, k], finite
        and with a finite gradient. It takes other arrays from rows and cols alone.
      queries, keys, scale, rows, cols, axis_name, plan, block_size: as in `contrast`.

    Raises:
      ValueError: as `contrast`.
    """
    pair = Pair(None, term, columns=False, powers=False)
    return _over_devices(pair, queries, keys, scale, rows, cols, axis_name, plan, block_size).pos


def side_of_tile(plain_bytes: int) -> int:
    """The block size chosen for None: 0, the plain matrix, while its logits of so many bytes fit or
    where a symbolic batch leaves their number open; else the tile of the backend. That is this
    process's default one: to choose by a program's platform traces both forms, 0.06 to 0.14 s more
    where value and gradient of `nt_xent`, `clip` or `supcon` compile in 0.8 to 1.1 s."""
    backend = jax.default_backend()
    if not isinstance(plain_bytes, int) or plain_bytes <= PLAIN_BYTES.get(
        backend, OTHER_PLAIN_BYTES
    ):
        return 0
    return TILE.get(backend, OTHER_TILE)


def check_plan(plan: str, block_size: int | None) -> None:
    """Refuses a plan or a block size that `contrast` does not know."""
    if plan not in ("gather", "ring"):
        raise ValueError(f'plan is {plan!r}; expected "gather" or "ring".')
    if block_size is not None and (
        not isinstance(block_size, Integral) or isinstance(block_size, bool) or block_size < 0
    ):
        raise ValueError(
            f"block_size is {block_size!r}; expected a number of rows as an integer, 0 for the "
            "plain matrix, or None to choose by size."
        )


def _over_devices(pair, queries, keys, scale, rows, cols, axis_name, plan, block_size) -> Contrast:
    """The sums of a pair rule over all keys; of columns, over this device's rows only where keys
    are gathered."""
    sizes = check("r d", queries=queries)
    sizes = check("k d", sizes, keys=keys)
    rows, cols = dict(rows or {}), dict(cols or {})
    for what, side, size in (("rows", rows, sizes["r"]), ("cols", cols, sizes["k"])):
        for name, array in side.items():
            if jnp.shape(array)[:1] != (size,):
                raise ValueError(
                    f"{what}[{name!r}] has shape {jnp.shape(array)}; expected [{size}, ...], one "
                    f"entry "
                    f"for each of the {'queries' if what == 'rows' else 'keys'}."
                )
    check_plan(plan, block_size)
    if jnp.ndim(scale):
        raise ValueError(
            f"scale has shape {jnp.shape(scale)}; expected a scalar. For a temperature per row or "
            f"per "
            "column scale the rows of queries or keys."
        )
    check_axis(axis_name)
    if axis_name is None:
        mesh, names = split_over(sizes["r"], queries, keys)
        # The columns' sums are divided as the columns are.
        if names and (sizes["k"] == sizes["r"] or not pair.columns):
            return _over_mesh(pair, queries, keys, scale, rows, cols, mesh, names, plan, block_size)

    dtype = common_type(queries, keys)
    queries, keys = jnp.asarray(queries, dtype), jnp.asarray(keys, dtype)
    if axis_name is not None and plan == "gather":
        keys, cols = gather(keys, axis_name), jax.tree.map(lambda x: gather(x, axis_name), cols)
    if not isinstance(scale, (int, float)):
        scale = jnp.asarray(scale, wide_type(dtype))
    queries, keys, rows, cols, scale = varying((queries, keys, rows, cols, scale))
    ring = axis_name if plan == "ring" else None
    if block_size and not all(isinstance(n, int) for n in (*queries.shape, *keys.shape)):
        raise ValueError(
            f"block_size is {block_size} with {queries.shape[0]} queries and {keys.shape[0]} keys; "
            "expected a batch of fixed size, since the number of tiles is fixed when the program "
            "is made. Pass block_size=0, the plain matrix, to export with a symbolic batch."
        )
    if block_size is None:
        block_size = side_of_tile(queries.shape[0] * keys.shape[0] * wide_type(dtype).itemsize)
    if ring is None and not block_size:
        return plain(pair, queries, keys, scale, rows, cols)
    return streamed(pair, queries, keys, scale, rows, cols, ring=ring, block_size=block_size)


def _over_mesh(pair, queries, keys, scale, rows, cols, mesh, names, plan, block_size) -> Contrast:
    """The sums with the rows divided over the axes `names` of a mesh; so are keys that are as many,
    which are those of the batch. Others, such as a queue, are taken to be on every device."""
    batch = keys.shape[0] == queries.shape[0]
    by_row, by_column = PartitionSpec(names), PartitionSpec(names) if batch else PartitionSpec()
    number = isinstance(scale, (int, float))

    def local(queries, keys, scale_or_none, rows, cols):
        out = _over_devices(
            pair,
            queries,
            keys,
            scale if number else scale_or_none,
            rows,
            cols,
            names if batch else None,
            plan,
            block_size,
        )
        if pair.columns and plan == "gather":
            out = out._replace(**_join_columns(out, names))
        return out

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(by_row, by_column, PartitionSpec(), by_row, by_column),
        out_specs=by_row,
    )(queries, keys, None if number else jnp.asarray(scale), rows, cols)


def _join_columns(out: Contrast, axis_name: AxisName) -> dict[str, jax.Array]:
    """This device's columns over the rows of all devices, from all columns over this device's
    rows."""
    size = out.col_lse.shape[0] // axis_size(axis_name)
    m = lax.pmax(lax.stop_gradient(out.col_lse), axis_name)
    total = lax.psum_scatter(jnp.exp(capped(out.col_lse - m)), axis_name, tiled=True)
    pos = lax.psum_scatter(out.col_pos, axis_name, tiled=True)
    m = lax.dynamic_slice_in_dim(m, lax.axis_index(axis_name) * size, size)
    lse, pos, gap = finish(m, jnp.where(m > LOG_ZERO, total, 0), pos)
    return {"col_lse": lse, "col_pos": pos, "col_gap": gap}
