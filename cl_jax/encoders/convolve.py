"""Convolution, with another program for maps that are smaller than the kernel."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

LARGEST = 4  # side of the input map up to which the product is the cheaper program


def convolve(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Any, **settings: Any) -> jax.Array:
    """`lax.conv_general_dilated` of x [B, H, W, C] and kernel [h, w, C, D], for flax's `nn.Conv(conv_general_dilated=...)`.

    Where the result has fewer rows and columns than the kernel (the 2 x 2 maps at the end of a ResNet at 16 pixels), every
    output sees nearly every input, and the convolution is written as one product with the kernel spread out: the same
    sums in another order. XLA's CPU convolution falls to its slowest loop there, 45 times slower, forward and backward.
    """
    sides, size = x.shape[1:3], kernel.shape[:2]
    pads = lax.padtype_to_pads(sides, size, strides, padding) if isinstance(padding, str) else padding
    out = [(n + before + after - k) // s + 1 for n, k, s, (before, after) in zip(sides, size, strides, pads)]
    plain = all(settings.get(name) in (None, 1, (1, 1), [1, 1]) for name in ("lhs_dilation", "rhs_dilation",
                                                                              "feature_group_count"))
    if not plain or max(sides) > LARGEST or max(out) >= min(size):
        return lax.conv_general_dilated(x, kernel, strides, padding, **settings)
    rows, columns = (np.arange(n)[:, None] - s * np.arange(o) + before
                     for n, o, s, (before, _) in zip(sides, out, strides, pads))  # the tap that joins input to output
    hit_rows, hit_columns = (jnp.asarray(taps[..., None] == np.arange(k), kernel.dtype)
                             for taps, k in zip((rows, columns), size))
    spread = jnp.einsum("hpk,wql,klcd->hwcpqd", hit_rows, hit_columns, kernel, precision=lax.Precision.HIGHEST)
    return jnp.einsum("bhwc,hwcpqd->bpqd", x, spread, precision=settings.get("precision"))
