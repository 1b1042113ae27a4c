"""Convolution, with other programs where XLA's own is slow: maps smaller than the kernel, and 3x3
kernels on a CPU."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cl_jax.core.axis import axes_of, spread, varying
from cl_jax.encoders import winograd

LARGEST = 4  # side of the input map up to which the product is the cheaper program
# From where a CPU gains by forms of its own: channels, since cores share a product and not what is
# done to its arguments, and multiplications for a tap of an image, with fewer of which they only
# take longer to compile. Constants for the two cores of benchmarks/README.md: if they followed the
# machine's cores, so would the last bits of a run.
FEWEST, LEAST = 64, 1 << 18
Pads = tuple[tuple[int, int], tuple[int, int]]
NUMBERS = lax.conv_dimension_numbers((1, 1, 1, 1), (1, 1, 1, 1), ("NHWC", "HWIO", "NHWC"))


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    padding: Any,
    *,
    for_cpu: bool = True,
    **settings: Any,
) -> jax.Array:
    """`lax.conv_general_dilated` of x [B, H, W, C] and kernel [h, w, C, D], for flax's
    `nn.Conv(conv_general_dilated=...)`.

    Where the result has fewer rows and columns than the kernel (the 2 x 2 maps at the end of a
    ResNet at 16 pixels), every output sees nearly every input, and the convolution is written as
    one product with the kernel spread out: the same sums in another order. XLA's CPU convolution
      falls to its slowest loop there, 45 times slower, forward and backward.

    Where there is enough to compute, the program depends on the platform it is lowered for. On a
    CPU 3x3 kernels of stride 1 are in Winograd's form (winograd.py) and other kernels' gradients
    are sums of one product per tap; elsewhere, and with `for_cpu=False`, all is XLA's own.
    """
    sides, size = x.shape[1:3], kernel.shape[:2]
    pads = (
        lax.padtype_to_pads(sides, size, strides, padding) if isinstance(padding, str) else padding
    )
    out = [
        (n + before + after - k) // s + 1
        for n, k, s, (before, after) in zip(sides, size, strides, pads)
    ]
    plain = all(
        settings.get(name) in (None, 1, (1, 1), [1, 1])
        for name in ("lhs_dilation", "rhs_dilation", "feature_group_count")
    )
    if plain and max(sides) <= LARGEST and max(out) < min(size):
        return _as_product(x, kernel, strides, pads, sides, out, settings.get("precision"))
    told = any(settings.get(name) is not None for name in ("precision", "preferred_element_type"))
    known = isinstance(
        x.shape[0], int
    )  # a program exported for any batch size has no parts to count
    plain = (
        plain
        and known
        and not told
        and all(0 <= pad < k for k, both in zip(size, pads) for pad in both)
    )
    large = min(kernel.shape[2:]) >= FEWEST and math.prod((*sides, *kernel.shape[2:])) >= LEAST
    if for_cpu and plain and large:
        return _by_platform(*varying((x, kernel)), tuple(strides), tuple(map(tuple, pads)))
    return lax.conv_general_dilated(x, kernel, strides, padding, **settings)


# Maps smaller than the kernel
# --------------------------------------


def _as_product(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    pads: Sequence[tuple[int, int]],
    sides: Sequence[int],
    out: Sequence[int],
    precision: Any,
) -> jax.Array:
    size = kernel.shape[:2]
    rows, columns = (
        np.arange(n)[:, None] - s * np.arange(o) + before
        for n, o, s, (before, _) in zip(sides, out, strides, pads)
    )  # the tap that joins input to output
    hit_rows, hit_columns = (
        jnp.asarray(taps[..., None] == np.arange(k), kernel.dtype)
        for taps, k in zip((rows, columns), size)
    )
    joined = jnp.einsum(
        "hpk,wql,klcd->hwcpqd", hit_rows, hit_columns, kernel, precision=lax.Precision.HIGHEST
    )
    return jnp.einsum("bhwc,hwcpqd->bpqd", x, joined, precision=precision)


# Many channels, by platform
# --------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _by_platform(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads
) -> jax.Array:
    plain = partial(_plain, strides=strides, pads=pads)
    on_cpu = partial(winograd.forward, pads=pads) if _winograd(kernel, strides) else plain
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=plain)


def _forward(x, kernel, strides, pads):
    return _by_platform(x, kernel, strides, pads), (x, kernel)


def _backward(strides, pads, saved, dy):
    def of_x(x, kernel, dy):
        return jax.linear_transpose(lambda x: _plain(x, kernel, strides=strides, pads=pads), x)(dy)[
            0
        ]

    def of_kernel(x, kernel, dy):
        return jax.linear_transpose(
            lambda kernel: _plain(x, kernel, strides=strides, pads=pads), kernel
        )(dy)[0]

    def on_cpu(x, kernel, dy):
        if not _winograd(kernel, strides):
            return of_x(x, kernel, dy), _kernel_gradient(x, dy, kernel.shape[:2], strides, pads)
        back = tuple((2 - before, 2 - after) for before, after in pads)
        return winograd.forward(dy, kernel, back, turned=True), winograd.kernel_gradient(
            x, dy, pads
        )

    def elsewhere(x, kernel, dy):
        return of_x(x, kernel, dy), of_kernel(x, kernel, dy)

    return lax.platform_dependent(*saved, dy, cpu=on_cpu, default=elsewhere)


_by_platform.defvjp(_forward, _backward)


def _winograd(kernel: jax.Array, strides: tuple[int, int]) -> bool:
    return kernel.shape[:2] == (3, 3) and strides == (1, 1)


def _plain(x: jax.Array, kernel: jax.Array, *, strides: tuple[int, int], pads: Pads) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=NUMBERS)


def _kernel_gradient(
    x: jax.Array, dy: jax.Array, size: Sequence[int], strides: tuple[int, int], pads: Pads
) -> jax.Array:
    """The kernel's gradient [h, w, C, D], tap by tap: the inputs that a tap saw, times dy [B, H, W,
    D].

    XLA writes it as a convolution over the images instead, for which it moves the images to the
    last axis."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    (height, width), (channels, features) = dy.shape[1:3], (x.shape[3], dy.shape[3])
    last = strides[0] * (height - 1) + 1, strides[1] * (width - 1) + 1

    def some(sums, given):
        x, dy = (part.astype(wide) for part in given)
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        seen = [
            x[:, i : i + last[0] : strides[0], j : j + last[1] : strides[1]].reshape(-1, channels)
            for i in range(size[0])
            for j in range(size[1])
        ]
        return [s + tap.T @ dy.reshape(-1, features) for s, tap in zip(sums, seen)], None

    zeros = spread(jnp.zeros((channels, features), wide), axes_of(x))
    image = 4 * height * width * channels * size[0] * size[1]
    sums, _ = lax.scan(
        some, [zeros] * (size[0] * size[1]), (winograd.parts(x, image), winograd.parts(dy, image))
    )
    return jnp.stack(sums).reshape(*size, channels, features).astype(x.dtype)
