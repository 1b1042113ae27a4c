"""Pixels moved: an image turned, sheared and elastically deformed, as CPC v2 does with patches."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from cl_jax.core.shapes import check_scalar, check_share


class Warp(NamedTuple):
    """How an image is bent.

    probability: that it is bent at all.
    degrees: it is turned about its middle by up to so many, either way.
    shear: its rows are moved by up to this many pixels for a pixel of height, either way, and its
      columns for a pixel of width.
    elastic: deviation of the displacement of control points, as a share of the side; what lies
      between them moves by a cubic of theirs.
    points: control points along a side.
    """

    probability: float = 0.2
    degrees: float = 30.0
    shear: float = 0.3
    elastic: float = 0.03
    points: int = 4


def make(**section: float) -> Warp:
    """A warp from a config section.

    Raises:
      ValueError: an unknown key, a probability outside 0 to 1, a negative amount, fewer than two
        points.
    """
    unknown = sorted(set(section) - set(Warp._fields))
    if unknown:
        raise ValueError(
            f"warp has no {', '.join(unknown)}; expected some of {', '.join(Warp._fields)}."
        )
    warp = Warp(**section)  # type: ignore[arg-type]
    check_share(probability=warp.probability)
    for name in ("degrees", "shear", "elastic"):
        value = getattr(warp, name)
        check_scalar(**{name: value})
        if not value >= 0:
            raise ValueError(f"{name} is {value}; expected 0 or more.")
    if not isinstance(warp.points, int) or warp.points < 2:
        raise ValueError(f"points is {warp.points}; expected an integer of at least 2.")
    return warp


def coordinates(warp: Warp, key: jax.Array, size: int) -> jax.Array:
    """[2, size, size], row and column at which each pixel of the result reads the image; their own
    where the image is not bent."""
    keys = jax.random.split(key, 4)
    bent = jax.random.bernoulli(keys[0], warp.probability).astype(jnp.float32)
    angle = math.radians(warp.degrees) * bent * _either_way(keys[1], ())
    across, down = warp.shear * bent * _either_way(keys[2], (2,))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turn = jnp.array([[cos, -sin], [sin, cos]])
    shear = jnp.array([[1.0, down], [across, 1.0]])
    middle = (size - 1) / 2
    places = jnp.stack(jnp.meshgrid(*[jnp.arange(size) - middle] * 2, indexing="ij"))
    moved = jnp.einsum("ab,bij->aij", turn @ shear, places, precision="highest")
    pulls = warp.elastic * size * bent * jax.random.normal(keys[3], (2, warp.points, warp.points))
    return middle + moved + jax.image.resize(pulls, (2, size, size), "cubic")


def sample(x: jax.Array, at: jax.Array) -> jax.Array:
    """[C, H, W] read at rows and columns [2, H', W'], between pixels by their bilinear mean; the
    pixels of the edge go on outside."""
    return jax.vmap(lambda plane: map_coordinates(plane, list(at), order=1, mode="nearest"))(x)


def _either_way(key, shape):
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
