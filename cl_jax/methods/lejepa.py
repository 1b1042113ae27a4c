"""LeJEPA (Balestriero and LeCun 2025, arXiv 2511.08544): all views of an image are pulled to the
mean of its global views, while each view's batch is held to a standard normal distribution along
random directions (SIGReg). No negatives, no predictor, no slow copy, no stop-gradient.

Crops of one size pass the encoder together, all crops the head. The directions of a step are the
same on every device."""

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
from cl_jax.views import View, keywords, multicrop


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    weight: float = 0.05,
    num_global: int | None = None,
    num_directions: int = 1024,
    t_max: float = 3.0,
    num_points: int = 17,
    hidden_dim: int = 2048,
    out_dim: int = 64,
    num_layers: int = 3,
    block_size: int | None = None,
) -> Method:
    """LeJEPA, of two views or more.

    weight: of SIGReg, 0 to 1; the prediction has the rest. num_global: how many views, the first,
    make the mean; None: all. num_directions: redrawn at every step. t_max, num_points, block_size:
    see `losses.spread.sigreg_statistics`. hidden_dim, out_dim, num_layers: of the projector,
    whose output is not normalised.

    The metrics "sigreg" and "prediction" are the terms before their weights; SIGReg's is about 1.05
    where it is satisfied.

    Raises:
      ValueError: fewer than two views, a weight above 1, num_global out of range.
    """
    if len(views) < 2:
        raise ValueError(f"LeJEPA compares two views or more; the config has {len(views)}.")
    if weight > 1:
        raise ValueError(f"weight={weight}; expected 0 to 1, since the prediction has 1 - weight.")
    if num_global is not None and not 1 <= num_global <= len(views):
        raise ValueError(f"num_global={num_global}; expected 1 to the {len(views)} views.")
    network = Network(
        encoder,
        mlp.make(
            variant="lejepa",
            hidden_dim=hidden_dim,
            out_dim=out_dim,
            num_layers=num_layers,
            dtype=encoder.dtype,
            axis_name=run.axis_name,
        ),
    )
    apply = applier(network)

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        sizes = [jnp.concatenate([inputs[i] for i in group]) for group in multicrop.by_size(inputs)]
        (z, _), stats = apply(params, stats, sizes, True)
        return jnp.stack(jnp.split(z, len(views)), axis=1), stats, None

    def loss(
        z: jax.Array, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        terms = losses.spread.lejepa_terms(
            z.swapaxes(0, 1),
            losses.spread.draw_directions(batch_key(key), out_dim, num_directions),
            num_global=num_global,
            t_max=t_max,
            num_points=num_points,
            axis_name=run.axis_name,
            block_size=block_size,
        )
        value = weight * terms.sigreg + (1 - weight) * terms.prediction
        return value, Aux({"sigreg": terms.sigreg, "prediction": terms.prediction})

    return from_loss(
        variables=initial(network, views[0].clean),
        forward=forward,
        loss=loss,
        tx=tx,
        features=features_of(apply),
        axis_name=run.axis_name,
        **keywords(views),
    )
