"""MoCo v3 (Chen, Xie, He 2021, arXiv 2104.02057): predictions of one view against momentum keys of
the other, no queue.

Negatives are the other view's keys of the whole global batch. Views pass one after the other, so
batch norm sees one at a time. The momentum network owns its batch statistics.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from cl_jax import losses
from cl_jax.core.ema import ema_of_params
from cl_jax.core.method import Aux, Batch, Method, Run, Variables, from_loss
from cl_jax.core.network import Network, applier, features_of, with_predictor
from cl_jax.heads import mlp, predictor
from cl_jax.views import View, keywords


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    temperature: float = 1.0,
    momentum: float = 0.99,
    hidden_dim: int = 4096,
    out_dim: int = 256,
    projector_layers: int = 2,
    predictor_variant: str = "moco_v3",
    block_size: int | None = None,
) -> Method:
    """MoCo v3; the first view is of the first recipe, the second of the second.

    temperature: 1.0 for ResNet-50, 0.2 for ViT; the loss is scaled by twice of it.
    momentum: of step 0; at step k of K it is 1 - (1 - momentum) (1 + cos(pi k / K)) / 2.
    projector_layers: 2 for ResNet, 3 for ViT. predictor_variant: "moco_v3", or "moco_v3_vit" with
      batch norm at its end.

    The momentum network moves at the end of a step and not between the queries and keys of the
    next: the same numbers, since at the first step both networks are equal.

    Raises:
      ValueError: another number of views than two.
    """
    if len(views) != 2:
        raise ValueError(f"MoCo v3 contrasts two views; the config has {len(views)}.")
    settings = {
        "out_dim": out_dim,
        "hidden_dim": hidden_dim,
        "dtype": encoder.dtype,
        "axis_name": run.axis_name,
    }
    network = Network(encoder, mlp.make(variant="moco_v3", num_layers=projector_layers, **settings))
    predict = predictor.make(variant=predictor_variant, **settings)
    apply, apply_predictor = applier(network), applier(predict)
    chance = 4 * temperature * math.log(run.batch_size)

    def momentum_at(moves: jax.Array) -> jax.Array:
        # The authors' first movement comes in iteration 0 and does nothing; the n-th of ours is
        # their (n + 1)-th.
        return 1 - (1 - momentum) * (1 + jnp.cos(math.pi * (moves + 1) / run.total_steps)) / 2

    def variables(key: jax.Array, batch: Batch) -> Variables:
        keys = jax.random.split(key)
        start = with_predictor(network, predict, keys, views[0].clean(batch), out_dim)
        return start._replace(target=(start.params["network"], start.stats["network"]))

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        network_stats, head_stats, target_stats = stats["network"], stats["predictor"], target.stats
        q, k = [], []
        for images in inputs:
            (z, _), network_stats = apply(params["network"], network_stats, images, True)
            (predicted, _), head_stats = apply_predictor(params["predictor"], head_stats, z, True)
            (keys, _), target_stats = lax.stop_gradient(
                apply(target.params, target_stats, images, True)
            )
            q.append(predicted)
            k.append(keys)
        outputs = {"q": jnp.stack(q, axis=1), "k": jnp.stack(k, axis=1)}
        return outputs, {"network": network_stats, "predictor": head_stats}, target_stats

    def loss(
        outputs: Any, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        q, k = outputs["q"], outputs["k"]
        value = losses.moco_v3(
            q[:, 0],
            q[:, 1],
            k[:, 0],
            k[:, 1],
            temperature=temperature,
            block_size=block_size,
            axis_name=run.axis_name,
        )
        return value, Aux({"chance": jnp.float32(chance)})

    return from_loss(
        variables=variables,
        forward=forward,
        loss=loss,
        tx=tx,
        features=features_of(apply, "network"),
        axis_name=run.axis_name,
        **keywords(views),
        ema=ema_of_params(momentum_at),
        tracked=lambda params: params["network"],
        negatives=run.batch_size - 1,
    )
