"""DINO's centre: the running mean of the teacher's logits, subtracted from them against collapse to
one prototype."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import AxisName, any_mesh
from cl_jax.core.numerics import wide_type
from cl_jax.core.shapes import check, check_axis, check_share


def init(num_prototypes: int, *, dtype: Any = jnp.float32) -> jax.Array:
    """[K] zeros."""
    return jnp.zeros((num_prototypes,), dtype)


@any_mesh
def update(
    centre: jax.Array, teacher_logits: jax.Array, *, momentum: float, axis_name: AxisName = None
) -> jax.Array:
    """centre <- momentum * centre + (1 - momentum) * mean of the teacher's logits, after the loss
    has used the old one.

    Args:
      centre: [K].
      teacher_logits: [..., K] raw outputs of this device, not divided by the temperature: every
        global crop of every image (leading axes are averaged over). No gradient flows.
      momentum: 0.9 in DINO.
      axis_name: averages over this device axis too; every device holds as many rows.

    Returns:
      [K], the same on every device.

    Raises:
      ValueError: another number of prototypes, an axis that is not mapped, a momentum that is not
        from 0 to 1.

    Reference: Caron et al. 2021, arXiv 2104.14294, equation 4.
    """
    check("... k", check("k", centre=centre), teacher_logits=teacher_logits)
    check_axis(axis_name)
    check_share(momentum=momentum)
    wide = wide_type(centre.dtype)
    mean = lax.stop_gradient(teacher_logits).astype(wide).reshape(-1, centre.shape[0]).mean(0)
    if axis_name is not None:
        mean = lax.pmean(mean, axis_name)
    return (momentum * centre.astype(wide) + (1 - momentum) * mean).astype(centre.dtype)
