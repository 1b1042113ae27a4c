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
from cl_jax.core.method import Batch, Run, Variables
from cl_jax.core.network import Network, applier, features_of, with_predictor
from cl_jax.core.parts import Pairs, Parts, method_of
from cl_jax.encoders import initializers
from cl_jax.heads import mlp, predictor
from cl_jax.methods.distill import accuracy
from cl_jax.views import View, draw, fields


def parts(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    momentum: float = 0.996,
    hidden_dim: int = 4096,
    out_dim: int = 256,
    monitor: bool = False,
) -> Parts:
    """BYOL; the first view is of the first recipe, the second of the second.

    momentum: tau of step 0; at step k of K it is 1 - (1 - momentum) (1 + cos(pi k / K)) / 2.
    hidden_dim, out_dim: of projector and predictor.
    monitor: trains a linear classifier on h of view 1 beside it, without gradient to the encoder,
      as the authors' code does; needs batch["label"].

    Raises:
      ValueError: another number of views than two.
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
    apply, apply_predictor = applier(network), applier(predict)
    num_classes = run.sizes.get("label", 0)

    def tau(step: jax.Array) -> jax.Array:
        return 1 - (1 - momentum) * (1 + jnp.cos(math.pi * step / run.total_steps)) / 2

    def variables(key: jax.Array, batch: Batch) -> Variables:
        images = views[0].clean(batch)
        online_key, target_key, predictor_key = jax.random.split(key, 3)
        online = with_predictor(network, predict, (online_key, predictor_key), images, out_dim)
        slow = network.init(target_key, images, True)
        params, stats = online.params, online.stats
        if monitor:
            features = jax.eval_shape(
                lambda: apply(params["network"], stats["network"], images, False)[0][1]
            )
            width = features["h"].shape[1]
            # Not 0: LARS moves a layer in proportion to its norm.
            start = initializers.kernel("haiku")
            params["classifier"] = {
                "kernel": start(jax.random.fold_in(predictor_key, 1), (width, num_classes)),
                "bias": jnp.zeros(num_classes),
            }
        return Variables(params, stats, (slow["params"], slow.get("batch_stats", {})))

    def embed(
        params: Any, stats: Any, target: Any, inputs: Any, key: jax.Array
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

    def pairs(outputs: Any, memory: Any) -> tuple[Pairs, ...]:
        p, z, seen = outputs["p"], outputs["z"], outputs["h"] if monitor else None
        return Pairs(p[:, 0], z[:, 1], seen=seen), Pairs(p[:, 1], z[:, 0])

    def contrast(
        found: tuple[Pairs, ...], params: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        (p_a, z_b), (p_b, z_a) = (pair[:2] for pair in found)
        value = losses.byol(p_a, p_b, z_a, z_b, axis_name=run.axis_name)
        if not monitor:
            return value, {}
        logits = (
            jnp.float32(found[0].seen) @ params["classifier"]["kernel"]
            + params["classifier"]["bias"][None, :]
        )
        right = accuracy(logits, batch["label"], run.axis_name)
        cross_entropy = losses.cross_entropy(logits, batch["label"], axis_name=run.axis_name)
        return value + cross_entropy, {"regression": value, "monitor_accuracy": right}

    return Parts(
        variables=variables,
        views=lambda batch, key: draw(views, batch, key),
        embed=embed,
        pairs=pairs,
        remember=lambda outputs, memory, batch: memory,
        contrast=contrast,
        temperature=None,
        rest=dict(
            tx=tx,
            features=features_of(apply, "network"),
            clean=views[0].clean,
            axis_name=run.axis_name,
            ema=ema_of_params(tau),
            tracked=lambda params: params["network"],
            **fields(views, *(("label",) if monitor else ())),
        ),
    )


make = method_of(parts)
