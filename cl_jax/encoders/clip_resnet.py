"""CLIP's ResNets (Radford et al. 2021, arXiv 2103.00020, section 2.4): ResNet-D's stem, average
pools where others stride, and attention in the place of the mean over space."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.shapes import check_real
from cl_jax.encoders import initializers
from cl_jax.encoders.norm import BatchNorm


class Variant(NamedTuple):
    """A published network."""

    blocks: tuple[int, ...]
    width: int
    out_dim: int


VARIANTS = {
    "50": Variant((3, 4, 6, 3), 64, 1024),
    "101": Variant((3, 4, 23, 3), 64, 512),
    "50x4": Variant((4, 6, 10, 6), 80, 640),
    "50x16": Variant((6, 8, 18, 8), 96, 768),
    "50x64": Variant((3, 15, 36, 10), 128, 1024),
}


class AttentionPool(nn.Module):
    """Maps [B, H, W, C] to [B, out_dim]: the mean over space attends to itself and all places, with
    learned positions; the first call fixes H and W."""

    out_dim: int
    heads: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        wide = jnp.promote_types(x.dtype, jnp.float32)
        places = lax.collapse(x, 1, 3)
        tokens = jnp.concatenate([places.mean(1, keepdims=True), places], axis=1).astype(wide)
        init = nn.initializers.normal(width**-0.5)
        table = self.param("positions", init, (tokens.shape[1], width))
        tokens = tokens + jnp.broadcast_to(table[None], tokens.shape).astype(wide)

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, dtype=self.dtype, kernel_init=init, name=name)

        # One query alone: attention of the mean.
        found = [
            dense(width, name)(given).reshape(*given.shape[:2], self.heads, width // self.heads)
            for name, given in (("query", tokens[:, :1]), ("key", tokens), ("value", tokens))
        ]
        q, k, v = found
        scores = jnp.einsum("bqhd,bshd->bhqs", q, k, preferred_element_type=wide)
        weights = jax.nn.softmax(scores / q.shape[-1] ** 0.5, axis=-1).astype(v.dtype)
        pooled = jnp.einsum("bhqs,bshd->bqhd", weights, v).reshape(x.shape[0], width)
        return dense(self.out_dim, "out")(pooled).astype(wide)


class ClipResNet(nn.Module):
    """Images [B, H, W, C] to {"stage1", ..., "stage4": maps, "h": [B, out_dim] of the attention
    pool, float32 at least}.

    Every image has the size of the first: the pool has a position for each place of the last map,
    whose sides are those of the image divided by 32.

    Args:
      blocks: bottlenecks of each of the four stages.
      width: channels of the stem; 32 times as many are in the last map.
      out_dim: of the pool's output, the authors' common space.
      heads: of the pool; the authors' are width / 2.
      dtype: of the computation; parameters, statistics, softmax and "h" are float32.
      axis_name, splits: of every batch norm.
    """

    blocks: Sequence[int] = VARIANTS["50"].blocks
    width: int = 64
    out_dim: int = 1024
    heads: int = 32
    dtype: Any = None
    axis_name: str | None = None
    splits: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        check_real(x=x)
        if x.ndim != 4 or min(x.shape[1:3]) < 32:
            raise ValueError(
                f"x has shape {x.shape}; CLIP's ResNet expects images [B, H, W, C] of at least 32 "
                "pixels."
            )
        if self.dtype is not None:
            x = x.astype(self.dtype)
        norm = partial(
            BatchNorm,
            axis_name=self.axis_name,
            splits=self.splits,
            dtype=self.dtype,
            unbiased_running_variance=True,
        )

        def conv(y: jax.Array, features: int, size: int, name: str, strides: int = 1) -> jax.Array:
            return nn.Conv(
                features,
                (size, size),
                (strides, strides),
                ((size // 2, size // 2),) * 2,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=initializers.kernel("torch"),
                name=name,
            )(y)

        half = self.width // 2
        for i, (features, strides) in enumerate(((half, 2), (half, 1), (self.width, 1)), 1):
            x = conv(x, features, 3, f"stem_conv{i}", strides)
            x = nn.relu(norm(name=f"stem_norm{i}")(x, train=train))
        x = nn.avg_pool(x, (2, 2), (2, 2))
        found = {}
        for stage, count in enumerate(self.blocks, 1):
            features = self.width * 2 ** (stage - 1)
            for i in range(1, count + 1):
                name, pooled = f"stage{stage}_block{i}", i == 1 and stage > 1
                y = conv(x, features, 1, f"{name}_conv1")
                y = nn.relu(norm(name=f"{name}_norm1")(y, train=train))
                y = conv(y, features, 3, f"{name}_conv2")
                y = nn.relu(norm(name=f"{name}_norm2")(y, train=train))
                y = nn.avg_pool(y, (2, 2), (2, 2)) if pooled else y
                y = conv(y, 4 * features, 1, f"{name}_conv3")
                y = norm(name=f"{name}_norm3", scale_init=nn.initializers.zeros)(y, train=train)
                if i == 1:
                    x = nn.avg_pool(x, (2, 2), (2, 2)) if pooled else x
                    x = conv(x, 4 * features, 1, f"{name}_shortcut_conv")
                    x = norm(name=f"{name}_shortcut_norm")(x, train=train)
                x = nn.relu(x + y)
            found[f"stage{stage}"] = x
        pool = AttentionPool(self.out_dim, self.heads, self.dtype, name="pool")
        return found | {"h": pool(x)}


def make(
    *,
    variant: str = "50",
    blocks: Sequence[int] | None = None,
    width: int | None = None,
    out_dim: int | None = None,
    heads: int | None = None,
    dtype: str | None = "float32",
    axis_name: str | None = None,
    splits: int = 1,
) -> ClipResNet:
    """A published encoder, "50", "101", "50x4", "50x16" or "50x64", or one of other blocks, width,
    out_dim and heads. None: the variant's.

    Raises:
      ValueError: an unknown variant, a stage without a block, heads that do not divide the width.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r} is unknown; have {', '.join(VARIANTS)}.")
    published = VARIANTS[variant]
    blocks = published.blocks if blocks is None else tuple(blocks)
    width = published.width if width is None else width
    out_dim = published.out_dim if out_dim is None else out_dim
    heads = width // 2 if heads is None else heads
    if len(blocks) != 4 or min(blocks) < 1 or width < 2 or width % 2:
        raise ValueError(
            f"blocks={blocks}, width={width}; expected four numbers above 0, and an even width."
        )
    if heads < 1 or 32 * width % heads:
        raise ValueError(f"heads={heads} do not divide the last map's {32 * width} channels.")
    return ClipResNet(
        blocks,
        width,
        out_dim,
        heads,
        None if dtype is None else jnp.dtype(dtype),
        axis_name,
        splits,
    )
