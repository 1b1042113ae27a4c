"""VICReg (Bardes, Ponce and LeCun 2021, arXiv 2105.04906): two views agree, every feature keeps its
variance, features stay uncorrelated. No negatives, no slow copy, no stop-gradient.

Views pass one after the other, so that batch norm sees one at a time."""

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
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
    hidden_dim: int = 8192,
    out_dim: int = 8192,
    num_layers: int = 3,
) -> Method:
    """VICReg, of two views.

    invariance_weight, variance_weight, covariance_weight: see `losses.vicreg`.
    hidden_dim, out_dim, num_layers: of the expander.

    The metrics "invariance", "variance", "covariance" are the terms before their weights, "z_std"
    the mean deviation of a feature: 1 or more in health, 0 at a collapse.

    Raises:
      ValueError: another number of views than two, a batch of one.
    """
    if len(views) != 2:
        raise ValueError(f"VICReg compares two views; the config has {len(views)}.")
    if run.batch_size < 2:
        raise ValueError("VICReg needs the variance of a batch; use a batch_size of 2 or more.")
    network = Network(
        encoder,
        mlp.make(
            variant="vicreg",
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
        terms = losses.decorrelation.vicreg_terms(z[:, 0], z[:, 1], axis_name=run.axis_name)
        value = (
            invariance_weight * terms.invariance
            + variance_weight * terms.variance
            + covariance_weight * terms.covariance
        )
        return value, Aux(
            {
                "invariance": terms.invariance,
                "variance": terms.variance,
                "covariance": terms.covariance,
                "z_std": jnp.mean(terms.std),
            }
        )

    return from_loss(
        variables=initial(network, views[0].clean),
        forward=each_view(apply),
        loss=loss,
        tx=tx,
        features=features_of(apply),
        axis_name=run.axis_name,
        **keywords(views),
    )
