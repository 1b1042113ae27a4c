"""CPC's encoder of sentences (van den Oord et al. 2018, arXiv 1807.03748, section 3.3)."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cl_jax.core.tokens import PAD


class Sentences(nn.Module):
    """Tokens [B, n, T] -> "sequence" [B, n, width], a latent for each sentence, and "h" [B, width],
    their mean; float32 at least.

    A convolution over word embeddings, ReLU, and the mean over the sentence's tokens; padding does
    not count. 2400 wide in the paper, which states neither the convolution's width nor the
    embedding's.

    Args:
      vocab_size: token numbers, padding included.
      width: of the latent. embedding: of a word. kernel: tokens that the convolution sees.
      dtype: of the computation; parameters stay float32.
    """

    vocab_size: int
    width: int = 2400
    embedding: int = 620
    kernel: int = 5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        if tokens.ndim != 3:
            raise ValueError(f"tokens have shape {tokens.shape}; expected passages [B, n, T].")
        flat = tokens.reshape(-1, tokens.shape[-1]).astype(jnp.int32)
        real = (flat != PAD)[..., None]
        words = nn.Embed(self.vocab_size, self.embedding, dtype=self.dtype, name="embed")(flat)
        x = nn.Conv(self.width, (self.kernel,), dtype=self.dtype, name="conv")(
            jnp.where(real, words, 0)
        )
        x = jnp.where(real, nn.relu(x).astype(jnp.promote_types(x.dtype, jnp.float32)), 0)
        z = x.sum(1) / jnp.maximum(real.sum(1), 1)
        z = z.reshape(*tokens.shape[:2], self.width)
        return {"sequence": z, "h": z.mean(1)}


def make(
    *,
    sizes: Mapping[str, int],
    width: int = 2400,
    embedding: int = 620,
    kernel: int = 5,
    dtype: str | None = "float32",
    axis_name: str | None = None,
) -> Sentences:
    """A `Sentences` from a config section; the vocabulary is that of the data's "passage".
    `axis_name` is not used: nothing here looks across examples.

    Raises:
      ValueError: a size below 1, or data without passages.
    """
    if min(width, embedding, kernel) < 1:
        raise ValueError(
            f"width={width}, embedding={embedding}, kernel={kernel}; expected at least 1 of each."
        )
    if "passage" not in sizes:
        raise ValueError("the data have no passages; set config.data.name='passages'.")
    return Sentences(
        vocab_size=sizes["passage"],
        width=width,
        embedding=embedding,
        kernel=kernel,
        dtype=None if dtype is None else jnp.dtype(dtype),
    )
