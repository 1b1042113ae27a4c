"""An encoder alone: features of clean images, nothing that is trained. `cl-jax import` makes runs
of it."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import optax

from cl_jax.core.method import Batch, Method, Run, State, Variables, start
from cl_jax.views import View, fields


def make(
    *, encoder: nn.Module, tx: optax.GradientTransformation, views: Sequence[View], run: Run
) -> Method:
    """An encoder whose "h" is read.

    views: the first one's clean images are what it sees.

    Raises:
      ValueError: no view; when a step of it is asked for.
    """
    if not views:
        raise ValueError("views are empty; expected one, whose clean images the encoder reads.")
    see = views[0]

    def init(key: jax.Array, batch: Batch) -> State:
        found = encoder.init(key, see.clean(batch), train=False)
        return start(
            Variables({"encoder": found["params"]}, {"encoder": found.get("batch_stats", {})}), tx
        )

    def features(params: Any, stats: Any, images: Any, train: bool) -> tuple[dict[str, Any], Any]:
        variables = {"params": params["encoder"], "batch_stats": stats["encoder"]}
        found: Any
        changed: Any
        if not train:
            found = encoder.apply(variables, images, train=False)
            return {"h": found["h"]}, stats
        found, changed = encoder.apply(variables, images, train=True, mutable=["batch_stats"])
        return {"h": found["h"]}, {"encoder": changed.get("batch_stats", stats["encoder"])}

    def encode(state: State, batch: Batch) -> dict[str, jax.Array]:
        return features(state.params, state.stats, see.clean(batch), False)[0]

    def update(state: State, batch: Batch, key: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        raise ValueError(
            "an imported encoder is not trained by itself: start a method from its file with "
            "--config.init_from, or fine-tune it as a stage."
        )

    return Method(
        init=init,
        update=update,
        functions={"encode": encode},
        features=features,
        clean=see.clean,
        **fields(views),
    )
