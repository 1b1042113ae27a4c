"""Pre-activation ResNets without batch norm, for methods whose patches must not share batch
statistics: CPC.

He et al., arXiv 1603.05027: norm and ReLU come before each convolution, and the sum is left as it
is. CPC ends after the third stage, whose mean over space is a patch's encoding. `depth`: 50 and 101
as in ResNets, 161 is CPC v2's, a ResNet-101 whose third stage has 46 blocks, 4096 channels and
bottlenecks of 512 (Henaff et al., arXiv 1905.09272)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from cl_jax.core.shapes import check_real
from cl_jax.encoders import initializers
from cl_jax.encoders.pool import max_pool

Stage = tuple[int, int, int]  # blocks, bottleneck, output

STAGES: dict[int, tuple[Stage, ...]] = {
    50: ((3, 64, 256), (4, 128, 512), (6, 256, 1024), (3, 512, 2048)),
    101: ((3, 64, 256), (4, 128, 512), (23, 256, 1024), (3, 512, 2048)),
    161: ((3, 64, 256), (4, 128, 512), (46, 512, 4096)),
}
STEMS = {
    "imagenet": (7, 2, True),
    "strided": (3, 2, False),
    "cifar": (3, 1, False),
}  # kernel, strides, max-pool
NORMS = ("layer", "none")


class ResNetV2(nn.Module):
    """Images [B, H, W, C] to {"stem", "stage1", "stage2", ...: maps, "h": [B, D] mean over space of
    the last map after norm and ReLU, float32 at least}. Nothing looks across examples.

    Args:
      stages: (blocks, channels of the bottleneck, channels of the output) of each.
      stem: "imagenet" (7x7 of stride 2 and a max-pool), "strided" (3x3 of stride 2), "cifar" (3x3
        of stride 1).
      stem_width: channels of the stem.
      norm: "layer", moments of each example over space and channels, scale and shift by channel; or
        "none", where convolutions have biases and the last one of a block starts at 0, so that
        depth does not blow up the sum.
      dtype: of the computation; parameters and "h" are float32 always. None follows the input.
    """

    stages: Sequence[Stage]
    stem: str = "imagenet"
    stem_width: int = 64
    norm: str = "layer"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        check_real(x=x)
        if x.ndim != 4:
            raise ValueError(f"x has shape {x.shape}; ResNetV2 expects images [B, H, W, C].")
        if self.stem not in STEMS:
            raise ValueError(f"stem {self.stem!r} is unknown; have {', '.join(STEMS)}.")
        if self.norm not in NORMS:
            raise ValueError(f"norm {self.norm!r} is unknown; have {', '.join(NORMS)}.")
        if self.dtype is not None:
            x = x.astype(self.dtype)
        wide = jnp.promote_types(jnp.result_type(x), jnp.float32)
        conv = partial(_conv, bias=self.norm == "none", dtype=self.dtype)
        activate = partial(_activate, norm=self.norm, dtype=self.dtype)
        kernel, strides, pool = STEMS[self.stem]
        x = conv(self.stem_width, kernel, strides, name="stem_conv")(x)
        if pool:
            x = max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        features = {"stem": x}
        for stage, (blocks, bottleneck, channels) in enumerate(self.stages, start=1):
            for i in range(1, blocks + 1):
                strides = 2 if i == 1 and stage > 1 else 1
                x = Block(
                    bottleneck,
                    channels,
                    strides,
                    conv,
                    activate,
                    zero_last=self.norm == "none",
                    name=f"stage{stage}_block{i}",
                )(x)
            features[f"stage{stage}"] = x
        features["h"] = activate(x, name="last_norm").astype(wide).mean((1, 2))
        return features


class Block(nn.Module):
    """One bottleneck; its shortcut is a 1x1 convolution of the activated input where shapes
    change."""

    bottleneck: int
    channels: int
    strides: int
    conv: Callable[..., nn.Module]
    activate: Callable[..., jax.Array]
    zero_last: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.activate(x, name="norm1")
        if self.strides > 1 or x.shape[-1] != self.channels:
            x = self.conv(self.channels, 1, self.strides, name="shortcut_conv")(y)
        y = self.activate(self.conv(self.bottleneck, 1, 1, name="conv1")(y), name="norm2")
        y = self.activate(
            self.conv(self.bottleneck, 3, self.strides, name="conv2")(y), name="norm3"
        )
        return x + self.conv(self.channels, 1, 1, zero=self.zero_last, name="conv3")(y)


def _activate(x: jax.Array, *, norm: str, dtype: Any, name: str) -> jax.Array:
    if norm == "layer":
        x = nn.LayerNorm(
            epsilon=1e-5, reduction_axes=(1, 2, 3), feature_axes=3, dtype=dtype, name=name
        )(x)
    return nn.relu(x)


def _conv(
    features: int, size: int, strides: int, *, bias: bool, dtype: Any, name: str, zero: bool = False
) -> nn.Conv:
    kernel_init = nn.initializers.zeros if zero else initializers.kernel("he_fan_out")
    return nn.Conv(
        features,
        (size, size),
        (strides, strides),
        (size - 1) // 2,
        use_bias=bias,
        dtype=dtype,
        kernel_init=kernel_init,
        name=name,
    )


def make(
    *,
    depth: int = 101,
    num_stages: int = 3,
    stages: Sequence[Sequence[int]] | None = None,
    width: float = 1.0,
    stem: Literal["imagenet", "strided", "cifar"] = "imagenet",
    norm: Literal["layer", "none"] = "layer",
    dtype: str | None = "float32",
    axis_name: str | None = None,
) -> ResNetV2:
    """A `ResNetV2` by its depth, or by `stages`; `width` multiplies every channel count, the stem's
    64 included.

    axis_name: not used: nothing here looks across examples.

    Raises:
      ValueError: an unknown depth, more stages than it has, a width that leaves a layer without
        channels.
    """
    del axis_name
    if stages is None:
        if depth not in STAGES:
            raise ValueError(
                f"depth {depth} is unknown; have {', '.join(map(str, STAGES))}, or give stages."
            )
        if not 1 <= num_stages <= len(STAGES[depth]):
            raise ValueError(
                f"num_stages={num_stages}; a ResNet-{depth} here has 1 to {len(STAGES[depth])}."
            )
        stages = STAGES[depth][:num_stages]
    scaled = tuple(
        (int(blocks), int(bottleneck * width), int(channels * width))
        for blocks, bottleneck, channels in stages
    )
    if min(map(min, scaled)) < 1 or int(64 * width) < 1:
        raise ValueError(
            f"stages={tuple(map(tuple, stages))} with width={width} has a stage without blocks or "
            f"channels."
        )
    return ResNetV2(
        stages=scaled,
        stem=stem,
        stem_width=int(64 * width),
        norm=norm,
        dtype=None if dtype is None else jnp.dtype(dtype),
    )
