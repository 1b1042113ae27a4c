"""Decoupled contrastive learning (Yeh et al. 2021, arXiv 2110.06848): SimCLR whose denominator
leaves the positive out, so that small batches do not weaken its gradient; DCLW also pulls a pair
harder the less its views agree."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cl_jax import losses
from cl_jax.core.method import Aux, Batch, Method, Run, from_loss
from cl_jax.core.network import Network, applier, features_of, initial
from cl_jax.heads import mlp
from cl_jax.views import View, keywords


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    temperature: float = 0.1,
    sigma: float = 0.0,
    detach_weights: bool = True,
    out_dim: int = 128,
    num_layers: int = 2,
    block_size: int | None = None,
    micro_batches: int = 1,
) -> Method:
    """DCL, or DCLW where `sigma` is above 0 (0.5 in the paper).

    temperature, sigma, detach_weights: see `losses.decoupled.dclw`. out_dim, num_layers: of
      SimCLR's head.
    Both views pass the network together, as SimCLR's.

    Raises:
      ValueError: another number of views than two, a batch of one.
    """
    if len(views) != 2:
        raise ValueError(f"DCL contrasts two views; the config has {len(views)}.")
    if run.batch_size < 2:
        raise ValueError("DCL pushes from other examples; use a batch_size of 2 or more.")
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
    apply = applier(network)
    negatives = 2 * run.batch_size - 2

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        (z, _), stats = apply(params, stats, jnp.concatenate(inputs), True)
        return jnp.stack(jnp.split(z, 2), axis=1), stats, None

    def loss(
        z: jax.Array, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        knobs: dict[str, Any] = {
            "temperature": temperature,
            "axis_name": run.axis_name,
            "block_size": block_size,
        }
        if sigma > 0:
            value = losses.decoupled.dclw(
                z[:, 0], z[:, 1], sigma=sigma, detach_weights=detach_weights, **knobs
            )
        else:
            value = losses.dcl(z[:, 0], z[:, 1], **knobs)
        return value, Aux({"chance": jnp.float32(math.log(negatives))})

    return from_loss(
        variables=initial(network, views[0].clean),
        forward=forward,
        loss=loss,
        tx=tx,
        features=features_of(apply),
        axis_name=run.axis_name,
        **keywords(views),
        negatives=negatives,
        micro_batches=micro_batches,
    )
