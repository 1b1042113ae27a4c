"""Convolution, with other programs where XLA's own is slow: maps no larger than the kernel, and 3x3
kernels on a CPU."""

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import custom_derivatives, lax

from cl_jax.core.axis import axes_of, is_divided, spread, varying
from cl_jax.core.linear import linear
from cl_jax.core.schedule import not_before
from cl_jax.encoders import row_windows, winograd

LARGEST = 4  # side of the input map up to which products by tap are the cheaper program
# From where a CPU gains by forms of its own: channels, since cores share a product and not what is
# done to its arguments, and multiplications for a tap of an image, with fewer of which they only
# take longer to compile. Constants for the two cores of benchmarks/README.md: if they followed the
# machine's cores, so would the last bits of a run.
WINOGRAD = 32, 1 << 16
LARGE = 64, 1 << 18  # gradients of other kernels, tap by tap
WINDOWS = 24, 8  # channels up to which, and sides from which on, rows are taken by windows
Pads = tuple[tuple[int, int], tuple[int, int]]
Shaped = jax.Array | jax.ShapeDtypeStruct
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

    Where the result has no more rows and columns than the kernel (the 2 x 2 maps at the end of a
    ResNet at 16 pixels), the convolution is written as a sum of one product per tap: the same sums
    in another order. XLA's CPU convolution uses its slowest loop at 2 x 2, 24 times slower
    with 128 channels (`benchmarks/layers.py`).

    Other programs depend on the platform they are lowered for. On a CPU 3x3 kernels of stride 1 are
    in Winograd's form (winograd.py) or, of few channels, products of windows of a row
    (row_windows.py), and gradients of other large kernels are sums of one product per tap.
    Elsewhere, and with `for_cpu=False`, all is XLA's own, as are tangents (`jax.jvp`) everywhere.
    """
    sides, size = x.shape[1:3], kernel.shape[:2]
    pads = (
        lax.padtype_to_pads(sides, size, strides, padding) if isinstance(padding, str) else padding
    )
    out = [
        (n + before + after - k) // s + 1
        for n, k, s, (before, after) in zip(sides, size, strides, pads)
    ]
    chosen = any(settings.get(name) is not None for name in ("precision", "preferred_element_type"))
    # An empty result, and what asks for more than the forms below know, is left to lax.
    plain = (
        all(
            settings.get(name) in (None, 1, (1, 1), [1, 1])
            for name in ("lhs_dilation", "rhs_dilation", "feature_group_count", "batch_group_count")
        )
        and min(out) > 0
        # Of a kernel that is divided over Explicit axes of a mesh lax needs an out_sharding.
        and not is_divided(kernel)
        and settings.get("out_sharding") is None
    )
    if plain and max(sides) <= LARGEST and 1 < min(size) and max(out) <= min(size):
        y = _by_taps(x, kernel, strides, pads, out, settings.get("precision"))
        return y.astype(settings.get("preferred_element_type") or jnp.result_type(x, kernel))
    # A program exported for any batch size has no parts to count, nor has an empty batch; images
    # that are divided are not cut.
    cut = isinstance(x.shape[0], int) and x.shape[0] > 0 and not is_divided(x)
    plain = (
        plain
        and cut
        and not chosen
        and all(0 <= pad < k for k, both in zip(size, pads) for pad in both)
    )
    if for_cpu and plain:
        return _by_platform(*varying((x, kernel)), tuple(strides), tuple(map(tuple, pads)))
    return lax.conv_general_dilated(x, kernel, strides, padding, **settings)


# Maps no larger than the kernel
# --------------------------------------


def _by_taps(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    pads: Sequence[tuple[int, int]],
    out: Sequence[int],
    precision: Any,
) -> jax.Array:
    """The sum over a kernel's taps of the inputs that each meets times its matrix [C, D].

    A tap joins a rectangle of inputs with one of results, and nothing is multiplied by the margin:
    of a 2 x 2 map 16 products of a position where the plain sum has 36."""
    wide = jnp.promote_types(jnp.result_type(x, kernel), jnp.float32)
    rows, columns = (
        [_met(n, o, s, before, tap) for tap in range(k)]
        for n, o, s, (before, _), k in zip(x.shape[1:3], out, strides, pads, kernel.shape)
    )
    y = jnp.zeros((x.shape[0], *out, kernel.shape[3]), wide)
    # Split and not indexed: the gradients of the taps are then concatenated once, where each would
    # be padded to the whole kernel and added.
    taps = [
        lax.split(row, [1] * kernel.shape[1], axis=1)
        for row in lax.split(kernel, [1] * kernel.shape[0], axis=0)
    ]
    for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
        if row is None or column is None:
            continue
        product = lax.dot_general(
            x[:, row.inputs, column.inputs],
            taps[i][j].reshape(kernel.shape[2:]),
            (((3,), (0,)), ((), ())),
            precision=precision,
            preferred_element_type=wide,
        )
        y = y + jnp.pad(product, ((0, 0), row.margin, column.margin, (0, 0)))
    return y


class _Met(NamedTuple):
    """The inputs that one tap meets along an axis, and how many results come before and after."""

    inputs: slice
    margin: tuple[int, int]


def _met(size: int, out: int, stride: int, before: int, tap: int) -> _Met | None:
    """Of an axis of `size` inputs and `out` results; None for a tap that meets no input."""
    met = [place for place in range(out) if 0 <= stride * place + tap - before < size]
    if not met:
        return None
    first, last = met[0], met[-1]
    start, stop = stride * first + tap - before, stride * last + tap - before + 1
    return _Met(slice(start, stop, stride), (first, out - 1 - last))


# Many channels, by platform
# --------------------------------------


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _by_platform(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads
) -> jax.Array:
    plain = partial(_plain, strides=strides, pads=pads)
    on_cpu = plain
    if _by_winograd(x, kernel, strides):
        on_cpu = partial(winograd.forward, pads=pads)
    elif _by_windows(x, kernel, strides):
        on_cpu = partial(row_windows.forward, pads=pads)
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=plain)


class _Layer(NamedTuple):
    """Shapes, strides and padding of one convolution."""

    x: jax.ShapeDtypeStruct
    kernel: jax.ShapeDtypeStruct
    strides: tuple[int, int]
    pads: Pads


def _by_platform_jvp(
    strides: tuple[int, int], pads: Pads, primals: Any, tangents: Any
) -> tuple[jax.Array, jax.Array]:
    x, kernel = primals
    y, axes = _by_platform(x, kernel, strides, pads), axes_of(x)
    # Images do not move, nor do frozen kernels: no gradient of them is computed, nor counted by a
    # plan, and what only that would read is not kept.
    dx, d_kernel = (
        None if isinstance(one, custom_derivatives.SymbolicZero) else spread(one, axes)
        for one in tangents
    )
    if dx is None and d_kernel is None:
        return y, spread(jnp.zeros(y.shape, y.dtype), axes)
    shapes = [jax.ShapeDtypeStruct(one.shape, one.dtype) for one in primals]
    layer = _Layer(shapes[0], shapes[1], strides, pads)
    residuals = None if d_kernel is None else x, None if dx is None else kernel
    return y, linear(
        partial(_tangent, layer), partial(_gradients, layer), residuals, (dx, d_kernel)
    )


_by_platform.defjvp(_by_platform_jvp, symbolic_zeros=True)


def _tangent(layer: _Layer, residuals: Any, moved: Any) -> jax.Array:
    """The sum of both products, by XLA's own convolution. As in `_gradients`, x is None where the
    kernel does not move, the kernel where x does not."""
    (x, kernel), (dx, d_kernel) = residuals, moved
    plain = partial(_plain, strides=layer.strides, pads=layer.pads)
    if dx is None:
        return plain(x, d_kernel)
    return plain(dx, kernel) if d_kernel is None else plain(dx, kernel) + plain(x, d_kernel)


def _gradients(
    layer: _Layer, residuals: Any, dy: jax.Array
) -> tuple[jax.Array | None, jax.Array | None]:
    """(of x, of the kernel). That of x waits for the other on a CPU."""
    strides, pads = layer.strides, layer.pads
    winograds = _by_winograd(layer.x, layer.kernel, strides)
    windows = _by_windows(layer.x, layer.kernel, strides)

    def like(one):  # only shape and dtype are used
        return spread(jnp.zeros(one.shape, one.dtype), axes_of(dy))

    def of_x(kernel, dy):
        plain = partial(_plain, kernel=kernel, strides=strides, pads=pads)
        return jax.linear_transpose(plain, like(layer.x))(dy)[0]

    def of_kernel(x, dy):
        plain = partial(_plain, x, strides=strides, pads=pads)
        return jax.linear_transpose(plain, like(layer.kernel))(dy)[0]

    def of_kernel_on_cpu(x, dy):
        x, size = not_before(x, dy), layer.kernel.shape[:2]
        if winograds:
            return winograd.kernel_gradient(x, dy, pads)
        if windows:
            return row_windows.kernel_gradient(x, dy, pads)
        if size == (1, 1) or _enough(x, layer.kernel, LARGE):
            return _kernel_gradient(x, dy, size, strides, pads)
        return of_kernel(x, dy)

    def of_x_on_cpu(kernel, dy, *known):
        back = tuple((2 - before, 2 - after) for before, after in pads)
        if not (winograds or windows):
            return of_x(kernel, dy)
        for one in known:
            dy = not_before(dy, one)
        if winograds:
            return winograd.forward(dy, kernel, back, turned=True)
        return row_windows.forward(dy, row_windows.turned(kernel), back)

    x, kernel = residuals
    d_x, d_kernel = None, None
    known: tuple[jax.Array, ...] = ()
    if x is not None:
        d_kernel = lax.platform_dependent(x, dy, cpu=of_kernel_on_cpu, default=of_kernel)
        known = (d_kernel,)
    if kernel is not None:
        d_x = lax.platform_dependent(
            kernel, dy, *known, cpu=of_x_on_cpu, default=lambda kernel, dy, *_: of_x(kernel, dy)
        )
    return d_x, d_kernel


def _enough(x: Shaped, kernel: Shaped, least: tuple[int, int]) -> bool:
    """Whether there are as many channels and as many multiplications for a tap of an image."""
    channels = kernel.shape[2:]
    return min(channels) >= least[0] and math.prod((*x.shape[1:3], *channels)) >= least[1]


def _three_by_three(kernel: Shaped, strides: Sequence[int]) -> bool:
    """Whether a kernel is 3x3, of stride 1."""
    return kernel.shape[:2] == (3, 3) and tuple(strides) == (1, 1)


def _by_winograd(x: Shaped, kernel: Shaped, strides: Sequence[int]) -> bool:
    return _three_by_three(kernel, strides) and _enough(x, kernel, WINOGRAD)


def _by_windows(x: Shaped, kernel: Shaped, strides: Sequence[int]) -> bool:
    few = max(kernel.shape[2:]) <= WINDOWS[0] and min(x.shape[1:3]) >= WINDOWS[1]
    return _three_by_three(kernel, strides) and few


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
