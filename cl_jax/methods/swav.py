"""SwAV (Caron et al. 2020, arXiv 2006.09882): views predict each other's balanced assignment to
trained prototypes.

Crops of one size pass the encoder together, all crops the head. Prototypes are unit rows before
every forward pass; the config's optimiser freezes them at first. Codes come from the first views;
the queue is of the global batch, the same on every device (the authors keep a share of it on each),
so that any number of devices makes the same run."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from cl_jax import losses
from cl_jax.core.method import Aux, Batch, Method, Run, Variables, from_loss
from cl_jax.core.network import applier, check_no_drop_path
from cl_jax.heads import mlp, prototypes
from cl_jax.losses import unit
from cl_jax.memory import crop_queue
from cl_jax.views import View, keywords, multicrop


class Network(nn.Module):
    """Encoder and projection head; `crops` of several sizes come as a list and leave concatenated,
    crop by crop. One array is one crop."""

    encoder: nn.Module
    head: nn.Module

    def __call__(
        self, crops: jax.Array | Sequence[jax.Array], train: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        check_no_drop_path(self.encoder)
        each = [crops] if isinstance(crops, jax.Array) else crops
        h = jnp.concatenate([self.encoder(images, train=train)["h"] for images in each])
        z, hiddens = self.head(h, train=train)
        return z, {"h": h} | {f"proj{j}": x for j, x in enumerate(hiddens) if j} | {"z": z}


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    temperature: float = 0.1,
    epsilon: float = 0.05,
    iterations: int = 3,
    num_prototypes: int = 3000,
    num_assigned: int = 2,
    hidden_dim: int = 2048,
    out_dim: int = 128,
    queue_size: int = 0,
    queue_start_epochs: float = 15.0,
) -> Method:
    """SwAV.

    num_assigned: the first so many views get codes. epsilon, iterations: Sinkhorn's.
    queue_size: earlier features that codes are balanced with, rows of the global batch; 0 is none.
      They start to be kept after `queue_start_epochs` and are used once the queue is full.

    Raises:
      ValueError: fewer than two views, num_assigned out of range, a queue longer than the data set
        or not a multiple of the batch.
    """
    if len(views) < 2 or not 1 <= num_assigned <= len(views):
        raise ValueError(
            f"SwAV needs two views or more and codes of 1 to all of them; got {len(views)} views "
            f"and "
            f"num_assigned={num_assigned}."
        )
    if queue_size > run.size:
        raise ValueError(
            f"queue_size={queue_size} is more than the {run.size} examples of the data set."
        )
    if queue_size % run.batch_size:
        raise ValueError(
            f"queue_size={queue_size} is not a multiple of the batch of {run.batch_size}; use "
            f"{max(queue_size // run.batch_size, 1) * run.batch_size}."
        )
    network = Network(
        encoder,
        mlp.make(
            variant="swav",
            out_dim=out_dim,
            hidden_dim=hidden_dim,
            dtype=encoder.dtype,
            axis_name=run.axis_name,
        ),
    )
    scorer = prototypes.make(num_prototypes=num_prototypes)
    apply = applier(network)
    queue_start = round(queue_start_epochs * run.steps_per_epoch)

    def variables(key: jax.Array, batch: Batch) -> Variables:
        network_key, prototype_key = jax.random.split(key)
        start = network.init(network_key, views[0].clean(batch), True)
        rows = scorer.init(prototype_key, jnp.zeros((1, out_dim)))["params"]
        memory = {"step": jnp.zeros((), jnp.int32)}
        if queue_size:
            memory["queue"] = crop_queue.init(num_assigned, queue_size, out_dim)
        return Variables(
            {"network": start["params"], "scorer": rows},
            start.get("batch_stats", {}),
            memory=memory,
        )

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        crops = inputs
        sizes = [jnp.concatenate([crops[i] for i in group]) for group in multicrop.by_size(crops)]
        (z, _), stats = apply(params["network"], stats, sizes, True)
        return jnp.stack(jnp.split(unit(z), len(crops)), axis=1), stats, None

    def loss(
        z: jax.Array, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        z = z.swapaxes(0, 1)
        scores = jnp.asarray(
            jax.vmap(lambda rows: scorer.apply({"params": params["scorer"]}, rows))(z)
        )
        assigned = lax.stop_gradient(z[:num_assigned])
        earlier: dict[str, Any] = {}
        remembered = {"step": memory["step"] + 1}
        if queue_size:
            queue = memory["queue"]
            earlier = {
                "queue": queue,
                "prototypes": lax.stop_gradient(params["scorer"][prototypes.NAME]),
                "filled": crop_queue.filled(queue),
            }
            pushed = crop_queue.push(queue, assigned, axis_name=run.axis_name)
            remembered["queue"] = jnp.where(memory["step"] >= queue_start, pushed, queue)
        codes = losses.swav_codes(
            scores[:num_assigned],
            **earlier,
            epsilon=epsilon,
            iterations=iterations,
            axis_name=run.axis_name,
        )
        value = losses.swav(scores, codes, temperature=temperature, axis_name=run.axis_name)
        used = jnp.mean(jnp.max(codes, axis=2))
        return value, Aux(
            {"code_confidence": used, "chance": jnp.float32(math.log(num_prototypes))}, remembered
        )

    def features(
        params: Any, stats: Any, images: jax.Array, train: bool
    ) -> tuple[dict[str, jax.Array], Any]:
        (_, named), stats = apply(params["network"], stats, images, train)
        return named, stats

    return from_loss(
        variables=variables,
        forward=forward,
        loss=loss,
        tx=tx,
        features=features,
        axis_name=run.axis_name,
        **keywords(views),
        project=prototypes.project,
    )
