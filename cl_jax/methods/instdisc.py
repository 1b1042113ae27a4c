"""InstDisc (Wu et al. 2018, arXiv 1805.01978): every image is its own class, its stored feature the
class weight.

One view of each image; the rows of a memory bank are the features of earlier visits. The output of
a linear layer is trained, stored and evaluated.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cl_jax.core.clocks import PerVisit
from cl_jax.core.keys import batch_key
from cl_jax.core.method import Aux, Batch, Method, Run, Variables, from_loss
from cl_jax.core.network import Network, applier, features_of
from cl_jax.core.parallel import gather, mean
from cl_jax.core.shapes import check_count
from cl_jax.core.sharded import Sharded, lookup, whole
from cl_jax.heads import mlp
from cl_jax.losses import nce, unit
from cl_jax.memory import bank
from cl_jax.views import View, keywords

LOSSES = ("nce", "softmax", "full_softmax")


class Memory(NamedTuple):
    """rows: [N, D], split over devices, of which an example's is of its last visit. normalizer:
    NCE's Z; None for the softmax."""

    rows: Sharded
    normalizer: nce.Normalizer | None


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    loss: str = "nce",
    temperature: float = 0.07,
    num_negatives: int = 4096,
    momentum: PerVisit = 0.5,
    normalizer_momentum: float | None = None,
    proximal_weight: float = 0.0,
    out_dim: int = 128,
    block_size: int | None = None,
) -> Method:
    """InstDisc.

    loss: "nce" (ImageNet), "softmax" over the image's own row and the drawn ones (the authors'
      updated release), or "full_softmax" over all rows (CIFAR-10).
    num_negatives: drawn with replacement from all examples; not read by "full_softmax".
    momentum: how much of a row stays when its image is seen.
    normalizer_momentum: None keeps the first batch's Z, as the authors do; see `nce.nce_of_logits`.
    proximal_weight: lambda of the paper's equation 9, on the squared distance of a feature to its
      stored row. The released code has no such term (the bank's momentum stands in for it), and the
      paper gives no value: 0.
    block_size: rows of the bank whose logits are held at a time, queries for "full_softmax".

    Raises:
      ValueError: more views than one, an unknown loss, a negative weight, no negatives.
    """
    if len(views) != 1:
        raise ValueError(f"InstDisc sees one view of each image; the config has {len(views)}.")
    if loss != "full_softmax":
        check_count(num_negatives=num_negatives)
    if loss not in LOSSES:
        raise ValueError(f"loss is {loss!r}; expected one of {', '.join(LOSSES)}.")
    if proximal_weight < 0:
        raise ValueError(f"proximal_weight is {proximal_weight}; expected 0 or more.")
    network = Network(
        encoder,
        mlp.make(variant="linear", out_dim=out_dim, dtype=encoder.dtype, axis_name=run.axis_name),
    )
    apply = applier(network)
    settings: dict[str, Any] = {
        "temperature": temperature,
        "block_size": block_size,
        "axis_name": run.axis_name,
    }
    chance = {
        "nce": nce.nce_chance(num_negatives),
        "softmax": math.log(1 + num_negatives),
        "full_softmax": math.log(run.size),
    }[loss]

    def variables(key: jax.Array, batch: Batch) -> Variables:
        network_key, bank_key = jax.random.split(key)
        start = network.init(network_key, views[0].clean(batch), True)
        normalizer = nce.init_normalizer() if loss == "nce" else None
        return Variables(
            start["params"],
            start.get("batch_stats", {}),
            memory=Memory(whole(bank.init(bank_key, run.size, out_dim)), normalizer),
        )

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        (images,) = inputs
        (z, _), stats = apply(params, stats, images, True)
        return unit(z), stats, None

    def objective(
        z: jax.Array, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        ids, normalizer = batch["id"], memory.normalizer
        if loss == "full_softmax":
            value = nce.full_bank_softmax(z, memory.rows, ids, **settings)
        else:
            indices = nce.draw_indices(batch_key(key), ids, run.size, num_negatives)
            if loss == "nce":
                value, normalizer = nce.nce(
                    z, memory.rows, indices, normalizer, momentum=normalizer_momentum, **settings
                )
            else:
                value = nce.bank_softmax(z, memory.rows, indices, **settings)
        stored = lookup(memory.rows, ids, run.axis_name)
        metrics = {
            "similarity_to_bank": jnp.mean(jnp.sum(z * stored, axis=1)),
            "chance": jnp.float32(chance),
        }
        if loss == "nce":
            metrics["log_z"] = normalizer.log_z
        if proximal_weight:
            metrics["proximal"] = mean(
                jnp.mean(jnp.sum(jnp.square(z - stored), axis=1)), run.axis_name
            )
            value = value + proximal_weight * metrics["proximal"]
        moved = bank.update(
            memory.rows,
            gather(z, run.axis_name),
            gather(ids, run.axis_name),
            momentum=momentum,
            axis_name=run.axis_name,
        )
        return value, Aux(metrics, Memory(moved, normalizer))

    return from_loss(
        variables=variables,
        forward=forward,
        loss=objective,
        tx=tx,
        features=features_of(apply),
        axis_name=run.axis_name,
        **keywords(views),
        negatives=run.size - 1 if loss == "full_softmax" else num_negatives,
    )
