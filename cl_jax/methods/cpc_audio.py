"""CPC on sound (van den Oord et al. 2018, arXiv 1807.03748, sections 2 and 3.1).

Strided convolutions turn a window of a recording into latents, a recurrent network sums up what has
been heard, and its state must pick out the latents to come among all of the batch.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from cl_jax import losses
from cl_jax.core.clocks import Count
from cl_jax.core.method import Aux, Batch, Method, Run, State, from_loss
from cl_jax.core.network import applier, features_of, initial
from cl_jax.core.numerics import dots
from cl_jax.views import View, keywords

ROLES = ("wave", "context")


class Network(nn.Module):
    """Inputs -> ((p, z), features): predictions p [B, K, T, D] of the latents z [B, T, D];
    "h" [B, C], the mean context over time, "z" [B, D], the mean latent, and "last" [B, C], the
    context of the last time."""

    latents: nn.Module
    context: nn.Module
    steps: int

    @nn.compact
    def __call__(
        self, x: Any, train: bool
    ) -> tuple[tuple[jax.Array, jax.Array], dict[str, jax.Array]]:
        z = self.latents(x, train=train)["sequence"]
        c = self.context(z, train=train)["sequence"]
        w = self.param(
            "predict",
            nn.initializers.lecun_normal(in_axis=2, out_axis=1, batch_axis=0),
            (self.steps, z.shape[-1], c.shape[-1]),
            jnp.float32,
        )
        p = jnp.moveaxis(losses.predictive.predictions(c, w), 0, 1)
        return (p, z), {"h": c.mean(1), "z": z.mean(1), "last": c[:, -1]}


def make(
    *,
    encoder: Mapping[str, nn.Module],
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    steps: Count = 12,
    scale: float = 1.0,
    common_window: bool = True,
    exclude_own: bool = False,
    block_size: int | None = None,
    micro_batches: int = 1,
) -> Method:
    """CPC on recordings.

    encoder: {"wave": windows [B, S] to latents, "context": latents to contexts}, whose "sequence"
      is read.
    views: one, a window of the recording.
    steps: how many latents ahead are predicted, each by a matrix of its own; 12 in the paper.
    scale: of scores; 1 in the paper. Nothing is normalised, so it decides how fast learning starts.
    common_window, exclude_own, block_size: see `losses.cpc`. The paper's negatives are all other
      latents of the batch, of the same recording too.
    micro_batches: see `core.method.from_loss`.

    Gradient flows to positives and negatives. Besides "encode" there are the functions "steps": [B,
    steps], of each recording `picked_out`; and "predictions": {"p": [B, steps, T, D], "z": [B, T,
    D]}.

    Raises:
      ValueError: other encoders than `wave` and `context`.
    """
    if not isinstance(encoder, Mapping) or set(encoder) != set(ROLES):
        raise ValueError(
            "config.encoder must have the sections wave and context, an encoder of windows and one "
            "of latents, for instance wave=dict(name='conv1d'), context=dict(name='gru')."
        )
    return over_sequences(
        encoder["wave"],
        encoder["context"],
        tx=tx,
        views=views,
        run=run,
        steps=steps,
        scale=scale,
        common_window=common_window,
        exclude_own=exclude_own,
        block_size=block_size,
        micro_batches=micro_batches,
    )


def over_sequences(
    latents: nn.Module,
    context: nn.Module,
    *,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    steps: int,
    scale: float,
    common_window: bool,
    exclude_own: bool,
    block_size: int | None,
    micro_batches: int,
) -> Method:
    """CPC on anything that an encoder makes a sequence of: `make` for sound, `cpc_text` for
    sentences. latents: inputs to "sequence" [B, T, D]; context: that to "sequence" [B, T, C]."""
    if len(views) != 1:
        raise ValueError(f"CPC sees one view of an example; the config has {len(views)}.")
    if steps < 1:
        raise ValueError(f"steps={steps}; expected at least 1.")
    network = Network(latents, context, steps)
    apply = applier(network)

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        ((p, z), _), stats = apply(params, stats, inputs[0], True)
        return {"p": p, "z": z}, stats, None

    def loss(
        outputs: Any, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        z = outputs["z"]
        found = losses.predictive.cpc_steps(
            jnp.moveaxis(outputs["p"], 1, 0),
            z,
            scale=scale,
            common_window=common_window,
            exclude_own=exclude_own,
            axis_name=run.axis_name,
            block_size=block_size,
        )
        metrics = {f"accuracy_{k}": found.accuracy[k - 1] for k in range(1, steps + 1)}
        known = run.batch_size * z.shape[1] - (z.shape[1] - 1 if exclude_own else 0)
        metrics["chance"] = jnp.float32(math.log(known))
        return found.loss.mean(), Aux(metrics)

    def predictions(state: State, batch: Batch) -> dict[str, jax.Array]:
        ((p, z), _), _ = apply(state.params, state.stats, views[0].clean(batch), False)
        return {"p": p, "z": z}

    def ahead(state: State, batch: Batch) -> jax.Array:
        found = predictions(state, batch)
        return jax.vmap(picked_out)(found["p"], found["z"])

    return from_loss(
        variables=initial(network, views[0].clean),
        forward=forward,
        loss=loss,
        tx=tx,
        features=features_of(apply),
        functions={"steps": ahead, "predictions": predictions},
        axis_name=run.axis_name,
        micro_batches=micro_batches,
        **keywords(views),
    )


def picked_out(p: jax.Array, z: jax.Array) -> jax.Array:
    """[K] shares of times from which the latent so many steps ahead, of z [T, D], scores highest
    with its prediction, of p [K, T, D].

    Of n latents that score highest alike the right one counts 1 / n, so that a network that maps
    everything to one point is at chance; where a score is NaN, it counts 0.
    """
    steps, times = p.shape[:2]
    start = jnp.arange(times - steps)

    def step(given: tuple[jax.Array, jax.Array]) -> jax.Array:
        predicted, ahead = given
        scores = dots("td,sd->ts", predicted[: times - steps], z)
        own = scores[start, start + ahead][:, None]
        others = jnp.arange(times)[None] != (start + ahead)[:, None]
        beaten = (others & ~(scores <= own)).any(1)
        equal = 1 + (others & (scores == own)).sum(1)
        return jnp.where(beaten, 0, 1 / equal).mean()

    return lax.map(step, (p, jnp.arange(1, steps + 1)))
