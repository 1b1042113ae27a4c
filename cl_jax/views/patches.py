"""Overlapping patches of an image on a grid, and views of each patch by itself: CPC.

>>> cut = grid(images, size=64, stride=32)                   # [B, 7, 7, 64, 64, C] of 256 x 256
>>> seen = augment(recipe, keys, cut, subcrop=60)            # keys [B]: `views.example_keys`
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.shapes import check_share
from cl_jax.views import planes
from cl_jax.views.presets import Recipe
from cl_jax.views.recipe import draw, transform
from cl_jax.views.warp import Warp, coordinates, sample

_BEND = 1 << 20  # folded into a patch's key, of which the other draws are splits


def grid(images: jax.Array, *, size: int, stride: int) -> jax.Array:
    """All patches of `size` pixels, `stride` pixels apart: [B, H, W, C] -> [B, rows, columns, size,
    size, C].

    Raises:
      ValueError: a grid that does not end at the image's edges.
    """
    if images.ndim != 4:
        raise ValueError(f"images have shape {images.shape}; expected [B, H, W, C].")
    starts = [starts_of(side, size, stride) for side in images.shape[1:3]]
    rows, columns = (jnp.array(start)[:, None] + jnp.arange(size)[None] for start in starts)
    return images[:, rows[:, None, :, None], columns[None, :, None, :]]


def starts_of(side: int, size: int, stride: int) -> range:
    """Where the patches of a side begin.

    Raises:
      ValueError: patches that leave pixels out, or are larger than the image.
    """
    if size < 1 or stride < 1:
        raise ValueError(f"size={size}, stride={stride}; expected pixels, at least 1.")
    if side < size or (side - size) % stride:
        fits = size + max(side - size, 0) // stride * stride
        raise ValueError(
            f"patches of {size} pixels with stride {stride} do not fill an image of {side}; "
            f"images of {fits} or {fits + stride} they do."
        )
    return range(0, side - size + 1, stride)


def augment(
    recipe: Recipe,
    keys: jax.Array,
    patches: jax.Array,
    *,
    subcrop: int | None = None,
    drop_channels: float = 0.0,
    warp: Warp | None = None,
) -> jax.Array:
    """One view of each patch, drawn by the example's key and the patch's place on the grid.

    Args:
      recipe: jitter, gray, flip, ..., and the normalisation; with crop="none" the whole patch is
        seen. Its size is that of the patches, whatever it says.
      keys: [B] typed keys, one per example.
      patches: [B, rows, columns, size, size, C], floats in [0, 1].
      subcrop: side in pixels of a square at a random place of the patch, which alone is seen, moved
        to its middle with zeros around it: after normalisation these are the mean colour. CPC v1
        has 60 of 64 pixels; what it pads with, and where, is not stated.
      drop_channels: probability that only one of the patch's channels, drawn at random, is seen,
        the others 0 after normalisation. CPC v2 drops two of three, as Doersch et al., ICCV 2015,
        who fill with faint noise.
      warp: turns, shears and elastic deformation of a patch, before all else; None for none.

    Returns:
      [B, rows, columns, size, size, C] float32.

    Raises:
      ValueError: shapes that disagree, a sub-crop larger than the patch, no probability.
    """
    if patches.ndim != 6 or patches.shape[3] != patches.shape[4] or keys.shape != patches.shape[:1]:
        raise ValueError(
            f"patches have shape {patches.shape} and keys {keys.shape}; expected [B, rows, "
            f"columns, size, "
            "size, C] and one key per example."
        )
    size = patches.shape[3]
    if subcrop is not None and not 1 <= subcrop <= size:
        raise ValueError(f"subcrop={subcrop}; expected 1 to {size} pixels, the side of a patch.")
    check_share(drop_channels=drop_channels)
    recipe = dataclasses.replace(recipe, size=size)

    def view(key: jax.Array, patch: jax.Array) -> jax.Array:
        recipe_key, crop_key, channel_key = jax.random.split(key, 3)
        x = planes.planes(patch)
        if warp is not None:
            x = sample(x, coordinates(warp, jax.random.fold_in(key, _BEND), size))
        x = transform(recipe, draw(recipe, recipe_key, size, size), x)
        if subcrop is not None and subcrop < size:
            top, left = jax.random.randint(crop_key, (2,), 0, size - subcrop + 1)
            x = lax.dynamic_slice(x, (0, top, left), (x.shape[0], subcrop, subcrop))
            before = (size - subcrop) // 2
            after = size - subcrop - before
            x = jnp.pad(x, ((0, 0), (before, after), (before, after)))
        if drop_channels > 0:
            whether, which = jax.random.uniform(channel_key, (2,))
            only = jnp.arange(x.shape[0]) == jnp.floor(which * x.shape[0])
            x = jnp.where((only | (whether >= drop_channels))[:, None, None], x, 0)
        return planes.pixels(x)

    places = jnp.arange(patches.shape[1] * patches.shape[2])
    flat = patches.reshape(patches.shape[0], len(places), *patches.shape[3:])
    of_places = jax.vmap(
        lambda key: jax.vmap(lambda place: jax.random.fold_in(key, place))(places)
    )(keys)
    seen = jax.vmap(jax.vmap(view))(of_places, flat)
    return seen.reshape(*patches.shape[:5], seen.shape[-1])
