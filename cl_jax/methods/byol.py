"""BYOL (Grill et al. 2020, arXiv 2006.07733): predict a slow network's projection of the other
view; no negatives.

The target starts from weights of its own, not from a copy; it moves after each step towards the new
parameters, by a momentum that rises to 1. Its batch statistics come from its own training-mode
passes. Views pass one after the other."""

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
from cl_jax.core.network import Network, applier
from cl_jax.heads import mlp, predictor
from cl_jax.views import View, draw, fields


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    momentum: float = 0.996,
    hidden_dim: int = 4096,
    out_dim: int = 256,
    monitor: bool = False,
) -> Method:
    """BYOL; the first view is of the first recipe, the second of the second.

    momentum: tau of step 0; at step k of K it is 1 - (1 - momentum) (1 + cos(pi k / K)) / 2.
    hidden_dim, out_dim: of projector and predictor.
    monitor: trains a linear classifier on h of view 1 beside it, without gradient to the encoder,
      as the authors' code does; needs batch["label"].
    """
    if len(views) != 2:
        raise ValueError(f"BYOL compares two views; the config has {len(views)}.")
    settings = {
        "variant": "byol",
        "out_dim": out_dim,
        "hidden_dim": hidden_dim,
        "dtype": encoder.dtype,
        "axis_name": run.axis_name,
    }
    network, predict = Network(encoder, mlp.make(**settings)), predictor.make(**settings)
    apply, apply_predictor, num_classes = (
        applier(network),
        applier(predict),
        run.sizes.get("label", 0),
    )

    def tau(step: jax.Array) -> jax.Array:
        return 1 - (1 - momentum) * (1 + jnp.cos(math.pi * step / run.total_steps)) / 2

    def variables(key: jax.Array, batch: Batch) -> Variables:
        images = views[0].clean(batch)
        online_key, target_key, predictor_key = jax.random.split(key, 3)
        online, slow = (
            network.init(online_key, images, True),
            network.init(target_key, images, True),
        )
        head = predict.init(predictor_key, jnp.zeros((images.shape[0], out_dim)), train=True)
        params = {"network": online["params"], "predictor": head["params"]}
        if monitor:
            features = jax.eval_shape(
                lambda: apply(online["params"], online.get("batch_stats", {}), images, False)[0][1]
            )
            width = features["h"].shape[1]
            params["classifier"] = {
                "kernel": jnp.zeros((width, num_classes)),
                "bias": jnp.zeros(num_classes),
            }
        stats = {"network": online.get("batch_stats", {}), "predictor": head.get("batch_stats", {})}
        return Variables(params, stats, (slow["params"], slow.get("batch_stats", {})))

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        network_stats, head_stats, target_stats = stats["network"], stats["predictor"], target.stats
        p, z, h = [], [], []
        for images in inputs:
            (online, named), network_stats = apply(params["network"], network_stats, images, True)
            (predicted, _), head_stats = apply_predictor(
                params["predictor"], head_stats, online, True
            )
            (slow, _), target_stats = lax.stop_gradient(
                apply(target.params, target_stats, images, True)
            )
            p.append(predicted)
            z.append(slow)
            h.append(named["h"])
        outputs = {
            "p": jnp.stack(p, axis=1),
            "z": jnp.stack(z, axis=1),
            "h": lax.stop_gradient(h[0]),
        }
        return outputs, {"network": network_stats, "predictor": head_stats}, target_stats

    def loss(
        outputs: Any, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        p, z = outputs["p"], outputs["z"]
        value = losses.byol(p[:, 0], p[:, 1], z[:, 0], z[:, 1], axis_name=run.axis_name)
        if not monitor:
            return value, Aux({})
        logits = (
            jnp.float32(outputs["h"]) @ params["classifier"]["kernel"]
            + params["classifier"]["bias"][None, :]
        )
        right = jnp.mean(logits.argmax(axis=1) == batch["label"])
        cross_entropy = losses.cross_entropy(logits, batch["label"], axis_name=run.axis_name)
        return value + cross_entropy, Aux({"regression": value, "monitor_accuracy": right})

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
        ema=ema_of_params(tau),
        tracked=lambda params: params["network"],
        **fields(views, *(("label",) if monitor else ())),
    )
