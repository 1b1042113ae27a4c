"""A gated recurrent network over a sequence: CPC's context."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cl_jax.core.shapes import check_real


class Gru(nn.Module):
    """Sequences [B, T, D] -> "sequence" [B, T, width], at each time a summary of all up to it, and
    "h" [B, width], its mean over time; float32 at least.

    One layer, from a state of zeros. 256 wide in CPC on audio, 2400 on text.
    """

    width: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        check_real(x=x)
        if x.ndim != 3:
            raise ValueError(f"x has shape {x.shape}; expected sequences [B, T, D].")
        c = jnp.asarray(nn.RNN(nn.GRUCell(self.width, dtype=self.dtype), name="gru")(x))
        c = c.astype(jnp.promote_types(c.dtype, jnp.float32))
        return {"sequence": c, "h": c.mean(1)}


def make(*, width: int = 256, dtype: str | None = "float32", axis_name: str | None = None) -> Gru:
    """A `Gru` from a config section. `axis_name` is not used: nothing here looks across examples.

    Raises:
      ValueError: a width below 1.
    """
    if width < 1:
        raise ValueError(f"width={width}; expected at least 1.")
    return Gru(width=width, dtype=None if dtype is None else jnp.dtype(dtype))
