"""Weight-normed last layer and DINO's head around it."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cl_jax.core.numerics import dots
from cl_jax.core.shapes import check
from cl_jax.encoders import initializers
from cl_jax.heads.mlp import MLP


class WeightNormDense(nn.Module):
    """logits_k = g_k <v_k / ||v_k||, x> for x [B, D]; parameters v [features, D] and, if
    `use_scale`, g [features, 1].

    Without `use_scale` g is 1: for unit x the logits are cosines. v starts as nn.Linear does,
    U(+-1/sqrt(D)), g at 1. g has two axes, as in PyTorch: rules that decay matrices only decay it
    too, which is what DINO does.
    Salimans & Kingma, arXiv 1602.07868.
    """

    features: int
    use_scale: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        check("b d", x=x)
        v = self.param(
            "v",
            lambda key, shape: initializers.bias("torch", shape[-1])(key, shape, jnp.float32),
            (self.features, x.shape[-1]),
        )
        wide = jnp.promote_types(jnp.result_type(x, v), jnp.float32)
        logits = dots("bd,kd->bk", x.astype(wide), _unit(v.astype(wide)))
        if self.use_scale:
            logits = (
                logits * self.param("g", nn.initializers.ones, (self.features, 1), jnp.float32).T
            )
        return logits


class DINOHead(nn.Module):
    """DINO's head: MLP with exact GELU to a bottleneck, unit length, weight-normed layer to
    `out_dim` logits.

    Caron et al., arXiv 2104.14294. `norm_last_layer` holds the last layer's lengths at 1 (the
    default recipe); False trains them. `use_bn` puts batch norm into the hidden layers (convnets).
    Dense layers have biases. `__call__(h [B, D], *, train) -> logits [B, out_dim]`, float32 at
    least, before any temperature or centre."""

    out_dim: int
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    num_layers: int = 3
    use_bn: bool = False
    norm_last_layer: bool = True
    dtype: Any = None
    axis_name: str | None = None
    splits: int = 1

    @nn.compact
    def __call__(self, h: jax.Array, *, train: bool) -> jax.Array:
        z, _ = MLP(
            (self.hidden_dim,) * (self.num_layers - 1) + (self.bottleneck_dim,),
            hidden_norm=self.use_bn,
            hidden_bias=True,
            activation="gelu",
            kernel_init="trunc_0.02",
            dtype=self.dtype,
            axis_name=self.axis_name,
            splits=self.splits,
            unbiased_running_variance=True,
            name="mlp",
        )(h, train=train)
        return WeightNormDense(self.out_dim, use_scale=not self.norm_last_layer, name="last_layer")(
            _unit(z)
        )


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))


def make(
    *,
    out_dim: int = 65536,
    hidden_dim: int = 2048,
    bottleneck_dim: int = 256,
    num_layers: int = 3,
    use_bn: bool = False,
    norm_last_layer: bool = True,
    dtype: str | None = "float32",
    axis_name: str | None = None,
    splits: int = 1,
) -> DINOHead:
    """A `DINOHead` from a config section; `dtype` by name."""
    return DINOHead(
        out_dim=out_dim,
        hidden_dim=hidden_dim,
        bottleneck_dim=bottleneck_dim,
        num_layers=num_layers,
        use_bn=use_bn,
        norm_last_layer=norm_last_layer,
        dtype=None if dtype is None else jnp.dtype(dtype),
        axis_name=axis_name,
        splits=splits,
    )
