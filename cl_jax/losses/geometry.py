"""How features lie on the sphere: alignment and uniformity (losses and metrics), tolerance,
effective rank, hardness.

Features are normalised here unless `normalise=False`. Distances are squared Euclidean, so on unit
vectors d^2 = 2 - 2 cos.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import AxisName, any_mesh, axis_size, gather, log_total, mean
from cl_jax.core.numerics import log_count, prepared, softmax, wide
from cl_jax.core.shapes import check, check_axis, check_integer, check_positive, known_value
from cl_jax.losses.contrast import contrast, not_self, row_ids, separate_unlabelled
from cl_jax.losses.infonce import info_nce


@any_mesh
def alignment(
    x: jax.Array,
    y: jax.Array,
    *,
    alpha: float = 2.0,
    normalise: bool = True,
    axis_name: AxisName = None,
) -> jax.Array:
    """Pulls the two vectors of a positive pair together: 1/B sum_i ||x_i - y_i||^alpha.

    Args:
      x, y: [B, D], rows paired. Gradient flows to both; it is 0 where the two coincide.
      alpha: 2 in the paper; 1 is the plain distance.
      normalise: features to unit length here; False takes them as they are. What a memory holds
        is taken as it is.
      axis_name: device axis that splits the batch.

    Returns:
      Scalar >= 0; 2 for independent directions at alpha 2, 0 for coinciding pairs.

    Raises:
      ValueError: shapes that disagree, alpha <= 0, an axis that is not mapped.

    Reference: Wang and Isola 2020, arXiv 2005.10242, section 4.2.
    """
    x, y = prepared(normalise, x=x, y=y)
    check("b d", x=x, y=y)
    check_positive(alpha=alpha)
    check_axis(axis_name)
    square = jnp.sum(jnp.square(wide(x) - wide(y)), axis=1)
    apart = square != 0  # NaN is passed on
    rows = jnp.where(apart, jnp.where(apart, square, 1.0) ** (alpha / 2), 0.0)
    return mean(jnp.mean(rows), axis_name)


@any_mesh
def uniformity(
    x: jax.Array,
    queue: jax.Array | None = None,
    *,
    t: float = 2.0,
    intra_batch: bool = True,
    normalise: bool = True,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """Pushes all vectors apart: log of the mean of exp(-t ||x_i - x_j||^2) over the pairs i < j.

    With a queue the B * K pairs (x_i, queue_j) enter the same mean, each with the weight of one
    pair.

    Args:
      x: [B, D]. Gradient flows, and is finite where vectors coincide.
      queue: [K, D] unit vectors, constants.
      t: 2 in the paper, 3 in its MoCo variant.
      intra_batch: False leaves the pairs of the batch out, which asks for a queue.
      normalise: features to unit length here; False takes them as they are. What a memory holds
        is taken as it is.
      axis_name: device axis that splits the batch. The pairs are those of the global batch; the
        authors' MoCo variant takes the mean and the log on each device instead.
      plan, block_size: how devices share keys and the side of a tile, as in `contrast`.

    Returns:
      Scalar in [-4t, 0] for unit vectors: 0 when all coincide, about -2t for uniform directions in
      high dimension. A mean over no pair (a batch of one without a queue), which the authors' code
      makes NaN, is 0.

    Raises:
      ValueError: shapes that disagree, t <= 0, no pairs asked for, an axis that is not mapped.

    Reference: Wang and Isola 2020, arXiv 2005.10242, section 4.2; with a queue its MoCo code
      (unordered distinct pairs in both).
    """
    (x,) = prepared(normalise, x=x)
    sizes = check("b d", x=x)
    check_positive(t=t)
    check_axis(axis_name)
    if queue is None and not intra_batch:
        raise ValueError(
            "intra_batch=False leaves no pairs without a queue; pass queue=[K, D] or "
            "intra_batch=True."
        )
    x = wide(x)
    batch = sizes["b"] * axis_size(axis_name)
    logs, pairs = [], 0.0
    if intra_batch and (not isinstance(batch, int) or batch > 1):
        ids = {"id": row_ids(sizes["b"], axis_name)}
        out = contrast(
            _left(x),
            _right(x),
            scale=2 * t,
            rows=ids,
            cols=ids,
            log_weight=not_self,
            axis_name=axis_name,
            plan=plan,
            block_size=block_size,
        )
        logs.append(out.lse - math.log(2))  # every pair occurs twice
        pairs += batch * (batch - 1) / 2
    if queue is not None:
        check("k d", sizes, queue=queue)
        keys = _right(lax.stop_gradient(wide(queue)))
        logs.append(contrast(_left(x), keys, scale=2 * t, block_size=block_size).lse)
        pairs += batch * queue.shape[0]
    if not logs:
        return mean(0.0 * jnp.sum(x), axis_name)
    return log_total(jnp.concatenate(logs), axis_name) - log_count(pairs, x.dtype)


@any_mesh
def align_uniform(
    x: jax.Array,
    y: jax.Array,
    *,
    align_weight: float = 1.0,
    uniform_weight: float = 1.0,
    alpha: float = 2.0,
    t: float = 2.0,
    normalise: bool = True,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """Pulls pairs together and spreads each view: w_a alignment(x, y) + w_u (uniformity(x) +
    uniformity(y)) / 2.

    Args:
      x, y: [B, D], rows paired. Gradient flows to both.
      align_weight, uniform_weight: 1 and 1 on STL-10.
      alpha, t, normalise, axis_name, plan, block_size: as in `alignment` and `uniformity`.

    Returns:
      Scalar; independent uniform directions give about 2 w_a - 2t w_u at alpha 2.

    Raises:
      ValueError: as `alignment` and `uniformity`.

    Reference: Wang and Isola 2020, arXiv 2005.10242, section 5.
    """
    check("b d", x=x, y=y)
    spread = [
        uniformity(
            z, t=t, axis_name=axis_name, plan=plan, block_size=block_size, normalise=normalise
        )
        for z in (x, y)
    ]
    pull = alignment(x, y, alpha=alpha, axis_name=axis_name, normalise=normalise)
    return align_weight * pull + uniform_weight * (spread[0] + spread[1]) / 2


@any_mesh
def align_uniform_moco(
    q: jax.Array,
    k: jax.Array,
    queue: jax.Array,
    *,
    align_weight: float = 3.0,
    uniform_weight: float = 1.0,
    alpha: float = 2.0,
    t: float = 3.0,
    intra_batch: bool = True,
    contrast_weight: float = 0.0,
    temperature: float | None = None,
    normalise: bool = True,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """Pulls a query to its key and spreads queries over the batch and the queue; MoCo's loss can be
    added.

    w_a alignment(q, k) + w_u uniformity(q, queue) + w_c moco(q, k, queue)

    Args:
      q: [B, D] unit queries; gradient flows.
      k: [B, D] unit keys, constants.
      queue: [K, D] unit rows, constants.
      align_weight, uniform_weight, alpha, t: 3, 1, 2 and 3 in the authors' ImageNet-100 run.
      intra_batch: False leaves the pairs of queries out of the uniformity.
      contrast_weight: weight of the contrastive term; 0 leaves it out.
      temperature: of the contrastive term, needed with it only.
      normalise: features to unit length here; False takes them as they are. What a memory holds
        is taken as it is.
      axis_name, plan, block_size: as in `uniformity`.

    Returns:
      Scalar, mean over the global batch.

    Raises:
      ValueError: as `alignment` and `uniformity`; a contrastive weight without a temperature.

    Reference: Wang and Isola 2020, arXiv 2005.10242, the authors' MoCo code (defaults of its
      README's best run).
    """
    check("k d", check("b d", q=q, k=k), queue=queue)
    k = lax.stop_gradient(k)
    loss = align_weight * alignment(q, k, alpha=alpha, axis_name=axis_name, normalise=normalise)
    loss += uniform_weight * uniformity(
        q,
        queue,
        t=t,
        intra_batch=intra_batch,
        axis_name=axis_name,
        plan=plan,
        block_size=block_size,
        normalise=normalise,
    )
    if known_value(contrast_weight) == 0:
        return loss
    if temperature is None:
        raise ValueError(
            f"temperature is None with contrast_weight {contrast_weight}; expected a number above "
            f"0."
        )
    check_positive(temperature=temperature)
    return loss + contrast_weight * info_nce(
        q,
        k,
        lax.stop_gradient(queue),
        temperature=temperature,
        normalise=normalise,
        axis_name=axis_name,
        block_size=block_size,
    )


class Tolerance(NamedTuple):
    """all_pairs: mean over ordered pairs i != j of s_ij [same class]; same_class: mean over
    same-class pairs only."""

    all_pairs: jax.Array
    same_class: jax.Array
    num_pairs: jax.Array
    num_same_class_pairs: jax.Array


@any_mesh
def tolerance(
    features: jax.Array,
    labels: jax.Array,
    *,
    normalise: bool = True,
    axis_name: AxisName = None,
) -> Tolerance:
    """How similar features of one class are, in both readings of the definition.

    T = mean over i != j of x_i . x_j [y_i = y_j]; its scale depends on the number of classes,
    `same_class`'s does not. Computed from class sums,
    sum_{i != j, same} x_i . x_j = sum_c |sum_{i in c} x_i|^2 - sum_i |x_i|^2: no [N, N].

    Args:
      features: [N, D]. Gradient flows.
      labels: [N] integers; rows below 0 have no label and share a class with no other row.
      normalise: features to unit length here; False takes them as they are. What a memory holds
        is taken as it is.
      axis_name: device axis that splits the rows.

    Returns:
      Tolerance of scalars; a mean over no pair is 0. Features that ignore the class have tolerance
      near 0.

    Raises:
      ValueError: shapes that disagree, labels that are not integers, an axis that is not mapped.

    Reference: Wang and Liu 2021, arXiv 2012.09740, section 4.2.
    """
    (features,) = prepared(normalise, features=features)
    sizes = check("n d", features=features)
    check_integer("n", sizes, labels=labels)
    check_axis(axis_name)
    x, labels = gather(wide(features), axis_name), gather(jnp.asarray(labels), axis_name)
    labels = separate_unlabelled(labels)
    rows = x.shape[0]
    order = jnp.argsort(labels)
    ranked = labels[order]
    dense = jnp.cumsum(
        jnp.concatenate([jnp.zeros((1,), jnp.int32), (ranked[1:] != ranked[:-1]).astype(jnp.int32)])
    )
    sums = jax.ops.segment_sum(x[order], dense, rows)
    members = jax.ops.segment_sum(jnp.ones((rows,), jnp.int32), dense, rows)
    similar = jnp.sum(sums * sums) - jnp.sum(x * x)
    members = members.astype(x.dtype)
    same = jnp.sum(members * (members - 1))
    pairs = jnp.asarray(rows * (rows - 1.0), x.dtype)
    return Tolerance(
        mean(similar / jnp.maximum(pairs, 1), axis_name),
        mean(similar / jnp.maximum(same, 1), axis_name),
        pairs,
        mean(same, axis_name),
    )


@any_mesh
def effective_rank(
    features: jax.Array, *, centre: bool = False, axis_name: AxisName = None
) -> jax.Array:
    """How many directions the features fill: exp of the entropy of the normalised singular values.

    p_k = sigma_k / sum sigma,   rank = exp(-sum_k p_k log p_k)

    Args:
      features: [N, D]. Gradient flows.
      centre: subtracts the mean row first, so that a constant offset is not a direction.
      axis_name: device axis that splits the rows.

    Returns:
      Scalar in [1, min(N, D)]: 1 when all rows are parallel (or all zero), D for an orthogonal
      spread; NaN where features are NaN or inf. Without the 1e-7 that RankMe adds to each p_k.

    Raises:
      ValueError: a wrong rank, an axis that is not mapped.

    Reference: Roy and Vetterli 2007, "The effective rank"; Garrido et al. 2023, arXiv 2210.02885
      (RankMe).
    """
    check("n d", features=features)
    check_axis(axis_name)
    x = gather(wide(features), axis_name)
    if centre:
        x = x - jnp.mean(x, axis=0)[None]
    sigma = jnp.linalg.svd(x, compute_uv=False)
    scale = jnp.sum(sigma)
    p = sigma / jnp.where(scale > 0, scale, 1.0)
    entropy = -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0))
    not_finite = lax.stop_gradient(0 * scale)  # else NaN is no direction, as in collapsed features
    return mean(jnp.exp(entropy) + not_finite, axis_name)


class Hardness(NamedTuple):
    """probability: [B, M], P_ij. penalty: [B, M], r_ij, zero at the positive, each row summing to
    1."""

    probability: jax.Array
    penalty: jax.Array


@any_mesh
def negative_hardness(
    similarity: jax.Array,
    positive: jax.Array,
    *,
    temperature: float,
    selected: jax.Array | None = None,
) -> Hardness:
    """How the contrastive loss shares its gradient over the negatives of each row.

    P_ij = exp(s_ij / t) / (exp(s_ip / t) + sum_{k != p} exp(s_ik / t)),
    so dL_i/ds_ij = P_ij / t for a negative;
    r_ij = |dL_i/ds_ij| / |dL_i/ds_ip| = exp(s_ij / t) / sum_{k != p} exp(s_ik / t),
    a Boltzmann distribution.

    Args:
      similarity: [B, M].
      positive: [B] integers, the column p of each row's positive.
      temperature: t.
      selected: [B, M], nonzero at the negatives that count (`select_hard`); None for all.

    Returns:
      Hardness; both are zero outside the selection, and r of a row without negatives is zero.

    Raises:
      ValueError: shapes that disagree, temperature <= 0.

    Reference: Wang and Liu 2021, arXiv 2012.09740, equations 2 to 5.
    """
    sizes = check("b m", similarity=similarity)
    check_integer("b", sizes, positive=positive)
    check_positive(temperature=temperature)
    logits = wide(similarity) / temperature
    own = jnp.arange(sizes["m"])[None] == positive[:, None]
    negative = ~own
    if selected is not None:
        if selected.shape != similarity.shape:
            raise ValueError(
                f"selected has shape {selected.shape}; expected {similarity.shape} as similarity."
            )
        negative &= selected != 0
    probability = softmax(logits, axis=1, where=own | negative)
    some = negative.any(axis=1, keepdims=True)
    penalty = softmax(jnp.where(some, logits, 0.0), axis=1, where=negative | ~some)
    return Hardness(probability, jnp.where(negative, penalty, 0.0))


def _left(x: jax.Array) -> jax.Array:
    """With `_right`: rows whose products are -|x_i - y_j|^2 / 2, so that uniformity is a
    log-sum-exp of products."""
    return jnp.concatenate([x, _half_square(x), jnp.ones_like(x[:, :1])], axis=1)


def _right(y: jax.Array) -> jax.Array:
    return jnp.concatenate([y, jnp.ones_like(y[:, :1]), _half_square(y)], axis=1)


def _half_square(x):
    return -jnp.sum(x * x, axis=1, keepdims=True) / 2
