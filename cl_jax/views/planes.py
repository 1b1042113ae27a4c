"""Images as planes, and the operators that need no more than that.

Every operator of this package works on the planes of one image, [C, H, W], floats in [0, 1]:
contiguous rows vectorise, three interleaved channels do not. Batches are `jax.vmap`ed.
`recipe.apply` converts at both ends."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def planes(image: jax.Array, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """[..., H, W, C] uint8, 0 to 255, or floats in [0, 1] -> [..., C, H, W] floats in [0, 1].

    Raises:
      ValueError: an image of another type or rank.
    """
    if image.ndim < 3 or not (
        image.dtype == jnp.uint8 or jnp.issubdtype(image.dtype, jnp.floating)
    ):
        raise ValueError(
            f"image is {image.dtype}{list(image.shape)}; expected [H, W, C], uint8 from 0 to 255 "
            f"or "
            "floats in [0, 1]. Add a channel axis to grey images with image[..., None]."
        )
    scale = 255.0 if image.dtype == jnp.uint8 else 1.0
    return jnp.moveaxis(image, -1, -3).astype(dtype) / jnp.asarray(scale, dtype)


def pixels(x: jax.Array) -> jax.Array:
    """[..., C, H, W] -> [..., H, W, C]."""
    return jnp.moveaxis(x, -3, -1)


def clip(x: jax.Array) -> jax.Array:
    """Back into [0, 1]."""
    return jnp.clip(x, 0.0, 1.0)


def flip(x: jax.Array, apply: jax.Array | bool = True) -> jax.Array:
    """Mirrors left and right where `apply` is true. Any channels, any dtype."""
    return jnp.where(apply, x[..., ::-1], x)


def turn(x: jax.Array, turns: jax.Array | int) -> jax.Array:
    """Turns square planes [..., S, S] counter-clockwise by `turns` (0 to 3) quarters, exactly."""
    transposed = jnp.swapaxes(x, -1, -2)
    turned = [x, transposed[..., ::-1, :], x[..., ::-1, ::-1], transposed[..., ::-1]]
    turns = jnp.asarray(turns)
    return jnp.select([turns == number for number in range(4)], turned)


def solarize(x: jax.Array, threshold: float = 0.5, apply: jax.Array | bool = True) -> jax.Array:
    """x below the threshold stays, the rest becomes 1 - x. Any channels. PIL's threshold 128 is 0.5
    here."""
    return jnp.where(jnp.logical_and(apply, x >= threshold), 1.0 - x, x)


def normalise(x: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """(x - mean) / std by channel.

    Raises:
      ValueError: `mean` and `std` have not one value per channel of `x` [C, H, W].
    """
    channels = x.shape[-3]
    if len(mean) != channels or len(std) != channels:
        raise ValueError(
            f"mean has {len(mean)} and std {len(std)} values for images of {channels} channels; "
            f"expected "
            "one each per channel. Set mean and std of the recipe to this data's, or to None for "
            "none; or, for "
            "grey images, channels=3 in the data section, which repeats their channel."
        )
    return (x - jnp.asarray(mean, x.dtype)[:, None, None]) / jnp.asarray(std, x.dtype)[
        :, None, None
    ]
