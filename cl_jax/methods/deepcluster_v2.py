"""DeepCluster v2 (Caron et al. 2020, arXiv 2006.09882, appendix): SwAV's network and crops,
clusters found once an epoch.

E-step, before each epoch: spherical k-means, for each of several prototype sets, of the embeddings
that the images had when they were last seen; no pass over the data but the very first. M-step:
every crop is classified into its image's cluster, by its dot products with the centroids. The
centroids are the prototypes and stay as they are until the next E-step."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from cl_jax import losses
from cl_jax.cluster.spherical import spherical_kmeans
from cl_jax.core.keys import batch_key
from cl_jax.core.method import Aux, Batch, Method, Run, State, Variables, from_loss
from cl_jax.core.network import applier, features_of
from cl_jax.core.numerics import dots
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
from cl_jax.core.sharded import Sharded, lookup, whole, write
from cl_jax.heads import mlp
from cl_jax.losses import unit
from cl_jax.memory import bank, prototypes
from cl_jax.methods.swav import Network
from cl_jax.views import View, draw, keywords, multicrop


class Memory(NamedTuple):
    """embeddings: [N, C, D] unit, of the first C crops of each example when it was last seen.
    prototypes: [K_h, D] unit, one array for each set. assignments: [N, H] int32. seed: uint32 [2],
    the key that E-steps draw from. What has N rows is split over devices."""

    embeddings: Sharded
    prototypes: tuple[jax.Array, ...]
    assignments: Sharded
    seed: jax.Array


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    num_prototypes: Sequence[int] = (3000, 3000, 3000),
    num_assigned: int = 2,
    temperature: float = 0.1,
    iterations: int = 10,
    hidden_dim: int = 2048,
    out_dim: int = 128,
    block_size: int | None = None,
) -> Method:
    """DeepCluster v2.

    num_prototypes: clusters of each set.
    num_assigned: embeddings of the first so many crops are remembered; sets cluster those of crop
      1, 2, 1, ... in turn.
    iterations: of k-means, from other rows in every epoch. block_size: see `spherical_kmeans`.

    Where the authors differ: each of their processes remembers the examples of its own epoch, so
    that a set's clusters are of those that were seen, and others have no cluster; here every
    example has one, by the last time it was seen. The batch statistics of their first pass are
    kept, here they are not. Their option to train the prototypes, after 300,000 steps, is longer
    than any of their runs and left out.

    Raises:
      ValueError: fewer than two views, a number of remembered ones or of prototypes out of range.
    """
    num_prototypes = tuple(num_prototypes)
    if len(views) < 2 or not 1 <= num_assigned <= len(views):
        raise ValueError(
            f"DeepCluster v2 needs two views or more and remembers 1 to all of them; got "
            f"{len(views)} views "
            f"and num_assigned={num_assigned}."
        )
    if not num_prototypes or not 2 <= min(num_prototypes) <= max(num_prototypes) <= run.size:
        raise ValueError(
            f"num_prototypes={num_prototypes}; expected one set or more, each of 2 clusters or "
            f"more and at "
            f"most the {run.size} examples of the data set."
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
    apply = applier(network)
    chance = sum(map(math.log, num_prototypes)) / len(num_prototypes)

    @functools.cache
    def clusterer(mesh: Any, crop: int) -> Any:
        """k-means of one crop's embeddings, over the devices of a mesh."""

        def cluster(embeddings: Sharded, initial: jax.Array) -> tuple[jax.Array, Any]:
            rows = Sharded(embeddings.rows[:, crop], embeddings.size, 2)
            return spherical_kmeans(
                rows, initial, iterations=iterations, block_size=block_size, axis_name=AXIS
            )

        return lift(cluster, mesh, (SAME, SAME), (SAME, EACH))

    def variables(key: jax.Array, batch: Batch) -> Variables:
        network_key, memory_key, seed_key = jax.random.split(key, 3)
        start = network.init(network_key, views[0].clean(batch), True)
        rows = tuple(
            prototypes.init(jax.random.fold_in(memory_key, h), count, out_dim)
            for h, count in enumerate(num_prototypes)
        )
        memory = Memory(
            whole(jnp.zeros((run.size, num_assigned, out_dim))),
            rows,
            whole(jnp.zeros((run.size, len(num_prototypes)), jnp.int32)),
            jax.random.key_data(seed_key),
        )
        return Variables(start["params"], start.get("batch_stats", {}), memory=memory)

    def embed(params: Any, stats: Any, crops: Sequence[jax.Array]) -> tuple[jax.Array, Any]:
        """([B, V, D] unit, batch statistics)."""
        sizes = [jnp.concatenate([crops[i] for i in group]) for group in multicrop.by_size(crops)]
        (z, _), stats = apply(params, stats, sizes, True)
        return jnp.stack(jnp.split(unit(z), len(crops)), axis=1), stats

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        z, stats = embed(params, stats, inputs)
        return z, stats, None

    def loss(
        z: jax.Array, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        ids = batch["id"]
        scores = [dots("bvd,kd->vbk", z, rows) for rows in memory.prototypes]
        assigned = lookup(memory.assignments, ids, run.axis_name).T
        value = losses.deepcluster_v2(
            scores, assigned, temperature=temperature, axis_name=run.axis_name
        )
        right = jnp.stack([jnp.mean(s.argmax(axis=2) == a[None]) for s, a in zip(scores, assigned)])
        seen = gather(lax.stop_gradient(z[:, :num_assigned]), run.axis_name)
        everyone = gather(ids, run.axis_name)
        everyone = jnp.where(bank.is_last(everyone), everyone, -1)
        embeddings = write(memory.embeddings, everyone, seen)
        metrics = {"cluster_accuracy": jnp.mean(right), "chance": jnp.float32(chance)}
        return value, Aux(metrics, memory._replace(embeddings=embeddings))

    def first_pass(state: State, batch: Batch) -> jax.Array:
        # Augmented and with the batch's own statistics, as the embeddings that training remembers.
        key = batch_key(jax.random.wrap_key_data(state.memory.seed))
        crops = draw(views[:num_assigned], batch, key)
        return embed(state.params, state.stats, crops)[0]

    def refresh(state: State, encode_all: Callable[..., Any], epoch: int) -> State:
        memory, mesh = state.memory, mesh_of(state)
        if epoch == 0:
            rows_seen = replicate(whole(encode_all(first_pass)), mesh)
            memory = memory._replace(embeddings=rows_seen)
        key = jax.random.fold_in(jax.random.wrap_key_data(jnp.asarray(fetch(memory.seed))), epoch)
        rows, assignments = [], []
        for h, count in enumerate(num_prototypes):
            initial = jax.random.permutation(jax.random.fold_in(key, h), run.size)[:count]
            cluster = clusterer(mesh, h % num_assigned)
            centroids, assignment = cluster(memory.embeddings, replicate(initial, mesh))
            rows.append(fetch(centroids))
            assignments.append(fetch(assignment).rows)
        memory = memory._replace(
            prototypes=tuple(rows), assignments=whole(np.stack(assignments, axis=1))
        )
        return dataclasses.replace(state, memory=memory)

    return from_loss(
        variables=variables,
        forward=forward,
        loss=loss,
        tx=tx,
        features=features_of(apply),
        axis_name=run.axis_name,
        **keywords(views),
        refresh=refresh,
    )
