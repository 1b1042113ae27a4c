"""Deep InfoMax (Hjelm et al. 2019, arXiv 1808.06670): an image's summary should tell its local
features from others'.

One picture of each image and no augmentation pair: both sides of a score come from it, negatives
are the other images of the batch. A discriminator, the second player, pulls the summary's
distribution towards a uniform one."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from cl_jax import losses
from cl_jax.core.keys import batch_key, example_keys
from cl_jax.core.method import Aux, Batch, Method, Run, Variables, from_loss
from cl_jax.core.network import applier
from cl_jax.encoders import initializers
from cl_jax.encoders.conv import ConvNet
from cl_jax.heads import mlp
from cl_jax.heads.infomax import DotCritic
from cl_jax.losses.mutual_information import MEASURES
from cl_jax.views import View, keywords

ESTIMATORS = (*MEASURES, "InfoNCE", "DV")


class Network(nn.Module):
    """Encoder, the summary y (a linear layer on its "h"), and the critics of the terms that are in
    use.

    Returns ({"y": [B, D], "local": (places [B, L, U], summary [B, 1, U]), "global": the same with L
    = 1}, features): the encoder's features of two axes, and "y".
    """

    encoder: nn.Module
    summary_dim: int
    units: int
    local: str
    local_term: bool
    again: ConvNet | None  # re-encodes the local map for the global term
    dtype: Any = None
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool
    ) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        features = self.encoder(images, train=train)
        if self.local not in features or features[self.local].ndim != 4:
            maps = ", ".join(name for name, x in features.items() if x.ndim == 4)
            raise ValueError(f"local={self.local!r} is not a map of this encoder; it has {maps}.")
        h = features["h"]
        y = self._dense(self.summary_dim, h.shape[-1], "summary")(h).astype(h.dtype)
        outputs: dict[str, Any] = {"y": y}
        found = features[self.local]
        if self.local_term:
            places = DotCritic(self.units, self.dtype, self.axis_name, name="local_critic")(
                found.reshape(found.shape[0], -1, found.shape[-1]), train=train
            )
            summary = (
                y[:, None]
                if self.summary_dim == self.units
                else DotCritic(self.units, self.dtype, self.axis_name, name="summary_critic")(
                    y[:, None], train=train
                )
            )
            outputs["local"] = places, summary
        if self.again is not None:
            whole = self.again(found, train=train)["h"]
            whole = self._dense(self.units, whole.shape[-1], "global_map")(whole).astype(h.dtype)
            summary = (
                y
                if self.summary_dim == self.units
                else self._dense(self.units, self.summary_dim, "global_summary")(y).astype(h.dtype)
            )
            outputs["global"] = whole[:, None], summary[:, None]
        return outputs, {name: x for name, x in features.items() if x.ndim == 2} | {"y": y}

    def _dense(self, width: int, fan_in: int, name: str) -> nn.Dense:
        return nn.Dense(
            width,
            dtype=self.dtype,
            kernel_init=initializers.kernel("torch"),
            bias_init=initializers.bias("torch", fan_in),
            name=name,
        )


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    alpha: float = 0.0,
    beta: float = 1.0,
    gamma: float = 0.1,
    estimator: str = "JSD",
    local: str = "conv2",
    summary_dim: int = 64,
    units: int = 2048,
    discriminator_dims: Sequence[int] = (1000, 200),
    gradient_penalty: float = 1.0,
    block_size: int | None = None,
) -> Method:
    """Deep InfoMax; the loss is alpha * global + beta * local + gamma * prior, and the
    discriminator's own.

    alpha, beta, gamma: the paper's DIM(L) is 0, 1, 0.1; DIM(G) 1, 0, 1.
    estimator: of both bounds: "JSD", the paper's first; "InfoNCE", its best; "DV"; or another
      measure of `losses.mutual_information.dim_divergence`.
    local: the encoder's map whose places are the local features; the second convolution's for
      CIFAR-10.
    summary_dim: of y. units: of the space in which features are compared.
    discriminator_dims: hidden layers. gradient_penalty: weight of the mean of its squared
      gradients' means at the prior and at the summaries (Mescheder et al. 2018). The authors' code
      takes the batch's last example alone, by an index.
    block_size: see the losses.

    Scores are products of a critic's outputs on either side, as in the authors' code; the paper's
    concat-and-convolve critic is not in it and not here. The global term re-encodes the local map
    by layers like the encoder's from the local one on, that one once more, as there; so it needs a
    `conv` encoder. The coordinate task and occlusion are left out.

    The discriminator d sees sigmoid(y) against U[0, 1]. Both players move in the same step, from
    the same values, as the authors': one backward pass with a stop-gradient on the other player's
    side gives each its gradient alone, and each has an optimiser state of its own. "loss" is the
    sum of both.

    Features: "h" (what heads take), "conv", "fc" where the encoder has them, "y": the paper's
      three.

    Raises:
      ValueError: more views than one, an unknown estimator, no term or a negative weight, the
        global term on an encoder that is not `conv`.
    """
    if len(views) != 1:
        raise ValueError(f"Deep InfoMax sees one view of each image; the config has {len(views)}.")
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator is {estimator!r}; expected one of {', '.join(ESTIMATORS)}.")
    if min(alpha, beta, gamma) < 0 or max(alpha, beta) == 0:
        raise ValueError(
            f"alpha={alpha}, beta={beta}, gamma={gamma}; expected weights of 0 or more, and a "
            f"global or a "
            "local term."
        )
    if alpha and not isinstance(encoder, ConvNet):
        raise ValueError(
            f"the global term (alpha={alpha}) copies layers of a `conv` encoder; this one is "
            f"{type(encoder).__name__}. Set alpha=0."
        )
    network = Network(
        encoder,
        summary_dim,
        units,
        local,
        beta > 0,
        encoder.from_layer(local) if alpha else None,
        encoder.dtype,
        run.axis_name,
    )
    player = mlp.MLP(
        (*discriminator_dims, 1), hidden_norm=False, hidden_bias=True, kernel_init="torch"
    )
    apply = applier(network)

    def variables(key: jax.Array, batch: Batch) -> Variables:
        network_key, player_key = jax.random.split(key)
        start = network.init(network_key, views[0].clean(batch), True)
        params = {"network": start["params"]}
        if gamma:
            params["discriminator"] = player.init(
                player_key, jnp.zeros((1, summary_dim)), train=True
            )["params"]
        return Variables(params, start.get("batch_stats", {}))

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        [images] = inputs
        (outputs, _), stats = apply(params["network"], stats, images, True)
        return outputs, stats, None

    def loss(
        outputs: Any, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        metrics, value, chance = {}, jnp.zeros(()), jnp.zeros(())
        for name, weight in (("global", alpha), ("local", beta)):
            if weight:
                places, summary = outputs[name]
                metrics[name] = bound(places, summary, estimator, run.axis_name, block_size)
                value += weight * metrics[name]
                chance += weight * at_chance(estimator, places.shape[1], run.batch_size)
        if gamma:
            z, drawn = jax.nn.sigmoid(outputs["y"]), example_keys(batch_key(key), batch["id"])
            prior = jax.vmap(lambda key: jax.random.uniform(key, (summary_dim,)))(drawn)
            held, mine = lax.stop_gradient(z), params["discriminator"]
            metrics["prior"] = losses.generation.logistic_generator(
                score(lax.stop_gradient(mine), z), axis_name=run.axis_name
            )
            metrics["discriminator"] = losses.generation.logistic_discriminator(
                score(mine, prior), score(mine, held), axis_name=run.axis_name
            )
            value += gamma * metrics["prior"] + metrics["discriminator"]
            chance += (gamma + 2) * math.log(2)
            if gradient_penalty:
                metrics["gradient_penalty"] = (slope(mine, prior) + slope(mine, held)) / 2
                value += gradient_penalty * metrics["gradient_penalty"]
        return value, Aux(metrics | {"chance": chance})

    def score(params: Any, z: jax.Array) -> jax.Array:
        return player.apply({"params": params}, z, train=True)[0][:, 0]

    def slope(params: Any, z: jax.Array) -> jax.Array:
        """Mean over the device's examples of the score's squared gradient."""
        gradient = jax.grad(lambda z: score(params, z).sum())(z)
        return jnp.square(gradient).sum(axis=1).mean()

    def features(
        params: Any, stats: Any, images: jax.Array, train: bool
    ) -> tuple[dict[str, jax.Array], Any]:
        (_, named), stats = apply(params["network"], stats, images, train)
        return named, stats

    players = {"network": tx} | ({"discriminator": tx} if gamma else {})
    return from_loss(
        variables=variables,
        forward=forward,
        loss=loss,
        tx=optax.partition(players, {k: k for k in players}),
        features=features,
        axis_name=run.axis_name,
        **keywords(views),
        negatives=run.batch_size - 1,
    )


def bound(
    places: jax.Array,
    summary: jax.Array,
    estimator: str,
    axis_name: str | None,
    block_size: int | None = None,
) -> jax.Array:
    """The loss, minus a bound on mutual information but for constants, of places [B, L, U] and
    summary [B, 1, U]."""
    settings: dict[str, Any] = {"axis_name": axis_name, "block_size": block_size}
    if estimator == "InfoNCE":
        return losses.mutual_information.dim_infonce(places, summary, **settings)
    if estimator == "DV":
        return losses.mutual_information.dim_donsker_varadhan(places, summary, **settings)
    return losses.mutual_information.dim_divergence(places, summary, measure=estimator, **settings)


def at_chance(estimator: str, places: int, batch_size: int) -> float | jax.Array:
    """`bound` where all scores are 0."""
    if estimator == "InfoNCE":
        return math.log(1 + places * (math.exp(-10) + batch_size - 1))
    if estimator == "DV":
        return 0.0
    own, stranger = losses.mutual_information.expectations(jnp.zeros(()), estimator)
    return stranger - own
