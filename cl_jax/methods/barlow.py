"""Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230): the cross-correlation of two views'
features becomes the identity. No negatives, no predictor, no slow copy, no stop-gradient.

Views pass one after the other, so that batch norm sees one at a time; the batch norm of the
correlation is part of the loss and has moments of the global batch."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cl_jax import losses
from cl_jax.core.method import Aux, Batch, Method, Run, from_loss
from cl_jax.core.network import Network, applier, each_view, features_of, initial
from cl_jax.heads import mlp
from cl_jax.views import View, keywords


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    off_diagonal_weight: float = 0.0051,
    scale: float = 1.0,
    hidden_dim: int = 8192,
    out_dim: int = 8192,
    num_layers: int = 3,
) -> Method:
    """Barlow Twins, of two views.

    off_diagonal_weight, scale: see `losses.barlow_twins`. hidden_dim, out_dim, num_layers: of the
    projector.

    The metric "invariance" is the loss's sum over the diagonal, before `scale`; "chance" is the
    loss of views that are unrelated.

    Raises:
      ValueError: another number of views than two.
    """
    if len(views) != 2:
        raise ValueError(f"Barlow Twins compares two views; the config has {len(views)}.")
    network = Network(
        encoder,
        mlp.make(
            variant="barlow",
            hidden_dim=hidden_dim,
            out_dim=out_dim,
            num_layers=num_layers,
            dtype=encoder.dtype,
            axis_name=run.axis_name,
        ),
    )
    apply = applier(network)

    def loss(
        z: jax.Array, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        def of(off_diagonal_weight: float, scale: float) -> jax.Array:
            return losses.barlow_twins(
                z[:, 0],
                z[:, 1],
                off_diagonal_weight=off_diagonal_weight,
                scale=scale,
                axis_name=run.axis_name,
            )

        value = of(off_diagonal_weight, scale)
        return value, Aux({"invariance": of(0.0, 1.0), "chance": jnp.float32(scale * out_dim)})

    return from_loss(
        variables=initial(network, views[0].clean),
        forward=each_view(apply),
        loss=loss,
        tx=tx,
        features=features_of(apply),
        axis_name=run.axis_name,
        **keywords(views),
    )
