"""Losses that spread a batch of embeddings out by themselves: KoLeo over the sphere, SIGReg to a
standard normal distribution, and LeJEPA, which is SIGReg with agreement of the views."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import AxisName, any_mesh, first_row, gather, mean
from cl_jax.core.numerics import dots, unit, wide
from cl_jax.core.shapes import check, check_axis, check_count, check_key, check_positive
from cl_jax.losses._rows import over_rows


class Nearest(NamedTuple):
    """position: [B] of each row's neighbour in the global batch. distance: [B] to it."""

    position: jax.Array
    distance: jax.Array


@any_mesh
def koleo(
    x: jax.Array,
    *,
    eps: float = 1e-8,
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> jax.Array:
    """Pushes each row of a batch from its nearest neighbour: the entropy estimate of Kozachenko and
    Leonenko.

    loss = -mean_i log(d_i + eps), d_i the distance of unit row i to its nearest other row

    Args:
      x: [B, D] features, normalised here; gradient flows to both rows of each distance.
      eps: added to each distance, and to each coordinate of the difference under the root.
      axis_name: device axis that splits the batch; neighbours are sought in the global batch.
        DINOv2 seeks them among each device's rows.
      block_size: rows compared at a time; None: all, but for more than 256 MiB of similarities.

    Returns:
      Scalar, -log 2 at the lowest. Equal rows give a large value and, where three or more are
      equal, a gradient of about 1/eps before the clipping that a training step needs: drop
      repeated examples. A batch of one is its own neighbour, without gradient.

    Raises:
      ValueError: a wrong shape, an axis that is not mapped.

    Reference: Sablayrolles et al., ICLR 2019, arXiv 1806.03198, equation 2; weight 0.1 on the
      class token of each global view in Oquab et al., arXiv 2304.07193. As in their program a row's
      similarity to itself counts -1, so that the first of two opposite rows picks itself.
    """
    distance = koleo_neighbours(x, eps=eps, axis_name=axis_name, block_size=block_size).distance
    return mean(-jnp.mean(jnp.log(distance + eps)), axis_name)


@any_mesh
def koleo_neighbours(
    x: jax.Array,
    *,
    eps: float = 1e-8,
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> Nearest:
    """The nearest other row of each of this device's rows, and its distance: what `koleo` is of."""
    sizes = check("b d", x=x)
    check_positive(eps=eps)
    check_axis(axis_name)
    rows = unit(x, 1e-8)
    keys = gather(rows, axis_name)
    own = first_row(sizes["b"], axis_name) + jnp.arange(sizes["b"])
    held = lax.stop_gradient(keys)

    def nearest(rows, own):
        similarity = dots("rd,kd->rk", rows, held)
        itself = own[:, None] == jnp.arange(held.shape[0])[None]
        return jnp.argmax(jnp.where(itself, -1, similarity), axis=1)

    index = over_rows(
        nearest, lax.stop_gradient(rows), own, columns=held.shape[0], block_size=block_size
    )
    return Nearest(index, jnp.sqrt(jnp.sum(jnp.square(rows - keys[index] + eps), axis=-1)))


@any_mesh
def sigreg(
    x: jax.Array,
    directions: jax.Array,
    *,
    t_max: float = 3.0,
    num_points: int = 17,
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> jax.Array:
    """How far a batch is from a standard normal distribution along random directions: the mean of
    `sigreg_statistics`.

    Returns:
      Scalar of at least 0; about 1.05, not 0, for a batch of standard normal rows with t_max 3, of
      any size, and 0.40 B where all rows are 0.
    """
    return jnp.mean(
        sigreg_statistics(
            x,
            directions,
            t_max=t_max,
            num_points=num_points,
            axis_name=axis_name,
            block_size=block_size,
        )
    )


@any_mesh
def sigreg_statistics(
    x: jax.Array,
    directions: jax.Array,
    *,
    t_max: float = 3.0,
    num_points: int = 17,
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> jax.Array:
    """The Epps-Pulley statistic of each direction: the distance of the characteristic functions of
    the projected batch and of N(0, 1).

    T_k = B sum_j w_j [ (mean_i cos(t_j y_ik) - exp(-t_j^2 / 2))^2 + (mean_i sin(t_j y_ik))^2 ],
    y = x directions, t_j from 0 to t_max,
    w_j the trapezoid's weights over [-t_max, t_max] times exp(-t_j^2 / 2)

    Args:
      x: [..., B, D] embeddings, not normalised; gradient flows. Leading axes, such as views, are
        tested apart. Where all rows are equal at 0 there is no gradient: do not start from zeros.
      directions: [D, K] unit columns, redrawn at each step and the same on every device
        (`draw_directions`); no gradient.
      t_max: 3 in the authors' program. num_points: of [0, t_max], both ends included. The paper's
        listing, 17 points over [-5, 5], is t_max=5, num_points=9.
      axis_name: device axis that splits the batch.
      block_size: directions taken at a time; None: all, but for more than 256 MiB of cosines.

    Returns:
      [..., K] statistics of the global batch, the same on every device. The authors' clip_value is
      jnp.where(statistics < clip_value, 0, statistics), before their mean.

    Raises:
      ValueError: widths that disagree, fewer than two points, t_max <= 0, an axis that is not
        mapped.

    Reference: Balestriero and LeCun, arXiv 2511.08544, section 4; Epps and Pulley 1983.
    """
    sizes = check("... b d", x=x)
    sizes = check("d k", sizes, directions=directions)
    check_positive(t_max=t_max)
    check_axis(axis_name)
    if num_points < 2:
        raise ValueError(f"num_points is {num_points}; expected 2 or more.")
    x = wide(x)
    step = t_max / (num_points - 1)
    t = jnp.arange(num_points, dtype=x.dtype) * step
    weight = jnp.where((t == 0) | (jnp.arange(num_points) == num_points - 1), step, 2 * step)
    phi = jnp.exp(-jnp.square(t) / 2)
    batch = sizes["b"] * (1 if axis_name is None else lax.axis_size(axis_name))

    def moments(direction):
        """[k, D] -> [k, ..., m] means of cosine and sine over this device's rows."""
        y = dots("...bd,kd->k...b", x, direction)
        angle = y[..., None] * jnp.broadcast_to(t, (*y.shape, num_points))
        return jnp.mean(jnp.cos(angle), axis=-2), jnp.mean(jnp.sin(angle), axis=-2)

    each = lax.stop_gradient(wide(directions)).T.astype(x.dtype)
    rows = x.size // sizes["d"]
    moment = over_rows(moments, each, columns=2 * rows * num_points, block_size=block_size)
    cosine, sine = (mean(part, axis_name) for part in moment)
    distance = jnp.square(cosine - jnp.broadcast_to(phi, cosine.shape)) + jnp.square(sine)
    statistics = batch * dots("...m,m->...", distance, weight * phi)
    return jnp.moveaxis(statistics, 0, -1)


def draw_directions(key: jax.Array, width: int, count: int) -> jax.Array:
    """[width, count] directions uniform on the sphere, for `sigreg` and `lejepa`. The key is the
    same on every device."""
    check_key(key=key)
    check_count(width=width, count=count)
    return unit(jax.random.normal(key, (count, width))).T


class LeJEPATerms(NamedTuple):
    """sigreg, prediction: the unweighted terms."""

    sigreg: jax.Array
    prediction: jax.Array


@any_mesh
def lejepa(
    z: jax.Array,
    directions: jax.Array,
    *,
    num_global: int | None = None,
    weight: float = 0.05,
    t_max: float = 3.0,
    num_points: int = 17,
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> jax.Array:
    """Pulls all views of an image to the mean of its global views, while each view's batch is held
    to a standard normal distribution.

    loss = weight * mean_v SIGReg(z_v) + (1 - weight) * mean_vid (mu_id - z_vid)^2,
    mu = mean of the first num_global views

    Args:
      z: [V, B, D] projections, global views first, not normalised; gradient flows to all, through
        mu too.
      directions: [D, K], as in `sigreg_statistics`; all views share them.
      num_global: how many views make the mean; None: all.
      weight: of SIGReg: 0.05, or 0.02 in the authors' smallest example.
      t_max, num_points, axis_name, block_size: as in `sigreg_statistics`.

    Returns:
      Scalar; a plateau near weight * 1.05 is success.

    Raises:
      ValueError: shapes that disagree, num_global out of range, and as `sigreg_statistics`.

    Reference: Balestriero and LeCun, arXiv 2511.08544, equation 7; the squared norm is divided by D
      as in the authors' program.
    """
    terms = lejepa_terms(
        z,
        directions,
        num_global=num_global,
        t_max=t_max,
        num_points=num_points,
        axis_name=axis_name,
        block_size=block_size,
    )
    return weight * terms.sigreg + (1 - weight) * terms.prediction


@any_mesh
def lejepa_terms(
    z: jax.Array,
    directions: jax.Array,
    *,
    num_global: int | None = None,
    t_max: float = 3.0,
    num_points: int = 17,
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> LeJEPATerms:
    """The two terms of `lejepa` before their weights.

    Raises:
      ValueError: as `lejepa`.
    """
    views = check("v b d", z=z)["v"]
    num_global = views if num_global is None else num_global
    if not 1 <= num_global <= views:
        raise ValueError(f"num_global is {num_global}; expected 1 to {views}, the views of z.")
    spread = sigreg(
        z,
        directions,
        t_max=t_max,
        num_points=num_points,
        axis_name=axis_name,
        block_size=block_size,
    )
    z = wide(z)
    centre = jnp.mean(z[:num_global], axis=0, keepdims=True)
    return LeJEPATerms(spread, mean(jnp.mean(jnp.square(centre - z)), axis_name))
