"""A multi-layer perceptron over rows of numbers: the encoder of tables."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cl_jax.core.shapes import check_count, check_real
from cl_jax.encoders import initializers
from cl_jax.heads.mlp import MLP


class RowEncoder(nn.Module):
    """Rows [B, D] -> "h" [B, out_dim], float32 at least.

    Each hidden layer is dense, batch norm and ReLU; the last one is dense and maxout: each output
    is the largest of `maxout` units.

    Args:
      widths: of the hidden layers; may be empty.
      dtype: of the matrix products; parameters and statistics are float32 always.
      axis_name, splits: of every batch norm.

    Reference: Lee et al., i-Mix, ICLR 2021, whose encoder of tables is (2048, 2048, 4096, 4096) and
    2048 outputs of four units; maxout: Goodfellow et al., ICML 2013.
    """

    widths: tuple[int, ...] = (2048, 2048, 4096, 4096)
    out_dim: int = 2048
    maxout: int = 4
    kernel_init: str = "he_fan_out"
    dtype: Any = jnp.float32
    axis_name: str | None = None
    splits: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        check_real(x=x)
        if x.ndim != 2:
            raise ValueError(f"x has shape {x.shape}; expected rows [B, D].")
        units, _ = MLP(
            widths=(*self.widths, self.out_dim * self.maxout),
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            axis_name=self.axis_name,
            splits=self.splits,
            unbiased_running_variance=True,
            name="layers",
        )(x, train=train)
        return {"h": units.reshape(len(x), self.out_dim, self.maxout).max(-1)}


def make(
    *,
    widths: Sequence[int] = (2048, 2048, 4096, 4096),
    out_dim: int = 2048,
    maxout: int = 4,
    kernel_init: str = "he_fan_out",
    dtype: str | None = "float32",
    axis_name: str | None = None,
    splits: int = 1,
) -> RowEncoder:
    """A `RowEncoder` from a config section. maxout=1 leaves the last layer linear.

    Raises:
      ValueError: a count below 1, an unknown initialisation.
    """
    check_count(out_dim=out_dim, maxout=maxout)
    for width in widths:
        check_count(widths=width)
    initializers.kernel(kernel_init)  # refuses an unknown one
    return RowEncoder(
        widths=tuple(widths),
        out_dim=out_dim,
        maxout=maxout,
        kernel_init=kernel_init,
        dtype=None if dtype is None else jnp.dtype(dtype),
        axis_name=axis_name,
        splits=splits,
    )
