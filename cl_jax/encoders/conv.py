"""Deep InfoMax's encoders: convolutions with batch norm and ReLU, then fully connected layers with
the same.

Hjelm et al., arXiv 1808.06670, and the authors' code. `variant`, (channels, kernel, strides,
padding, max-pool after):

  basic28x28  two 5x5 convolutions of stride 2, 64 and 128; fc 1024
  basic32x32  three 4x4 convolutions of stride 2, 64 to 256; fc 1024: CIFAR-10, local features of
              conv2 (8x8)
  basic64x64  four of them, 64 to 512; fc 1024
  alex64x64   AlexNet of 3x3 convolutions, 96, 192, 384, 384, 192, max-pool after 1, 2 and 5; fc
              4096, 4096: Tiny ImageNet and STL-10, local features of conv3
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.shapes import check_real
from cl_jax.encoders import initializers
from cl_jax.encoders.norm import BatchNorm
from cl_jax.encoders.pool import max_pool

Convolution = tuple[int, int, int, int, bool]

VARIANTS: dict[str, tuple[tuple[Convolution, ...], tuple[int, ...]]] = {
    "basic28x28": (((64, 5, 2, 2, False), (128, 5, 2, 2, False)), (1024,)),
    "basic32x32": (((64, 4, 2, 1, False), (128, 4, 2, 1, False), (256, 4, 2, 1, False)), (1024,)),
    "basic64x64": (
        ((64, 4, 2, 1, False), (128, 4, 2, 1, False), (256, 4, 2, 1, False), (512, 4, 2, 1, False)),
        (1024,),
    ),
    "alex64x64": (
        (
            (96, 3, 1, 1, True),
            (192, 3, 1, 1, True),
            (384, 3, 1, 1, False),
            (384, 3, 1, 1, False),
            (192, 3, 1, 1, True),
        ),
        (4096, 4096),
    ),
}


class ConvNet(nn.Module):
    """Images or maps [B, H, W, C] to {"conv1", "conv2", ...: maps after ReLU and max-pool, "conv":
    the last one as [B, D], "fc": [B, D] the last fully connected layer, "h": the same, float32 at
    least}.

    Args:
      convolutions: (channels, kernel, strides, padding, whether a 3x3 max-pool of stride 2 follows)
        of each.
      fully_connected: widths; with none, "fc" is missing and "h" is "conv".
      first: number of the first convolution, for its name.
      dtype: of the computation; parameters, statistics and "h" are float32 always. None follows the
        input.
      axis_name, splits: of every batch norm.

    The first fully connected layer fixes the image size.
    """

    convolutions: Sequence[Convolution]
    fully_connected: Sequence[int] = ()
    first: int = 1
    dtype: Any = None
    axis_name: str | None = None
    splits: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        check_real(x=x)
        if x.ndim != 4:
            raise ValueError(f"x has shape {x.shape}; ConvNet expects images [B, H, W, C].")
        if self.dtype is not None:
            x = x.astype(self.dtype)
        features = {}
        for i, (channels, size, strides, padding, pool) in enumerate(
            self.convolutions, start=self.first
        ):
            if min(x.shape[1:3]) + 2 * padding < size or (pool and min(x.shape[1:3]) < 3):
                raise ValueError(
                    f"the map before convolution {i} is {x.shape[1]}x{x.shape[2]}, too small for "
                    f"it; give "
                    "larger images or fewer convolutions."
                )
            x = nn.Conv(
                channels,
                (size, size),
                (strides, strides),
                padding,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=initializers.kernel("torch"),
                name=f"conv{i}",
            )(x)
            x = nn.relu(self._norm(f"conv_norm{i}")(x, train=train))
            if pool:
                x = max_pool(x, (3, 3), (2, 2))
            features[f"conv{i}"] = x
        wide = jnp.promote_types(x.dtype, jnp.float32)
        x = lax.collapse(x, 1)
        features["conv"] = x.astype(wide)
        for i, width in enumerate(self.fully_connected, start=1):
            x = nn.Dense(
                width,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=initializers.kernel("torch"),
                name=f"fc{i}",
            )(x)
            x = nn.relu(self._norm(f"fc_norm{i}")(x, train=train))
        if self.fully_connected:
            features["fc"] = x.astype(wide)
        features["h"] = x.astype(wide)
        return features

    def from_layer(self, name: str) -> "ConvNet":
        """A network of its own parameters with the layers from convolution `name` on, that one
        included: what Deep InfoMax puts on the map after `name` to summarise it for its global
          term."""
        numbers = {f"conv{self.first + i}": i for i in range(len(self.convolutions))}
        if name not in numbers:
            raise ValueError(f"there is no convolution {name!r}; have {', '.join(numbers)}.")
        return self.clone(
            convolutions=tuple(self.convolutions)[numbers[name] :],
            first=self.first + numbers[name],
            name=None,
            parent=None,
        )

    def _norm(self, name: str) -> BatchNorm:
        return BatchNorm(
            axis_name=self.axis_name,
            splits=self.splits,
            dtype=self.dtype,
            unbiased_running_variance=True,
            name=name,
        )


def make(
    *,
    variant: str = "basic32x32",
    width: float = 1.0,
    dtype: str | None = "float32",
    axis_name: str | None = None,
    splits: int = 1,
) -> ConvNet:
    """A published encoder; `width` multiplies every layer's channels.

    Raises:
      ValueError: no such variant; a width that leaves a layer without channels.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r} is unknown; have {', '.join(VARIANTS)}.")
    convolutions, fully_connected = VARIANTS[variant]
    least = min(*(layer[0] for layer in convolutions), *fully_connected)
    if int(least * width) < 1:
        raise ValueError(
            f"width={width} leaves {int(least * width)} of {least} channels; expected at least "
            f"1/{least}."
        )
    return ConvNet(
        convolutions=tuple((int(layer[0] * width), *layer[1:]) for layer in convolutions),
        fully_connected=tuple(int(units * width) for units in fully_connected),
        dtype=None if dtype is None else jnp.dtype(dtype),
        axis_name=axis_name,
        splits=splits,
    )
