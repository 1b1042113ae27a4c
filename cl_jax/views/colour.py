"""Colour jitter and grayscale, in the two published families.

"tv" is torchvision / PIL (MoCo, SwAV, DINO, SimSiam, InstDisc): contrast around the mean grey of
the image, saturation around each pixel's grey. "tf" is SimCLR's TensorFlow and BYOL's JAX program:
contrast around each channel's mean, saturation scaled in HSV. The same numbers mean different
pictures in the two. Planes are [C, H, W], floats in [0, 1]."""

import itertools
from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cl_jax.core.keys import uniforms

FAMILIES = ("tv", "tf")
LUMA_PIL = (0.299, 0.587, 0.114)
LUMA_TENSOR = (0.2989, 0.587, 0.114)
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
Planes = tuple[jax.Array, ...]
_ORDERS = np.array(list(itertools.permutations(range(4))), np.int32)


class Jitter(NamedTuple):
    """One draw of colour jitter: `order` int32 [4], a permutation of (brightness 0, contrast 1,
    saturation 2, hue 3); `factors` float32 [4] in that numbering, the last a shift of the hue in
    turns."""

    order: jax.Array
    factors: jax.Array


def draw_jitter(
    key: jax.Array,
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    additive: bool = False,
) -> Jitter:
    """Factors uniform in [max(0, 1 - strength), 1 + strength], hue in [-hue, hue], the order
    uniform over all 24.

    Args:
      key: one typed key, of one view.
      brightness, contrast, saturation, hue: strengths, 0 for none.
      additive: brightness is an offset in [-brightness, brightness] (SimCLR's paper and first code;
        BYOL).
    """
    u = uniforms(key, 5)
    low = np.array(
        [
            -brightness if additive else max(0.0, 1 - brightness),
            max(0.0, 1 - contrast),
            max(0.0, 1 - saturation),
            -hue,
        ],
        np.float32,
    )
    high = np.array(
        [brightness if additive else 1 + brightness, 1 + contrast, 1 + saturation, hue], np.float32
    )
    order = jnp.asarray(_ORDERS)[jnp.floor(u[4] * len(_ORDERS)).astype(jnp.int32)]
    return Jitter(order, jnp.asarray(low) + jnp.asarray(high - low) * u[:4])


def luma(x: jax.Array, weights: Sequence[float] = LUMA_PIL) -> jax.Array:
    """[H, W] grey of the planes; of one channel that channel."""
    check_colour(x.shape[0], "grey")
    return _luma(tuple(x), weights)


def grayscale(
    x: jax.Array, weights: Sequence[float] = LUMA_PIL, apply: jax.Array | bool = True
) -> jax.Array:
    """The grey in every channel where `apply` is true; one channel is returned as it came."""
    if check_colour(x.shape[0], "grayscale") == 1:
        return x
    return jnp.where(apply, luma(x, weights)[None], x)


def brightness(x: jax.Array, factor: jax.Array | float, *, additive: bool = False) -> jax.Array:
    """factor * x, or x + factor. Any channels."""
    return x + factor if additive else x * factor


def contrast(
    x: jax.Array,
    factor: jax.Array | float,
    *,
    family: str,
    luma_weights: Sequence[float] = LUMA_PIL,
) -> jax.Array:
    """factor * x + (1 - factor) * mean: "tv" the mean grey of the image, "tf" each channel's own
    mean.

    Any channels; where there is no grey, neither 1 nor 3 of them, "tv" takes the mean over all.
    """
    return jnp.stack(_contrast(tuple(x), factor, family, luma_weights))


def saturation(
    x: jax.Array,
    factor: jax.Array | float,
    *,
    family: str,
    luma_weights: Sequence[float] = LUMA_PIL,
) -> jax.Array:
    """factor * x + (1 - factor) * grey of the pixel in "tv"; S of HSV times factor, cut off at 1,
    in "tf".

    One channel is returned as it came.
    """
    check_colour(x.shape[0], "saturation")
    return jnp.stack(_saturation(tuple(x), factor, family, luma_weights))


def hue(x: jax.Array, shift: jax.Array | float) -> jax.Array:
    """Turns the hue by `shift` turns, value and saturation kept; grey pixels have none and stay. C
    = 1: identity."""
    check_colour(x.shape[0], "hue")
    return jnp.stack(_hue(tuple(x), shift))


# The operators on planes apart, [H, W] each. What all channels of a pixel share, its grey or its
# largest, is then a value inside one loop; of stacked planes the compilers make an array of it
# first, on a GPU twice the traffic.


def _luma(planes: Planes, weights: Sequence[float]) -> jax.Array:
    return (
        planes[0]
        if len(planes) == 1
        else weights[0] * planes[0] + weights[1] * planes[1] + weights[2] * planes[2]
    )


def _contrast(
    planes: Planes, factor: jax.Array | float, family: str, weights: Sequence[float]
) -> Planes:
    means = [plane.mean() for plane in planes]
    if family == "tv":
        of_all = _luma(planes, weights).mean() if len(planes) in (1, 3) else jnp.stack(means).mean()
        means = [of_all] * len(planes)
    return tuple(factor * plane + (1 - factor) * mean for plane, mean in zip(planes, means))


def _saturation(
    planes: Planes, factor: jax.Array | float, family: str, weights: Sequence[float]
) -> Planes:
    if len(planes) == 1:
        return planes
    if family == "tv":
        other = _luma(planes, weights)
    else:
        # Scaling S moves the pixel along the line to its largest channel V; the cut at S = 1 limits
        # how far.
        other, span = _value(planes)
        limit = jnp.where(span > 0, other / jnp.where(span > 0, span, 1), factor)
        factor = jnp.maximum(jnp.minimum(factor, limit), 0)
    return tuple(factor * plane + (1 - factor) * other for plane in planes)


def _hue(planes: Planes, shift: jax.Array | float) -> Planes:
    if len(planes) == 1:
        return planes
    r, g, b = planes
    high, span = _value(planes)
    safe = jnp.where(span > 0, span, 1)
    sixths = jnp.where(
        r == high, (g - b) / safe, jnp.where(g == high, 2 + (b - r) / safe, 4 + (r - g) / safe)
    )
    sixths = sixths + 6 * shift
    sixths = sixths - 6 * jnp.floor(sixths / 6)
    away = jnp.abs(sixths - 3) - 1, 2 - jnp.abs(sixths - 2), 2 - jnp.abs(sixths - 4)
    return tuple((high - span) + span * jnp.clip(part, 0, 1) for part in away)


def _value(planes: Planes) -> tuple[jax.Array, jax.Array]:
    r, g, b = planes
    high = jnp.maximum(jnp.maximum(r, g), b)
    return high, high - jnp.minimum(jnp.minimum(r, g), b)


def jitter(
    x: jax.Array,
    draw: Jitter,
    *,
    family: str,
    additive: bool = False,
    luma_weights: Sequence[float] = LUMA_PIL,
    operators: Collection[int] = range(4),
    apply: jax.Array | bool = True,
) -> jax.Array:
    """The four operators in the drawn order, clipped to [0, 1] after each, where `apply` is true.

    Under `vmap` a branch computes every arm, so choosing one of four operators at four places costs
    sixteen. Instead the order is cut at its one expensive operator: the three others, in their
    order, are offered before hue and once more after it, and each acts at the side it belongs to.
    Six blends and one hue, equal to the true permutation.

    Args:
      x: [C, H, W]; saturation and hue are defined for C = 3, change nothing for 1 and raise for
        others.
      draw: see `Jitter`.
      family: "tv" or "tf". additive: see `draw_jitter`.
      luma_weights: grey weights of "tv": PIL's, or LUMA_TENSOR for torchvision's tensor path.
      operators: those that take part, static; leave out BRIGHTNESS, CONTRAST, SATURATION or HUE of
        strength 0.

    Raises:
      ValueError: an unknown family, saturation or hue of other than 1 or 3 channels.
    """
    if family not in FAMILIES:
        raise ValueError(
            f'family is {family!r}; expected "tv" (torchvision, PIL) or "tf" (SimCLR, BYOL).'
        )
    order, factors = draw.order, draw.factors.astype(x.dtype)
    cut = jnp.argmax(order == HUE)
    place = jnp.arange(3)
    kinds = order[place + (place >= cut)]
    apply = jnp.asarray(apply)
    for operator, what in ((SATURATION, "saturation"), (HUE, "hue")):
        if operator in operators:
            check_colour(x.shape[0], what)

    def choose(chosen, changed, planes):
        return tuple(jnp.where(chosen, new, old) for new, old in zip(changed, planes))

    def blend(planes, slot, active):
        kind, factor = kinds[slot], factors[kinds[slot]]
        y = planes
        if BRIGHTNESS in operators:
            y = choose(
                kind == BRIGHTNESS,
                [brightness(plane, factor, additive=additive) for plane in planes],
                y,
            )
        if CONTRAST in operators:
            y = choose(kind == CONTRAST, _contrast(planes, factor, family, luma_weights), y)
        if SATURATION in operators:
            y = choose(kind == SATURATION, _saturation(planes, factor, family, luma_weights), y)
        return choose(active & apply, [jnp.clip(plane, 0, 1) for plane in y], planes)

    # A loop of one body: six copies of it took a CPU's compiler longer than the whole network.
    def offer(planes, active):
        return lax.fori_loop(0, 3, lambda slot, x: blend(x, slot, active(slot)), planes)

    planes = tuple(x)
    if HUE not in operators:
        return jnp.stack(offer(planes, lambda slot: True))
    planes = offer(planes, lambda slot: slot < cut)
    turned = _hue(planes, factors[HUE])
    planes = choose(
        apply, [jnp.clip(plane, 0, 1) for plane in turned] if family == "tf" else turned, planes
    )
    return jnp.stack(offer(planes, lambda slot: slot >= cut))


def check_colour(channels: int, what: str) -> int:
    """Refuses channel counts for which `what` is undefined."""
    if channels not in (1, 3):
        raise ValueError(
            f"{what} is defined for 1 or 3 channels; the images have {channels}. Set saturation, "
            f"hue and "
            "gray of the recipe to 0: crop, flip, brightness, contrast, blur, solarize take any "
            "number."
        )
    return channels
