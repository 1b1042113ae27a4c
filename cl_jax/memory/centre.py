"""DINO's centre: the running mean of the teacher's logits, subtracted from them against collapse to
one prototype."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import AxisName, any_mesh, mean, total
from cl_jax.core.numerics import dots, wide_type
from cl_jax.core.shapes import check, check_axis, check_share


def init(num_prototypes: int, *, dtype: Any = jnp.float32) -> jax.Array:
    """[K] zeros."""
    return jnp.zeros((num_prototypes,), dtype)


@any_mesh
def update(
    centre: jax.Array,
    teacher_logits: jax.Array,
    *,
    momentum: float,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """centre <- momentum * centre + (1 - momentum) * mean of the teacher's logits, after the loss
    has used the old one.

    Args:
      centre: [K].
      teacher_logits: [..., K] raw outputs of this device, not divided by the temperature: every
        global crop of every image (leading axes are averaged over). No gradient flows.
      momentum: 0.9 in DINO.
      where: [...] 1 or true at the rows to average, such as hidden patches; None: all. Where there
        is none in the global batch the centre stays.
      axis_name: averages over this device axis too; every device holds as many rows.

    Returns:
      [K], the same on every device.

    Raises:
      ValueError: another number of prototypes, `where` of another shape, an axis that is not
        mapped, a momentum that is not from 0 to 1.

    Reference: Caron et al. 2021, arXiv 2104.14294, equation 4.
    """
    check("... k", check("k", centre=centre), teacher_logits=teacher_logits)
    check_axis(axis_name)
    check_share(momentum=momentum)
    if where is not None and jnp.shape(where) != teacher_logits.shape[:-1]:
        raise ValueError(
            f"where has shape {jnp.shape(where)}; expected that of the rows of teacher_logits, "
            f"{teacher_logits.shape[:-1]}."
        )
    wide = wide_type(centre.dtype)
    rows = lax.stop_gradient(teacher_logits).astype(wide).reshape(-1, centre.shape[0])
    old = centre.astype(wide)
    if where is None:
        moved = momentum * old + (1 - momentum) * mean(rows.mean(0), axis_name)
    else:
        used = (jnp.asarray(where).reshape(-1) != 0).astype(wide)
        count = total(jnp.sum(used), axis_name)
        average = total(dots("n,nk->k", used, rows), axis_name) / jnp.maximum(count, 1)
        moved = jnp.where(count > 0, momentum * old + (1 - momentum) * average, old)
    return moved.astype(centre.dtype)
