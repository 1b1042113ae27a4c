"""MAE's decoder: hidden patches return as one learned token, and a few blocks predict pixels."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cl_jax.core.shapes import check
from cl_jax.encoders import masking, positions
from cl_jax.encoders.layer_norm import LayerNorm
from cl_jax.encoders.vit import Block


class Decoder(nn.Module):
    """`__call__(tokens [B, 1 + K, D], restore [B, L], grid=(rows, columns)) -> [B, L, outputs]`:
    the class token and the kept patches of a ViT, their places (`masking.random_masking`), and the
    patches of the image; float32 at least.

    He et al., arXiv 2111.06377. Fixed sine-cosine positions, Xavier's uniform weights, a class
    token that takes part and is left out at the end.

    Args:
      outputs: predicted values of a patch: patch * patch * channels.
      width, depth, heads: of the blocks; published: 512, 8, 16.
      dtype: of the matrix products.
    """

    outputs: int
    width: int = 512
    depth: int = 8
    heads: int = 16
    dtype: Any = None

    @nn.compact
    def __call__(
        self, tokens: jax.Array, restore: jax.Array, *, grid: tuple[int, int]
    ) -> jax.Array:
        check("b t d", tokens=tokens)
        kernel = nn.initializers.xavier_uniform()
        wide = jnp.promote_types(jnp.result_type(tokens), jnp.float32)
        x = nn.Dense(self.width, dtype=self.dtype, kernel_init=kernel, name="embed")(tokens)
        token = jnp.asarray(self.param("mask_token", nn.initializers.normal(0.02), (self.width,)))
        x = jnp.concatenate([x[:, :1], masking.fill(x[:, 1:], token, restore)], axis=1)
        table = positions.sincos_2d(*grid, self.width, order="mae")
        x = x.astype(wide) + jnp.broadcast_to(table, x.shape).astype(wide)
        for i in range(self.depth):
            x, _ = Block(
                self.width, self.heads, 4.0, kernel, kernel, False, self.dtype, name=f"block{i + 1}"
            )(x, None, False)
        x = LayerNorm(epsilon=1e-6, dtype=wide, name="norm")(x)
        x = nn.Dense(self.outputs, dtype=self.dtype, kernel_init=kernel, name="pixels")(x)
        return x[:, 1:].astype(wide)
