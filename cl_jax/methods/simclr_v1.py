"""SimCLR (Chen et al. 2020, arXiv 2002.05709): two views of each image through one network, NT-Xent
between them.

Both views go through batch norm together, whose moments are over all devices; negatives are
gathered with gradient."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cl_jax import losses
from cl_jax.core.method import Aux, Batch, Method, Run, Variables, from_loss
from cl_jax.core.network import Network, applier, features_of
from cl_jax.heads import mlp
from cl_jax.views import View, draw, fields


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    temperature: float = 0.1,
    sum_directions: bool = True,
    out_dim: int = 128,
    num_layers: int = 2,
    block_size: int | None = None,
    micro_batches: int = 1,
) -> Method:
    """SimCLR v1.

    sum_directions: the released code adds the two directions, twice the paper's mean over 2B
      anchors.
    num_layers: layers of the projection head. micro_batches: see `from_loss`. block_size: see
      `losses.nt_xent`.
    """
    if len(views) != 2:
        raise ValueError(f"SimCLR contrasts two views; the config has {len(views)}.")
    network = Network(
        encoder,
        mlp.make(
            variant="simclr",
            out_dim=out_dim,
            num_layers=num_layers,
            dtype=encoder.dtype,
            axis_name=run.axis_name,
        ),
    )
    apply, negatives, scale = (
        applier(network),
        2 * run.batch_size - 2,
        2.0 if sum_directions else 1.0,
    )

    def variables(key: jax.Array, batch: Batch) -> Variables:
        start = network.init(key, views[0].clean(batch), True)
        return Variables(start["params"], start.get("batch_stats", {}))

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        a, b = inputs
        (z, _), stats = apply(params, stats, jnp.concatenate([a, b]), True)
        return jnp.stack(jnp.split(z, 2), axis=1), stats, None

    def loss(
        z: jax.Array, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        value = losses.nt_xent(
            z[:, 0],
            z[:, 1],
            temperature=temperature,
            axis_name=run.axis_name,
            block_size=block_size,
        )
        return scale * value, Aux({"chance": jnp.float32(scale * math.log(negatives + 1))})

    return from_loss(
        variables=variables,
        views=lambda batch, key: draw(views, batch, key),
        forward=forward,
        loss=loss,
        tx=tx,
        features=features_of(apply),
        clean=views[0].clean,
        axis_name=run.axis_name,
        **fields(views),
        micro_batches=micro_batches,
        negatives=negatives,
    )
