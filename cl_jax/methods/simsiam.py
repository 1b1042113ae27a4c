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
from cl_jax.core.network import Network, applier
from cl_jax.core.parallel import mean
from cl_jax.heads import mlp, predictor
from cl_jax.views import View, draw, fields


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
    loss does not: see `channel_std`."""
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
        network_key, predictor_key = jax.random.split(key)
        start = network.init(network_key, views[0].clean(batch), True)
        head = predict.init(
            predictor_key, jnp.zeros((batch["image"].shape[0], out_dim)), train=True
        )
        return Variables(
            {"network": start["params"], "predictor": head["params"]},
            {"network": start["batch_stats"], "predictor": head["batch_stats"]},
        )

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        network_stats, head_stats, p, z = stats["network"], stats["predictor"], [], []
        for images in inputs:
            (projected, _), network_stats = apply(params["network"], network_stats, images, True)
            (predicted, _), head_stats = apply_predictor(
                params["predictor"], head_stats, projected, True
            )
            p.append(predicted)
            z.append(projected)
        outputs = {"p": jnp.stack(p, axis=1), "z": jnp.stack(z, axis=1)}  # [B, V, D]
        return outputs, {"network": network_stats, "predictor": head_stats}, None

    def loss(
        outputs: Any, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        value = losses.no_negatives.fastsiam(
            *(outputs[name].swapaxes(0, 1) for name in "pz"), axis_name=run.axis_name
        )
        return value, Aux({"z_std": channel_std(outputs["z"], run.axis_name)})

    def features(
        params: Any, stats: Any, images: jax.Array, train: bool
    ) -> tuple[dict[str, jax.Array], Any]:
        (_, named), changed = apply(params["network"], stats["network"], images, train)
        return named, {**stats, "network": changed}

    return from_loss(
        variables=variables,
        views=lambda batch, key: draw(views, batch, key),
        forward=forward,
        loss=loss,
        tx=tx,
        features=features,
        clean=views[0].clean,
        axis_name=run.axis_name,
        **fields(views),
    )


def channel_std(z: jax.Array, axis_name: str | None) -> jax.Array:
    """The deviation of z / |z| over the rows [B, V, D] of the global batch, mean over channels:
    figure 2 of the paper.

    Rows spread over the sphere have 1 / sqrt(D), a collapsed network 0.
    """
    rows = losses.unit(lax.stop_gradient(z)).reshape(-1, z.shape[-1])
    centre = mean(jnp.mean(rows, axis=0), axis_name)
    return jnp.mean(jnp.sqrt(mean(jnp.mean(jnp.square(rows - centre[None]), axis=0), axis_name)))
