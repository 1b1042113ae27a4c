"""AlexNet with batch norm: CMC's, one of half the channels for each view (Tian et al., arXiv
1906.05849), and the convolutions of DeepCluster's (Caron et al., arXiv 1807.05520)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.shapes import check_real
from cl_jax.encoders import initializers
from cl_jax.encoders.norm import BatchNorm
from cl_jax.encoders.pool import max_pool

# (channels at width 1, kernel, strides, padding, max-pool after)
_CONVOLUTIONS = (
    (96, 11, 4, 2, True),
    (256, 5, 1, 2, True),
    (384, 3, 1, 1, False),
    (384, 3, 1, 1, False),
    (256, 3, 1, 1, True),
)


class AlexNet(nn.Module):
    """Images [B, H, W, C], H and W at least 63, to {"conv1": ..., "conv5": maps, "fc6", "fc7": [B,
    D], "h": fc7}.

    Each is taken after batch norm and ReLU, conv1, conv2 and conv5 after their 3x3 stride-2
    max-pool too; D is 4096 * width. Convolutions have no bias. The last layer to 128 and the
    normalisation are the head's (`cl_jax.heads.mlp.make(variant="linear")`). The first fully
    connected layer fixes the image size.

    Args:
      width: multiplies every channel count; CMC gives each of its two views half a network.
      fully_connected: False ends at the last map, "h" being all of it, [B, 9216 * width] at 224
        pixels: DeepCluster's fully connected layers have dropout and no batch norm, and are its
          method's.
      kernel_init: of convolutions and fully connected layers, by name; DeepCluster's is
        "he_fan_out". Biases of DeepCluster's convolutions, which batch norm cancels, are left out.
      dtype: of the computation; parameters, statistics and "h" are float32 always. None follows the
        input.
      axis_name, splits: of every batch norm.
    """

    width: float = 0.5
    fully_connected: bool = True
    kernel_init: str = "torch"
    dtype: Any = None
    axis_name: str | None = None
    splits: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        check_real(x=x)
        if x.ndim != 4 or min(x.shape[1:3]) < 63:
            raise ValueError(
                f"x has shape {x.shape}; AlexNet expects images [B, H, W, C] of at least 63x63 "
                f"pixels. "
                "Resize them, or use a ResNet with the cifar stem."
            )
        if self.dtype is not None:
            x = x.astype(self.dtype)
        features = {}
        for i, (channels, size, strides, padding, pool) in enumerate(_CONVOLUTIONS, start=1):
            x = nn.Conv(
                self._channels(channels),
                (size, size),
                (strides, strides),
                padding,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=initializers.kernel(self.kernel_init),
                name=f"conv{i}",
            )(x)
            x = nn.relu(self._norm(f"norm{i}")(x, train=train))
            if pool:
                x = max_pool(x, (3, 3), (2, 2))
            features[f"conv{i}"] = x
        x = lax.collapse(x, 1)
        for i in (6, 7) if self.fully_connected else ():
            x = nn.Dense(
                self._channels(4096),
                dtype=self.dtype,
                kernel_init=initializers.kernel(self.kernel_init),
                bias_init=initializers.bias(self.kernel_init, x.shape[-1]),
                name=f"fc{i}",
            )(x)
            x = nn.relu(self._norm(f"norm{i}")(x, train=train))
            features[f"fc{i}"] = x
        features["h"] = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return features

    def _channels(self, channels: int) -> int:
        scaled = int(channels * self.width)
        if scaled < 1:
            raise ValueError(
                f"width={self.width} leaves {scaled} of {channels} channels; expected at least "
                f"1/96."
            )
        return scaled

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
    width: float = 0.5,
    fully_connected: bool = True,
    kernel_init: str = "torch",
    dtype: str | None = "float32",
    axis_name: str | None = None,
    splits: int = 1,
) -> AlexNet:
    """An `AlexNet` from a config section; `dtype` by name."""
    initializers.kernel(kernel_init)  # refuses an unknown one
    return AlexNet(
        width=width,
        fully_connected=fully_connected,
        kernel_init=kernel_init,
        dtype=None if dtype is None else jnp.dtype(dtype),
        axis_name=axis_name,
        splits=splits,
    )
