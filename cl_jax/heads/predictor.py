"""Predictors: the extra head of the online branch that keeps negative-free methods from
collapsing."""

from typing import Any

import jax.numpy as jnp

from cl_jax.heads.mlp import MLP


def make(
    *,
    variant: str,
    out_dim: int,
    hidden_dim: int | None = None,
    dtype: str | None = "float32",
    axis_name: str | None = None,
    splits: int = 1,
) -> MLP:
    """The predictor of a published method, from projections [B, D] to predictions [B, out_dim], an
    `MLP`.

      variant      hidden  batch norm               biases       initial weights
      byol         4096    hidden                   hidden only  haiku
      simsiam      512     hidden                   last only    torch
      moco_v3      4096    hidden                   none         torch    (ResNet)
      moco_v3_vit  4096    hidden, last not affine  none         torch
      nnclr        4096    hidden                   last only    torch

    Raises:
      ValueError: no such variant.
    """
    if variant not in _VARIANTS:
        raise ValueError(f"predictor variant {variant!r} is unknown; have {', '.join(_VARIANTS)}.")
    hidden, settings = _VARIANTS[variant]
    return MLP(
        widths=(hidden if hidden_dim is None else hidden_dim, out_dim),
        dtype=None if dtype is None else jnp.dtype(dtype),
        axis_name=axis_name,
        splits=splits,
        **settings,
    )


_TORCH: dict[str, Any] = {"kernel_init": "torch", "unbiased_running_variance": True}
_VARIANTS: dict[str, tuple[int, dict[str, Any]]] = {
    "byol": (4096, {"hidden_bias": True, "last_bias": False, "kernel_init": "haiku"}),
    "simsiam": (512, _TORCH),
    "nnclr": (4096, _TORCH),
    "moco_v3": (4096, {"last_bias": False, **_TORCH}),
    "moco_v3_vit": (
        4096,
        {
            "last_bias": False,
            "last_norm": True,
            "last_norm_scale": False,
            "last_norm_bias": False,
            **_TORCH,
        },
    ),
}
