"""When a CPU computes what: an order that XLA's scheduler can see."""

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import is_divided, varying


def not_before(value: jax.Array, known: jax.Array) -> jax.Array:
    """value, which on a CPU nothing reads before the array `known` is there.

    What a gradient makes of an input of its layer alone could be computed as soon as that input is
    there, and XLA's CPU scheduler does so: right after the layer, to be kept through the rest of
    both passes. An optimisation barrier does not hold it back, since the compiler drops barriers
    before it schedules. So one number of `known` is read: value is NaN where that is, as a
    gradient of NaN is NaN. On other platforms, and where `known` is empty or divided over a mesh
    with Explicit axes, value is returned as it is. No gradient flows to `known`."""
    if 0 in known.shape or is_divided(known):
        return value
    first = lax.stop_gradient(known).reshape(-1)[:1].reshape((1,) * value.ndim)

    def on_cpu(value, first):
        return jnp.where(jnp.isnan(first), jnp.nan, value).astype(value.dtype)

    return lax.platform_dependent(
        *varying((value, first)), cpu=on_cpu, default=lambda value, first: value
    )
