"""W-MSE (Ermolov et al. 2020, arXiv 2007.06346): each view's embeddings are whitened over groups of
the batch, which scatters them, and the views of an image are pulled together. No negatives, no slow
copy, no stop-gradient; any number of views.

Views pass the encoder one after the other and the head together. Groups are of the global batch,
the same on every device and in every view."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cl_jax import losses
from cl_jax.core.keys import batch_key
from cl_jax.core.method import Aux, Batch, Method, Run, from_loss
from cl_jax.core.network import applier, features_of, initial
from cl_jax.heads import mlp
from cl_jax.methods.swav import Network
from cl_jax.views import View, keywords


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    group_size: int = 128,
    iterations: int = 1,
    eps: float = 0.0,
    normalise: bool = True,
    hidden_dim: int = 1024,
    out_dim: int = 64,
) -> Method:
    """W-MSE, of two views or more.

    group_size, eps, normalise: see `losses.decorrelation.w_mse`. iterations: permutations of
    the batch that a step averages over. hidden_dim, out_dim: of the head.

    Raises:
      ValueError: fewer than two views, groups that do not divide the batch.
    """
    if len(views) < 2:
        raise ValueError(f"W-MSE compares two views or more; the config has {len(views)}.")
    if run.batch_size % group_size:
        raise ValueError(
            f"group_size={group_size} does not divide the batch of {run.batch_size}; use "
            f"{math.gcd(group_size, run.batch_size)}, or another batch_size."
        )
    network = Network(
        encoder,
        mlp.make(
            variant="wmse",
            hidden_dim=hidden_dim,
            out_dim=out_dim,
            dtype=encoder.dtype,
            axis_name=run.axis_name,
        ),
    )
    apply = applier(network)

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        (z, _), stats = apply(params, stats, list(inputs), True)
        return jnp.stack(jnp.split(z, len(views)), axis=1), stats, None

    def loss(
        z: jax.Array, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        permutations = losses.decorrelation.draw_permutations(
            batch_key(key), run.batch_size, iterations
        )
        value = losses.decorrelation.w_mse(
            z.swapaxes(0, 1),
            permutations,
            group_size=group_size,
            eps=eps,
            normalise=normalise,
            axis_name=run.axis_name,
        )
        return value, Aux({"chance": jnp.float32(2.0)})

    return from_loss(
        variables=initial(network, views[0].clean),
        forward=forward,
        loss=loss,
        tx=tx,
        features=features_of(apply),
        axis_name=run.axis_name,
        **keywords(views),
    )
