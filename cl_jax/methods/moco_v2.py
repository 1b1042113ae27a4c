"""MoCo v1 and v2 (He et al., arXiv 1911.05722; Chen et al., arXiv 2003.04297): a query, its
momentum key, a queue.

Batch norm must not see query and key of an image among the same examples, or it gives the pair
away: the encoder's `splits` cuts the global batch into groups with moments of their own (the
  authors' GPUs), and keys pass the momentum network in another order. Both are of the global batch,
  so that any number of devices makes the same run."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from cl_jax.core.ema import ema_of_params
from cl_jax.core.keys import batch_key
from cl_jax.core.method import Batch, Run, Variables
from cl_jax.core.network import Network, applier, features_of
from cl_jax.core.numerics import unit
from cl_jax.core.parallel import gather
from cl_jax.core.parts import Pairs, Parts, method_of
from cl_jax.encoders.shuffle import shuffle_batch, unshuffle_batch
from cl_jax.heads import mlp
from cl_jax.losses import nce
from cl_jax.memory import queue as queues
from cl_jax.views import View, draw, fields


def parts(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    temperature: float = 0.2,
    momentum: float = 0.999,
    queue_size: int = 65536,
    head: str = "moco_v2",
    out_dim: int = 128,
    symmetric: bool = False,
    shuffle: bool = True,
    block_size: int | None = None,
) -> Parts:
    """MoCo; view 1 is the query, view 2 the key.

    One step, as the authors': queries; keys of the momentum network; logits against the queue as it
    was; then the global batch's keys enter it, oldest slots first. The momentum network moves at
    the end of a step and not at the start of the next: the same numbers, since at the first of all
    steps both networks are equal. Its batch statistics are its own.

    head: "moco_v2", or "linear" for v1 and the CIFAR-10 demo.
    queue_size: any, also one that the batch does not divide.
    symmetric: each view is query and key once, in passes of their own; the two losses are added,
      and the keys of view 1, then of view 2 enter the queue (the CIFAR-10 demo's option).
    shuffle: False leaves the keys in order. block_size: see `nce.queue_softmax`.

    Raises:
      ValueError: another number of views than two, a queue longer than the data set.
    """
    if len(views) != 2:
        raise ValueError(
            f"MoCo contrasts a query and a key view; the config has {len(views)} views."
        )
    check_queue(queue_size, run)
    network = Network(
        encoder,
        mlp.make(variant=head, out_dim=out_dim, dtype=encoder.dtype, axis_name=run.axis_name),
    )
    apply = applier(network)
    ways = ((0, 1), (1, 0)) if symmetric else ((0, 1),)

    def variables(key: jax.Array, batch: Batch) -> Variables:
        return start(network, key, views[0].clean(batch), queue_size, out_dim)

    def embed(
        params: Any, stats: Any, target: Any, inputs: Any, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        images, target_stats, q, k = inputs, target.stats, [], []
        for number, (query, positive) in enumerate(ways):
            (z, _), stats = apply(params, stats, images[query], True)
            keys, target_stats = momentum_keys(
                apply,
                target.params,
                target_stats,
                images[positive],
                batch_key(key, number) if shuffle else None,
                run.axis_name,
            )
            q.append(unit(z))
            k.append(keys)
        for further in images[2:]:
            (z, _), stats = apply(params, stats, further, True)
            q.append(unit(z))
            k.append(k[0])
        return {"q": jnp.stack(q, axis=1), "k": jnp.stack(k, axis=1)}, stats, target_stats

    def pairs(outputs: Any, memory: Any) -> tuple[Pairs, ...]:
        q, k = outputs["q"], outputs["k"]
        return tuple(Pairs(q[:, i], k[:, i], memory.rows) for i in range(q.shape[1]))

    def contrast(
        found: tuple[Pairs, ...], params: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        terms = [
            nce.queue_softmax(
                *pair[:3], temperature=temperature, block_size=block_size, axis_name=run.axis_name
            )
            for pair in found
        ]
        top1 = jnp.mean(jnp.stack([contrast_top1(*pair[:3]) for pair in found]))
        metrics = {
            "contrast_top1": top1,
            "chance": jnp.float32(len(found) * math.log(1 + queue_size)),
        }
        return sum(terms[1:], terms[0]), metrics

    def remember(outputs: Any, memory: Any, batch: Batch) -> Any:
        # The last pass had view 1 as its key.
        entering = [gather(outputs["k"][:, i], run.axis_name) for i in reversed(range(len(ways)))]
        return queues.enqueue(memory, jnp.concatenate(entering))

    return Parts(
        variables=variables,
        views=lambda batch, key: draw(views, batch, key),
        embed=embed,
        pairs=pairs,
        remember=remember,
        contrast=contrast,
        temperature=temperature,
        rest=dict(
            tx=tx,
            features=features_of(apply),
            clean=views[0].clean,
            axis_name=run.axis_name,
            ema=ema_of_params(momentum),
            negatives=queue_size,
            **fields(views),
        ),
        watch=lambda memory: {"queue_filled": memory.filled / queue_size},
    )


make = method_of(parts)


def start(
    network: nn.Module, key: jax.Array, images: jax.Array, queue_size: int, out_dim: int
) -> Variables:
    """A network, its equal momentum copy, and a queue of random directions."""
    network_key, queue_key = jax.random.split(key)
    found = network.init(network_key, images, True)
    params, stats = found["params"], found.get("batch_stats", {})
    return Variables(params, stats, (params, stats), queues.init(queue_key, queue_size, out_dim))


def momentum_keys(
    apply: Any,
    params: Any,
    stats: Any,
    images: jax.Array,
    shuffle_key: jax.Array | None,
    axis_name: str | None,
) -> tuple[jax.Array, Any]:
    """([B, D] unit keys without gradient, batch statistics), after a pass in shuffled order of the
    global batch."""
    if shuffle_key is None:
        (k, _), stats = lax.stop_gradient(apply(params, stats, images, True))
        return unit(k), stats
    images, permutation = shuffle_batch(shuffle_key, images, axis_name)
    (k, _), stats = lax.stop_gradient(apply(params, stats, images, True))
    return unshuffle_batch(unit(k), permutation, axis_name), stats


def query_and_key(apply: Any, shuffle: bool, axis_name: str | None) -> Any:
    """A `Forward` of two views: {"q": unit queries, "k": unit keys of the momentum copy}."""

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        query, positive = inputs
        (z, _), stats = apply(params, stats, query, True)
        k, target_stats = momentum_keys(
            apply,
            target.params,
            target.stats,
            positive,
            batch_key(key, 0) if shuffle else None,
            axis_name,
        )
        return {"q": unit(z), "k": k}, stats, target_stats

    return forward


def contrast_top1(q: jax.Array, k: jax.Array, queue: jax.Array) -> jax.Array:
    """Share of queries nearer to their key than to every row of the queue."""
    logits = nce.queue_logits(lax.stop_gradient(q), k, queue, temperature=1.0)
    return jnp.mean(logits[:, 0] > jnp.max(logits[:, 1:], axis=1))


def check_queue(queue_size: int, run: Run) -> None:
    """Checks that a queue is no longer than the data set.

    Raises:
      ValueError: it is.
    """
    if queue_size > run.size:
        raise ValueError(
            f"queue_size={queue_size} is more than the {run.size} examples of the data set: every "
            f"image "
            f"would have older keys of itself as negatives. Use at most {run.size}."
        )
