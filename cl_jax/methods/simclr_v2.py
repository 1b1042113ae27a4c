"""SimCLR v2, pre-training (Chen et al. 2020, arXiv 2006.10029): a deeper head, and optionally a
memory of momentum keys.

Without memory the loss is SimCLR's. With memory, queries of one view are contrasted with the
momentum network's keys of the other view, those of the rest of the batch, and a queue of earlier
keys; no code of that variant is released, so the symmetric form here (keys of both views enter the
queue) is our choice. `methods/finetune.py` and `methods/distill.py` are the later stages."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from cl_jax import losses
from cl_jax.core.ema import ema_of_params
from cl_jax.core.method import Aux, Batch, Method, Run, Variables, from_loss
from cl_jax.core.network import Network, applier, features_of
from cl_jax.core.parallel import gather
from cl_jax.heads import mlp
from cl_jax.memory import queue as queues
from cl_jax.views import View, keywords


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    temperature: float = 0.1,
    sum_directions: bool = True,
    out_dim: int = 128,
    num_layers: int = 3,
    queue_size: int = 0,
    momentum: float = 0.999,
    block_size: int | None = None,
    micro_batches: int = 1,
) -> Method:
    """SimCLR v2's first stage.

    sum_directions: the released code adds the two directions, twice the mean over 2B anchors.
    queue_size: 0 is without memory; the paper's memory is 65,536 keys of a network averaged with
      `momentum`.
    num_layers: layers of the head; its hidden layers "proj1", ... are what fine-tuning may start
      from.

    Raises:
      ValueError: another number of views than two, a queue longer than both views of the data set.
    """
    if len(views) != 2:
        raise ValueError(f"SimCLR contrasts two views; the config has {len(views)}.")
    if queue_size > 2 * run.size:
        raise ValueError(
            f"queue_size={queue_size} is more than both views of the {run.size} training "
            f"examples: each would "
            f"be its own negative. Use at most {2 * run.size}."
        )
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
    scale = 2.0 if sum_directions else 1.0
    negatives = queue_size + run.batch_size - 1 if queue_size else 2 * run.batch_size - 2

    def variables(key: jax.Array, batch: Batch) -> Variables:
        start = network.init(key, views[0].clean(batch), True)
        params, stats = start["params"], start.get("batch_stats", {})
        if not queue_size:
            return Variables(params, stats)
        return Variables(
            params,
            stats,
            (params, stats),
            queues.init(jax.random.fold_in(key, 1), queue_size, out_dim),
        )

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        both = jnp.concatenate(inputs)
        (z, _), stats = apply(params, stats, both, True)
        outputs = {"z": jnp.stack(jnp.split(z, 2), axis=1)}
        if not queue_size:
            return outputs, stats, None
        (keys, _), target_stats = lax.stop_gradient(apply(target.params, target.stats, both, True))
        return outputs | {"k": jnp.stack(jnp.split(keys, 2), axis=1)}, stats, target_stats

    def loss(
        outputs: Any, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        z, aux = outputs["z"], Aux({"chance": jnp.float32(scale * math.log(negatives + 1))})
        if not queue_size:
            return scale * losses.nt_xent(
                z[:, 0],
                z[:, 1],
                temperature=temperature,
                axis_name=run.axis_name,
                block_size=block_size,
            ), aux
        k = losses.unit(outputs["k"])
        a, b = (
            losses.info_nce(
                z[:, i],
                k[:, 1 - i],
                memory.rows,
                temperature=temperature,
                in_batch=True,
                axis_name=run.axis_name,
                block_size=block_size,
            )
            for i in (0, 1)
        )
        rows = gather(k, run.axis_name)
        return scale * (a + b) / 2, aux._replace(
            memory=queues.enqueue(memory, rows.reshape(-1, rows.shape[-1]))
        )

    return from_loss(
        variables=variables,
        forward=forward,
        loss=loss,
        tx=tx,
        features=features_of(apply),
        axis_name=run.axis_name,
        **keywords(views),
        ema=ema_of_params(momentum) if queue_size else None,
        micro_batches=micro_batches,
        negatives=negatives,
    )
