"""SpCL (Ge et al. 2020, arXiv 2006.02713): a labelled source domain and an unlabelled target, in
one contrastive loss against a memory of source classes, target clusters and lone target images.

Before each epoch DBSCAN clusters the memory's target rows by the Jaccard distance of their
neighbourhoods; clusters that a stricter and a laxer clustering do not confirm are dissolved into
lone images, so that more are trusted as features improve. Batch norm is of each domain by itself,
parameters included; the target's is what evaluators see."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from cl_jax.cluster.dbscan import dbscan, jaccard_distance, number_outliers, self_paced
from cl_jax.core.clocks import PerVisit
from cl_jax.core.method import Aux, Batch, Method, Run, State, Variables, from_loss
from cl_jax.core.network import applier, check_no_drop_path
from cl_jax.core.numerics import unit
from cl_jax.core.parallel import gather
from cl_jax.data.domains import SOURCE
from cl_jax.encoders.norm import BatchNorm
from cl_jax.losses import clusters
from cl_jax.memory import hybrid, prototypes
from cl_jax.views import View, draw, fields

NO_THRESHOLD = -1.0  # thresholds are 0 and above


class Memory(NamedTuple):
    """hybrid: rows of the source's classes, then of every target image. threshold: of the clusters'
    independence, from the first clustering on; NO_THRESHOLD before. clusters: how many have several
    images. clustered: the share of target images in them."""

    hybrid: hybrid.HybridMemory
    threshold: jax.Array
    clusters: jax.Array
    clustered: jax.Array


def remembered(rows: np.ndarray, labels: np.ndarray, threshold: float, classes: int) -> Memory:
    """The memory of rows [classes + N, D], the source's classes first, after a clustering of the
    others into labels [N] from 0 on, -1 where an image teaches nothing."""
    count = np.bincount(labels[labels >= 0])
    several = count > 1
    numbered = np.where(labels >= 0, classes + labels, -1)
    return Memory(
        hybrid.HybridMemory(
            jnp.asarray(rows),
            jnp.asarray(np.concatenate([np.arange(classes), numbered]), jnp.int32),
        ),
        jnp.float32(threshold),
        jnp.float32(several.sum()),
        jnp.float32(count[several].sum() / len(labels)),
    )


class Embedding(nn.Module):
    """An encoder and a batch norm without offset: (unit [B, D], {"h", "z"})."""

    encoder: nn.Module
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        check_no_drop_path(self.encoder)
        h = jnp.float32(self.encoder(images, train=train)["h"])
        z = unit(BatchNorm(axis_name=self.axis_name, use_bias=False, name="neck")(h, train=train))
        return z, {"h": h, "z": z}


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    source: bool = True,
    adapt: bool = True,
    temperature: float = 0.05,
    momentum: PerVisit = 0.2,
    eps: float = 0.6,
    eps_gap: float = 0.02,
    min_samples: int = 4,
    k1: int = 30,
    k2: int = 6,
    quantile: float = 0.9,
    warmup_epochs: int = 0,
    warmup: str = "instances",
    instances: int = 4,
    domain_norm: bool = True,
    chain: bool = True,
) -> Method:
    """SpCL, of one view of each image.

    source: learn from the fields "image_source" and "label_source" too (`data.domains`); False is
      the unsupervised form, of the target alone.
    adapt: learn from the target. False is the source alone, what adaptation is compared with; it
      has no statistics of the target, and wants domain_norm=False.
    temperature: see `clusters.spcl`. momentum, chain: of the memory's rows, see `hybrid.update`.
    eps, eps_gap, min_samples: of DBSCAN, on Jaccard distances; the stricter clustering is at eps -
      eps_gap, the laxer at eps + eps_gap. k1, k2: see `jaccard_distance`. quantile: see
      `self_paced`.
    warmup_epochs: epochs before the first clustering; the memory is filled again when they are
      over. The authors start from a pre-trained network and have none. warmup: what they teach:
      "instances", the source's classes and every target image as its own label, or "source", the
      classes alone; the target's norms, where it has its own, then learn nothing in them.
    instances: images of one label that a batch holds together where there are so many; lone images
      come by themselves. 0: every image once an epoch, in random order.
    domain_norm: batch norm of each domain by itself; False shares parameters and statistics.

    Raises:
      ValueError: more views than one, data without a source where one is asked for, settings out of
        range.
    """
    if len(views) != 1:
        raise ValueError(f"SpCL sees one view of each image; the config has {len(views)}.")
    if source and SOURCE[1] not in run.sizes:
        raise ValueError(
            f"SpCL learns from {', '.join(SOURCE)}, which the data lack. Use data.name='domains', "
            "or source=False to learn from one set without labels."
        )
    if not adapt and (domain_norm or not source):
        raise ValueError(
            f"adapt=False with source={source}, domain_norm={domain_norm}; without the target, "
            "SpCL learns from the source, and images of both pass one batch norm: set source=True "
            "and domain_norm=False."
        )
    if warmup not in ("instances", "source") or (warmup == "source" and not source):
        raise ValueError(
            f"warmup={warmup!r} with source={source}; expected 'instances', or 'source' where "
            "there is one."
        )
    if not 0 < eps - eps_gap <= eps + eps_gap:
        raise ValueError(f"eps={eps}, eps_gap={eps_gap}; expected 0 <= eps_gap < eps.")
    if instances < 0 or warmup_epochs < 0:
        raise ValueError(
            f"instances={instances}, warmup_epochs={warmup_epochs}; expected 0 or more."
        )
    classes = run.sizes[SOURCE[1]] if source else 0
    num_labels = classes + run.size
    network = Embedding(encoder, run.axis_name)
    apply = applier(network)

    def variables(key: jax.Array, batch: Batch) -> Variables:
        network_key, memory_key = jax.random.split(key)
        found = network.init(network_key, views[0].clean(batch), True)
        params, stats = {"network": found["params"]}, {"target": found.get("batch_stats", {})}
        if source and domain_norm:
            params["source_norms"] = _norms(found["params"], stats["target"])
            stats["source"] = stats["target"]
        width = jax.tree.leaves(found["params"]["neck"])[0].shape[0]
        memory = hybrid.init(prototypes.init(memory_key, num_labels, width))
        return Variables(
            params,
            stats,
            memory=Memory(memory, jnp.float32(NO_THRESHOLD), jnp.zeros(()), jnp.zeros(())),
        )

    def of_source(params: Any, stats: Any, images: jax.Array, train: bool) -> tuple[jax.Array, Any]:
        if not domain_norm:
            (z, _), changed = apply(params["network"], stats["target"], images, train)
            return z, {**stats, "target": changed}
        own = _with(params["network"], params["source_norms"])
        (z, _), changed = apply(own, stats["source"], images, train)
        return z, {**stats, "source": changed}

    def of_target(params: Any, stats: Any, images: jax.Array, train: bool) -> tuple[jax.Array, Any]:
        (z, _), changed = apply(params["network"], stats["target"], images, train)
        return z, {**stats, "target": changed}

    def drawn(batch: Batch, key: jax.Array) -> list[jax.Array]:
        inputs = draw(views, batch, key)
        if source:
            other = {**batch, "image": batch[SOURCE[0]]}
            inputs = [*inputs, *draw(views, other, jax.random.fold_in(key, 1))]
        return inputs

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        outputs = {}
        if source:
            outputs["source"], stats = of_source(params, stats, inputs[1], True)
        if adapt:
            outputs["target"], stats = of_target(params, stats, inputs[0], True)
        return outputs, stats, None

    def loss(
        outputs: Any, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        ids = {"source": batch[SOURCE[1]]} if source else {}
        if adapt:
            ids["target"] = classes + batch["id"]
        held = memory.hybrid
        terms = {
            name: clusters.spcl(
                outputs[name],
                held.rows,
                held.labels,
                rows,
                temperature=temperature,
                num_labels=num_labels,
                axis_name=run.axis_name,
            )
            for name, rows in ids.items()
        }
        rows_of_label = jax.ops.segment_sum(jnp.ones(num_labels), held.labels, num_labels)
        moved = hybrid.update(
            held,
            jnp.concatenate([gather(outputs[name], run.axis_name) for name in ids]),
            jnp.concatenate([gather(rows, run.axis_name) for rows in ids.values()]),
            momentum=momentum,
            chain=chain,
        )
        metrics = {f"loss_{name}": value for name, value in terms.items()} | {
            "chance": len(terms) * jnp.log(jnp.sum(rows_of_label > 0)),
            "clusters": memory.clusters,
            "clustered": memory.clustered,
        }
        value = jnp.sum(jnp.stack(list(terms.values())))
        return value, Aux(metrics, memory._replace(hybrid=moved))

    def embed(state: State, batch: Batch) -> dict[str, jax.Array]:
        found = {"target": of_target(state.params, state.stats, views[0].clean(batch), False)[0]}
        if source:
            images = views[0].clean({**batch, "image": batch[SOURCE[0]]})
            found["source"] = of_source(state.params, state.stats, images, False)[0]
            found["label"] = batch[SOURCE[1]]
        return found

    def filled(encode_all: Callable[..., Any]) -> np.ndarray:
        rows = encode_all(embed)
        if not source:
            return np.asarray(rows["target"])
        means = hybrid.class_means(jnp.asarray(rows["source"]), jnp.asarray(rows["label"]), classes)
        return np.concatenate([prototypes.normalise(means), rows["target"]])

    def refresh(state: State, encode_all: Callable[..., Any], epoch: int) -> State:
        memory = state.memory
        if epoch in (0, warmup_epochs):
            rows = filled(encode_all)
        else:
            rows = np.asarray(memory.hybrid.rows)
        if not adapt:
            labels, threshold = np.full(run.size, -1), NO_THRESHOLD
        elif epoch < warmup_epochs:
            alone = np.arange(run.size)
            labels = alone if warmup == "instances" else np.full(run.size, -1)
            threshold = NO_THRESHOLD
        else:
            labels, threshold = _pseudo_labels(
                rows[classes:],
                float(memory.threshold),
                (eps, eps - eps_gap, eps + eps_gap),
                min_samples,
                (k1, k2),
                quantile,
            )
        return dataclasses.replace(state, memory=remembered(rows, labels, threshold, classes))

    def order(state: State, epoch: int, seed: int) -> np.ndarray:
        labels = np.asarray(state.memory.hybrid.labels)[classes:]
        labels = np.where(labels < 0, num_labels + np.arange(run.size), labels)  # none: alone
        return together(
            labels, instances, run.steps_per_epoch * run.batch_size, seed=seed, epoch=epoch
        )

    def features(
        params: Any, stats: Any, images: jax.Array, train: bool
    ) -> tuple[dict[str, jax.Array], Any]:
        (_, named), changed = apply(params["network"], stats["target"], images, train)
        return named, {**stats, "target": changed}

    return from_loss(
        variables=variables,
        views=drawn,
        forward=forward,
        loss=loss,
        tx=tx,
        features=features,
        clean=views[0].clean,
        axis_name=run.axis_name,
        **fields(views, *(SOURCE if source else ())),
        refresh=refresh,
        order=order if instances and adapt else None,
        negatives=num_labels - 1,
    )


def together(
    labels: np.ndarray, instances: int, length: int, *, seed: int, epoch: int
) -> np.ndarray:
    """[length] int32 examples, up to `instances` of one label in a row; labels in random order, and
    again from the start when all have been. The same on every machine."""
    stream = np.random.Philox(key=[seed, epoch])
    names = np.unique(labels)
    found: list[np.ndarray] = []
    total = 0
    while total < length:
        shuffled = np.argsort(stream.random_raw(len(labels)), kind="stable")
        by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
        starts = np.searchsorted(labels[by_label], names)
        ends = np.append(starts[1:], len(labels))
        for i in np.argsort(stream.random_raw(len(names)), kind="stable"):
            found.append(by_label[starts[i] : min(ends[i], starts[i] + instances)])
            total += len(found[-1])
    return np.concatenate(found)[:length].astype(np.int32)


def _pseudo_labels(
    rows: np.ndarray,
    threshold: float,
    eps: tuple[float, float, float],
    min_samples: int,
    neighbours: tuple[int, int],
    quantile: float,
) -> tuple[np.ndarray, float]:
    """([N] labels from 0 on without gaps, the threshold)."""
    k1, k2 = neighbours
    distance = jaccard_distance(rows, k1=k1, k2=k2)
    labels, tight, loose = (
        number_outliers(dbscan(distance, eps=one, min_samples=min_samples)) for one in eps
    )
    found = self_paced(
        labels,
        tight,
        loose,
        threshold=None if threshold == NO_THRESHOLD else threshold,
        quantile=quantile,
    )
    return np.unique(found.labels, return_inverse=True)[1], found.threshold


def _norms(params: Any, stats: Any) -> Any:
    """The parameters of the modules that have running statistics."""
    normed = {path[:-1] for path in traverse_util.flatten_dict(stats)}
    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({p: x for p, x in flat.items() if p[:-1] in normed})


def _with(params: Any, norms: Any) -> Any:
    """The parameters with those of `norms` in their places."""
    flat = traverse_util.flatten_dict(params) | traverse_util.flatten_dict(norms)
    return traverse_util.unflatten_dict(flat)
