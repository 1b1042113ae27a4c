"""The network that most methods train: an encoder with a projection head, and how a method calls
it."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cl_jax.core.method import Batch, Forward, Variables

Apply = Callable[[Any, Any, Any, bool], tuple[Any, Any]]


class Network(nn.Module):
    """Encoder and projection head. Returns (z, features): "h", the head's hidden layers "proj1",
    ..., and "z"."""

    encoder: nn.Module
    head: nn.Module

    def __call__(self, images: jax.Array, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        if getattr(self.encoder, "drop_path", 0):
            raise ValueError(
                f"drop_path={self.encoder.drop_path}: this method does not draw it; set "
                f"encoder.drop_path=0."
            )
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


def features_of(apply: Apply) -> Apply:
    """`Method.features` of a network that returns (z, features)."""

    def features(
        params: Any, stats: Any, images: jax.Array, train: bool
    ) -> tuple[dict[str, jax.Array], Any]:
        (_, named), stats = apply(params, stats, images, train)
        return named, stats

    return features


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
