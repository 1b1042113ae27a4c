"""3x3 convolution in Winograd's form, for CPUs: F(2x2, 3x3) of Lavin and Gray, arXiv 1509.09308,
section 4.1.

A tile of 2x2 results sees 4x4 inputs. With d the tile of inputs and g the kernel,

    y = A' [ (G g G') * (B' d B) ] A
    (its equations 8 and 9; * by element, summed over input channels)

takes 16 products where the plain sum takes 36, and every product joins all tiles and channels, a
matrix product. The gradient of the kernel is the transpose, G' [ (B' d B)' (A dy A') ] G; that of
the input is the same convolution with the kernel rotated by 180 degrees, which moves the entries of
G g G' and changes none."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import axes_of, spread

_TURNED = (3, 1, 2, 0)  # row of G (rotated g) by row of G g
CACHE = 8 << 20  # bytes; 4 MiB for each of the two cores it was measured on
_Four = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def forward(
    x: jax.Array, kernel: jax.Array, pads: Sequence[tuple[int, int]], *, turned: bool = False
) -> jax.Array:
    """x [B, H, W, C] with kernel [3, 3, C, D], strides 1, pads ((top, bottom), (left, right)), to
    [B, h, w, D].

    `turned` takes the kernel [3, 3, D, C] of the opposite direction and rotates it by 180 degrees:
    the gradient of its input. Sums are float32 at least; with bfloat16 inputs what enters the
    products is rounded to bfloat16 once more than plainly."""
    wide, narrow = _dtypes(x.dtype)
    weights = _of_kernel(kernel.astype(wide))
    order = _TURNED if turned else range(4)
    multiply = partial(
        lax.dot_general,
        dimension_numbers=(((1,), (1 if turned else 0,)), ((), ())),
        preferred_element_type=wide,
    )
    sides = [n + before + after - 2 for n, (before, after) in zip(x.shape[1:3], pads)]

    def some(x):
        tiles = _of_input(_padded(x.astype(wide), pads, sides))
        shape = x.shape[0], *((side + 1) // 2 for side in sides)
        products = [
            [
                multiply(tile.astype(narrow), weights[i][j].astype(narrow))
                for tile, j in zip(row, order)
            ]
            for row, i in zip(tiles, order)
        ]
        return _to_output(products, shape).astype(x.dtype)

    y = lax.map(some, parts(x, *_sizes(x, kernel.shape[2 if turned else 3])))
    return y.reshape(x.shape[0], *y.shape[2:])[:, : sides[0], : sides[1]]


def kernel_gradient(x: jax.Array, dy: jax.Array, pads: Sequence[tuple[int, int]]) -> jax.Array:
    """The gradient [3, 3, C, D] of the kernel where that of the result is dy [B, h, w, D]."""
    wide, _ = _dtypes(x.dtype)
    contract = (((0,), (0,)), ((), ()))

    def some(sums, given):
        x, dy = (part.astype(wide) for part in given)
        tiles = _of_input(_padded(x, pads, sides))
        products = [
            [lax.dot_general(t, r, contract) for t, r in zip(*rows)]
            for rows in zip(tiles, _of_output(dy))
        ]
        return jax.tree.map(jnp.add, sums, products), None

    sides = dy.shape[1:3]
    dy = jnp.pad(dy, ((0, 0), (0, sides[0] % 2), (0, sides[1] % 2), (0, 0)))
    sizes = _sizes(x, dy.shape[3])
    zeros = spread(jnp.zeros((x.shape[3], dy.shape[3]), wide), axes_of(x))
    sums, _ = lax.scan(some, [[zeros] * 4] * 4, (parts(x, *sizes), parts(dy, *sizes)))
    return _to_kernel(sums).astype(x.dtype)


def _dtypes(dtype: Any) -> tuple[Any, Any]:
    """(of the transforms and sums, of what the products take)."""
    wide = jnp.promote_types(dtype, jnp.float32)
    return wide, dtype if dtype == jnp.bfloat16 else wide


def _padded(x: jax.Array, pads: Sequence[tuple[int, int]], sides: Sequence[int]) -> jax.Array:
    """x with its margin, and one row or column of zeros more where the result's side is odd."""
    return jnp.pad(
        x,
        (
            (0, 0),
            *((before, after + side % 2) for (before, after), side in zip(pads, sides)),
            (0, 0),
        ),
    )


def parts(x: jax.Array, image: int, weights: int = 0, cache: int = CACHE) -> jax.Array:
    """x [B, ...] as [n, B / n, ...]: parts whose intermediate values, `image` bytes an image, fit
    `cache` bytes.

    Half of the weights of the products fit a part too. The sizes are constants, so that the numbers
    do not depend on the machine's cores."""
    most = max(cache, weights // 2)
    images = x.shape[0]
    size = next(n for n in range(max(1, min(images, most // image)), 0, -1) if images % n == 0)
    return x.reshape(images // size, size, *x.shape[1:])


def _sizes(x: jax.Array, features: int) -> tuple[int, int]:
    """Bytes of the transformed tiles of one image of x, 16 numbers for every 4 of it, and of the
    transformed kernel."""
    channels = x.shape[3]
    return 64 * channels * -(-x.shape[1] // 2) * -(-x.shape[2] // 2), 64 * channels * features


# The transforms: G, B, A and their transposes, over the two spatial axes in turn
# ------------------------------------------


def _of_kernel(kernel: jax.Array) -> list[_Four]:
    """G g G' of [3, 3, C, D]: 4 x 4 matrices [C, D]."""

    def g(a, b, c):
        return a, (a + b + c) / 2, (a - b + c) / 2, c

    return [g(*row) for row in g(*kernel)]


def _to_kernel(sums: Sequence[Sequence[jax.Array]]) -> jax.Array:
    """G' s G of 4 x 4 matrices [C, D]: [3, 3, C, D]."""

    def g(a, b, c, d):
        return jnp.stack([a + (b + c) / 2, (b - c) / 2, (b + c) / 2 + d])

    return g(*(g(*row) for row in zip(*sums))).swapaxes(0, 1)


def _of_input(x: jax.Array) -> list[_Four]:
    """B' d B of every 4 x 4 tile of [B, H, W, C], two apart: 4 x 4 matrices [tiles, C]."""

    def b(x, axis):
        x = x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
        near, far = (
            lax.slice_in_dim(x, start, x.shape[axis] - 1 + start, axis=axis) for start in (0, 1)
        )
        p, q, r, s = (
            lax.index_in_dim(pairs, i, axis + 1, keepdims=False)
            for pairs in (near, far)
            for i in (0, 1)
        )
        return p - r, q + r, r - q, q - s

    return [tuple(t.reshape(-1, x.shape[-1]) for t in b(row, 2)) for row in b(x, 1)]


def _to_output(products: Sequence[Sequence[jax.Array]], shape: tuple[int, int, int]) -> jax.Array:
    """A' m A of 4 x 4 matrices [tiles, D]: 2 x 2 results of every tile, as [B, H, W, D]; shape is
    (B, H / 2, W / 2)."""

    def a(p, q, r, s):
        return p + q + r, q - r - s

    columns = [a(*column) for column in zip(*products)]  # [of 4 columns][of 2 rows]
    rows = [jnp.stack([y.reshape(*shape, -1) for y in a(*row)], 3) for row in zip(*columns)]
    images, height, width = shape
    return jnp.stack(rows, 2).reshape(images, 2 * height, 2 * width, -1)


def _of_output(dy: jax.Array) -> list[_Four]:
    """A dy A' of every 2 x 2 tile of [B, H, W, D]: 4 x 4 matrices [tiles, D]."""

    def a(p, q):
        return p, p + q, p - q, -q

    images, height, width, channels = dy.shape
    tiles = dy.reshape(images, height // 2, 2, width // 2, 2, channels)
    return [
        tuple(t.reshape(-1, channels) for t in a(row[..., 0, :], row[..., 1, :]))
        for row in a(tiles[:, :, 0], tiles[:, :, 1])
    ]
