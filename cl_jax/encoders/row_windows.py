"""3x3 convolution of few channels, for CPUs: one product of the windows of three neighbours in a
row with all three rows of the kernel, whose results are added a row apart. A strided kernel of
images takes whole patches.

With r[i, j] the three pixels j-1, j, j+1 of row i, 3 C numbers, and k[a] the row a of the kernel as
a matrix [3 C, D],

    z[i, j, a] = r[i, j] k[a],    y[i, j] = z[i, j, 0] + z[i + 1, j, 1] + z[i + 2, j, 2]

A product by [3 C, 3 D] keeps a processor busy where one by [C, D], of 16 channels, waits for
memory. The gradient of the kernel is the product of the windows with dy of three rows, [3 C, 3 D];
that of the input is the same convolution with the kernel rotated by 180 degrees. Images are taken
in parts, so that windows stay in a processor's cache."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import axes_of, spread
from cl_jax.encoders import winograd

CACHE = 1 << 19  # bytes of the windows of a part


def forward(x: jax.Array, kernel: jax.Array, pads: Sequence[tuple[int, int]]) -> jax.Array:
    """x [B, H, W, C] with kernel [3, 3, C, D], strides 1, pads ((top, bottom), (left, right)), to
    [B, h, w, D]. Sums are float32 at least."""
    channels, features = kernel.shape[2:]
    rows = kernel.reshape(3, 3 * channels, features).swapaxes(0, 1).reshape(3 * channels, -1)
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def some(x):
        windows = _windows(x, pads)
        z = lax.dot_general(
            windows, rows, (((3,), (0,)), ((), ())), preferred_element_type=wide
        ).reshape(*windows.shape[:3], 3, features)
        height = windows.shape[1] - 2
        return sum(z[:, i : i + height, :, i] for i in range(3)).astype(x.dtype)

    y = lax.map(some, _parts(x, x))
    return y.reshape(x.shape[0], *y.shape[2:])


def strided(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], pads: Sequence[tuple[int, int]]
) -> jax.Array:
    """x [B, H, W, C] with kernel [k, l, C, D] to [B, h, w, D], for the stem of an ImageNet network:
    one product of patches, each k windows of l C numbers. Sums are float32 at least."""
    (tall, wide), features = kernel.shape[:2], kernel.shape[3]
    height, width = (
        (side + sum(both) - k) // stride + 1
        for side, k, stride, both in zip(x.shape[1:3], kernel.shape[:2], strides, pads)
    )

    def some(x):
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        windows = jnp.concatenate([x[:, :, j :: strides[1]][:, :, :width] for j in range(wide)], 3)
        patches = jnp.concatenate([windows[:, i :: strides[0]][:, :height] for i in range(tall)], 3)
        return lax.dot_general(
            patches,
            kernel.reshape(-1, features),
            (((3,), (0,)), ((), ())),
            preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
        ).astype(x.dtype)

    image = 4 * height * width * math.prod(kernel.shape[:3])
    y = lax.map(some, winograd.parts(x, image, cache=CACHE))
    return y.reshape(x.shape[0], *y.shape[2:])


def turned(kernel: jax.Array) -> jax.Array:
    """The kernel [3, 3, D, C] of the gradient of the input."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


def kernel_gradient(x: jax.Array, dy: jax.Array, pads: Sequence[tuple[int, int]]) -> jax.Array:
    """The gradient [3, 3, C, D] of the kernel where that of the result is dy [B, h, w, D]."""
    channels, features = x.shape[3], dy.shape[3]
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def some(total, given):
        x, dy = given
        windows = _windows(x, pads)
        height = windows.shape[1]
        dy = jnp.pad(dy, ((0, 0), (2, 2), (0, 0), (0, 0)))
        three = jnp.concatenate([dy[:, 2 - i : 2 - i + height] for i in range(3)], 3)
        product = lax.dot_general(
            windows.reshape(-1, 3 * channels),
            three.reshape(-1, 3 * features),
            (((0,), (0,)), ((), ())),
            preferred_element_type=wide,
        )
        return total + product, None

    zeros = spread(jnp.zeros((3 * channels, 3 * features), wide), axes_of(x))
    total, _ = lax.scan(some, zeros, (_parts(x, x), _parts(dy, x)))
    # [pixel of the row, C, row, D]
    return total.reshape(3, channels, 3, features).transpose(2, 0, 1, 3).astype(x.dtype)


def _windows(x: jax.Array, pads: Sequence[tuple[int, int]]) -> jax.Array:
    """[B, H, W, C] padded, each pixel with its two neighbours to the right: [B, H', w, 3 C]."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    width = x.shape[2] - 2
    return jnp.concatenate([x[:, :, j : j + width] for j in range(3)], 3)


def _parts(x: jax.Array, like: jax.Array) -> jax.Array:
    """x [B, ...] as [n, B / n, ...], so that the windows of a part of `like` fit the cache."""
    _, height, width, channels = like.shape
    return winograd.parts(x, 12 * (height + 2) * width * channels, cache=CACHE)
