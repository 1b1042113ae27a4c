"""Initial weights by the name of the framework whose default they are.

torch         kernel and bias U(+-1/sqrt(fan_in)): nn.Linear and nn.Conv2d as they come
he_fan_out    kernel N(0, 2 / fan_out), bias 0: torchvision's and CMC's ResNet convolutions
lecun         kernel N(0, 1 / fan_in) truncated at 2 sigma and rescaled, bias 0: TensorFlow's
              VarianceScaling, Flax
haiku         the same without the rescaling (standard deviation 0.88 / sqrt(fan_in)), bias 0
normal_0.01   kernel N(0, 0.01^2), bias 0: SimCLR's head, linear probes
trunc_0.02    kernel N(0, 0.02^2) truncated (at 100 sigma: never), bias 0: DINO's head and ViT
zeros         both 0: SimCLR's supervised head
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_TRUNCATED_STD = (
    0.87962566103423978  # of a unit normal cut at +-2, by which variance_scaling divides
)

_KERNELS = {
    "torch": jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
    "he_fan_out": jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    "xavier": jax.nn.initializers.xavier_uniform(),
    "lecun": jax.nn.initializers.lecun_normal(),
    "haiku": jax.nn.initializers.variance_scaling(_TRUNCATED_STD**2, "fan_in", "truncated_normal"),
    "normal_0.01": jax.nn.initializers.normal(0.01),
    "trunc_0.02": jax.nn.initializers.normal(0.02),
    "zeros": jax.nn.initializers.zeros,
}


def kernel(name: str) -> Callable[..., Any]:
    """The kernel initialiser called `name`: (key, shape, dtype) -> array.

    Raises:
      ValueError: an unknown name.
    """
    if name not in _KERNELS:
        raise ValueError(f"initialisation {name!r} is unknown; have {', '.join(_KERNELS)}.")
    return _KERNELS[name]


def bias(name: str, fan_in: int) -> Callable[..., Any]:
    """The bias initialiser that goes with `kernel(name)` in a layer of `fan_in` inputs per
    output."""
    kernel(name)
    if name != "torch":
        return jax.nn.initializers.zeros
    bound = fan_in**-0.5

    def uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return uniform
