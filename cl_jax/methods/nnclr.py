"""NNCLR (Dwibedi et al. 2021, arXiv 2104.14548): the positive of a view's prediction is the nearest
neighbour of the other view among earlier embeddings, which is another image.

Both views look up their neighbours in the queue as it was; then the embeddings of view 1 enter it.
The queue is of the global batch, the same on every device. Views pass one after the other."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cl_jax import losses
from cl_jax.core.method import Aux, Batch, Method, Run, Variables, from_loss
from cl_jax.core.network import Network, applier, each_view_predicted, features_of, with_predictor
from cl_jax.core.parallel import gather, mean
from cl_jax.heads import mlp, predictor
from cl_jax.memory import queue as queues
from cl_jax.views import View, keywords


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    temperature: float = 0.1,
    form: Literal["rows", "both", "nt_xent"] = "rows",
    queue_size: int = 98304,
    hidden_dim: int = 2048,
    out_dim: int = 256,
    num_layers: int = 3,
    predictor_dim: int = 4096,
    block_size: int | None = None,
) -> Method:
    """NNCLR, of two views.

    temperature, form: see `losses.nnclr`. queue_size: earlier embeddings that neighbours are sought
    among, its random start included.
    hidden_dim, out_dim, num_layers: of the projector; predictor_dim: hidden width of the predictor.

    The metric "neighbour_cosine" is how near the neighbours are.

    Raises:
      ValueError: another number of views than two, a queue longer than the data set.
    """
    if len(views) != 2:
        raise ValueError(f"NNCLR compares two views; the config has {len(views)}.")
    if queue_size > run.size:
        raise ValueError(
            f"queue_size={queue_size} is more than the {run.size} training examples: an image "
            f"would find older embeddings of itself. Use at most {run.size}."
        )
    shared = {"dtype": encoder.dtype, "axis_name": run.axis_name}
    network = Network(
        encoder,
        mlp.make(
            variant="nnclr", hidden_dim=hidden_dim, out_dim=out_dim, num_layers=num_layers, **shared
        ),
    )
    predict = predictor.make(variant="nnclr", out_dim=out_dim, hidden_dim=predictor_dim, **shared)
    apply, apply_predictor = applier(network), applier(predict)
    candidates = 2 * run.batch_size - 1 if form == "nt_xent" else run.batch_size

    def variables(key: jax.Array, batch: Batch) -> Variables:
        *keys, queue_key = jax.random.split(key, 3)
        start = with_predictor(network, predict, keys, views[0].clean(batch), out_dim)
        return start._replace(memory=queues.init(queue_key, queue_size, out_dim))

    def loss(
        outputs: Any, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        p, z = outputs["p"], losses.unit(outputs["z"])
        near = [losses.neighbours.nearest_neighbours(z[:, v], memory.rows).rows for v in range(2)]
        value = losses.nnclr(
            p[:, 0],
            p[:, 1],
            *near,
            temperature=temperature,
            form=form,
            axis_name=run.axis_name,
            block_size=block_size,
        )
        cosine = mean(jnp.mean(jnp.sum(z * jnp.stack(near, axis=1), axis=-1)), run.axis_name)
        metrics = {
            "neighbour_cosine": cosine,
            "chance": jnp.float32(math.log(candidates)),
            "queue_filled": memory.filled / queue_size,
        }
        return value, Aux(metrics, queues.enqueue(memory, gather(z[:, 0], run.axis_name)))

    return from_loss(
        variables=variables,
        forward=each_view_predicted(apply, apply_predictor),
        loss=loss,
        tx=tx,
        features=features_of(apply, "network"),
        axis_name=run.axis_name,
        **keywords(views),
        negatives=candidates - 1,
    )
