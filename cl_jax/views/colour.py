"""Colour jitter and grayscale, in the two published families.

"tv" is torchvision / PIL (MoCo, SwAV, DINO, SimSiam, InstDisc): contrast around the mean grey of the image, saturation
around each pixel's grey. "tf" is SimCLR's TensorFlow and BYOL's JAX program: contrast around each channel's mean,
saturation scaled in HSV. The same numbers mean different pictures in the two. Planes are [C, H, W], floats in [0, 1].
"""

import itertools
from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

FAMILIES = ("tv", "tf")
LUMA_PIL = (0.299, 0.587, 0.114)
LUMA_TENSOR = (0.2989, 0.587, 0.114)
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
_ORDERS = np.array(list(itertools.permutations(range(4))), np.int32)


class Jitter(NamedTuple):
    """One draw of colour jitter: `order` int32 [4], a permutation of (brightness 0, contrast 1, saturation 2, hue 3);
    `factors` float32 [4] in that numbering, the last a shift of the hue in turns."""

    order: jax.Array
    factors: jax.Array


def draw_jitter(key: jax.Array, *, brightness: float, contrast: float, saturation: float, hue: float,
                additive: bool = False) -> Jitter:
    """Factors uniform in [max(0, 1 - strength), 1 + strength], hue in [-hue, hue], the order uniform over all 24.

    Args:
      additive: brightness is an offset in [-brightness, brightness] (SimCLR's paper and first code; BYOL).
    """
    u = jax.random.uniform(key, (5,), jnp.float32)
    low = np.array([-brightness if additive else max(0.0, 1 - brightness), max(0.0, 1 - contrast),
                    max(0.0, 1 - saturation), -hue], np.float32)
    high = np.array([brightness if additive else 1 + brightness, 1 + contrast, 1 + saturation, hue], np.float32)
    order = jnp.asarray(_ORDERS)[jnp.floor(u[4] * len(_ORDERS)).astype(jnp.int32)]
    return Jitter(order, jnp.asarray(low) + jnp.asarray(high - low) * u[:4])


def luma(x: jax.Array, weights: Sequence[float] = LUMA_PIL) -> jax.Array:
    """[H, W] grey of the planes; of one channel that channel."""
    if check_colour(x.shape[0], "grey") == 1:
        return x[0]
    return weights[0] * x[0] + weights[1] * x[1] + weights[2] * x[2]


def grayscale(x: jax.Array, weights: Sequence[float] = LUMA_PIL, apply: jax.Array | bool = True) -> jax.Array:
    """The grey in every channel where `apply` is true; one channel is returned as it came."""
    if check_colour(x.shape[0], "grayscale") == 1:
        return x
    return jnp.where(apply, luma(x, weights)[None], x)


def brightness(x: jax.Array, factor: jax.Array | float, *, additive: bool = False) -> jax.Array:
    """factor * x, or x + factor. Any channels."""
    return x + factor if additive else x * factor


def contrast(x: jax.Array, factor: jax.Array | float, *, family: str,
             luma_weights: Sequence[float] = LUMA_PIL) -> jax.Array:
    """factor * x + (1 - factor) * mean: "tv" the mean grey of the image, "tf" each channel's own mean.

    Any channels; where there is no grey, neither 1 nor 3 of them, "tv" takes the mean over all.
    """
    if family == "tf":
        mean = x.mean(axis=(1, 2), keepdims=True)
    else:
        mean = (luma(x, luma_weights) if x.shape[0] in (1, 3) else x).mean()
    return factor * x + (1 - factor) * mean


def saturation(x: jax.Array, factor: jax.Array | float, *, family: str,
               luma_weights: Sequence[float] = LUMA_PIL) -> jax.Array:
    """factor * x + (1 - factor) * grey of the pixel in "tv"; S of HSV times factor, cut off at 1, in "tf".

    One channel is returned as it came.
    """
    if check_colour(x.shape[0], "saturation") == 1:
        return x
    if family == "tv":
        return factor * x + (1 - factor) * luma(x, luma_weights)[None]
    # Scaling S moves the pixel along the line to its largest channel V; the cut at S = 1 limits how far.
    high, span = _value(x)
    limit = jnp.where(span > 0, high / jnp.where(span > 0, span, 1), factor)
    factor = jnp.maximum(jnp.minimum(factor, limit), 0)[None]
    return factor * x + (1 - factor) * high[None]


def hue(x: jax.Array, shift: jax.Array | float) -> jax.Array:
    """Turns the hue by `shift` turns, value and saturation kept; grey pixels have none and stay. C = 1: identity."""
    if check_colour(x.shape[0], "hue") == 1:
        return x
    r, g, b = x
    high, span = _value(x)
    safe = jnp.where(span > 0, span, 1)
    sixths = jnp.where(r == high, (g - b) / safe, jnp.where(g == high, 2 + (b - r) / safe, 4 + (r - g) / safe))
    sixths = sixths + 6 * shift
    sixths = sixths - 6 * jnp.floor(sixths / 6)
    away = jnp.stack([jnp.abs(sixths - 3) - 1, 2 - jnp.abs(sixths - 2), 2 - jnp.abs(sixths - 4)])
    return (high - span)[None] + span[None] * jnp.clip(away, 0, 1)


def _value(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    high = jnp.maximum(jnp.maximum(x[0], x[1]), x[2])
    return high, high - jnp.minimum(jnp.minimum(x[0], x[1]), x[2])


def jitter(x: jax.Array, draw: Jitter, *, family: str, additive: bool = False,
           luma_weights: Sequence[float] = LUMA_PIL, operators: Collection[int] = range(4),
           apply: jax.Array | bool = True) -> jax.Array:
    """The four operators in the drawn order, clipped to [0, 1] after each, where `apply` is true.

    Under `vmap` a branch computes every arm, so choosing one of four operators at four places costs sixteen. Instead
    the order is cut at its one expensive operator: the three others, in their order, are offered before hue and once
    more after it, and each acts at the side it belongs to. Six blends and one hue, equal to the true permutation.

    Args:
      x: [C, H, W]; saturation and hue are defined for C = 3, change nothing for 1 and raise for others.
      draw: see `Jitter`.
      family: "tv" or "tf". additive: see `draw_jitter`.
      luma_weights: grey weights of "tv": PIL's, or LUMA_TENSOR for torchvision's tensor path.
      operators: those that take part, static; leave out BRIGHTNESS, CONTRAST, SATURATION or HUE of strength 0.
    """
    if family not in FAMILIES:
        raise ValueError(f"family is {family!r}; expected \"tv\" (torchvision, PIL) or \"tf\" (SimCLR, BYOL).")
    order, factors = draw.order, draw.factors.astype(x.dtype)
    cut = jnp.argmax(order == HUE)
    place = jnp.arange(3)
    kinds = order[place + (place >= cut)]
    apply = jnp.asarray(apply)

    def blend(x, slot, active):
        kind, factor = kinds[slot], factors[kinds[slot]]
        y = x
        if BRIGHTNESS in operators:
            y = jnp.where(kind == BRIGHTNESS, brightness(x, factor, additive=additive), y)
        if CONTRAST in operators:
            y = jnp.where(kind == CONTRAST, contrast(x, factor, family=family, luma_weights=luma_weights), y)
        if SATURATION in operators:
            y = jnp.where(kind == SATURATION, saturation(x, factor, family=family, luma_weights=luma_weights), y)
        return jnp.where(active & apply, jnp.clip(y, 0, 1), x)

    if HUE not in operators:
        for slot in range(3):
            x = blend(x, slot, True)
        return x
    for slot in range(3):
        x = blend(x, slot, slot < cut)
    turned = hue(x, factors[HUE])
    x = jnp.where(apply, jnp.clip(turned, 0, 1) if family == "tf" else turned, x)
    for slot in range(3):
        x = blend(x, slot, slot >= cut)
    return x


def check_colour(channels: int, what: str) -> int:
    """Refuses channel counts for which `what` is undefined."""
    if channels not in (1, 3):
        raise ValueError(f"{what} is defined for 1 or 3 channels; the images have {channels}. Set saturation, hue and "
                         "gray of the recipe to 0: crop, flip, brightness, contrast, blur, solarize take any number.")
    return channels
