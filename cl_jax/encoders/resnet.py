"""ResNets as the authors of the contrastive methods built them: post-activation, stride on the 3x3
convolution.

He et al., arXiv 1512.03385. `variant` names whose network it is; parameter counts and shapes equal
theirs:

  variant               simclr               byol                 torchvision
  shortcut 1x1 in       every stage's first  every stage's first  where shapes change
  last scale            0                    0                    1
  kernels               lecun                haiku                he_fan_out
  strided convolutions  symmetric padding    "SAME"               symmetric
  max-pool              "SAME"               "SAME"               symmetric
  running variance      biased               biased               unbiased

"torchvision" is the network of InstDisc, InvaSpread, MoCo v1-v3, SimSiam, SwAV (which pads by 1 and
then by 2: the same), PCL, CMC and DINO. MoCo v3 and SimSiam start the last scale at 0
(`zero_init_last=True`); CMC keeps 64 stem channels at every width (`stem_width=64`). InstDisc and
InvaSpread on CIFAR-10 start kernels as PyTorch's layers come (`kernel_init="torch"`). BYOL's
released code starts the last scale at 0, its paper's runs at 1."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from cl_jax.core.shapes import check_real
from cl_jax.encoders import initializers
from cl_jax.encoders.convolve import convolve
from cl_jax.encoders.norm import BatchNorm
from cl_jax.encoders.pool import max_pool

BLOCKS = {  # depth: (blocks per stage, bottleneck)
    10: ((1, 1, 1, 1), False),
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
    200: ((3, 24, 36, 3), True),
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """What differs between the authors' ResNets of one depth."""

    project_always: (
        bool  # a 1x1 shortcut in the first block of every stage, also where shapes agree
    )
    zero_init_last: bool  # the last batch-norm scale of each block starts at 0
    kernel_init: str  # a name of cl_jax.encoders.initializers
    same_convolutions: (
        bool  # "SAME" padding of strided convolutions: (0, 1) for 3x3, (2, 3) for 7x7
    )
    same_pool: bool  # "SAME" padding of the stem's max-pool: (0, 1) on even sizes
    unbiased_running_variance: bool


VARIANTS = {
    "simclr": Variant(True, True, "lecun", False, True, False),
    "byol": Variant(True, True, "haiku", True, True, False),
    "torchvision": Variant(False, False, "he_fan_out", False, False, True),
}


class SKConv(nn.Module):
    """Selective-kernel convolution of SimCLR v2: two 3x3 streams, mixed per channel by a softmax
    over their content.

    [u1, u2] = relu(norm(conv(x))),  g = relu(norm(W1 mean_HW(u1 + u2))),
    a = softmax over streams of W2 g,  y = a1 * u1 + a2 * u2;
    x [B, H, W, C] -> [B, H/strides, W/strides, features]. W1 has max(features * ratio, min_dim)
    outputs. Li et al., arXiv 1903.06586 as in Chen et al., arXiv 2006.10029 (both streams 3x3,
    without dilation)."""

    features: int
    strides: int
    ratio: float
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    min_dim: int = 32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = self.conv(2 * self.features, 3, self.strides, name="conv")(x)
        x = nn.relu(self.norm(name="norm")(x, train=train))
        streams = x.reshape(*x.shape[:-1], 2, self.features)
        content = streams.sum(-2).mean((1, 2), keepdims=True)
        content = self.conv(
            max(int(self.features * self.ratio), self.min_dim), 1, 1, name="squeeze_conv"
        )(content)
        content = nn.relu(self.norm(name="squeeze_norm")(content, train=train))
        logits = self.conv(2 * self.features, 1, 1, name="mix_conv")(content)
        logits = logits.reshape(*logits.shape[:-1], 2, self.features)
        weights = nn.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), axis=-2)
        return (weights.astype(x.dtype) * streams).sum(-2)


class Block(nn.Module):
    """One residual block; `features` is the width of its 3x3 convolutions, a bottleneck puts out
    four times that."""

    features: int
    strides: int
    bottleneck: bool
    project: bool
    zero_init_last: bool
    sk_ratio: float
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        def norm(name, y, **settings):
            return self.norm(name=name, **settings)(y, train=train)

        out = self.features * (4 if self.bottleneck else 1)
        shortcut = x
        if self.project:
            strides = self.strides
            if self.sk_ratio > 0:  # ResNet-D comes with selective kernels in SimCLR v2
                shortcut, strides = _pool_shortcut(shortcut, strides), 1
            shortcut = norm(
                "shortcut_norm", self.conv(out, 1, strides, name="shortcut_conv")(shortcut)
            )
        if self.bottleneck:
            y = nn.relu(norm("norm1", self.conv(self.features, 1, 1, name="conv1")(x)))
            if self.sk_ratio > 0:
                y = SKConv(
                    self.features, self.strides, self.sk_ratio, self.conv, self.norm, name="sk"
                )(y, train=train)
            else:
                y = nn.relu(
                    norm("norm2", self.conv(self.features, 3, self.strides, name="conv2")(y))
                )
            last, y = "norm3", self.conv(out, 1, 1, name="conv3")(y)
        else:
            y = nn.relu(norm("norm1", self.conv(self.features, 3, self.strides, name="conv1")(x)))
            last, y = "norm2", self.conv(out, 3, 1, name="conv2")(y)
        start = nn.initializers.zeros if self.zero_init_last else nn.initializers.ones
        return nn.relu(shortcut + norm(last, y, scale_init=start))


class ResNet(nn.Module):
    """Images [B, H, W, C], any C and any size, to a dict of features; "h" is what heads and
    evaluators take.

    Returns {"conv1": before the max-pool, "stem": after it (the same map for the "cifar" stem),
    "stage1", "stage2", ...: [B, h, w, c] maps after each stage, "h": [B, D] mean of the last map
    over space, float32 at least}. D = 512 * width, or 2048 * width with bottlenecks, for four
    stages.

    Args:
      depth: 10, 18, 34 (two 3x3 per block), 50, 101, 152, 200 (bottlenecks); depth 10 is one block
        a stage.
      blocks: blocks per stage instead of the depth's, for instance (1, 1, 1); any number of stages.
      bottleneck: instead of the depth's; with `blocks` the default is False.
      width: multiplies every channel count; below 1 for laptops.
      stem: "imagenet" (7x7 stride 2, max-pool) or "cifar" (3x3 stride 1, no pool).
      stem_width: channels of the stem; None is 64 * width.
      variant: "simclr", "byol" or "torchvision": see the module's table.
      zero_init_last, kernel_init: instead of the variant's; the latter a name of
        `cl_jax.encoders.initializers`.
      sk_ratio: above 0 (SimCLR v2: 0.0625) bottlenecks get selective kernels, and the network
        ResNet-D's stem and shortcuts.
      dtype: of the computation, float32 or bfloat16; parameters, statistics and "h" are float32
        always. None follows the input.
      axis_name, splits: of every batch norm.
      for_cpu: on a CPU, convolutions in forms that are faster there; see
        `cl_jax.encoders.convolve`.

    `span=(first, last)` in the call runs those stages alone, counted from 0, the first with the
    stem, on the map that the stage before put out: for gradients that stay in a part of the
    network. The dict then has what those stages make, "h" the mean of the last one's map.
    """

    depth: int = 50
    width: float = 1.0
    stem: str = "imagenet"
    variant: str = "torchvision"
    blocks: Sequence[int] | None = None
    bottleneck: bool | None = None
    stem_width: int | None = None
    zero_init_last: bool | None = None
    kernel_init: str | None = None
    sk_ratio: float = 0.0
    dtype: Any = None
    axis_name: str | None = None
    splits: int = 1
    for_cpu: bool = True

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, span: tuple[int, int] | None = None
    ) -> dict[str, jax.Array]:
        check_real(x=x)
        if x.ndim != 4:
            raise ValueError(f"x has shape {x.shape}; ResNet expects images [B, H, W, C].")
        blocks, bottleneck = self.stages()
        if self.variant not in VARIANTS:
            raise ValueError(f"variant {self.variant!r} is unknown; have {', '.join(VARIANTS)}.")
        if self.stem not in ("imagenet", "cifar"):
            raise ValueError(f"stem {self.stem!r} is unknown; have imagenet, cifar.")
        variant = VARIANTS[self.variant]
        zero_init_last = (
            variant.zero_init_last if self.zero_init_last is None else self.zero_init_last
        )
        conv = partial(
            _conv,
            same=variant.same_convolutions,
            kernel_init=self.kernel_init or variant.kernel_init,
            dtype=self.dtype,
            for_cpu=self.for_cpu,
        )
        norm = partial(
            BatchNorm,
            axis_name=self.axis_name,
            splits=self.splits,
            dtype=self.dtype,
            unbiased_running_variance=variant.unbiased_running_variance,
        )
        if self.dtype is not None:
            x = x.astype(self.dtype)

        features = {}
        first, last = (0, len(blocks) - 1) if span is None else span
        if not 0 <= first <= last < len(blocks):
            raise ValueError(
                f"span is {span} with {len(blocks)} stages; expected 0 <= first <= last < "
                f"{len(blocks)}."
            )
        if first == 0:
            stem_width = self.channels(64) if self.stem_width is None else self.stem_width
            for i, (width, size, strides) in enumerate(self.stem_convolutions(stem_width), start=1):
                x = conv(width, size, strides, name=f"stem_conv{i}")(x)
                x = nn.relu(norm(name=f"stem_norm{i}")(x, train=train))
            features["conv1"] = x
            if self.stem == "imagenet":
                x = max_pool(x, (3, 3), (2, 2), "SAME" if variant.same_pool else ((1, 1), (1, 1)))
            features["stem"] = x
        for stage, count in enumerate(blocks, start=1):
            if not first <= stage - 1 <= last:
                continue
            width = self.channels(64 * 2 ** (stage - 1))
            for i in range(1, count + 1):
                strides = 2 if i == 1 and stage > 1 else 1
                changes = strides > 1 or x.shape[-1] != width * (4 if bottleneck else 1)
                x = Block(
                    width,
                    strides,
                    bottleneck,
                    project=changes or (variant.project_always and i == 1),
                    zero_init_last=zero_init_last,
                    sk_ratio=self.sk_ratio,
                    conv=conv,
                    norm=norm,
                    name=f"stage{stage}_block{i}",
                )(x, train=train)
            features[f"stage{stage}"] = x
        features["h"] = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((1, 2))
        return features

    @property
    def num_stages(self) -> int:
        """How many stages there are, for `span`."""
        return len(self.stages()[0])

    def stages(self) -> tuple[tuple[int, ...], bool]:
        """(blocks of each stage, whether they are bottlenecks)."""
        if self.blocks is not None:
            if not self.blocks or min(self.blocks) < 1:
                raise ValueError(
                    f"blocks={tuple(self.blocks)}; expected one positive number per stage."
                )
            return tuple(self.blocks), bool(self.bottleneck)
        if self.depth not in BLOCKS:
            raise ValueError(
                f"depth {self.depth} is unknown; have {', '.join(map(str, BLOCKS))}, or give "
                f"blocks."
            )
        blocks, bottleneck = BLOCKS[self.depth]
        return blocks, bottleneck if self.bottleneck is None else self.bottleneck

    def channels(self, channels: int) -> int:
        """What `channels` of the network at width 1 are at its own width."""
        scaled = int(channels * self.width)
        if scaled < 1:
            raise ValueError(
                f"width={self.width} leaves {scaled} of {channels} channels; expected at least "
                f"1/64."
            )
        return scaled

    def stem_convolutions(self, width: int) -> tuple[tuple[int, int, int], ...]:
        """(channels, kernel size, strides) of the stem's convolutions."""
        if self.stem == "cifar":
            return ((width, 3, 1),)
        if self.sk_ratio > 0:
            return (width // 2, 3, 2), (width // 2, 3, 1), (width, 3, 1)
        return ((width, 7, 2),)


def _conv(
    features: int,
    size: int,
    strides: int,
    *,
    same: bool,
    kernel_init: str,
    dtype: Any,
    for_cpu: bool = True,
    name: str,
) -> nn.Conv:
    before = (size - 1) // 2
    padding = "SAME" if same else ((before, size - 1 - before),) * 2
    return nn.Conv(
        features,
        (size, size),
        (strides, strides),
        padding,
        use_bias=False,
        dtype=dtype,
        kernel_init=initializers.kernel(kernel_init),
        conv_general_dilated=partial(convolve, for_cpu=for_cpu),
        name=name,
    )


def _pool_shortcut(x: jax.Array, strides: int) -> jax.Array:
    """ResNet-D's 2x2 mean; SimCLR v2 counts the padding as zeros where it strides and leaves it out
    where not."""
    return nn.avg_pool(
        x, (2, 2), (strides, strides), ((0, 1), (0, 1)), count_include_pad=strides > 1
    )


def make(
    *,
    depth: int = 50,
    width: float = 1.0,
    stem: Literal["imagenet", "cifar"] = "imagenet",
    variant: Literal["simclr", "byol", "torchvision"] = "torchvision",
    blocks: Sequence[int] | None = None,
    bottleneck: bool | None = None,
    stem_width: int | None = None,
    zero_init_last: bool | None = None,
    kernel_init: str | None = None,
    sk_ratio: float = 0.0,
    dtype: str | None = "float32",
    axis_name: str | None = None,
    splits: int = 1,
    for_cpu: bool = True,
) -> ResNet:
    """A `ResNet` from a config section; `dtype` by name."""
    found = ResNet(
        depth=depth,
        width=width,
        stem=stem,
        variant=variant,
        blocks=None if blocks is None else tuple(blocks),
        bottleneck=bottleneck,
        stem_width=stem_width,
        zero_init_last=zero_init_last,
        kernel_init=kernel_init,
        sk_ratio=sk_ratio,
        dtype=None if dtype is None else jnp.dtype(dtype),
        axis_name=axis_name,
        splits=splits,
        for_cpu=for_cpu,
    )
    if kernel_init is not None:
        initializers.kernel(kernel_init)  # refuses an unknown one
    found.stages()  # and a depth that there is not
    found.channels(64)  # and a width that leaves nothing
    return found
