"""Tokens left out and filled in again: what a masked autoencoder does around its encoder."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cl_jax.core.shapes import check


class Masking(NamedTuple):
    """kept: [B, K] the tokens that stay, in the order of the noise. restore: [B, L] where each
    token lies among [kept, hidden]. mask: [B, L] true where hidden."""

    kept: jax.Array
    restore: jax.Array
    mask: jax.Array


def kept_count(tokens: int, ratio: float) -> int:
    """How many of `tokens` stay when a share `ratio` is hidden: floor(tokens * (1 - ratio)) in
    double precision, as MAE counts.

    Raises:
      ValueError: nothing would stay, or a ratio outside [0, 1).
    """
    kept = int(tokens * (1 - ratio))
    if not 0 <= ratio < 1 or kept < 1:
        raise ValueError(
            f"a mask ratio of {ratio} leaves {kept} of {tokens} patches; expected a ratio from 0, "
            "below 1, that leaves at least one."
        )
    return kept


def random_masking(noise: jax.Array, keep: int) -> Masking:
    """Keeps the `keep` tokens of each row of noise [B, L] that are smallest; ties by position."""
    check("b l", noise=noise)
    order = jnp.argsort(noise, axis=1, stable=True)
    restore = jnp.argsort(order, axis=1, stable=True)
    return Masking(order[:, :keep], restore, restore >= keep)


def take(tokens: jax.Array, kept: jax.Array) -> jax.Array:
    """[B, L, D], [B, K] -> [B, K, D]: the tokens that stay."""
    check("b l d", tokens=tokens)
    return jnp.take_along_axis(tokens, kept[:, :, None], axis=1)


def fill(kept: jax.Array, token: jax.Array, restore: jax.Array) -> jax.Array:
    """[B, K, D], [D], [B, L] -> [B, L, D]: tokens back in their places, `token` in all others."""
    sizes = check("b k d", kept=kept)
    check("d", sizes, token=token)
    hidden = restore.shape[1] - sizes["k"]
    filling = jnp.broadcast_to(token.astype(kept.dtype), (sizes["b"], hidden, sizes["d"]))
    return jnp.take_along_axis(
        jnp.concatenate([kept, filling], axis=1), restore[:, :, None], axis=1
    )
