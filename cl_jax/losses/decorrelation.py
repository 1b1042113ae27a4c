"""Losses that pull two views together and keep the features of a batch apart from one another:
VICReg, Barlow Twins, W-MSE. Nothing is normalised to unit length and there are no negatives."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import (
    AxisName,
    any_mesh,
    gather,
    mean,
    share_of_gradient,
    total,
    varying,
)
from cl_jax.core.numerics import dots, real_count, unit, wide
from cl_jax.core.shapes import (
    check,
    check_axis,
    check_count,
    check_integer,
    check_key,
    check_scalar,
    known_value,
)
from cl_jax.losses._products import centred_products
from cl_jax.losses._rows import over_rows


class VICRegTerms(NamedTuple):
    """invariance, variance, covariance: the unweighted terms. std: [2, D] sqrt(variance + eps) of
    each feature in each view, 1 or more where the variance term is satisfied."""

    invariance: jax.Array
    variance: jax.Array
    covariance: jax.Array
    std: jax.Array


@any_mesh
def vicreg(
    z_a: jax.Array,
    z_b: jax.Array,
    *,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
    eps: float = 1e-4,
    axis_name: AxisName = None,
) -> jax.Array:
    """Pulls two views together while every feature keeps a standard deviation of 1 and features
    stay uncorrelated over the batch.

    loss = invariance_weight * mean_ij (a_ij - b_ij)^2
         + variance_weight * 1/2 [v(a) + v(b)],   v(z) = 1/D sum_j max(0, 1 - sqrt(Var_j + eps))
         + covariance_weight * [c(a) + c(b)],     c(z) = 1/D sum_{j != k} Cov_jk^2

    Variances and covariances divide by B - 1 and are of the global batch.

    Args:
      z_a, z_b: [B, D] embeddings of two views, not normalised; gradient flows to both, and through
        the means.
      invariance_weight, variance_weight, covariance_weight: 25, 25, 1 in the authors' program,
        which averages the invariance over features and the variance over views, as here. Their
        equation has neither: there multiply the first by D and the second by 2. solo-learn adds
        the variances of the two views, so that its 25 is variance_weight=50 here.
      eps: added to each variance inside the root.
      axis_name: device axis that splits the batch.

    Returns:
      Scalar of at least 0; variance_weight * (1 - sqrt(eps)) where all rows are equal.

    Raises:
      ValueError: shapes that disagree, a global batch of one, an axis that is not mapped.

    Reference: Bardes, Ponce, LeCun, ICLR 2022, arXiv 2105.04906, equations 1 to 6.
    """
    terms = vicreg_terms(z_a, z_b, eps=eps, axis_name=axis_name)
    return (
        invariance_weight * terms.invariance
        + variance_weight * terms.variance
        + covariance_weight * terms.covariance
    )


@any_mesh
def vicreg_terms(
    z_a: jax.Array, z_b: jax.Array, *, eps: float = 1e-4, axis_name: AxisName = None
) -> VICRegTerms:
    """The three terms of `vicreg`, of the global batch, before their weights.

    Raises:
      ValueError: as `vicreg`.
    """
    check("b d", z_a=z_a, z_b=z_b)
    check_axis(axis_name)
    rows = _rows_of_batch(z_a, axis_name)
    if isinstance(rows, int) and rows < 2:
        raise ValueError(
            "the batch has 1 row; expected 2 or more, since a variance divides by B - 1."
        )
    a, b = wide(z_a), wide(z_b)
    width = a.shape[1]
    invariance = mean(jnp.mean(jnp.square(a - b)), axis_name)
    stds, covariance = [], jnp.zeros((), a.dtype)
    for z in (a, b):
        z = _centred(z, axis_name)
        variance = total(jnp.sum(z * z, axis=0), axis_name) / (rows - 1)
        stds.append(jnp.sqrt(variance + eps))
        squares = _off_diagonal(z, z, axis_name) / real_count((rows - 1) ** 2)
        covariance = covariance + squares / width
    std = jnp.stack(stds)
    return VICRegTerms(invariance, jnp.mean(jax.nn.relu(1 - std)), covariance, std)


@any_mesh
def feature_covariance(z: jax.Array, *, axis_name: AxisName = None) -> jax.Array:
    """[D, D] covariance of the features [B, D] over the global batch, divided by B - 1."""
    check("b d", z=z)
    check_axis(axis_name)
    centred = _centred(wide(z), axis_name)
    others = jnp.maximum(_rows_of_batch(z, axis_name) - 1, 1)
    return total(dots("bj,bk->jk", centred, centred), axis_name) / others


@any_mesh
def barlow_twins(
    z_a: jax.Array,
    z_b: jax.Array,
    *,
    off_diagonal_weight: float = 0.0051,
    scale: float = 1.0,
    eps: float = 1e-5,
    local_moments: bool = False,
    released_gradient: bool = False,
    axis_name: AxisName = None,
) -> jax.Array:
    """Drives the cross-correlation of two views' features to the identity matrix.

    loss = scale * [ sum_j (C_jj - 1)^2 + off_diagonal_weight * sum_{j != k} C_jk^2 ],
    C = a^T b / B, with each feature of a and of b at mean 0 and variance 1 over the batch

    Args:
      z_a, z_b: [B, D] embeddings, not normalised; gradient flows to both, and through the moments.
      off_diagonal_weight: 0.0051 at the authors' D of 8192. The terms are sums over features, so
        another D needs another weight and scale.
      scale: multiplies the loss. 1 in the released program (1/32, then 0.024, in earlier
        versions), 0.1 in solo-learn on CIFAR. A layer-wise rate (LARS) does not notice it.
      eps: added to each (biased) variance inside the root, as in a batch norm.
      local_moments: False takes means and variances over the global batch, as the authors do with
        synchronised batch norm. True takes those of each device's own rows and averages the
        correlations, as lightly and solo-learn do: a result that depends on the number of devices.
      released_gradient: the authors' program and solo-learn leave the sum of the correlation over
        devices out of the gradient, which is then divided by their number. True does the same.
      axis_name: device axis that splits the batch.

    Returns:
      Scalar of at least 0; scale * D where the views are unrelated and features uncorrelated.

    Raises:
      ValueError: shapes that disagree, an axis that is not mapped.

    Reference: Zbontar et al., ICML 2021, arXiv 2103.03230, equations 1 and 2.
    """
    check("b d", z_a=z_a, z_b=z_b)
    check_axis(axis_name)
    rows = _rows_of_batch(z_a, axis_name)
    over = None if local_moments else axis_name
    a, b = wide(z_a), wide(z_b)
    if _is_wide(a, rows):
        a, b = (_standardised(z, eps, over) for z in (a, b))
        diagonal = total(jnp.sum(a * b, axis=0), axis_name) / rows
        off_diagonal = _off_diagonal(a, b, axis_name) / real_count(rows**2)
        loss = scale * (jnp.sum(jnp.square(diagonal - 1)) + off_diagonal_weight * off_diagonal)
        return share_of_gradient(loss, axis_name) if released_gradient else loss
    found = centred_products(*varying((a, b)), over)
    by_row, by_column = (
        lax.rsqrt(mean(square / a.shape[0], over) + eps)
        for square in (found.square_a, found.square_b)
    )
    correlation = total(found.cross * by_row[:, None] * by_column[None], axis_name) / rows
    diagonal = jnp.eye(a.shape[1], dtype=bool)
    weighted = off_diagonal_weight * jnp.square(correlation)
    loss = scale * jnp.sum(jnp.where(diagonal, jnp.square(correlation - 1), weighted))
    return share_of_gradient(loss, axis_name) if released_gradient else loss


@any_mesh
def cross_correlation(
    z_a: jax.Array,
    z_b: jax.Array,
    *,
    eps: float = 1e-5,
    local_moments: bool = False,
    axis_name: AxisName = None,
) -> jax.Array:
    """[D, D] C of `barlow_twins`: features of z_a down, those of z_b across."""
    check("b d", z_a=z_a, z_b=z_b)
    check_axis(axis_name)
    over = None if local_moments else axis_name
    a, b = (_standardised(wide(z), eps, over) for z in (z_a, z_b))
    return total(dots("bj,bk->jk", a, b), axis_name) / _rows_of_batch(z_a, axis_name)


@any_mesh
def w_mse(
    h: jax.Array,
    permutations: jax.Array,
    *,
    group_size: int,
    eps: float = 0.0,
    normalise: bool = True,
    stop_second: bool = False,
    axis_name: AxisName = None,
) -> jax.Array:
    """Pulls the views of an image together after each view's embeddings are whitened over groups
    of the batch, which keeps them from collapsing.

    loss = mean over iterations and pairs of views u < v of mean_i [ 2 - 2 cos(z_ui, z_vi) ],
    with z from `whiten`

    Args:
      h: [V, B, D] embeddings of V >= 2 views, not normalised; gradient flows to all, through the
        mean, the covariance and its Cholesky factor.
      permutations: [T, B] integers, T permutations of the global batch, the same on every device
        (`draw_permutations`); T is the paper's number of iterations.
      group_size: consecutive images of a permutation that are whitened together, the same images
        in every view. It divides the global batch and is above D where eps is 0: twice D in the
        paper.
      eps: the covariance becomes (1 - eps) C + eps I. 0 as published; 1e-4 guards against
        collapsed features. Where eps is 0 and a group's covariance is singular the result is NaN.
      normalise: False is the mean over B * D of the squared difference, 1/D of the paper's.
      stop_second: no gradient to the second view of a pair: solo-learn's form, of the same value.
      axis_name: device axis that splits the batch; rows are gathered and every device whitens all.

    Returns:
      Scalar from 0 to 4 where normalised; 2 for unrelated views.

    Raises:
      ValueError: shapes that disagree, fewer than two views, a group_size that does not divide the
        batch or is too small, an axis that is not mapped.

    Reference: Ermolov et al., ICML 2021, arXiv 2007.06346, equations 2 to 5.
    """
    z = whiten(h, permutations, group_size=group_size, eps=eps, axis_name=axis_name)
    views = z.shape[1]
    if views < 2:
        raise ValueError(f"h has shape {h.shape}: {views} view; expected 2 or more.")
    rows = unit(z) if normalise else z
    value = jnp.zeros((), z.dtype)
    for u in range(views):
        for v in range(u + 1, views):
            second = lax.stop_gradient(rows[:, v]) if stop_second else rows[:, v]
            if normalise:
                value += jnp.mean(2 - 2 * jnp.sum(rows[:, u] * second, axis=-1))
            else:
                value += jnp.mean(jnp.square(rows[:, u] - second))
    return mean(value / (views * (views - 1) / 2), axis_name)


@any_mesh
def whiten(
    h: jax.Array,
    permutations: jax.Array,
    *,
    group_size: int,
    eps: float = 0.0,
    axis_name: AxisName = None,
) -> jax.Array:
    """[T, V, B, D] embeddings of the global batch, with mean 0 and covariance I in each group of
    each view.

    z = L^-1 (h - mean), L the lower Cholesky factor of (1 - eps) C + eps I, C of the group with
    group_size - 1 below. Rows are in the order of the global batch. Arguments as in `w_mse`.

    Raises:
      ValueError: as `w_mse`.
    """
    sizes = check("v b d", h=h)
    check_axis(axis_name)
    check_count(group_size=group_size)
    everything = jnp.swapaxes(gather(jnp.swapaxes(wide(h), 0, 1), axis_name), 0, 1)
    batch, width = everything.shape[1:]
    if axis_name is None:
        check_integer("t b", sizes, permutations=permutations)
    elif check_integer("t n", permutations=permutations)["n"] != batch:
        raise ValueError(
            f"permutations has shape {permutations.shape}; expected [T, {batch}], permutations of "
            "the global batch."
        )
    if batch % group_size:
        raise ValueError(
            f"group_size is {group_size}; expected a divisor of the global batch of {batch}."
        )
    check_scalar(eps=eps)
    known = known_value(eps)
    if group_size <= width and known is not None and not known > 0:
        raise ValueError(
            f"group_size is {group_size} for embeddings of {width} features; expected more rows "
            f"than features, 2 * {width} as published, for the covariance of a group is singular "
            "otherwise. Or give eps above 0."
        )
    permutations = jnp.asarray(permutations, jnp.int32)
    groups = permutations.reshape(permutations.shape[0], -1, group_size)  # [T, G, W]
    x = jnp.moveaxis(everything[:, groups], 0, 1)  # [T, V, G, W, D]
    x = x - jnp.mean(x, axis=-2, keepdims=True)
    covariance = dots("...wi,...wj->...ij", x, x) / max(group_size - 1, 1)
    covariance = (1 - eps) * covariance + eps * jnp.broadcast_to(
        jnp.eye(width, dtype=x.dtype), covariance.shape
    )
    factor = jnp.linalg.cholesky(covariance)
    z = lax.linalg.triangular_solve(factor, x, lower=True, transpose_a=True)  # z L^T = x
    z = z.reshape(*z.shape[:2], batch, width)
    order = jnp.argsort(permutations, axis=-1)
    return jnp.take_along_axis(z, order[:, None, :, None], axis=2)


def draw_permutations(key: jax.Array, batch: int, iterations: int = 1) -> jax.Array:
    """[iterations, batch] random permutations of the global batch, for `w_mse`. The key is the same
    on every device."""
    check_key(key=key)
    check_count(batch=batch, iterations=iterations)
    return jax.vmap(lambda key: jax.random.permutation(key, batch))(
        jax.random.split(key, iterations)
    )


def _rows_of_batch(z: jax.Array, axis_name: AxisName) -> int:
    return z.shape[0] * (1 if axis_name is None else lax.axis_size(axis_name))


def _centred(z: jax.Array, axis_name: AxisName) -> jax.Array:
    return z - mean(jnp.mean(z, axis=0, keepdims=True), axis_name)


def _standardised(z: jax.Array, eps: float, over: AxisName) -> jax.Array:
    """Each feature at mean 0 and (biased) variance 1, but for eps."""
    z = _centred(z, over)
    return z * lax.rsqrt(mean(jnp.mean(z * z, axis=0, keepdims=True), over) + eps)


def _is_wide(a: jax.Array, rows: int) -> bool:
    """Whether the rows' inner products are fewer than half of the features' products."""
    return isinstance(rows, int) and a.shape[1] > 2 * rows


def _off_diagonal(a: jax.Array, b: jax.Array, axis_name: AxisName) -> jax.Array:
    """sum_{j != k} (sum_i a_ij b_ik)^2 over the rows i of all devices.

    From the [D, D] products; where D is more than twice the batch from the rows' own inner
    products, some rows at a time: |a^T b|^2 = sum_ij (a_i . a_j)(b_i . b_j). The diagonal is then a
    difference, which is well conditioned because such products cannot be uncorrelated.
    """
    width = a.shape[1]
    batch = _rows_of_batch(a, axis_name)
    if not _is_wide(a, batch):
        products = total(dots("bj,bk->jk", a, b), axis_name)
        return jnp.sum(jnp.where(jnp.eye(width, dtype=bool), 0, jnp.square(products)))
    diagonal = total(jnp.sum(a * b, axis=0), axis_name)
    all_a, all_b = gather(a, axis_name), gather(b, axis_name)

    def rows(a, b):
        return jnp.sum(dots("rd,kd->rk", a, all_a) * dots("rd,kd->rk", b, all_b), axis=1)

    sums = over_rows(rows, a, b, block_size=None, columns=2 * all_a.shape[0])
    return total(jnp.sum(sums), axis_name) - jnp.sum(jnp.square(diagonal))
