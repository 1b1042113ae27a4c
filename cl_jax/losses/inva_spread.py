"""InvaSpread: instance discrimination among fresh features of the batch, with a spreading term for
each negative."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from cl_jax.core.axis import AxisName, any_mesh, first_row, gather, mean, split_over
from cl_jax.core.numerics import capped, dots, log_sum_exp, prepared, unit_like, wide, wide_type
from cl_jax.core.shapes import check, check_axis, check_positive, known_value
from cl_jax.losses._rows import over_rows
from cl_jax.losses.contrast import check_plan


@any_mesh
def inva_spread(
    z_a: jax.Array,
    z_b: jax.Array,
    *,
    temperature: float,
    negative_weight: float = 1.0,
    normalise: bool = True,
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> jax.Array:
    """Pulls the two views of an instance together, pushes each other feature of the batch away by a
    term of its own.

    With the 2B rows x = [z_a; z_b], constants k = x, partner p and negatives j (all rows but i and
    p):
    e_ij = exp(x_i . k_j / temperature),   d_i = e_ip + m sum_j e_ij,
    L = -1/2B sum_i [ log(e_ip / d_i) + m sum_j log(1 - e_ij / d_i) ]

    Args:
      z_a, z_b: [B, D] features of the two views, normalised here. Gradient flows through
        the left factor x_i only, as in the authors' code: partners and negatives are constants, so
        this is not the gradient of the value.
      temperature: 0.1 in the paper.
      negative_weight: m, not traced, 1 in the paper. Below 1 a probability e_ij / d_i may pass
        1, where the logarithm of the rest is not defined: it is then held at one rounding step
        below 1.
      normalise: features to unit length here; False takes them as they are. What a memory holds
        is taken as it is.
      axis_name: device axis that splits the batch; negatives come from all devices.
      block_size: rows whose similarities are held at a time; None chooses by size, 0 for all at
        once.

    Returns:
      Scalar in nats, mean over the 2B rows of the global batch. With N = 2B - 1 equal similarities
      and m = 1, log N - (N - 1) log(1 - 1/N), about log N + 1. A batch of one instance gives 0 (NaN
      in the authors' code).

    Raises:
      ValueError: shapes that disagree, temperature or negative_weight <= 0, an axis that is not
        mapped.

    Reference: Ye et al. 2019, arXiv 1904.03436, equations 3 to 6, in the symmetric form of the
      authors' code (self left out of the sums). In place of their full row sum less log(1 - P_ip)
      the partner is left out of the sum, and the leading negative's 1 - P is summed from the other
      terms: finite and exact in float32 at temperature 0.01."""
    sizes = check("b d", z_a=z_a, z_b=z_b)
    if not normalise:
        z_a, z_b = prepared(False, z_a=z_a, z_b=z_b)
    check_positive(temperature=temperature, negative_weight=negative_weight)
    weight = known_value(negative_weight)
    if weight is None:
        raise ValueError(
            "negative_weight is traced; expected a number that is known when the program is made. "
            "Bind it before jax.jit or jax.grad, or name it in static_argnames."
        )
    check_plan("gather", block_size)
    check_axis(axis_name)
    mesh, names = split_over(sizes["b"], z_a, z_b) if axis_name is None else (None, ())
    if not names:
        return _loss(z_a, z_b, temperature, weight, normalise, block_size, axis_name)
    # Rows of a sharded batch: of each device its own, as with a named axis.
    rows, one = PartitionSpec(names), PartitionSpec()
    local = jax.shard_map(
        lambda z_a, z_b, t: _loss(z_a, z_b, t, weight, normalise, block_size, names),
        mesh=mesh,
        in_specs=(rows, rows, one),
        out_specs=one,
    )
    return local(z_a, z_b, jnp.asarray(temperature, wide_type(jnp.result_type(z_a))))


def _loss(z_a, z_b, temperature, negative_weight, normalise, block_size, axis_name) -> jax.Array:
    if normalise:
        z_a, z_b = unit_like(z_a), unit_like(z_b)
    keys = lax.stop_gradient(jnp.concatenate([gather(z_a, axis_name), gather(z_b, axis_name)]))
    batch = keys.shape[0] // 2
    first = first_row(z_a.shape[0], axis_name) + jnp.arange(z_a.shape[0])
    own = jnp.concatenate([first, first + batch])
    partner = jnp.concatenate([first + batch, first])
    columns = jnp.arange(2 * batch)[None]

    m = negative_weight

    def rows(x, own, partner):
        logits = wide(dots("bd,kd->bk", x, keys)) / temperature
        negative = (columns != own[:, None]) & (columns != partner[:, None])
        positive = jnp.take_along_axis(logits, partner[:, None], axis=1)[:, 0]
        weighted = jnp.where(
            negative, logits + math.log(m), jnp.where(columns == own[:, None], -jnp.inf, logits)
        )
        # A finite floor: a batch of one has no negatives and must stay free of NaN.
        log_negatives = log_sum_exp(jnp.where(negative, weighted, -1e30), axis=1)
        log_d = jnp.logaddexp(positive, log_negatives)
        log_p = jnp.where(negative, logits - log_d[:, None], -jnp.inf)
        # 1 - P loses its digits where one negative holds nearly all of d; every other P is then
        # small.
        top = jnp.argmax(log_p, axis=1)[:, None]
        leading = negative & (columns == top)
        log_rest = log_sum_exp(jnp.where(leading, -jnp.inf, weighted), axis=1)
        log_top = jnp.take_along_axis(logits, top, axis=1)[:, 0]
        below_one = 1 - jnp.finfo(logits.dtype).eps
        if m > 1:
            log_rest = jnp.logaddexp(log_rest, log_top + math.log(m - 1))
        elif m < 1:
            log_rest += jnp.log1p(
                -jnp.minimum((1 - m) * jnp.exp(jnp.minimum(log_top - log_rest, 80.0)), below_one)
            )
        p = jnp.where(leading, 0.0, jnp.exp(capped(log_p)))
        spread = jnp.sum(jnp.log1p(-jnp.minimum(p, below_one)), axis=1)
        spread += jnp.where(leading.any(axis=1), log_rest - log_d, 0.0)
        # log d - log e_p, with the digits that the difference would lose when it is small.
        return jax.nn.softplus(log_negatives - positive) - m * spread

    losses = over_rows(
        rows, jnp.concatenate([z_a, z_b]), own, partner, columns=2 * batch, block_size=block_size
    )
    return mean(jnp.mean(losses), axis_name)
