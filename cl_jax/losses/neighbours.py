"""NNCLR: the positive is the nearest neighbour of a view among the embeddings of other images."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import AxisName, any_mesh, mean
from cl_jax.core.numerics import dots, unit, wide
from cl_jax.core.shapes import check, check_axis, check_integer, check_positive
from cl_jax.losses._rows import over_rows
from cl_jax.losses.decoupled import dcl_rows
from cl_jax.losses.infonce import info_nce_rows, nt_xent_rows


class Neighbours(NamedTuple):
    """position: [B] of the nearest row in the queue. rows: [B, D] the row, as it is stored."""

    position: jax.Array
    rows: jax.Array


@any_mesh
def nearest_neighbours(
    z: jax.Array,
    queue: jax.Array,
    *,
    valid: jax.Array | None = None,
    block_size: int | None = None,
) -> Neighbours:
    """The row of the queue with the largest cosine to each row of z; the first of equal ones.

    Args:
      z: [B, D]; no gradient.
      queue: [K, D] earlier embeddings, of any length; no gradient. Look up before the batch enters.
      valid: [K] booleans, rows to choose among (`cl_jax.memory.queue.valid`); None: all, the random
        start too, as published. At least one must be true.
      block_size: rows of z compared at a time; None: all, but for more than 256 MiB of
        similarities.

    Raises:
      ValueError: widths that disagree, `valid` of another length.
    """
    sizes = check("b d", z=z)
    sizes = check("k d", sizes, queue=queue)
    if valid is not None:
        check_integer("k", sizes, valid=jnp.asarray(valid, jnp.int32))
    queries, keys = lax.stop_gradient((wide(z), unit(queue)))

    def nearest(rows):
        similarity = dots("rd,kd->rk", rows, keys)
        if valid is not None:
            similarity = jnp.where(valid[None], similarity, -jnp.inf)
        return jnp.argmax(similarity, axis=1)

    index = over_rows(nearest, unit(queries), columns=sizes["k"], block_size=block_size)
    return Neighbours(index, lax.stop_gradient(queue)[index])


@any_mesh
def nnclr(
    p_a: jax.Array,
    p_b: jax.Array,
    neighbours_a: jax.Array,
    neighbours_b: jax.Array,
    *,
    temperature: float,
    form: str = "rows",
    decoupled: bool = False,
    normalise: bool = True,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """Pulls the prediction of each view to the neighbour of the other view, pushes it from the
    neighbours of other examples.

    l(n, p) = -1/B sum_i log( exp(n_i . p_i / temperature) / sum_k exp(n_i . p_k / temperature) )
    L = 1/2 [ l(neighbours_a, p_b) + l(neighbours_b, p_a) ],  all rows of unit length

    Args:
      p_a, p_b: [B, D] predictions made from the projections of views a and b, normalised here;
        gradient flows. Through them alone the encoder learns.
      neighbours_a, neighbours_b: [B, D] rows that `nearest_neighbours` found for the projections of
        views a and b, normalised here; no gradient.
      temperature: 0.1 in the paper, 0.2 in solo-learn on CIFAR.
      form: what is summed below. "rows": the predictions of all examples, as above (the paper's
        pseudo-code, solo-learn). "both": the mean with the transposed softmax over the neighbours
        (the paper's text). "nt_xent": `nt_xent` over the 2B rows of neighbours and predictions,
        which has negatives of the same kind too (lightly, temperature 0.5).
      decoupled: True leaves the positive out of the denominator, as `dcl` does.
      normalise: features to unit length here; False takes them as they are. What a memory holds
        is taken as it is.
      axis_name: device axis that splits the batch; predictions of all devices are contrasted.
      plan, block_size: how devices share keys and the side of a tile, as in `contrast`.

    Returns:
      Scalar in nats, mean over the global batch: log B where all similarities are equal ("rows",
      "both"), log(2B - 1) for "nt_xent"; of one less each if decoupled.

    Raises:
      ValueError: shapes that disagree, temperature <= 0, an unknown form, an axis that is not
        mapped.

    Reference: Dwibedi et al., ICCV 2021, arXiv 2104.14548, equation 2.
    """
    rows = nnclr_rows(
        p_a,
        p_b,
        neighbours_a,
        neighbours_b,
        temperature=temperature,
        form=form,
        decoupled=decoupled,
        axis_name=axis_name,
        plan=plan,
        block_size=block_size,
        normalise=normalise,
    )
    return mean(jnp.mean(rows), axis_name)


@any_mesh
def nnclr_rows(
    p_a: jax.Array,
    p_b: jax.Array,
    neighbours_a: jax.Array,
    neighbours_b: jax.Array,
    *,
    temperature: float,
    form: str = "rows",
    decoupled: bool = False,
    normalise: bool = True,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """[2, B] `nnclr` of each of this device's rows: neighbours_a against p_b first.

    Raises:
      ValueError: as `nnclr`.
    """
    check("b d", p_a=p_a, p_b=p_b, neighbours_a=neighbours_a, neighbours_b=neighbours_b)
    check_positive(temperature=temperature)
    check_axis(axis_name)
    if form not in ("rows", "both", "nt_xent"):
        raise ValueError(f'form is {form!r}; expected "rows", "both" or "nt_xent".')
    knobs: dict[str, Any] = {
        "temperature": temperature,
        "normalise": normalise,
        "axis_name": axis_name,
        "plan": plan,
        "block_size": block_size,
    }
    directions = []
    for neighbours, p in ((neighbours_a, p_b), (neighbours_b, p_a)):
        neighbours = lax.stop_gradient(neighbours)
        if form == "rows":
            directions.append(info_nce_rows(neighbours, p, decoupled=decoupled, **knobs))
        elif form == "both":
            rows = info_nce_rows(neighbours, p, decoupled=decoupled, symmetric=True, **knobs)
            directions.append(rows.mean(axis=0))
        else:
            of_pair = dcl_rows if decoupled else nt_xent_rows
            directions.append(of_pair(neighbours, p, **knobs).mean(axis=0))
    return jnp.stack(directions)
