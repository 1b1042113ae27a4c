"""An encoder for trying a benchmark in the time of one dense layer."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class Linear(nn.Module):
    """Images [B, H, W, C] -> "h" [B, 4], of their mean colours."""

    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        return {"h": nn.Dense(4, dtype=self.dtype)(x.mean((1, 2)))}


def make(**settings: Any) -> Linear:
    return Linear(**settings)
