"""SwAV's queue: for each crop that codes are computed from, the features of the latest batches,
newest first."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import AxisName, any_mesh
from cl_jax.core.shapes import check, check_axis


def init(num_crops: int, length: int, width: int, *, dtype: Any = jnp.float32) -> jax.Array:
    """[A, L, D] zeros: a queue that `filled` says not to use yet.

    Raises:
      ValueError: a size below 1.
    """
    if min(num_crops, length, width) < 1:
        raise ValueError(
            f"num_crops is {num_crops}, length {length}, width {width}; expected each at least 1."
        )
    return jnp.zeros((num_crops, length, width), dtype)


@any_mesh
def push(queue: jax.Array, z: jax.Array, *, axis_name: AxisName = None) -> jax.Array:
    """The queue with this step's features in front and the oldest dropped.

    Args:
      queue: [A, L, D], newest first.
      z: [A, B, D] unit features of the crops that codes are computed from, of this device. No
        gradient flows.
      axis_name: with it the batches of all devices enter, in rank order, so that every device holds
        the same queue of the global batch and a run does not depend on the number of devices. The
        authors keep a queue of length L / devices on each device: that is this function without
        `axis_name`, under the mapped axis.

    Returns:
      [A, L, D] in the type of `queue`. Of a batch longer than the queue the first L rows stay.

    Raises:
      ValueError: shapes that disagree, `axis_name` not mapped.

    Reference: Caron et al. 2020, arXiv 2006.09882, section 4.1 and the authors' code.
    """
    check("a b d", check("a l d", queue=queue), z=z)
    check_axis(axis_name)
    z = lax.stop_gradient(z).astype(queue.dtype)
    if axis_name is not None:
        z = lax.all_gather(z, axis_name, axis=1, tiled=True)
    return jnp.concatenate([z, queue], axis=1)[:, : queue.shape[1]]


@any_mesh
def filled(queue: jax.Array) -> jax.Array:
    """[A] booleans: the oldest row is non-zero, from when on SwAV's codes use the queue."""
    check("a l d", queue=queue)
    return (queue[:, -1] != 0).any(axis=-1)
