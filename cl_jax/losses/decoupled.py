"""Decoupled contrastive learning: NT-Xent whose denominator leaves the positive out, so that small
batches do not weaken its gradient."""

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import AxisName, any_mesh, axis_size, log_total, mean
from cl_jax.core.numerics import dots, prepared
from cl_jax.core.shapes import check, check_axis, check_positive
from cl_jax.losses.contrast import (
    Pairs,
    allow,
    check_plan,
    contrast,
    row_ids,
    same_example,
)


@any_mesh
def dcl(
    z_a: jax.Array,
    z_b: jax.Array,
    *,
    temperature: float,
    normalise: bool = True,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """Pulls the two views of an example together, pushes each from both views of all other
    examples.

    s_ij = cos(z_i, z_j) / temperature over the 2B rows of both views, i' the other view of i:
    L = 1/2B sum_i [ -s_ii' + log sum_{j not in (i, i')} exp(s_ij) ]

    Args:
      z_a, z_b: [B, D] projections of two views, normalised here; gradient flows to both.
      temperature: 0.1 (ImageNet), 0.07 (CIFAR-10) in the paper.
      normalise: features to unit length here; False takes them as they are.
      axis_name: device axis that splits the batch; rows of all devices are contrasted.
      plan, block_size: how devices share keys and the side of a tile, as in `contrast`.

    Returns:
      Scalar in nats, mean over the 2B rows of the global batch: log(2B - 2) where all similarities
      are equal, below 0 where the positive leads, at the lowest about -2 / temperature. The
      repository raminnakhli/Decoupled-Contrastive-Learning adds the two directions: 2 L.

    Raises:
      ValueError: shapes that disagree, a global batch of one, temperature <= 0, an axis that is not
        mapped.

    Reference: Yeh et al., ECCV 2022, arXiv 2110.06848, equation 6.
    """
    rows = dcl_rows(
        z_a,
        z_b,
        temperature=temperature,
        normalise=normalise,
        axis_name=axis_name,
        plan=plan,
        block_size=block_size,
    )
    return mean(jnp.mean(rows), axis_name)


@any_mesh
def dcl_rows(
    z_a: jax.Array,
    z_b: jax.Array,
    *,
    temperature: float,
    normalise: bool = True,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """[2, B] `dcl` of each of this device's rows, z_a first."""
    return _sums(z_a, z_b, temperature, normalise, axis_name, plan, block_size)[0]


@any_mesh
def dclw(
    z_a: jax.Array,
    z_b: jax.Array,
    *,
    temperature: float,
    sigma: float = 0.5,
    detach_weights: bool = True,
    normalise: bool = True,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """`dcl` that pulls a pair harder the less its views agree.

    L = 1/2B sum_i [ -w_i s_ii' + log sum_{j not in (i, i')} exp(s_ij) ],  w from `dclw_weights`

    Args:
      sigma: temperature of the weights (0.5).
      detach_weights: no gradient through the weights, as in lightly. False lets it flow, as in
        raminnakhli/Decoupled-Contrastive-Learning; the paper does not say. The value is the same.
      z_a, z_b, temperature, normalise, axis_name, plan, block_size: as in `dcl`. Weights are
        averaged over the global batch, whatever the number of devices; lightly averages over each
        device's rows.

    Returns:
      Scalar in nats, as `dcl`.

    Raises:
      ValueError: as `dcl`, and sigma <= 0.

    Reference: Yeh et al., ECCV 2022, arXiv 2110.06848, section 3.3.
    """
    rows = dclw_rows(
        z_a,
        z_b,
        temperature=temperature,
        sigma=sigma,
        detach_weights=detach_weights,
        normalise=normalise,
        axis_name=axis_name,
        plan=plan,
        block_size=block_size,
    )
    return mean(jnp.mean(rows), axis_name)


@any_mesh
def dclw_rows(
    z_a: jax.Array,
    z_b: jax.Array,
    *,
    temperature: float,
    sigma: float = 0.5,
    detach_weights: bool = True,
    normalise: bool = True,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """[2, B] `dclw` of each of this device's rows, z_a first."""
    gap, positive = _sums(z_a, z_b, temperature, normalise, axis_name, plan, block_size)
    weights = dclw_weights(z_a, z_b, sigma=sigma, normalise=normalise, axis_name=axis_name)
    if detach_weights:
        weights = lax.stop_gradient(weights)
    return gap + (1 - weights)[None] * positive


@any_mesh
def dclw_weights(
    z_a: jax.Array,
    z_b: jax.Array,
    *,
    sigma: float = 0.5,
    normalise: bool = True,
    axis_name: AxisName = None,
) -> jax.Array:
    """[B] w_i = 2 - exp(cos_i / sigma) / mean_j exp(cos_j / sigma), cos_i of the two views of
    example i: 1 on average over the global batch."""
    sizes = check("b d", z_a=z_a, z_b=z_b)
    check_positive(sigma=sigma)
    check_axis(axis_name)
    similarity = dots("bd,bd->b", *prepared(normalise, z_a=z_a, z_b=z_b)) / sigma
    count = sizes["b"] * (1 if axis_name is None else lax.axis_size(axis_name))
    return 2 - count * jnp.exp(similarity - log_total(similarity, axis_name))


def _sums(
    z_a, z_b, temperature, normalise, axis_name, plan, block_size
) -> tuple[jax.Array, jax.Array]:
    """[2, B] log-sum-exp over the negatives less the positive, and the positive's logit."""
    sizes = check("b d", z_a=z_a, z_b=z_b)
    check_positive(temperature=temperature)
    check_axis(axis_name)
    check_plan(plan, block_size)
    batch = sizes["b"]
    count = batch * axis_size(axis_name)
    if isinstance(count, int) and count < 2:
        raise ValueError("the batch has 1 example; expected 2 or more, for it has no negatives.")
    rows = jnp.concatenate(prepared(normalise, z_a=z_a, z_b=z_b))
    example = row_ids(batch, axis_name)
    ids = {
        "example": jnp.concatenate([example, example]),
        "view": jnp.repeat(jnp.arange(2, dtype=example.dtype), batch),
    }

    def other_examples(rows: Pairs, cols: Pairs) -> jax.Array:
        return allow(~same_example(rows, cols))

    def other_view(rows: Pairs, cols: Pairs) -> jax.Array:
        return same_example(rows, cols) & (rows["view"][:, None] != cols["view"][None, :])

    sums = contrast(
        rows,
        rows,
        scale=1 / temperature,
        rows=ids,
        cols=ids,
        log_weight=other_examples,
        positive=other_view,
        axis_name=axis_name,
        plan=plan,
        block_size=block_size,
    )
    return sums.gap.reshape(2, batch), sums.pos.reshape(2, batch)
