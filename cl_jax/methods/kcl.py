"""KCL (Kang et al. 2021, "Exploring balanced feature spaces for representation learning"): MoCo
with labels, where a query is pulled to its own key and to the same number of keys of its class,
whether that class is frequent or rare.

The queue holds labels beside keys. With all keys of the class as positives it is SupCon with a
queue, with none it is MoCo: the three arms of the paper's comparison, in one program."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cl_jax import losses
from cl_jax.core.ema import ema_of_params
from cl_jax.core.keys import batch_key
from cl_jax.core.method import Aux, Batch, Method, Run, Variables, from_loss
from cl_jax.core.network import Network, applier, features_of
from cl_jax.core.parallel import gather, mean
from cl_jax.heads import mlp
from cl_jax.memory import queue as queues
from cl_jax.methods.moco_v2 import check_queue, contrast_top1, query_and_key, start
from cl_jax.views import View, keywords


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    num_positives: int | None = 6,
    unselected: Literal["negative", "zero"] = "negative",
    summation: Literal["outside", "inside"] = "outside",
    temperature: float = 0.07,
    momentum: float = 0.999,
    queue_size: int = 65536,
    head: str = "linear",
    out_dim: int = 128,
    shuffle: bool = True,
    label: str = "label",
    block_size: int | None = None,
) -> Method:
    """KCL; view 1 is the query, view 2 the key.

    num_positives: keys of the queue with the query's label that it is pulled to besides its own,
      drawn in each step, fewer where the queue has fewer; None for all of them (SupCon with a
      queue), 0 for none (MoCo: labels are read and do nothing).
    unselected: what the other keys of the class are; summation: over positives, outside or inside
      the logarithm. See `losses.kcl`.
    label: a label field; an image without a label (-1) has its own key as its only positive.
    The others as in `moco_v2.parts`.

    Slots of the queue that no key has reached are random directions without a label. The metric
    "positives" is the mean number of positives of a query, its own key among them.

    Raises:
      ValueError: another number of views than two, data without that label, a queue longer than the
        data set.
    """
    if len(views) != 2:
        raise ValueError(
            f"KCL contrasts a query and a key view; the config has {len(views)} views."
        )
    if label not in run.sizes:
        known = ", ".join(sorted(run.sizes)) or "none"
        raise ValueError(
            f"KCL reads the label {label!r}, which the data lack; their labels: {known}."
        )
    check_queue(queue_size, run)
    network = Network(
        encoder,
        mlp.make(variant=head, out_dim=out_dim, dtype=encoder.dtype, axis_name=run.axis_name),
    )
    apply = applier(network)

    def variables(key: jax.Array, batch: Batch) -> Variables:
        found = start(network, key, views[0].clean(batch), queue_size, out_dim)
        rows = {"key": found.memory.rows, "label": jnp.full((queue_size,), -1, jnp.int32)}
        return found._replace(memory=found.memory._replace(rows=rows))

    forward = query_and_key(apply, shuffle, run.axis_name)

    def selection(memory: Any, batch: Batch, key: jax.Array) -> jax.Array:
        candidates = losses.positives.same_class(batch[label], memory.rows["label"])
        if num_positives is None:
            return candidates
        if num_positives == 0:
            return jnp.zeros_like(candidates)
        draws = losses.positives.positive_draws(key, batch["id"], num_positives=num_positives)
        return losses.positives.draw_positives(draws, candidates)

    def chance(selected: jax.Array) -> jax.Array:
        """The loss where all similarities are equal."""
        found = jnp.float32(math.log(1 + queue_size))
        if summation == "outside":
            return found
        return found - mean(jnp.mean(jnp.log1p(jnp.sum(selected, axis=1))), run.axis_name)

    def loss(
        outputs: Any, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        q, k, stored = outputs["q"], outputs["k"], memory.rows
        selected = selection(memory, batch, batch_key(key, 1))
        value = losses.kcl(
            q,
            k,
            stored["key"],
            batch[label],
            stored["label"],
            temperature=temperature,
            selected=selected,
            unselected=unselected,
            summation=summation,
            axis_name=run.axis_name,
            block_size=block_size,
        )
        metrics = {
            "contrast_top1": contrast_top1(q, k, stored["key"]),
            "positives": mean(1 + jnp.mean(jnp.sum(selected, axis=1)), run.axis_name),
            "chance": chance(selected),
            "queue_filled": memory.filled / queue_size,
        }
        entering = {"key": gather(k, run.axis_name), "label": gather(batch[label], run.axis_name)}
        return value, Aux(metrics, queues.enqueue(memory, entering))

    return from_loss(
        variables=variables,
        forward=forward,
        loss=loss,
        tx=tx,
        features=features_of(apply),
        axis_name=run.axis_name,
        **keywords(views, label),
        ema=ema_of_params(momentum),
        negatives=queue_size,
    )
