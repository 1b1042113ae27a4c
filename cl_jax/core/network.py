"""The network that most methods train: an encoder with a projection head, and how a method calls
it."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cl_jax.core.errors import WithoutEffect
from cl_jax.core.method import Batch, Forward, Variables

Apply = Callable[[Any, Any, Any, bool], tuple[Any, Any]]


def check_no_drop_path(encoder: nn.Module) -> None:
    """Warns of an encoder with stochastic depth, for networks that give it no keys: it drops
    nothing. The trainer begins no run with it (`core.errors.WithoutEffect`)."""
    rate = getattr(encoder, "drop_path", 0)
    if rate:
        message = f"drop_path={rate}: this method does not draw it; set encoder.drop_path=0."
        warnings.warn(WithoutEffect(message, "encoder.drop_path"), stacklevel=2)


class Network(nn.Module):
    """Encoder and projection head. Returns (z, features): "h", the head's hidden layers "proj1",
    ..., and "z"."""

    encoder: nn.Module
    head: nn.Module

    def __call__(self, images: jax.Array, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        check_no_drop_path(self.encoder)
        h = self.encoder(images, train=train)["h"]
        z, hiddens = self.head(h, train=train)
        return z, {"h": h} | {f"proj{j}": x for j, x in enumerate(hiddens) if j} | {"z": z}


def applier(network: nn.Module) -> Apply:
    """(params, stats, images, train) -> (outputs, stats) of a module called with (images,
    train=train)."""

    def apply(params: Any, stats: Any, images: Any, train: bool) -> tuple[Any, Any]:
        outputs, changed = network.apply(
            {"params": params, "batch_stats": stats}, images, train=train, mutable=["batch_stats"]
        )
        # A network without batch norm changes nothing.
        return outputs, changed.get("batch_stats", stats)

    return apply


def features_of(apply: Apply, part: str | None = None) -> Apply:
    """`Method.features` of a network that returns (z, features). `part`: its key in params and
    stats, where these are of several networks."""

    def whole(
        params: Any, stats: Any, images: jax.Array, train: bool
    ) -> tuple[dict[str, jax.Array], Any]:
        (_, named), stats = apply(params, stats, images, train)
        return named, stats

    def of_part(
        params: Any, stats: Any, images: jax.Array, train: bool
    ) -> tuple[dict[str, jax.Array], Any]:
        named, changed = whole(params[part], stats[part], images, train)
        return named, {**stats, part: changed}

    return whole if part is None else of_part


def initial(
    network: nn.Module, clean: Callable[[Batch], Any]
) -> Callable[[jax.Array, Batch], Variables]:
    """`variables` of `from_loss` for one network and nothing else: initialised on clean inputs."""

    def variables(key: jax.Array, batch: Batch) -> Variables:
        start = network.init(key, clean(batch), True)
        return Variables(start["params"], start.get("batch_stats", {}))

    return variables


def each_view(apply: Apply) -> Forward:
    """`forward` of `from_loss` that passes one view after the other, so that batch norm sees one at
    a time: z [B, V, D]."""

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Any, Any]:
        z = []
        for images in inputs:
            (projected, _), stats = apply(params, stats, images, True)
            z.append(projected)
        return jnp.stack(z, axis=1), stats, None

    return forward


# With a predictor on z (BYOL): params and stats are {"network": ..., "predictor": ...}.


def with_predictor(
    network: nn.Module,
    predictor: nn.Module,
    keys: Iterable[jax.Array],
    images: jax.Array,
    out_dim: int,
) -> Variables:
    """Both, initialised by a key for each; z has `out_dim` channels."""
    network_key, predictor_key = keys
    start = network.init(network_key, images, True)
    head = predictor.init(predictor_key, jnp.zeros((images.shape[0], out_dim)), train=True)
    return Variables(
        {"network": start["params"], "predictor": head["params"]},
        {"network": start.get("batch_stats", {}), "predictor": head.get("batch_stats", {})},
    )


def each_view_predicted(apply: Apply, apply_predictor: Apply) -> Forward:
    """`each_view` with a predictor: {"p", "z"}, each [B, V, D]."""

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[dict[str, jax.Array], Any, Any]:
        network_stats, head_stats, p, z = stats["network"], stats["predictor"], [], []
        for images in inputs:
            (projected, _), network_stats = apply(params["network"], network_stats, images, True)
            (predicted, _), head_stats = apply_predictor(
                params["predictor"], head_stats, projected, True
            )
            p.append(predicted)
            z.append(projected)
        outputs = {"p": jnp.stack(p, axis=1), "z": jnp.stack(z, axis=1)}
        return outputs, {"network": network_stats, "predictor": head_stats}, None

    return forward
