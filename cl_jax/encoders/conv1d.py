"""Strided convolutions over a wave: the audio encoder of CPC (van den Oord et al. 2018, arXiv
1807.03748, section 3.1)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cl_jax.core.shapes import check_real
from cl_jax.encoders import initializers
from cl_jax.encoders.layer_norm import LayerNorm

NORMS = ("none", "layer")


class Conv1d(nn.Module):
    """Waves [B, S] -> "sequence" [B, T, channels], one latent for each `stride` samples, and "h"
    [B, channels], its mean over time; float32 at least.

    Each layer is a convolution, a norm or none, and a ReLU. The paper's has strides 5, 4, 2, 2, 2
    with kernels 10, 8, 4, 4, 4 and 512 channels: a latent each 160 samples, which has seen 465. Its
    padding is not stated; 3, 2, 1, 1, 1 is that of its reimplementations.

    Args:
      padding: zeros on both sides, for each layer.
      norm: "none", or "layer" over the channels of each time by itself. Batch norm would let a
        latent see other times through the moments, by which the task can be solved.
      dtype: of the computation; parameters stay float32.
    """

    channels: int = 512
    kernels: tuple[int, ...] = (10, 8, 4, 4, 4)
    strides: tuple[int, ...] = (5, 4, 2, 2, 2)
    padding: tuple[int, ...] = (3, 2, 1, 1, 1)
    norm: str = "none"
    kernel_init: str = "torch"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        check_real(x=x)
        if x.ndim != 2:
            raise ValueError(f"x has shape {x.shape}; expected waves [B, S].")
        if times_of(x.shape[1], self.kernels, self.strides, self.padding) < 1:
            raise ValueError(f"{x.shape[1]} samples are too few for one latent; give longer waves.")
        x = x[..., None]
        for i, (kernel, stride, pad) in enumerate(zip(self.kernels, self.strides, self.padding), 1):
            x = nn.Conv(
                self.channels,
                (kernel,),
                (stride,),
                padding=((pad, pad),),
                dtype=self.dtype,
                kernel_init=initializers.kernel(self.kernel_init),
                bias_init=initializers.bias(self.kernel_init, kernel * x.shape[-1]),
                name=f"conv{i}",
            )(x)
            if self.norm == "layer":
                x = LayerNorm(epsilon=1e-5, dtype=self.dtype, name=f"norm{i}")(x)
            x = nn.relu(x)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return {"sequence": x, "h": x.mean(1)}


def times_of(
    samples: int, kernels: Sequence[int], strides: Sequence[int], padding: Sequence[int]
) -> int:
    """Latents of a wave of that many samples; below 1 where it is too short."""
    for kernel, stride, pad in zip(kernels, strides, padding):
        samples = (samples + 2 * pad - kernel) // stride + 1
    return samples


def make(
    *,
    channels: int = 512,
    kernels: Sequence[int] = (10, 8, 4, 4, 4),
    strides: Sequence[int] = (5, 4, 2, 2, 2),
    padding: Sequence[int] = (3, 2, 1, 1, 1),
    norm: str = "none",
    kernel_init: str = "torch",
    dtype: str | None = "float32",
    axis_name: str | None = None,
) -> Conv1d:
    """A `Conv1d` from a config section. `axis_name` is not used: nothing here looks across
    examples.

    Raises:
      ValueError: kernels, strides and paddings that differ in number, or an unknown norm.
    """
    if not len(kernels) == len(strides) == len(padding) >= 1:
        raise ValueError(
            f"kernels={list(kernels)}, strides={list(strides)}, padding={list(padding)}; expected "
            "as many of each, one for each layer."
        )
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r}; expected one of {', '.join(NORMS)}.")
    initializers.kernel(kernel_init)  # refuses an unknown one
    return Conv1d(
        channels=channels,
        kernels=tuple(kernels),
        strides=tuple(strides),
        padding=tuple(padding),
        norm=norm,
        kernel_init=kernel_init,
        dtype=None if dtype is None else jnp.dtype(dtype),
    )
