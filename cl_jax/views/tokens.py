"""Views of sentences: the tokens as they are, with a key for the network's dropout; masked tokens
for a language model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from cl_jax.core.tokens import MASK, SPECIAL

Batch = Mapping[str, jax.Array]
IGNORE = -100  # the label of a token that is not predicted


@dataclass(frozen=True)
class Tokens:
    """One view of batch[field], token numbers [B, T]: {"tokens": [B, T], "keys": [B]}.

    The view is the network's dropout: two of them differ in their keys alone (Gao et al. 2021,
    arXiv 2104.08821). Where the data have K sentences of one thing, [B, K, T], each view is of one
    of them, drawn by the key; the clean input is the first.
    """

    field: str = "tokens"
    wants: ClassVar[tuple[str, ...]] = ()

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.field,)

    def draw(self, keys: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        tokens = batch[self.field]
        if tokens.ndim == 3:

            def one(key: jax.Array, sentences: jax.Array) -> jax.Array:
                return sentences[jax.random.randint(key, (), 0, sentences.shape[0])]

            tokens = jax.vmap(one)(jax.vmap(jax.random.fold_in, (0, None))(keys, 1), tokens)
        return {"tokens": tokens, "keys": keys}

    def clean(self, batch: Batch) -> dict[str, jax.Array]:
        tokens = batch[self.field]
        return {"tokens": tokens[:, 0] if tokens.ndim == 3 else tokens}


def make(*, field: str = "tokens") -> Tokens:
    """A view of the sentences in a field: "tokens", "tokens_b" for their positives, "tokens_c" for
    their hard negatives."""
    return Tokens(field)


class Masked(NamedTuple):
    """tokens: [B, T] with some replaced. labels: [B, T] int32, the original token at the chosen
    places, -100 elsewhere. keys: [B] for dropout."""

    tokens: jax.Array
    labels: jax.Array
    keys: jax.Array


def mask_tokens(
    keys: jax.Array,
    tokens: jax.Array,
    *,
    vocab_size: int,
    rate: float = 0.15,
    masked: float = 0.8,
    random: float = 0.1,
) -> Masked:
    """BERT's corruption: what a masked language model sees, and what it predicts.

    Args:
      keys: [B] typed keys, one for each example.
      tokens: [B, T] integers. Reserved tokens (padding, start, end) are never chosen.
      vocab_size: random tokens are those from SPECIAL to vocab_size - 1.
      rate: probability of a token to be chosen, each by itself.
      masked, random: shares of the chosen that become the mask, or a random token; the others stay.

    Raises:
      ValueError: a rate or share that is not a probability, shares above 1, no token that is not
        reserved.

    Reference: Devlin et al. 2019, arXiv 1810.04805, section 3.1.
    """
    if not 0 < rate < 1 or min(masked, random) < 0 or masked + random > 1:
        raise ValueError(
            f"rate={rate}, masked={masked}, random={random}; expected a rate between 0 and 1, and "
            "shares that add up to 1 at most."
        )
    if vocab_size <= SPECIAL:
        raise ValueError(f"vocab_size={vocab_size}; expected more than {SPECIAL} reserved tokens.")

    def one(key: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
        chosen_key, how_key, token_key = jax.random.split(jax.random.fold_in(key, 2), 3)
        chosen = jax.random.bernoulli(chosen_key, rate, row.shape) & (row >= SPECIAL)
        how = jax.random.uniform(how_key, row.shape)
        other = jax.random.randint(token_key, row.shape, SPECIAL, vocab_size)
        seen = jnp.where(how < masked, MASK, jnp.where(how < masked + random, other, row))
        return jnp.where(chosen, seen, row), jnp.where(chosen, row, IGNORE)

    seen, labels = jax.vmap(one)(keys, tokens.astype(jnp.int32))
    return Masked(seen, labels, keys)
