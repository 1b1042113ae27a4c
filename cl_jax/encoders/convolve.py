"""Convolution, with other programs where XLA's own is slow: maps smaller than the kernel, and 3x3 kernels on a CPU."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cl_jax.encoders import winograd
from cl_jax.losses._axis import varying

LARGEST = 4  # side of the input map up to which the product is the cheaper program
FEWEST = 64  # channels from which Winograd's form is the cheaper program on a CPU
NUMBERS = lax.conv_dimension_numbers((1, 1, 1, 1), (1, 1, 1, 1), ("NHWC", "HWIO", "NHWC"))


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
    if plain and max(sides) <= LARGEST and max(out) < min(size):
        return _spread(x, kernel, strides, pads, sides, out, settings.get("precision"))
    if plain and size == (3, 3) and tuple(strides) == (1, 1) and min(kernel.shape[2:]) >= FEWEST:
        return _three(*varying((x, kernel)), tuple(map(tuple, pads)))
    return lax.conv_general_dilated(x, kernel, strides, padding, **settings)


# Maps smaller than the kernel ---------------------------------------------------------------------------------------------


def _spread(x: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Sequence[tuple[int, int]],
            sides: Sequence[int], out: Sequence[int], precision: Any) -> jax.Array:
    size = kernel.shape[:2]
    rows, columns = (np.arange(n)[:, None] - s * np.arange(o) + before
                     for n, o, s, (before, _) in zip(sides, out, strides, pads))  # the tap that joins input to output
    hit_rows, hit_columns = (jnp.asarray(taps[..., None] == np.arange(k), kernel.dtype)
                             for taps, k in zip((rows, columns), size))
    spread = jnp.einsum("hpk,wql,klcd->hwcpqd", hit_rows, hit_columns, kernel, precision=lax.Precision.HIGHEST)
    return jnp.einsum("bhwc,hwcpqd->bpqd", x, spread, precision=precision)


# 3x3 kernels, by platform -------------------------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _three(x: jax.Array, kernel: jax.Array, pads: tuple[tuple[int, int], ...]) -> jax.Array:
    return lax.platform_dependent(x, kernel, cpu=partial(winograd.forward, pads=pads), default=_plain(pads))


def _three_forward(x, kernel, pads):
    return _three(x, kernel, pads), (x, kernel)


def _three_backward(pads, saved, dy):
    def of_cpu(x, kernel, dy):
        back = tuple((2 - before, 2 - after) for before, after in pads)
        return winograd.forward(dy, kernel, back, turned=True), winograd.kernel_gradient(x, dy, pads)

    def of_others(x, kernel, dy):
        return jax.vjp(_plain(pads), x, kernel)[1](dy)

    return lax.platform_dependent(*saved, dy, cpu=of_cpu, default=of_others)


_three.defvjp(_three_forward, _three_backward)


def _plain(pads):
    return lambda x, kernel: lax.conv_general_dilated(x, kernel, (1, 1), pads, dimension_numbers=NUMBERS)
