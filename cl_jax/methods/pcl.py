"""PCL (Li et al. 2021, arXiv 2005.04966): MoCo, and each query is pulled to the prototypes of its
image's clusters.

E-step, before each epoch after the warm-up: k-means of the momentum network's clean features of the
whole training split, at several numbers of clusters, and each cluster's concentration, its
temperature. M-step: MoCo's loss plus ProtoNCE. The clusterings lie in the State's memory, with
random prototypes and `active` 0 during the warm-up, so that one compiled step serves the whole run.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cl_jax.cluster.kmeans import KMeans, concentration, kmeans
from cl_jax.core.ema import ema_of_params
from cl_jax.core.keys import batch_key
from cl_jax.core.method import Aux, Batch, Method, Run, State, Variables, from_loss
from cl_jax.core.network import Network, applier, features_of
from cl_jax.core.numerics import unit
from cl_jax.core.parallel import (
    AXIS,
    EACH,
    SAME,
    fetch,
    gather,
    lift,
    mesh_of,
    replicate,
)
from cl_jax.core.sharded import Sharded, lookup, whole
from cl_jax.heads import mlp
from cl_jax.losses import clusters, nce
from cl_jax.memory import prototypes
from cl_jax.memory import queue as queues
from cl_jax.methods.moco_v2 import check_queue, contrast_top1, query_and_key, start
from cl_jax.views import View, keywords


class Found(NamedTuple):
    """One clustering of the training split: prototypes [C, D] and assignment [N] int32, both split
    over devices, and concentration [C]."""

    prototypes: Sharded
    concentration: jax.Array
    assignment: Sharded


class Memory(NamedTuple):
    """queue: MoCo's. clusterings: one `Found` per number of clusters. active: 1.0 once there has
    been an E-step."""

    queue: queues.Queue
    clusterings: tuple[Found, ...]
    active: jax.Array


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    num_prototypes: Sequence[int] = (25000, 50000, 100000),
    num_negative_prototypes: int = 16384,
    warmup_epochs: int = 20,
    temperature: float = 0.2,
    momentum: float = 0.999,
    queue_size: int = 16384,
    head: str = "moco_v2",
    out_dim: int = 128,
    shuffle: bool = True,
    mask_duplicates: bool = False,
    iterations: int = 20,
    restarts: int = 5,
    max_points_per_centroid: int = 1000,
    block_size: int | None = None,
) -> Method:
    """PCL.

    num_prototypes: clusters of each clustering.
    num_negative_prototypes: drawn per step from the clusters that no image of the global batch is
      in, so at most their number less the batch; the authors have one number for these and the
      queue. 0: the batch's prototypes only.
    warmup_epochs: epochs of MoCo alone.
    mask_duplicates: see `clusters.proto_nce`; wanted where clusters are fewer than the batch.
    iterations, restarts, max_points_per_centroid: of k-means. Its seed is the clustering's number,
    in every E-step.
    temperature: of the instance term, and the mean of the concentrations. The others as in
      `moco_v2.make`.

    The momentum network moves at the end of a step (see `moco_v2.make`), so the E-step sees it one
    movement ahead of the authors', who move it when the next batch comes.

    Raises:
      ValueError: another number of views than two, a queue longer than the data set, numbers of
        prototypes that do not fit the data set or the batch.
    """
    if len(views) != 2:
        raise ValueError(
            f"PCL contrasts a query and a key view; the config has {len(views)} views."
        )
    check_queue(queue_size, run)
    num_prototypes = tuple(num_prototypes)
    _check_clusters(num_prototypes, num_negative_prototypes, run)
    network = Network(
        encoder,
        mlp.make(variant=head, out_dim=out_dim, dtype=encoder.dtype, axis_name=run.axis_name),
    )
    apply = applier(network)

    def variables(key: jax.Array, batch: Batch) -> Variables:
        found = start(network, key, views[0].clean(batch), queue_size, out_dim)
        empty = tuple(
            Found(
                whole(prototypes.init(jax.random.fold_in(key, m), count, out_dim)),
                jnp.full((count,), temperature, jnp.float32),
                whole(jnp.zeros((run.size,), jnp.int32)),
            )
            for m, count in enumerate(num_prototypes)
        )
        return found._replace(memory=Memory(found.memory, empty, jnp.zeros(())))

    @functools.cache
    def clusterer(mesh: Any, count: int) -> Any:
        """k-means of so many clusters, over the devices of a mesh."""
        cluster = functools.partial(
            kmeans,
            num_clusters=count,
            iterations=iterations,
            restarts=restarts,
            max_points_per_centroid=max_points_per_centroid,
            axis_name=AXIS,
        )
        placed: Any = KMeans(*(cast(Any, spec) for spec in (SAME, EACH, EACH, SAME, SAME)))
        return lift(cluster, mesh, (SAME, SAME), placed)

    forward = query_and_key(apply, shuffle, run.axis_name)

    def loss(
        outputs: Any, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        q, k = outputs["q"], outputs["k"]
        instance = nce.queue_softmax(
            q,
            k,
            memory.queue.rows,
            temperature=temperature,
            block_size=block_size,
            axis_name=run.axis_name,
        )
        proto = []
        for m, found in enumerate(memory.clusterings):
            own = lookup(found.assignment, batch["id"], run.axis_name)
            negatives = jnp.zeros((0,), jnp.int32)
            if num_negative_prototypes:
                negatives = clusters.draw_prototypes(
                    batch_key(key, 1 + m),
                    gather(own, run.axis_name),
                    num_prototypes[m],
                    num_negative_prototypes,
                )
            proto.append(
                clusters.proto_nce(
                    q,
                    of_step(found, own, negatives, run.axis_name),
                    mask_duplicates=mask_duplicates,
                    block_size=block_size,
                    axis_name=run.axis_name,
                )
            )
        proto = memory.active * jnp.mean(jnp.stack(proto))
        metrics = {
            "loss_instance": instance,
            "loss_proto": proto,
            "contrast_top1": contrast_top1(q, k, memory.queue.rows),
            "queue_filled": memory.queue.filled / queue_size,
        }
        entered = queues.enqueue(memory.queue, gather(k, run.axis_name))
        return instance + proto, Aux(metrics, memory._replace(queue=entered))

    def momentum_features(state: State, batch: Batch) -> jax.Array:
        (z, _), _ = apply(state.target.params, state.target.stats, views[0].clean(batch), False)
        return unit(z)

    def refresh(state: State, encode_all: Callable[..., Any], epoch: int) -> State:
        if epoch < warmup_epochs:
            return state
        mesh = mesh_of(state)
        rows = replicate(whole(encode_all(momentum_features)), mesh)
        found = []
        for m, count in enumerate(num_prototypes):
            means = fetch(clusterer(mesh, count)(replicate(jax.random.key(m), mesh), rows))
            distance, assignment = means.distance.rows, means.assignment.rows
            phi = concentration(
                jnp.asarray(distance), jnp.asarray(assignment), count, temperature=temperature
            )
            directions = prototypes.normalise(jnp.asarray(means.centroids))
            found.append(Found(whole(directions), phi, whole(assignment)))
        memory = state.memory._replace(clusterings=tuple(found), active=jnp.ones(()))
        return dataclasses.replace(state, memory=memory)

    return from_loss(
        variables=variables,
        forward=forward,
        loss=loss,
        tx=tx,
        features=features_of(apply),
        axis_name=run.axis_name,
        **keywords(views),
        ema=ema_of_params(momentum),
        refresh=refresh,
        negatives=queue_size,
    )


def of_step(
    found: Found, own: jax.Array, negatives: jax.Array, axis_name: str | None
) -> clusters.Clustering:
    """A clustering with the prototypes that a step compares alone: those of the global batch's
    clusters `own`, [B] of this device, then those drawn as negatives."""
    everyone = gather(own, axis_name)
    used = jnp.concatenate([everyone, negatives])
    rows = lookup(found.prototypes, used, axis_name, same=True)
    # Of images in one cluster all have the place of the first.
    places = jnp.argmax(everyone[None] == own[:, None], axis=1).astype(jnp.int32)
    drawn = everyone.shape[0] + jnp.arange(negatives.shape[0], dtype=jnp.int32)
    return clusters.Clustering(rows, found.concentration[used], places, drawn)


def _check_clusters(num_prototypes: tuple[int, ...], num_negatives: int, run: Run) -> None:
    if not num_prototypes or min(num_prototypes) < 1 or num_negatives < 0:
        raise ValueError(
            f"num_prototypes={num_prototypes}, num_negative_prototypes={num_negatives}; expected "
            f"at least "
            "one clustering, of 1 cluster or more, and 0 negatives or more."
        )
    if max(num_prototypes) > run.size:
        raise ValueError(
            f"num_prototypes={num_prototypes} asks for more clusters than the data set has "
            f"examples, "
            f"{run.size}. Use fewer."
        )
    if num_negatives > max(min(num_prototypes) - run.batch_size, 0):
        raise ValueError(
            f"num_negative_prototypes={num_negatives} are drawn from clusters that the batch is "
            f"not in, "
            f"and {min(num_prototypes)} clusters less a batch of {run.batch_size} leave "
            f"{max(min(num_prototypes) - run.batch_size, 0)}. Use more clusters, a smaller batch, "
            f"or 0 with "
            "mask_duplicates=True."
        )
