"""SimSiam (Chen and He 2020, arXiv 2011.10566): predict the other view's projection of the same
network; no negatives.

The projection is a constant only where it is the target. Views pass one after the other, so batch
norm sees one at a time. With more than two views each predicts the mean of the others: FastSiam
(Pototzky et al., GCPR 2022)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from cl_jax import losses
from cl_jax.core.method import Aux, Batch, Method, Run, Variables, from_loss
from cl_jax.core.network import Network, applier, each_view_predicted, features_of, with_predictor
from cl_jax.core.parallel import mean
from cl_jax.heads import mlp, predictor
from cl_jax.views import View, keywords


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    out_dim: int = 2048,
    hidden_dim: int = 512,
    num_layers: int = 3,
) -> Method:
    """SimSiam, of two views or more.

    out_dim: of projection and prediction. hidden_dim: of the predictor. num_layers: of the
      projector (CIFAR-10: 2).

    The authors' predictor keeps its first learning rate throughout:
    `optimizer.constant_lr_paths=("predictor",)`. The metric "z_std" tells a collapse, which the
    loss does not: see `channel_std`.

    Raises:
      ValueError: fewer than two views.
    """
    if len(views) < 2:
        raise ValueError(f"SimSiam compares two views or more; the config has {len(views)}.")
    settings = {
        "variant": "simsiam",
        "out_dim": out_dim,
        "dtype": encoder.dtype,
        "axis_name": run.axis_name,
    }
    network = Network(encoder, mlp.make(**settings, num_layers=num_layers))
    predict = predictor.make(**settings, hidden_dim=hidden_dim)
    apply, apply_predictor = applier(network), applier(predict)

    def variables(key: jax.Array, batch: Batch) -> Variables:
        keys = jax.random.split(key)
        return with_predictor(network, predict, keys, views[0].clean(batch), out_dim)

    def loss(
        outputs: Any, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        value = losses.no_negatives.fastsiam(
            *(outputs[name].swapaxes(0, 1) for name in "pz"), axis_name=run.axis_name
        )
        return value, Aux({"z_std": channel_std(outputs["z"], run.axis_name)})

    return from_loss(
        variables=variables,
        forward=each_view_predicted(apply, apply_predictor),
        loss=loss,
        tx=tx,
        features=features_of(apply, "network"),
        axis_name=run.axis_name,
        **keywords(views),
    )


def channel_std(z: jax.Array, axis_name: str | None) -> jax.Array:
    """The deviation of z / |z| over the rows [B, V, D] of the global batch, mean over channels:
    figure 2 of the paper.

    Rows spread over the sphere have 1 / sqrt(D), a collapsed network 0.
    """
    rows = losses.unit(lax.stop_gradient(z)).reshape(-1, z.shape[-1])
    centre = mean(jnp.mean(rows, axis=0), axis_name)
    return jnp.mean(jnp.sqrt(mean(jnp.mean(jnp.square(rows - centre[None]), axis=0), axis_name)))
