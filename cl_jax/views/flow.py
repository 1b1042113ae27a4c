"""Optical flow between two pictures: Lucas and Kanade's method at every pixel, from coarse to
fine."""

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

LUMA = (0.299, 0.587, 0.114)


def lucas_kanade(
    a: jax.Array,
    b: jax.Array,
    *,
    levels: int = 3,
    warps: int = 2,
    radius: float = 2.0,
    ridge: float = 1e-3,
) -> jax.Array:
    """Where each pixel of one picture is in the next: float32 [2, H, W], (x, y) in pixels, with
    a(y, x) = b(y + flow_y, x + flow_x).

    At each pixel the flow is the least-squares solution of  b_x u + b_y v = a - b  over a Gaussian
    window, starting from the flow of pictures of half the size, after which b is warped by what was
    found and the rest is solved for. Where a window has no texture the flow stays that of the
    coarser level, 0 at the coarsest.

    Args:
      a, b: [H, W] grey pictures, floats in [0, 1].
      levels: pictures of the pyramid; a movement of about 2^levels pixels is found. A picture below
        8 pixels is not halved further.
      warps: solutions at each level.
      radius: standard deviation of the window, in pixels.
      ridge: added to the window's mean square of each derivative, below which it counts as flat.

    Raises:
      ValueError: pictures of other shapes, no level, no warp.

    Reference: Lucas and Kanade, IJCAI 1981; coarse to fine as in Bergen et al., ECCV 1992.
    """
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"a has shape {a.shape}, b {b.shape}; expected two pictures [H, W].")
    if levels < 1 or warps < 1:
        raise ValueError(f"levels={levels}, warps={warps}; expected at least 1 of each.")
    pyramid = [(a.astype(jnp.float32), b.astype(jnp.float32))]
    while len(pyramid) < levels and min(pyramid[-1][0].shape) >= 16:
        pyramid.append((_halved(pyramid[-1][0]), _halved(pyramid[-1][1])))
    flow = jnp.zeros((2, *pyramid[-1][0].shape), jnp.float32)
    for here, there in reversed(pyramid):
        height, width = here.shape
        if flow.shape[1:] != here.shape:
            scale = jnp.array([width / flow.shape[2], height / flow.shape[1]], jnp.float32)
            flow = jax.image.resize(flow, (2, height, width), "linear") * scale[:, None, None]
        window = _window(height, radius), _window(width, radius)
        for _ in range(warps):
            flow = flow + _correction(here, _warped(there, flow), window, ridge)
    return flow


def grey(clip: jax.Array) -> jax.Array:
    """[..., H, W, C] -> [..., H, W]: luma of three channels, the mean of any others."""
    if clip.shape[-1] == 3:
        weights = jnp.array(LUMA, clip.dtype)
        return jnp.einsum("...c,c->...", clip, weights, precision=jax.lax.Precision.HIGHEST)
    return clip.mean(-1)


def _correction(
    a: jax.Array, b: jax.Array, window: tuple[jax.Array, jax.Array], ridge: float
) -> jax.Array:
    """What is to be added to the flow by which `b` was warped."""
    mean = (a + b) / 2
    y, x = (_derivative(mean, axis) for axis in (0, 1))
    rest = a - b
    products = jnp.stack([x * x, x * y, y * y, x * rest, y * rest])
    exact = jax.lax.Precision.HIGHEST
    rows, columns = window
    summed = jnp.einsum("ih,phw,jw->pij", rows, products, columns, precision=exact)
    xx, xy, yy, xr, yr = summed
    xx, yy = xx + ridge, yy + ridge
    determinant = xx * yy - xy * xy
    found = jnp.stack([yy * xr - xy * yr, xx * yr - xy * xr]) / determinant[None]
    return jnp.clip(found, -1, 1)  # the equation is linear in the flow: it holds nearby


def _derivative(x: jax.Array, axis: int) -> jax.Array:
    """Central differences; one-sided at the border."""
    padded = jnp.pad(x, [(1, 1) if i == axis else (0, 0) for i in range(2)], mode="edge")
    n = x.shape[axis]
    after = jax.lax.slice_in_dim(padded, 2, n + 2, axis=axis)
    before = jax.lax.slice_in_dim(padded, 0, n, axis=axis)
    return (after - before) / 2


def _window(n: int, radius: float) -> jax.Array:
    """[n, n] Gaussian weights around each place; each row adds up to 1."""
    at = jnp.arange(n, dtype=jnp.float32)
    weight = jnp.exp(-0.5 * ((at[:, None] - at[None, :]) / radius) ** 2)
    return weight / weight.sum(1, keepdims=True)


def _warped(b: jax.Array, flow: jax.Array) -> jax.Array:
    """b(y + flow_y, x + flow_x), linearly interpolated, the border repeated."""
    height, width = b.shape
    y = jnp.arange(height, dtype=jnp.float32)[:, None] + flow[1]
    x = jnp.arange(width, dtype=jnp.float32)[None, :] + flow[0]
    return map_coordinates(b, [y, x], order=1, mode="nearest")


def _halved(x: jax.Array) -> jax.Array:
    """Means of 2 x 2 pixels; an odd border is repeated."""
    x = jnp.pad(x, [(0, n % 2) for n in x.shape], mode="edge")
    return x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2).mean((1, 3))
