"""Transformers over tokens: BERT's, CLIP's text encoder and T5's encoder and decoder.

One block serves all of them. What differs is a `Style`:

  style      norms                     positions  activation    biases  further
  bert       LayerNorm after a branch  learned    GELU          yes     norm after the embedding
  pre_norm   LayerNorm before it       learned    GELU          yes
  clip       LayerNorm before it       learned    x s(1.702 x)  yes     s: the logistic function
  t5         RMSNorm before it         relative   ReLU          no      scores are not divided

The mask is an argument of a call and not a field of a module, and so are the norms of a block, so
that one set of weights can serve two modalities (`encoders.ms_clip`).

Dropout is drawn by a key for each example: an example's masks do not depend on its place in the
batch or on its device.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cl_jax.core.gelu import gelu
from cl_jax.core.shapes import check_integer
from cl_jax.core.tokens import END, PAD
from cl_jax.encoders.layer_norm import LayerNorm
from cl_jax.heads.pooling import POOLERS, pool

Norm = Callable[[jax.Array], jax.Array]


class Style(NamedTuple):
    """What tells one family of transformers from another; see the module's table."""

    post_norm: bool
    rms_norm: bool
    relative: bool
    activation: str
    bias: bool
    embedding_norm: bool
    epsilon: float
    scaled: bool


STYLES: Mapping[str, Style] = {
    "bert": Style(True, False, False, "gelu", True, True, 1e-12, True),
    "pre_norm": Style(False, False, False, "gelu", True, False, 1e-5, True),
    "clip": Style(False, False, False, "quick_gelu", True, False, 1e-5, True),
    "t5": Style(False, True, True, "relu", False, False, 1e-6, False),
}
_BUCKETS, _FARTHEST = 32, 128  # of T5's relative positions


def drop(x: jax.Array, keys: jax.Array | None, number: int, rate: float) -> jax.Array:
    """Dropout of x [B, ...] with one typed key for each example.

    Args:
      keys: [B]; None drops nothing.
      number: of this place in the network, folded into the keys.
      rate: probability that a value is set to 0; the others are divided by 1 - rate. It is rounded
        to a multiple of 2^-16.
    """
    if keys is None or not rate:
        return x
    # Sixteen bits for each value: half the work of a float, and most of the cost on a CPU.
    threshold = round(rate * 2**16)
    bits = jax.vmap(
        lambda key: jax.random.bits(jax.random.fold_in(key, number), x.shape[1:], jnp.uint16)
    )(keys)
    return jnp.where(bits >= threshold, x / (1 - threshold / 2**16), jnp.zeros_like(x))


def fold(keys: jax.Array | None, number: int) -> jax.Array | None:
    """[B] keys of a part of the network; None stays None."""
    if keys is None:
        return None
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


class Attention(nn.Module):
    """Multi-head attention of x [B, T, D] to a memory [B, S, D], x itself where none is given.

    `__call__(x, memory, mask, bias, keys)`. mask: booleans that broadcast to [B, 1, T, S], True
    where a token may be attended to; a row without any gives the mean over all. bias: added to the
    scores, broadcast to [B, heads, T, S]. keys: [B] for dropout of the weights, or None.
    """

    width: int
    heads: int
    bias: bool = True
    scaled: bool = True
    dropout: float = 0.0
    query_init: Any = nn.initializers.normal(0.02)
    kernel_init: Any = nn.initializers.normal(0.02)
    out_init: Any = nn.initializers.normal(0.02)
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        memory: jax.Array | None = None,
        mask: jax.Array | None = None,
        bias: jax.Array | None = None,
        keys: jax.Array | None = None,
    ) -> jax.Array:
        def heads(name: str, given: jax.Array) -> jax.Array:
            y = nn.Dense(
                self.width,
                use_bias=self.bias,
                dtype=self.dtype,
                kernel_init=self.query_init if name == "query" else self.kernel_init,
                name=name,
            )(given)
            return y.reshape(*y.shape[:2], self.heads, self.width // self.heads)

        memory = x if memory is None else memory
        q, k, v = heads("query", x), heads("key", memory), heads("value", memory)
        wide = jnp.promote_types(q.dtype, jnp.float32)
        scores = jnp.einsum("bthd,bshd->bhts", q, k, preferred_element_type=wide)
        if self.scaled:
            scores = scores / q.shape[-1] ** 0.5
        if bias is not None:
            scores = scores + jnp.broadcast_to(bias, scores.shape).astype(wide)
        if mask is not None:
            scores = jnp.where(jnp.broadcast_to(mask, scores.shape), scores, -1e9)
        weights = drop(jax.nn.softmax(scores, axis=-1).astype(v.dtype), keys, 0, self.dropout)
        y = jnp.einsum("bhts,bshd->bthd", weights, v).reshape(*x.shape[:2], self.width)
        return nn.Dense(
            self.width,
            use_bias=self.bias,
            dtype=self.dtype,
            kernel_init=self.out_init,
            name="out",
        )(y)


class Block(nn.Module):
    """Attention, attention to a memory where there is one, and an MLP, each with a residual.

    `__call__(x, norms, mask, ...)`. norms: one normalisation for each branch in that order. They
    are the caller's modules, so that two callers can share the weights of a block and have norms of
    their own.
    """

    width: int
    heads: int
    style: Style
    depth: int  # of the whole network: initial weights of CLIP's depend on it
    hidden: int
    dropout: float = 0.0
    cross: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        norms: Sequence[Norm],
        *,
        mask: jax.Array | None = None,
        bias: jax.Array | None = None,
        memory: jax.Array | None = None,
        memory_mask: jax.Array | None = None,
        keys: jax.Array | None = None,
    ) -> jax.Array:
        style, init = (
            self.style,
            _inits(self.style, self.width, self.depth, self.hidden, self.heads),
        )

        def attention(name: str) -> Attention:
            return Attention(
                self.width,
                self.heads,
                style.bias,
                style.scaled,
                self.dropout,
                init["query"],
                init["attention"],
                init["out"],
                self.dtype,
                name=name,
            )

        def mlp(y: jax.Array) -> jax.Array:
            dense = [
                nn.Dense(
                    size,
                    use_bias=style.bias,
                    dtype=self.dtype,
                    kernel_init=init[name],
                    name=name,
                )
                for size, name in ((self.hidden, "mlp1"), (self.width, "mlp2"))
            ]
            y = _activation(style.activation)(dense[0](y))
            if style.rms_norm:  # T5 drops hidden values too
                y = drop(y, fold(keys, 3), 1, self.dropout)
            return dense[1](y)

        def residual(x: jax.Array, norm: Norm, number: int, branch: Norm) -> jax.Array:
            if style.post_norm:
                return norm(x + drop(branch(x), fold(keys, number), 2, self.dropout))
            return x + drop(branch(norm(x)), fold(keys, number), 2, self.dropout)

        x = residual(
            x,
            norms[0],
            1,
            lambda y: attention("attention")(y, None, mask, bias, fold(keys, 1)),
        )
        if self.cross:
            if memory is None:
                raise ValueError("this block attends to a memory [B, S, D] and none is given.")
            x = residual(
                x,
                norms[1],
                2,
                lambda y: attention("cross")(y, memory, memory_mask, None, fold(keys, 2)),
            )
        return residual(x, norms[-1], 3, mlp)


class Transformer(nn.Module):
    """Token numbers [B, T] to a dict of features; "h" is what heads and evaluators take.

    `__call__(tokens, *, train, keys=None, mask=None, memory=None, memory_mask=None)`.
      keys: [B] typed keys for dropout in training; without them nothing is dropped.
      mask: booleans [B, T] or [B, T, T], True at what may be attended to; None for all tokens but
        padding.
      memory: [B, S, D] that a network with cross-attention attends to, with memory_mask [B, S].

    Returns {"tokens": [B, T, D] of the last layer, after the last norm, "h": [B, D] by `pool`},
    and "layers": [1 + L, B, T, D], the embeddings and the output of each layer, where `pool` reads
    several layers.

    Args:
      vocab_size, length: rows of the tables of tokens and of positions.
      width, depth, heads: of the network. hidden: of its MLPs; None is 4 * width.
      style: a key of STYLES.
      causal: a token sees those before it alone.
      cross: blocks attend to a memory too.
      pool: "cls", "avg", "avg_top2", "avg_first_last" (`heads.pooling`), or "eos" for the first end
        token of each row (the last token where there is none).
      dropout: probability, of what branches add, attention weights and embeddings.
      table: a table of tokens that the network shares with another; None for its own.
      dtype: of matrix products; parameters, norms, softmax and the residual stream are float32.
    """

    vocab_size: int
    length: int
    width: int
    depth: int
    heads: int
    hidden: int | None = None
    style: str = "bert"
    causal: bool = False
    cross: bool = False
    pool: str = "avg"
    dropout: float = 0.1
    dtype: Any = None
    table: nn.Embed | None = None

    def setup(self) -> None:
        style = STYLES[self.style]
        hidden = self.hidden or 4 * self.width
        self.embedding = self.table or token_table(self.vocab_size, self.width, self.style)
        if style.relative:
            self.relative = self.param(
                "relative", nn.initializers.normal(self.width**-0.5), (_BUCKETS, self.heads)
            )
        else:
            position_scale = 0.01 if self.style == "clip" else 0.02
            self.positions = self.param(
                "positions", nn.initializers.normal(position_scale), (self.length, self.width)
            )
        if style.embedding_norm:
            # BERT's second table tells the two sentences of a pair apart; here all are the first.
            self.segments = self.param("segments", nn.initializers.normal(0.02), (2, self.width))
            self.norm = _norm(style)
        self.blocks = [
            Block(
                self.width,
                self.heads,
                style,
                self.depth,
                hidden,
                self.dropout,
                self.cross,
                self.dtype,
            )
            for _ in range(self.depth)
        ]
        each = 3 if self.cross else 2
        self.norms = [[_norm(style) for _ in range(each)] for _ in range(self.depth)]
        if not style.post_norm:
            self.last_norm = _norm(style)

    def __call__(
        self,
        tokens: jax.Array,
        *,
        train: bool,
        keys: jax.Array | None = None,
        mask: jax.Array | None = None,
        memory: jax.Array | None = None,
        memory_mask: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        style = STYLES[self.style]
        check_integer("b t", tokens=tokens)
        length = tokens.shape[1]
        if length > self.length and not style.relative:
            raise ValueError(
                f"tokens have shape {tokens.shape}; this transformer has positions for "
                f"length={self.length}. Raise it, or shorten the sentences of the data."
            )
        keys = keys if train else None
        real = tokens != PAD
        allowed = attended(real if mask is None else mask, causal=self.causal)
        x = self.embedding(tokens.astype(jnp.int32))
        if not style.relative:
            x = x + jnp.broadcast_to(self.positions[None, :length], x.shape)
        if style.embedding_norm:
            x = self.norm(x + jnp.broadcast_to(self.segments[:1, None], x.shape))
        x = drop(x, fold(keys, 0), 0, self.dropout)
        bias = (
            relative_bias(self.relative, length, both=not self.causal) if style.relative else None
        )
        layers = [x]
        for number, (block, norms) in enumerate(zip(self.blocks, self.norms), 1):
            x = block(
                x,
                norms,
                mask=allowed,
                bias=bias,
                memory=memory,
                memory_mask=None if memory_mask is None else memory_mask[:, None, None, :],
                keys=fold(keys, number),
            )
            layers.append(x)
        if not style.post_norm:
            x = self.last_norm(x)
            if style.rms_norm:
                x = drop(x, fold(keys, self.depth + 1), 0, self.dropout)
            layers[-1] = x
        return {"tokens": x} | self._pooled(tokens, real, layers)

    def _pooled(
        self, tokens: jax.Array, real: jax.Array, layers: list[jax.Array]
    ) -> dict[str, jax.Array]:
        if self.pool == "eos":
            return {"h": at_end(layers[-1], tokens)}
        if self.pool in ("avg_top2", "avg_first_last"):
            stacked = jnp.stack(layers)
            return {"h": pool(stacked, real, pooler=self.pool), "layers": stacked}
        return {"h": pool(jnp.stack([layers[0], layers[-1]]), real, pooler=self.pool)}

    def attend(self, states: jax.Array) -> jax.Array:
        """[B, T, vocab] products of states [B, T, D] with the table of tokens, which a head that
        predicts tokens shares."""
        return self.embedding.attend(states)


class EncoderDecoder(nn.Module):
    """T5: an encoder, a decoder that attends to it, and one table of tokens for both and for the
    output.

    `__call__(tokens, decoder_tokens, *, train, keys=None)` -> logits [B, U, vocab] of the token
    after each of decoder_tokens [B, U]. `encode` and `decode` are its halves. The arguments are
    those of `Transformer`; depth, that of each half.
    """

    vocab_size: int
    length: int
    width: int
    depth: int
    heads: int
    hidden: int | None = None
    style: str = "t5"
    dropout: float = 0.1
    dtype: Any = None

    def setup(self) -> None:
        self.embedding = token_table(self.vocab_size, self.width, self.style)
        self.encoder, self.decoder = (
            Transformer(
                self.vocab_size,
                self.length,
                self.width,
                self.depth,
                self.heads,
                self.hidden,
                self.style,
                causal=decoder,
                cross=decoder,
                dropout=self.dropout,
                dtype=self.dtype,
                table=self.embedding,
            )
            for decoder in (False, True)
        )

    def __call__(
        self,
        tokens: jax.Array,
        decoder_tokens: jax.Array,
        *,
        train: bool,
        keys: jax.Array | None = None,
    ) -> jax.Array:
        memory = self.encode(tokens, train=train, keys=keys)
        return self.decode(decoder_tokens, memory, tokens != PAD, train=train, keys=fold(keys, 1))

    def encode(self, tokens: jax.Array, *, train: bool, keys: jax.Array | None = None) -> jax.Array:
        """[B, T, D] of the last layer of the encoder."""
        return self.encoder(tokens, train=train, keys=fold(keys, 0))["tokens"]

    def decode(
        self,
        decoder_tokens: jax.Array,
        memory: jax.Array,
        memory_mask: jax.Array,
        *,
        train: bool,
        keys: jax.Array | None = None,
        at: jax.Array | None = None,
    ) -> jax.Array:
        """[B, U, vocab] logits. Every decoder token is attended to: its first one is PAD in T5, and
        what follows the last is not read. at: the one place whose logits are wanted, [B, 1, vocab];
        the table of tokens is most of the cost where sentences are short."""
        states = self.decoder(
            decoder_tokens,
            train=train,
            keys=keys,
            mask=jnp.ones(decoder_tokens.shape, bool),
            memory=memory,
            memory_mask=memory_mask,
        )["tokens"]
        if at is not None:
            states = jax.lax.dynamic_slice_in_dim(states, at, 1, axis=1)
        return self.embedding.attend(states * self.width**-0.5)


def attended(mask: jax.Array, *, causal: bool) -> jax.Array:
    """[B, 1, T, T] booleans from [B, T], which tokens may be attended to, or [B, T, T], by whom."""
    allowed = mask[:, None, None, :] if mask.ndim == 2 else mask[:, None]
    if causal:
        length = mask.shape[-1]
        allowed = allowed & jnp.tril(jnp.ones((length, length), bool))[None, None]
    return allowed


def at_end(states: jax.Array, tokens: jax.Array) -> jax.Array:
    """[B, D] of states [B, T, D] at the first END of each row of tokens [B, T]; at the last token
    that is not padding where a row has no END."""
    ends = tokens == END
    last = jnp.maximum(jnp.sum(tokens != PAD, axis=1) - 1, 0)
    at = jnp.where(ends.any(axis=1), jnp.argmax(ends, axis=1), last)
    return jnp.take_along_axis(states, at[:, None, None], axis=1)[:, 0]


def relative_bias(table: jax.Array, length: int, *, both: bool) -> jax.Array:
    """T5's [1, heads, T, T] bias by distance, from a table [32, heads].

    both: half of the buckets are for tokens after the query, the encoder's form; else these count
    as the query itself. Half of the buckets of a direction are one distance each, the others grow
    to 128 by logarithms. Raffel et al. 2020, arXiv 1910.10683, section 2.1 and the authors' code.
    """
    distance = jnp.arange(length)[None, :] - jnp.arange(length)[:, None]
    buckets, offset = _BUCKETS, jnp.zeros((), jnp.int32)
    if both:
        buckets //= 2
        offset = jnp.where(distance > 0, buckets, 0)
        distance = jnp.abs(distance)
    else:
        distance = jnp.maximum(-distance, 0)
    exact = buckets // 2
    grown = jnp.log(jnp.maximum(distance, 1) / exact) / math.log(_FARTHEST / exact)
    large = exact + (grown * (buckets - exact)).astype(jnp.int32)
    bucket = offset + jnp.where(distance < exact, distance, jnp.minimum(large, buckets - 1))
    return jnp.moveaxis(table[bucket], -1, 0)[None]


def token_table(vocab_size: int, width: int, style: str) -> nn.Embed:
    """The table of tokens of a style, with the authors' initial standard deviation."""
    scale = 1.0 if STYLES[style].rms_norm else 0.02
    return nn.Embed(vocab_size, width, embedding_init=nn.initializers.normal(scale))


def _norm(style: Style) -> nn.Module:
    kind = nn.RMSNorm if style.rms_norm else LayerNorm
    return kind(epsilon=style.epsilon, dtype=jnp.float32)


def _activation(name: str) -> Callable[[jax.Array], jax.Array]:
    if name == "gelu":
        return gelu
    return nn.relu if name == "relu" else lambda x: x * nn.sigmoid(1.702 * x)


def _inits(style: Style, width: int, depth: int, hidden: int, heads: int) -> dict[str, Any]:
    """Initial kernels of a block: the authors' standard deviations."""
    if style.activation == "quick_gelu":
        narrow = (width * 2 * depth) ** -0.5
        found = dict(out=narrow, mlp1=(2 * width) ** -0.5, mlp2=narrow)
        found |= dict.fromkeys(("query", "attention"), width**-0.5)
    elif style.rms_norm:
        # Scores are not divided by the root of a head's width: the queries are instead.
        found = dict(query=(width * width // heads) ** -0.5, mlp2=hidden**-0.5)
        found |= dict.fromkeys(("attention", "out", "mlp1"), width**-0.5)
    else:
        found = dict.fromkeys(("query", "attention", "out", "mlp1", "mlp2"), 0.02)
    return {name: nn.initializers.normal(scale) for name, scale in found.items()}


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
    style: str = "bert",
    causal: bool = False,
    cross: bool = False,
    pool: str = "avg",
    dropout: float = 0.1,
    dtype: str | None = "float32",
    axis_name: str | None = None,
) -> Transformer:
    """A `Transformer` from a config section.

    sizes, field: how many tokens the data have, where vocab_size is None. axis_name is not read:
    nothing in it looks across examples. The others are `Transformer`'s.

    Raises:
      ValueError: an unknown style or pool, heads that do not divide the width, a dropout that is no
        probability, no vocabulary.
    """
    vocab_size = vocabulary(vocab_size, sizes, field)
    check_settings(style=style, width=width, heads=heads, dropout=dropout)
    if pool not in (*POOLERS, "eos"):
        raise ValueError(f"pool is {pool!r}; expected one of {', '.join((*POOLERS, 'eos'))}.")
    return Transformer(
        vocab_size,
        length,
        width,
        depth,
        heads,
        hidden,
        style,
        causal,
        cross,
        pool=pool,
        dropout=dropout,
        dtype=None if dtype is None else jnp.dtype(dtype),
    )


def vocabulary(given: int | None, sizes: Mapping[str, int] | None, field: str) -> int:
    """The number of tokens: what is given, or what the data say of a field.

    Raises:
      ValueError: neither is known.
    """
    known = (sizes or {}).get(field) if given is None else given
    if known is None:
        raise ValueError(
            f"the data have no {field!r} of known vocabulary (they have "
            f"{', '.join(sizes or {}) or 'no integer field'}); give vocab_size."
        )
    return known


def check_settings(*, style: str, width: int, heads: int, dropout: float) -> None:
    """Raises ValueError for an unknown style, heads that do not divide the width, or a dropout that
    is not a probability."""
    if style not in STYLES:
        raise ValueError(f"style is {style!r}; expected one of {', '.join(STYLES)}.")
    if width % heads:
        raise ValueError(f"width={width} is not divisible by heads={heads}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; expected a probability from 0, below 1.")
