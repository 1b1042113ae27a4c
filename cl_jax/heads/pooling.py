"""From a transformer's tokens to one vector per sentence, and SimCSE's head on it."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cl_jax.core.shapes import check

POOLERS = ("cls", "avg", "avg_top2", "avg_first_last")


def pool(hidden_states: jax.Array, attention_mask: jax.Array, *, pooler: str) -> jax.Array:
    """One vector per sentence.

      cls             first token of the last layer
      avg             mean over tokens of the last layer
      avg_top2        mean over tokens of the mean of the last two layers
      avg_first_last  mean over tokens of the mean of the first layer (index 1, not the embeddings)
                      and the last

    Args:
      hidden_states: [1 + L, B, T, D], the embeddings and then the output of each of the L layers.
      attention_mask: [B, T], 1 at tokens, 0 at padding; any real or integer type.
      pooler: one of the above. SimCSE feeds "cls" to `SentenceHead`, or leaves the head out at
        evaluation.

    Returns:
      [B, D]. A sentence without a token is 0 (NaN in the authors' code), but for "cls".

    Raises:
      ValueError: shapes that disagree, an unknown pooler, too few layers.

    Reference: Gao et al. 2021, arXiv 2104.08821, section 6.3 and the authors' code.
    """
    sizes = check("l b t d", hidden_states=hidden_states)
    if pooler not in POOLERS:
        raise ValueError(f"pooler is {pooler!r}; expected one of {', '.join(POOLERS)}.")
    if attention_mask.shape != (sizes["b"], sizes["t"]):
        raise ValueError(
            f"attention_mask has shape {attention_mask.shape}; expected [B, T] = "
            f"{(sizes['b'], sizes['t'])} as in hidden_states."
        )
    if sizes["l"] < 2:
        raise ValueError(
            f"hidden_states have shape {hidden_states.shape}; expected [1 + L, B, T, D] with the "
            "embeddings first and at least one layer."
        )
    if pooler == "cls":
        return hidden_states[-1, :, 0]
    last = hidden_states[-1]
    if pooler == "avg_top2":
        last = (hidden_states[-2] + last) / 2
    elif pooler == "avg_first_last":
        last = (hidden_states[1] + last) / 2
    wide = jnp.promote_types(last.dtype, jnp.float32)
    mask = attention_mask.astype(wide)
    summed = jnp.einsum("btd,bt->bd", last.astype(wide), mask)
    return (summed / jnp.maximum(jnp.sum(mask, axis=1), 1e-9)[:, None]).astype(last.dtype)


class SentenceHead(nn.Module):
    """SimCSE's head: tanh of a square linear layer, newly initialised. The unsupervised form drops
    it after training, the supervised form keeps it."""

    dtype: Any = None

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        check("... d", h=h)
        dense = nn.Dense(
            h.shape[-1], kernel_init=nn.initializers.normal(0.02), dtype=self.dtype, name="dense"
        )
        return nn.tanh(dense(h))
