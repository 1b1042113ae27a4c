"""Projection heads: a multi-layer perceptron of any depth, and each published one by name."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cl_jax.core.gelu import gelu
from cl_jax.core.shapes import check_real
from cl_jax.encoders import initializers
from cl_jax.encoders.norm import BatchNorm

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "gelu": gelu,
}


class MLP(nn.Module):
    """Dense (-> batch norm) -> activation for each hidden layer, then dense (-> batch norm).

    `__call__(h [B, D], *, train)` returns (final, hiddens): hiddens[0] is h, hiddens[j] what layer
    j puts out (after its activation), hiddens[-1] the final output. "Fine-tune from layer j" of
    SimCLR v2 puts its classifier on hiddens[j]. Outputs are float32 at least; nothing is
    normalised.

    Args:
      widths: outputs of each layer; None is the width of h.
      hidden_norm, last_norm: batch norm after the hidden layers, after the last.
      last_norm_scale, last_norm_bias: the affine part of the last batch norm (hidden ones always
        have both).
      hidden_bias, last_bias: bias of the dense layers.
      activation: "relu" or "gelu".
      kernel_init: a name of `cl_jax.encoders.initializers`, which sets the biases too.
      dtype: of the matrix products; parameters and statistics are float32 always. None follows the
        input.
      axis_name, splits, unbiased_running_variance: of every batch norm.
    """

    widths: Sequence[int | None]
    hidden_norm: bool = True
    last_norm: bool = False
    last_norm_scale: bool = True
    last_norm_bias: bool = True
    hidden_bias: bool = False
    last_bias: bool = True
    activation: str = "relu"
    kernel_init: str = "lecun"
    dtype: Any = None
    axis_name: str | None = None
    splits: int = 1
    unbiased_running_variance: bool = False

    @nn.compact
    def __call__(self, h: jax.Array, *, train: bool) -> tuple[jax.Array, list[jax.Array]]:
        check_real(h=h)
        if h.ndim != 2:
            raise ValueError(
                f"h has shape {h.shape}; a head expects features [B, D]: pool maps first."
            )
        if not self.widths:
            raise ValueError("widths is empty; expected one number per layer.")
        if self.activation not in _ACTIVATIONS:
            raise ValueError(
                f"activation {self.activation!r} is unknown; have {', '.join(_ACTIVATIONS)}."
            )
        wide = jnp.promote_types(jnp.result_type(h), jnp.float32)
        x, hiddens = h, [h]
        for layer, width in enumerate(self.widths, start=1):
            last = layer == len(self.widths)
            x = nn.Dense(
                h.shape[-1] if width is None else width,
                self.last_bias if last else self.hidden_bias,
                dtype=self.dtype,
                kernel_init=initializers.kernel(self.kernel_init),
                bias_init=initializers.bias(self.kernel_init, x.shape[-1]),
                name=f"dense{layer}",
            )(x)
            if self.last_norm if last else self.hidden_norm:
                x = BatchNorm(
                    axis_name=self.axis_name,
                    splits=self.splits,
                    dtype=wide,
                    use_scale=not last or self.last_norm_scale,
                    use_bias=not last or self.last_norm_bias,
                    unbiased_running_variance=self.unbiased_running_variance,
                    name=f"norm{layer}",
                )(x, train=train)
            if not last:
                x = _ACTIVATIONS[self.activation](x)
            hiddens.append(x.astype(wide))
        return hiddens[-1], hiddens


def make(
    *,
    variant: str,
    out_dim: int = 128,
    hidden_dim: int | None = None,
    num_layers: int | None = None,
    dtype: str | None = "float32",
    axis_name: str | None = None,
    splits: int = 1,
) -> MLP:
    """The head of a published method; `hidden_dim` None is the method's own (the width of h where
    it says "h").

    variant  layers hidden batch norm            biases       initial weights
    simclr   3      h      all, no last beta     none         normal_0.01  (SimCLR v1: num_layers=2)
    linear   1      -      none                  yes          torch        (MoCo v1, InstDisc, CMC)
    moco_v2  2      h      none                  all          torch        (PCL, MoCHi, SupCon)
    byol     2      4096   hidden                hidden only  haiku        (out_dim=256)
    simsiam  3      h      all, last not affine  none         torch        (out_dim=2048; CIFAR: 2)
    moco_v3  2      4096   all, last not affine  none         torch        (out_dim=256; ViT: 3)
    swav     2      2048   hidden                all          torch        (wide ResNets: 8192)
    vicreg   3      8192   hidden                hidden only  torch        (out_dim=8192)
    barlow   3      8192   hidden                none         torch        (out_dim=8192)
    nnclr    3      2048   all                   none         torch        (out_dim=256)
    wmse     2      1024   hidden                all          torch        (out_dim=64)
    lejepa   3      2048   hidden                all          torch        (out_dim=16)

    SimSiam's last dense layer has a frozen random bias, which its batch norm cancels: left out.

    Raises:
      ValueError: no such variant, no layer.
    """
    if variant not in _VARIANTS:
        raise ValueError(f"head variant {variant!r} is unknown; have {', '.join(_VARIANTS)}.")
    layers, hidden, settings = _VARIANTS[variant]
    layers = layers if num_layers is None else num_layers
    if layers < 1:
        raise ValueError(f"num_layers={layers}; expected at least 1.")
    hidden = hidden if hidden_dim is None else hidden_dim
    return MLP(
        widths=(hidden,) * (layers - 1) + (out_dim,),
        dtype=None if dtype is None else jnp.dtype(dtype),
        axis_name=axis_name,
        splits=splits,
        **settings,
    )


_TORCH: dict[str, Any] = {"kernel_init": "torch", "unbiased_running_variance": True}
_NO_AFFINE: dict[str, Any] = {
    "last_norm": True,
    "last_norm_scale": False,
    "last_norm_bias": False,
    "last_bias": False,
}
_VARIANTS: dict[str, tuple[int, int | None, dict[str, Any]]] = {
    "simclr": (
        3,
        None,
        {
            "last_norm": True,
            "last_norm_bias": False,
            "last_bias": False,
            "kernel_init": "normal_0.01",
        },
    ),
    "linear": (1, None, _TORCH),
    "moco_v2": (2, None, {"hidden_norm": False, "hidden_bias": True, **_TORCH}),
    "byol": (2, 4096, {"hidden_bias": True, "last_bias": False, "kernel_init": "haiku"}),
    "simsiam": (3, None, {**_NO_AFFINE, **_TORCH}),
    "moco_v3": (2, 4096, {**_NO_AFFINE, **_TORCH}),
    "swav": (2, 2048, {"hidden_bias": True, **_TORCH}),
    "vicreg": (3, 8192, {"hidden_bias": True, "last_bias": False, **_TORCH}),
    "barlow": (3, 8192, {"last_bias": False, **_TORCH}),
    "nnclr": (3, 2048, {"last_norm": True, "last_bias": False, **_TORCH}),
    "wmse": (2, 1024, {"hidden_bias": True, **_TORCH}),
    "lejepa": (3, 2048, {"hidden_bias": True, **_TORCH}),
}
