"""CPC's context over a grid of patches: what is known of an image from its rows above."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cl_jax.core.shapes import check


class RowContext(nn.Module):
    """[B, H, W, D] encodings -> [B, H, W, D] contexts, float32 at least; row r sees rows up to r,
    in all their columns.

    Residual blocks of masked convolutions: 1x1, ReLU, 1x3 along the row, 2x1 over the row and the
    one above it, ReLU, 1x1 back to D; a ReLU after the last block. A context reaches `blocks` rows
    up and as many columns to either side. Henaff et al., arXiv 1905.09272, appendix; the PixelCNN
    of CPC v1 (arXiv 1807.03748) is not described further.

    blocks, width: 5 and 256 there.
    """

    blocks: int = 5
    width: int = 256
    dtype: Any = None

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        check("b h w d", z=z)
        wide = jnp.promote_types(jnp.result_type(z), jnp.float32)
        x = z if self.dtype is None else z.astype(self.dtype)
        for i in range(1, self.blocks + 1):
            y = nn.relu(nn.Conv(self.width, (1, 1), dtype=self.dtype, name=f"in{i}")(x))
            y = nn.Conv(self.width, (1, 3), dtype=self.dtype, name=f"row{i}")(y)
            y = nn.Conv(
                self.width, (2, 1), padding=((1, 0), (0, 0)), dtype=self.dtype, name=f"above{i}"
            )(y)
            x = x + nn.Conv(z.shape[-1], (1, 1), dtype=self.dtype, name=f"out{i}")(nn.relu(y))
        return nn.relu(x).astype(wide)
