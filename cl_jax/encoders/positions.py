"""Position embeddings of vision transformers: fixed sine-cosine tables, and learned ones resized to
another image."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax.core.shapes import check


def sincos_2d(
    grid_h: int,
    grid_w: int,
    dim: int,
    *,
    order: str = "moco_v3",
    temperature: float = 10000.0,
    dtype: Any = jnp.float32,
) -> jax.Array:
    """The fixed table [1, 1 + grid_h * grid_w, dim] of MoCo v3 or MAE; row 0, of the class token,
    is zero.

    A patch in column a and row b gets [sin(a w), cos(a w), sin(b w), cos(b w)] with w_j =
    temperature^(-j / (dim/4)). Patches of `order` "mae" are in raster order, the row outermost, as
    the patches of an image are (He et al., arXiv 2111.06377); those of "moco_v3" have the column
    outermost, as in the code of Chen, Xie, He, arXiv 2104.02057, so that a patch there gets the
    position of its mirror image across the diagonal.

    Raises:
      ValueError: dim is not a multiple of 4, an unknown order.
    """
    if order not in ("moco_v3", "mae"):
        raise ValueError(f'order is {order!r}; expected "moco_v3" or "mae".')
    if dim % 4:
        raise ValueError(
            f"dim={dim}; expected a multiple of 4: a sine and a cosine for each of two axes."
        )
    frequencies = temperature ** -(np.arange(dim // 4, dtype=np.float64) / (dim // 4))
    a, b = (
        axis.reshape(-1, 1) * frequencies[None]
        for axis in np.meshgrid(
            np.arange(grid_w, dtype=np.float64),
            np.arange(grid_h, dtype=np.float64),
            indexing="ij" if order == "moco_v3" else "xy",
        )
    )
    table = np.concatenate([np.sin(a), np.cos(a), np.sin(b), np.cos(b)], axis=1)
    return jnp.asarray(np.concatenate([np.zeros((1, dim)), table])[None], dtype)


def interpolate(embedding: jax.Array, height: int, width: int, *, patch: int) -> jax.Array:
    """DINO's learned table for images of height x width pixels: [1, 1 + G*G, D] -> [1, 1 + rows *
    columns, D].

    The class token's row is kept; the square grid of the others goes through a bicubic resize with
    PyTorch's kernel (a = -0.75, no antialiasing, edges repeated), its source coordinate (i + 0.5) /
    s - 0.5 with s = (target + 0.1) / G as the authors have it. rows = height // patch along the
    first spatial axis, columns = width // patch. Returned as it is for square images of the grid's
    own number of patches. Caron et al., arXiv 2104.14294.

    Raises:
      ValueError: the table is not one class token and a square grid; an image smaller than a patch.
    """
    check("1 n d", embedding=embedding)
    grid = round((embedding.shape[1] - 1) ** 0.5)
    if grid < 1 or grid * grid != embedding.shape[1] - 1:
        raise ValueError(
            f"embedding has shape {embedding.shape}; expected [1, 1 + G*G, D], a class token and "
            f"a square "
            "grid of patches."
        )
    rows, columns = height // patch, width // patch
    if rows < 1 or columns < 1:
        raise ValueError(f"an image of {height}x{width} pixels has no patch of {patch}x{patch}.")
    if height == width and rows * columns == grid * grid:
        return embedding
    patches = embedding[0, 1:].reshape(grid, grid, -1)
    first, second = (
        jnp.asarray(_bicubic(grid, target), patches.dtype) for target in (rows, columns)
    )
    patches = jnp.einsum("ai,bj,ijd->abd", first, second, patches, precision="highest")
    return jnp.concatenate([embedding[:, :1], patches.reshape(1, rows * columns, -1)], axis=1)


def _bicubic(size: int, target: int, a: float = -0.75) -> np.ndarray:
    """[target, size] weights of each source position."""
    source = (np.arange(target) + 0.5) * size / (target + 0.1) - 0.5
    base = np.floor(source).astype(int)
    weights = np.zeros((target, size))
    for tap in range(-1, 3):
        distance = np.abs(source - (base + tap))
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = ((distance - 5) * distance + 8) * distance * a - 4 * a
        np.add.at(
            weights,
            (np.arange(target), np.clip(base + tap, 0, size - 1)),
            np.where(distance <= 1, near, far),
        )
    return weights
