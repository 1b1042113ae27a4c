"""The network that most methods train: an encoder with a projection head, and how a method calls
it."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

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
