"""Deep InfoMax's encode-and-dot critic: both sides of a score go through one of these, and the
score is their product."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cl_jax.core.shapes import check_real
from cl_jax.encoders import initializers
from cl_jax.encoders.layer_norm import LayerNorm
from cl_jax.encoders.norm import BatchNorm


class DotCritic(nn.Module):
    """LayerNorm(W2 relu(BatchNorm(W1 x)) + b2 + S x), over the last axis: [B, ..., C] -> [B, ...,
    units], float32 at least.

    S starts as a noisy identity, ones on its diagonal and U(+-0.01) beside it, where units >= C,
    and as W1 and W2 elsewhere. The LayerNorm bounds the scores, which have no temperature. Hjelm et
    al., arXiv 1808.06670, and the authors' code."""

    units: int
    dtype: Any = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        check_real(x=x)
        wide = jnp.promote_types(jnp.result_type(x), jnp.float32)
        torch, fan_in = initializers.kernel("torch"), x.shape[-1]
        y = nn.Dense(
            self.units, use_bias=False, dtype=self.dtype, kernel_init=torch, name="dense1"
        )(x)
        y = nn.relu(
            BatchNorm(
                axis_name=self.axis_name,
                dtype=self.dtype,
                unbiased_running_variance=True,
                name="norm",
            )(y, train=train)
        )
        y = nn.Dense(
            self.units,
            dtype=self.dtype,
            kernel_init=torch,
            bias_init=initializers.bias("torch", self.units),
            name="dense2",
        )(y)
        start = noisy_identity if self.units >= fan_in else torch
        y = y + nn.Dense(
            self.units, use_bias=False, dtype=self.dtype, kernel_init=start, name="shortcut"
        )(x)
        return LayerNorm(epsilon=1e-5, dtype=wide, name="layer_norm")(y)


def noisy_identity(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """A kernel [C, units] with ones on its diagonal and U(+-0.01) elsewhere."""
    return jnp.where(
        jnp.eye(shape[0], shape[1], dtype=bool),
        1,
        jax.random.uniform(key, shape, dtype, -0.01, 0.01),
    )
