"""Dense and convolution layers whose kernels have a spectral norm of 1."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.encoders.convolve import NUMBERS, convolve

KERNEL = nn.initializers.orthogonal()  # as BigGAN; the last axis holds the orthogonal columns


def spectral_norm(
    kernel: jax.Array, u: jax.Array, *, train: bool, epsilon: float = 1e-6
) -> tuple[jax.Array, jax.Array]:
    """Divides a kernel by an estimate of its largest singular value.

    Args:
      kernel: [..., D]; a matrix of D columns, whose rows are all other axes.
      u: [D], unit length: the running estimate of the right singular vector.
      train: True does one power iteration from `u`; False does none and reads the singular value
        off `u`.
      epsilon: smallest length that a vector is divided by.

    Returns:
      (kernel / sigma, the new `u`). The gradient flows through sigma to the kernel; the singular
      vectors are constants.

    Reference: Miyato et al., Spectral normalization for generative adversarial networks, ICLR 2018,
      algorithm 1.
    """
    matrix = lax.stop_gradient(kernel).reshape(-1, kernel.shape[-1])
    v = _unit(matrix @ u, epsilon)
    if train:
        u = _unit(v @ matrix, epsilon)
    sigma = v @ (kernel.reshape(matrix.shape) @ u)
    return kernel / sigma, u


class SpectralDense(nn.Module):
    """x [..., C] -> [..., features] by a spectrally normalised kernel.

    The vector of the power iteration is "u" in collection "batch_stats", which must be mutable in
    training: one iteration for each call with `train=True`. It depends on the parameters alone, so
    it is the same on every device.
    """

    features: int
    use_bias: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        kernel = _kernel(self, (x.shape[-1], self.features), train)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        return _biased(self, x @ kernel)


class SpectralConv(nn.Module):
    """Images [B, H, W, C] -> [B, H, W, features] by a spectrally normalised kernel, stride 1.

    `size` is the side of the kernel, odd; borders are padded with zeros. "u" is kept as in
    `SpectralDense`.
    """

    features: int
    size: int = 3
    use_bias: bool = True
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        kernel = _kernel(self, (self.size, self.size, x.shape[-1], self.features), train)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        pad = self.size // 2
        pads = ((pad, pad), (pad, pad))
        return _biased(self, convolve(x, kernel, (1, 1), pads, dimension_numbers=NUMBERS))


def _kernel(module: nn.Module, shape: tuple[int, ...], train: bool) -> jax.Array:
    kernel = module.param("kernel", KERNEL, shape, jnp.float32)
    u = module.variable("batch_stats", "u", _start, module, shape[-1])
    normal, new = spectral_norm(kernel, u.value, train=train)
    if train and not module.is_initializing():
        u.value = new
    return normal


def _start(module: nn.Module, size: int) -> jax.Array:
    return _unit(jax.random.normal(module.make_rng("params"), (size,), jnp.float32), 1e-6)


def _biased(module: nn.Module, x: jax.Array) -> jax.Array:
    if not module.use_bias:
        return x
    bias = module.param("bias", nn.initializers.zeros, (module.features,), jnp.float32)
    return x + bias.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def _unit(x: jax.Array, epsilon: float) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x), epsilon)
