"""T5's encoder and decoder from a config section."""

from collections.abc import Mapping

import jax.numpy as jnp

from cl_jax.encoders.transformer import EncoderDecoder, check_settings, vocabulary

SENTINELS = 8  # token numbers beyond the vocabulary that methods may give a meaning


def make(
    *,
    sizes: Mapping[str, int] | None = None,
    field: str = "tokens",
    vocab_size: int | None = None,
    length: int = 32,
    width: int = 128,
    depth: int = 2,
    heads: int = 4,
    hidden: int | None = None,
    style: str = "t5",
    dropout: float = 0.1,
    dtype: str | None = "float32",
    axis_name: str | None = None,
) -> EncoderDecoder:
    """An `encoders.transformer.EncoderDecoder`. Its table has 8 tokens more than the vocabulary:
    sentinels, by which a method tells its tasks apart.

    sizes, field: how many tokens the data have, where vocab_size is None. length: of the table of
      positions, which style "t5" does not have. depth: of each half. axis_name is not used.

    Raises:
      ValueError: as `encoders.transformer.make`.
    """
    check_settings(style=style, width=width, heads=heads, dropout=dropout)
    return EncoderDecoder(
        vocabulary(vocab_size, sizes, field) + SENTINELS,
        length,
        width,
        depth,
        heads,
        hidden,
        style,
        dropout,
        None if dtype is None else jnp.dtype(dtype),
    )
