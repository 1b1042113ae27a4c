"""InfoNCE: one positive against the rest of a batch, a queue, a bank or given negatives.

Every loss here normalises its inputs unless told not to. `contrast` computes them: no matrix
of similarities at large batches, and two ways to exchange keys between devices, of one result.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import AxisName, any_mesh, axis_size, gather, mean
from cl_jax.core.numerics import dots, log_sum_exp, prepared, wide
from cl_jax.core.shapes import check, check_axis, check_integer, check_positive, check_real
from cl_jax.losses._sums import LOG_ZERO
from cl_jax.losses.contrast import (
    Pairs,
    allow,
    check_plan,
    contrast,
    not_self,
    row_ids,
    same_example,
    same_id,
)


@any_mesh
def nt_xent(
    z_a: jax.Array,
    z_b: jax.Array,
    *,
    temperature: float,
    normalise: bool = True,
    sum_directions: bool = False,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """Pulls the two views of an example together, pushes each from all other views of the batch.

    Over the 2B rows z of both views, s_ij = z_i . z_j / temperature and i' the other view of i:
    L = -1/2B sum_i log( exp(s_ii') / sum_{j != i} exp(s_ij) )

    Args:
      z_a, z_b: [B, D] projections of two views, row by row of one example; gradient flows to both.
      temperature: 0.1 (ImageNet) or 0.5 (CIFAR-10) in the papers.
      normalise: to unit length here, norms below 1e-6 counting as 1e-6; False takes the rows as
        they are.
      sum_directions: True is the authors' program, which adds the means of the two directions: 2 L.
      axis_name: device axis that splits the batch; rows of all devices are contrasted.
      plan, block_size: how devices share keys and the side of a tile, as in `contrast`.

    Returns:
      Scalar in nats, mean over the 2B rows of the global batch: log(2B - 1) where all similarities
      are equal, 0 for a batch of one.

    Raises:
      ValueError: shapes that disagree, temperature <= 0, an axis that is not mapped.

    Reference: Chen et al. 2020, arXiv 2002.05709, equation 1.
    """
    rows = nt_xent_rows(
        z_a,
        z_b,
        temperature=temperature,
        normalise=normalise,
        axis_name=axis_name,
        plan=plan,
        block_size=block_size,
    )
    loss = mean(jnp.mean(rows), axis_name)
    return 2 * loss if sum_directions else loss


@any_mesh
def nt_xent_rows(
    z_a: jax.Array,
    z_b: jax.Array,
    *,
    temperature: float,
    normalise: bool = True,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """[2, B] `nt_xent` of each of this device's rows, z_a first."""
    check("b d", z_a=z_a, z_b=z_b)
    return nt_xent_views_rows(
        jnp.stack([z_a, z_b]),
        temperature=temperature,
        normalise=normalise,
        axis_name=axis_name,
        plan=plan,
        block_size=block_size,
    )


@any_mesh
def nt_xent_views(
    z: jax.Array,
    *,
    temperature: float,
    normalise: bool = True,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """Pulls every view of an example to its V - 1 others, pushes it from all other views of the
    batch.

    L = -1/VB sum_i 1/(V - 1) sum_{p in P(i)} log( exp(s_ip) / sum_{j != i} exp(s_ij) ),
    s as in `nt_xent`

    Args:
      z: [V, B, D] projections of V >= 2 views; gradient flows.
      temperature, normalise, axis_name, plan, block_size: as in `nt_xent`.

    Returns:
      Scalar in nats, mean over the VB rows of the global batch: log(VB - 1) where all similarities
      are equal. Other positives stay in the denominator, so that it is at best log(V - 1).
      `nt_xent` for V = 2.

    Raises:
      ValueError: a wrong shape, fewer than two views, temperature <= 0, an axis that is not mapped.

    Reference: Khosla et al. 2020, arXiv 2004.11362, equation 2, with an example's own views as its
      positives.
    """
    rows = nt_xent_views_rows(
        z,
        temperature=temperature,
        normalise=normalise,
        axis_name=axis_name,
        plan=plan,
        block_size=block_size,
    )
    return mean(jnp.mean(rows), axis_name)


@any_mesh
def nt_xent_views_rows(
    z: jax.Array,
    *,
    temperature: float,
    normalise: bool = True,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """[V, B] `nt_xent_views` of each of this device's rows."""
    views, batch, _ = _check_views(z, temperature, axis_name, plan, block_size)
    rows = prepared(normalise, 1e-6, z=z)[0].reshape(views * batch, -1)
    example = row_ids(batch, axis_name)
    count = batch * axis_size(axis_name)
    ids = {
        "example": jnp.tile(example, views),
        "id": (jnp.arange(views, dtype=example.dtype)[:, None] * count + example[None, :]).reshape(
            -1
        ),
    }

    def positive(rows: Pairs, cols: Pairs) -> jax.Array:
        return jnp.where(same_example(rows, cols) & ~same_id(rows, cols), 1 / (views - 1), 0)

    sums = contrast(
        rows,
        rows,
        scale=1 / temperature,
        rows=ids,
        cols=ids,
        log_weight=not_self,
        positive=positive,
        axis_name=axis_name,
        plan=plan,
        block_size=block_size,
    )
    return sums.gap.reshape(views, batch)


class Logits(NamedTuple):
    """logits: [B, C] over temperature. labels: [B] the column of each row's positive."""

    logits: jax.Array
    labels: jax.Array


@any_mesh
def nt_xent_logits(
    z_a: jax.Array,
    z_b: jax.Array,
    *,
    temperature: float,
    normalise: bool = True,
    axis_name: AxisName = None,
) -> Logits:
    """This device's z_a against z_b of all devices: what contrastive accuracy is measured on. As in
    the authors' program the columns of z_a itself, which the loss has too, are left out."""
    sizes = check("b d", z_a=z_a, z_b=z_b)
    check_positive(temperature=temperature)
    check_axis(axis_name)
    a, b = prepared(normalise, 1e-6, z_a=z_a, z_b=z_b)
    logits = dots("bd,kd->bk", a, gather(b, axis_name)) / temperature
    return Logits(logits, row_ids(sizes["b"], axis_name))


@any_mesh
def info_nce(
    queries: jax.Array,
    keys: jax.Array,
    negatives: jax.Array | None = None,
    *,
    temperature: float,
    in_batch: bool | None = None,
    decoupled: bool = False,
    symmetric: bool = False,
    valid: jax.Array | None = None,
    own: jax.Array | None = None,
    normalise: bool = True,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """Pulls a query to its key, pushes it from the other keys of the batch, from given negatives,
    or from both.

    s(x, y) = x . y / temperature
    L = -1/B sum_i log( exp(s(q_i, k_i)) / [ exp(s(q_i, k_i)) + sum_n exp(s(q_i, n)) ] )
    with n over the other keys of the batch (`in_batch`) and over the negatives.

    Args:
      queries: [B, D]. Gradient flows.
      keys: [B, D], the positive of each query. Gradient flows: stop it for a momentum encoder.
      negatives: None, or [K, D] shared by all queries and devices: a queue (MoCo) or a bank; or [B,
        K, D], for each query its own. Gradient flows; what a `cl_jax.memory.queue` holds has none.
      temperature: 0.07 (MoCo v1), 0.2 (MoCo v2), 0.1 (SimCLR v2 with memory).
      in_batch: whether the other keys of the batch are negatives. None: only where no others are
        given, so that a queue is MoCo's loss; True with a queue is SimCLR v2's with memory.
      decoupled: True leaves the positive out of the denominator, as `dcl` does.
      symmetric: also keys against queries, in the same pass, and the mean of both directions;
        in-batch negatives only.
      valid: [K] booleans, or [B, K]: which negatives count (`queue.valid` leaves out the random
        start).
      own: [B] integers, with negatives [K, D] that are a bank: the query's own row, which is not a
        negative; below 0 for none.
      normalise: queries and keys to unit length here, norms below 1e-12 counting as 1e-12.
        `negatives` [K, D] are taken as they are (a queue holds unit rows); those of [B, K, D] are
        normalised.
      axis_name: device axis that splits the batch; keys of all devices are contrasted, `negatives`
        [K, D] are the same on every device.
      plan, block_size: how devices share keys and the side of a tile, as in `contrast`.

    Returns:
      Scalar in nats, mean over the global batch: log(1 + number of negatives) where all
      similarities are equal, the log of their number if decoupled; 0 for a query without negatives.

    Raises:
      ValueError: shapes that disagree, labels that are not integers, `symmetric` with negatives,
        `valid` or `own` without, temperature <= 0, an axis that is not mapped.

    Reference: van den Oord et al. 2018, arXiv 1807.03748, equation 4; He et al. 2020, arXiv
      1911.05722, equation 1.
    """
    rows = info_nce_rows(
        queries,
        keys,
        negatives,
        temperature=temperature,
        in_batch=in_batch,
        decoupled=decoupled,
        symmetric=symmetric,
        valid=valid,
        own=own,
        normalise=normalise,
        axis_name=axis_name,
        plan=plan,
        block_size=block_size,
    )
    return mean(jnp.mean(rows), axis_name)


@any_mesh
def info_nce_rows(
    queries: jax.Array,
    keys: jax.Array,
    negatives: jax.Array | None = None,
    *,
    temperature: float,
    in_batch: bool | None = None,
    decoupled: bool = False,
    symmetric: bool = False,
    valid: jax.Array | None = None,
    own: jax.Array | None = None,
    normalise: bool = True,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """[B] `info_nce` of each of this device's queries; [2, B] where symmetric, the second from keys
    to queries.

    Raises:
      ValueError: as `info_nce`.
    """
    sizes = check("b d", queries=queries, keys=keys)
    check_positive(temperature=temperature)
    check_axis(axis_name)
    check_plan(plan, block_size)
    if in_batch is None:
        in_batch = negatives is None
    if not in_batch and negatives is None:
        raise ValueError(
            "in_batch is False and negatives are None; expected something to push from. Give a "
            "queue, or "
            "leave in_batch out."
        )
    if symmetric and negatives is not None:
        raise ValueError(
            "symmetric is True and negatives are given; expected one or the other, for negatives "
            "are not "
            "compared with keys. Add the two directions by two calls."
        )
    if negatives is None and (valid is not None or own is not None):
        raise ValueError("valid or own is given without negatives, whose columns they describe.")
    q, k = prepared(normalise, queries=queries, keys=keys)
    scale = 1 / temperature
    if in_batch:
        count = sizes["b"] * axis_size(axis_name)
        if decoupled and isinstance(count, int) and count < 2:
            raise ValueError(
                "the batch has 1 example and decoupled is True; expected 2 or more, for there is "
                "nothing to push from."
            )
        ids = {"id": row_ids(sizes["b"], axis_name)}
        sums = contrast(
            q,
            k,
            scale=scale,
            rows=ids,
            cols=ids,
            log_weight=not_self if decoupled else None,
            positive=same_id,
            columns=symmetric,
            axis_name=axis_name,
            plan=plan,
            block_size=block_size,
        )
        if symmetric:
            return jnp.stack([sums.gap, sums.col_gap])
        loss, reference = sums.gap, sums.lse
    else:
        reference = dots("bd,bd->b", q, k) * scale
        loss = jnp.zeros_like(reference)
    if negatives is not None:
        of_negatives = _negative_sums(q, negatives, scale, valid, own, normalise, block_size, sizes)
        if decoupled and not in_batch:
            return jnp.where(of_negatives <= LOG_ZERO, 0, of_negatives - reference)
        # log(e^a + e^b) - pos = (a - pos) + log(1 + e^(b - a)), which keeps the digits of a small
        # loss.
        loss = loss + jax.nn.softplus(of_negatives - reference)
    return loss


def _negative_sums(q, negatives, scale, valid, own, normalise, block_size, sizes):
    """[B] log sum of exponentials over given negatives; LOG_ZERO without any."""
    check_real(negatives=negatives)
    if jnp.ndim(negatives) == 3:
        sizes = check("b k d", sizes, negatives=negatives)
        if own is not None:
            raise ValueError(
                "own is given with negatives [B, K, D]; expected a shared bank [K, D]. Leave the "
                "own row "
                "out with valid [B, K]."
            )
        logits = dots("bd,bkd->bk", q, *prepared(normalise, negatives=negatives)) * scale
        if valid is not None:
            check("b k", sizes, valid=_mask(valid))
            logits = jnp.where(valid, logits, LOG_ZERO)
        if sizes["k"] == 0:
            return jnp.full(q.shape[0], LOG_ZERO, logits.dtype)
        return log_sum_exp(logits, axis=1)
    sizes = check("k d", sizes, negatives=negatives)
    if sizes["k"] == 0:
        return jnp.full(q.shape[0], LOG_ZERO, wide(q).dtype)
    if own is None:
        own = jnp.full(sizes["b"], -1)
    check_integer("b", sizes, own=own)
    rows: dict[str, jax.Array] = {"id": own}
    cols: dict[str, jax.Array] = {"id": jnp.arange(sizes["k"])}
    rule = not_self
    if valid is not None and jnp.ndim(valid) == 2:
        check("b k", sizes, valid=_mask(valid))
        rows["valid"], rule = jnp.asarray(valid, bool), _valid_of_row
    elif valid is not None:
        check("k", sizes, valid=_mask(valid))
        cols["valid"], rule = jnp.asarray(valid, bool), _valid_column
    return contrast(
        q,
        jnp.asarray(negatives, q.dtype),
        scale=scale,
        rows=rows,
        cols=cols,
        log_weight=rule,
        block_size=block_size,
    ).lse


@any_mesh
def moco_v3(
    q_a: jax.Array,
    q_b: jax.Array,
    k_a: jax.Array,
    k_b: jax.Array,
    *,
    temperature: float,
    normalise: bool = True,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """Pulls the prediction of each view to the momentum key of the other, pushes it from the keys
    of the batch.

    L = 2 temperature [ I(q_a, k_b) + I(q_b, k_a) ],
    I(q, k) = -1/B sum_i log softmax_j(q_i . k_j / temperature)_i

    Args:
      q_a, q_b: [B, D] predictions of two views, normalised here. Gradient flows.
      k_a, k_b: [B, D] momentum projections of the same views, normalised here. No gradient.
      temperature: 0.2 (ViT), 1.0 (ResNet-50).
      normalise: features to unit length here; False takes them as they are. What a memory holds
        is taken as it is.
      axis_name: device axis that splits the batch; keys of all devices are contrasted.
      plan, block_size: how devices share keys and the side of a tile, as in `contrast`.

    Returns:
      Scalar, mean over the global batch, in nats times 2 temperature: 4 temperature log B where all
      similarities are equal. The factor keeps the size of the gradient as temperature changes, as
      in BYOL's mean squared error.

    Raises:
      ValueError: shapes that disagree, temperature <= 0, an axis that is not mapped.

    Reference: Chen et al. 2021, arXiv 2104.02057, equation 1 and algorithm 1.
    """
    rows = moco_v3_rows(
        q_a,
        q_b,
        k_a,
        k_b,
        temperature=temperature,
        axis_name=axis_name,
        plan=plan,
        block_size=block_size,
        normalise=normalise,
    )
    return mean(jnp.mean(jnp.sum(rows, axis=0)), axis_name)


@any_mesh
def moco_v3_rows(
    q_a: jax.Array,
    q_b: jax.Array,
    k_a: jax.Array,
    k_b: jax.Array,
    *,
    temperature: float,
    normalise: bool = True,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """[2, B] both directions of `moco_v3` for each of this device's rows; its loss is the mean of
    their sum."""
    check("b d", q_a=q_a, q_b=q_b, k_a=k_a, k_b=k_b)

    def direction(q, k):
        return info_nce_rows(
            q,
            lax.stop_gradient(k),
            temperature=temperature,
            axis_name=axis_name,
            plan=plan,
            block_size=block_size,
            normalise=normalise,
        )

    return 2 * temperature * jnp.stack([direction(q_a, k_b), direction(q_b, k_a)])


@any_mesh
def n_pair(
    queries: jax.Array,
    keys: jax.Array,
    *,
    l2_weight: float = 0.0,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """Pulls an anchor to its positive, pushes it from the positives of the other classes; inner
    products, no temperature.

    L = 1/B sum_i log(1 + sum_{j != i} exp(q_i . k_j - q_i . k_i))
        +  l2_weight / 2B sum_i (|q_i|^2 + |k_i|^2)

    Args:
      queries, keys: [B, D], one pair for each of B classes; not normalised. Gradient flows to both.
      l2_weight: weight of the squared norms, which keep the inner products from growing.
      axis_name: device axis that splits the batch; keys of all devices are contrasted.
      plan, block_size: how devices share keys and the side of a tile, as in `contrast`.

    Returns:
      Scalar in nats, mean over the global batch: log B where all inner products are equal.

    Raises:
      ValueError: shapes that disagree, an axis that is not mapped.

    Reference: Sohn, NIPS 2016, Improved deep metric learning with multi-class N-pair loss
      objective, equation 7.
    """
    sizes = check("b d", queries=queries, keys=keys)
    check_axis(axis_name)
    ids = {"id": row_ids(sizes["b"], axis_name)}
    sums = contrast(
        queries,
        keys,
        scale=1.0,
        rows=ids,
        cols=ids,
        positive=same_id,
        axis_name=axis_name,
        plan=plan,
        block_size=block_size,
    )
    loss = mean(jnp.mean(sums.gap), axis_name)
    norms = jnp.mean(jnp.sum(wide(queries) ** 2 + wide(keys) ** 2, axis=1))
    return loss + l2_weight / 2 * mean(norms, axis_name)


def core_view(
    loss: Callable[[jax.Array, jax.Array], jax.Array], views: Sequence[jax.Array]
) -> jax.Array:
    """Contrasts the first view with each other one: sum_{j > 0} loss(v_0, v_j).

    Args:
      loss: of two views, a scalar, with its knobs bound: `partial(nt_xent, temperature=0.1,
        axis_name=axis)`.
      views: M >= 2 arrays, or one with the views on axis 0.

    Returns:
      The sum of the M - 1 losses.

    Raises:
      ValueError: fewer than two views.

    Reference: Tian et al. 2020, arXiv 1906.05849, equation 7.
    """
    _check_count(views)
    return sum((loss(views[0], views[j]) for j in range(2, len(views))), loss(views[0], views[1]))


def full_graph(
    loss: Callable[[jax.Array, jax.Array], jax.Array], views: Sequence[jax.Array]
) -> jax.Array:
    """Contrasts every pair of views: sum_{i < j} loss(v_i, v_j). Arguments as `core_view`; M (M -
    1) / 2 losses are added. Reference: Tian et al. 2020, arXiv 1906.05849, equation 8."""
    _check_count(views)
    pairs = [loss(views[i], views[j]) for i in range(len(views)) for j in range(i + 1, len(views))]
    return sum(pairs[1:], pairs[0])


def _valid_column(rows, cols):
    return allow(~same_id(rows, cols) & cols["valid"][None, :])


def _valid_of_row(rows, cols):
    return allow(~same_id(rows, cols) & rows["valid"][:, cols["id"]])


def _mask(valid):
    return jnp.asarray(valid, jnp.float32)


def _check_count(views):
    if len(views) < 2:
        raise ValueError(f"{len(views)} view given; expected at least two to contrast.")


def _check_views(z, temperature, axis_name, plan, block_size):
    sizes = check("v b d", z=z)
    check_positive(temperature=temperature)
    check_axis(axis_name)
    check_plan(plan, block_size)
    if sizes["v"] < 2:
        raise ValueError(
            f"z has shape {jnp.shape(z)}, one view; expected [V, B, D] with at least two."
        )
    return sizes["v"], sizes["b"], sizes["d"]
