"""Vision transformers as MoCo v3 and DINO have them: pre-norm blocks, class token or mean, fixed or
learned positions.

Dosovitskiy et al., arXiv 2010.11929. `variant` names whose initial weights and positions they are:

  variant  positions                                 dense kernels   class token   patch projection
  moco_v3  fixed 2-d sines and cosines               Xavier uniform  N(0, 1e-6)    Xavier, bias 0
  dino     learned, resized bicubically when needed  N(0, 0.02)      N(0, 0.02)    PyTorch's default
  mae      fixed, the row of patches outermost       Xavier uniform  N(0, 0.02)    Xavier, bias 0

Biases of dense layers start at 0. MoCo v3 takes each of query, key and value as a matrix of its own
for Xavier's bound, MAE the three as one.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.gelu import gelu
from cl_jax.core.linear import linear
from cl_jax.core.shapes import check_real
from cl_jax.encoders import initializers, masking, positions
from cl_jax.encoders.layer_norm import LayerNorm

SIZES = {  # name: (width, depth, heads). MoCo v3's small has 12 heads (heads=12).
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), on tokens [B, T, D]; with `keep` [B, 2]
    branches may be left out."""

    width: int
    heads: int
    mlp_ratio: float
    kernel_init: Callable[..., Any]
    qkv_init: Callable[..., Any]
    flash: bool
    dtype: Any

    @nn.compact
    def __call__(
        self, x: jax.Array, keep: jax.Array | None, attention: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        batch, tokens, width = x.shape
        y = _norm("norm1", x, self.dtype)
        qkv = nn.Dense(3 * width, dtype=self.dtype, kernel_init=self.qkv_init, name="qkv")(y)
        q, k, v = jnp.moveaxis(qkv.reshape(batch, tokens, 3, self.heads, width // self.heads), 2, 0)
        weights = jax.nn.softmax(_logits(q, k), axis=-1) if attention else None
        y = (_flash if self.flash else _attention)(q, k, v).reshape(batch, tokens, width)
        x = x + _scaled(self._dense(width, "projection")(y), keep, 0)
        y = _gelu(self._dense(int(width * self.mlp_ratio), "mlp1")(_norm("norm2", x, self.dtype)))
        return x + _scaled(self._dense(width, "mlp2")(y), keep, 1), weights

    def _dense(self, features: int, name: str) -> nn.Dense:
        return nn.Dense(features, dtype=self.dtype, kernel_init=self.kernel_init, name=name)


class ViT(nn.Module):
    """Images [B, H, W, C] to a dict of features; "h" is what heads and evaluators take.

    Returns {"tokens": [B, 1 + P, D] after the last norm, class token first, "blocks": [B, n, D]
    class tokens of the last n = min(4, depth) blocks through the last norm (what DINO probes), "h":
    [B, D] by `pool`}, float32 at least; with `attention` also "attention": [B, heads, 1 + P, 1 + P]
    weights of the last block.

    `__call__(x, *, train, drop_keys=None, attention=False, mask=None, kept=None)`. drop_keys: [B]
    typed keys, one per example, for stochastic depth in training; without them nothing is dropped.
    mask: [B, P] booleans, patches whose embedding the learned mask token replaces before positions
    are added (iBOT, SimMIM). kept: [B, K] the patches that go through the blocks, after positions
    are added; "tokens" are then [B, 1 + K, D] in that order (MAE).

    Args:
      width, depth, heads: of the transformer; `make` has the named sizes.
      patch: side of a patch in pixels; images are multiples of it.
      image_size: side that learned positions are of; other sizes resize them.
      variant: "moco_v3", "dino" or "mae": see the module's table.
      mask_token: whether there is a mask token: N(0, 0.02) at first of "mae", else 0.
      pool: "cls" for the class token, "mean" for the mean of the patches.
      freeze_patches: no gradient to the patch projection, which stays random (MoCo v3, section 4).
        An optimiser that decays it needs freeze_paths=("patches",), freeze_steps=-1.
      drop_path: probability of leaving out a branch in the last block, rising linearly from 0 in
        the first.
      flash: attention by cuDNN's kernel, which keeps the [T, T] weights to itself: NVIDIA GPUs from
        Ampere on, with dtype bfloat16.
      dtype: of matrix products, float32 or bfloat16; parameters, norms, softmax and the residual
        stream are float32 always.
    """

    width: int
    depth: int
    heads: int
    patch: int = 16
    image_size: int = 224
    variant: str = "dino"
    pool: str = "cls"
    mlp_ratio: float = 4.0
    freeze_patches: bool = False
    drop_path: float = 0.0
    flash: bool = False
    mask_token: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool,
        drop_keys: jax.Array | None = None,
        attention: bool = False,
        mask: jax.Array | None = None,
        kept: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        check_real(x=x)
        if x.ndim != 4 or x.shape[1] % self.patch or x.shape[2] % self.patch:
            raise ValueError(
                f"x has shape {x.shape}; ViT expects images [B, H, W, C] whose sides are "
                f"multiples of its "
                f"patch of {self.patch} pixels."
            )
        batch, height, width, channels = x.shape
        theirs = self.variant in ("moco_v3", "mae")
        patch_bound = (6 / (channels * self.patch**2 + self.width)) ** 0.5
        x = nn.Conv(
            self.width,
            (self.patch,) * 2,
            (self.patch,) * 2,
            "VALID",
            dtype=self.dtype,
            name="patches",
            kernel_init=_uniform(patch_bound) if theirs else initializers.kernel("torch"),
            bias_init=nn.initializers.zeros
            if theirs
            else initializers.bias("torch", channels * self.patch**2),
        )(x)
        if self.freeze_patches:
            x = jax.lax.stop_gradient(x)
        x = self._masked(lax.collapse(x, 1, 3), mask)
        spread = 1e-6 if self.variant == "moco_v3" else 0.02
        token = self.param("class_token", nn.initializers.normal(spread), (1, 1, self.width))
        x = jnp.concatenate(
            [jnp.broadcast_to(token, (batch, 1, self.width)).astype(x.dtype), x], axis=1
        )
        table = self._positions(height, width)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32)) + jnp.broadcast_to(
            table, x.shape
        )  # the stream is float32
        if kept is not None:
            x = jnp.concatenate([x[:, :1], masking.take(x[:, 1:], kept)], axis=1)
        kernel = nn.initializers.xavier_uniform() if theirs else initializers.kernel("trunc_0.02")
        separate = _uniform((6 / (2 * self.width)) ** 0.5)
        qkv = separate if self.variant == "moco_v3" else kernel
        keep = (
            self._kept(batch, drop_keys)
            if train and drop_keys is not None and self.drop_path > 0
            else None
        )
        last, weights = [], None
        for i in range(self.depth):
            block = Block(
                self.width,
                self.heads,
                self.mlp_ratio,
                kernel,
                qkv,
                self.flash,
                self.dtype,
                name=f"block{i + 1}",
            )
            x, weights = block(
                x, None if keep is None else keep[:, i], attention and i == self.depth - 1
            )
            last.append(x[:, 0])
        norm = LayerNorm(epsilon=1e-6, dtype=jnp.promote_types(x.dtype, jnp.float32), name="norm")
        tokens = norm(x)
        features = {
            "tokens": tokens,
            "blocks": norm(jnp.stack(last[-4:], axis=1)),
            "h": tokens[:, 0] if self.pool == "cls" else tokens[:, 1:].mean(axis=1),
        }
        return features if weights is None else features | {"attention": weights}

    def _masked(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        if not self.mask_token:
            if mask is not None:
                raise ValueError("a mask is given and there is no mask token; set mask_token=True.")
            return x
        start = nn.initializers.normal(0.02) if self.variant == "mae" else nn.initializers.zeros
        token = jnp.asarray(self.param("mask_token", start, (1, 1, self.width)))
        if mask is None:
            return x
        if mask.shape != x.shape[:2]:
            raise ValueError(
                f"mask has shape {mask.shape}; expected {x.shape[:2]}, an entry for each patch."
            )
        return jnp.where(mask[:, :, None], token.astype(x.dtype), x)

    def _positions(self, height: int, width: int) -> jax.Array:
        if self.variant in ("moco_v3", "mae"):
            grid = height // self.patch, width // self.patch
            return positions.sincos_2d(*grid, self.width, order=self.variant)
        side = self.image_size // self.patch
        table = self.param(
            "positions", nn.initializers.normal(0.02), (1, 1 + side * side, self.width)
        )
        return positions.interpolate(jnp.asarray(table), height, width, patch=self.patch)

    def _kept(self, batch: int, keys: jax.Array) -> jax.Array:
        """[B, depth, 2] factors: 0 where a branch is left out, 1 / (1 - its probability) where it
        is kept."""
        rates = jnp.linspace(0.0, self.drop_path, self.depth)[None, :, None]
        drawn = jax.vmap(lambda key: jax.random.uniform(key, (self.depth, 2)))(keys)
        return jnp.where(drawn >= rates, 1 / (1 - rates), 0.0)


def _norm(name: str, x: jax.Array, dtype: Any) -> jax.Array:
    y = LayerNorm(epsilon=1e-6, dtype=jnp.promote_types(x.dtype, jnp.float32), name=name)(x)
    return y if dtype is None else y.astype(dtype)


def _scaled(branch: jax.Array, keep: jax.Array | None, number: int) -> jax.Array:
    return branch if keep is None else branch * keep[:, number, None, None].astype(branch.dtype)


# Keeps its argument alone: a twelfth of the memory of a step of ViT-B/16.
_gelu = jax.checkpoint(gelu)


@jax.custom_jvp
def _attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k / sqrt(D)) v of [B, T, heads, D].

    Of all that is as large as [B, heads, T, T] one array is kept, in the dtype of q: exponentials
    before they are divided by their sums. Differentiation would keep the softmax in float32 beside
    it, and take its products in float32."""
    return _forward(q, k, v)[0]


@_attention.defjvp
def _attention_jvp(
    primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    q, k, v = primals
    y, kept = _forward(q, k, v)
    return y, linear(_tangent, _gradients, kept, tangents)


def _tangent(kept: tuple[jax.Array, ...], moved: tuple[jax.Array, ...]) -> jax.Array:
    q, k, v, exponentials, sums = kept
    tokens, (dq, dk, dv) = moved[0].shape[1], map(_padded, moved)
    weights = exponentials.astype(sums.dtype) / sums
    d_logits = _logits(dq, k) + _logits(q, dk)
    d_weights = weights * (d_logits - (weights * d_logits).sum(-1, keepdims=True))
    left, right = jnp.concatenate([d_weights, weights], -1), jnp.concatenate([v, dv], 1)
    y = jnp.einsum("bhqk,bkhd->bqhd", left, right.astype(sums.dtype))
    return y.astype(q.dtype)[:, :tokens]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    tokens = q.shape[1]
    q, k, v = map(_padded, (q, k, v))
    logits = _logits(q, k)
    if tokens < logits.shape[-1]:
        logits = jnp.where(
            jnp.arange(logits.shape[-1])[None, None, None, :] < tokens, logits, -jnp.inf
        )
    exponentials = jnp.exp(logits - logits.max(-1, keepdims=True)).astype(q.dtype)
    exponentials = lax.optimization_barrier(
        exponentials
    )  # else XLA keeps those before the rounding
    sums = exponentials.astype(logits.dtype).sum(-1, keepdims=True)  # [B, heads, T, 1]
    y = jnp.einsum(
        "bhqk,bkhd->bqhd", exponentials, v, preferred_element_type=logits.dtype
    ) / sums.swapaxes(1, 2)
    return y.astype(q.dtype)[:, :tokens], (q, k, v, exponentials, sums)


def _gradients(kept: tuple[jax.Array, ...], dy: jax.Array) -> tuple[jax.Array, ...]:
    """Of q, k and v."""
    q, k, v, exponentials, sums = kept
    tokens, wide = dy.shape[1], sums.dtype
    dy = (_padded(dy) / sums.swapaxes(1, 2)).astype(q.dtype)
    d_weights, weights = (
        jnp.einsum("bqhd,bkhd->bhqk", dy, v).astype(wide),
        exponentials.astype(wide),
    )
    d_logits = weights * (d_weights - (weights * d_weights).sum(-1, keepdims=True) / sums)
    d_logits = (d_logits / q.shape[-1] ** 0.5).astype(q.dtype)
    d_q = jnp.einsum("bhqk,bkhd->bqhd", d_logits, k)
    d_k, d_v = (
        jnp.einsum("bhqk,bqhd->bkhd", *pair) for pair in ((d_logits, q), (exponentials, dy))
    )
    return d_q[:, :tokens], d_k[:, :tokens], d_v[:, :tokens]


def _padded(x: jax.Array) -> jax.Array:
    """x [B, T, heads, D] with zeros to a multiple of 8 tokens in 16 bits, as GPUs multiply: else
    XLA pads what is T x T."""
    more = -x.shape[1] % 8 if x.dtype.itemsize == 2 else 0
    return jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0)))


def _flash(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k / sqrt(D)) v by cuDNN, [B, T, heads, D]: logits and weights [B, heads, T, T] stay
    inside its kernel."""
    batch, tokens = q.shape[:2]
    # cuDNN differentiates even lengths only: one more token, which nobody attends to.
    q, k, v = (jnp.pad(x, ((0, 0), (0, tokens % 2), (0, 0), (0, 0))) for x in (q, k, v))
    lengths = jnp.full(batch, tokens, jnp.int32)
    try:
        y = jax.nn.dot_product_attention(
            q,
            k,
            v,
            query_seq_lengths=lengths,
            key_value_seq_lengths=lengths,
            implementation="cudnn",
        )
    except RuntimeError as error:
        raise ValueError(
            f"flash=True is cuDNN's attention, and jax says: {error} It needs an NVIDIA GPU and "
            "pip install '.[cuda]'; leave flash out elsewhere."
        ) from error
    return y[:, :tokens]


def _logits(q: jax.Array, k: jax.Array) -> jax.Array:
    """q k / sqrt(D) of [B, T, heads, D]: [B, heads, T, T], float32 at least."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    return jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=wide) / q.shape[-1] ** 0.5


def _uniform(bound: float) -> Callable[..., jax.Array]:
    def draw(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return draw


def make(
    *,
    size: str = "small",
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    patch: int = 16,
    image_size: int = 224,
    variant: str = "dino",
    pool: str = "cls",
    freeze_patches: bool = False,
    drop_path: float = 0.0,
    flash: bool = False,
    mask_token: bool = False,
    dtype: str | None = "float32",
    axis_name: str | None = None,
) -> ViT:
    """A `ViT` from a config section: `size` "tiny", "small", "base" or "large", of which width,
    depth and heads may be replaced. `axis_name` is not read: nothing in it looks across examples.

    Raises:
      ValueError: an unknown size, variant or pool, heads that do not divide the width, a drop_path
        that is not a probability, flash in another dtype than bfloat16.
    """
    if size not in SIZES:
        raise ValueError(f"size {size!r} is unknown; have {', '.join(SIZES)}.")
    if variant not in ("moco_v3", "dino", "mae"):
        raise ValueError(f"variant {variant!r} is unknown; have moco_v3, dino, mae.")
    if pool not in ("cls", "mean"):
        raise ValueError(f"pool is {pool!r}; expected cls or mean.")
    if not 0 <= drop_path < 1:
        raise ValueError(f"drop_path is {drop_path}; expected a probability from 0, below 1.")
    if flash and dtype != "bfloat16":
        raise ValueError(
            f"flash=True computes in 16 bits, and dtype is {dtype}; set dtype=bfloat16, or leave "
            f"flash out."
        )
    widths = [given or named for given, named in zip((width, depth, heads), SIZES[size])]
    if widths[0] % widths[2]:
        raise ValueError(f"width={widths[0]} is not divisible by heads={widths[2]}.")
    if variant == "dino" and image_size % patch:
        raise ValueError(f"image_size={image_size} is not a multiple of patch={patch}.")
    return ViT(
        width=widths[0],
        depth=widths[1],
        heads=widths[2],
        patch=patch,
        image_size=image_size,
        variant=variant,
        pool=pool,
        freeze_patches=freeze_patches,
        drop_path=drop_path,
        flash=flash,
        mask_token=mask_token,
        dtype=None if dtype is None else jnp.dtype(dtype),
    )
