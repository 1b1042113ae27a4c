"""LoCo (Xiong, Ren and Urtasun 2020, arXiv 2008.01342): SimCLR with a loss of its own for each pair
of neighbouring stages, between which no gradient flows.

A stage is shared by the pair below it and the pair above it, so that it learns from two losses. One
stage a unit is Greedy InfoMax's division; all stages in one unit are SimCLR."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cl_jax import losses
from cl_jax.core.method import Aux, Batch, Method, Run, Tree, Variables, from_loss
from cl_jax.core.network import applier
from cl_jax.heads import mlp
from cl_jax.losses.spaces import local_features, local_units
from cl_jax.views import View, keywords


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    span: int = 2,
    temperature: float = 0.1,
    out_dim: int = 128,
    num_layers: int = 2,
    block_size: int | None = None,
) -> Method:
    """LoCo, of two views and a ResNet.

    span: stages of a unit, each one stage above the one before: 2 is LoCo, 1 Greedy InfoMax's, all
      of them SimCLR.
    temperature: of every unit's NT-Xent. out_dim, num_layers: of every unit's head. block_size: see
      `losses.nt_xent`.

    The loss is the sum over units. Metrics: "loss_1", ... of each unit from the bottom.

    Raises:
      ValueError: other than two views, an encoder without stages, a span that they do not have.
    """
    if len(views) != 2:
        raise ValueError(f"LoCo contrasts two views; the config has {len(views)}.")
    stages = getattr(encoder, "num_stages", 0)
    if not stages:
        raise ValueError(
            f"LoCo divides a network into stages; {type(encoder).__name__} has none. Use "
            'encoder.name="resnet".'
        )
    units = local_units(stages, span)
    head = mlp.make(
        variant="simclr",
        out_dim=out_dim,
        num_layers=num_layers,
        dtype=encoder.dtype,
        axis_name=run.axis_name,
    )
    apply_encoder, apply_head = applier(encoder), applier(head)
    negatives = 2 * run.batch_size - 2

    def variables(key: jax.Array, batch: Batch) -> Variables:
        keys = jax.random.split(key, 1 + len(units))
        named, found = encoder.init_with_output(keys[0], views[0].clean(batch), train=True)
        params, stats = {"encoder": found["params"]}, {"encoder": found.get("batch_stats", {})}
        for number, (unit, head_key) in enumerate(zip(units, keys[1:])):
            made = head.init(head_key, _pooled(named[f"stage{unit[1] + 1}"]), train=True)
            params[f"head{number}"] = made["params"]
            stats[f"head{number}"] = made.get("batch_stats", {})
        return Variables(params, stats)

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        runs = [
            partial(_stage, encoder, params["encoder"], stats["encoder"], j) for j in range(stages)
        ]
        found = local_features(runs, jnp.concatenate(inputs), units=units, has_aux=True)
        new = {"encoder": {name: x for moved in found.aux for name, x in moved.items()}}
        outputs = []
        for number, h in enumerate(found.units):
            (z, _), new[f"head{number}"] = apply_head(
                params[f"head{number}"], stats[f"head{number}"], _pooled(h), True
            )
            outputs.append(jnp.stack(jnp.split(z, 2), axis=1))
        return tuple(outputs), new, None

    def loss(
        outputs: Any, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        values = [
            losses.nt_xent(
                z[:, 0],
                z[:, 1],
                temperature=temperature,
                axis_name=run.axis_name,
                block_size=block_size,
            )
            for z in outputs
        ]
        metrics = {f"loss_{number}": value for number, value in enumerate(values, start=1)}
        chance = jnp.float32(len(units) * math.log(negatives + 1))
        return sum(values[1:], values[0]), Aux(metrics | {"chance": chance})

    def features(
        params: Any, stats: Any, images: jax.Array, train: bool
    ) -> tuple[dict[str, jax.Array], Any]:
        named, moved = apply_encoder(params["encoder"], stats["encoder"], images, train)
        last = f"head{len(units) - 1}"
        (z, _), head_stats = apply_head(params[last], stats[last], named["h"], train)
        return {"h": named["h"], "z": z}, {**stats, "encoder": moved, last: head_stats}

    return from_loss(
        variables=variables,
        forward=forward,
        loss=loss,
        tx=tx,
        features=features,
        axis_name=run.axis_name,
        negatives=negatives,
        **keywords(views),
    )


def _stage(
    encoder: nn.Module, params: Tree, stats: Tree, number: int, x: jax.Array
) -> tuple[jax.Array, Tree]:
    """(map after stage `number`, new statistics of that stage alone)."""
    apply: Callable[..., Any] = partial(encoder.apply, train=True, span=(number, number))
    named, changed = apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
    prefixes = (f"stage{number + 1}_", "stem_") if number == 0 else (f"stage{number + 1}_",)
    moved = changed.get("batch_stats", {})
    return named[f"stage{number + 1}"], {n: x for n, x in moved.items() if n.startswith(prefixes)}


def _pooled(x: jax.Array) -> jax.Array:
    """Mean over space of a map [B, h, w, C], float32 at least."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((1, 2))
